#include "oracle_clocks.hpp"

#include <algorithm>

namespace vigil::tools {

// --- what happened

void LifeClocks::opened(Instant now) {
  open_ = true;
  opened_at_ = now;
  last_received_ = counted_from_ = message_from_ = {now, now};
  rate_message_from_ = now;
  rate_progress_ = now;
  if (given_ != 0) outstanding_since_ = now;
  send_rate_not_before_ = now + timeouts_.send_rate.grace;
}

void LifeClocks::received(Instant now, std::size_t bytes) {
  any_received_ = true;
  last_received_ = counted_from_ = {now, never_due};
  receive_stamp_pending_ = true;
  if (!in_message_) {
    begin_message({now, never_due});
    message_stamp_pending_ = true;
  }
  rate_progress_ = std::max(rate_progress_, now);  // later, where a grace may have stood still
  if (!timeouts_.receive_rate.is_never()) receipts_.push_back({now, bytes});
  holds_no_more(now);
}

void LifeClocks::begin_message(Span began) {
  in_message_ = true;
  message_from_ = began;
  rate_message_from_ = began.earliest;
  rate_not_before_ = {};  // its windows begin anew
  rate_progress_ = began.earliest;
  message_stamp_pending_ = began.latest == never_due;
}

void LifeClocks::left_bytes(Instant now) {
  if (in_message_) return;
  begin_message(held_since_ ? Span{*held_since_, *held_since_} : Span{now, never_due});  // held, it stands still from there
}

void LifeClocks::message_began(Instant now) {
  const Instant at = held_since_.value_or(now);
  begin_message({at, at});
}

void LifeClocks::message_ended(Instant now, bool bytes_wait) {
  in_message_ = false;
  message_stamp_pending_ = false;
  if (bytes_wait) message_began(now);  // they begin the next one
}

void LifeClocks::paused(Instant now) {
  if (held_since_ || closing_) return;
  turn_ended(now);  // a hold reads the clock
  held_since_ = now;
}

void LifeClocks::may_be_forgiven(Instant now, const DelayLog& delays) {
  if (!in_message_ || message_from_.latest == never_due || timeouts_.message.is_never()) return;
  for (const Instant began : {message_from_.earliest, message_from_.latest}) {
    const Instant due = due_at(began, timeouts_.message);
    const Duration late = now > due ? delays.since(due) : Duration{};
    if (late >= stall)
      message_from_.latest = std::max(message_from_.latest, now + late + 3 * tick_ - timeouts_.message.duration());
  }
}

void LifeClocks::resumed(Instant now) {
  if (!held_since_) return;
  const Duration stood = now - *held_since_;
  held_since_.reset();
  released_at_ = now;
  counted_from_.shift(now - std::max(now - stood, last_received_.latest));
  message_from_.earliest += stood;
  if (message_from_.latest != never_due) message_from_.latest += stood;
  if (rate_not_before_ > now - stood) rate_not_before_ += stood;
  rate_progress_ = now;
}

void LifeClocks::may_be_held(Instant now, const DelayLog& delays) {
  if (perhaps_held_) return;
  may_be_forgiven(now, delays);  // what stands still from here is what is left then
  perhaps_held_from_ = now;
  perhaps_held_ = true;
}

/// Everything may have stood still since it may have been held, or nothing.
void LifeClocks::holds_no_more(Instant released) {
  if (!perhaps_held_) return;
  perhaps_held_ = false;
  const Duration stood = std::max(released - perhaps_held_from_, Duration{});
  released_at_ = std::max(released_at_, released);
  rate_progress_ = std::max(rate_progress_, released);
  if (rate_not_before_ > perhaps_held_from_) rate_progress_ = std::max(rate_progress_, rate_not_before_ + stood);
  if (counted_from_.latest != never_due) counted_from_.latest += stood;
  if (message_from_.latest != never_due) message_from_.latest += stood;
}

void LifeClocks::sent(Instant now, std::size_t bytes, std::uint64_t acknowledged_before) {
  if (given_ == acknowledged_before) {
    outstanding_since_ = now;
    // More time that was given has ended with what it was given for. A pause between two samples goes unnoticed, and then the
    // grace has not begun anew: but for the first bytes only a window is due.
    send_rate_not_before_ = given_ == 0 ? now + timeouts_.send_rate.grace : now;
  }
  given_ += bytes;
  if (lingers_) lingers(now);
}

void LifeClocks::sampled(Instant now, std::uint64_t acknowledged) { samples_.push_back({now, acknowledged}); }

void LifeClocks::given_more_time(Deadline kind, Instant asked, Instant now, Duration answer) {
  const Instant at = now + answer;
  const auto from = [&](Deadline one) { return timeouts_.of(one).is_never() ? at : at - timeouts_.of(one).duration(); };
  switch (kind) {
    case Deadline::first_byte:
    case Deadline::receive:
      counted_from_ = {from(kind), from(kind)};
      receive_stamp_pending_ = false;
      return;
    case Deadline::message:
      message_from_ = {from(kind), from(kind)};
      message_stamp_pending_ = false;
      return;
    case Deadline::receive_rate:
      rate_not_before_ = now + std::max(answer, timeouts_.receive_rate.window);
      rate_progress_ = at;
      return;
    case Deadline::send:
      send_asked_at_ = asked;
      send_floor_ = from(kind);
      return;
    case Deadline::send_rate:
      send_rate_not_before_ = now + std::max(answer, timeouts_.send_rate.window) - timeouts_.send_rate.window;
      send_rate_extended_to_ = send_rate_not_before_;
      return;
    default:
      return;
  }
}

void LifeClocks::timeout_changed(Deadline kind, Timeout timeout, Instant now) {
  const bool send_was_never = send_timeout(closing_).is_never();
  // `drain` stands for it in a flush.
  if (kind == Deadline::send || (kind == Deadline::drain && timeouts_.send.is_never())) send_before_ = send_timeout(true);
  timeouts_.of(kind) = timeout;
  changed_at_[static_cast<std::size_t>(kind)] = now;
  // What it stands for, or kept waiting.
  if (kind == Deadline::drain) changed_at_[static_cast<std::size_t>(Deadline::send)] = now;
  if (kind == Deadline::first_byte) changed_at_[static_cast<std::size_t>(Deadline::receive)] = now;
  if (send_was_never && !send_timeout(closing_).is_never()) send_asked_at_ = send_floor_ = now;
}

void LifeClocks::rate_changed(Deadline kind, const Rate& rate, Instant now) {
  const bool sending_was_watched = !send_timeout(closing_).is_never() || !timeouts_.send_rate.is_never();
  timeouts_.rate_of(kind) = rate;
  if (kind == Deadline::receive_rate) {
    rate_not_before_ = held_since_.value_or(now) + rate.grace + rate.window;
    rate_progress_ = now;
  } else {
    send_rate_extended_to_ = send_rate_not_before_ = now + rate.grace;
    if (!sending_was_watched) send_asked_at_ = send_floor_ = now;
  }
}

void LifeClocks::lingers(Instant now) {
  lingers_ = true;
  lingers_from_ = {now, never_due};
  linger_pending_ = true;
}

void LifeClocks::closing(Instant now) {
  if (closing_) return;
  const bool was_watched = !send_timeout(closing_).is_never() || !timeouts_.send_rate.is_never();
  const bool was_never = timeouts_.send.is_never();
  closing_ = true;
  lingers_ = false;
  closing_at_ = now;
  closing_latest_ = never_due;
  if (held_since_ || perhaps_held_) released_at_ = now;
  held_since_.reset();
  perhaps_held_ = false;
  if (was_never || !was_watched)
    send_asked_at_ = send_floor_ = now;
  else
    send_floor_ = std::min(send_floor_, now);  // more time that was given has ended
}

void LifeClocks::turn_ended(Instant now) {
  if (receive_stamp_pending_) last_received_.latest = counted_from_.latest = now;
  if (message_stamp_pending_) message_from_.latest = now;
  if (linger_pending_) lingers_from_.latest = now;
  if (closing_ && closing_latest_ == never_due) closing_latest_ = now;
  receive_stamp_pending_ = message_stamp_pending_ = linger_pending_ = false;
}

// --- what follows from it

std::size_t LifeClocks::armed() const {
  const auto runs = [](Timeout timeout) { return timeout.is_never() ? 0U : 1U; };
  return runs(timeouts_.first_byte) + runs(timeouts_.receive) + runs(timeouts_.message) + runs(timeouts_.send) +
         (timeouts_.receive_rate.is_never() ? 0U : 1U) + (timeouts_.send_rate.is_never() ? 0U : 1U);
}

bool LifeClocks::perhaps_closes_with_peer(const sim::Truth& truth) const {
  return ends_with_peer_ && !closing_ && truth.end_arrived_at && truth.last_recv == 0 &&
         truth.last_recv_at >= *truth.end_arrived_at;
}

/// Bytes left are offered once more before the end is told, and then reading may be held.
bool LifeClocks::closes_with_peer(const sim::Truth& truth) const {
  return perhaps_closes_with_peer(truth) && !is_held() && !perhaps_held_ && released_at_ < truth.last_recv_at;
}

/// `never` counts as drain's while a close flushes.
Timeout LifeClocks::send_timeout(bool closing) const {
  return timeouts_.send.is_never() && closing ? timeouts_.drain : timeouts_.send;
}

/// Since when nothing was acknowledged although something was outstanding.
Instant LifeClocks::send_from(const sim::Truth& truth, bool at_latest) const {
  Instant progress = std::max(outstanding_since_, truth.last_acknowledged);
  // What nothing was acknowledged of can't be on its way before its kernel was offered it, when the handler has returned.
  if (!at_latest && truth.last_acknowledged <= outstanding_since_) progress = std::max(progress, truth.offered_at);
  if (!at_latest && perhaps_closes_with_peer(truth))
    return timeouts_.send.is_never() ? std::max(progress, *truth.end_arrived_at) : progress;
  if (at_latest && closes_with_peer(truth))
    progress = std::max(progress, truth.last_recv_at);  // more time given before has ended
  return progress > send_asked_at_ ? progress : std::max(progress, send_floor_);
}

Instant LifeClocks::earliest(Deadline kind, const sim::Truth& truth) const {
  const bool outstanding = open_ && given_ != truth.acknowledged;
  switch (kind) {
    case Deadline::connect:
      return open_ ? never_due : due_at(attempted_at_, timeouts_.connect);
    case Deadline::first_byte:
      return receiving_runs() && awaits_first_byte() ? due_at(counted_from_.earliest, timeouts_.first_byte) : never_due;
    case Deadline::receive:
      return receiving_runs() && !awaits_first_byte() ? due_at(counted_from_.earliest, timeouts_.receive) : never_due;
    case Deadline::message:
      return receiving_runs() && in_message_ ? due_at(message_from_.earliest, timeouts_.message) : never_due;
    case Deadline::receive_rate:
      if (!receiving_runs() || !in_message_ || timeouts_.receive_rate.is_never()) return never_due;
      return std::max(rate_message_from_ + timeouts_.receive_rate.grace + timeouts_.receive_rate.window, rate_not_before_);
    case Deadline::send:
      return outstanding ? due_at(send_from(truth, false), send_timeout(closing_ || perhaps_closes_with_peer(truth))) : never_due;
    case Deadline::send_rate:
      return outstanding && !timeouts_.send_rate.is_never() ? send_rate_not_before_ + timeouts_.send_rate.window : never_due;
    case Deadline::drain:
      if (closing_) return due_at(std::max(closing_at_, end_sent_at(truth).value_or(closing_at_)), timeouts_.drain);
      return lingers_ ? due_at(std::max(lingers_from_.earliest, truth.last_taken_at), timeouts_.drain) : never_due;
    default:
      return never_due;
  }
}

bool LifeClocks::is_due(Deadline kind, Instant now, const sim::Truth& truth) const {
  const Instant at = earliest(kind, truth);
  return at != never_due && at <= now;
}

std::uint64_t LifeClocks::received_in_window(Instant now) const {
  std::uint64_t bytes = 0;
  for (auto receipt = receipts_.rbegin(); receipt != receipts_.rend(); ++receipt) {
    if (receipt->at <= now - timeouts_.receive_rate.window) break;
    bytes += receipt->count;
  }
  return bytes;
}

std::uint64_t LifeClocks::acknowledged_in_window(Instant now, std::uint64_t count) const {
  std::uint64_t before = count;
  for (auto sample = samples_.rbegin(); sample != samples_.rend(); ++sample) {
    if (sample->at < now - timeouts_.send_rate.window) break;
    before = sample->count;
  }
  return count - before;
}

}  // namespace vigil::tools
