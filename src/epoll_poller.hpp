// The epoll poller: readiness of sources, as epoll(7) tells it, in the reactor's own words.
//
// A source's address and the low bits of its generation travel in the event itself: an event whose generation has passed (the
// descriptor was closed, its number or slot reused, or a duplicate keeps a dead registration alive) is recognized and dropped.
// Thread: its reactor's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "sys/sys.hpp"
#include "vigil/result.hpp"
#include "vigil/source.hpp"

namespace vigil {

class EpollPoller {
 public:
  /// How a source is to be woken: level-triggered, but for the last two. `stream` is registered once and never touched again:
  /// edge-triggered, both directions.
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
  ///
  /// The kernel takes the liberty of ending a wait late by a thousandth of its length, by five of a niced process, up to 100 ms
  /// (fs/select.c, select_estimate_accuracy; measured: 10 ms on 10 s). So a long wait is asked for a little shorter, and whoever
  /// finds that it ended before its time asks for the rest, whose thousandth is less than a tick.
  [[nodiscard]] int wait(Duration timeout) {
    if (timeout > long_wait) timeout -= timeout / 128;
    return sys::epoll_wait(descriptor_, events_.get(), capacity_, timeout);
  }

  /// What the last wait reported, of the first `count` events.
  [[nodiscard]] std::span<const epoll_event> events(int count) const { return {events_.get(), static_cast<std::size_t>(count)}; }

  [[nodiscard]] static Event event(const epoll_event& seen) {
    const std::uint64_t tag = seen.data.u64 & tag_mask;
    Source* source = reinterpret_cast<Source*>(seen.data.u64 & ~tag_mask);  // NOLINT: the kernel hands back what add() gave
    return {(source->generation_ & tag_mask) == tag ? source : nullptr, readiness_of(seen.events)};
  }

 private:
  static constexpr Duration long_wait = std::chrono::milliseconds(150);
  static constexpr std::uint64_t tag_mask = alignof(Source) - 1;

  // Our bits have epoll's own values, and a hang-up of one half counts as one of both.
  static Readiness readiness_of(std::uint32_t events) {
    static_assert(Readiness::readable == EPOLLIN && Readiness::urgent == EPOLLPRI && Readiness::writable == EPOLLOUT);
    static_assert(Readiness::error == EPOLLERR && Readiness::ended == EPOLLHUP && EPOLLRDHUP >> 9 == EPOLLHUP);
    return {static_cast<std::uint8_t>((events | events >> 9) & 31U)};
  }

  [[nodiscard]] int control(int operation, Source& source, Interest interest);

  int descriptor_;
  int capacity_;
  std::unique_ptr<epoll_event[]> events_;
};

using Poller = EpollPoller;

}  // namespace vigil
