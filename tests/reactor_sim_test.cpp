// The reactor on virtual time: the order of a turn, timers, tasks, waits, and what a wait's answer may be.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr Duration tick = 1ms;

using Lines = std::vector<std::string>;

}  // namespace

// The turn -------------------------------------------------------------------------------------------------------------------

TEST_CASE("the phases of a turn come in their order") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  const int c = world.accept();
  Lines lines;
  world.story.on_receive = [&](Connection&, std::string_view) {
    lines.push_back("receive");
    (void)world.reactor->post([&] {
      lines.push_back("task");
      world.story.connection(b).send(bytes_of("from a task"));
      world.story.connection(c).abort();
      CHECK(world.kernel.sent(b).empty());
    });
  };
  world.story.on_close = [&](Connection&, const CloseRecord&) {
    lines.push_back("close");
    CHECK(world.kernel.sent(b) == "from a task");  // flushed before
  };
  Timer timer(*world.reactor, [&] { lines.push_back("timer"); });
  REQUIRE(timer.arm_after(10ms));
  world.kernel.after(10ms, [&] { world.kernel.peer_sends(a, "x"); });

  world.turn();

  CHECK(lines == Lines{"receive", "timer", "task", "close"});
  CHECK(world.kernel.open_descriptors().size() == 6);  // epoll, reserve, wake-up, listener, a, b
}

TEST_CASE("ready sources come before those left over from the last turn") {
  Simulation world({}, {.receive_buffer_bytes = 1024, .reads_per_turn = 1});
  const int firehose = world.accept();
  const int other = world.accept();
  std::vector<int> order;
  world.story.on_receive = [&](Connection& connection, std::string_view) { order.push_back(connection.descriptor()); };
  world.kernel.peer_sends(firehose, std::string(2000, 'x'));
  world.turn();
  CHECK(order == std::vector<int>{firehose});
  world.kernel.peer_sends(other, "x");
  world.turn();
  CHECK(order == std::vector<int>{firehose, other, firehose});
}

TEST_CASE("a turn waits no longer than it may") {
  LoneReactor world;
  const Instant start = world.kernel.now();
  world.turn(7ms);
  CHECK(world.kernel.last_timeout() == 7ms);
  CHECK(world.kernel.now() == start + 7ms);
  world.turn(0ns);
  CHECK(world.kernel.last_timeout() == 0ns);
  const auto negative = world.reactor.turn(-1ns);
  REQUIRE_FALSE(negative);
  CHECK(negative.error() == Error{"run", EINVAL});
}

TEST_CASE("with nothing to wait for a turn waits for ever") {
  LoneReactor world;
  const auto turned = world.reactor.turn();
  REQUIRE_FALSE(turned);
  CHECK(turned.error() == Error{"wait", EDEADLK});  // the scripted kernel's word for it
  CHECK(world.kernel.last_timeout() < 0ns);
}

TEST_CASE("run and turn from inside a callback answer EBUSY and do nothing") {
  Simulation world;
  const int a = world.accept();
  int asked = 0;
  world.story.on_receive = [&](Connection&, std::string_view) {
    const std::size_t waits = world.kernel.count(Call::epoll_wait);
    const auto ran = world.reactor->run();
    const auto turned = world.reactor->turn();
    REQUIRE_FALSE(ran);
    REQUIRE_FALSE(turned);
    CHECK(ran.error() == Error{"run", EBUSY});
    CHECK(turned.error() == Error{"run", EBUSY});
    CHECK(world.kernel.count(Call::epoll_wait) == waits);
    ++asked;
  };
  world.kernel.peer_sends(a, "x");
  world.settle();
  CHECK(asked == 1);
}

TEST_CASE("an interrupted wait is no error") {
  LoneReactor world;
  int fired = 0;
  Timer timer(world.reactor, [&] { ++fired; });
  REQUIRE(timer.arm_after(5ms));
  world.kernel.will_fail(Call::epoll_wait, EINTR);
  world.turn();
  CHECK(fired == 0);
  world.turn();
  CHECK(fired == 1);
}

