// The one place where readiness becomes outcomes: bytes in, the handler, bytes out.
#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

/// Pieces of at least this size go to the kernel at once instead of through the gather buffer: from here on the copy costs more
/// than the system call it may save.
constexpr std::size_t large_piece_bytes = 8 * 1024;

/// How many pieces of the queue one system call carries, and how many calls one connection may make before others have their
/// turn.
constexpr std::size_t pieces_per_send = 16;
constexpr int sends_per_turn = 16;

/// recv answers an end only after everything before it was read; until then a hint makes it worth asking again.
constexpr unsigned end_hints = Readiness::ended | Readiness::error;

}  // namespace

// --- a dispatch
//
// ready() and what it calls for a plain message are the hot path: a recv, the handler, a send. What is rare is called, not
// inlined.

inline void ConnectionLife::deliver(ReactorCore& core, Connection& connection, std::size_t size) {
  count_received(core, connection, size);
  connection.policy_->on_receive(handler_of(connection), connection, Bytes(core.receive_buffer, size));
}

inline void ConnectionLife::count_received(ReactorCore& core, Connection& connection, std::size_t size) {
  connection.received_ += size;
  core.counters.received_bytes += size;
}

void ConnectionLife::count_discarded(Connection& connection, std::uint64_t size) {
  connection.discarded_ += static_cast<std::uint32_t>(std::min<std::uint64_t>(size, UINT32_MAX - connection.discarded_));
}

/// A read answers what is to be delivered, and nothing else is to be thought of.
inline bool ConnectionLife::is_plain(const Connection& connection, Readiness readiness) {
  constexpr unsigned not_plain = Connection::closing | Connection::peer_finished | Connection::end_hinted |
                                 Connection::error_latched | held | Connection::has_tail | Connection::tail_wanted |
                                 Connection::probed;
  constexpr unsigned plain = Connection::is_established | Connection::tcp;
  return (readiness.bits & ~Readiness::writable) == Readiness::readable && (connection.flags_ & (not_plain | plain)) == plain;
}

/// A short read has drained a TCP socket. Not so where an end or error was signalled or latched, at an urgent mark, or on a Unix
/// stream, which stops short at a message with ancillary data: there it is read until the kernel has no more.
bool ConnectionLife::is_drained_when_short(const Connection& connection, Readiness readiness) {
  constexpr unsigned end_expected =
      Connection::closing | Connection::peer_finished | Connection::end_hinted | Connection::error_latched;
  return (readiness.bits & ~Readiness::writable) == Readiness::readable &&
         (connection.flags_ & (end_expected | Connection::tcp)) == Connection::tcp;
}

inline ssize_t ConnectionLife::read_some(ReactorCore& core, const Connection& connection) {
  ++core.counters.receive_calls;
  return sys::recv(connection.descriptor_, core.receive_buffer, core.options.receive_buffer_bytes);
}

/// Goes on with the answer of the first read until the socket is drained, has ended, or has had its share of the turn.
void ConnectionLife::receive(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned) {
  const bool drained_when_short = is_drained_when_short(connection, readiness);
  for (std::size_t reads = core.options.reads_per_turn;; returned = read_some(core, connection)) {
    if (returned == -EINTR)
      returned = receive_once(connection.descriptor_, core.receive_buffer, core.options.receive_buffer_bytes);
    if (classify_receive(returned) != ReceiveOutcome::data) return heard_no_data(core, connection, readiness, returned);
    const auto size = static_cast<std::size_t>(returned);
    core.make_room_for_stamp();
    core.stamp_soon(&connection.last_received_);
    if (connection.has(Connection::probed)) connection.policy_->heartbeat->answered(core, connection);
    if (connection.has(Connection::closing)) {
      count_received(core, connection, size);
      count_discarded(connection, size);
    } else {
      if (connection.has(Connection::awaits_message)) {
        core.make_room_for_stamp();
        message_begins(core, connection);
      }
      if (connection.has(Connection::has_tail)) {
        count_received(core, connection, size);
        deliver_with_tail(core, connection, size);
      } else {
        connection.clear(Connection::tail_wanted);  // by a receive_again() when nothing was left
        deliver(core, connection, size);
      }
    }
    if (connection.stage_ != Connection::Stage::open || connection.has(held)) return;
    if (drained_when_short && size < core.options.receive_buffer_bytes) {
      if (connection.has(Connection::tail_wanted)) core.ready_later(connection, {Readiness::readable});
      return;
    }
    if (--reads == 0) return core.ready_later(connection, readiness);  // more may be there, and others wait
  }
}

