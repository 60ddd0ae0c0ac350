#include "vigil/verdict.hpp"

#include <algorithm>
#include <cstddef>

namespace vigil {
namespace {

constexpr std::uint32_t proof = 2;  // of anything that healthy paths lose one of

}  // namespace

const char* to_string(Verdict verdict) {
  constexpr const char* names[verdict_count] = {"hung", "unreachable", "not_reading", "unknown"};
  return names[static_cast<std::size_t>(verdict)];
}

std::optional<Verdict> judge(const Evidence& evidence, Duration interval, Duration budget) {
  using std::chrono::milliseconds;
  if (!evidence.known || evidence.round_trip > budget / 2) return std::nullopt;
  const Duration two_timeouts = 2 * evidence.retransmit_timeout;
  if (evidence.unacknowledged_segments > 0)
    return evidence.retransmits >= proof ? std::optional(Verdict::unreachable) : std::nullopt;
  if (evidence.not_transmitted_bytes > 0) {
    if (evidence.window_bytes.value_or(1) > 0) {
      const bool stuck = evidence.without_progress >= std::max<Duration>(milliseconds(400), two_timeouts);
      return stuck ? std::optional(Verdict::unreachable) : std::nullopt;
    }
    if (evidence.probes == 0) return Verdict::not_reading;
    return evidence.probes >= proof ? std::optional(Verdict::unreachable) : std::nullopt;
  }
  const bool answers = evidence.last_acknowledgement <= interval + std::max<Duration>(milliseconds(250), two_timeouts);
  if (!evidence.acknowledged_in_silence || !answers || evidence.retransmits_in_silence >= proof) return std::nullopt;
  return Verdict::hung;
}

}  // namespace vigil
