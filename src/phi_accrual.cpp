#include "vigil/phi_accrual.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

namespace vigil {
namespace {

/// Of a normally distributed value, by how many deviations it lies above the mean.
double phi_of(double deviations) { return -std::log10(std::erfc(deviations / std::numbers::sqrt2) / 2); }

}  // namespace

void AnswerTimes::add(Duration took) {
  const auto microseconds = std::chrono::floor<std::chrono::microseconds>(took).count();
  microseconds_[next_] = static_cast<std::uint32_t>(std::clamp<std::int64_t>(microseconds, 0, UINT32_MAX));
  next_ = (next_ + 1) % window;
  count_ = std::min<std::uint32_t>(count_ + 1, window);
}

Duration AnswerTimes::mean() const {
  if (count_ == 0) return {};
  std::uint64_t sum = 0;
  for (const std::uint32_t took : std::span(microseconds_).first(count_)) sum += took;
  return std::chrono::microseconds(sum / count_);
}

Duration AnswerTimes::deviation() const {
  if (count_ == 0) return {};
  const double middle = static_cast<double>(std::chrono::duration_cast<std::chrono::microseconds>(mean()).count());
  double squares = 0;
  for (const std::uint32_t took : std::span(microseconds_).first(count_)) squares += (took - middle) * (took - middle);
  return std::chrono::microseconds(std::llround(std::sqrt(squares / count_)));
}

double phi(Duration elapsed, Duration mean, Duration deviation) {
  constexpr double most = 300;  // about where erfc comes to the end of a double's range
  const double deviations =
      static_cast<double>((elapsed - mean).count()) / static_cast<double>(std::max<std::int64_t>(deviation.count(), 1));
  return std::min(phi_of(deviations), most);
}

double phi_deviations(double threshold) {
  double low = -40, high = 40;  // phi grows from 0 to beyond every double between them
  while (high - low > 1e-9) {
    const double middle = (low + high) / 2;
    (phi_of(middle) < threshold ? low : high) = middle;
  }
  return high;
}

}  // namespace vigil
