// The loop itself: the order of a turn, timers, watches, signals, stop and shutdown, and what its options and the kernel refuse.
#include "vigil/reactor.hpp"

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Connector;
using vigil::CutShort;
using vigil::Duration;
using vigil::Error;
using vigil::Instant;
using vigil::Listener;
using vigil::Reactor;
using vigil::ReactorOptions;
using vigil::Readiness;
using vigil::Timeouts;
using vigil::Timer;
using vigil::Watch;
using vigil::WatchFor;
namespace test = vigil::test;

struct Pipe {
  Pipe() { REQUIRE(::pipe2(ends.data(), O_NONBLOCK | O_CLOEXEC) == 0); }
  ~Pipe() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  [[nodiscard]] int reading() const { return ends[0]; }
  [[nodiscard]] int writing() const { return ends[1]; }
  void put() const { REQUIRE(::write(ends[1], "x", 1) == 1); }
  void take() const {
    char byte;
    REQUIRE(::read(ends[0], &byte, 1) == 1);
  }
  void fill() const {
    const std::string block(4096, 'x');
    while (::write(ends[1], block.data(), block.size()) > 0) {
    }
  }
  std::array<int, 2> ends{};
};

// --- the order of a turn

TEST_CASE("a turn dispatches what is ready, then timers, then tasks, then flushes, then tells what ended") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  test::Client ended = test::connect_client(reactor, hooks, server.address);
  test::Client written = test::connect_client(reactor, hooks, server.address);
  std::string order;
  const Pipe pipe;
  Watch watch = *reactor.watch(pipe.reading(), WatchFor::readable, [&](Readiness) { order += "watch "; });
  Timer timer(reactor, [&] { order += "timer "; });
  hooks.on_close = [&](Connection&, const CloseRecord&) {
    order += written.connection->backlog_bytes() == 0 ? "flushed close " : "close ";
  };

  ended.connection->abort();
  REQUIRE(reactor.post([&] {
    order += "task ";
    written.connection->send("bytes");
    CHECK(reactor.post([&] { order += "next "; }));
  }));
  REQUIRE(timer.arm_after(0ms));
  pipe.put();
  test::turn_at_once(reactor);
  CHECK(order == "watch timer task flushed close ");

  pipe.take();
  REQUIRE(reactor.turn(1h));  // a task that waits keeps the turn from waiting
  CHECK(order == "watch timer task flushed close next ");
  hooks.on_close = nullptr;
}

TEST_CASE("a turn waits no longer than it is told") {
  Reactor reactor;
  const Instant begun = reactor.now();
  REQUIRE(reactor.turn(5ms));
  CHECK(reactor.now() - begun >= 5ms);
  REQUIRE(reactor.turn(0ms));
  CHECK(reactor.turn(-1ns).error() == Error{"run", EINVAL});
  CHECK(reactor.turn(Duration::min()).error() == Error{"run", EINVAL});
}

TEST_CASE("the longest waits a turn can be told end with an event") {
  Reactor reactor;
  const Pipe pipe;
  int called = 0;
  const Watch watch = *reactor.watch(pipe.reading(), WatchFor::readable, [&](Readiness) { ++called; });
  pipe.put();
  for (const Duration wait : {Duration::max(), Duration::max() - 1ns, Duration(vigil::longest_timeout)})
    REQUIRE(reactor.turn(wait));
  CHECK(called == 3);
}

// --- timers

TEST_CASE("a timer never fires early, whatever its delay and the tick") {
  for (const Duration tick : {Duration(100us), Duration(1ms), Duration(7ms)}) {
    Reactor reactor({.tick = tick});
    struct One {
      Timer timer;
      Instant due;
    };
    std::vector<One> timers(60);
    std::size_t fired = 0;
    for (std::size_t index = 0; index < timers.size(); ++index) {
      One& one = timers[index];
      one.timer = Timer(reactor, [&reactor, &one, &fired] {
        CHECK(reactor.now() >= one.due);
        CHECK_FALSE(one.timer.armed());
        ++fired;
      });
      const Duration delay = std::chrono::microseconds(337) * index;
      one.due = reactor.now() + delay;
      REQUIRE(one.timer.arm_after(delay));
      CHECK(one.timer.armed());
    }
    CHECK(test::turn_until(reactor, [&] { return fired == timers.size(); }));
  }
}

