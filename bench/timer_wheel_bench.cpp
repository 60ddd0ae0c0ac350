// What arming, cancelling, moving and expiring a timer costs beside N others. Results: bench/results/timer_wheel.md.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "vigil/timer_wheel.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Duration;
using vigil::Instant;
using vigil::TimerNode;
using vigil::TimerWheel;

constexpr std::size_t random_count = 1 << 20;  // a power of two; drawn ahead, so that drawing isn't measured

/// A wheel beside which things are measured: N timers, spread over what servers use, 1 ms to a minute.
class Population {
 public:
  explicit Population(std::size_t count) : nodes(std::make_unique<TimerNode[]>(count)), node_count(count), wheel(now) {
    for (Duration& span : spans) span = Duration(static_cast<std::int64_t>(random() % 60'000'000'000) + 1'000'000);
    for (std::uint32_t& index : indexes) index = static_cast<std::uint32_t>(random() % count);
    for (std::size_t i = 0; i < count; ++i) wheel.arm(nodes[i], now + next_span());
  }

  Duration next_span() { return spans[drawn++ % random_count]; }
  TimerNode& next_node() { return nodes[indexes[chosen++ % random_count]]; }

  std::mt19937_64 random{1};
  std::vector<Duration> spans = std::vector<Duration>(random_count);
  std::vector<std::uint32_t> indexes = std::vector<std::uint32_t>(random_count);
  std::size_t drawn = 0;
  std::size_t chosen = 0;
  std::unique_ptr<TimerNode[]> nodes;
  std::size_t node_count;
  Instant now{1h};
  TimerWheel wheel;
};

/// One more timer comes and goes: a pair of operations.
void arm_and_cancel(benchmark::State& state) {
  TimerNode node;
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    population.wheel.arm(node, population.now + population.next_span());
    population.wheel.cancel(node);
  }
}

/// A timer, chosen at random, moves to another instant: at a million mostly the cache misses of its neighbours.
void refresh_any(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) population.wheel.arm(population.next_node(), population.now + population.next_span());
}

/// The timer that was moved last moves again, 30 s ahead: a busy connection.
void refresh_same(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) population.wheel.arm(population.nodes[0], population.now + 30s);
}

/// All timers are cancelled and armed again, in the order of memory; the time is that of one pair.
void cancel_all_and_arm_all(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    for (std::size_t i = 0; i < population.node_count; ++i) population.wheel.cancel(population.nodes[i]);
    for (std::size_t i = 0; i < population.node_count; ++i) {
      population.wheel.arm(population.nodes[i], population.now + population.next_span());
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

/// What a turn pays when no timer is due: told the time, asked for the end of the next wait.
void advance_nothing_due(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    population.wheel.advance(population.now);
    benchmark::DoNotOptimize(population.wheel.take_due());
    benchmark::DoNotOptimize(population.wheel.next_expiry());
  }
}

/// A timer's whole life in a running loop: the wheel waits until its next expiry, hands out, and what was handed out is armed
/// again. The items are expiries, cascades included; the needless wake-ups are those that handed out nothing.
void expire_and_rearm(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  std::int64_t expired = 0;
  std::int64_t wakes = 0;
  std::int64_t needless = 0;
  for (auto _ : state) {
    population.now = population.wheel.next_expiry();
    population.wheel.advance(population.now);
    ++wakes;
    needless += population.wheel.has_due() ? 0 : 1;
    while (TimerNode* node = population.wheel.take_due()) {
      population.wheel.arm(*node, population.now + population.next_span());
      ++expired;
    }
  }
  state.SetItemsProcessed(expired);
  state.counters["needless_wakes_per_wake"] = static_cast<double>(needless) / static_cast<double>(wakes);
}

/// A year passes in one call and everything is due, in order.
void advance_by_a_year(benchmark::State& state) {
  Population population(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) {
    population.now += 365 * 24h;
    population.wheel.advance(population.now);
    state.PauseTiming();
    while (TimerNode* node = population.wheel.take_due()) population.wheel.arm(*node, population.now + population.next_span());
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

BENCHMARK(arm_and_cancel)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(refresh_any)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(refresh_same)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(cancel_all_and_arm_all)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(advance_nothing_due)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(expire_and_rearm)->Arg(1)->Arg(1'000)->Arg(1'000'000);
BENCHMARK(advance_by_a_year)->Arg(1'000)->Arg(1'000'000)->Iterations(100);

}  // namespace

BENCHMARK_MAIN();
