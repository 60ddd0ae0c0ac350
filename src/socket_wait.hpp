// Waiting for one descriptor without a reactor: what receive_within, send_within, accept_within and connect_within stand on.
//
// Thread: as the calls themselves.
#pragma once

#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

inline constexpr Timeout ask_once = Duration::zero();
inline constexpr const char* timeout_out_of_range = "timeout out of range";

/// Of a timeout that is valued: 0 asks once.
inline bool is_usable(Timeout timeout) {
  return timeout.is_never() || (timeout.duration() >= Duration::zero() && timeout.duration() <= longest_timeout);
}

/// An event that is not the one asked for (an error queue with IP_RECVERR) does not go away by waiting for it: without this pause
/// such a wait would spin.
inline constexpr Duration idle_event_pause = std::chrono::milliseconds(5);

/// Waits until `descriptor` is ready for `events` or has an end to tell, and returns poll's revents; 0 once `due` has passed,
/// else -errno. Never early: the clock, not poll's answer, decides whether the time is over.
[[nodiscard]] int wait_ready(int descriptor, short events, Instant due);

/// Lets some time pass, but not beyond `due`. False once `due` has passed.
bool pass_time(Duration length, Instant due);

}  // namespace vigil