TEST_CASE("a timer armed behind a callback that worked long is not early either") {
  Reactor reactor;
  Instant due{};
  bool fired = false;
  Timer timer(reactor, [&] {
    CHECK(reactor.now() >= due);
    fired = true;
  });
  REQUIRE(reactor.post([&] {
    test::work_for(50ms);
    due = reactor.now() + 10ms;
    CHECK(timer.arm_after(10ms));
  }));
  CHECK(test::turn_until(reactor, [&] { return fired; }));
}

TEST_CASE("a timer with no delay fires in the next turn, also when that turn does not wait") {
  Reactor reactor;
  int fired = 0;
  Timer timer(reactor, [&] { ++fired; });
  for (int round = 1; round <= 100; ++round) {
    REQUIRE((round % 2 == 0 ? timer.arm_after(0ns) : timer.arm_at(reactor.now())));
    test::turn_at_once(reactor);
    CHECK(fired == round);
  }
}

TEST_CASE("a timer that arms itself again at once fires once a turn") {
  Reactor reactor;
  int fired = 0;
  Timer timer;
  timer = Timer(reactor, [&] {
    ++fired;
    CHECK(timer.arm_after(0ns));
  });
  REQUIRE(timer.arm_after(0ns));
  for (int turn = 1; turn <= 10; ++turn) {
    test::turn_at_once(reactor);
    CHECK(fired == turn);
  }
}

TEST_CASE("a timer cancels and disarms others that are due in the same tick") {
  Reactor reactor;
  std::vector<Timer> timers;
  int fired = 0;
  for (int count = 0; count < 10; ++count)
    timers.emplace_back(reactor, [&] {
      ++fired;
      for (std::size_t index = 0; index < timers.size(); ++index)
        index % 2 == 0 ? timers[index].cancel() : timers[index].disarm();
    });
  for (Timer& timer : timers) REQUIRE(timer.arm_at(Instant{}));
  test::turn_at_once(reactor);
  test::turn_at_once(reactor);
  CHECK(fired == 1);
  CHECK(timers[1].active());
  CHECK_FALSE(timers[2].active());
  CHECK(timers[2].arm_after(1ms).error() == Error{"arm timer", ECANCELED});
}

TEST_CASE("arming an armed timer moves it") {
  Reactor reactor;
  std::string order;
  Timer first(reactor, [&] { order += '1'; });
  Timer second(reactor, [&] { order += '2'; });
  REQUIRE(first.arm_after(1ms));
  REQUIRE(second.arm_after(20ms));
  REQUIRE(first.arm_after(40ms));
  REQUIRE(test::turn_until(reactor, [&] { return order.size() == 2; }));
  CHECK(order == "21");
}

TEST_CASE("a timer refuses delays that are negative or longer than ten years, and an empty callback") {
  Reactor reactor;
  Timer timer(reactor, [] {});
  CHECK(timer.arm_after(-1ns).error() == Error{"arm timer", EINVAL});
  CHECK(timer.arm_after(Duration::min()).error() == Error{"arm timer", EINVAL});
  CHECK(timer.arm_after(Duration::max()).error() == Error{"arm timer", EINVAL});
  CHECK(timer.arm_after(vigil::longest_timeout + 1ns).error() == Error{"arm timer", EINVAL});
  CHECK_FALSE(timer.armed());
  CHECK(timer.arm_after(vigil::longest_timeout));
  CHECK(timer.arm_at(vigil::never_due));
  CHECK(timer.armed());
  Timer empty(reactor, vigil::Task());
  CHECK_FALSE(empty.active());
  Timer none;
  CHECK(none.arm_after(1ms).error() == Error{"arm timer", ECANCELED});
}

TEST_CASE("registrations move, and the place they are moved to is cancelled first") {
  Reactor reactor;
  std::string fired;
  Timer first(reactor, [&] { fired += '1'; });
  Timer second(reactor, [&] { fired += '2'; });
  REQUIRE(first.arm_after(0ms));
  REQUIRE(second.arm_after(0ms));
  second = std::move(first);
  CHECK_FALSE(first.active());  // NOLINT: moved from means empty
  Timer& itself = second;
  second = std::move(itself);
  test::turn_at_once(reactor);
  CHECK(fired == "1");
}

