// How often something may happen: at most so many times a second over any stretch of time, plus a short burst.
//
// A token bucket kept as one instant (the generic cell rate algorithm): each event is charged one interval, and the next is free
// once what was charged lies no further ahead than the burst. Time that passes unused, also while the loop stood still, fills the
// bucket to the burst and no further. Plain value; it knows no clock.
//
//   RateLimit limit(1000);
//   if (limit.allows(now)) limit.take(now);          // else: again at limit.free_at()
#pragma once

#include <algorithm>
#include <cstdint>

#include "vigil/time.hpp"

namespace vigil {

class RateLimit {
 public:
  static constexpr std::uint32_t per_second_max = 1'000'000;  // the interval's rounding stays below a thousandth

  RateLimit() = default;
  /// 0: no limit.
  explicit constexpr RateLimit(std::uint32_t per_second) {
    if (per_second == 0) return;
    constexpr std::int64_t second = 1'000'000'000;
    interval_ = Duration((second + per_second - 1) / per_second);  // rounded up: never faster than asked for
    tolerance_ = (burst_of(per_second) - 1) * interval_;
  }

  /// How many may happen at one instant after a pause: a tenth of a second's worth, at least one.
  static constexpr std::int64_t burst_of(std::uint32_t per_second) { return std::max<std::int64_t>(per_second / 10, 1); }

  [[nodiscard]] constexpr bool allows(Instant now) const { return now >= free_at(); }
  [[nodiscard]] constexpr Instant free_at() const { return charged_until_ - tolerance_; }
  constexpr void take(Instant now) { charged_until_ = std::max(charged_until_, now) + interval_; }

 private:
  Duration interval_{};
  Duration tolerance_{};
  Instant charged_until_{};
};

}  // namespace vigil
