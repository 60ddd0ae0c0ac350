// Deadlines of a connection: which comes first, where the one node stands, what is asked before one is judged.
//
// A byte received moves no timer: its instant is stored, the node stays where it was, and when the wheel hands it out due()
// computes the earliest deadline anew. Only what makes a deadline come earlier than the node calls rearm().
#include <algorithm>
#include <utility>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

/// Beside the kinds of deadline, which have timeouts of their own: when a silent peer is lost.
constexpr auto heartbeat_budget = static_cast<Deadline>(deadline_count);

}  // namespace

Timeout ConnectionLife::send_timeout(const Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  return timeouts.send.is_never() && connection.has(Connection::closing) ? timeouts.drain : timeouts.send;
}

bool ConnectionLife::watches_sending(const Connection& connection) {
  return !send_timeout(connection).is_never() || !connection.policy_->timeouts.send_rate.is_never();
}

bool ConnectionLife::send_clock_runs(const Connection& connection) {
  return connection.send_progress_ != nothing_outstanding && connection.send_progress_ != never_due;
}

/// The kernel has been offered the bytes, too: until then there is nothing that the peer could have acknowledged.
bool ConnectionLife::send_clock_counts(const Connection& connection) {
  return send_clock_runs(connection) && !connection.has(Connection::just_given);
}

/// Not while reading is held: there they stand still. They end with the peer's stream, or ours.
bool ConnectionLife::receive_clocks_run(const Connection& connection) {
  return !connection.has(Connection::closing | Connection::peer_finished | held);
}

/// The last byte received, or the open; later, if reading was held or the handler gave more time since.
Instant ConnectionLife::receive_counts_from(const Connection& connection) {
  const ConnectionSide* side = connection.side_;
  return side != nullptr && side->counted_for == connection.last_received_ ? side->counted_from : connection.last_received_;
}

/// Of the deadlines that run in this connection's state, the one due first. A rate is due as soon as its window has passed with
/// too little; who is to blame is for roll_windows() to say.
ConnectionLife::Due ConnectionLife::earliest_deadline(const Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  const ConnectionSide* side = connection.side_;
  Due first{never_due, Deadline::receive};
  const auto due = [&first](Deadline kind, Instant at) {
    if (at < first.at) first = {at, kind};
  };
  if (connection.stage_ == Connection::Stage::connecting) {
    due(Deadline::connect, due_at(birth_of(connection).made_at, timeouts.connect));
    return first;
  }
  if (receive_clocks_run(connection)) {
    const bool awaits_first_byte = connection.received_ == 0 && !timeouts.first_byte.is_never();
    if (awaits_first_byte) due(Deadline::first_byte, due_at(receive_counts_from(connection), timeouts.first_byte));
    if (!awaits_first_byte) due(Deadline::receive, due_at(receive_counts_from(connection), timeouts.receive));
    if (!connection.has(Connection::awaits_message)) {
      due(Deadline::message, due_at(message_counts_from(connection), timeouts.message));
      if (side != nullptr && !timeouts.receive_rate.is_never()) {
        const RateWindow window = receive_window(connection);
        if (connection.received_ < window.target) due(Deadline::receive_rate, window.end);
      }
    }
  }
  if (send_clock_counts(connection)) {
    due(Deadline::send, due_at(connection.send_progress_, send_timeout(connection)));
    if (side != nullptr && side->acknowledged_bytes < side->acknowledged.target) due(Deadline::send_rate, side->acknowledged.end);
  }
  if (connection.drain_began_ != never_due) due(Deadline::drain, due_at(connection.drain_began_, timeouts.drain));
  if (connection.policy_->heartbeat != nullptr) due(heartbeat_budget, connection.policy_->heartbeat->budget_ends(connection));
  return first;
}

