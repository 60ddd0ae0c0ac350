// One connection's life. The header of connection_life.hpp draws the paths; the rules of which reason wins stand in
// close_record.hpp and are here in three places: stream_error(), expire() and begin_close().
#include "vigil/connection.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <new>

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

constexpr Instant nothing_outstanding{};  // no reading of a clock that counts from boot

constexpr std::array operation_names{"", "recv", "send", "connect", "watch", "accept"};

/// recv answers an end only after everything before it was read; until then a hint makes it worth asking again.
constexpr unsigned end_hints = Readiness::ended | Readiness::error;

Origin origin_of(CloseReason reason, int error_number) {
  switch (reason) {
    case CloseReason::peer_finished:
    case CloseReason::peer_reset:
    case CloseReason::connect_refused:
      return Origin::peer;
    case CloseReason::connect_timed_out:
      return error_number == 0 ? Origin::policy : Origin::network;
    case CloseReason::connect_unreachable:
    case CloseReason::network_timed_out:
    case CloseReason::network_unreachable:
      return Origin::network;
    case CloseReason::accept_shed:
    case CloseReason::first_byte_timed_out:
    case CloseReason::receive_timed_out:
    case CloseReason::send_timed_out:
    case CloseReason::drain_timed_out:
    case CloseReason::backlog_full:
      return Origin::policy;
    case CloseReason::local_close:
    case CloseReason::connect_failed:
    case CloseReason::self_connect:
    case CloseReason::server_stopping:
    case CloseReason::system_error:
      return Origin::local;
  }
  return Origin::local;
}

CloseReason reason_of_connect(int error_number) {
  switch (classify_connect(error_number)) {
    case ConnectOutcome::rejected:
      return CloseReason::connect_refused;
    case ConnectOutcome::timed_out:
      return CloseReason::connect_timed_out;
    case ConnectOutcome::unreachable:
      return CloseReason::connect_unreachable;
    default:
      return CloseReason::connect_failed;
  }
}

bool is_reset(int error_number) { return error_number == ECONNRESET || error_number == EPIPE; }

bool is_unreachable(int error_number) {
  return error_number == EHOSTUNREACH || error_number == ENETUNREACH || error_number == EHOSTDOWN || error_number == ENETDOWN;
}

constexpr std::uint8_t number(Operation operation) { return static_cast<std::uint8_t>(operation); }

}  // namespace

constinit const SourceOperations ConnectionLife::operations{
    .ready = ready, .due = due, .flush = flush, .finish = finish, .stop = stop, .cancel = nullptr};

void* Connection::handler_storage() { return reinterpret_cast<std::byte*>(this) + policy_->handler_offset; }

// --- birth

Result<void> refresh_policy(ConnectionPolicy*& policy, ReactorCore& core, const HandlerThunks& handler,
                            const BacklogBounds& bounds, const Timeouts& own_layer, const char* operation) {
  if (auto valid = validate(own_layer, operation); !valid) return valid;
  if (bounds.bytes_max == 0 || bounds.bytes_max > UINT32_MAX) return Error{operation, EINVAL, "backlog_bytes_max out of range"};
  if (bounds.low_mark > bounds.high_mark) return Error{operation, EINVAL, "backlog low mark above the high mark"};
  const Timeouts timeouts = over(own_layer, over(core.options.timeouts, default_timeouts()));
  if (policy != nullptr && policy->inherited == timeouts) return {};

  auto* fresh = new (std::nothrow) ConnectionPolicy;
  if (fresh == nullptr) return Error{operation, ENOMEM};
  fresh->core = &core;
  fresh->on_receive = handler.on_receive;
  fresh->handler_offset =
      static_cast<std::uint32_t>(ConnectionLife::handler_offset(std::max(handler.alignment, alignof(PeerAddress))));
  fresh->backlog_bytes_max = static_cast<std::uint32_t>(bounds.bytes_max);
  // What is gathered never passes the high mark, so that whoever fills up to it is told when it drains.
  fresh->gather_max = std::min({bounds.bytes_max, bounds.high_mark, core.options.gather_buffer_bytes});
  // A mark beyond the bound is never reached: then on_send_drained simply does not come.
  fresh->high_mark = static_cast<std::uint32_t>(std::min<std::size_t>(bounds.high_mark, UINT32_MAX));
  fresh->low_mark = static_cast<std::uint32_t>(std::min<std::size_t>(bounds.low_mark, UINT32_MAX));
  fresh->handler = &handler;
  fresh->slab = core.slab_for(fresh->handler_offset + handler.size, alignof(Connection), &ConnectionLife::construct_slot);
  fresh->timeouts = timeouts;
  fresh->inherited = timeouts;
  ConnectionPolicy::release(policy);
  policy = fresh;
  return {};
}