TEST_CASE("a wait that fails ends run with its error, and run may be called again") {
  LoneReactor world;
  Timer timer(world.reactor, [&] { world.reactor.stop(); });
  REQUIRE(timer.arm_after(5ms));
  world.kernel.will_fail(Call::epoll_wait, EBADF);
  const auto failed = world.reactor.run();
  REQUIRE_FALSE(failed);
  CHECK(failed.error() == Error{"wait", EBADF});
  CHECK(world.reactor.run());
}

TEST_CASE("more events than one wait can tell starve nobody") {
  Simulation world({}, {.events_per_wait = 2});
  std::vector<int> peers;
  for (int count = 0; count < 7; ++count) peers.push_back(world.accept());
  for (const int peer : peers) world.kernel.peer_sends(peer, "x");
  world.settle();
  for (const int peer : peers) CHECK(world.story.received[peer] == "x");
}

// Stopping -------------------------------------------------------------------------------------------------------------------

TEST_CASE("stop completes the turn and keeps what was not dispatched for the next run") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  bool timer_fired = false;
  Timer timer(*world.reactor, [&] { timer_fired = true; });
  REQUIRE(timer.arm_after(3ms));
  world.story.on_receive = [&](Connection& connection, std::string_view text) {
    connection.send(bytes_of(text));
    world.reactor->stop();
  };
  world.kernel.after(3ms, [&] {
    world.kernel.peer_sends(a, "to a");
    world.kernel.peer_sends(b, "to b");
  });

  CHECK(world.reactor->run());
  CHECK(world.kernel.sent(a) == "to a");
  CHECK(world.story.received[b].empty());
  CHECK(timer_fired);

  CHECK(world.reactor->run());
  CHECK(world.kernel.last_timeout() == 0ns);
  CHECK(world.kernel.sent(b) == "to b");
}

TEST_CASE("an end told while the reactor stops is not lost behind an earlier event") {
  Simulation world({}, {.receive_buffer_bytes = 1024, .reads_per_turn = 1});
  const int a = world.accept();
  const int b = world.accept();
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    if (connection.descriptor() == a) world.reactor->stop();
  };
  // b has more than one turn may read: it waits on the ready list. Then its end comes, in the same batch as what makes a stop.
  world.kernel.peer_sends(b, std::string(1024, 'x'));
  world.turn();
  world.kernel.peer_sends(a, "stop");
  world.kernel.peer_sends(b, "last");
  world.kernel.peer_finishes(b);
  CHECK(world.reactor->run());
  world.settle();
  CHECK(world.story.received[b] == std::string(1024, 'x') + "last");
  CHECK(world.story.closed == std::vector<int>{b});
}

TEST_CASE("stop while not running changes nothing") {
  LoneReactor world;
  world.reactor.stop();
  int fired = 0;
  Timer timer(world.reactor, [&] {
    ++fired;
    world.reactor.stop();
  });
  REQUIRE(timer.arm_after(5ms));
  CHECK(world.reactor.run());
  CHECK(fired == 1);
}

// Timers ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("a wait ends exactly at the next deadline") {
  LoneReactor world;
  int fired = 0;
  Timer far(world.reactor, [&] { ++fired; });
  Timer near(world.reactor, [&] { ++fired; });
  REQUIRE(far.arm_after(40ms));
  REQUIRE(near.arm_after(15ms));
  world.turn();
  CHECK(world.kernel.last_timeout() == 15ms);
  CHECK(fired == 1);
  world.turn();
  CHECK(world.kernel.last_timeout() == 25ms);
  CHECK(fired == 2);
}

TEST_CASE("an instant between two ticks is waited for until the later one") {
  LoneReactor world;
  Instant fired{};
  Timer timer(world.reactor, [&] { fired = world.kernel.now(); });
  world.kernel.advance(300us);
  const Instant start = world.kernel.now();
  REQUIRE(timer.arm_after(10ms));
  world.turn();
  CHECK(fired == start + 10ms + 700us);
  CHECK(world.kernel.last_timeout() == 10ms + 700us);
}