/// What the kernel took; with that, an error is latched and a short answer means stalled.
inline std::size_t ConnectionLife::account_sent(ReactorCore& core, Connection& connection, ssize_t returned) {
  if (returned > 0) [[likely]] {
    connection.handed_to_kernel_ += static_cast<std::size_t>(returned);
    core.counters.sent_bytes += static_cast<std::size_t>(returned);
    return static_cast<std::size_t>(returned);
  }
  sent_nothing(core, connection, returned);
  return 0;
}

inline void ConnectionLife::send_gathered(ReactorCore& core, Connection& connection) {
  const std::size_t size = core.gathered;
  core.gathered = 0;
  ++core.counters.send_calls;
  const ssize_t returned = sys::send(connection.descriptor_, core.gather_buffer.get(), size);
  if (returned != static_cast<ssize_t>(size)) [[unlikely]]
    return keep_gathered(core, connection, returned, size);
  connection.handed_to_kernel_ += size;
  core.counters.sent_bytes += size;
}

inline void ConnectionLife::begin_dispatch(ReactorCore& core, Connection& connection) {
  assert(core.gathered == 0 && core.gathering == nullptr);
  core.gathering = &connection;
  core.direct_sends_left = ReactorCore::direct_sends_per_dispatch;
}

/// Sends what its handler said to it, and what waits for room.
inline void ConnectionLife::end_dispatch(ReactorCore& core, Connection& connection, Readiness readiness) {
  if (connection.has(Connection::is_established)) [[likely]] {
    if (core.gathered != 0) [[likely]]
      send_gathered(core, connection);
    core.gathering = nullptr;  // what its handler is told from here on queues: nobody would send the gather buffer any more
    if (connection.has(Connection::has_queue | Connection::finish_wanted | Connection::lingering)) [[unlikely]]
      write_ready(core, connection, readiness);
  } else {
    connection.queued_bytes_ += static_cast<std::uint32_t>(core.gathered);  // told as unsent
    core.gathered = 0;
    core.gathering = nullptr;
  }
}

void ConnectionLife::write_ready(ReactorCore& core, Connection& connection, Readiness readiness) {
  if (readiness.any_of(Readiness::writable)) connection.clear(Connection::stalled);
  write_out(core, connection);
}

// --- the phases of a turn

/// One dispatch: receive what is there, then send what the handler said to it.
void ConnectionLife::ready(ReactorCore& core, Source& source, Readiness readiness) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (!is_plain(connection, readiness)) [[unlikely]]
    return ready_otherwise(core, connection, readiness);
  begin_dispatch(core, connection);
  const ssize_t returned = read_some(core, connection);
  // An end and an error are beyond every size, as one less than 0 or than a negated errno.
  if (static_cast<std::size_t>(returned) - 1 < core.options.receive_buffer_bytes - 1) [[likely]] {
    core.stamp_soon(&connection.last_received_);
    if (connection.has(Connection::awaits_message)) [[unlikely]]
      message_begins(core, connection);
    deliver(core, connection, static_cast<std::size_t>(returned));
  } else {
    receive(core, connection, readiness, returned);
  }
  end_dispatch(core, connection, readiness);
}