Source* ConnectionLife::construct_slot(void* slot) { return ::new (slot) Connection; }

Connection* ConnectionLife::begin(ConnectionPolicy& policy, int descriptor, const PeerAddress& peer, bool tcp) {
  ReactorCore& core = *policy.core;
  Source* source = core.take_source(*policy.slab);
  if (source == nullptr) return nullptr;
  auto& connection = static_cast<Connection&>(*source);
  ++policy.references;
  ++core.counters.opened;
  connection.operations_ = &operations;
  connection.descriptor_ = descriptor;
  connection.stage_ = Connection::Stage::connecting;
  connection.flags_ = tcp ? Connection::tcp : 0;
  connection.queued_bytes_ = 0;
  connection.policy_ = &policy;
  connection.received_ = 0;
  connection.handed_to_kernel_ = 0;
  connection.queue_ = nullptr;
  connection.send_progress_ = policy.timeouts.send.is_never() ? never_due : nothing_outstanding;
  connection.opened_at_ = connection.last_received_ = core.read_clock();
  connection.drain_began_ = never_due;
  connection.acknowledged_ = 0;
  connection.discarded_ = 0;
  connection.error_ = 0;
  connection.operation_ = 0;
  connection.reason_ = CloseReason::local_close;
  connection.cut_short_ = CutShort::none;
  ::new (&peer_of(connection)) PeerAddress(peer);
  return &connection;
}

void ConnectionLife::build_handler(Connection& connection, Construct& construct) {
  construct(connection.handler_storage(), connection);
}

void ConnectionLife::register_stream(Connection& connection) {
  const int error = connection.policy_->core->poller.add(connection, Poller::Interest::stream);
  if (error != 0) end(connection, CloseReason::system_error, error, number(Operation::watch));
}

void ConnectionLife::established(Connection& connection) {
  ReactorCore& core = *connection.policy_->core;
  connection.stage_ = Connection::Stage::open;
  connection.set(Connection::was_open | Connection::is_established);
  connection.last_received_ = core.read_clock();  // first_byte and receive run from here
  if (connection.policy_->handler->on_open != nullptr)
    connection.policy_->handler->on_open(connection.handler_storage(), connection);
  if (connection.stage_ != Connection::Stage::open) return;
  core.read_clock();
  rearm(core, connection);
  if (connection.queued_bytes_ == 0) return;
  if (connection.send_progress_ == nothing_outstanding) start_send_clock(core, connection);
  core.flush_later(connection);  // sent while it was connecting
}

void ConnectionLife::accepted(Connection& connection) {
  if (connection.stage_ == Connection::Stage::connecting) established(connection);  // else it could not be registered
}

void ConnectionLife::connecting(Connection& connection, int connect_answer) {
  ReactorCore& core = *connection.policy_->core;
  // EALREADY: an interrupted call had begun it.
  if (connect_answer < 0 && connect_answer != -EINPROGRESS && connect_answer != -EALREADY)
    return end(connection, reason_of_connect(-connect_answer), -connect_answer, number(Operation::connect));
  register_stream(connection);
  if (connection.stage_ != Connection::Stage::connecting) return;
  rearm(core, connection);
  // Connected at once: told in the next turn, as everything is, never from inside connect().
  if (connect_answer == 0) core.ready_later(connection, {Readiness::readable | Readiness::writable});
}

void ConnectionLife::confirm_connect(ReactorCore& core, Connection& connection, Readiness readiness) {
  const int error = connect_result(connection.descriptor_);
  if (error == EINPROGRESS) return;  // a stale or spurious event: the handshake is still under way
  // A handshake that never completed is answered ECONNREFUSED; a reset of an established connection was one that had opened.
  if (error != 0 && !is_reset(error)) return end(connection, reason_of_connect(error), error, number(Operation::connect));
  if (error == 0 && connection.has(Connection::tcp) && is_self_connected(connection.descriptor_))
    return end(connection, CloseReason::self_connect);
  if (error != 0) latch_error(connection, error, number(Operation::connect));
  established(connection);
  if (connection.stage_ == Connection::Stage::open) ready(core, connection, readiness);
}

