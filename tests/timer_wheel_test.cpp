#include "vigil/timer_wheel.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using vigil::Duration;
using vigil::Instant;
using vigil::never_due;
using vigil::TimerNode;
using vigil::TimerWheel;

namespace {

constexpr Duration year = 365 * 24h;

constexpr Instant at(Duration since_epoch) { return Instant(since_epoch); }

/// An instant that far away, or the last one when there is none.
Instant later_by(Instant instant, Duration span) {
  const bool room = instant <= Instant() || span <= Instant::max() - instant;
  return room ? instant + span : Instant::max();
}

std::vector<const TimerNode*> take_all(TimerWheel& wheel) {
  std::vector<const TimerNode*> taken;
  while (const TimerNode* node = wheel.take_due()) taken.push_back(node);
  return taken;
}

using Nodes = std::vector<const TimerNode*>;

}  // namespace

TEST_CASE("timer wheel: a node is three words and can't be copied") {
  CHECK(sizeof(TimerNode) == 24);
  CHECK_FALSE(std::is_copy_constructible_v<TimerNode>);
  CHECK_FALSE(std::is_move_constructible_v<TimerNode>);
  CHECK(sizeof(TimerWheel) < 6 * 1024);
}

TEST_CASE("timer wheel: an empty wheel wants to be told nothing") {
  TimerWheel wheel(at(5s));

  CHECK(wheel.next_expiry() == never_due);
  wheel.advance(at(10s));
  CHECK_FALSE(wheel.has_due());
  CHECK(wheel.take_due() == nullptr);
  CHECK(wheel.size() == 0);
}

TEST_CASE("timer wheel: a node armed on a tick is due at its instant and not a nanosecond before") {
  TimerNode node;
  TimerWheel wheel(at(0s));

  wheel.arm(node, at(10ms));

  CHECK(node.armed());
  CHECK(wheel.size() == 1);
  CHECK(wheel.due_instant(node) == at(10ms));
  CHECK(wheel.next_expiry() == at(10ms));
  wheel.advance(at(10ms - 1ns));
  CHECK_FALSE(wheel.has_due());
  CHECK_FALSE(wheel.is_due(node));
  wheel.advance(at(10ms));
  CHECK(wheel.has_due());
  CHECK(wheel.is_due(node));
  CHECK(node.armed());
  CHECK(wheel.take_due() == &node);
  CHECK_FALSE(node.armed());
  CHECK(wheel.size() == 0);
  CHECK(wheel.due_instant(node) == never_due);
}

TEST_CASE("timer wheel: between two ticks a node is rounded up, the time told is rounded down, both from the start") {
  const Instant start = at(1234567ns);
  TimerNode node;
  TimerWheel wheel(start);

  wheel.arm(node, start + 3ms + 1ns);

  CHECK(wheel.due_instant(node) == start + 4ms);
  wheel.advance(start + 4ms - 1ns);
  CHECK_FALSE(wheel.has_due());
  wheel.advance(start + 4ms);
  CHECK(wheel.take_due() == &node);
}

TEST_CASE("timer wheel: a node armed for an instant that has passed is due at the next advance, also without time going on") {
  TimerNode before_start, passed, present;
  TimerWheel wheel(at(1s));
  wheel.arm(before_start, at(0s));
  CHECK(wheel.next_expiry() <= at(1s));
  CHECK_FALSE(wheel.has_due());
  wheel.advance(at(2s));
  CHECK(wheel.take_due() == &before_start);

  wheel.arm(passed, Instant::min());
  wheel.arm(present, at(2s));

  CHECK(wheel.next_expiry() == at(2s));
  CHECK_FALSE(wheel.has_due());
  wheel.advance(at(2s));
  CHECK(take_all(wheel) == Nodes{&passed, &present});
}