// --- watches

TEST_CASE("a watch is told again each turn as long as its descriptor is ready") {
  Reactor reactor;
  const Pipe pipe;
  int called = 0;
  const Watch watch = *reactor.watch(pipe.reading(), WatchFor::readable, [&](Readiness readiness) {
    CHECK(readiness.any_of(Readiness::readable));
    ++called;
  });
  test::turn_at_once(reactor);
  CHECK(called == 0);
  pipe.put();
  test::turn_at_once(reactor);
  test::turn_at_once(reactor);
  CHECK(called == 2);
  pipe.take();
  test::turn_at_once(reactor);
  CHECK(called == 2);
}

TEST_CASE("a watch can be changed, and told of its other end's end") {
  Reactor reactor;
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) == 0);
  std::string seen;
  Watch watch = *reactor.watch(ends[0], WatchFor::readable, [&](Readiness readiness) {
    seen += readiness.any_of(Readiness::readable) ? 'r' : '-';
    seen += readiness.any_of(Readiness::writable) ? 'w' : '-';
    seen += readiness.any_of(Readiness::ended) ? 'e' : '-';
    seen += ' ';
  });
  test::turn_at_once(reactor);
  CHECK(watch.change(WatchFor::writable));
  test::turn_at_once(reactor);
  REQUIRE(::write(ends[1], "x", 1) == 1);
  test::turn_at_once(reactor);
  CHECK(watch.change(WatchFor::both));
  test::turn_at_once(reactor);
  ::close(ends[1]);
  test::turn_at_once(reactor);
  CHECK(seen == "-w- -w- rw- rwe ");
  watch.cancel();
  test::turn_at_once(reactor);
  CHECK(seen == "-w- -w- rw- rwe ");
  CHECK(watch.change(WatchFor::both).error() == Error{"watch", ECANCELED});
  ::close(ends[0]);
}

TEST_CASE("a watch says what is wrong with a descriptor, and nothing is kept of it") {
  Reactor reactor;
  const Pipe pipe;
  const auto alive = std::make_shared<int>(0);
  const auto callback = [alive](Readiness) {};
  Watch first = *reactor.watch(pipe.reading(), WatchFor::readable, callback);
  CHECK(reactor.watch(pipe.reading(), WatchFor::readable, callback).error() == Error{"watch", EEXIST});
  CHECK(reactor.watch(-1, WatchFor::readable, callback).error() == Error{"watch", EBADF});
  CHECK(reactor.watch(1'000'000, WatchFor::both, callback).error() == Error{"watch", EBADF});
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  CHECK(reactor.watch(::fileno(file), WatchFor::readable, callback).error() == Error{"watch", EPERM});
  std::fclose(file);
  CHECK(reactor.watch(pipe.writing(), WatchFor::readable, vigil::Callback<void(Readiness)>()).error() == Error{"watch", EINVAL});
  test::turn_at_once(reactor);
  CHECK(alive.use_count() == 3);  // this one, callback's and the first watch's
  first.cancel();
  CHECK(reactor.watch(pipe.reading(), WatchFor::readable, callback));
}

TEST_CASE("a watch can be cancelled by another one of the same turn, and its descriptor's number reused there") {
  Reactor reactor;
  std::array<int, 2> descriptors{};
  std::array<Watch, 2> watches;
  int called = 0;
  int called_anew = 0;
  Watch anew;
  int reused = -1;
  for (std::size_t index = 0; index < 2; ++index) {
    descriptors[index] = ::eventfd(1, EFD_CLOEXEC);
    watches[index] = *reactor.watch(descriptors[index], WatchFor::readable, [&, index](Readiness) {
      ++called;
      const std::size_t other = 1 - index;
      watches[other].cancel();
      ::close(descriptors[other]);
      reused = ::eventfd(0, EFD_CLOEXEC);
      CHECK(reused == descriptors[other]);
      anew = *reactor.watch(reused, WatchFor::readable, [&](Readiness) { ++called_anew; });
      watches[index].cancel();
    });
  }
  test::turn_at_once(reactor);
  test::turn_at_once(reactor);
  CHECK(called == 1);
  CHECK(called_anew == 0);
  anew.cancel();
  for (const int descriptor : descriptors) ::close(descriptor);  // one of them is the reused number
}

// --- signals

