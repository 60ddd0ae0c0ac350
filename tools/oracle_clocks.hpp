// The deadlines of one life as an onlooker counts them: from what its handler saw and did, never from what the library thinks.
//
// Where the library stamps a byte after the fact (never earlier than the byte, at the end of the turn at the latest), a clock has
// begun somewhere in a Span: a deadline told before the earliest end is early, one told after the latest is late.
//
// Thread: one at a time. Plain values, nothing owned.
//
//   LifeClocks clocks(timeouts, tick);
//   clocks.opened(now); clocks.received(now, 10); clocks.turn_ended(later);
//   if (!clocks.is_due(Deadline::receive, now, truth)) ...             // told early
//   if (auto late = clocks.overdue(now, truth, delays)) ...            // should have been told long ago
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vigil/sim.hpp"
#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"

namespace vigil::tools {

/// How much of the time until an instant no loop could have used (World::delays), so that it can be asked for any earlier
/// instant.
class DelayLog {
 public:
  /// `total` at `now`. Neither ever falls.
  void note(Instant now, Duration total);
  /// By how much it grew from `since` to the last note, at most.
  [[nodiscard]] Duration since(Instant since) const;

 private:
  struct Mark {
    Instant at;
    Duration total;
  };
  std::vector<Mark> marks_;  // one for each growth, at its end
};

/// When a clock began, as far as can be known from outside.
struct Span {
  Instant earliest{};
  Instant latest{};

  void shift(Duration by) {
    earliest += by;
    latest += by;
  }
};

/// A deadline that should have been told and was not.
struct Overdue {
  Deadline kind;
  Instant since;  ///< it was due then at the latest
  Duration allowed;
};

class LifeClocks {
 public:
  LifeClocks() = default;
  /// `timeouts` has every kind valued.
  LifeClocks(const Timeouts& timeouts, Duration tick) : timeouts_(timeouts), tick_(tick) {}
  /// Whether its handler hears of no peer's end, so that it flushes and closes by itself.
  void ends_with_peer(bool ends) { ends_with_peer_ = ends; }

  // What happened, told when it happened.
  void attempted(Instant now) { attempted_at_ = now; }
  void opened(Instant now);
  void received(Instant now, std::size_t bytes);  ///< from the kernel; not for bytes offered again
  void left_bytes(Instant now);                   ///< on_receive has returned and left some
  void message_began(Instant now);
  void message_ended(Instant now, bool bytes_wait);
  void paused(Instant now);
  /// Before paused(): a message that the loop's delay made late may have been given that time back already.
  void may_be_forgiven(Instant now, const DelayLog& delays);
  void resumed(Instant now);
  void may_be_held(Instant now, const DelayLog& delays);  ///< a backlog may hold reading from now on
  void holds_no_more(Instant released);
  void sent(Instant now, std::size_t bytes, std::uint64_t acknowledged_before);
  void sampled(Instant now, std::uint64_t acknowledged);  ///< at least eight times in each window of send_rate
  /// Asked at `asked`, the handler has answered `answer` by `now`.
  void given_more_time(Deadline kind, Instant asked, Instant now, Duration answer);
  void timeout_changed(Deadline kind, Timeout timeout, Instant now);
  void rate_changed(Deadline kind, const Rate& rate, Instant now);
  void peer_end_read() { receiving_ended_ = true; }
  void lingers(Instant now);     ///< the handler was told of it: the drain deadline runs when it has nothing under way
  void closing(Instant now);     ///< gracefully, by whomever
  void turn_ended(Instant now);  ///< the turn in which the above was told: stamps are no later

  /// It flushes and closes because the peer's end was read.
  [[nodiscard]] bool closes_with_peer(const sim::Truth& truth) const;
  [[nodiscard]] bool perhaps_closes_with_peer(const sim::Truth& truth) const;
  [[nodiscard]] bool is_held() const { return held_since_.has_value(); }
  [[nodiscard]] bool is_perhaps_held() const { return perhaps_held_; }
  [[nodiscard]] Instant last_release() const { return released_at_; }
  [[nodiscard]] const Timeouts& timeouts() const { return timeouts_; }
  [[nodiscard]] Span last_received() const { return last_received_; }
  [[nodiscard]] std::size_t armed() const;  ///< kinds with a value that run for an open connection

