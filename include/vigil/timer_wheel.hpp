// Timers by the million: a hierarchical wheel of intrusive nodes. Arming, cancelling and moving a timer cost the same at any
// number of timers, nothing is allocated, and time that passes over empty slots costs nothing.
//
// The promise: a node is never handed out early, and at most one tick late. The wheel rounds a due instant up to the next tick
// and the time it is told down to the last one, both counted from `start`.
//
// It knows no clock and no descriptor: it is told the time through advance(), and says through next_expiry() when it wants to be
// told again. The time told never goes back; an earlier one than before, or than `start`, changes nothing.
//
// Thread: one at a time; no function calls back into user code.
// Ownership: the node belongs to the caller, who embeds it in whatever is timed. While armed it is linked into the wheel, so it
// must neither move nor die: cancel it first. A node is armed in one wheel at a time. Destroying the wheel disarms all its nodes.
//
//   TimerWheel wheel(now);
//   wheel.arm(session.timer, now + 30s);
//   ...                                      // wait until wheel.next_expiry() at most
//   wheel.advance(now);
//   while (TimerNode* node = wheel.take_due()) expire(*node);   // may arm and cancel any node
//
// How it works: a tick number is read as digits of six bits, one level of 64 slots for each. A node sits in the level of the
// highest digit in which its due tick differs from the current tick, in the slot of that digit. So everything in a lower level is
// due before everything in a higher one, slots of one level are due in their order, and one bit scan finds the earliest occupied
// slot, without wrap-around. When time enters a slot of a higher level its nodes move to lower levels (at most once per level in
// a node's life). Eleven levels hold every 64-bit tick, so no instant is beyond the wheel's span; it takes less than 6 KiB.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "vigil/time.hpp"

namespace vigil {

/// One timer. Which object it times is the embedder's knowledge (the node is a member of it).
class TimerNode {
 public:
  TimerNode() = default;
  TimerNode(const TimerNode&) = delete;
  TimerNode& operator=(const TimerNode&) = delete;

  /// True from arm() until the node is cancelled or handed out by take_due(); so also while it waits to be taken.
  [[nodiscard]] bool armed() const noexcept { return next_ != nullptr; }

 private:
  friend class TimerWheel;

  TimerNode* next_ = nullptr;
  TimerNode* previous_ = nullptr;
  std::uint64_t due_tick_ = 0;
};
static_assert(sizeof(TimerNode) == 2 * sizeof(void*) + sizeof(std::uint64_t));

class TimerWheel {
 public:
  /// Ticks are counted from `start`. A tick that is not positive counts as one nanosecond.
  explicit TimerWheel(Instant start, Duration tick = std::chrono::milliseconds(1)) noexcept;

  /// Disarms every node that is still armed: one visit to each.
  ~TimerWheel();

  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;

  /// Arms the node, or moves it if it is armed already, also when it already waits to be taken. An instant that has passed is due
  /// at the next advance(), never in the round of take_due() under way, so a callback that re-arms itself at once can't spin. Any
  /// instant is valid; never_due stays armed for good.
  void arm(TimerNode& node, Instant due) noexcept;

  /// Disarms the node, also when it already waits to be taken. A node that is not armed stays as it is.
  void cancel(TimerNode& node) noexcept;

  /// Tells the time. Nodes that have become due wait for take_due() from now on, behind those that were not taken yet: by due
  /// tick, and within a tick in the order in which they were armed. A node armed for an instant that had passed counts as due at
  /// the tick current then. The cost is that of the nodes moved and of the occupied slots passed, however far the time jumps.
  void advance(Instant now) noexcept;

  /// The next due node, disarmed; nullptr when there is none until advance() finds more.
  [[nodiscard]] TimerNode* take_due() noexcept;

  /// True when take_due() has something to give.
  [[nodiscard]] bool has_due() const noexcept { return due_ != nullptr; }

  /// When advance() should be called next: the end of a wait. Never later than the earliest node's tick; has passed when a node
  /// is due already; never_due when no node is armed. Each advance() at this instant makes progress: it hands out a node or
  /// brings all nodes of a slot at least one level nearer. It is exact when the earliest node lies in the current block of 64
  /// ticks, and when it is alone in its slot. Otherwise it is the start of that slot, because looking for the earliest of many
  /// far nodes would cost a walk over all of them. The price is small and shared by all nodes of the slot: with ticks of 1 ms at
  /// most two wake-ups for nodes 4 s ahead, three for 4 min, four for 4 h.
  [[nodiscard]] Instant next_expiry() const noexcept;

  /// True when the node is armed and its tick is not later than the time last told: it waits to be taken, or was armed for a
  /// passed instant and will be due at the next advance().
  [[nodiscard]] bool is_due(const TimerNode& node) const noexcept { return node.armed() && node.due_tick_ <= current_tick_; }

  /// The instant of the tick at which the node is due; never_due when it is not armed.
  [[nodiscard]] Instant due_instant(const TimerNode& node) const noexcept;

  /// The tick that time last told reached: what was due by then is handed out, or waits to be.
  [[nodiscard]] Instant told() const noexcept { return instant_of(current_tick_); }

  /// Armed nodes, those that wait to be taken included.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr unsigned digit_bits = 6;
  static constexpr unsigned slots_per_level = 1U << digit_bits;
  static constexpr unsigned levels = (64 + digit_bits - 1) / digit_bits;

  struct Position {
    unsigned level;
    unsigned slot;
  };

  [[nodiscard]] std::uint64_t nanoseconds_since_start(Instant instant) const noexcept;
  [[nodiscard]] Instant instant_of(std::uint64_t tick) const noexcept;
  [[nodiscard]] Position position_of(std::uint64_t tick) const noexcept;
  [[nodiscard]] Position first_occupied() const noexcept;
  [[nodiscard]] std::uint64_t first_tick_of(Position position) const noexcept;
  void place(TimerNode& node) noexcept;
  void unlink(TimerNode& node) noexcept;
  void mark_empty(Position position) noexcept;

  Instant start_;
  std::uint64_t tick_;              // nanoseconds
  std::uint64_t last_tick_;         // the last tick that an Instant can express
  std::uint64_t current_tick_ = 0;  // of the time last told
  std::size_t size_ = 0;

  // Lists are circular and doubly linked; what is kept is the first node, or nullptr.
  TimerNode* due_ = nullptr;
  std::uint64_t occupied_levels_ = 0;                   // bit l: some slot of level l is occupied
  std::array<std::uint64_t, levels> occupied_slots_{};  // bit s of word l: slot s of level l is occupied
  std::array<std::array<TimerNode*, slots_per_level>, levels> slots_{};
};

}  // namespace vigil
