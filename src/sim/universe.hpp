// What everything in a simulated world shares: the time, what is to happen, chance, and the count of what went wrong.
//
// Thread: the world's.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "vigil/callback.hpp"
#include "vigil/sim.hpp"
#include "vigil/time.hpp"

namespace vigil::sim {

/// What is to happen and when; what is due at the same instant happens in the order in which it was planned.
class Agenda {
 public:
  void add(Instant at, Task task) {
    entries_.push_back({at, ++added_, std::move(task)});
    std::push_heap(entries_.begin(), entries_.end(), later);
  }
  [[nodiscard]] Instant next() const { return entries_.empty() ? never_due : entries_.front().at; }
  /// Of a non-empty one.
  Task take() {
    std::pop_heap(entries_.begin(), entries_.end(), later);
    Task task = std::move(entries_.back().task);
    entries_.pop_back();
    return task;
  }

 private:
  struct Entry {
    Instant at;
    std::uint64_t order;
    Task task;
  };
  static bool later(const Entry& left, const Entry& right) {
    return left.at != right.at ? left.at > right.at : left.order > right.order;
  }

  std::vector<Entry> entries_;  // a heap
  std::uint64_t added_ = 0;
};

struct Segment;

/// A script asks for something that can't be, which is the program's fault and not the world's.
[[noreturn]] void misused(const char* what, std::string_view about);

struct Universe {
  explicit Universe(const WorldOptions& given) : options(given), random(given.seed, given.choices) {}

  void happened(Fault fault) { ++counts[static_cast<std::size_t>(fault)]; }
  /// Whether it happens now, which is counted.
  bool strikes(Fault fault) {
    const double chance = chances[static_cast<std::size_t>(fault)];
    if (chance == 0 || !random.happens(chance)) return false;
    happened(fault);
    return true;
  }
  bool strikes(Fault fault, std::uint64_t& faults) {
    const bool struck = strikes(fault);
    if (struck) ++faults;
    return struck;
  }
  /// Of a fault at which the caller tries again: for ever, if it always came.
  bool strikes_in_a_row(Fault fault, int& times, int most = strikes_in_a_row_max) {
    const bool struck = times < most && strikes(fault);
    times = struck ? times + 1 : 0;
    return struck;
  }
  void trace_segment(const Segment& segment);
  /// So long from now; beyond the end of time: never_due.
  [[nodiscard]] Instant in(Duration length) const { return length > never_due - now ? never_due : now + length; }
  void after(Duration delay, Task task) { agenda.add(in(delay), std::move(task)); }

  /// Everything that happens goes into the fingerprint.
  void mix(std::uint64_t word) {
    digest = (digest ^ word) * 0x9E3779B97F4A7C15U;
    digest ^= digest >> 29;
  }

  WorldOptions options;
  Random random;
  Instant now{std::chrono::hours(1)};
  Agenda agenda;
  std::array<double, fault_count> chances{};
  std::array<std::uint64_t, fault_count> counts{};
  std::uint64_t digest = 0x243F6A8885A308D3U;
  std::uint64_t script_calls = 0;  // tasks of scripts and callbacks of peers: any may have spoken to a reactor that sleeps
  Callback<void(std::string_view)> trace;
};

}  // namespace vigil::sim