TEST_CASE("no timer is early and none more than a tick late, whatever its delay and however odd the clock") {
  LoneReactor world;
  std::mt19937_64 random(20);
  Duration worst = 0ns;
  for (const Duration span : {Duration(3ms), Duration(90ms), Duration(5s), Duration(6min), Duration(8h), Duration(24h * 365)}) {
    for (int round = 0; round < 100; ++round) {
      world.kernel.advance(Duration(random() % 5'000'000));
      const Instant due =
          world.kernel.now() + Duration(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(span.count())));
      Instant fired{};
      Timer timer(world.reactor, [&] { fired = world.kernel.now(); });
      REQUIRE(timer.arm_at(due));
      std::size_t turns = 0;
      for (; fired == Instant{} && turns < 20; ++turns) world.turn();
      CHECK(fired >= due);
      worst = std::max(worst, fired - due);
      CHECK(turns <= 8);  // wake-ups on the way to a far one
    }
  }
  CHECK(worst <= tick);
}

TEST_CASE("many timers at once: none early, none more than a tick late, in order") {
  LoneReactor world;
  std::mt19937_64 random(21);
  std::vector<Timer> timers;
  std::vector<Instant> order;
  Duration worst = 0ns;
  bool early = false;
  timers.reserve(2000);
  for (int index = 0; index < 2000; ++index) {
    const Instant due = world.kernel.now() + Duration(random() % 20'000'000'000);
    timers.emplace_back(world.reactor, [&, due] {
      early = early || world.kernel.now() < due;
      worst = std::max(worst, world.kernel.now() - due);
      order.push_back(due);
    });
    REQUIRE(timers.back().arm_at(due));
  }
  world.run_for(21s);
  CHECK(order.size() == 2000);
  CHECK_FALSE(early);
  CHECK(worst <= tick);
  for (std::size_t index = 1; index < order.size(); ++index) CHECK(order[index] > order[index - 1] - tick);
}

TEST_CASE("work that took 50 ms does not make a 10 ms timer armed after it early") {
  Simulation world;
  const int a = world.accept();
  Instant armed{};
  Instant fired{};
  Timer timer(*world.reactor, [&] { fired = world.kernel.now(); });
  const auto work = [&] {
    world.kernel.advance(50ms);
    armed = world.kernel.now();
    REQUIRE(timer.arm_after(10ms));
  };
  Timer starter(*world.reactor, work);
  SUBCASE("in a receive") {
    world.story.on_receive = [&](Connection&, std::string_view) { work(); };
    world.kernel.peer_sends(a, "x");
  }
  SUBCASE("in a timer") { REQUIRE(starter.arm_after(1ms)); }
  SUBCASE("in a task") { REQUIRE(world.reactor->post(work)); }
  SUBCASE("in a close") {
    world.story.on_close = [&](Connection&, const CloseRecord&) { work(); };
    world.story.connection(a).abort();
  }
  SUBCASE("in an open") {
    world.story.on_open = [&](Connection&) { work(); };
    (void)world.accept();
  }
  world.run_for(100ms);
  REQUIRE(fired != Instant{});
  CHECK(fired >= armed + 10ms);
  CHECK(fired <= armed + 10ms + tick);
}

TEST_CASE("work outside of run and turn does not make a timer early either") {
  LoneReactor world;
  world.turn(0ns);
  world.kernel.advance(50ms);
  const Instant armed = world.kernel.now();
  Instant fired{};
  Timer timer(world.reactor, [&] { fired = world.kernel.now(); });
  REQUIRE(timer.arm_after(10ms));
  world.run_for(20ms);
  CHECK(fired >= armed + 10ms);
  CHECK(fired <= armed + 10ms + tick);
}

TEST_CASE("timers charged with random work are never early") {
  LoneReactor world;
  std::mt19937_64 random(22);
  std::vector<Instant> due(50);
  std::vector<Timer> timers;
  int fired = 0;
  bool early = false;
  timers.reserve(due.size());
  for (std::size_t index = 0; index < due.size(); ++index) {
    timers.emplace_back(world.reactor, [&, index] {
      early = early || world.kernel.now() < due[index];
      ++fired;
      world.kernel.advance(Duration(random() % 3'000'000));
      const Duration delay(random() % 50'000'000);
      due[index] = world.kernel.now() + delay;
      REQUIRE(timers[index].arm_after(delay));
    });
    due[index] = world.kernel.now() + 1ms;
    REQUIRE(timers[index].arm_after(1ms));
  }
  world.run_for(10s);
  CHECK_FALSE(early);
  CHECK(fired > 1000);
}

TEST_CASE("a timer that re-arms itself at once fires once a turn") {
  LoneReactor world;
  int fired = 0;
  Timer timer(world.reactor, [&] {
    ++fired;
    REQUIRE(timer.arm_after(0ns));
  });
  REQUIRE(timer.arm_after(0ns));
  world.turn();
  CHECK(fired == 1);
  world.turn();
  CHECK(fired == 2);
}

TEST_CASE("a timer may disarm, cancel, destroy and move others that are due in the same turn") {
  LoneReactor world;
  Lines lines;
  Timer disarmed(world.reactor, [&] { lines.push_back("disarmed"); });
  Timer cancelled(world.reactor, [&] { lines.push_back("cancelled"); });
  auto destroyed = std::make_unique<Timer>(world.reactor, [&] { lines.push_back("destroyed"); });
  Timer moved(world.reactor, [&] { lines.push_back("moved"); });
  Timer first(world.reactor, [&] {
    lines.push_back("first");
    disarmed.disarm();
    cancelled.cancel();
    destroyed.reset();
    REQUIRE(moved.arm_after(5ms));
  });
  REQUIRE(first.arm_after(1ms));
  for (Timer* timer : {&disarmed, &cancelled, destroyed.get(), &moved}) REQUIRE(timer->arm_after(1ms));
  world.turn();
  CHECK(lines == Lines{"first"});
  world.turn();
  CHECK(lines == Lines{"first", "moved"});
  CHECK_FALSE(disarmed.armed());
  CHECK(disarmed.active());
  CHECK_FALSE(cancelled.active());
  const auto refused = cancelled.arm_after(1ms);
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"arm timer", ECANCELED});
}

