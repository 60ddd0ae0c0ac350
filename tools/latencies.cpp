#include "latencies.hpp"

#include <algorithm>
#include <cmath>

namespace vigil::tools {
namespace {

constexpr double shortest_nanoseconds = 100;
constexpr double longest_nanoseconds = 1e12;
constexpr unsigned bins = 2315;  // ln(1e10) / ln(1.01): one percent each

}  // namespace

Latencies::Latencies() : histogram_(std::tuple(Axis(bins, shortest_nanoseconds, longest_nanoseconds))) {}

void Latencies::record(Duration latency, std::uint64_t times) {
  histogram_(boost::histogram::weight(times), std::max(static_cast<double>(latency.count()), shortest_nanoseconds));
  longest_ = std::max(longest_, latency);
  count_ += times;
}

Duration Latencies::quantile(double fraction) const {
  const auto wanted = std::max<std::uint64_t>(static_cast<std::uint64_t>(std::ceil(fraction * static_cast<double>(count_))), 1);
  std::uint64_t seen = 0;
  for (int bin = 0; bin < static_cast<int>(bins); ++bin) {
    seen += histogram_.at(bin);
    if (seen < wanted) continue;
    const double upper_edge = histogram_.axis().bin(bin).upper();
    return std::min(longest_, Duration(static_cast<std::int64_t>(upper_edge)));
  }
  return longest_;
}

}  // namespace vigil::tools
