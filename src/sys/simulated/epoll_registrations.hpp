// What one epoll descriptor knows: who is registered for what, and who has something to say. It tells of readiness and knows
// nothing of sockets: their state is asked for as a set of poll(2)'s bits, which are epoll(7)'s too.
//
// As the kernel does it: edge-triggered entries are told once after each wake-up, with the state they have when they are told, or
// not at all if it has nothing to say by then; level-triggered ones as long as the state lasts; errors and hang-ups can't be
// masked; entries are told in the order in which they became ready, and what finds no room waits.
#pragma once

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <set>
#include <utility>

namespace vigil::sys {

class EpollRegistrations {
 public:
  /// epoll_ctl. `state` is what the descriptor has to say now: an entry that is added or changed is told at once.
  int control(int operation, int descriptor, const epoll_event* event, std::uint32_t state) {
    const auto entry = entries_.find(descriptor);
    switch (operation) {
      case EPOLL_CTL_ADD:
        if (entry != entries_.end()) return -EEXIST;
        entries_[descriptor] = {*event};
        note_level(descriptor, *event);
        wake(descriptor, state);
        return 0;
      case EPOLL_CTL_MOD:
        if (entry == entries_.end()) return -ENOENT;
        entry->second.wanted = *event;
        note_level(descriptor, *event);
        wake(descriptor, state);
        return 0;
      case EPOLL_CTL_DEL:
        if (entry == entries_.end()) return -ENOENT;
        forget(descriptor);
        return 0;
      default:
        return -EINVAL;
    }
  }

  void forget(int descriptor) {
    if (entries_.erase(descriptor) == 0) return;
    level_.erase(descriptor);
    std::erase(ready_, descriptor);
  }

  /// The descriptor was closed, but a duplicate of it lives elsewhere: its entry stays, beside any new one of the same number.
  void orphan(int descriptor) {
    if (const auto entry = entries_.find(descriptor); entry != entries_.end()) orphans_[descriptor] = entry->second.wanted;
    forget(descriptor);
  }

  /// Something of this kind happened: the entry's state is told once, if the entry cares.
  void wake(int descriptor, std::uint32_t kind) {
    const auto entry = entries_.find(descriptor);
    if (entry == entries_.end() || (kind & entry->second.heard()) == 0) return;
    make_ready(descriptor, entry->second);
    entry->second.woken = true;
  }

  /// Tells these events once, if the entry cares, whatever its state is.
  void report(int descriptor, std::uint32_t events) {
    const auto entry = entries_.find(descriptor);
    if (entry == entries_.end() || (events & entry->second.heard()) == 0) return;
    make_ready(descriptor, entry->second);
    entry->second.reported |= events & entry->second.heard();
  }

  void report_orphan(int descriptor, std::uint32_t events) {
    const auto orphan = orphans_.find(descriptor);
    if (orphan == orphans_.end()) return;
    from_orphans_.push_back(orphan->second);
    from_orphans_.back().events = events & (orphan->second.events | EPOLLERR | EPOLLHUP);
  }

  [[nodiscard]] bool contains(int descriptor) const { return entries_.contains(descriptor); }
  [[nodiscard]] const epoll_event& wanted(int descriptor) const { return entries_.at(descriptor).wanted; }

  /// Whether take() would tell of something.
  template <class StateOf>
  [[nodiscard]] bool has_something(StateOf state_of) const {
    if (!from_orphans_.empty()) return true;
    const auto tells = [&](int descriptor) {
      const Entry& entry = entries_.at(descriptor);
      return entry.reported != 0 || (state_of(descriptor) & entry.heard()) != 0;
    };
    return std::any_of(ready_.begin(), ready_.end(), tells) || std::any_of(level_.begin(), level_.end(), tells);
  }

  /// One of the entries, chosen by `number`; null: there is none.
  [[nodiscard]] const epoll_event* any(std::uint64_t number) const {
    if (entries_.empty()) return nullptr;
    return &std::next(entries_.begin(), static_cast<std::ptrdiff_t>(number % entries_.size()))->second.wanted;
  }

  /// Fills `events`; `state_of(descriptor)` answers what a level-triggered entry has to say.
  template <class StateOf>
  int take(epoll_event* events, int capacity, StateOf state_of) {
    for (const int descriptor : level_) wake(descriptor, state_of(descriptor));
    int count = 0;
    for (; count < capacity && !from_orphans_.empty(); ++count) {
      events[count] = from_orphans_.front();
      from_orphans_.pop_front();
    }
    while (count < capacity && !ready_.empty()) {
      const int descriptor = ready_.front();
      ready_.pop_front();
      Entry& entry = entries_.at(descriptor);
      std::uint32_t told = std::exchange(entry.reported, 0U);
      if (std::exchange(entry.woken, false)) told |= state_of(descriptor) & entry.heard();
      if (told == 0) continue;
      events[count].events = told;
      events[count].data = entry.wanted.data;
      ++count;
    }
    return count;
  }

 private:
  struct Entry {
    epoll_event wanted;
    // What take() has not told yet; if any, the descriptor stands in ready_.
    std::uint32_t reported = 0;
    bool woken = false;

    [[nodiscard]] std::uint32_t heard() const { return wanted.events | EPOLLERR | EPOLLHUP; }
  };

  void make_ready(int descriptor, const Entry& entry) {
    if (entry.reported == 0 && !entry.woken) ready_.push_back(descriptor);
  }

  void note_level(int descriptor, const epoll_event& wanted) {
    if ((wanted.events & EPOLLET) == 0)
      level_.insert(descriptor);
    else
      level_.erase(descriptor);
  }

  std::map<int, Entry> entries_;
  std::set<int> level_;  // of those, the level-triggered ones
  std::map<int, epoll_event> orphans_;
  std::deque<int> ready_;
  std::deque<epoll_event> from_orphans_;
};

}  // namespace vigil::sys
