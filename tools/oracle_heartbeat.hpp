// What an onlooker knows of one life's heartbeat: from what its handler saw and did and what the world knows, never from what the
// library thinks.
//
// A silence begins with the last byte received. What the library may take for a sign of life besides is known less well:
// acknowledgements of bytes that hold a probe back, and bytes that the kernel received while reading was held. A loss is early if
// it comes before the budget has passed since the last thing that was certainly life, and late if it comes after the budget has
// passed since the last that may have been.
//
// Thread: one at a time. Plain values, nothing owned.
#pragma once

#include <cstdint>
#include <optional>

#include "oracle_clocks.hpp"
#include "vigil/sim.hpp"
#include "vigil/time.hpp"

namespace vigil::tools {

/// What its options promise, worked out from them by the swarm.
struct HeartbeatTerms {
  Duration budget{};  ///< 0: no heartbeat, or the kernel's alone
  Duration interval{};
  Duration grace{};  ///< 0 where no verdict is wanted
  Duration tick{};
  bool wants_verdict = true;
  std::uint64_t ping_bytes = 0;  ///< of the fixed text; 0: the handler says it
  Duration phi_from{};           ///< after the first probe phi may end it before the budget does; 0: it never may
  double phi_threshold = 0;      ///< where it does
};

class HeartbeatClock {
 public:
  HeartbeatClock() = default;
  explicit HeartbeatClock(const HeartbeatTerms& terms) : terms_(terms) {}

  [[nodiscard]] bool is_on() const { return terms_.budget != Duration{}; }
  [[nodiscard]] const HeartbeatTerms& terms() const { return terms_; }

  // What happened, told when it happened.
  void heard(bool outstanding);    ///< bytes were received; whether any of ours was not acknowledged
  void said(std::uint64_t given);  ///< bytes that are no probe: so many were given in all
  /// A probe. Not `exactly`: it is known of only now, and may be older.
  void asked(Instant now, const sim::Truth& truth, bool exactly);
  void sampled(const sim::Truth& truth);  ///< often enough, so that it is known when what was said had been acknowledged

  [[nodiscard]] std::optional<Instant> first_asked() const { return first_asked_; }
  [[nodiscard]] std::optional<Instant> last_asked() const { return last_asked_; }
  [[nodiscard]] bool was_asked() const { return first_asked_.has_value(); }
  [[nodiscard]] std::optional<Instant> exactly_asked() const { return asked_exactly_ ? first_asked_ : std::nullopt; }
  /// Nothing but probes was on its way in this silence: each of them had to be answered by itself.
  [[nodiscard]] bool only_asked() const { return !spoke_; }

  /// The last sign of life there certainly was, by `judged` at the latest, and that there may have been. `last` is the span of
  /// the last byte received, `held` whether reading was, perhaps.
  [[nodiscard]] Instant certain_life(Span last, bool held, const sim::Truth& truth, Instant judged) const;
  [[nodiscard]] Instant possible_life(Span last, bool held, const sim::Truth& truth) const;

 private:
  /// What was given up to here may hold a probe back.
  void holds_back(std::uint64_t taken);

  HeartbeatTerms terms_;
  // Of this silence.
  bool spoke_ = false;
  std::optional<Instant> first_asked_, last_asked_;
  bool asked_exactly_ = false;
  bool was_owed_ = false;  // when it was asked first: something that was said had not been acknowledged
  std::uint64_t owed_to_ = 0;
  // Of the life.
  std::uint64_t said_to_ = 0;          // what is given up to here is no probe's, or older than one that is
  std::optional<Instant> cleared_at_;  // it had been acknowledged by then
};

}  // namespace vigil::tools
