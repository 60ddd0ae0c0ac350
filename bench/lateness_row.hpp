// What bench/lateness.cpp found out of one kind of deadline: the row it makes of it, and the targets it holds it against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "lateness_peers.hpp"

namespace lateness {

using namespace std::chrono_literals;

/// What the command line says.
struct Options {
  std::size_t count = 1200;
  std::uint64_t seed = 0;
  bool json = false;
};
inline Options options;

/// Draws the same for the same seed, whichever other kinds were run before.
inline Random random_for(std::string_view name) {
  std::seed_seq mixed{options.seed, static_cast<std::uint64_t>(std::hash<std::string_view>()(name))};
  return Random(mixed);
}

struct Told {
  Span from;           // what the deadline runs from happened in between
  Duration timeout{};  // 0: to be told at once
  Instant at{};
  Duration allowance{};
};

struct Targets {
  Duration median = 2ms;
  Duration p99 = 10ms;
};

struct Row {
  std::string name;
  std::vector<Told> told{};
  std::size_t wrong_reason = 0;
  std::size_t left_out = 0;  // what a deadline ran from can't be known
  Duration loop_delay{};     // the reactor's worst
  Targets targets{};
};

inline std::vector<std::string> misses;  // the targets that were missed
inline bool failed = false;              // a deadline was early, or ended for another reason than its own

inline Duration at_rank(const std::vector<Duration>& sorted, double share) {
  if (sorted.empty()) return {};
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

inline double milliseconds(Duration duration) { return static_cast<double>(duration.count()) / 1e6; }

inline void print_heading() {
  if (options.json) return;
  std::printf("%-34s %9s %8s %6s %8s   %8s %8s %8s   %8s %8s   %10s\n", "", "", "left", "", "", "late p50", "p99", "max",
              "doubt p50", "max", "loop delay");
  std::printf("%-34s %9s %8s %6s %8s   %8s %8s %8s   %8s %8s   %10s\n", "", "told", "out", "early", "in doubt", "ms", "ms", "ms",
              "ms", "ms", "max, ms");
}

inline void print(const Row& row) {
  std::vector<Duration> late;
  std::vector<Duration> doubt;
  std::size_t early = 0;
  std::size_t in_doubt = 0;
  for (const Told& told : row.told) {
    const Instant due = told.from.before + told.timeout;
    if (told.at < due) ++early;
    if (told.timeout != Duration::zero() && told.at >= due && told.at < told.from.after + told.timeout) ++in_doubt;
    late.push_back(told.at - due - told.allowance);
    doubt.push_back(told.from.after - told.from.before);
  }
  std::sort(late.begin(), late.end());
  std::sort(doubt.begin(), doubt.end());
  const Duration median = at_rank(late, 0.5);
  const Duration p99 = at_rank(late, 0.99);
  const Duration worst = at_rank(late, 1);
  if (options.json) {
    std::printf(
        "{\"event\":\"lateness\",\"kind\":\"%s\",\"told\":%zu,\"early\":%zu,\"in_doubt\":%zu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,"
        "\"max_ms\":%.3f,\"doubt_p50_ms\":%.3f,\"doubt_max_ms\":%.3f,\"loop_delay_max_ms\":%.3f,\"wrong_reason\":%zu,"
        "\"left_out\":%zu}\n",
        row.name.c_str(), row.told.size(), early, in_doubt, milliseconds(median), milliseconds(p99), milliseconds(worst),
        milliseconds(at_rank(doubt, 0.5)), milliseconds(at_rank(doubt, 1)), milliseconds(row.loop_delay), row.wrong_reason,
        row.left_out);
  } else {
    std::printf("%-34s %9zu %8zu %6zu %8zu   %8.3f %8.3f %8.3f   %8.3f %8.3f   %10.3f\n", row.name.c_str(), row.told.size(),
                row.left_out, early, in_doubt, milliseconds(median), milliseconds(p99), milliseconds(worst),
                milliseconds(at_rank(doubt, 0.5)), milliseconds(at_rank(doubt, 1)), milliseconds(row.loop_delay));
  }
  std::fflush(stdout);
  const auto missed = [&](const std::string& what) { misses.push_back(row.name + ": " + what); };
  if (early != 0) missed("none early, but " + std::to_string(early) + " were");
  if (row.wrong_reason != 0) missed("its own reason for all, but " + std::to_string(row.wrong_reason) + " had another");
  if (row.told.size() < 1000) missed("at least 1,000 told");
  if (median > row.targets.median) missed("p50 at most " + std::to_string(row.targets.median / 1ms) + " ms");
  if (p99 > row.targets.p99) missed("p99 at most " + std::to_string(row.targets.p99 / 1ms) + " ms");
  if (early != 0 || row.wrong_reason != 0) failed = true;
}

}  // namespace lateness