// --- a dispatch
//
// exchange() and what it calls for a plain message are the hot path: a recv, the handler, a send. What is rare is called, not
// inlined.

inline void ConnectionLife::deliver(ReactorCore& core, Connection& connection, std::size_t size) {
  count_received(core, connection, size);
  connection.policy_->on_receive(connection.handler_storage(), connection, Bytes(core.receive_buffer.get(), size));
}

inline void ConnectionLife::count_received(ReactorCore& core, Connection& connection, std::size_t size) {
  connection.received_ += size;
  core.counters.received_bytes += size;
}

/// A short read has drained a TCP socket. Not so where an end or error was signalled or latched, at an urgent mark, or on a Unix
/// stream, which stops short at a message with ancillary data: there it is read until the kernel has no more.
inline bool ConnectionLife::is_plain(const Connection& connection, Readiness readiness) {
  constexpr unsigned not_plain =
      Connection::closing | Connection::peer_finished | Connection::end_hinted | Connection::error_latched;
  constexpr unsigned plain = Connection::is_established | Connection::tcp;
  return (readiness.bits & ~Readiness::writable) == Readiness::readable && (connection.flags_ & (not_plain | plain)) == plain;
}

inline ssize_t ConnectionLife::read_some(ReactorCore& core, const Connection& connection) {
  ++core.counters.receive_calls;
  return sys::recv(connection.descriptor_, core.receive_buffer.get(), core.options.receive_buffer_bytes);
}

