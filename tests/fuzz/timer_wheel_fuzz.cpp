// The timer wheel against a list that is searched from end to end, in arithmetic wide enough for every instant: the order in
// which nodes are handed out, never early, at most one tick late, and when the wheel wants to be told the time again.
#include "vigil/timer_wheel.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "expect.hpp"
#include "input.hpp"
#include "target.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Duration;
using vigil::Instant;
using vigil::never_due;
using vigil::TimerNode;
using vigil::TimerWheel;
using vigil::fuzz::expect;
using vigil::fuzz::Input;

__extension__ using Wide = __int128;

constexpr std::size_t node_count = 24;
constexpr std::size_t levels = 11;                      // of a wheel: none is passed twice on the way to a node
constexpr Instant last_told = never_due - Duration(1);  // the clock never reaches the instant that means never

constexpr Wide wide(Instant instant) { return instant.time_since_epoch().count(); }

/// `instant` moved by that much, within what can be told.
Instant moved(Instant instant, Wide by) {
  const Wide sum = std::clamp(wide(instant) + by, wide(Instant::min()), wide(never_due));
  return Instant(Duration(static_cast<Duration::rep>(sum)));
}

struct Entry {
  Instant armed_for;
  Wide tick = 0;            // of its expiry
  std::uint64_t order = 0;  // of arming
  std::uint64_t round = 0;  // of the advance that found it due; 0: none yet

  [[nodiscard]] bool waits_to_be_taken() const { return round != 0; }
};

/// The rules of the header, written down without a wheel.
class Model {
 public:
  Model(Instant start, Duration tick) : start_(wide(start)), tick_(tick.count()) {}

  void arm(std::size_t node, Instant due) {
    const Wide span = std::max<Wide>(wide(due) - start_, 0);
    entries_[node] = Entry{due, std::max((span + tick_ - 1) / tick_, current_), ++armed_, 0};
  }

  void cancel(std::size_t node) { entries_[node].reset(); }

  void advance(Instant now) {
    if (wide(now) < start_ || (wide(now) - start_) / tick_ < current_) return;
    current_ = (wide(now) - start_) / tick_;
    ++rounds_;
    for (auto& entry : entries_) {
      if (entry && !entry->waits_to_be_taken() && entry->tick <= current_) entry->round = rounds_;
    }
  }

  /// The node to be handed out next; node_count: none.
  [[nodiscard]] std::size_t first_due() const {
    std::size_t first = node_count;
    for (std::size_t node = 0; node < node_count; ++node) {
      if (!entries_[node] || !entries_[node]->waits_to_be_taken()) continue;
      if (first == node_count || key(node) < key(first)) first = node;
    }
    return first;
  }

  [[nodiscard]] const std::optional<Entry>& entry(std::size_t node) const { return entries_[node]; }
  [[nodiscard]] Wide current() const { return current_; }

  [[nodiscard]] std::size_t size() const {
    return static_cast<std::size_t>(std::count_if(entries_.begin(), entries_.end(), [](const auto& each) { return !!each; }));
  }

  /// The earliest tick of those that do not wait to be taken yet.
  [[nodiscard]] std::optional<Wide> earliest() const {
    std::optional<Wide> earliest;
    for (const auto& entry : entries_) {
      if (entry && !entry->waits_to_be_taken() && (!earliest || entry->tick < *earliest)) earliest = entry->tick;
    }
    return earliest;
  }

  [[nodiscard]] Instant instant_of(Wide tick) const {
    const Wide nanoseconds = start_ + tick * tick_;
    return nanoseconds > wide(never_due) ? never_due : Instant(Duration(static_cast<Duration::rep>(nanoseconds)));
  }

 private:
  [[nodiscard]] std::tuple<std::uint64_t, Wide, std::uint64_t> key(std::size_t node) const {
    return {entries_[node]->round, entries_[node]->tick, entries_[node]->order};
  }

  Wide start_;
  Wide tick_;
  Wide current_ = 0;
  std::uint64_t armed_ = 0;
  std::uint64_t rounds_ = 0;
  std::array<std::optional<Entry>, node_count> entries_;
};

/// A wheel and the model, driven side by side.
class Comparison {
 public:
  Comparison(Instant start, Duration tick)
      : now_(start), tick_(tick), wheel_(std::make_unique<TimerWheel>(start, tick)), model_(start, tick) {}

  void arm(std::size_t node, Instant due) {
    wheel_->arm(nodes_[node], due);
    model_.arm(node, due);
  }

  void cancel(std::size_t node) {
    wheel_->cancel(nodes_[node]);
    model_.cancel(node);
  }

  void advance(Instant now) {
    now = std::min(now, last_told);
    wheel_->advance(now);
    model_.advance(now);
    if (now < now_) return;
    now_ = now;
    for (std::size_t node = 0; node < node_count; ++node) {
      const auto& entry = model_.entry(node);
      if (!entry || entry->waits_to_be_taken()) continue;
      expect(wide(entry->armed_for) + tick_.count() > wide(now_), "no node is more than one tick late");
    }
  }

  bool take_one() {
    const std::size_t expected = model_.first_due();
    const TimerNode* taken = wheel_->take_due();
    expect(taken == (expected == node_count ? nullptr : &nodes_[expected]),
           "nodes are handed out by round, then by tick, then in the order of arming");
    if (taken == nullptr) return false;
    expect(!taken->armed(), "a node handed out is disarmed");
    expect(model_.entry(expected)->armed_for <= now_, "no node is handed out early");
    model_.cancel(expected);
    return true;
  }

