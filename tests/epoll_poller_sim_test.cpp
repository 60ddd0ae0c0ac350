// The epoll poller on a kernel whose every event the test chooses.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>
#include <string_view>

#include "epoll_poller.hpp"
#include "source_slab.hpp"
#include "sys/simulated/scripted_kernel.hpp"

using namespace std::chrono_literals;
using namespace vigil;
using sys::Call;
using sys::ScriptedKernel;

namespace {

EpollPoller::Event event_of(const EpollPoller& poller, std::size_t index) { return EpollPoller::event(poller.events(2)[index]); }

constexpr SourceOperations no_operations{};

struct Probe final : Source {
  static Source* construct(void* slot) { return ::new (slot) Probe; }

  static Probe& take(SourceSlab& slab, int descriptor) {
    auto& probe = static_cast<Probe&>(*slab.take());
    probe.operations_ = &no_operations;
    probe.descriptor_ = descriptor;
    return probe;
  }
};

using Interest = EpollPoller::Interest;

/// A poller that watches one descriptor.
struct Watching {
  explicit Watching(Interest interest = Interest::stream) { REQUIRE(poller.add(source, interest) == 0); }

  /// The event at this place of the last batch, as of now.
  [[nodiscard]] EpollPoller::Event event(int index) const {
    return EpollPoller::event(poller.events(index + 1)[static_cast<std::size_t>(index)]);
  }

  ScriptedKernel kernel;
  SourceSlab slab{sizeof(Probe), alignof(Probe), &Probe::construct};
  EpollPoller poller{16};
  int descriptor = kernel.open_descriptor();
  Probe& source = Probe::take(slab, descriptor);
};

unsigned readiness_when(std::uint32_t events, Interest interest = Interest::stream) {
  Watching watching(interest);
  watching.kernel.report(watching.descriptor, events);
  if (watching.poller.wait(0ns) != 1) return 0;
  CHECK(event_of(watching.poller, 0).source == &watching.source);
  return event_of(watching.poller, 0).readiness.bits;
}

}  // namespace

TEST_CASE("epoll: each event is one readiness, and every kind of end is an end") {
  CHECK(readiness_when(EPOLLIN) == Readiness::readable);
  CHECK(readiness_when(EPOLLOUT) == Readiness::writable);
  CHECK(readiness_when(EPOLLIN | EPOLLOUT) == (Readiness::readable | Readiness::writable));
  CHECK(readiness_when(EPOLLRDHUP) == Readiness::ended);
  CHECK(readiness_when(EPOLLHUP) == Readiness::ended);
  CHECK(readiness_when(EPOLLERR) == Readiness::error);
  CHECK(readiness_when(EPOLLPRI) == Readiness::urgent);
  CHECK(readiness_when(EPOLLIN | EPOLLRDHUP) == (Readiness::readable | Readiness::ended));
  CHECK(readiness_when(EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI) ==
        (Readiness::readable | Readiness::writable | Readiness::ended | Readiness::error | Readiness::urgent));
}

TEST_CASE("epoll: what a source is registered for") {
  CHECK(Watching(Interest::none).kernel.registered_for(100 + 1) == 0);
  const auto registered = [](Interest interest) {
    Watching watching(interest);
    return watching.kernel.registered_for(watching.descriptor);
  };
  CHECK(registered(Interest::readable) == EPOLLIN);
  CHECK(registered(Interest::writable) == EPOLLOUT);
  CHECK(registered(Interest::both) == (EPOLLIN | EPOLLOUT));
  CHECK(registered(Interest::edge_readable) == (EPOLLIN | EPOLLET));
  CHECK(registered(Interest::stream) == (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET));
}

TEST_CASE("epoll: without interest in data an end is still told") {
  CHECK(readiness_when(EPOLLIN | EPOLLHUP, Interest::none) == Readiness::ended);
  CHECK(readiness_when(EPOLLERR, Interest::readable) == Readiness::error);
}

TEST_CASE("epoll: a registration changes and ends") {
  Watching watching(Interest::readable);
  CHECK(watching.poller.modify(watching.source, Interest::writable) == 0);
  CHECK(watching.kernel.registered_for(watching.descriptor) == EPOLLOUT);
  watching.poller.remove(watching.source);
  CHECK(watching.kernel.registered_for(watching.descriptor) == 0);
  watching.kernel.report(watching.descriptor, EPOLLIN | EPOLLOUT);
  CHECK(watching.poller.wait(0ns) == 0);
}

TEST_CASE("epoll: removing what the user closed already is no error") {
  Watching watching;
  sys::close(watching.descriptor);
  watching.poller.remove(watching.source);
  CHECK(watching.kernel.calls_on_closed() == 0);
}