/// Goes on with the answer of the first read until the socket is drained, has ended, or has had its share of the turn.
void ConnectionLife::receive(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned) {
  const bool plain = is_plain(connection, readiness);
  bool stamped = false;
  for (std::size_t reads = core.options.reads_per_turn;; returned = read_some(core, connection)) {
    if (returned == -EINTR)
      returned = receive_once(connection.descriptor_, core.receive_buffer.get(), core.options.receive_buffer_bytes);
    if (classify_receive(returned) != ReceiveOutcome::data) return heard_no_data(core, connection, readiness, returned);
    const auto size = static_cast<std::size_t>(returned);
    // The handler may have made the clock be read since the last read of this dispatch: the stamp was stored, and is owed anew.
    if (!stamped || core.stamps_wanted == 0) core.stamp_soon(&connection.last_received_);
    stamped = true;
    if (connection.has(Connection::closing)) {
      count_received(core, connection, size);
      connection.discarded_ += static_cast<std::uint32_t>(std::min<std::size_t>(size, UINT32_MAX - connection.discarded_));
    } else {
      deliver(core, connection, size);
    }
    if (connection.stage_ != Connection::Stage::open || (plain && size < core.options.receive_buffer_bytes)) return;
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

/// One dispatch of an open connection: receive what is there, then send what its handler said to it.
inline void ConnectionLife::exchange(ReactorCore& core, Connection& connection, Readiness readiness) {
  assert(core.gathered == 0 && core.gathering == nullptr);
  core.gathering = &connection;
  core.direct_sends_left = ReactorCore::direct_sends_per_dispatch;
  if (is_plain(connection, readiness)) [[likely]] {
    const ssize_t returned = read_some(core, connection);
    if (returned > 0 && static_cast<std::size_t>(returned) < core.options.receive_buffer_bytes) [[likely]] {
      core.stamp_soon(&connection.last_received_);
      deliver(core, connection, static_cast<std::size_t>(returned));
    } else {
      receive(core, connection, readiness, returned);
    }
  } else if (worth_receiving(connection, readiness)) {
    receive(core, connection, readiness, read_some(core, connection));
  }
  if (connection.has(Connection::is_established)) [[likely]] {
    if (core.gathered != 0) [[likely]]
      send_gathered(core, connection);
    core.gathering = nullptr;  // what its handler is told from here on queues: nobody would send the gather buffer any more
    if ((connection.queue_ != nullptr) | connection.has(Connection::finish_wanted | Connection::lingering)) [[unlikely]]
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

void ConnectionLife::ready(ReactorCore& core, Source& source, Readiness readiness) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (connection.has(Connection::is_established)) [[likely]]
    return exchange(core, connection, readiness);
  if (connection.stage_ == Connection::Stage::connecting) confirm_connect(core, connection, readiness);
}

void ConnectionLife::flush(ReactorCore& core, Source& source) noexcept { write_out(core, static_cast<Connection&>(source)); }

/// Whether readiness that is not simply "readable" is a reason to ask recv.
bool ConnectionLife::worth_receiving(Connection& connection, Readiness readiness) {
  if (!readiness.any_of(Readiness::readable | Readiness::urgent | end_hints)) return false;
  if (readiness.any_of(Readiness::ended)) connection.set(Connection::end_hinted);
  // After the peer's end only a reset can follow, and only an error hint tells of it.
  return !connection.has(Connection::peer_finished) || connection.has(Connection::error_latched) ||
         readiness.any_of(Readiness::error);
}

void ConnectionLife::heard_no_data(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned) {
  switch (classify_receive(returned)) {
    case ReceiveOutcome::no_data:
      ++core.counters.empty_receives;
      if (connection.has(Connection::error_latched)) stream_error(core, connection);
      return;
    case ReceiveOutcome::finished:
      if (readiness.any_of(Readiness::error) && !connection.has(Connection::error_latched)) {
        // A reset behind the peer's FIN never reaches recv; SO_ERROR has it. Soft errors of the path, which it may have too, are
        // no end.
        int error = 0;
        socklen_t length = sizeof error;
        if (sys::get_option(connection.descriptor_, SOL_SOCKET, SO_ERROR, &error, &length) == 0 &&
            (is_reset(error) || error == ETIMEDOUT))
          latch_error(connection, error, number(Operation::recv));
        if (connection.has(Connection::error_latched)) connection.set(Connection::peer_finished);
      }
      return connection.has(Connection::error_latched) ? stream_error(core, connection) : peer_end(core, connection);
    default:
      latch_error(connection, static_cast<int>(-returned), number(Operation::recv));
      return stream_error(core, connection);
  }
}

// --- what the stream said

void ConnectionLife::peer_end(ReactorCore& core, Connection& connection) {
  if (connection.has(Connection::peer_finished)) return;
  connection.set(Connection::peer_finished);
  if (connection.has(Connection::closing)) {
    core.flush_later(connection);
    return;
  }
  const HandlerThunks& handler = *connection.policy_->handler;
  if (handler.on_peer_finished == nullptr) return begin_close(core, connection, CloseReason::peer_finished, false);
  connection.set(Connection::lingering);
  handler.on_peer_finished(connection.handler_storage(), connection);
  if (connection.stage_ == Connection::Stage::open) core.flush_later(connection);
}

void ConnectionLife::latch_error(Connection& connection, int error_number, std::uint8_t operation) {
  if (connection.has(Connection::error_latched)) return;  // the kernel hands the true one out first
  connection.set(Connection::error_latched);
  connection.error_ = static_cast<std::int16_t>(error_number);
  connection.operation_ = operation;
}

bool ConnectionLife::owes(const Connection& connection) { return connection.queued_bytes_ != 0 || in_flight(connection) != 0; }

/// The stream has ended with the latched error, and everything before it was delivered.
void ConnectionLife::stream_error(ReactorCore& core, Connection& connection) {
  const int error = connection.error_;
  const std::uint8_t operation = connection.operation_;
  if (core.gathers_for(connection)) {
    connection.queued_bytes_ += static_cast<std::uint32_t>(core.gathered);
    core.gathered = 0;
  }
  if (is_reset(error) && connection.has(Connection::peer_finished)) {
    // A reset behind the peer's FIN: an orderly end if it was owed nothing. Our own close stays what it was, but for its drain.
    const bool ours = connection.has(Connection::close_called) && connection.reason_ != CloseReason::peer_finished;
    if (!ours && owes(connection)) return end(connection, CloseReason::peer_reset, error, operation);
    if (!ours) return end(connection, CloseReason::peer_finished);
  }
  if (connection.has(Connection::close_called)) {
    connection.cut_short_ = is_reset(error) ? CutShort::reset : CutShort::timed_out;
    return end(connection, connection.reason_, error, operation);
  }
  if (is_reset(error)) return end(connection, CloseReason::peer_reset, error, operation);
  if (error == ETIMEDOUT) return end(connection, CloseReason::network_timed_out, error, operation);
  if (is_unreachable(error)) return end(connection, CloseReason::network_unreachable, error, operation);
  end(connection, CloseReason::system_error, error, operation);
}

// --- sending

std::uint64_t ConnectionLife::in_flight(const Connection& connection) {
  if (!connection.has(Connection::tcp)) return 0;  // what a Unix socket took is with the peer
  const int queued = sys::unsent_bytes(connection.descriptor_);
  if (queued <= 0) return 0;
  // Our FIN is the last byte to be acknowledged, and counts as one.
  return static_cast<std::uint64_t>(queued) - (connection.has(Connection::fin_counts) ? 1 : 0);
}

bool ConnectionLife::enqueue(ReactorCore& core, Connection& connection, Bytes bytes) {
  if (!send_queue::append(core.chunks, connection.queue_, bytes)) {
    connection.queued_bytes_ += static_cast<std::uint32_t>(bytes.size());  // lost: told as unsent, and to the peer by a reset
    end(connection, CloseReason::system_error, ENOMEM, number(Operation::send));
    return false;
  }
  connection.queued_bytes_ += static_cast<std::uint32_t>(bytes.size());
  if (connection.queued_bytes_ > connection.policy_->high_mark) connection.set(Connection::above_high_mark);
  return true;
}

inline void ConnectionLife::gather(ReactorCore& core, Bytes bytes) {
  std::byte* const end = core.gather_buffer.get() + core.gathered;
  core.gathered += bytes.size();
  std::memcpy(end, bytes.data(), bytes.size());
}

/// The hot half: a small piece to the connection being dispatched, nothing queued before it, is gathered.
Result<void> Connection::send(Bytes bytes) {
  if ((flags_ & (is_established | closing | finish_wanted | lingering)) == is_established && queue_ == nullptr) [[likely]] {
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
  if (connection.has(Connection::lingering)) {  // the handler still has something to say to a peer that finished
    connection.drain_began_ = never_due;
    core.flush_later(connection);
  }
  const bool gathers = core.gathers_for(connection);
  const std::size_t bound = connection.policy_->backlog_bytes_max;
  const std::size_t held = connection.queued_bytes_ + (gathers ? core.gathered : 0);
  if (bytes.size() > bound - std::min(held, bound)) {
    connection.set(Connection::reset_wanted);  // the peer must not take what it has for the whole stream
    end(connection, CloseReason::backlog_full);
    return Error{"send", ENOBUFS};
  }
  if (bytes.empty()) return {};
  const bool open = connection.stage_ == Connection::Stage::open;
  if (connection.send_progress_ == nothing_outstanding && open) start_send_clock(core, connection);

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
}

/// Hands the kernel what is queued, and then whatever follows from there being nothing left.
void ConnectionLife::write_out(ReactorCore& core, Connection& connection) {
  if (connection.stage_ != Connection::Stage::open || connection.has(Connection::error_latched)) return;
  if (!connection.has(Connection::stalled)) send_queued(core, connection);
  if (connection.has(Connection::above_high_mark) && connection.queued_bytes_ <= connection.policy_->low_mark) {
    connection.clear(Connection::above_high_mark);
    const HandlerThunks& handler = *connection.policy_->handler;
    if (handler.on_send_drained != nullptr && !connection.has(Connection::closing | Connection::finish_wanted)) {
      core.refilling = &connection;
      handler.on_send_drained(connection.handler_storage(), connection);
      core.refilling = nullptr;
      if (connection.stage_ != Connection::Stage::open) return;
    }
  }
  if (connection.queue_ == nullptr && !connection.has(Connection::error_latched)) advance_end(core, connection);
}

// --- closing

void ConnectionLife::begin_close(ReactorCore& core, Connection& connection, CloseReason reason, bool by_user) {
  connection.set(Connection::closing | Connection::finish_wanted);
  if (by_user) connection.set(Connection::close_called);
  connection.clear(Connection::lingering);
  connection.reason_ = reason;
  core.read_clock();
  if (connection.send_progress_ == never_due) start_send_clock(core, connection);  // `never` counts as drain's from now on
  rearm(core, connection);                                                         // the receive side's deadlines have ended
  core.flush_later(connection);
}

/// Nothing is queued: our end follows if it is wanted, and where both ends have come the life is over.
void ConnectionLife::advance_end(ReactorCore& core, Connection& connection) {
  if (connection.has(Connection::finish_wanted) && !connection.has(Connection::end_sent)) {
    // ENOTCONN: the peer has reset it, as a receive will tell.
    if (sys::shutdown(connection.descriptor_, SHUT_WR) == 0) connection.set(Connection::fin_counts);
    connection.set(Connection::end_sent);
  }
  if (connection.has(Connection::peer_finished) && connection.has(Connection::end_sent))
    return end(connection, connection.has(Connection::closing) ? connection.reason_ : CloseReason::peer_finished);
  if (!connection.has(Connection::closing | Connection::lingering) || connection.drain_began_ != never_due) return;
  // Closing: the peer's end is awaited. Lingering: the peer's end has come, and the handler has nothing under way.
  if (connection.has(Connection::closing)) connection.set(Connection::draining);
  connection.drain_began_ = core.read_clock();
  rearm(core, connection);
}

void ConnectionLife::end(Connection& connection, CloseReason reason, int error_number, std::uint8_t operation) {
  if (connection.stage_ == Connection::Stage::ended) return;
  ReactorCore& core = *connection.policy_->core;
  connection.stage_ = Connection::Stage::ended;
  connection.clear(Connection::is_established);
  connection.reason_ = reason;
  connection.error_ = static_cast<std::int16_t>(error_number);
  connection.operation_ = operation;
  core.cancel(connection);
  core.finish_later(connection);
}

CloseRecord ConnectionLife::record_of(ReactorCore& core, Connection& connection) {
  const Instant now = core.read_clock();
  const bool was_open = connection.has(Connection::was_open);
  CloseRecord record;
  record.reason = connection.reason_;
  record.error_number = connection.error_;
  record.operation = operation_names[connection.operation_];
  record.origin = origin_of(record.reason, record.error_number);
  record.phase = !was_open ? Phase::connecting : connection.has(Connection::draining) ? Phase::draining : Phase::open;
  record.cut_short = connection.cut_short_;
  record.received = connection.received_;
  record.handed_to_kernel = connection.handed_to_kernel_;
  record.unsent = connection.queued_bytes_;
  record.unconsumed = connection.discarded_;
  if (was_open && connection.descriptor_ >= 0) {
    if (connection.has(Connection::tcp)) record.unacknowledged = in_flight(connection);
    record.left_unread = static_cast<std::uint64_t>(std::max(sys::unread_bytes(connection.descriptor_), 0));
  }
  record.age = now - connection.opened_at_;
  record.silence = now - connection.last_received_;
  return record;
}

void ConnectionLife::finish(ReactorCore& core, Source& source) noexcept {
  auto& connection = static_cast<Connection&>(source);
  const CloseRecord record = record_of(core, connection);
  if (connection.has(Connection::reset_wanted) || (record.unsent != 0 && connection.has(Connection::was_open))) {
    close_with_reset(connection.descriptor_);
  } else {
    sys::close(connection.descriptor_);
  }
  connection.descriptor_ = -1;
  send_queue::clear(core.chunks, connection.queue_);

  ++core.counters.closed;
  ++core.counters.closed_for[static_cast<std::size_t>(record.reason)];
  ConnectionPolicy* policy = connection.policy_;
  policy->handler->on_close(connection.handler_storage(), connection, record);
  connection.stage_ = Connection::Stage::vacant;  // handles are stale from here on
  policy->handler->destroy(connection.handler_storage());
  connection.policy_ = nullptr;
  core.give_back(*policy->slab, connection);
  ConnectionPolicy::release(policy);
}

void ConnectionLife::stop(ReactorCore& core, Source& source, bool at_once) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (connection.stage_ == Connection::Stage::connecting) return end(connection, CloseReason::server_stopping);
  if (connection.stage_ != Connection::Stage::open) return;
  const bool settled = connection.has(Connection::closing);
  if (!at_once) return settled ? void() : begin_close(core, connection, CloseReason::server_stopping, true);
  if (settled) connection.cut_short_ = CutShort::timed_out;
  end(connection, settled ? connection.reason_ : CloseReason::server_stopping);
}

// --- deadlines

Timeout ConnectionLife::send_timeout(const Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  return timeouts.send.is_never() && connection.has(Connection::closing) ? timeouts.drain : timeouts.send;
}

bool ConnectionLife::send_clock_runs(const Connection& connection) {
  return connection.send_progress_ != nothing_outstanding && connection.send_progress_ != never_due;
}

/// Of the deadlines that run in this connection's state, the one due first. This table is all there is to say of them.
ConnectionLife::Due ConnectionLife::earliest_deadline(const Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  Due first{never_due, Deadline::receive};
  const auto runs = [&first](Deadline kind, Instant from, Timeout timeout) {
    if (const Instant at = due_at(from, timeout); at < first.at) first = {at, kind};
  };
  if (connection.stage_ == Connection::Stage::connecting) {
    runs(Deadline::connect, connection.opened_at_, timeouts.connect);
    return first;
  }
  if (!connection.has(Connection::closing | Connection::peer_finished)) {
    const bool awaits_first_byte = connection.received_ == 0 && !timeouts.first_byte.is_never();
    if (awaits_first_byte) runs(Deadline::first_byte, connection.last_received_, timeouts.first_byte);
    if (!awaits_first_byte) runs(Deadline::receive, connection.last_received_, timeouts.receive);
  }
  if (send_clock_runs(connection)) runs(Deadline::send, connection.send_progress_, send_timeout(connection));
  if (connection.drain_began_ != never_due) runs(Deadline::drain, connection.drain_began_, timeouts.drain);
  return first;
}

/// Moves the one node to the earliest deadline, or to the next sample of the acknowledged progress if that comes before.
void ConnectionLife::rearm(ReactorCore& core, Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  Instant at = earliest_deadline(connection).at;
  // The first byte makes the receive deadline run, which may then be the nearer one, and re-arms nothing.
  if (connection.received_ == 0) at = std::min(at, due_at(core.now, timeouts.receive));
  if (send_clock_runs(connection)) at = std::min(at, due_at(core.now, Timeout(send_timeout(connection).duration() / 8)));
  if (at == never_due) return core.cancel(connection);
  core.arm(connection, at);
}

/// Something is outstanding from now on: progress is sampled until nothing is.
void ConnectionLife::start_send_clock(ReactorCore& core, Connection& connection) {
  connection.send_progress_ = core.read_clock();
  connection.acknowledged_ = static_cast<std::uint32_t>(connection.handed_to_kernel_ - in_flight(connection));
  rearm(core, connection);
}

/// Bytes handed over make no progress by themselves: the peer's acknowledgements do.
void ConnectionLife::sample_progress(ReactorCore& core, Connection& connection) {
  if (!send_clock_runs(connection)) return;
  const std::uint64_t flying = in_flight(connection);
  const auto acknowledged = static_cast<std::uint32_t>(connection.handed_to_kernel_ - flying);
  if (acknowledged != connection.acknowledged_) connection.send_progress_ = core.now;
  connection.acknowledged_ = acknowledged;
  if (flying == 0 && connection.queued_bytes_ == 0)
    connection.send_progress_ = send_timeout(connection).is_never() ? never_due : nothing_outstanding;
}

void ConnectionLife::due(ReactorCore& core, Source& source) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (connection.stage_ != Connection::Stage::open && connection.stage_ != Connection::Stage::connecting) return;
  core.read_clock();
  Due deadline = earliest_deadline(connection);
  if (deadline.at <= core.now) {
    // What has arrived beats its deadline, and a loop that was late or stopped must not blame the peer: ask first. The hint makes
    // the receive go on until the kernel has no more.
    ready(core, connection, {Readiness::readable | Readiness::urgent});
    if (connection.stage_ != Connection::Stage::open && connection.stage_ != Connection::Stage::connecting) return;
    core.read_clock();
  }
  sample_progress(core, connection);
  deadline = earliest_deadline(connection);
  if (deadline.at <= core.now) return expire(connection, deadline.kind);
  rearm(core, connection);
}

void ConnectionLife::expire(Connection& connection, Deadline kind) {
  switch (kind) {
    case Deadline::connect:
      return end(connection, CloseReason::connect_timed_out);
    case Deadline::first_byte:
      return end(connection, CloseReason::first_byte_timed_out);
    case Deadline::receive:
      return end(connection, CloseReason::receive_timed_out);
    case Deadline::send:
    case Deadline::drain:
      if (connection.has(Connection::close_called)) {
        connection.cut_short_ = CutShort::timed_out;
        return end(connection, connection.reason_);
      }
      return end(connection, kind == Deadline::send ? CloseReason::send_timed_out : CloseReason::drain_timed_out);
    case Deadline::accept:
      return;  // a listener's
  }
}

// --- the user's calls

Connection& ConnectionLife::over() {
  // Shared by every stale handle of every thread and never written: each call on it sees `vacant` and leaves.
  alignas(Connection) static std::byte storage[sizeof(Connection) + sizeof(PeerAddress)];
  static Connection* const connection = [] {
    auto* made = ::new (static_cast<void*>(storage)) Connection;
    ::new (&peer_of(*made)) PeerAddress;
    return made;
  }();
  return *connection;
}

Result<void> Connection::finish() {
  if (stage_ == Stage::vacant) return Error{"finish", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended || has(closing)) return Error{"finish", EPIPE};
  if (has(finish_wanted)) return {};
  set(finish_wanted);
  policy_->core->flush_later(*this);
  return {};
}

Result<void> Connection::close() {
  if (stage_ == Stage::vacant) return Error{"close", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended || has(close_called)) return {};
  if (stage_ == Stage::connecting) {
    ConnectionLife::end(*this, CloseReason::local_close);
    return {};
  }
  const bool after_peer = has(peer_finished);
  ConnectionLife::begin_close(*policy_->core, *this, after_peer ? CloseReason::peer_finished : CloseReason::local_close, true);
  return {};
}

Result<void> Connection::abort() {
  if (stage_ == Stage::vacant) return Error{"abort", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended) return {};
  set(reset_wanted);
  ConnectionLife::end(*this, has(closing) ? reason_ : CloseReason::local_close);
  return {};
}

/// Most connections share their listener's policy; one that differs gets its own copy.
bool ConnectionLife::own_policy(Connection& connection) {
  if (connection.policy_->references == 1) return true;
  auto* own = new (std::nothrow) ConnectionPolicy(*connection.policy_);
  if (own == nullptr) return false;
  own->references = 1;
  ConnectionPolicy::release(connection.policy_);
  connection.policy_ = own;
  return true;
}

Result<void> Connection::set_timeout(Deadline kind, Timeout timeout) {
  if (stage_ == Stage::vacant || stage_ == Stage::ended) return Error{"set timeout", EBADF};
  if (kind == Deadline::accept) return Error{"set timeout", EINVAL, "accept belongs to a listener"};
  Timeouts wanted;
  wanted.of(kind) = timeout;
  if (auto valid = validate(wanted, "set timeout"); !valid) return valid;
  if (!ConnectionLife::own_policy(*this)) return Error{"set timeout", ENOMEM};
  policy_->timeouts.of(kind) = timeout.is_inherit() ? policy_->inherited.of(kind) : timeout;
  ReactorCore& core = *policy_->core;
  core.read_clock();
  if (kind == Deadline::send) {
    const bool counts = !ConnectionLife::send_timeout(*this).is_never();  // while closing, drain's duration stands in for never
    if (!counts) send_progress_ = never_due;
    if (counts && send_progress_ == never_due) {  // nobody looked at what is outstanding until now
      send_progress_ = nothing_outstanding;
      if (stage_ == Stage::open) ConnectionLife::start_send_clock(core, *this);
    }
  }
  ConnectionLife::rearm(core, *this);
  return {};
}

ConnectionHandle Connection::handle() { return ConnectionHandle(this, generation_); }

Address Connection::peer() const {
  if (stage_ == Stage::vacant) return {};
  return ConnectionLife::peer_of(const_cast<Connection&>(*this)).to_address();
}

Result<Address> Connection::local_address() const {
  if (stage_ == Stage::vacant || descriptor_ < 0) return Error{"local address", EBADF};
  return vigil::local_address(descriptor_);
}

int Connection::descriptor() const { return descriptor_; }
bool Connection::is_open() const { return stage_ == Stage::open && !has(closing | finish_wanted); }

std::size_t Connection::backlog_bytes() const {
  if (stage_ == Stage::vacant) return 0;
  return queued_bytes_ + (policy_->core->gathers_for(*this) ? policy_->core->gathered : 0);
}

Duration Connection::age() const { return stage_ == Stage::vacant ? Duration{} : sys::monotonic_now() - opened_at_; }

Duration Connection::silence() const {
  if (stage_ == Stage::vacant) return {};
  return policy_->core->read_clock() - last_received_;
}

Connection& ConnectionHandle::over() { return ConnectionLife::over(); }

Connection& ConnectionHandle::target() const {
  if (connection_ == nullptr || connection_->generation() != generation_ || connection_->stage_ == Connection::Stage::vacant)
    return over();
  return *connection_;
}

}  // namespace vigil
