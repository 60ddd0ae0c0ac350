// What should have been told by now, and how much later than due it may be: a tick, what is sampled an eighth more, and as long
// as the loop was kept.
#include <algorithm>

#include "oracle_clocks.hpp"
#include "readable.hpp"

namespace vigil::tools {

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

// --- deadlines

std::optional<Overdue> LifeClocks::overdue(Deadline kind, Instant now, const sim::Truth& truth, const DelayLog& delays) const {
  Instant due = never_due;
  Duration extra{};
  const auto at = [&](Instant from, Timeout timeout) {
    if (from != never_due) due = due_at(from, timeout);
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
      // A loop that was late gives a message back what it kept from it, and looks once more where more was to be read. Most of it
      // to one that began as early as it may have.
      if (due != never_due && now > due + tick_) {
        extra = tick_;
        for (const Instant began : {message_from_.earliest, message_from_.latest}) {
          const Instant was_due = due_at(began, timeouts_.message);
          const Duration late = delays.since(was_due);
          const Duration forgiven = 2 * late + tick_ + 2 * tick_ * (1 + late / stall);
          if (late >= stall) extra = std::max(extra, was_due + forgiven - due - delays.since(due));
        }
      }
      break;
    case Deadline::receive_rate:
      if (receiving && in_message_ && !timeouts_.receive_rate.is_never())
        rate_due(std::max({rate_progress_, rate_not_before_, message_from_.earliest}), timeouts_.receive_rate,
                 timeouts_.receive_rate.window / 8);
      break;
    case Deadline::send:
      if (!outstanding) break;
      due = due_at(send_from(truth, true), send_timeout(closing_ || closes_with_peer(truth)));
      if (due != never_due && now > due + tick_) {
        // The last sample may be one of the timeout before.
        const Instant from = send_from(truth, true);
        const bool is_new = changed_at_[static_cast<std::size_t>(kind)] > from && !send_before_.is_never();
        const Duration longest = std::max(send_timeout(true).duration(), is_new ? send_before_.duration() : Duration{});
        extra = std::max(longest / 8, tick_) + delays.since(from);
      }
      break;
    case Deadline::send_rate:
      if (outstanding && !timeouts_.send_rate.is_never())
        rate_due(std::max({outstanding_since_, truth.last_acknowledged, send_rate_not_before_, send_rate_extended_to_}),
                 timeouts_.send_rate, std::max(timeouts_.send_rate.window / 8, tick_));
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

std::optional<Deadline> LifeClocks::due_before(Instant instant, Instant now, const sim::Truth& truth) const {
  if (!receiving_runs() || perhaps_held_) return std::nullopt;
  // What the stream said in between ended them, and so did its end, once it was read.
  if (truth.end_arrived_at && truth.last_recv == 0 && truth.last_recv_at >= *truth.end_arrived_at) return std::nullopt;
  instant = std::min({instant, truth.end_arrived_at.value_or(instant), truth.error_at.value_or(instant)});
  const auto was_due = [&](Deadline kind, const Span& from) {
    if (from.latest == never_due || timeouts_.of(kind).is_never()) return false;
    const Instant due = due_at(from.latest, timeouts_.of(kind));
    return std::max({due, changed_at_[static_cast<std::size_t>(kind)], released_at_}) < instant;
  };
  const Deadline awaited = awaits_first_byte() ? Deadline::first_byte : Deadline::receive;
  if (was_due(awaited, counted_from_)) return awaited;
  // One that the loop's own delay made late may have been given that time back.
  const bool may_be_forgiven =
      in_message_ && !timeouts_.message.is_never() && now - due_at(message_from_.earliest, timeouts_.message) >= stall;
  if (in_message_ && !may_be_forgiven && was_due(Deadline::message, message_from_)) return Deadline::message;
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
             at(truth.last_acknowledged) + ", outstanding since " + at(outstanding_since_) + ", offered " + at(truth.offered_at) +
             ", floor " + at(send_floor_) + ", not before " + at(send_rate_not_before_) + ", closing " +
             (closing_ ? at(closing_at_) : "no");
    default:
      return text + ", closing " + (closing_ ? at(closing_at_) : "no") + ", our end " +
             (end_sent_at(truth) ? at(truth.end_sent_at) : "not sent") + ", lingers " +
             (lingers_ ? at(lingers_from_.earliest) : "no") + ", last taken " + at(truth.last_taken_at);
  }
}

}  // namespace vigil::tools
