// The epoll poller: readiness of sources, as epoll(7) tells it, in the reactor's own words.
//
// A source's address and the low bits of its generation travel in the event itself: an event whose generation has passed (the
// descriptor was closed, its number or slot reused, or a duplicate keeps a dead registration alive) is recognized and dropped.
// Thread: its reactor's.
#pragma once

#include <cstdint>
#include <vector>

#include "sys/sys.hpp"
#include "vigil/result.hpp"
#include "vigil/source.hpp"

namespace vigil {

class EpollPoller {
 public:
  /// How a source is to be woken: level-triggered, but for the last two. `stream` is registered once and never touched again: edge-triggered, both directions.
  enum class Interest : std::uint8_t { none, readable, writable, both, edge_readable, stream };

  struct Event {
    Source* source;  ///< null: stale
    Readiness readiness;
  };

  explicit EpollPoller(std::size_t events_per_wait);
  ~EpollPoller();
  EpollPoller(const EpollPoller&) = delete;
  EpollPoller& operator=(const EpollPoller&) = delete;

  [[nodiscard]] int error() const { return descriptor_ < 0 ? -descriptor_ : 0; }  ///< errno of a failed creation, or 0

  /// 0 or an errno.
  [[nodiscard]] int add(Source& source, Interest interest) { return control(EPOLL_CTL_ADD, source, interest); }
  [[nodiscard]] int modify(Source& source, Interest interest) { return control(EPOLL_CTL_MOD, source, interest); }
  void remove(Source& source);

  /// Waits at most `timeout` (negative: for ever) and returns the number of events, or the negated errno.
  [[nodiscard]] int wait(Duration timeout) {
    return sys::epoll_wait(descriptor_, events_.data(), static_cast<int>(events_.size()), timeout);
  }

  [[nodiscard]] Event event(int index) const {
    const epoll_event& seen = events_[static_cast<std::size_t>(index)];
    const std::uint64_t tag = seen.data.u64 & tag_mask;
    Source* source = reinterpret_cast<Source*>(seen.data.u64 & ~tag_mask);  // NOLINT: the kernel hands back what add() gave
    if ((source->generation_ & tag_mask) != tag || source->operations_ == nullptr) return {nullptr, {}};
    return {source, readiness_of(seen.events)};
  }

 private:
  static constexpr std::uint64_t tag_mask = alignof(Source) - 1;

  static Readiness readiness_of(std::uint32_t events) {
    static_assert(EPOLLIN == 1 && EPOLLPRI == 2 && EPOLLOUT == 4 && EPOLLERR == 8 && EPOLLHUP == 16);
    unsigned bits = (events & EPOLLIN) | ((events & EPOLLOUT) >> 1);
    if ((events & ~static_cast<std::uint32_t>(EPOLLIN | EPOLLOUT)) != 0) [[unlikely]] {
      if ((events & (EPOLLRDHUP | EPOLLHUP)) != 0) bits |= Readiness::ended;
      if ((events & EPOLLERR) != 0) bits |= Readiness::error;
      if ((events & EPOLLPRI) != 0) bits |= Readiness::urgent;
    }
    return {static_cast<std::uint8_t>(bits)};
  }

  [[nodiscard]] int control(int operation, Source& source, Interest interest);

  int descriptor_;
  std::vector<epoll_event> events_;
};

using Poller = EpollPoller;

}  // namespace vigil
