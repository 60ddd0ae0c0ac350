// Reading that is held (paused by the user, or by a queue above its high mark), and bytes that on_receive left.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {

ConnectionSide* ConnectionLife::side_of(ReactorCore& core, Connection& connection) {
  if (connection.side_ != nullptr) return connection.side_;
  void* block = core.sides.take();
  if (block == nullptr) return nullptr;
  connection.side_ = ::new (block) ConnectionSide;
  connection.side_->message_began = birth_of(connection).opened_at;
  return connection.side_;
}

void ConnectionLife::drop_side(ReactorCore& core, Connection& connection) {
  if (connection.side_ == nullptr) return;
  count_discarded(connection, connection.side_->tail_bytes);
  send_queue::clear(core.chunks, connection.side_->tail);
  drop_retry(connection);
  core.sides.give_back(connection.side_);
  connection.side_ = nullptr;
}

// --- holding

bool ConnectionLife::hold_reading(ReactorCore& core, Connection& connection, unsigned cause) {
  ConnectionSide* side = side_of(core, connection);
  if (side == nullptr) return false;
  const bool held_before = connection.has(held);
  connection.set(cause);
  const bool open = connection.stage_ == Connection::Stage::open;
  // What told of an end has passed; it is asked for anew.
  if (open && connection.has(Connection::end_hinted | Connection::error_latched))
    core.ready_later(connection, {Readiness::ended});
  if (held_before) return true;
  side->paused_at = core.read_clock();
  if (open) rearm(core, connection);
  return true;
}

/// The receive side's deadlines resume with the time that was left.
void ConnectionLife::release_reading(ReactorCore& core, Connection& connection, unsigned causes) {
  if (!connection.has(held)) return;
  connection.clear(causes);
  if (connection.has(held)) return;
  connection.clear(Connection::probed);  // an answer that waited says nothing of the peer's speed
  ConnectionSide& side = *connection.side_;
  const Instant now = core.read_clock();
  const Duration stood = now - side.paused_at;
  side.counted_from = receive_counts_from(connection) + (now - std::max(side.paused_at, connection.last_received_));
  side.counted_for = connection.last_received_;
  side.message_began += stood;
  side.received.opens_at += stood;
  if (side.received.is_open()) side.received.end += stood;
  if (connection.stage_ != Connection::Stage::open) return;
  connection.set(Connection::tail_wanted);  // also from inside on_receive, which has not left anything yet
  rearm(core, connection);
  read_on(core, connection);
}

/// The edges that told of what is there were left unanswered: of bytes, of an urgent mark, of a reset behind the peer's end.
void ConnectionLife::read_on(ReactorCore& core, Connection& connection) {
  const unsigned error = connection.has(Connection::end_hinted) ? Readiness::error : 0U;
  core.ready_later(connection, {static_cast<std::uint8_t>(Readiness::readable | Readiness::urgent | error)});
}

Result<void> Connection::pause_reading() {
  if (stage_ == Stage::vacant) return Error{"pause reading", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended || has(closing)) return Error{"pause reading", EPIPE};
  if (!ConnectionLife::hold_reading(*policy_->core, *this, paused)) return Error{"pause reading", ENOMEM};
  return {};
}

Result<void> Connection::resume_reading() {
  if (stage_ == Stage::vacant) return Error{"resume reading", EBADF};
  policy_->core->assert_thread();
  if (stage_ != Stage::ended && !has(closing)) ConnectionLife::release_reading(*policy_->core, *this, paused);
  return {};
}

// --- what the peer does meanwhile