TEST_CASE("a timer may destroy itself") {
  LoneReactor world;
  auto held = std::make_shared<int>(7);
  int fired = 0;
  std::optional<Timer> timer;
  timer.emplace(world.reactor, [&, held] {
    timer.reset();
    fired += *held;  // what it holds still stands
  });
  REQUIRE(timer->arm_after(1ms));
  world.turn();
  CHECK(fired == 7);
  CHECK(held.use_count() == 1);
}

TEST_CASE("a timer may create others") {
  LoneReactor world;
  std::vector<Timer> timers;
  int fired = 0;
  timers.reserve(300);
  std::function<void()> grow = [&] {
    ++fired;
    for (int count = 0; count < 2 && timers.size() < 300; ++count) {
      timers.emplace_back(world.reactor, [&] { grow(); });
      REQUIRE(timers.back().arm_after(1ms));
    }
  };
  Timer first(world.reactor, [&] { grow(); });
  REQUIRE(first.arm_after(1ms));
  world.run_for(1s);
  CHECK(fired == 301);
}

TEST_CASE("delays out of range are refused and change nothing") {
  LoneReactor world;
  int fired = 0;
  Timer timer(world.reactor, [&] { ++fired; });
  REQUIRE(timer.arm_after(5ms));
  for (const Duration delay : {Duration(-1ns), longest_timeout + 1ns, Duration::min(), Duration::max()}) {
    const auto armed = timer.arm_after(delay);
    REQUIRE_FALSE(armed);
    CHECK(armed.error() == Error{"arm timer", EINVAL});
  }
  world.turn();
  CHECK(fired == 1);
}

TEST_CASE("an instant that has passed fires in the next turn, without a wait") {
  LoneReactor world;
  int fired = 0;
  Timer timer(world.reactor, [&] { ++fired; });
  REQUIRE(timer.arm_at(world.kernel.now() - 1h));
  const Instant start = world.kernel.now();
  world.turn();
  CHECK(fired == 1);
  CHECK(world.kernel.now() <= start + tick);
}

TEST_CASE("a timer that outlives its reactor is inert") {
  CheckedKernel kernel;
  Timer timer;
  {
    Reactor reactor;
    timer = Timer(reactor, [] { FAIL("the reactor is gone"); });
    REQUIRE(timer.arm_after(1ms));
  }
  CHECK_FALSE(timer.active());
  CHECK_FALSE(timer.armed());
  const auto armed = timer.arm_after(1ms);
  REQUIRE_FALSE(armed);
  CHECK(armed.error() == Error{"arm timer", ECANCELED});
  timer.disarm();
  timer.cancel();
}