TEST_CASE("timer wheel: a node that re-arms itself for now from its own expiry is not handed out twice in one round") {
  TimerNode node;
  TimerWheel wheel(at(0s));
  wheel.arm(node, at(5ms));
  wheel.advance(at(7ms));

  int rounds = 0;
  while (TimerNode* due = wheel.take_due()) {
    wheel.arm(*due, at(7ms));
    REQUIRE(++rounds == 1);
  }

  CHECK(wheel.next_expiry() <= at(7ms));
  wheel.advance(at(7ms));
  CHECK(wheel.take_due() == &node);
}

TEST_CASE("timer wheel: time that goes back changes nothing") {
  TimerNode passed, ahead;
  TimerWheel wheel(at(100ms));
  wheel.arm(passed, at(100ms));
  wheel.advance(at(99ms));
  CHECK_FALSE(wheel.has_due());

  wheel.advance(at(200ms));
  CHECK(wheel.take_due() == &passed);
  wheel.arm(passed, at(150ms));
  wheel.arm(ahead, at(201ms));
  wheel.advance(at(120ms));
  wheel.advance(at(140ms));
  CHECK_FALSE(wheel.has_due());
  wheel.advance(at(201ms));

  CHECK(take_all(wheel) == Nodes{&passed, &ahead});
}

TEST_CASE(
    "timer wheel: nodes come by due tick, and within a tick in the order they were armed, however far away they were then") {
  TimerNode far_first, far_second, near, earlier, later;
  TimerWheel wheel(at(0s));
  wheel.arm(later, at(300s + 1ms));
  wheel.arm(far_first, at(300s));
  wheel.arm(far_second, at(300s - 1us));
  wheel.advance(at(299s));
  wheel.arm(near, at(300s));
  wheel.arm(earlier, at(300s - 1ms));

  SUBCASE("in one jump") { wheel.advance(at(400s)); }
  SUBCASE("in steps of a tick") {
    for (Instant now = at(299s); now <= at(301s); now += 1ms) wheel.advance(now);
  }

  CHECK(take_all(wheel) == Nodes{&earlier, &far_first, &far_second, &near, &later});
}

TEST_CASE("timer wheel: nodes not taken yet stay in front of those that become due later") {
  TimerNode first, second, third;
  TimerWheel wheel(at(0s));
  wheel.arm(second, at(1ms));
  wheel.arm(third, at(2ms));
  wheel.advance(at(1ms));
  wheel.arm(first, at(0ms));  // passed: counts as due at the current tick
  CHECK(wheel.next_expiry() <= at(1ms));

  wheel.advance(at(2ms));

  CHECK(take_all(wheel) == Nodes{&second, &first, &third});
}

TEST_CASE("timer wheel: arming an armed node moves it") {
  TimerNode node;
  TimerWheel wheel(at(0s));
  wheel.arm(node, at(10ms));

  wheel.arm(node, at(10s));
  CHECK(wheel.size() == 1);
  wheel.advance(at(9s));
  CHECK_FALSE(wheel.has_due());
  wheel.arm(node, at(9s + 5ms));
  wheel.advance(at(9s + 5ms));

  CHECK(wheel.take_due() == &node);
  CHECK(wheel.next_expiry() == never_due);
}

TEST_CASE("timer wheel: a cancelled node never comes, and cancelling twice is nothing") {
  TimerNode cancelled, other, never_armed;
  TimerWheel wheel(at(0s));
  wheel.arm(cancelled, at(10ms));
  wheel.arm(other, at(10ms));

  wheel.cancel(cancelled);
  wheel.cancel(cancelled);
  wheel.cancel(never_armed);

  CHECK_FALSE(cancelled.armed());
  CHECK(wheel.size() == 1);
  wheel.advance(at(1s));
  CHECK(take_all(wheel) == Nodes{&other});
  wheel.arm(cancelled, at(2s));
  wheel.cancel(cancelled);
  CHECK(wheel.next_expiry() == never_due);
}

