// How a connection ends: what the stream said, closing, and the record. The rules of which reason wins stand in close_record.hpp
// and are here in stream_error() and begin_close(), and in expire() of connection_deadlines.cpp.
#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

constexpr std::array operation_names{"",       "recv",       "send", "connect",       "watch",
                                     "accept", "on_receive", "open", "begin_message", "end_message"};
static_assert(operation_names.size() == number(Operation::end_message) + 1U, "one name for each Operation, in its order");

Origin origin_of(CloseReason reason, int error_number) {
  switch (reason) {
    case CloseReason::peer_finished:
    case CloseReason::peer_reset:
    case CloseReason::connect_refused:
      return Origin::peer;
    case CloseReason::connect_timed_out:
      return error_number == 0 ? Origin::policy : Origin::network;
    case CloseReason::heartbeat_lost:
      return error_number == 0 ? Origin::policy : Origin::network;
    case CloseReason::connect_unreachable:
    case CloseReason::network_timed_out:
    case CloseReason::network_unreachable:
      return Origin::network;
    case CloseReason::accept_shed:
    case CloseReason::first_byte_timed_out:
    case CloseReason::receive_timed_out:
    case CloseReason::message_timed_out:
    case CloseReason::receive_too_slow:
    case CloseReason::send_too_slow:
    case CloseReason::message_too_large:
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

/// What the kernel has heard of the path when it gives up on an established connection: its own links and routes, and ICMP's
/// answers (icmp(7); the kernel's icmp_err_convert), port unreachable among them.
bool is_unreachable(int error_number) {
  constexpr int heard[] = {
#ifdef ENONET
      ENONET,
#endif
      EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, ECONNREFUSED, ENOPROTOOPT, EOPNOTSUPP, EPROTO};
  return std::find(std::begin(heard), std::end(heard), error_number) != std::end(heard);
}

}  // namespace

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
  handler.on_peer_finished(handler_of(connection), connection);
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
  if (error == EPIPE) connection.set(Connection::peer_finished);  // a reset behind the peer's FIN: recv may never have told of it
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
  const HeartbeatThunks* heartbeat = connection.policy_->heartbeat;
  if ((error == ETIMEDOUT || is_unreachable(error)) && heartbeat != nullptr &&
      heartbeat->explains(core, connection, error, operation))
    return;
  if (error == ETIMEDOUT) return end(connection, CloseReason::network_timed_out, error, operation);
  if (is_unreachable(error)) return end(connection, CloseReason::network_unreachable, error, operation);
  end(connection, CloseReason::system_error, error, operation);
}

std::uint64_t ConnectionLife::in_flight(const Connection& connection) {
  if (!connection.has(Connection::tcp)) return 0;  // what a Unix socket took is with the peer
  const int queued = sys::unsent_bytes(connection.descriptor_);
  if (queued <= 0) return 0;
  // Our FIN is the last byte to be acknowledged, and counts as one.
  return static_cast<std::uint64_t>(queued) - (connection.has(Connection::fin_counts) ? 1 : 0);
}

// --- closing

void ConnectionLife::begin_close(ReactorCore& core, Connection& connection, CloseReason reason, bool by_user) {
  connection.set(Connection::closing | Connection::finish_wanted);
  if (by_user) connection.set(Connection::close_called);
  connection.clear(Connection::lingering);
  connection.reason_ = reason;
  if (connection.has(held)) {  // from now on everything is read and discarded
    connection.clear(held);
    read_on(core, connection);
  }
  core.read_clock();
  // `never` counts as drain's from now on, and more time that was given has ended.
  if (connection.send_progress_ == never_due) {
    start_send_clock(core, connection);
    send_clock_begins_later(core, connection);
  } else if (send_clock_runs(connection)) {
    const bool was_never = connection.policy_->timeouts.send.is_never();
    connection.send_progress_ = was_never ? core.now : std::min(connection.send_progress_, core.now);
  }
  rearm(core, connection);  // the receive side's deadlines have ended
  core.flush_later(connection);
}

/// Nothing is queued: our end follows if it is wanted, and where both ends have come the life is over.
void ConnectionLife::advance_end(ReactorCore& core, Connection& connection) {
  if (connection.has(Connection::finish_wanted) && !connection.has(Connection::end_sent)) {
    const bool taken = sys::shutdown(connection.descriptor_, SHUT_WR) == 0;
    if (taken) connection.set(Connection::fin_counts);
    connection.set(Connection::end_sent);
    // ENOTCONN: the peer has reset it. Behind its end no receive will tell.
    if (!taken && connection.has(Connection::peer_finished) && end_with_pending_error(core, connection)) return;
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

CloseRecord ConnectionLife::record_of(const ReactorCore& core, const Connection& connection) {
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
  if (connection.descriptor_ >= 0) {
    if (was_open && connection.has(Connection::tcp)) record.unacknowledged = in_flight(connection);
    record.left_unread = static_cast<std::uint64_t>(std::max(sys::unread_bytes(connection.descriptor_), 0));
  }
  if (connection.policy_->heartbeat != nullptr) connection.policy_->heartbeat->tell(connection, record);
  record.age = core.now - birth_of(connection).made_at;
  record.silence = core.now - connection.last_received_;
  return record;
}

void ConnectionLife::finish(ReactorCore& core, Source& source) noexcept {
  auto& connection = static_cast<Connection&>(source);
  core.read_clock();  // a stamp may still be owed to the side block
  drop_side(core, connection);
  const CloseRecord record = record_of(core, connection);
  if (connection.policy_->heartbeat != nullptr) connection.policy_->heartbeat->drop(core, connection);
  if (connection.has(Connection::reset_wanted) || record.unsent != 0) {
    close_with_reset(connection.descriptor_);
  } else {
    sys::close(connection.descriptor_);
  }
  connection.descriptor_ = -1;
  send_queue::clear(core.chunks, connection.queue_);

  ++core.counters.closed;
  ++core.counters.closed_for[static_cast<std::size_t>(record.reason)];
  ConnectionPolicy* policy = connection.policy_;
  policy->handler->on_close(handler_of(connection), connection, record);
  connection.stage_ = Connection::Stage::vacant;  // handles are stale from here on
  policy->handler->destroy(handler_of(connection));
  connection.policy_ = nullptr;
  core.give_back(*policy->slab, connection);
  if (policy->life_ended != nullptr && policy->maker->generation() == policy->maker_generation)
    policy->life_ended(core, *policy->maker);
  ConnectionPolicy::release(policy);
}

void ConnectionLife::stop(ReactorCore& core, Source& source, bool at_once) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (connection.stage_ == Connection::Stage::connecting) return end(connection, CloseReason::server_stopping);
  if (connection.stage_ != Connection::Stage::open) return;
  if (!connection.has(Connection::closing) && was_told_gone(connection)) {
    close_unread(core, connection);
    if (!at_once || connection.stage_ != Connection::Stage::open) return;
  }
  const bool settled = connection.has(Connection::closing);
  const bool after_peer = connection.has(Connection::peer_finished);  // what the stream said came first
  const CloseReason reason = settled      ? connection.reason_
                             : after_peer ? CloseReason::peer_finished
                                          : CloseReason::server_stopping;
  if (!at_once) return settled ? void() : begin_close(core, connection, reason, true);
  if (settled) connection.cut_short_ = CutShort::timed_out;
  end(connection, reason);
}

}  // namespace vigil
