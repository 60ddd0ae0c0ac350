// An adaptive threshold for a peer's silence: phi, the doubt whether it lives, grows with the silence and is measured against how
// fast this very peer has answered before (Hayashibara, Defago, Yared, Katayama: "The phi accrual failure detector", 2004).
//
//   phi(t) = -log10(P(an answer takes longer than t)),   P(t) = erfc((t - mean) / (deviation * sqrt(2))) / 2
//
// with the mean and the standard deviation of the last answers, taken as normally distributed: at phi = 1 one judgement in ten
// is wrong, at 8 one in a hundred million, as far as answers go on as before. The paper looks at the time between heartbeats
// that come by themselves; here the peer is asked, so t is the time since the first probe of this silence, and an answer is the
// first byte received after that probe. The window holds the last 64 answers.
//
// Thread: plain values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "vigil/time.hpp"

namespace vigil {

/// When phi may end a connection before its heartbeat's budget does. The budget itself holds whatever phi says; what it must be
/// at least stands in heartbeat_options.hpp.
struct PhiAccrual {
  double threshold = 8;                                       ///< 1 to 100
  std::uint32_t least_answers = 8;                            ///< before this many were measured phi has no say; 2 to 64
  Duration least_deviation = std::chrono::milliseconds(100);  ///< used where the measured one is less; 1 ms to 1 hour

  friend bool operator==(const PhiAccrual&, const PhiAccrual&) = default;
};

/// How long the last answers took.
class AnswerTimes {
 public:
  static constexpr std::size_t window = 64;

  /// Counts in microseconds, and no answer as longer than 71 minutes.
  void add(Duration took);
  [[nodiscard]] std::size_t count() const { return count_; }
  [[nodiscard]] Duration mean() const;       ///< 0 before the first
  [[nodiscard]] Duration deviation() const;  ///< standard deviation, of the window as a whole

 private:
  std::array<std::uint32_t, window> microseconds_{};
  std::uint32_t count_ = 0;
  std::uint32_t next_ = 0;
};

/// The formula above; at most 300.
[[nodiscard]] double phi(Duration elapsed, Duration mean, Duration deviation);

/// The formula solved for time: how many deviations after the mean phi reaches `threshold`.
[[nodiscard]] double phi_deviations(double threshold);

}  // namespace vigil
