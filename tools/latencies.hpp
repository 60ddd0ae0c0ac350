// How long things took: a histogram with bins of one percent from 100 ns to 1000 s, and the longest exactly.
//
// Thread: one. Recording allocates nothing.
#pragma once

#include <boost/histogram/axis/regular.hpp>
#include <boost/histogram/histogram.hpp>
#include <boost/histogram/make_histogram.hpp>
#include <cstdint>
#include <tuple>
#include <vector>

#include "vigil/time.hpp"

namespace vigil::tools {

class Latencies {
 public:
  Latencies();

  void record(Duration latency, std::uint64_t times = 1);
  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] Duration longest() const { return longest_; }

  /// The time that `fraction` (0 to 1) of what was recorded did not exceed, at most one percent too high; zero if nothing was.
  [[nodiscard]] Duration quantile(double fraction) const;

 private:
  using Axis = boost::histogram::axis::regular<double, boost::histogram::axis::transform::log>;

  boost::histogram::histogram<std::tuple<Axis>, boost::histogram::dense_storage<std::uint64_t>> histogram_;
  std::uint64_t count_ = 0;
  Duration longest_{};
};

}  // namespace vigil::tools
