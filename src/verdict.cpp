#include "vigil/verdict.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdio>

namespace vigil {
namespace {

constexpr std::uint32_t proof = 2;  // of anything that healthy paths lose one of
/// The coarsest in which a kernel counts (HZ 100): what is told of the byte that a silence began with may differ by so much.
constexpr Duration kernel_tick = std::chrono::milliseconds(10);

}  // namespace

const char* to_string(Verdict verdict) {
  constexpr const char* names[verdict_count] = {"hung", "unreachable", "not_reading", "unknown"};
  return names[static_cast<std::size_t>(verdict)];
}

std::string to_json(const Evidence& evidence) {
  std::string object = "{";
  const auto field = [&object](const char* key, const std::string& value) {
    object += std::string(object.size() > 1 ? "," : "") + "\"" + key + "\":" + value;
  };
  const auto milliseconds = [](Duration duration) {
    char text[40];
    std::snprintf(text, sizeof text, "%.3f", static_cast<double>(duration.count()) * 1e-6);
    return std::string(text);
  };
  field("known", evidence.known ? "true" : "false");
  field("sent_in_silence", std::to_string(evidence.sent_in_silence));
  field("acknowledged_in_silence", evidence.acknowledged_in_silence ? "true" : "false");
  field("unacknowledged_segments", std::to_string(evidence.unacknowledged_segments));
  field("not_transmitted_bytes", std::to_string(evidence.not_transmitted_bytes));
  field("retransmits", std::to_string(evidence.retransmits));
  field("retransmits_in_silence", std::to_string(evidence.retransmits_in_silence));
  field("probes", std::to_string(evidence.probes));
  field("window_bytes", evidence.window_bytes ? std::to_string(*evidence.window_bytes) : "null");
  field("round_trip_ms", milliseconds(evidence.round_trip));
  field("retransmit_timeout_ms", milliseconds(evidence.retransmit_timeout));
  field("last_acknowledgement_ms", milliseconds(evidence.last_acknowledgement));
  field("silence_ms", milliseconds(evidence.silence));
  field("without_progress_ms", milliseconds(evidence.without_progress));
  char text[40];
  std::snprintf(text, sizeof text, "%.2f", evidence.phi);
  field("phi", evidence.phi == 0 ? "null" : text);
  return object + '}';
}

std::optional<Verdict> judge(const Evidence& evidence, Duration interval, Duration budget) {
  using std::chrono::milliseconds;
  if (!evidence.known || evidence.round_trip > budget / 2) return std::nullopt;
  const Duration two_timeouts = 2 * evidence.retransmit_timeout;
  const Duration lately = std::max<Duration>(milliseconds(250), two_timeouts);
  if (evidence.unacknowledged_segments > 0 && evidence.retransmits >= proof) return Verdict::unreachable;
  const bool healing = evidence.retransmits_in_silence >= proof;
  const bool goes_on = evidence.acknowledged_in_silence && evidence.last_acknowledgement <= lately && evidence.retransmits == 0;
  if (evidence.unacknowledged_segments > 0) return goes_on && !healing ? std::optional(Verdict::hung) : std::nullopt;
  if (evidence.not_transmitted_bytes > 0) {
    if (evidence.window_bytes.value_or(0) > 0) {
      const bool stuck = evidence.without_progress >= std::max<Duration>(milliseconds(400), two_timeouts);
      return stuck ? std::optional(Verdict::unreachable) : std::nullopt;
    }
    if (evidence.probes >= proof) return Verdict::unreachable;
    // Probes back off: the last answer may be old.
    const bool answered = evidence.probes == 0 && evidence.last_acknowledgement + kernel_tick <= evidence.silence;
    return answered && evidence.window_bytes ? std::optional(Verdict::not_reading) : std::nullopt;
  }
  const bool answers = evidence.last_acknowledgement <= interval + lately;
  if (!evidence.acknowledged_in_silence || !answers || healing) return std::nullopt;
  return Verdict::hung;
}

}  // namespace vigil
