// Deadlines of a connection: which comes first, where the one node stands, what is asked before one is judged.
#include <algorithm>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {

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

}  // namespace vigil