TEST_CASE("timer wheel: what is handed out may cancel and re-arm the others that are due in the same round") {
  std::array<TimerNode, 6> nodes;
  TimerWheel wheel(at(0s));
  for (TimerNode& node : nodes) wheel.arm(node, at(3ms));
  wheel.advance(at(3ms));

  REQUIRE(wheel.take_due() == &nodes[0]);
  wheel.cancel(nodes[1]);         // the next one
  wheel.arm(nodes[3], at(4ms));   // one in the middle, to later
  wheel.arm(nodes[5], at(1ms));   // the last, to an instant that has passed
  wheel.arm(nodes[0], at(100s));  // itself
  CHECK(wheel.size() == 5);

  CHECK(take_all(wheel) == Nodes{&nodes[2], &nodes[4]});
  wheel.advance(at(3ms));
  CHECK(take_all(wheel) == Nodes{&nodes[5]});
  wheel.advance(at(4ms));
  CHECK(take_all(wheel) == Nodes{&nodes[3]});
  CHECK(wheel.size() == 1);
  wheel.advance(at(100s));
  CHECK(take_all(wheel) == Nodes{&nodes[0]});
}

TEST_CASE("timer wheel: cancelling the last node that is due leaves nothing to take") {
  TimerNode node, bystander;
  TimerWheel wheel(at(0s));
  wheel.arm(node, at(3ms));
  wheel.advance(at(3ms));
  wheel.arm(bystander, at(3ms));  // into the slot the due node came from

  wheel.cancel(node);

  CHECK_FALSE(wheel.has_due());
  CHECK(wheel.take_due() == nullptr);
  wheel.advance(at(3ms));
  CHECK(take_all(wheel) == Nodes{&bystander});
}

TEST_CASE("timer wheel: a dying wheel disarms its nodes, wherever they are") {
  TimerNode due, passed, near, far, unreachable, cancelled;
  {
    TimerWheel wheel(at(0s));
    wheel.arm(due, at(1ms));
    wheel.advance(at(1ms));
    wheel.arm(passed, at(0s));
    wheel.arm(near, at(5ms));
    wheel.arm(far, at(year));
    wheel.arm(unreachable, Instant::max());
    wheel.arm(cancelled, at(5ms));
    wheel.cancel(cancelled);
    CHECK(wheel.size() == 5);
  }

  for (const TimerNode* node : {&due, &passed, &near, &far, &unreachable, &cancelled}) CHECK_FALSE(node->armed());
  TimerWheel next(at(0s));
  next.arm(far, at(1ms));  // a disarmed node is as good as new
  next.advance(at(1ms));
  CHECK(next.take_due() == &far);
}

TEST_CASE("timer wheel: the last instants are valid, and a node armed for never stays armed") {
  TimerNode never, last_tick, last_nanosecond;
  TimerWheel wheel(at(-year));
  wheel.arm(never, never_due);
  CHECK(wheel.next_expiry() == never_due);
  wheel.arm(last_tick, Instant::max() - 1ms);

  CHECK(wheel.size() == 2);
  CHECK(wheel.due_instant(never) == never_due);
  wheel.advance(Instant::max() - 1ms - 1ns);
  CHECK_FALSE(wheel.has_due());
  wheel.advance(Instant::max());
  CHECK(take_all(wheel) == Nodes{&last_tick});
  CHECK(never.armed());

  TimerWheel exact(Instant::min(), 1ns);  // every bit of the tick number is in use
  exact.arm(last_nanosecond, Instant::max());
  exact.advance(Instant::max() - 1ns);
  CHECK_FALSE(exact.has_due());
  exact.advance(Instant::max());
  CHECK(take_all(exact) == Nodes{&last_nanosecond});
}

TEST_CASE("timer wheel: a tick that is not positive counts as one nanosecond") {
  for (const Duration tick : {Duration(0), Duration(-1ms), Duration::min()}) {
    TimerNode node;
    TimerWheel wheel(at(0s), tick);
    wheel.arm(node, at(7ns));
    wheel.advance(at(6ns));
    CHECK_FALSE(wheel.has_due());
    wheel.advance(at(7ns));
    CHECK(wheel.take_due() == &node);
  }
}

