#include "oracle_clocks.hpp"

#include <algorithm>

#include "readable.hpp"

namespace vigil::tools {
namespace {

/// One delay of the loop this long makes the library begin a rate's window anew and give a message its time back.
constexpr Duration stall = std::chrono::milliseconds(100);

std::optional<Instant> end_sent_at(const sim::Truth& truth) {
  return truth.end_sent_at != Instant{} ? std::optional(truth.end_sent_at) : std::nullopt;
}

Instant later_by(Instant from, Timeout timeout) { return due_at(from, timeout); }

}  // namespace

// --- the loop's delay

void DelayLog::note(Instant now, Duration total) {
  if (!marks_.empty() && marks_.back().total == total) return;
  marks_.push_back({now, total});
}

Duration DelayLog::since(Instant since) const {
  if (marks_.empty()) return {};
  const auto after =
      std::upper_bound(marks_.begin(), marks_.end(), since, [](Instant instant, const Mark& mark) { return instant < mark.at; });
  if (after == marks_.end()) return {};
  // A delay is the last part of the time between two marks, and never longer than the time itself.
  const Duration before = after == marks_.begin() ? Duration{} : std::prev(after)->total;
  return marks_.back().total - std::max(before, after->total - (after->at - since));
}

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
  } else if (perhaps_held_) {
    message_from_.latest = never_due;  // by how much it stood still is not known
  }
  rate_progress_ = now;
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
  if (!in_message_) begin_message({now, never_due});
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
  const Instant due = later_by(message_from_.latest, timeouts_.message);
  const Duration late = now > due ? delays.since(due) : Duration{};
  if (late >= stall) message_from_.latest = now + late + tick_ - timeouts_.message.duration();
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

void LifeClocks::may_be_held() { perhaps_held_ = true; }

void LifeClocks::holds_no_more(Instant now) {
  if (!perhaps_held_) return;
  perhaps_held_ = false;
  released_at_ = now;
  rate_progress_ = now;
  counted_from_.latest = std::max(counted_from_.latest, now);  // at most all of its time was left
  message_from_.latest = never_due;
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
  const bool sending_was_watched = !send_timeout(closing_).is_never() || !timeouts_.send_rate.is_never();
  timeouts_.of(kind) = timeout;
  changed_at_[static_cast<std::size_t>(kind)] = now;
  if (sending_was_watched || send_timeout(closing_).is_never()) return;
  send_asked_at_ = send_floor_ = now;
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
  const Instant progress = std::max(outstanding_since_, truth.last_acknowledged);
  if (at_latest ? closes_with_peer(truth) : perhaps_closes_with_peer(truth)) {
    if (at_latest) return std::max(progress, truth.last_recv_at);
    return timeouts_.send.is_never() ? std::max(progress, *truth.end_arrived_at) : progress;
  }
  return progress > send_asked_at_ ? progress : std::max(progress, send_floor_);
}

Instant LifeClocks::earliest(Deadline kind, const sim::Truth& truth) const {
  const bool outstanding = open_ && given_ != truth.acknowledged;
  switch (kind) {
    case Deadline::connect:
      return open_ ? never_due : later_by(attempted_at_, timeouts_.connect);
    case Deadline::first_byte:
      return receiving_runs() && awaits_first_byte() ? later_by(counted_from_.earliest, timeouts_.first_byte) : never_due;
    case Deadline::receive:
      return receiving_runs() && !awaits_first_byte() ? later_by(counted_from_.earliest, timeouts_.receive) : never_due;
    case Deadline::message:
      return receiving_runs() && in_message_ ? later_by(message_from_.earliest, timeouts_.message) : never_due;
    case Deadline::receive_rate:
      if (!receiving_runs() || !in_message_ || timeouts_.receive_rate.is_never()) return never_due;
      return std::max(rate_message_from_ + timeouts_.receive_rate.grace + timeouts_.receive_rate.window, rate_not_before_);
    case Deadline::send:
      return outstanding ? later_by(send_from(truth, false), send_timeout(closing_ || perhaps_closes_with_peer(truth)))
                         : never_due;
    case Deadline::send_rate:
      return outstanding && !timeouts_.send_rate.is_never() ? send_rate_not_before_ + timeouts_.send_rate.window : never_due;
    case Deadline::drain:
      if (closing_) return later_by(std::max(closing_at_, end_sent_at(truth).value_or(closing_at_)), timeouts_.drain);
      return lingers_ ? later_by(std::max(lingers_from_.earliest, truth.last_taken_at), timeouts_.drain) : never_due;
    default:
      return never_due;
  }
}