/// When the connection wants to be looked at although no deadline is due: a window opens or has passed, the acknowledged progress
/// is sampled, or a deadline would be due that the next byte makes run, which re-arms nothing.
Instant ConnectionLife::next_look(const ReactorCore& core, const Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  const ConnectionSide* side = connection.side_;
  Instant at = never_due;
  const auto look = [&at](Instant instant) { at = std::min(at, instant); };
  if (connection.stage_ == Connection::Stage::connecting) return retries_at(connection);
  if (connection.policy_->heartbeat != nullptr) look(connection.policy_->heartbeat->next_look(connection));
  if (receive_clocks_run(connection)) {
    // A byte or a message that comes at once may be due earlier than what runs: `first_byte`, or more time that was given.
    look(due_at(core.now, timeouts.receive));
    look(due_at(core.now, timeouts.message));
    if (!timeouts.receive_rate.is_never() && side != nullptr) {
      const Rate& rate = timeouts.receive_rate;
      // A grace shorter than an eighth of a window is not worth a look for each message that may begin.
      const Duration grace = rate.grace == Duration::zero() ? rate.window : std::max(rate.grace, rate.window / 8);
      look(core.now + grace);
      if (!connection.has(Connection::awaits_message)) {
        const RateWindow window = receive_window(connection);
        look(window.is_open() ? window.end : window.opens_at);
      }
    }
  }
  if (send_clock_runs(connection)) {
    // On a grid from the last progress, from the last point the wheel has handed out: whatever else moves the node skips none.
    const Instant looked = std::max(core.wheel.told(), std::min(connection.send_progress_, core.now));
    const auto sample_every = [&](Duration period) {
      const Duration passed = looked - connection.send_progress_;  // negative where the handler gave more time
      const Duration sample = passed / period * period;
      look(connection.send_progress_ + (sample > passed ? sample : sample + period));
    };
    // A sample is late by up to a tick itself, and so is what it finds due: the first of these is taken off its eighth.
    const auto sample_within = [&](Duration eighth) { sample_every(std::max(eighth - core.options.tick, Duration(1))); };
    if (const Timeout timeout = send_timeout(connection); !timeout.is_never()) sample_within(timeout.duration() / 8);
    if (const Rate& rate = timeouts.send_rate; !rate.is_never()) sample_within(rate.window / 8);
    if (side != nullptr && side->acknowledged.is_open()) look(std::max(side->acknowledged.end, core.now));
    if (side != nullptr && !side->acknowledged.is_open() && !timeouts.send_rate.is_never())
      look(std::max(side->acknowledged.opens_at, core.now));
  }
  return at;
}

/// Moves the one node to where it is needed next; one that waits to be handed out stays, and is moved by due().
void ConnectionLife::rearm(ReactorCore& core, Connection& connection) {
  if (core.wheel.is_due(connection)) return;
  const Instant at = std::min(earliest_deadline(connection).at, next_look(core, connection));
  if (at == never_due) return core.cancel(connection);
  core.arm(connection, at);
}

/// Something is outstanding from now on: progress is sampled until nothing is.
void ConnectionLife::start_send_clock(ReactorCore& core, Connection& connection) {
  connection.send_progress_ = core.read_clock();
  const std::uint64_t acknowledged = connection.handed_to_kernel_ - in_flight(connection);
  connection.acknowledged_ = static_cast<std::uint32_t>(acknowledged);
  if (connection.side_ != nullptr) {
    connection.side_->acknowledged_bytes = acknowledged;
    connection.side_->acknowledged.close_until(core.now + connection.policy_->timeouts.send_rate.grace);
  }
  rearm(core, connection);
}

/// A timeout or rate of the send side is new: nobody looked at what is outstanding until now, or nobody does any more.
void ConnectionLife::sending_watch_changed(ReactorCore& core, Connection& connection) {
  const bool watches = watches_sending(connection);
  if (!watches) connection.send_progress_ = never_due;
  if (!watches || connection.send_progress_ != never_due) return;
  connection.send_progress_ = nothing_outstanding;
  const bool outstanding = connection.backlog_bytes() != 0 || in_flight(connection) != 0;
  if (connection.stage_ != Connection::Stage::open || !outstanding) return;
  start_send_clock(core, connection);
  if (waits_for_flush(connection)) send_clock_begins_later(core, connection);
}

/// What is given now leaves when its handler has returned, in the flush phase at the latest.
void ConnectionLife::send_clock_begins_later(ReactorCore& core, Connection& connection) {
  connection.set(Connection::just_given);
  core.flush_later(connection);
}