[[gnu::noinline]] void ConnectionLife::ready_otherwise(ReactorCore& core, Connection& connection, Readiness readiness) {
  if (connection.stage_ == Connection::Stage::connecting) return confirm_connect(core, connection, readiness);
  if (connection.stage_ != Connection::Stage::open) return;
  begin_dispatch(core, connection);
  if (connection.has(held) && !connection.has(Connection::peer_finished)) {  // behind the peer's end nothing waits to be read
    hear_while_held(core, connection, readiness);
  } else if (worth_receiving(connection, readiness)) {
    receive(core, connection, readiness, read_some(core, connection));
  }
  end_dispatch(core, connection, readiness);
}

void ConnectionLife::flush(ReactorCore& core, Source& source) noexcept {
  auto& connection = static_cast<Connection&>(source);
  // Callbacks have run since the clock was read.
  if (connection.has(Connection::just_given | Connection::probe_waits)) core.read_clock();
  if (connection.has(Connection::just_given)) send_clock_begins_now(core, connection);
  if (connection.has(Connection::probe_waits)) connection.policy_->heartbeat->handed_over(core, connection);
  write_out(core, connection);
}

/// Whether readiness that is not simply "readable" is a reason to ask recv.
bool ConnectionLife::worth_receiving(Connection& connection, Readiness readiness) {
  if (!readiness.any_of(Readiness::readable | Readiness::urgent | end_hints)) return false;
  if (readiness.any_of(Readiness::ended)) connection.set(Connection::end_hinted);
  // After the peer's end only a reset can follow, and only an error hint tells of it.
  return !connection.has(Connection::peer_finished) || connection.has(Connection::error_latched) ||
         readiness.any_of(Readiness::error);
}

void ConnectionLife::heard_no_data(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned) {
  const ReceiveOutcome outcome = classify_receive(returned);
  const bool over = outcome != ReceiveOutcome::no_data || connection.has(Connection::error_latched);
  const bool wanted = over || connection.has(Connection::tail_wanted);
  // Before the handler may send: what the kernel said first is what ended it.
  if (outcome == ReceiveOutcome::failed) latch_error(connection, static_cast<int>(-returned), number(Operation::recv));
  connection.clear(Connection::tail_wanted);  // the handler may call receive_again() once more
  if (wanted && connection.has(Connection::has_tail) && !connection.has(Connection::closing)) {
    if (!over) deliver_with_tail(core, connection, 0);
    if (over && !offer_last(core, connection)) return;
    if (connection.stage_ != Connection::Stage::open) return;
  }
  switch (outcome) {
    case ReceiveOutcome::no_data:
      ++core.counters.empty_receives;
      if (over) stream_error(core, connection);  // not for an error that the tail's handler met: there may be more to read now
      return;
    case ReceiveOutcome::finished:
      if (readiness.any_of(Readiness::error) && !connection.has(Connection::error_latched)) {
        latch_pending_error(connection);  // an error behind the peer's FIN never reaches recv
        if (connection.has(Connection::error_latched)) connection.set(Connection::peer_finished);
      }
      return connection.has(Connection::error_latched) ? stream_error(core, connection) : peer_end(core, connection);
    default:
      return stream_error(core, connection);
  }
}

// --- sending

bool ConnectionLife::enqueue(ReactorCore& core, Connection& connection, Bytes bytes) {
  if (!send_queue::append(core.chunks, connection.queue_, bytes)) {
    connection.queued_bytes_ += static_cast<std::uint32_t>(bytes.size());  // lost: told as unsent, and to the peer by a reset
    end(connection, CloseReason::system_error, ENOMEM, number(Operation::send));
    return false;
  }
  connection.set(Connection::has_queue);
  connection.queued_bytes_ += static_cast<std::uint32_t>(bytes.size());
  if (connection.queued_bytes_ <= connection.policy_->high_mark) return true;
  connection.set(Connection::above_high_mark);
  // No memory to hold reading: the bound on the queue still holds.
  if (connection.policy_->pauses_when_backlogged && !connection.has(Connection::backlogged | Connection::closing))
    (void)hold_reading(core, connection, Connection::backlogged);
  return true;
}

