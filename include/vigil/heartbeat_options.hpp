// How a connection learns that its peer is gone although nothing says so: one budget, from which the rest follows.
//
// Thread: plain values.
//
//   vigil::Listener<Session> listener(reactor, {.heartbeat = {.budget = 20s, .ping = "ping\n"}});
//
// Any byte received is life. A probe is sent only into a silence: the fixed text `ping`, or what the handler's on_ping_due sends
// (handler.hpp). The first one goes out between half an interval and a whole interval after the last sign of life, drawn anew for
// each silence, so that a million connections don't ping in step; the next ones follow an interval apart. A peer that was silent
// for the whole budget is lost: heartbeat_lost, with a verdict from what our kernel knew of it meanwhile (verdict.hpp). A loop
// that was late or stopped loses nobody: after its first probe the peer has budget - interval to answer.
//
// Two more things are life, where the peer could not say anything else:
// - The acknowledgement of bytes of ours that hold the probe back: until the first probe after the last byte received has been
//   acknowledged itself, or while the peer's window let our kernel transmit only a part. Later ones are none: a hung process's
//   kernel sends them too. While bytes wait in our own queue, no probe is sent. The kernel is asked when a probe is due: progress
//   between two such looks counts as of the latest acknowledgement before the second; before a silence's first look, none does.
// - While reading is held (pause_reading(), or a queue above its high mark), bytes that our kernel received count, though nobody
//   has read them. Once they fill a quarter of our receive buffer, the acknowledgements of the peer's kernel count as well,
//   because more bytes of the peer's may find no room.
//
// A heartbeat ends with the peer's end, with close() and with our own finish(): after our end nothing can be sent, so the peer
// can't be asked any more. For the time after finish() set a receive deadline (Connection::set_timeout).
//
// A Unix socket has no TCP evidence: its peer is probed and lost in the same way, and the verdict is always `unknown`. While
// reading is held, its bytes count as of the look that finds them; and from 277 on it is not lost before we read: they may be as
// many writes, which is all that a socket with Linux's default SO_SNDBUF has room for. A peer with a smaller one may be lost.
//
// keepalive_only is for protocols without a ping, and for TCP: a Unix address is refused. The kernel probes by itself
// (SO_KEEPALIVE, TCP_USER_TIMEOUT; SocketOptions that set these too are refused), and its own answer is what is told:
// network_timed_out, or network_unreachable where the network had said so. It finds a host that is gone, or a way that is. It
// can't find a process that hangs, because that process's kernel answers the probes. And it closes a peer that lives but reads
// nothing for the whole budget while bytes of ours wait for it: TCP_USER_TIMEOUT makes no difference between that and a host that
// is gone.
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
  /// A peer that is silent for this long is lost. Nothing: no heartbeat. Up to 10 years; at least three intervals, and with a
  /// verdict at least an interval and 1.5 s, which two retransmissions need; with phi more, see there.
  std::optional<Duration> budget{};
  /// Between one probe into a silence and the next, from 1 ms. Nothing: budget / (misses + 1), so a quarter of the budget where
  /// misses is not given either; in a budget below 2 s with a verdict less, so that 1.5 s are left. With a verdict and phi, an
  /// interval that follows by itself needs a budget of at least 3 s; with misses = m, of 1.5 s * (m + 1) / (m - 1).
  std::optional<Duration> interval{};
  /// Probes in a row that may go unanswered; at least 2. The interval follows from it, and must not be below 1 ms; where an
  /// interval is given, misses + 1 of them only have to fit into the budget, which alone decides when a peer is lost. Nothing: 3,
  /// or as many as fit.
  std::optional<std::uint32_t> misses{};
  /// What a probe says: anything that the peer must answer, not empty, at most backlog_bytes_max. Nothing: the handler's
  /// on_ping_due sends it; a handler without one is refused.
  std::optional<std::string> ping{};
  /// How long beyond the budget a verdict that is not decided yet may take, from 0 to 1 s; after that it is `unknown`.
  Duration grace = std::chrono::seconds(1);
  bool wants_verdict = true;  ///< false: the verdict of every loss is `unknown`, there is no grace, and the budget may be shorter
  /// Lets a peer that used to answer fast be lost before the budget ends: when phi has reached its threshold, at the earliest an
  /// interval (with a verdict 1.5 s more) after the first probe that nobody answered, and with a verdict only once that is
  /// decided. The budget must leave room for this: two intervals, with a verdict 1.5 s more. Nothing: the budget alone.
  std::optional<PhiAccrual> phi{};
  /// The kernel's probes alone, see above; it takes no ping, interval, misses or phi. The budget is counted in whole seconds, at
  /// least four (HeartbeatPlan::told_within says what comes of it), and at most 18 h: the kernel's first probe must follow within
  /// 32,767 s.
  bool keepalive_only = false;

  friend bool operator==(const HeartbeatOptions&, const HeartbeatOptions&) = default;
};

/// What will be done: every value that follows from the options, and what becomes of the budget where the platform can't keep it.
struct HeartbeatPlan {
  Duration budget{};  ///< 0: no heartbeat
  Duration interval{};
  std::uint32_t misses = 0;
  Duration grace{};
  bool wants_verdict = true;
  std::optional<PhiAccrual> phi{};
  double phi_deviations = 0;  ///< how many standard deviations above the mean of the answers' times phi reaches its threshold
  Duration phi_from{};        ///< how long after the first probe phi may end the connection at the earliest
  /// Of keepalive_only, otherwise 0. The kernel counts the first two in whole seconds.
  Duration keepalive_idle{}, keepalive_interval{};
  int keepalive_count = 0;
  Duration user_timeout{};
  /// How long after the last sign of life a loss is told at the latest, beyond the loop's own delay: the budget and the grace, or
  /// what keepalive makes of the budget, whose whole seconds it rounds down to. With bytes of ours on their way the kernel counts
  /// from the oldest of them that is not acknowledged, which may have left later.
  Duration told_within{};

  [[nodiscard]] bool is_on() const { return budget != Duration::zero(); }
  friend bool operator==(const HeartbeatPlan&, const HeartbeatPlan&) = default;
};

/// The plan, or Error{operation, EINVAL, what contradicts what}.
[[nodiscard]] Result<HeartbeatPlan> plan_heartbeat(const HeartbeatOptions& options, const char* operation = "heartbeat");

}  // namespace vigil