TEST_CASE("epoll: an event for a life that is over is dropped") {
  Watching watching;
  watching.kernel.report(watching.descriptor, EPOLLIN);
  REQUIRE(watching.poller.wait(0ns) == 1);

  SUBCASE("its slot is vacant") { watching.slab.give_back(watching.source); }
  SUBCASE("its slot has a new life") {
    watching.slab.give_back(watching.source);
    const Probe& next = Probe::take(watching.slab, watching.descriptor);
    REQUIRE(&next == &watching.source);
  }

  CHECK(event_of(watching.poller, 0).source == nullptr);
}

TEST_CASE("epoll: a duplicate that keeps a dead registration alive reaches nobody") {
  Watching watching;
  watching.kernel.is_duplicated(watching.descriptor);
  sys::close(watching.descriptor);
  watching.slab.give_back(watching.source);
  const int reused = watching.kernel.open_descriptor();
  REQUIRE(reused == watching.descriptor);
  Probe& next = Probe::take(watching.slab, reused);
  REQUIRE(watching.poller.add(next, Interest::stream) == 0);

  watching.kernel.report_orphan(reused, EPOLLIN);
  watching.kernel.report(reused, EPOLLOUT);

  REQUIRE(watching.poller.wait(0ns) == 2);
  CHECK(event_of(watching.poller, 0).source == nullptr);
  CHECK(event_of(watching.poller, 1).source == &next);
  CHECK(event_of(watching.poller, 1).readiness.bits == Readiness::writable);
}

TEST_CASE("epoll: generations that differ by one are told apart as long as the slot lives") {
  Watching watching;
  Source* source = &watching.source;
  for (int life = 0; life < 200; ++life) {
    watching.kernel.report(watching.descriptor, EPOLLIN);
    REQUIRE(watching.poller.wait(0ns) == 1);
    CHECK(event_of(watching.poller, 0).source == source);
    watching.poller.remove(*source);
    watching.slab.give_back(*source);
    CHECK(event_of(watching.poller, 0).source == nullptr);
    source = &Probe::take(watching.slab, watching.descriptor);
    CHECK(event_of(watching.poller, 0).source == nullptr);
    REQUIRE(watching.poller.add(*source, Interest::stream) == 0);
  }
}

TEST_CASE("epoll: a registration that fails says why") {
  Watching watching;
  CHECK(watching.poller.add(watching.source, Interest::stream) == EEXIST);
  watching.kernel.will_fail(Call::epoll_control, ENOSPC);
  CHECK(watching.poller.modify(watching.source, Interest::stream) == ENOSPC);
  CHECK(watching.poller.add(Probe::take(watching.slab, 4711), Interest::stream) == EBADF);
  CHECK(watching.poller.add(Probe::take(watching.slab, sys::reserve_open()), Interest::readable) == EPERM);
  CHECK(watching.poller.modify(Probe::take(watching.slab, sys::wake_open()), Interest::readable) == ENOENT);
}

TEST_CASE("epoll: a poller that could not be made keeps the reason and closes nothing") {
  ScriptedKernel kernel;
  kernel.will_fail(Call::epoll_create, EMFILE);
  {
    EpollPoller poller(16);
    CHECK(poller.error() == EMFILE);
  }
  CHECK(kernel.count(Call::close) == 0);
  {
    EpollPoller poller(16);
    CHECK(poller.error() == 0);
  }
  CHECK(kernel.open_descriptors().empty());
}

TEST_CASE(
    "epoll: a short wait is handed its timeout as it is, a long one asks for less than the kernel may overshoot, a failure is "
    "told") {
  Watching watching;
  CHECK(watching.poller.wait(1'234'567ns) == 0);
  CHECK(watching.kernel.last_timeout() == 1'234'567ns);
  for (const Duration wanted : {Duration(1s), Duration(30s), Duration(24h)}) {
    CHECK(watching.poller.wait(wanted) == 0);
    const Duration asked = watching.kernel.last_timeout();
    CHECK(asked >= wanted * 9 / 10);
    CHECK(asked + std::min<Duration>(asked / 200, 100ms) <= wanted);  // a niced process's slack
  }
  watching.kernel.will_fail(Call::epoll_wait, EINTR);
  CHECK(watching.poller.wait(1s) == -EINTR);
  CHECK(watching.poller.wait(-1ns) == -EDEADLK);
}

TEST_CASE("epoll: more events than fit come with the next wait, none twice") {
  ScriptedKernel kernel;
  SourceSlab slab{sizeof(Probe), alignof(Probe), &Probe::construct};
  EpollPoller poller{2};
  for (int count = 0; count < 5; ++count) {
    const int descriptor = kernel.open_descriptor();
    REQUIRE(poller.add(Probe::take(slab, descriptor), Interest::stream) == 0);
    kernel.report(descriptor, EPOLLIN);
  }
  CHECK(poller.wait(0ns) == 2);
  CHECK(poller.wait(0ns) == 2);
  CHECK(poller.wait(0ns) == 1);
  CHECK(poller.wait(0ns) == 0);
}