bool LifeClocks::is_due(Deadline kind, Instant now, const sim::Truth& truth) const {
  const Instant at = earliest(kind, truth);
  return at != never_due && at <= now;
}

std::optional<Overdue> LifeClocks::overdue(Deadline kind, Instant now, const sim::Truth& truth, const DelayLog& delays) const {
  Instant due = never_due;
  Duration extra{};
  const auto at = [&](Instant from, Timeout timeout) {
    if (from != never_due) due = later_by(from, timeout);
  };
  const bool receiving = receiving_runs() && !perhaps_held_;
  const bool outstanding = open_ && given_ != truth.acknowledged;
  const auto stalls_since = [&](Instant from) { return delays.since(from) / stall; };
  const auto rate_due = [&](Instant from, const Rate& rate, Duration sampled) {
    due = from + rate.grace + 2 * rate.window + 2 * sampled + 3 * tick_;  // the grace, and each window, end at a tick
    if (now > due + tick_) extra = (rate.window + sampled) * stalls_since(from) + delays.since(from);
  };
  // What the stream said in between ended those of receiving.
  if (kind >= Deadline::first_byte && kind <= Deadline::receive_rate) {
    now = std::min(now, truth.end_arrived_at.value_or(now));
    now = std::min(now, truth.error_at.value_or(now));
  }
  switch (kind) {
    case Deadline::connect:
      if (!open_ && attempted_at_ != Instant{}) at(attempted_at_, timeouts_.connect);
      break;
    case Deadline::first_byte:
      if (receiving && awaits_first_byte()) at(counted_from_.latest, timeouts_.first_byte);
      break;
    case Deadline::receive:
      if (receiving && !awaits_first_byte()) at(counted_from_.latest, timeouts_.receive);
      break;
    case Deadline::message:
      if (!receiving || !in_message_) break;
      at(message_from_.latest, timeouts_.message);
      // A loop that was late gives a message back what it kept from it, and looks once more where more was to be read.
      if (due != never_due && now > due + tick_) {
        const Duration late = delays.since(due);
        extra = tick_ + (late >= stall ? late + 2 * tick_ * (1 + late / stall) : Duration{});
      }
      break;
    case Deadline::receive_rate:
      if (receiving && in_message_ && !timeouts_.receive_rate.is_never())
        rate_due(std::max({rate_progress_, rate_not_before_, message_from_.earliest}), timeouts_.receive_rate,
                 timeouts_.receive_rate.window / 8);
      break;
    case Deadline::send:
      if (!outstanding) break;
      due = later_by(send_from(truth, true), send_timeout(closing_ || closes_with_peer(truth)));
      if (due != never_due && now > due + tick_) {
        // The timeout itself is rounded up to a tick, and so is the sample.
        extra = send_timeout(true).duration() / 8 + tick_ + delays.since(send_from(truth, true));
      }
      break;
    case Deadline::send_rate:
      if (outstanding && !timeouts_.send_rate.is_never())
        rate_due(std::max({outstanding_since_, truth.last_acknowledged, send_rate_not_before_, send_rate_extended_to_}),
                 timeouts_.send_rate, timeouts_.send_rate.window / 8 + tick_);
      break;
    case Deadline::drain:
      if (closing_) {
        if (const auto sent = end_sent_at(truth); sent && closing_latest_ != never_due)
          at(std::max(closing_latest_, *sent), timeouts_.drain);
        // A close from outside a turn takes effect in the next one.
        if (due != never_due && now > due + tick_) extra = delays.since(closing_at_);
      } else if (lingers_ && given_ == truth.taken && lingers_from_.latest != never_due) {
        at(std::max(lingers_from_.latest, truth.last_taken_at), timeouts_.drain);
        // It begins in the turn in which the last byte was taken, when its callbacks have returned.
        if (due != never_due && now > due + tick_) extra = delays.since(due - timeouts_.drain.duration());
      }
      break;
    default:
      break;
  }
  if (due != never_due) due = std::max(due, changed_at_[static_cast<std::size_t>(kind)]);
  // One that was overdue when reading was held (which is judged then) is due again when it goes on.
  if (due != never_due && kind >= Deadline::first_byte && kind <= Deadline::receive_rate) due = std::max(due, released_at_);
  if (due == never_due || now <= due + tick_) return std::nullopt;
  const Duration allowed = tick_ + extra + delays.since(due);
  if (now - due <= allowed) return std::nullopt;
  return Overdue{kind, due, allowed};
}

