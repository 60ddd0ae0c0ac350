#include "vigil/heartbeat_options.hpp"

#include <algorithm>
#include <cerrno>

#include "vigil/timeouts.hpp"

namespace vigil {
namespace {

constexpr Duration verdict_needs = std::chrono::milliseconds(1500);  // two retransmissions, on a path of ordinary length
constexpr std::uint32_t misses_unless_told = 3;
constexpr std::uint32_t fewest_misses = 2;
constexpr Duration longest_keepalive_idle = std::chrono::seconds(32767);  // tcp(7)'s TCP_KEEPIDLE on Linux: MAX_TCP_KEEPIDLE

/// The kernel's probes, within the budget where whole seconds allow it.
void plan_keepalive(HeartbeatPlan& plan) {
  constexpr int probes = 3;
  constexpr Duration second = std::chrono::seconds(1);
  const Duration whole = std::max(plan.budget - plan.budget % second, second);
  plan.keepalive_count = probes;
  plan.keepalive_interval = std::max(whole / (2 * probes) - whole / (2 * probes) % second, second);
  plan.keepalive_idle = std::max(whole - probes * plan.keepalive_interval, second);
  plan.told_within = plan.keepalive_idle + probes * plan.keepalive_interval;
  plan.user_timeout = plan.told_within;  // less would let one lost probe kill
}

/// What is wrong with it; null: nothing.
const char* plan_phi(HeartbeatPlan& plan, const std::optional<PhiAccrual>& phi) {
  if (!phi) return nullptr;
  if (!(phi->threshold >= 1 && phi->threshold <= 100)) return "phi threshold out of range (1 to 100)";
  if (phi->least_answers < 2 || phi->least_answers > AnswerTimes::window) return "phi's least_answers out of range (2 to 64)";
  if (phi->least_deviation < std::chrono::milliseconds(1) || phi->least_deviation > std::chrono::hours(1))
    return "phi's least_deviation out of range (1 ms to 1 h)";
  plan.phi = phi;
  plan.phi_deviations = phi_deviations(phi->threshold);
  plan.phi_from = plan.interval + (plan.wants_verdict ? verdict_needs : Duration::zero());
  if (plan.interval + plan.phi_from > plan.budget)
    return plan.wants_verdict ? "heartbeat budget below two intervals and 1.5 s, before which phi has nothing to say"
                              : "heartbeat budget below two intervals, before which phi has nothing to say";
  return nullptr;
}

}  // namespace

Result<HeartbeatPlan> plan_heartbeat(const HeartbeatOptions& options, const char* operation) {
  const auto refused = [operation](const char* why) { return Error{operation, EINVAL, why}; };
  if (!options.budget) {
    if (options.interval || options.misses || options.ping || options.phi || options.keepalive_only)
      return refused("a heartbeat needs a budget");
    return HeartbeatPlan{};
  }
  HeartbeatPlan plan;
  plan.budget = *options.budget;
  if (plan.budget < shortest_timeout || plan.budget > longest_timeout) return refused("heartbeat budget out of range");
  if (options.grace < Duration::zero() || options.grace > std::chrono::seconds(1)) return refused("heartbeat grace out of range");
  if (options.keepalive_only) {
    if (options.interval || options.misses || options.ping || options.phi)
      return refused("keepalive_only sends no pings: it takes no interval, misses, ping or phi");
    plan.wants_verdict = false;
    plan_keepalive(plan);
    if (plan.keepalive_idle > longest_keepalive_idle)
      return refused("heartbeat budget longer than keepalive_only can keep (18 h)");
    return plan;
  }
  if (options.ping && options.ping->empty()) return refused("an empty ping is no probe");
  if (options.misses && *options.misses < fewest_misses) return refused("fewer than 2 heartbeat misses");
  if (options.interval && *options.interval < shortest_timeout) return refused("heartbeat interval out of range");
  if (options.interval && *options.interval > plan.budget) return refused("heartbeat budget shorter than the interval");
  plan.grace = options.wants_verdict ? options.grace : Duration::zero();
  plan.wants_verdict = options.wants_verdict;
  plan.told_within = plan.budget + plan.grace;

  const std::uint32_t wished_misses = options.misses.value_or(misses_unless_told);
  if (options.interval) {
    plan.interval = *options.interval;
  } else {
    plan.interval = plan.budget / (std::int64_t{wished_misses} + 1);
    if (plan.wants_verdict && !options.misses) plan.interval = std::min(plan.interval, plan.budget - verdict_needs);
  }
  if (plan.wants_verdict && plan.budget < plan.interval + verdict_needs)
    return refused("heartbeat budget below interval + 1.5 s, which a verdict needs");
  if (plan.interval < shortest_timeout && options.misses)
    return refused("more heartbeat misses than probes 1 ms apart fit into the budget");
  if (plan.interval < shortest_timeout)
    return refused(plan.wants_verdict ? "heartbeat budget below interval + 1.5 s, which a verdict needs"
                                      : "heartbeat budget too short");
  if (plan.budget / 3 < plan.interval) return refused("heartbeat budget below three intervals");
  const std::int64_t fit = plan.budget / plan.interval - 1;
  plan.misses = options.misses.value_or(static_cast<std::uint32_t>(std::min<std::int64_t>(fit, UINT32_MAX)));
  if (plan.misses > fit) return refused("more heartbeat misses than fit into the budget");
  if (const char* why = plan_phi(plan, options.phi)) return refused(why);
  return plan;
}

}  // namespace vigil