TEST_CASE("by how much the loop is late is counted: for a callback that took long, for a wait that overslept, for nothing else") {
  Simulation world;
  const int peer = world.accept();
  const auto total = [&] { return Duration(world.reactor->counters().loop_delay_ns_total); };
  Timer timer(*world.reactor, [] {});
  REQUIRE(timer.arm_after(10ms));
  world.story.on_receive = [&](Connection&, std::string_view) { world.kernel.advance(30ms); };
  world.kernel.after(5ms, [&] { world.kernel.peer_sends(peer, "work"); });
  world.turn();
  CHECK(total() >= 25ms);  // by so much the timer was kept waiting
  CHECK(total() <= 30ms);
  Duration before = total();
  world.kernel.will_oversleep(4s);
  world.turn(10ms);
  CHECK(total() == before + 4s);
  CHECK(world.reactor->counters().loop_delay_ns_max == 4'000'000'000);
  // What the program does between turns is its own affair.
  before = total();
  world.kernel.advance(1h);
  world.turn(10ms);
  world.kernel.advance(1h);
  REQUIRE(world.reactor->post([&] { world.reactor->stop(); }));
  CHECK(world.reactor->run());
  world.turn(0ns);
  CHECK(total() == before);
}

TEST_CASE("the longest wait there is does not end before it begins") {
  LoneReactor world;
  const auto turned = world.reactor.turn(Duration::max() - 1ns);
  REQUIRE_FALSE(turned);
  CHECK(turned.error() == Error{"wait", EDEADLK});
  CHECK(world.reactor.counters().loop_delay_ns_total == 0);
}

// Tasks and the mailbox ------------------------------------------------------------------------------------------------------

TEST_CASE("a task posted from a task runs in the next turn, which does not wait") {
  LoneReactor world;
  Lines lines;
  REQUIRE(world.reactor.post([&] {
    lines.push_back("first");
    REQUIRE(world.reactor.post([&] { lines.push_back("second"); }));
  }));
  world.turn();
  CHECK(lines == Lines{"first"});
  world.turn();
  CHECK(world.kernel.last_timeout() == 0ns);
  CHECK(lines == Lines{"first", "second"});
}

TEST_CASE("a task posted from a timer runs in the same turn") {
  LoneReactor world;
  int ran = 0;
  Timer timer(world.reactor, [&] { REQUIRE(world.reactor.post([&] { ++ran; })); });
  REQUIRE(timer.arm_after(1ms));
  world.turn();
  CHECK(ran == 1);
}

TEST_CASE("a task posted through the mailbox ends the wait, and several need one wake-up") {
  LoneReactor world;
  const Mailbox mailbox = world.reactor.mailbox();
  const Instant start = world.kernel.now();
  Lines lines;
  world.kernel.after(30ms, [&] {
    for (const char* name : {"a", "b", "c"}) REQUIRE(mailbox.post([&lines, name] { lines.push_back(name); }));
  });
  world.turn();
  CHECK(world.kernel.now() == start + 30ms);
  CHECK(lines == Lines{"a", "b", "c"});
  CHECK(world.kernel.count(Call::wake_signal) == 1);
  REQUIRE(mailbox.post([&] { lines.push_back("d"); }));
  world.turn();
  CHECK(lines.back() == "d");
  CHECK(world.kernel.count(Call::wake_signal) == 2);
}

TEST_CASE("stop through the mailbox ends run") {
  LoneReactor world;
  const Mailbox mailbox = world.reactor.mailbox();
  world.kernel.after(30ms, [&] { REQUIRE(mailbox.stop()); });
  CHECK(world.reactor.run());
}

TEST_CASE("a mailbox whose reactor is gone refuses tasks and destroys them") {
  CheckedKernel kernel;
  std::optional<Mailbox> mailbox;
  auto held = std::make_shared<int>(1);
  {
    Reactor reactor;
    mailbox = reactor.mailbox();
    REQUIRE(mailbox->post([held] { FAIL("never run"); }));
    CHECK(held.use_count() == 2);
  }
  CHECK(held.use_count() == 1);
  const auto posted = mailbox->post([held] {});
  REQUIRE_FALSE(posted);
  CHECK(posted.error() == Error{"post", ESHUTDOWN});
  CHECK(held.use_count() == 1);
  const auto stopped = mailbox->stop();
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == ESHUTDOWN);
}