/// The handler that gave them has returned: what kept it kept the bytes too, and the peer's time begins when they leave.
void ConnectionLife::send_clock_begins_now(ReactorCore& core, Connection& connection) {
  connection.clear(Connection::just_given);
  if (!send_clock_runs(connection)) return;
  connection.send_progress_ = core.now;
  if (connection.side_ == nullptr) return;
  RateWindow& window = connection.side_->acknowledged;
  if (!window.is_open()) window.close_until(std::max(window.opens_at, core.now + connection.policy_->timeouts.send_rate.grace));
}

/// Bytes handed over make no progress by themselves: the peer's acknowledgements do.
void ConnectionLife::sample_progress(ReactorCore& core, Connection& connection) {
  if (!send_clock_counts(connection)) return;
  const std::uint64_t flying = in_flight(connection);
  const std::uint64_t acknowledged = connection.handed_to_kernel_ - flying;
  if (static_cast<std::uint32_t>(acknowledged) != connection.acknowledged_) connection.send_progress_ = core.now;
  connection.acknowledged_ = static_cast<std::uint32_t>(acknowledged);
  if (connection.side_ != nullptr) connection.side_->acknowledged_bytes = acknowledged;
  if (flying == 0 && connection.queued_bytes_ == 0)
    connection.send_progress_ = watches_sending(connection) ? nothing_outstanding : never_due;
}

/// The loop was late, and only then read what had come meanwhile: a message gets that time back, from now if it is due already.
void ConnectionLife::forgive(ReactorCore& core, Connection& connection, Duration late) {
  const Timeout timeout = connection.policy_->timeouts.message;
  if (timeout.is_never() || connection.has(Connection::awaits_message) || late < ReactorCore::stall_length) return;
  ConnectionSide* side = side_of(core, connection);
  if (side == nullptr) return;
  side->message_given += late + std::max(core.now - due_at(message_counts_from(connection), timeout), Duration::zero());
}

/// What the kernel held when the deadline was first found due is read before it is judged, in as many turns as the reads of one
/// take, and so is the end right behind it. Bytes that come later don't put it off.
bool ConnectionLife::has_more_to_read(ReactorCore& core, Connection& connection, Deadline kind) {
  if (!core.is_ready_later(connection)) return false;
  // These move with each byte.
  if (kind == Deadline::connect || kind == Deadline::first_byte || kind == Deadline::receive || kind == heartbeat_budget)
    return false;
  ConnectionSide* side = side_of(core, connection);
  if (side == nullptr) return false;
  ConnectionSide::Judging& judging = side->judging;
  if (!judging.begun) {
    judging.begun = true;
    judging.read_upto = connection.received_ + static_cast<unsigned>(std::max(sys::unread_bytes(connection.descriptor_), 0));
  }
  if (connection.received_ < judging.read_upto) return true;
  return connection.received_ == judging.read_upto && !std::exchange(judging.awaits_end, true);
}

void ConnectionLife::due(ReactorCore& core, Source& source) noexcept {
  auto& connection = static_cast<Connection&>(source);
  if (connection.stage_ != Connection::Stage::open && connection.stage_ != Connection::Stage::connecting) return;
  const Instant before = core.now;
  const Instant asked = core.read_clock();
  core.note_stall(asked - before);  // the timer before may have taken long
  Due deadline = earliest_deadline(connection);
  const HeartbeatThunks* heartbeat = connection.policy_->heartbeat;
  const bool probes = heartbeat != nullptr && heartbeat->next_look(connection) <= core.now;
  const bool asks = deadline.at <= core.now || probes || connection.stage_ == Connection::Stage::connecting;
  if (asks) {
    // What has arrived beats its deadline and ends the silence that a probe is for, and a loop that was late or stopped must not
    // blame the peer: ask first. The hint makes the receive go on until the kernel has no more. Where reading is held an end that
    // has come is asked for.
    const Duration late = std::min(core.now - deadline.at, core.last_stall_length);
    const unsigned end = connection.has(held) && !connection.has(Connection::peer_finished) ? Readiness::ended : 0U;
    ready(core, connection, {static_cast<std::uint8_t>(Readiness::readable | Readiness::urgent | end)});
    if (connection.stage_ != Connection::Stage::open && connection.stage_ != Connection::Stage::connecting) return;
    core.read_clock();
    // Told that the peer is gone, the handler reads on: first what the kernel holds.
    if (end != 0 && !connection.has(held)) return rearm(core, connection);
    const bool came_late =
        deadline.kind == Deadline::message && connection.last_received_ >= deadline.at && message_began(connection) < deadline.at;
    if (came_late && core.stalled_in_this_turn()) forgive(core, connection, late);
  }
  sample_progress(core, connection);
  roll_windows(core, connection);
  const Instant looked = core.now;
  if (connection.policy_->heartbeat != nullptr) {
    connection.policy_->heartbeat->look(core, connection);
    if (connection.stage_ != Connection::Stage::open && connection.stage_ != Connection::Stage::connecting) return;
  }
  // What has become due meanwhile, or is found due only now, is judged in the next turn, when the kernel has been asked.
  const Instant at = earliest_deadline(connection).at;
  const bool found_due_after_asking = at > asked || !asks || core.now != looked;
  if (at <= core.now && found_due_after_asking) return core.arm(connection, at);
  deadline = earliest_deadline(connection);
  if (deadline.at > core.now) {
    if (connection.side_ != nullptr) connection.side_->judging = {};
    return rearm(core, connection);
  }
  if (has_more_to_read(core, connection, deadline.kind)) return core.arm(connection, deadline.at);  // in the next turn
  expire(core, connection, deadline.kind);
}