inline void ConnectionLife::gather(ReactorCore& core, Bytes bytes) {
  std::byte* const end = core.gather_buffer.get() + core.gathered;
  core.gathered += bytes.size();
  std::memcpy(end, bytes.data(), bytes.size());
}

/// The hot half: a small piece to the connection being dispatched, nothing queued before it, is gathered.
Result<void> Connection::send(Bytes bytes) {
  if ((flags_ & (is_established | closing | finish_wanted | lingering | has_queue)) == is_established) [[likely]] {
    ReactorCore& core = *policy_->core;
    core.assert_thread();
    if (core.gathers_for(*this) && send_progress_ != nothing_outstanding && bytes.size() - 1 < large_piece_bytes - 1 &&
        bytes.size() <= policy_->gather_max - core.gathered) [[likely]] {
      ConnectionLife::gather(core, bytes);
      return {};
    }
  }
  return ConnectionLife::send(*this, bytes);
}

Result<void> ConnectionLife::send(Connection& connection, Bytes bytes) {
  constexpr unsigned ended_flags = Connection::closing | Connection::finish_wanted;
  if (connection.stage_ == Connection::Stage::vacant) return Error{"send", EBADF};
  if (connection.stage_ == Connection::Stage::ended || connection.has(ended_flags)) return Error{"send", EPIPE};
  ReactorCore& core = *connection.policy_->core;
  core.assert_thread();
  if (bytes.empty()) return {};
  if (connection.has(Connection::lingering)) {  // the handler still has something to say to a peer that finished
    connection.drain_began_ = never_due;
    core.flush_later(connection);
  }
  const bool gathers = core.gathers_for(connection);
  const std::size_t bound = connection.policy_->backlog_bytes_max;
  const std::size_t waiting = connection.queued_bytes_ + (gathers ? core.gathered : 0);
  if (bytes.size() > bound - std::min(waiting, bound)) {
    // Nothing leaves any more, and that is why so much waits: the reason is the stream's, told behind what is still to be read.
    if (connection.has(Connection::error_latched)) return Error{"send", connection.error_};
    connection.set(Connection::reset_wanted);  // the peer must not take what it has for the whole stream
    end(connection, CloseReason::backlog_full);
    return Error{"send", ENOBUFS};
  }
  const bool open = connection.stage_ == Connection::Stage::open;
  if (connection.send_progress_ == nothing_outstanding && open) {
    start_send_clock(core, connection);
    send_clock_begins_later(core, connection);
  }

  // A handler that sends until its backlog grows would never return while the peer reads as fast: beyond a budget it does grow.
  const bool direct = open && connection.queue_ == nullptr && core.direct_sends_left > 0;
  if (direct && gathers && bytes.size() < large_piece_bytes && bytes.size() <= connection.policy_->gather_max - core.gathered) {
    gather(core, bytes);
    return {};
  }
  if (direct && (gathers || bytes.size() >= large_piece_bytes)) return send_direct(core, connection, bytes);
  if (gathers && core.gathered != 0) send_gathered(core, connection);  // what came first leaves first
  if (!enqueue(core, connection, bytes)) return Error{"send", ENOMEM};
  if (connection.has(Connection::stalled)) return {};
  if (core.refilling == &connection) {
    core.ready_later(connection, {Readiness::writable});  // it had its budget of this turn
  } else {
    core.flush_later(connection);
  }
  return {};
}