TEST_CASE("an empty task is refused") {
  LoneReactor world;
  for (const auto& posted : {world.reactor.post({}), world.reactor.mailbox().post({})}) {
    REQUIRE_FALSE(posted);
    CHECK(posted.error() == Error{"post", EINVAL});
  }
}

// Watching -------------------------------------------------------------------------------------------------------------------

TEST_CASE("a watched descriptor calls back each turn as long as it is ready") {
  LoneReactor world;
  const int own = world.kernel.open_descriptor();
  std::vector<unsigned> seen;
  auto watch = world.reactor.watch(own, WatchFor::readable, [&](Readiness readiness) { seen.push_back(readiness.bits); });
  REQUIRE(watch);
  world.turn(0ns);
  CHECK(seen.empty());
  world.kernel.set_state(own, EPOLLIN | EPOLLOUT);
  world.turn();
  world.turn();
  CHECK(seen == std::vector<unsigned>{Readiness::readable, Readiness::readable});
  REQUIRE(watch->change(WatchFor::writable));
  world.turn();
  CHECK(seen.back() == Readiness::writable);
  REQUIRE(watch->change(WatchFor::both));
  world.turn();
  CHECK(seen.back() == (Readiness::readable | Readiness::writable));
  world.kernel.set_state(own, EPOLLHUP);
  world.turn();
  CHECK(seen.back() == Readiness::ended);
  watch->cancel();
  world.turn(0ns);
  CHECK(seen.size() == 5);
  CHECK(world.kernel.registered_for(own) == 0);
  sys::close(own);
}

TEST_CASE("a watch cancelled in the batch that names it hears nothing, and may cancel itself") {
  LoneReactor world;
  const int a = world.kernel.open_descriptor();
  const int b = world.kernel.open_descriptor();
  int calls = 0;
  Watch of_a;
  Watch of_b;
  auto held = std::make_shared<int>(0);
  const auto cancel_both = [&, held](Readiness) {
    ++calls;
    of_a.cancel();
    of_b.cancel();
    ++*held;
  };
  of_a = std::move(*world.reactor.watch(a, WatchFor::readable, cancel_both));
  of_b = std::move(*world.reactor.watch(b, WatchFor::readable, cancel_both));
  world.kernel.set_state(a, EPOLLIN);
  world.kernel.set_state(b, EPOLLIN);
  world.turn();
  CHECK(calls == 1);
  CHECK(*held == 1);
  world.turn(0ns);
  CHECK(calls == 1);
  sys::close(a);
  sys::close(b);
}

TEST_CASE("a watch taken for another descriptor in the same batch does not hear the old event") {
  LoneReactor world;
  const int a = world.kernel.open_descriptor();
  const int b = world.kernel.open_descriptor();
  int calls_of_new = 0;
  Watch of_a;
  Watch of_b;
  Watch of_new;
  of_a = std::move(*world.reactor.watch(a, WatchFor::readable, [&](Readiness) {
    of_b.cancel();
    sys::close(b);
    const int reused = world.kernel.open_descriptor();
    CHECK(reused == b);
    of_new = std::move(*world.reactor.watch(reused, WatchFor::readable, [&](Readiness) { ++calls_of_new; }));
    of_a.cancel();
  }));
  of_b = std::move(*world.reactor.watch(b, WatchFor::readable, [&](Readiness) { FAIL_CHECK("cancelled"); }));
  world.kernel.set_state(a, EPOLLIN);
  world.kernel.set_state(b, EPOLLIN);
  world.turn();
  CHECK(calls_of_new == 0);
  world.kernel.set_state(b, EPOLLIN);
  world.turn();
  CHECK(calls_of_new == 1);
  of_new.cancel();
  sys::close(a);
  sys::close(b);
}