TEST_CASE("timer wheel: a jump of years costs the nodes it moves and not the ticks it skips") {
  // 200 years are 6e18 ticks: walking over them, or over blocks of 64 of them, would not end within anybody's patience.
  constexpr std::size_t count = 1000;
  const auto nodes = std::make_unique<TimerNode[]>(count);
  TimerWheel wheel(at(0s), 1ns);
  for (std::size_t i = 0; i < count; ++i) wheel.arm(nodes[count - 1 - i], at(static_cast<std::int64_t>(count - i) * (year / 10)));

  wheel.advance(at(200 * year));

  CHECK(wheel.next_expiry() <= at(200 * year));
  for (std::size_t i = 0; i < count; ++i) REQUIRE(wheel.take_due() == &nodes[i]);
  CHECK_FALSE(wheel.has_due());
  wheel.advance(at(290 * year));
  CHECK(wheel.next_expiry() == never_due);
}

TEST_CASE("timer wheel: a lone timer wakes nobody before its tick") {
  for (const Duration span : {Duration(63ms), Duration(64ms), Duration(30s), Duration(24h), year, 10 * year}) {
    TimerNode node;
    TimerWheel wheel(at(123ns));
    wheel.arm(node, at(span));
    CHECK(wheel.next_expiry() == wheel.due_instant(node));
    wheel.advance(wheel.next_expiry());
    CHECK(wheel.take_due() == &node);
  }
}

TEST_CASE("timer wheel: waiting until the next expiry takes as many needless wake-ups per node as the header says") {
  struct Row {
    Duration span;
    int needless_max;
  };
  for (const Row& row : {Row{64ms, 1}, Row{4096ms, 2}, Row{262144ms, 3}, Row{16777216ms, 4}}) {
    CAPTURE(row.span.count());
    for (const Duration start : {Duration(0s), Duration(16777216ms - 50ms), Duration((1 << 30) * 1ms) - 3ms}) {
      TimerNode node, neighbour;  // neighbours one tick apart share every slot for as long as possible
      TimerWheel wheel(at(0s));
      wheel.advance(at(start));
      wheel.arm(node, at(start + row.span - 2ms));
      wheel.arm(neighbour, at(start + row.span - 1ms));

      int needless = 0;
      for (;;) {
        const Instant wake = wheel.next_expiry();
        REQUIRE(wake <= wheel.due_instant(node));
        wheel.advance(wake);
        if (wheel.has_due()) break;
        REQUIRE(++needless <= row.needless_max);
      }
      CHECK(wheel.take_due() == &node);
    }
  }
}

namespace {

/// The same rules, written down without a wheel: a sorted list by due tick, equal ticks in the order of arming.
class Model {
 public:
  Model(Instant start, Duration tick, std::size_t nodes)
      : start_(start), tick_(static_cast<std::uint64_t>(tick.count())), entries_(nodes) {}

  void arm(std::size_t node, Instant due) {
    cancel(node);
    const std::uint64_t span = since_start(due);
    const std::uint64_t tick = span / tick_ + (span % tick_ == 0 ? 0 : 1);
    entries_[node] = {waiting_.emplace(std::max(tick, current_), node), false};
  }

  void cancel(std::size_t node) {
    if (!entries_[node]) return;
    (entries_[node]->is_due ? due_ : waiting_).erase(entries_[node]->where);
    entries_[node].reset();
  }

  void advance(Instant now) {
    current_ = since_start(now) / tick_;
    while (!waiting_.empty() && waiting_.begin()->first <= current_) {
      const auto [tick, node] = *waiting_.begin();
      waiting_.erase(waiting_.begin());
      // Rounds come one behind the other: what was left over from the last one stays in front.
      entries_[node] = {due_.emplace_hint(due_.end(), std::max(tick, due_.empty() ? 0 : due_.rbegin()->first), node), true};
    }
  }