/// What was gathered and one more piece, in one system call; only what the kernel did not take is copied.
Result<void> ConnectionLife::send_direct(ReactorCore& core, Connection& connection, Bytes bytes) {
  const std::size_t gathered = core.gathers_for(connection) ? core.gathered : 0;
  if (gathered != 0) core.gathered = 0;
  const iovec pieces[] = {{core.gather_buffer.get(), gathered}, {const_cast<std::byte*>(bytes.data()), bytes.size()}};
  const std::size_t total = gathered + bytes.size();
  ++core.counters.send_calls;
  --core.direct_sends_left;
  const ssize_t returned = gathered == 0 ? send_once(connection.descriptor_, bytes.data(), bytes.size())
                                         : send_vector_once(connection.descriptor_, pieces, 2);
  const std::size_t taken = account_sent(core, connection, returned);
  if (taken != 0 && connection.has(Connection::just_given)) {  // the first outstanding bytes have left here
    core.read_clock();
    send_clock_begins_now(core, connection);
  }
  if (taken == total) return {};
  stall(core, connection);
  const std::size_t from_gathered = std::min(taken, gathered);
  const bool kept = (gathered == from_gathered ||
                     enqueue(core, connection, Bytes(core.gather_buffer.get() + from_gathered, gathered - from_gathered))) &&
                    enqueue(core, connection, bytes.without_first(taken - from_gathered));
  if (!kept) return Error{"send", ENOMEM};
  return {};
}

void ConnectionLife::keep_gathered(ReactorCore& core, Connection& connection, ssize_t returned, std::size_t size) {
  if (returned == -EINTR) returned = send_once(connection.descriptor_, core.gather_buffer.get(), size);
  const std::size_t taken = account_sent(core, connection, returned);
  if (taken == size) return;
  stall(core, connection);
  (void)enqueue(core, connection, Bytes(core.gather_buffer.get() + taken, size - taken));  // it tells a failure itself
}

void ConnectionLife::sent_nothing(ReactorCore& core, Connection& connection, ssize_t returned) {
  if (classify_send(returned) != SendOutcome::failed) return;
  latch_error(connection, static_cast<int>(-returned), number(Operation::send));
  core.ready_later(connection, {Readiness::readable});  // what the peer sent before comes first
}

void ConnectionLife::stall(ReactorCore& core, Connection& connection) {
  ++core.counters.stalled_sends;
  connection.set(Connection::stalled);
}

void ConnectionLife::send_queued(ReactorCore& core, Connection& connection) {
  for (int sends = 0; connection.queue_ != nullptr; ++sends) {
    if (sends == sends_per_turn) return core.ready_later(connection, {Readiness::writable});
    iovec pieces[pieces_per_send];
    const std::size_t count = send_queue::first_pieces(connection.queue_, pieces, pieces_per_send);
    std::size_t wanted = 0;
    for (std::size_t index = 0; index < count; ++index) wanted += pieces[index].iov_len;
    ++core.counters.send_calls;
    const ssize_t returned = count == 1 ? send_once(connection.descriptor_, pieces[0].iov_base, pieces[0].iov_len)
                                        : send_vector_once(connection.descriptor_, pieces, count);
    const std::size_t taken = account_sent(core, connection, returned);
    send_queue::consume(core.chunks, connection.queue_, taken);
    connection.queued_bytes_ -= static_cast<std::uint32_t>(taken);
    if (taken < wanted) return stall(core, connection);
  }
  connection.clear(Connection::has_queue);
  if (connection.has(Connection::probe_waits)) connection.policy_->heartbeat->handed_over(core, connection);
}

/// Hands the kernel what is queued, and then whatever follows from there being nothing left.
void ConnectionLife::write_out(ReactorCore& core, Connection& connection) {
  if (connection.stage_ != Connection::Stage::open || connection.has(Connection::error_latched)) return;
  if (!connection.has(Connection::stalled)) send_queued(core, connection);
  if (connection.has(Connection::above_high_mark) && connection.queued_bytes_ <= connection.policy_->low_mark) {
    connection.clear(Connection::above_high_mark);
    release_reading(core, connection, Connection::backlogged);
    const HandlerThunks& handler = *connection.policy_->handler;
    if (handler.on_send_drained != nullptr && !connection.has(Connection::closing | Connection::finish_wanted)) {
      core.refilling = &connection;
      handler.on_send_drained(handler_of(connection), connection);
      core.refilling = nullptr;
      if (connection.stage_ != Connection::Stage::open) return;
    }
  }
  if (connection.queue_ == nullptr && !connection.has(Connection::error_latched)) advance_end(core, connection);
}

}  // namespace vigil