TEST_CASE("what can't be watched is refused with the reason") {
  LoneReactor world;
  const auto refused = [&](int descriptor) {
    const auto watch = world.reactor.watch(descriptor, WatchFor::readable, [](Readiness) {});
    REQUIRE_FALSE(watch);
    CHECK(std::string_view(watch.error().operation) == "watch");
    return watch.error().code;
  };
  const int file = sys::reserve_open();
  CHECK(refused(file) == EPERM);
  const int own = world.kernel.open_descriptor();
  auto first = world.reactor.watch(own, WatchFor::readable, [](Readiness) {});
  REQUIRE(first);
  CHECK(refused(own) == EEXIST);
  CHECK(world.kernel.registered_for(own) == EPOLLIN);  // the first one still stands
  world.kernel.set_state(own, EPOLLIN);
  world.turn();
  const auto empty = world.reactor.watch(own, WatchFor::readable, {});
  REQUIRE_FALSE(empty);
  CHECK(empty.error() == Error{"watch", EINVAL});
  first->cancel();
  sys::close(own);
  sys::close(file);
}

TEST_CASE("a signal calls back with its number, and cancelling restores what was blocked") {
  LoneReactor world;
  std::vector<int> seen;
  {
    auto watch = world.reactor.on_signal(15, [&](int number) { seen.push_back(number); });
    REQUIRE(watch);
    CHECK(world.kernel.blocked_signals() == std::vector<int>{15});
    world.kernel.after(20ms, [&] { world.kernel.raise(15); });
    world.turn();
    CHECK(seen == std::vector<int>{15});
    world.turn(0ns);
    CHECK(seen.size() == 1);
  }
  CHECK(world.kernel.blocked_signals().empty());
  CHECK_FALSE(world.reactor.on_signal(0, [](int) {}));
}

// Failures while it is made --------------------------------------------------------------------------------------------------

TEST_CASE("what went wrong while the reactor was made is answered by every call that needs it") {
  CheckedKernel kernel;
  int expected = EMFILE;
  SUBCASE("no descriptor for the poller") { kernel.will_fail(Call::epoll_create, EMFILE); }
  SUBCASE("no descriptor in reserve") { kernel.will_fail(Call::reserve_open, EMFILE); }
  SUBCASE("no descriptor for the mailbox") { kernel.will_fail(Call::wake_open, EMFILE); }
  SUBCASE("no watch for the mailbox") {
    kernel.will_fail(Call::epoll_control, ENOSPC);
    expected = ENOSPC;
  }
  SUBCASE("none left at all") { kernel.limit_descriptors(0); }
  Story story;
  {
    Reactor reactor;
    Listener<Actor> listener(reactor, {}, [&](Connection& connection) { return Actor(story, connection); });
    Connector<Actor> connector(reactor, {}, [&](Connection& connection) { return Actor(story, connection); });
    Timer timer(reactor, [] {});
    const auto code_of = [](const auto& result) { return result ? 0 : result.error().code; };
    CHECK(code_of(listener.listen("127.0.0.1:7000")) == expected);
    CHECK(code_of(connector.connect("127.0.0.1:7000")) == expected);
    CHECK(code_of(reactor.watch(3, WatchFor::readable, [](Readiness) {})) == expected);
    CHECK(code_of(reactor.on_signal(15, [](int) {})) == expected);
    CHECK(code_of(reactor.run()) == expected);
    CHECK(code_of(reactor.turn()) == expected);
    CHECK(code_of(reactor.shutdown(1s)) == expected);
    (void)reactor.mailbox().post([] { FAIL_CHECK("it never runs"); });
    (void)timer.arm_after(1ms);
  }
  CHECK(kernel.count(Call::socket) == 0);
}

TEST_CASE("invalid options are answered, not asserted") {
  CheckedKernel kernel;
  ReactorOptions options;
  SUBCASE("tick") { options.tick = 0ns; }
  SUBCASE("negative tick") { options.tick = -1ms; }
  SUBCASE("events") { options.events_per_wait = 0; }
  SUBCASE("receive buffer") { options.receive_buffer_bytes = 0; }
  SUBCASE("huge receive buffer") { options.receive_buffer_bytes = SIZE_MAX; }
  SUBCASE("gather buffer") { options.gather_buffer_bytes = 1; }
  SUBCASE("reads") { options.reads_per_turn = 0; }
  SUBCASE("timeouts") { options.timeouts.receive = Timeout(0ns); }
  Reactor reactor(options);
  const auto ran = reactor.run();
  REQUIRE_FALSE(ran);
  CHECK(ran.error().code == EINVAL);
}