/// Whether the handler gives it more time; the deadline has moved then.
bool ConnectionLife::allows_more_time(ReactorCore& core, Connection& connection, Deadline kind) {
  const HandlerThunks& handler = *connection.policy_->handler;
  if (handler.on_deadline == nullptr || connection.has(Connection::closing)) return false;
  const Duration answer = std::min<Duration>(handler.on_deadline(handler_of(connection), connection, kind), longest_timeout);
  if (connection.stage_ != Connection::Stage::open || connection.has(Connection::closing)) return true;  // it ended it itself
  if (answer <= Duration::zero()) return false;
  if (connection.side_ != nullptr) connection.side_->judging = {};  // what comes until then is read before the next verdict
  const Instant at = core.read_clock() + answer;
  const Timeouts& timeouts = connection.policy_->timeouts;
  const auto from = [&](Deadline one) { return timeouts.of(one).is_never() ? at : at - timeouts.of(one).duration(); };
  const auto open_again = [&](RateWindow& window, const Rate& rate) {
    window.close_until(core.now + std::max(answer, rate.window) - rate.window);
  };
  if (kind == Deadline::send) {
    if (connection.has(Connection::just_given)) send_clock_begins_now(core, connection);  // what it gave has that time, too
    if (send_clock_runs(connection)) connection.send_progress_ = from(kind);  // not if the handler has set it to never
  } else {
    ConnectionSide* side = side_of(core, connection);
    if (side == nullptr) return false;
    if (kind == Deadline::first_byte || kind == Deadline::receive) {
      side->counted_from = from(kind);
      side->counted_for = connection.last_received_;
    } else if (kind == Deadline::message) {
      side->message_given = from(kind) - side->message_began;
    } else if (kind == Deadline::receive_rate) {
      open_again(side->received, timeouts.receive_rate);
    } else {
      open_again(side->acknowledged, timeouts.send_rate);
    }
  }
  roll_windows(core, connection);
  rearm(core, connection);
  return true;
}

void ConnectionLife::expire(ReactorCore& core, Connection& connection, Deadline kind) {
  constexpr CloseReason reasons[] = {
      CloseReason::connect_timed_out, CloseReason::system_error,      CloseReason::first_byte_timed_out,
      CloseReason::receive_timed_out, CloseReason::message_timed_out, CloseReason::receive_too_slow,
      CloseReason::send_timed_out,    CloseReason::send_too_slow,     CloseReason::drain_timed_out};
  static_assert(std::size(reasons) == deadline_count);
  // What recv does not tell comes before any deadline all the same: a reset that was not read up to, or one behind the peer's
  // end.
  if (connection.has(held | Connection::peer_finished) && end_with_pending_error(core, connection)) return;
  if (kind == heartbeat_budget) return connection.policy_->heartbeat->expire(core, connection);
  const bool asks = kind != Deadline::connect && kind != Deadline::drain;
  if (asks && allows_more_time(core, connection, kind)) return;
  if (!connection.has(Connection::close_called)) return end(connection, reasons[static_cast<std::size_t>(kind)]);
  connection.cut_short_ = CutShort::timed_out;
  end(connection, connection.reason_);
}

}  // namespace vigil