bool is_blocked(int signal_number) {
  sigset_t mask;
  REQUIRE(::pthread_sigmask(SIG_BLOCK, nullptr, &mask) == 0);
  return ::sigismember(&mask, signal_number) == 1;
}

TEST_CASE("a signal is told on the reactor's thread, and cancelling gives the mask back") {
  Reactor reactor;
  int number = 0;
  REQUIRE_FALSE(is_blocked(SIGUSR1));
  Watch watch = *reactor.on_signal(SIGUSR1, [&](int signal_number) { number = signal_number; });
  CHECK(is_blocked(SIGUSR1));
  REQUIRE(::raise(SIGUSR1) == 0);
  CHECK(number == 0);
  test::turn_at_once(reactor);
  CHECK(number == SIGUSR1);
  number = 0;
  test::turn_at_once(reactor);
  CHECK(number == 0);
  watch.cancel();
  CHECK_FALSE(is_blocked(SIGUSR1));
}

TEST_CASE("a signal that was blocked before stays blocked, and the reactor's end gives masks back too") {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  REQUIRE(::pthread_sigmask(SIG_BLOCK, &mask, nullptr) == 0);
  Watch kept;
  {
    Reactor reactor;
    kept = *reactor.on_signal(SIGUSR1, [](int) {});
    Watch watch = *reactor.on_signal(SIGUSR2, [](int) {});
    CHECK(is_blocked(SIGUSR1));
  }
  CHECK_FALSE(is_blocked(SIGUSR1));
  CHECK(is_blocked(SIGUSR2));
  REQUIRE(::pthread_sigmask(SIG_UNBLOCK, &mask, nullptr) == 0);
}

TEST_CASE("numbers that are no signal, and signals nobody can catch, are refused") {
  Reactor reactor;
  for (const int number : {0, -1, 1000, SIGKILL, SIGSTOP}) {
    CAPTURE(number);
    const auto watch = reactor.on_signal(number, [](int) {});
    REQUIRE_FALSE(watch);
    CHECK(watch.error() == Error{"on_signal", EINVAL});
  }
  CHECK(reactor.on_signal(SIGUSR1, vigil::Callback<void(int)>()).error() == Error{"on_signal", EINVAL});
  CHECK_FALSE(is_blocked(SIGUSR1));
}

// --- run, stop, turn

TEST_CASE("a stop lets the turn finish, and what was ready is dispatched by the next run") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  std::vector<test::Client> clients;
  for (int count = 0; count < 5; ++count) clients.push_back(test::connect_client(reactor, hooks, server.address));
  int received = 0;
  int tasks = 0;
  hooks.on_receive = [&](Connection&, Bytes) {
    ++received;
    reactor.stop();
  };
  REQUIRE(reactor.post([&] { ++tasks; }));
  for (test::Client& client : clients) client.peer.send("x");

  for (int run = 1; run <= 5; ++run) {
    REQUIRE(reactor.run());
    CHECK(received == run);
    CHECK(tasks == 1);
  }
}

TEST_CASE("a stop while not running is forgotten") {
  Reactor reactor;
  reactor.stop();
  Timer timer(reactor, [&] { reactor.stop(); });
  REQUIRE(timer.arm_after(1ms));
  REQUIRE(reactor.run());
  CHECK(reactor.counters().timers_fired == 1);
}

// --- shutdown

struct Shutting {
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener server{reactor, hooks};
};

TEST_CASE("shutting down an idle reactor ends its run at once and for good") {
  Reactor reactor;
  REQUIRE(reactor.post([&] { CHECK(reactor.shutdown(1h)); }));
  REQUIRE(reactor.run());
  REQUIRE(reactor.run());
  Listener<test::HookedHandler> listener(reactor, {}, [](Connection&) -> test::HookedHandler { std::abort(); });
  CHECK(listener.listen("127.0.0.1:0").error() == Error{"listen", ESHUTDOWN});
  CHECK(listener.address().error() == Error{"address", ENOTCONN});
  Connector<test::HookedHandler> connector(reactor, {}, [](Connection&) -> test::HookedHandler { std::abort(); });
  CHECK(connector.connect("127.0.0.1:1").error() == Error{"connect", ESHUTDOWN});
}

