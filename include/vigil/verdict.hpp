// What the evidence says of a peer that has missed its heartbeat: whether its process hangs, its host can't be reached, or it
// does not read.
//
// The evidence is what our own kernel knows of a TCP connection (TCP_INFO), sampled while the connection was alive: afterwards
// the kernel has forgotten it. A peer's kernel acknowledges for a process that hangs, and nobody acknowledges for a host that is
// gone. What proves nothing alone: back-off, bytes in flight, an old acknowledgement, young data. A proxy that ends TCP on the
// way acknowledges for a peer that is dead.
//
// Thread: plain values; judge() depends on nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vigil/time.hpp"

namespace vigil {

enum class Verdict : std::uint8_t {
  hung,         ///< its kernel acknowledges what we send, and nobody answers
  unreachable,  ///< nothing of ours gets there: it, or the way to it, is gone
  not_reading,  ///< its kernel answers, and its window is closed: the process reads nothing (also one that hangs with a full
                ///< window)
  unknown,      ///< the evidence decides nothing, or there is none (a Unix socket has none)
};
inline constexpr std::size_t verdict_count = static_cast<std::size_t>(Verdict::unknown) + 1;
[[nodiscard]] const char* to_string(Verdict verdict);

/// One look at a silent connection. The counts "in silence" begin with its first probe, not with the last sign of life before it:
/// what was said in between may have been acknowledged while the peer still lived.
struct Evidence {
  bool known = false;                    ///< false: the platform or the socket has none
  std::uint64_t sent_in_silence = 0;     ///< bytes handed to the kernel from the first probe of this silence on
  bool acknowledged_in_silence = false;  ///< the peer's kernel has acknowledged some of those
  std::uint32_t unacknowledged_segments = 0;
  std::uint32_t not_transmitted_bytes = 0;      ///< the kernel holds them and has not sent them once
  std::uint32_t retransmits = 0;                ///< unanswered, in a row
  std::uint32_t retransmits_in_silence = 0;     ///< answered or not, from the first probe of this silence on
  std::uint32_t probes = 0;                     ///< unanswered window or keepalive probes in a row
  std::optional<std::uint32_t> window_bytes{};  ///< what the peer is ready to take; nothing: not known (Linux before 5.4)
  Duration round_trip{};                        ///< smoothed
  Duration retransmit_timeout{};
  Duration last_acknowledgement{};  ///< how long ago one came
  Duration silence{};               ///< how long the peer has been silent
  Duration without_progress{};      ///< how long ago the count of acknowledged bytes last grew, or the silence began
  double phi = 0;                   ///< the doubt whether it lives (phi_accrual.hpp); 0: not asked for, or too few answers yet

  friend bool operator==(const Evidence&, const Evidence&) = default;
};

/// One JSON object: every field, durations in milliseconds.
[[nodiscard]] std::string to_json(const Evidence& evidence);

/// What the evidence of one look decides; nothing: it is not decided yet, look again. `interval` is the time between two probes,
/// `budget` how long the peer may be silent.
///
/// In this order (each rule from measurements on Linux, where a healthy path had to stay undecided):
/// - none, or a round trip above half the budget (congestion: a healthy peer was silent for 7.5 s behind bulk): undecided
/// - bytes in flight: two retransmissions unanswered are `unreachable`; without any, where what was sent in this silence has been
///   acknowledged within the last max(250 ms, two retransmission timeouts), and not two retransmissions in this silence before
///   that, `hung`: we go on sending, and its kernel acknowledges; else undecided
/// - bytes not even transmitted: with an open window and no progress for max(400 ms, two retransmission timeouts) our own side
///   can't send: `unreachable`. With a closed window: two probes unanswered `unreachable`; none, and one answered in this
///   silence (10 ms in, as the last byte may have brought an acknowledgement, and kernels count in ticks), `not_reading`; one
///   unanswered happens on healthy paths: undecided. Where the window is not known, two probes unanswered decide, and nothing
///   else
/// - all acknowledged, and the last one came within interval + max(250 ms, two retransmission timeouts): `hung`; but after two
///   retransmissions in this silence the path has just healed, and the peer's own back-off may keep its answer: undecided
/// - anything else: undecided
[[nodiscard]] std::optional<Verdict> judge(const Evidence& evidence, Duration interval, Duration budget);

}  // namespace vigil