/// What poll(2) says of ends and errors, which unlike recv and SO_ERROR takes nothing away.
short ConnectionLife::ended_by_now(const Connection& connection) {
  pollfd entry{connection.descriptor_, POLLRDHUP, 0};
  if (sys::poll(&entry, 1, Duration::zero()) <= 0) return 0;
  return static_cast<short>(entry.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/// Nothing is read: what has ended waits behind what the kernel still holds, and is told of once.
void ConnectionLife::hear_while_held(ReactorCore& core, Connection& connection, Readiness readiness) {
  const bool error = connection.has(Connection::error_latched);
  if (!error && !readiness.any_of(Readiness::ended | Readiness::error)) return;
  const short seen = ended_by_now(connection);
  if (seen == 0 && !error) return;
  connection.set(Connection::end_hinted);
  // A queue that can never fall again must not hold reading for ever.
  if ((error || (seen & (POLLERR | POLLHUP)) != 0) && connection.has(Connection::backlogged))
    release_reading(core, connection, Connection::backlogged);
  // Behind a hold for the backlog alone nobody paused: a peer that has finished still reads, and then its end is read, too.
  if (connection.has(Connection::gone_told) || !connection.has(Connection::paused)) return;
  connection.set(Connection::gone_told);
  const HandlerThunks& handler = *connection.policy_->handler;
  if (handler.on_peer_gone_while_paused != nullptr) handler.on_peer_gone_while_paused(handler_of(connection), connection);
}

/// The error that ended the stream, where it waits behind what was not read. Soft errors of the path, which SO_ERROR hands out as
/// well, are no end: poll(2) does not tell of them.
void ConnectionLife::latch_pending_error(Connection& connection) {
  if (connection.has(Connection::error_latched) || (ended_by_now(connection) & POLLERR) == 0) return;
  const int error = socket_error(connection.descriptor_);
  if (error != 0) latch_error(connection, error, number(Operation::recv));
}

/// A stream that ended with an error is over although it was not read up to there. False: it has not, or the peer only finished.
bool ConnectionLife::end_with_pending_error(ReactorCore& core, Connection& connection) {
  latch_pending_error(connection);
  if (!connection.has(Connection::error_latched)) return false;
  stream_error(core, connection);
  return true;
}

bool ConnectionLife::was_told_gone(const Connection& connection) {
  return connection.has(Connection::gone_told) && connection.has(held) &&
         connection.policy_->handler->on_peer_gone_while_paused != nullptr;
}

/// A close or a shutdown after the handler was told that the peer is gone, and so does not want what the kernel still holds.
void ConnectionLife::close_unread(ReactorCore& core, Connection& connection) {
  if (end_with_pending_error(core, connection)) return;
  if (connection.backlog_bytes() == 0 && !owes(connection)) {
    connection.set(Connection::peer_finished);
    connection.clear(held);  // and nothing is read on
  }
  // A socket closed with unread bytes is reset, and the peer would lose what it is owed: then they are read first, and discarded.
  begin_close(core, connection, CloseReason::peer_finished, true);
}

// --- bytes left by on_receive

/// Hands over what was left together with `size` bytes that were just received, as one piece.
void ConnectionLife::deliver_with_tail(ReactorCore& core, Connection& connection, std::size_t size) {
  ConnectionSide& side = *connection.side_;
  const std::size_t tail = side.tail_bytes;
  std::byte* const begin = core.receive_buffer - tail;
  for (std::byte* to = begin; side.tail != nullptr;) {
    iovec piece;
    (void)send_queue::first_pieces(side.tail, &piece, 1);
    std::memcpy(to, piece.iov_base, piece.iov_len);
    to += piece.iov_len;
    send_queue::consume(core.chunks, side.tail, piece.iov_len);
  }
  side.tail_bytes = 0;
  connection.clear(Connection::has_tail | Connection::tail_wanted);
  connection.policy_->on_receive(handler_of(connection), connection, Bytes(begin, tail + size));
}

/// The peer's end is next: what was left is offered once more, and then counts as unconsumed. False: the end is not to be told
/// now.
bool ConnectionLife::offer_last(ReactorCore& core, Connection& connection) {
  connection.set(Connection::final_bytes);
  deliver_with_tail(core, connection, 0);
  connection.clear(Connection::final_bytes);
  if (connection.stage_ != Connection::Stage::open) return false;
  if (!connection.has(held)) return true;
  connection.set(Connection::end_hinted);
  core.ready_later(connection, {Readiness::ended});
  return false;
}

void ConnectionLife::keep_tail(Connection& connection, Bytes bytes, std::size_t consumed) {
  ReactorCore& core = *connection.policy_->core;
  if (consumed > bytes.size()) return end(connection, CloseReason::system_error, EINVAL, number(Operation::on_receive));
  const Bytes tail = bytes.without_first(consumed);
  const bool over = connection.stage_ != Connection::Stage::open || connection.has(Connection::closing | Connection::final_bytes);
  if (over) return count_discarded(connection, tail.size());
  if (tail.size() > connection.policy_->message_bytes_max) {
    count_discarded(connection, tail.size());
    return end(connection, CloseReason::message_too_large);
  }
  ConnectionSide* side = side_of(core, connection);
  if (side == nullptr || !send_queue::append(core.chunks, side->tail, tail)) {
    count_discarded(connection, tail.size());
    return end(connection, CloseReason::system_error, ENOMEM, number(Operation::on_receive));
  }
  side->tail_bytes = static_cast<std::uint32_t>(tail.size());
  connection.set(Connection::has_tail);
  if (connection.has(Connection::awaits_message)) message_begins_with_tail(core, connection);
}

void handler_detail::not_all_consumed(Connection& connection, Bytes bytes, std::size_t consumed) noexcept {
  ConnectionLife::keep_tail(connection, bytes, consumed);
}

Result<void> Connection::receive_again() {
  if (stage_ == Stage::vacant) return Error{"receive again", EBADF};
  ReactorCore& core = *policy_->core;
  core.assert_thread();
  if (stage_ != Stage::open || has(closing | ConnectionLife::held)) return {};
  set(tail_wanted);  // also from inside on_receive, which has not left anything yet
  core.ready_later(*this, {Readiness::readable});
  return {};
}

}  // namespace vigil