TEST_CASE("a shutdown's drain is between nothing and ten years") {
  Reactor reactor;
  CHECK(reactor.shutdown(-1ns).error() == Error{"shutdown", EINVAL});
  CHECK(reactor.shutdown(vigil::longest_timeout + 1ns).error() == Error{"shutdown", EINVAL});
  CHECK(reactor.shutdown(vigil::longest_timeout));
}

TEST_CASE("a shutdown ends idle, draining and connecting connections gracefully, each with its own reason") {
  Shutting play;
  test::Client idle = test::connect_client(play.reactor, play.hooks, play.server.address);
  test::Client closing = test::connect_client(play.reactor, play.hooks, play.server.address);
  closing.connection->close();
  const test::FullBacklog nobody;
  Connector<test::HookedHandler> connector(play.reactor, {}, play.hooks.make());
  REQUIRE(connector.connect(nobody.address()));
  test::turn_at_once(play.reactor);

  play.hooks.calling([&] { REQUIRE(play.reactor.shutdown(1min)); });
  CHECK(play.hooks.records.empty());
  CHECK_FALSE(play.server.listener.address());  // nobody new
  REQUIRE(test::turn_until(play.reactor, [&] { return idle.peer.read().finished && closing.peer.read().finished; }));
  idle.peer.close();
  closing.peer.close();
  REQUIRE(play.reactor.run());

  REQUIRE(play.hooks.records.size() == 3);
  int stopping = 0;
  for (const CloseRecord& record : play.hooks.records) {
    CHECK(record.cut_short == CutShort::none);
    if (record.reason == CloseReason::server_stopping)
      ++stopping;
    else
      CHECK(record.reason == CloseReason::local_close);
  }
  CHECK(stopping == 2);
  test::check_all_told(play.reactor);
}

TEST_CASE("a shutdown sends what is queued before our end") {
  Shutting play;
  test::Client client = test::connect_client(play.reactor, play.hooks, play.server.address);
  const std::string lot = test::pattern(8 * 1024 * 1024);
  client.connection->send(lot);
  REQUIRE(play.reactor.shutdown(1min));
  REQUIRE(test::turn_until(play.reactor, [&] { return client.peer.read(64 * 1024).finished; }));
  CHECK(test::same(client.peer.received, lot));
  client.peer.close();
  REQUIRE(play.reactor.run());
  REQUIRE(play.hooks.records.size() == 1);
  CHECK(play.hooks.records[0].reason == CloseReason::server_stopping);
  CHECK(play.hooks.records[0].unsent == 0);
}

TEST_CASE("peers that never end theirs are cut short when the shutdown's drain is over") {
  Shutting play;
  const test::Client idle = test::connect_client(play.reactor, play.hooks, play.server.address);
  const test::Client stalled = test::connect_client(play.reactor, play.hooks, play.server.address);
  stalled.connection->send(std::string(12 * 1024 * 1024, 's'));
  const Instant begun = play.reactor.now();

  REQUIRE(play.reactor.shutdown(20ms));
  REQUIRE(play.reactor.run());

  CHECK(play.reactor.now() - begun >= 20ms);
  REQUIRE(play.hooks.records.size() == 2);
  for (const CloseRecord& record : play.hooks.records) {
    CHECK(record.reason == CloseReason::server_stopping);
    CHECK(record.cut_short == CutShort::timed_out);
  }
}

TEST_CASE("a shutdown without a drain tells every record in one turn") {
  Shutting play;
  std::vector<test::Client> clients;
  for (int count = 0; count < 50; ++count) clients.push_back(test::connect_client(play.reactor, play.hooks, play.server.address));
  REQUIRE(play.reactor.shutdown(0ms));
  test::turn_at_once(play.reactor);
  CHECK(play.hooks.records.size() == clients.size());
  REQUIRE(play.reactor.run());
  for (const CloseRecord& record : play.hooks.records) CHECK(record.reason == CloseReason::server_stopping);
}

// --- what is latched