// The end --------------------------------------------------------------------------------------------------------------------

TEST_CASE("flush and finish take at most eight rounds a turn; the rest comes in the next one, which does not wait") {
  Simulation world;
  std::vector<int> peers;
  for (int count = 0; count < 20; ++count) peers.push_back(world.accept());
  std::size_t next = 1;
  world.story.on_close = [&](Connection&, const CloseRecord&) {
    if (next < peers.size()) world.story.connection(peers[next++]).abort();
  };
  world.story.connection(peers[0]).abort();
  world.turn();
  CHECK(world.story.closed.size() == 8);
  world.turn();
  CHECK(world.kernel.last_timeout() == 0ns);
  CHECK(world.story.closed.size() == 16);
  world.turn();
  CHECK(world.story.closed == peers);
}

TEST_CASE("shutdown closes gracefully, at most as long as it may, and run returns with the last record") {
  Simulation world;
  const int orderly = world.accept();
  const int silent = world.accept();
  const int attempt = world.connect();
  Timer timer(*world.reactor, [&] { REQUIRE(world.reactor->shutdown(2s)); });
  REQUIRE(timer.arm_after(10ms));
  world.kernel.after(500ms, [&] { world.kernel.peer_finishes(orderly); });
  const Instant begin = world.kernel.now() + 10ms;

  CHECK(world.reactor->run());

  CHECK(world.kernel.now() >= begin + 2s);
  CHECK(world.kernel.now() <= begin + 2s + tick);
  CHECK(world.story.closed == std::vector<int>{attempt, orderly, silent});
  for (const CloseRecord& record : world.story.records) CHECK(record.reason == CloseReason::server_stopping);
  CHECK(world.story.record(attempt).phase == Phase::connecting);
  CHECK(world.story.record(orderly).cut_short == CutShort::none);
  CHECK(world.story.record(silent).cut_short == CutShort::timed_out);
  CHECK(world.kernel.sent_end(orderly));
  CHECK(world.kernel.sent_end(silent));
  const auto late = world.listener->listen("127.0.0.1:7001");
  REQUIRE_FALSE(late);
  CHECK(late.error().code == ESHUTDOWN);
}

TEST_CASE("shutdown with nothing open ends run at once") {
  Simulation world;
  Timer timer(*world.reactor, [&] { REQUIRE(world.reactor->shutdown(5s)); });
  REQUIRE(timer.arm_after(10ms));
  const Instant start = world.kernel.now();
  CHECK(world.reactor->run());
  CHECK(world.kernel.now() == start + 10ms);
}

TEST_CASE("the destructor closes what is still open and tells it while the handlers live") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  const int attempt = world.connect();
  int living_at_first_close = 0;
  world.story.on_close = [&](Connection& connection, const CloseRecord&) {
    living_at_first_close = std::max(living_at_first_close, world.story.living);
    connection.send(bytes_of("too late"));
    if (connection.descriptor() != b) world.story.connection(b).abort();
    (void)world.reactor->post([] { FAIL_CHECK("no task runs any more"); });
  };
  world.connector.reset();
  world.listener.reset();
  world.reactor.reset();
  CHECK(living_at_first_close == 3);
  CHECK(world.story.records.size() == 3);
  for (const int descriptor : {a, b, attempt}) CHECK(world.story.record(descriptor).reason == CloseReason::server_stopping);
}

TEST_CASE("tasks that were never run are destroyed with the reactor, and what they hold may cancel timers") {
  CheckedKernel kernel;
  {
    std::optional<Reactor> reactor(std::in_place);
    auto timer = std::make_shared<Timer>(*reactor, [] {});
    REQUIRE(timer->arm_after(1h));
    REQUIRE(reactor->post([timer] {}));
    REQUIRE(reactor->mailbox().post([timer] {}));
    timer.reset();
    reactor.reset();
  }
}
