// Time as vigil counts it: nanoseconds on a monotonic clock (CLOCK_MONOTONIC: never set back, stands still in suspend).
//
// Thread: plain values. A span is a Duration, a point is an Instant; only a bare integer would carry its unit in its name.
#pragma once

#include <chrono>
#include <cstdint>

namespace vigil {

using Duration = std::chrono::nanoseconds;

/// The clock Instants are counted on. It has no now(): who needs the time asks the reactor, or is told.
struct MonotonicClock {
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<MonotonicClock>;
  static constexpr bool is_steady = true;
};

using Instant = MonotonicClock::time_point;

/// Later than every instant that can be armed: "no deadline".
inline constexpr Instant never_due = Instant::max();

}  // namespace vigil
