// Where messages begin and end, and the windows of a rate. When they are too late stands in connection_deadlines.cpp.
#include <algorithm>
#include <cerrno>

#include "connection_life.hpp"

namespace vigil {

/// A handler that never marks has one message: all that is received.
Instant ConnectionLife::message_began(const Connection& connection) {
  return connection.side_ != nullptr ? connection.side_->message_began : birth_of(connection).opened_at;
}

/// Its deadline; its rate knows nothing of time that was given.
Instant ConnectionLife::message_counts_from(const Connection& connection) {
  return message_began(connection) + (connection.side_ != nullptr ? connection.side_->message_given : Duration::zero());
}

void Connection::begin_message() {
  if (stage_ == Stage::vacant || stage_ == Stage::ended || has(closing)) return;
  ReactorCore& core = *policy_->core;
  core.assert_thread();
  if (ConnectionLife::side_of(core, *this) == nullptr)
    return ConnectionLife::end(*this, CloseReason::system_error, ENOMEM, number(Operation::begin_message));
  core.make_room_for_stamp();
  ConnectionLife::message_begins(core, *this);
  core.read_clock();
  if (has(ConnectionLife::held)) side_->message_began = side_->paused_at;  // it stands still with the others
  if (stage_ == Stage::open) ConnectionLife::rearm(core, *this);
}

void ConnectionLife::message_begins_with_tail(ReactorCore& core, Connection& connection) {
  core.make_room_for_stamp();
  message_begins(core, connection);
  connection.side_->received_before -= connection.side_->tail_bytes;  // these are its first
  if (!connection.has(held)) return;
  core.read_clock();
  connection.side_->message_began = connection.side_->paused_at;  // it stands still with the others
}

/// The first mark, which makes the side block, or one while bytes wait that were left: they begin the next message.
void Connection::end_message_slowly() {
  if (stage_ == Stage::vacant || stage_ == Stage::ended || has(closing)) return;
  ReactorCore& core = *policy_->core;
  core.assert_thread();
  if (ConnectionLife::side_of(core, *this) == nullptr)
    return ConnectionLife::end(*this, CloseReason::system_error, ENOMEM, number(Operation::end_message));
  set(awaits_message);
  if (has(has_tail)) ConnectionLife::message_begins_with_tail(core, *this);
  core.read_clock();
  if (stage_ == Stage::open) ConnectionLife::rearm(core, *this);
}

// --- rates

namespace {

/// At most the largest count.
std::uint64_t sum(std::uint64_t count, std::uint64_t more) { return count > UINT64_MAX - more ? UINT64_MAX : count + more; }

/// Opens the window that follows, judges the one that has passed. A loop that stood still judges nobody: the peer may have been
/// kept from sending, or we from asking it. `counted_at`: when `count` has grown last.
void roll(const ReactorCore& core, RateWindow& window, const Rate& rate, std::uint64_t count, Instant counted_at,
          std::uint64_t at_most) {
  const Instant over = window.is_open() ? window.end : window.opens_at;
  if (core.now < over) return;
  const Duration late = core.now - over;
  const bool stalled = late >= ReactorCore::stall_length || (window.is_open() && core.last_stall > over - rate.window);
  if (window.is_open() && count < window.target && !stalled) return;  // too slow: due
  // The next one follows at once, unless what was counted meanwhile would be missing from it.
  const bool follows = counted_at < over && !stalled && late < rate.window;
  window.end = (follows ? over : core.now) + rate.window;
  const std::uint64_t wanted = std::min(rate.bytes_per_window(), at_most);
  window.target = sum(count, wanted);
}

}  // namespace

/// The window under way, or when the next one opens. Without a grace the first one of a message needs no look at its beginning:
/// what had been received by then is known.
RateWindow ConnectionLife::receive_window(const Connection& connection) {
  const ConnectionSide& side = *connection.side_;
  const Rate& rate = connection.policy_->timeouts.receive_rate;
  RateWindow window = side.received;
  if (window.is_open()) return window;
  if (rate.grace == Duration::zero() && window.opens_at <= side.message_began) {
    window.end = side.message_began + rate.window;
    window.target = sum(side.received_before, rate.bytes_per_window());
  }
  window.opens_at = std::max(window.opens_at, side.message_began + rate.grace);
  return window;
}

void ConnectionLife::start_windows(ReactorCore& core, Connection& connection) {
  const Timeouts& timeouts = connection.policy_->timeouts;
  if (connection.side_ == nullptr) return;
  connection.side_->received.close_until({});
  connection.side_->acknowledged.close_until(core.now + timeouts.send_rate.grace);
}

void ConnectionLife::roll_windows(ReactorCore& core, Connection& connection) {
  ConnectionSide* side = connection.side_;
  if (side == nullptr) return;
  const Timeouts& timeouts = connection.policy_->timeouts;
  if (!timeouts.receive_rate.is_never() && receive_clocks_run(connection) && !connection.has(Connection::awaits_message)) {
    side->received = receive_window(connection);
    roll(core, side->received, timeouts.receive_rate, connection.received_, connection.last_received_, UINT64_MAX);
  }
  if (!timeouts.send_rate.is_never() && send_clock_counts(connection)) {
    const std::uint64_t given = connection.handed_to_kernel_ + connection.queued_bytes_;
    // What was given, and was to be acknowledged, when the window before was over is not known.
    roll(core, side->acknowledged, timeouts.send_rate, side->acknowledged_bytes, core.now, given - side->acknowledged_bytes);
  }
}

Result<void> Connection::set_rate(Deadline kind, const Rate& rate) {
  if (stage_ == Stage::vacant || stage_ == Stage::ended) return Error{"set rate", EBADF};
  if (!is_rate(kind)) return Error{"set rate", EINVAL, "not a kind that has a rate"};
  Timeouts wanted;
  wanted.rate_of(kind) = rate;
  if (auto valid = validate(wanted, "set rate"); !valid) return valid;
  ReactorCore& core = *policy_->core;
  core.assert_thread();
  if (!ConnectionLife::own_policy(*this) || ConnectionLife::side_of(core, *this) == nullptr) return Error{"set rate", ENOMEM};
  policy_->timeouts.rate_of(kind) = rate.is_inherit() ? policy_->inherited.rate_of(kind) : rate;
  core.read_clock();
  const bool stands = kind == Deadline::receive_rate && has(ConnectionLife::held);
  const Instant judged_from = (stands ? side_->paused_at : core.now) + policy_->timeouts.rate_of(kind).grace;
  (kind == Deadline::receive_rate ? side_->received : side_->acknowledged).close_until(judged_from);
  if (kind == Deadline::send_rate) ConnectionLife::sending_watch_changed(core, *this);
  ConnectionLife::rearm(core, *this);
  return {};
}

}  // namespace vigil
