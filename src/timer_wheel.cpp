#include "vigil/timer_wheel.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace vigil {

namespace {

// Differences of instants are taken in unsigned arithmetic: two of them may lie further apart than a Duration can say.
std::uint64_t unsigned_count(Instant instant) noexcept { return static_cast<std::uint64_t>(instant.time_since_epoch().count()); }

std::uint64_t rounded_up_quotient(std::uint64_t value, std::uint64_t divisor) noexcept {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

}  // namespace

TimerWheel::TimerWheel(Instant start, Duration tick) noexcept
    : start_(start),
      tick_(static_cast<std::uint64_t>(std::max(tick, Duration(1)).count())),
      last_tick_((unsigned_count(Instant::max()) - unsigned_count(start)) / tick_) {}

TimerWheel::~TimerWheel() {
  while (due_ != nullptr) unlink(*due_);
  while (occupied_levels_ != 0) {
    const Position first = first_occupied();
    unlink(*slots_[first.level][first.slot]);
  }
}

void TimerWheel::arm(TimerNode& node, Instant due) noexcept {
  if (node.armed()) {
    unlink(node);
  } else {
    ++size_;
  }
  // A passed instant goes into the slot of the current tick. That slot was emptied when the tick began; the next advance looks
  // there first.
  node.due_tick_ = std::max(rounded_up_quotient(nanoseconds_since_start(due), tick_), current_tick_);
  place(node);
}

void TimerWheel::cancel(TimerNode& node) noexcept {
  if (!node.armed()) return;
  unlink(node);
  --size_;
}

void TimerWheel::advance(Instant now) noexcept {
  if (now < start_) return;
  const std::uint64_t now_tick = nanoseconds_since_start(now) / tick_;
  if (now_tick < current_tick_) return;

  while (occupied_levels_ != 0) {
    const Position first = first_occupied();
    const std::uint64_t first_tick = first_tick_of(first);
    if (first_tick > now_tick) break;

    TimerNode* list = std::exchange(slots_[first.level][first.slot], nullptr);
    mark_empty(first);
    // Nothing lies between: with the current tick here, every other node still is where position_of() would look for it.
    current_tick_ = first_tick;

    if (first.level == 0) {
      if (due_ == nullptr) {
        due_ = list;
      } else {  // two circles become one, the new nodes behind
        std::swap(due_->previous_->next_, list->previous_->next_);
        std::swap(due_->previous_, list->previous_);
      }
      continue;
    }

    // The cascade. Nodes of one tick are always in one slot, so going from front to back keeps the order in which they were
    // armed.
    list->previous_->next_ = nullptr;
    while (list != nullptr) place(*std::exchange(list, list->next_));
  }
  current_tick_ = now_tick;
}

TimerNode* TimerWheel::take_due() noexcept {
  TimerNode* const node = due_;
  if (node != nullptr) cancel(*node);
  return node;
}

Instant TimerWheel::next_expiry() const noexcept {
  if (due_ != nullptr) return instant_of(current_tick_);
  if (occupied_levels_ == 0) return never_due;
  const Position first = first_occupied();
  const TimerNode* const node = slots_[first.level][first.slot];
  const bool alone = node->next_ == node;
  return instant_of(alone ? node->due_tick_ : first_tick_of(first));
}

Instant TimerWheel::due_instant(const TimerNode& node) const noexcept {
  return node.armed() ? instant_of(node.due_tick_) : never_due;
}

std::uint64_t TimerWheel::nanoseconds_since_start(Instant instant) const noexcept {
  return instant <= start_ ? 0 : unsigned_count(instant) - unsigned_count(start_);
}

Instant TimerWheel::instant_of(std::uint64_t tick) const noexcept {
  if (tick > last_tick_) return never_due;
  return Instant(Duration(static_cast<Duration::rep>(unsigned_count(start_) + tick * tick_)));
}

TimerWheel::Position TimerWheel::position_of(std::uint64_t tick) const noexcept {
  const std::uint64_t difference = tick ^ current_tick_;
  const unsigned level = (static_cast<unsigned>(std::bit_width(difference | 1)) - 1) / digit_bits;
  return {level, static_cast<unsigned>((tick >> (level * digit_bits)) % slots_per_level)};
}

TimerWheel::Position TimerWheel::first_occupied() const noexcept {
  const unsigned level = static_cast<unsigned>(std::countr_zero(occupied_levels_));
  return {level, static_cast<unsigned>(std::countr_zero(occupied_slots_[level]))};
}

std::uint64_t TimerWheel::first_tick_of(Position position) const noexcept {
  const unsigned shift = position.level * digit_bits;
  const std::uint64_t higher_digits = (current_tick_ >> shift) & ~std::uint64_t{slots_per_level - 1};
  return (higher_digits | position.slot) << shift;
}

void TimerWheel::place(TimerNode& node) noexcept {
  const Position position = position_of(node.due_tick_);
  TimerNode*& first = slots_[position.level][position.slot];
  if (first == nullptr) {
    first = node.next_ = node.previous_ = &node;
    occupied_slots_[position.level] |= std::uint64_t{1} << position.slot;
    occupied_levels_ |= std::uint64_t{1} << position.level;
    return;
  }
  TimerNode* const last = first->previous_;
  node.next_ = first;
  node.previous_ = last;
  last->next_ = &node;
  first->previous_ = &node;
}

void TimerWheel::unlink(TimerNode& node) noexcept {
  TimerNode* const remaining = node.next_ == &node ? nullptr : node.next_;
  // A node that waits to be taken is in no slot. The slot looked at then is another's, whose first node is never this one.
  const Position position = position_of(node.due_tick_);
  TimerNode*& first = slots_[position.level][position.slot];
  if (first == &node) {
    first = remaining;
    if (remaining == nullptr) mark_empty(position);
  } else if (due_ == &node) {
    due_ = remaining;
  }
  node.previous_->next_ = node.next_;
  node.next_->previous_ = node.previous_;
  node.next_ = node.previous_ = nullptr;
}

void TimerWheel::mark_empty(Position position) noexcept {
  std::uint64_t& occupied = occupied_slots_[position.level];
  occupied &= ~(std::uint64_t{1} << position.slot);
  if (occupied == 0) occupied_levels_ &= ~(std::uint64_t{1} << position.level);
}

}  // namespace vigil