  /// Whether that deadline may be told now, not a nanosecond earlier: it runs, and its time is over.
  [[nodiscard]] bool is_due(Deadline kind, Instant now, const sim::Truth& truth) const;
  /// The earliest instant at which it may be told; never_due: it does not run.
  [[nodiscard]] Instant earliest(Deadline kind, const sim::Truth& truth) const;
  /// Of the deadlines of receiving that have one exact instant, one that was due before `instant` for certain: it comes first.
  [[nodiscard]] std::optional<Deadline> due_before(Instant instant, Instant now, const sim::Truth& truth) const;
  /// A deadline that is later by now than promised: a tick, an eighth where progress is sampled, and the loop's own delay.
  [[nodiscard]] std::optional<Overdue> overdue(Instant now, const sim::Truth& truth, const DelayLog& delays) const;
  /// The same of first_byte, receive, message and receive_rate alone.
  [[nodiscard]] std::optional<Overdue> overdue_receiving(Instant now, const DelayLog& delays) const;
  /// What it knows of one, for the reader of a violation.
  [[nodiscard]] std::string describe(Deadline kind, Instant now, const sim::Truth& truth) const;
  /// Bytes received in the last full window of receive_rate.
  [[nodiscard]] std::uint64_t received_in_window(Instant now) const;
  /// Bytes acknowledged in it, of send_rate, at least.
  [[nodiscard]] std::uint64_t acknowledged_in_window(Instant now, std::uint64_t count) const;

 private:
  /// One delay of the loop this long makes the library begin a rate's window anew and give a message its time back.
  static constexpr Duration stall = std::chrono::milliseconds(100);

  struct Count {
    Instant at;
    std::uint64_t count;
  };

  [[nodiscard]] static std::optional<Instant> end_sent_at(const sim::Truth& truth) {
    return truth.end_sent_at != Instant{} ? std::optional(truth.end_sent_at) : std::nullopt;
  }
  [[nodiscard]] bool receiving_runs() const { return open_ && !closing_ && !receiving_ended_ && !is_held(); }
  [[nodiscard]] bool awaits_first_byte() const { return !any_received_ && !timeouts_.first_byte.is_never(); }
  [[nodiscard]] Timeout send_timeout(bool closing) const;
  [[nodiscard]] Instant send_from(const sim::Truth& truth, bool at_latest) const;
  [[nodiscard]] std::optional<Overdue> overdue(Deadline kind, Instant now, const sim::Truth& truth, const DelayLog& delays) const;
  void begin_message(Span began);

  Timeouts timeouts_{};
  Duration tick_{};
  std::array<Instant, deadline_count> changed_at_{};  // its value: one that has passed by then is due then
  bool ends_with_peer_ = false;
  Instant attempted_at_{};
  Instant opened_at_{};
  bool open_ = false;
  bool closing_ = false;
  bool receiving_ended_ = false;
  bool any_received_ = false;

  // Receiving.
  Span last_received_{};
  Span counted_from_{};  // of first_byte and receive: the last byte, shifted by what stood still or was given
  Span message_from_{};
  bool in_message_ = true;
  bool receive_stamp_pending_ = false;
  bool message_stamp_pending_ = false;
  bool perhaps_held_ = false;
  Instant perhaps_held_from_{};
  std::optional<Instant> held_since_;
  Instant released_at_{};
  Instant rate_message_from_{};  // when the message began, whatever more time it was given
  Instant rate_not_before_{};    // no window of receive_rate is judged before: the rate is new, or more time was given
  Instant rate_progress_{};      // the last byte, or whatever began the windows anew
  std::vector<Count> receipts_;

  // Sending.
  std::uint64_t given_ = 0;
  Instant outstanding_since_{};
  Timeout send_before_ = never;      // the one before the last change
  Instant send_asked_at_{};          // more time was given then, or it was never before,
  Instant send_floor_{};             // and counts as if the last progress had been here
  Instant send_rate_not_before_{};   // at the earliest
  Instant send_rate_extended_to_{};  // at the latest
  std::vector<Count> samples_;
  Instant closing_at_{};
  Instant closing_latest_ = never_due;  // it takes effect by the end of the turn

  // A peer that finished and a handler that was told.
  bool lingers_ = false;
  bool linger_pending_ = false;
  Span lingers_from_{};
};

}  // namespace vigil::tools