  std::optional<std::size_t> take_due() {
    if (due_.empty()) return std::nullopt;
    const std::size_t node = due_.begin()->second;
    cancel(node);
    return node;
  }

  [[nodiscard]] bool armed(std::size_t node) const { return entries_[node].has_value(); }
  [[nodiscard]] bool has_due() const { return !due_.empty(); }
  [[nodiscard]] std::size_t size() const { return waiting_.size() + due_.size(); }
  [[nodiscard]] std::optional<std::uint64_t> earliest_waiting() const {
    return waiting_.empty() ? std::nullopt : std::optional(waiting_.begin()->first);
  }
  [[nodiscard]] std::uint64_t current() const { return current_; }
  [[nodiscard]] std::uint64_t since_start(Instant instant) const {
    if (instant <= start_) return 0;
    return static_cast<std::uint64_t>(instant.time_since_epoch().count()) -
           static_cast<std::uint64_t>(start_.time_since_epoch().count());
  }

 private:
  using List = std::multimap<std::uint64_t, std::size_t>;
  struct Entry {
    List::iterator where;
    bool is_due;
  };

  Instant start_;
  std::uint64_t tick_;
  std::uint64_t current_ = 0;
  List waiting_;
  List due_;
  std::vector<std::optional<Entry>> entries_;
};

std::uint64_t chosen_seed() {
  if (const char* given = std::getenv("VIGIL_TEST_SEED")) return std::strtoull(given, nullptr, 10);
  return std::random_device{}();
}

/// Drives a wheel and the model side by side and checks, beside their agreement, the promise itself in nanoseconds.
class Comparison {
 public:
  static constexpr std::size_t node_count = 200;

  Comparison(std::uint64_t seed, Instant start, Duration tick)
      : random_(seed), now_(start), tick_(tick), wheel_(start, tick), model_(start, tick, node_count) {}

  void step() {
    switch (below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
      case 6:
        arm(any_node());
        break;
      case 7:
      case 8:
        cancel(any_node());
        break;
      case 9:
      case 10:
        advance(now_);
        break;
      case 11:
      case 12:
      case 13:
        advance(later_by(now_, some_span()));
        break;
      case 14:
        advance(std::max(now_, wheel_.next_expiry()));
        break;
      default:
        take();
        break;
    }
    check_state();
  }

  /// Waits only as long as the wheel says, until nothing is left that an Instant can reach.
  void run_dry() {
    take();
    for (std::uint64_t wakes = 0; wheel_.next_expiry() != never_due; ++wakes) {
      REQUIRE(wakes < 12 * node_count);
      REQUIRE((wheel_.next_expiry() > now_ || wakes == 0));
      advance(std::max(now_, wheel_.next_expiry()));
      while (take_one()) continue;
    }
    check_state();
  }

 private:
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  std::size_t any_node() { return below(node_count); }

  /// Spans of every size, the small ones and the exact ticks often.
  Duration some_span() {
    const std::uint64_t bits = below(8) == 0 ? below(63) : below(40);
    const Duration span(static_cast<std::int64_t>(random_() & ((std::uint64_t{1} << bits) - 1)));
    return below(3) == 0 ? span / tick_ * tick_ : span;
  }

  Instant some_due() {
    switch (below(12)) {
      case 0:
        return Instant::max() - some_span();
      case 1:
        return Instant::max();
      case 2:
        return now_ - Duration(1000);
      case 3:
        return now_;
      case 4:
        return Instant::min();
      default:
        return later_by(now_, some_span());
    }
  }

  void arm(std::size_t node) {
    const Instant due = some_due();
    wheel_.arm(nodes_[node], due);
    model_.arm(node, due);
    armed_for_[node] = due;
  }