  [[nodiscard]] Instant now() const { return now_; }
  [[nodiscard]] Instant next_expiry() const { return wheel_->next_expiry(); }

  void check() const {
    expect(wheel_->size() == model_.size(), "size() counts the armed nodes");
    const bool has_due = model_.first_due() != node_count;
    expect(wheel_->has_due() == has_due, "has_due() says whether take_due() has something to give");
    for (std::size_t node = 0; node < node_count; ++node) check_node(node);
    check_next_expiry(has_due);
  }

  /// Waits only as long as the wheel says, until nothing is left that an Instant can reach.
  void run_dry() {
    while (take_one()) continue;
    std::size_t needless = 0;
    while (next_expiry() <= last_told) {
      advance(std::max(now_, next_expiry()));
      needless = wheel_->has_due() ? 0 : needless + 1;
      expect(needless <= levels, "each advance at next_expiry() makes progress");
      while (take_one()) continue;
      check();
    }
    for (std::size_t node = 0; node < node_count; ++node) {
      const auto& entry = model_.entry(node);
      expect(!entry || model_.instant_of(entry->tick) > last_told, "a loop that waits for next_expiry() misses no node");
    }
  }

  void destroy_wheel() {
    wheel_.reset();
    for (const TimerNode& node : nodes_) expect(!node.armed(), "destroying the wheel disarms all its nodes");
  }

 private:
  void check_node(std::size_t node) const {
    const auto& entry = model_.entry(node);
    expect(nodes_[node].armed() == entry.has_value(), "a node is armed until it is cancelled or handed out");
    expect(wheel_->is_due(nodes_[node]) == (entry && entry->tick <= model_.current()),
           "is_due() is true of an armed node whose tick has come");
    expect(wheel_->due_instant(nodes_[node]) == (entry ? model_.instant_of(entry->tick) : never_due),
           "due_instant() is the instant of the node's tick");
    if (entry && entry->armed_for == never_due) expect(!entry->waits_to_be_taken(), "never_due stays armed for good");
  }

  void check_next_expiry(bool has_due) const {
    const Instant next = wheel_->next_expiry();
    const std::optional<Wide> earliest = model_.earliest();
    if (has_due) {
      expect(next <= now_, "next_expiry() has passed when a node waits to be taken");
    } else if (!earliest) {
      expect(next == never_due, "next_expiry() is never_due when no node is armed");
    } else {
      const Instant exact = model_.instant_of(*earliest);
      expect(next <= exact, "next_expiry() is never later than the earliest node");
      expect(next > now_ || *earliest == model_.current(), "next_expiry() lies ahead unless a node is due");
      if (*earliest / 64 == model_.current() / 64)
        expect(next == exact, "next_expiry() is exact in the current block of 64 ticks");
      if (model_.size() == 1) expect(next == exact, "next_expiry() is exact for a node alone");
    }
  }

  Instant now_;
  Duration tick_;
  std::array<TimerNode, node_count> nodes_;
  std::unique_ptr<TimerWheel> wheel_;
  Model model_;
};

Wide some_span(Input& input, Duration tick) {
  const Wide span = input.of_any_size(62);
  return input.flag() ? span : span / tick.count() * tick.count();
}

Instant some_due(Input& input, Instant now, Duration tick) {
  switch (input.below(8)) {
    case 0:
      return never_due;
    case 1:
      return moved(never_due, -some_span(input, tick));
    case 2:
      return moved(now, -some_span(input, tick));
    case 3:
      return Instant::min();
    case 4:  // within the nearest ticks, where the edges are
      return moved(now, Wide{tick.count()} * static_cast<Wide>(input.below(130)) + static_cast<Wide>(input.below(3)) - 1);
    default:
      return moved(now, some_span(input, tick));
  }
}

Instant some_start(Input& input) {
  const auto distance = static_cast<Duration::rep>(input.of_any_size(63));
  const Instant start = input.flag() ? Instant(Duration(distance)) : Instant(-Duration(distance));
  return std::min(start, last_told);
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static constexpr std::array<Duration, 7> ticks = {1ms, 1ns, 7ns, 1us, 999'983ns, 1s, 24h};
  Input input(data, size);
  const Duration tick = input.one_of(ticks);
  Comparison comparison(some_start(input), tick);
  while (!input.empty()) {
    switch (input.below(8)) {
      case 0:
      case 1:
      case 2: {
        const std::size_t node = input.below(node_count);
        comparison.arm(node, some_due(input, comparison.now(), tick));
        break;
      }
      case 3:
        comparison.cancel(input.below(node_count));
        break;
      case 4:
        comparison.advance(moved(comparison.now(), some_span(input, tick)));
        break;
      case 5:
        comparison.advance(std::max(comparison.now(), comparison.next_expiry()));
        break;
      case 6:
        comparison.advance(moved(comparison.now(), input.flag() ? 0 : -some_span(input, tick)));
        break;
      default:
        for (std::size_t left = input.below(node_count + 1); left > 0 && comparison.take_one(); --left) continue;
        break;
    }
    comparison.check();
  }
  if (size % 2 == 0) comparison.run_dry();
  comparison.destroy_wheel();
  return 0;
}