std::optional<Overdue> LifeClocks::overdue(Instant now, const sim::Truth& truth, const DelayLog& delays) const {
  for (std::size_t index = 0; index < deadline_count; ++index)
    if (auto late = overdue(static_cast<Deadline>(index), now, truth, delays)) return late;
  return std::nullopt;
}

std::optional<Overdue> LifeClocks::overdue_receiving(Instant now, const DelayLog& delays) const {
  static const sim::Truth none;
  for (const Deadline kind : {Deadline::first_byte, Deadline::receive, Deadline::message, Deadline::receive_rate})
    if (auto late = overdue(kind, now, none, delays)) return late;
  return std::nullopt;
}

std::string LifeClocks::describe(Deadline kind, Instant now, const sim::Truth& truth) const {
  const auto at = [now](Instant instant) {
    return instant == never_due ? "never" : instant > now ? "in " + readable(instant - now) : readable(now - instant) + " ago";
  };
  const auto length = [&](Timeout timeout) { return timeout.is_never() ? std::string("never") : readable(timeout.duration()); };
  std::string text = "may be told " + at(earliest(kind, truth)) + ", tick " + readable(tick_);
  const Rate* rate = is_rate(kind) ? &timeouts_.rate_of(kind) : nullptr;
  if (rate == nullptr) text += ", the timeout is " + length(timeouts_.of(kind));
  if (rate != nullptr)
    text += ", " + std::to_string(rate->bytes_per_second) + " bytes a second in " + readable(rate->window) + " after " +
            readable(rate->grace);
  if (!receiving_runs()) text += ", receiving has ended or is held";
  text += ", opened " + at(opened_at_);
  switch (kind) {
    case Deadline::first_byte:
    case Deadline::receive:
      return text + ", counts from " + at(counted_from_.earliest) + " to " + at(counted_from_.latest);
    case Deadline::message:
      return text + ", began from " + at(message_from_.earliest) + " to " + at(message_from_.latest);
    case Deadline::receive_rate:
      return text + ", the message began " + at(message_from_.earliest) + ", not before " + at(rate_not_before_) +
             ", last progress " + at(rate_progress_);
    case Deadline::send:
    case Deadline::send_rate:
      return text + ", given " + std::to_string(given_) + ", acknowledged " + std::to_string(truth.acknowledged) + " " +
             at(truth.last_acknowledged) + ", outstanding since " + at(outstanding_since_) + ", floor " + at(send_floor_) +
             ", not before " + at(send_rate_not_before_) + ", closing " + (closing_ ? at(closing_at_) : "no");
    default:
      return text + ", closing " + (closing_ ? at(closing_at_) : "no") + ", our end " +
             (end_sent_at(truth) ? at(truth.end_sent_at) : "not sent") + ", lingers " +
             (lingers_ ? at(lingers_from_.earliest) : "no") + ", last taken " + at(truth.last_taken_at);
  }
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