  void cancel(std::size_t node) {
    wheel_.cancel(nodes_[node]);
    model_.cancel(node);
  }

  void advance(Instant now) {
    now_ = now;
    wheel_.advance(now);
    model_.advance(now);
    for (std::size_t node = 0; node < node_count; ++node) {
      if (!nodes_[node].armed()) continue;
      const bool at_least_a_tick_late = now - tick_ >= armed_for_[node];
      if (at_least_a_tick_late) REQUIRE(wheel_.is_due(nodes_[node]));
      if (now < armed_for_[node]) REQUIRE_FALSE(wheel_.is_due(nodes_[node]));
    }
  }

  bool take_one() {
    const TimerNode* taken = wheel_.take_due();
    const std::optional<std::size_t> expected = model_.take_due();
    REQUIRE(taken == (expected ? &nodes_[*expected] : nullptr));
    if (!expected) return false;
    REQUIRE(armed_for_[*expected] <= now_);  // never early
    return true;
  }

  /// One round as a loop would do it, with callbacks that meddle; now and then it stops half way.
  void take() {
    while (take_one()) {
      if (below(4) == 0) cancel(any_node());
      if (below(4) == 0) arm(any_node());
      if (below(50) == 0) return;
    }
  }

  void check_state() {
    REQUIRE(wheel_.size() == model_.size());
    REQUIRE(wheel_.has_due() == model_.has_due());
    const std::size_t node = any_node();
    REQUIRE(nodes_[node].armed() == model_.armed(node));
    if (nodes_[node].armed() && armed_for_[node] > now_) REQUIRE(wheel_.due_instant(nodes_[node]) >= armed_for_[node]);

    const Instant next = wheel_.next_expiry();
    const std::optional<std::uint64_t> earliest = model_.earliest_waiting();
    if (model_.has_due() || (earliest && *earliest == model_.current())) {
      REQUIRE(next <= now_);
    } else if (!earliest) {
      REQUIRE(next == never_due);
    } else {
      REQUIRE((next > now_ || next == never_due));
      const bool expressible = *earliest <= model_.since_start(Instant::max()) / static_cast<std::uint64_t>(tick_.count());
      if (expressible) REQUIRE(model_.since_start(next) <= *earliest * static_cast<std::uint64_t>(tick_.count()));
      const bool in_lowest_level = *earliest / 64 == model_.current() / 64;
      if (expressible && in_lowest_level) {
        REQUIRE(model_.since_start(next) == *earliest * static_cast<std::uint64_t>(tick_.count()));
      }
    }
  }

  std::mt19937_64 random_;
  Instant now_;
  Duration tick_;
  std::array<TimerNode, node_count> nodes_;
  std::array<Instant, node_count> armed_for_{};
  TimerWheel wheel_;
  Model model_;
};

}  // namespace

TEST_CASE(
    "timer wheel: hundreds of thousands of random operations agree with a sorted list, never early, at most one tick late") {
  const std::uint64_t seed = chosen_seed();
  INFO("replay with VIGIL_TEST_SEED=" << std::to_string(seed));
  MESSAGE("seed " << std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::array<Duration, 7> ticks = {1ms, 1ns, 7ns, 1us, 999983ns, 1s, 24h};

  // A huge jump uses up the range of Instant soon, so there are many short lives rather than a few long ones.
  for (int life = 0; life < 700; ++life) {
    const Duration tick = ticks[static_cast<std::size_t>(life) % ticks.size()];
    const int scale = static_cast<int>(random() % 62);
    const Duration offset(static_cast<std::int64_t>(random() >> (63 - scale) >> 1));
    const Instant start = random() % 4 == 0 ? at(-offset) : at(offset);
    CAPTURE(life);
    CAPTURE(tick.count());
    CAPTURE(start.time_since_epoch().count());
    Comparison comparison(random(), start, tick);
    for (int step = 0; step < 300; ++step) comparison.step();
    comparison.run_dry();
  }
}
