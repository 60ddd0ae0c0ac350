// How a connection is to learn that its peer is gone, although nothing says so: one budget, from which the rest follows.
//
// Thread: plain values.
//
//   vigil::Listener<Session> listener(reactor, {.heartbeat = {.budget = 20s, .ping = "ping\n"}});
//
// Any byte received is life. Into a silence goes a probe: the handler's on_ping_due says it, or it is a fixed text; every silence
// draws its own phase, so that a million connections don't ping in step. A peer that was silent for the whole budget is lost:
// heartbeat_lost, with the verdict of what its kernel and the network show meanwhile (verdict.hpp).
//
// keepalive_only is for protocols without a ping: the kernel probes by itself (SO_KEEPALIVE), and its own verdict
// (network_timed_out) is what is told. It finds a host or a way that is gone. It can't find a process that hangs, because that
// process's kernel answers; and it closes a peer that lives and reads nothing for the whole budget, because TCP_USER_TIMEOUT,
// which bounds bytes in flight, makes no difference between the two.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "vigil/phi_accrual.hpp"
#include "vigil/result.hpp"
#include "vigil/time.hpp"

namespace vigil {

struct HeartbeatOptions {
  /// A peer silent for this long is lost. Nothing: no heartbeat. Up to 10 years; at least three intervals, and for a verdict at
  /// least an interval and 1.5 s, which two retransmissions need.
  std::optional<Duration> budget{};
  /// Between one probe into a silence and the next, from 1 ms. Nothing: what budget and misses leave, a quarter of the budget.
  std::optional<Duration> interval{};
  /// Probes in a row that may go unanswered; at least 2. Nothing: as many as fit into the budget, or 3.
  std::optional<std::uint32_t> misses{};
  /// What a probe says. Nothing: the handler's on_ping_due sends it.
  std::optional<std::string> ping{};
  /// How long beyond the budget a verdict that is not decided yet may take: 0 to 1 s.
  Duration grace = std::chrono::seconds(1);
  bool wants_verdict = true;  ///< false: the verdict of every loss is `unknown`, and the budget may be shorter
  /// Lets a peer that used to answer fast be lost before the budget ends: when phi has reached its threshold, at the earliest an
  /// interval (and for a verdict 1.5 s more) after the first probe that nobody answered, and only with a verdict that is decided.
  /// Nothing: the budget alone.
  std::optional<PhiAccrual> phi{};
  bool keepalive_only = false;  ///< the kernel's probes alone, see above; no ping, interval or misses of ours

  friend bool operator==(const HeartbeatOptions&, const HeartbeatOptions&) = default;
};

/// What will be done: every value there is, and where the platform can't honour the budget.
struct HeartbeatPlan {
  Duration budget{};  ///< 0: no heartbeat
  Duration interval{};
  std::uint32_t misses = 0;
  Duration grace{};
  bool wants_verdict = true;
  std::optional<PhiAccrual> phi{};
  double phi_deviations = 0;  ///< above the mean of the answers' times: there phi reaches its threshold
  Duration phi_from{};        ///< not before this time has passed since the first probe
  /// Of keepalive_only; 0 else. The kernel counts the first two in whole seconds.
  Duration keepalive_idle{}, keepalive_interval{};
  int keepalive_count = 0;
  Duration user_timeout{};
  /// How long after the last sign of life a loss is told at the latest: the budget and the grace, or what keepalive makes of it.
  Duration told_within{};

  [[nodiscard]] bool is_on() const { return budget != Duration::zero(); }
  friend bool operator==(const HeartbeatPlan&, const HeartbeatPlan&) = default;
};

/// The plan, or Error{operation, EINVAL, what contradicts what}.
[[nodiscard]] Result<HeartbeatPlan> plan_heartbeat(const HeartbeatOptions& options, const char* operation = "heartbeat");

}  // namespace vigil
