// What one epoll descriptor knows: who is registered for what, and who has something to say. It tells of readiness and knows
// nothing of sockets: their state is asked for as a set of poll(2)'s bits, which are epoll(7)'s too.
//
// As the kernel does it: edge-triggered entries are told once for each report, level-triggered ones as long as the state lasts;
// errors and hang-ups can't be masked; entries are told in the order in which they became ready, and what finds no room waits.
#pragma once

#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <set>

namespace vigil::sys {

class EpollRegistrations {
 public:
  /// epoll_ctl. `state` is what the descriptor has to say now: an entry that is added or changed is told at once.
  int control(int operation, int descriptor, const epoll_event* event, std::uint32_t state) {
    const auto entry = entries_.find(descriptor);
    switch (operation) {
      case EPOLL_CTL_ADD:
        if (entry != entries_.end()) return -EEXIST;
        entries_[descriptor] = {*event, 0};
        note_level(descriptor, *event);
        report(descriptor, state);
        return 0;
      case EPOLL_CTL_MOD:
        if (entry == entries_.end()) return -ENOENT;
        entry->second.wanted = *event;
        note_level(descriptor, *event);
        report(descriptor, state);
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

  /// Something happened: tells it once, if the entry cares.
  void report(int descriptor, std::uint32_t events) {
    const auto entry = entries_.find(descriptor);
    if (entry == entries_.end()) return;
    const std::uint32_t heard = events & (entry->second.wanted.events | EPOLLERR | EPOLLHUP);
    if (heard == 0) return;
    if (entry->second.pending == 0) ready_.push_back(descriptor);
    entry->second.pending |= heard;
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
    if (!ready_.empty() || !from_orphans_.empty()) return true;
    for (const int descriptor : level_)
      if ((state_of(descriptor) & (wanted(descriptor).events | EPOLLERR | EPOLLHUP)) != 0) return true;
    return false;
  }

  /// One of the entries, chosen by `number`; null: there is none.
  [[nodiscard]] const epoll_event* any(std::uint64_t number) const {
    if (entries_.empty()) return nullptr;
    return &std::next(entries_.begin(), static_cast<std::ptrdiff_t>(number % entries_.size()))->second.wanted;
  }

  /// Fills `events`; `state_of(descriptor)` answers what a level-triggered entry has to say.
  template <class StateOf>
  int take(epoll_event* events, int capacity, StateOf state_of) {
    for (const int descriptor : level_) report(descriptor, state_of(descriptor));
    int count = 0;
    for (; count < capacity && !from_orphans_.empty(); ++count) {
      events[count] = from_orphans_.front();
      from_orphans_.pop_front();
    }
    for (; count < capacity && !ready_.empty(); ++count) {
      Entry& entry = entries_.at(ready_.front());
      ready_.pop_front();
      events[count].events = entry.pending;
      events[count].data = entry.wanted.data;
      entry.pending = 0;
    }
    return count;
  }

 private:
  struct Entry {
    epoll_event wanted;
    std::uint32_t pending;  // what take() has not told yet; not zero: the descriptor stands in ready_
  };

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