/// Every door of a reactor that could not be made answers what went wrong.
void check_latched(Reactor& reactor, const Error& expected) {
  test::Hooks hooks;
  Listener<test::HookedHandler> listener(reactor, {}, hooks.make());
  Connector<test::HookedHandler> connector(reactor, {}, hooks.make());
  CHECK(listener.listen("127.0.0.1:0").error() == expected);
  CHECK(connector.connect("127.0.0.1:1").error() == expected);
  CHECK(reactor.run().error() == expected);
  CHECK(reactor.turn(0ms).error() == expected);
  CHECK(reactor.watch(0, WatchFor::readable, [](Readiness) {}).error() == expected);
  CHECK(reactor.on_signal(SIGUSR1, [](int) {}).error() == expected);
  CHECK(reactor.post([] {}).error() == expected);
  CHECK(reactor.shutdown(0ms).error() == expected);
  CHECK_FALSE(is_blocked(SIGUSR1));
  Timer timer(reactor, [] {});
  (void)timer.arm_after(0ms);
  (void)reactor.mailbox().post([] {});
  (void)reactor.mailbox().stop();
  reactor.stop();
}

TEST_CASE("options out of range are answered by whatever is tried first, and name the option") {
  constexpr std::size_t too_much = std::numeric_limits<std::size_t>::max();
  const std::pair<ReactorOptions, std::string> wrong[] = {
      {{.tick = 99us}, "tick"},
      {{.tick = 0ns}, "tick"},
      {{.tick = -1ms}, "tick"},
      {{.tick = 1001ms}, "tick"},
      {{.receive_buffer_bytes = 1023}, "receive_buffer_bytes"},
      {{.receive_buffer_bytes = too_much}, "receive_buffer_bytes"},
      {{.gather_buffer_bytes = 0}, "gather_buffer_bytes"},
      {{.gather_buffer_bytes = 16 * 1024 * 1024 + 1}, "gather_buffer_bytes"},
      {{.events_per_wait = 0}, "events_per_wait"},
      {{.events_per_wait = 65'537}, "events_per_wait"},
      {{.reads_per_turn = 0}, "reads_per_turn"},
      {{.reads_per_turn = 1025}, "reads_per_turn"},
      {{.timeouts = {.receive = 0ms}}, "receive"},
      {{.timeouts = {.send = -5s}}, "send"},
      {{.timeouts = {.connect = std::chrono::years(11)}}, "connect"},
      {{.timeouts = {.drain = vigil::never}}, "drain"},
      {{.timeouts = {.accept = std::chrono::duration<double>(std::numeric_limits<double>::quiet_NaN())}}, "accept"},
  };
  for (const auto& [options, name] : wrong) {
    CAPTURE(name);
    Reactor reactor(options);
    check_latched(reactor, Error{"reactor", EINVAL});
    CHECK(std::string(reactor.run().error().detail).find(name) != std::string::npos);
  }
}

TEST_CASE("the ends of every option's range work") {
  for (const ReactorOptions& options :
       {ReactorOptions{
            .tick = 100us, .receive_buffer_bytes = 1024, .gather_buffer_bytes = 1024, .events_per_wait = 1, .reads_per_turn = 1},
        ReactorOptions{.timeouts = {.connect = 1ms, .receive = vigil::longest_timeout},
        .tick = 1s,
        .receive_buffer_bytes = 16 * 1024 * 1024,
        .gather_buffer_bytes = 16 * 1024 * 1024,
        .events_per_wait = 65'536,
        .reads_per_turn = 1024}}) {
    test::Hooks hooks;
    Reactor reactor(options);
    const test::HookedListener server(reactor, hooks);
    hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
    test::Client client = test::connect_client(reactor, hooks, server.address);
    const std::string lot = test::pattern(100'000);
    client.peer.send(lot);
    CHECK(test::turn_until(reactor, [&] { return client.peer.read().received.size() == lot.size(); }));
    CHECK(test::same(client.peer.received, lot));
  }
}

TEST_CASE("a reactor made without a descriptor left says so, keeps none, and ends well") {
  // One descriptor for the poller, one for the reserve, one for the mailbox: fail at each.
  for (int spare = 0; spare < 3; ++spare) {
    CAPTURE(spare);
    std::vector<int> held;
    for (int count = 0; count < spare; ++count) held.push_back(::dup(0));
    std::optional<test::NoDescriptorsLeft> none(std::in_place);
    for (const int descriptor : held) ::close(descriptor);
    Reactor reactor;
    CHECK(reactor.run().error() == Error{"reactor", EMFILE});
    none.reset();  // what was missing then is missing still
    check_latched(reactor, Error{"reactor", EMFILE});
  }
}

}  // namespace
