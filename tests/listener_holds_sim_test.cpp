// What holds accepting, on virtual time: the user's pause, the maximum of connections, the accept rate, each alone and together
// with a want of descriptors.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rate_limit.hpp"
#include "support/observed_listener.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr Duration tick = 1ms;

/// Ends a connection at once, by its peer's reset.
void end_one(Observed& world, int peer) {
  world.kernel.peer_resets(peer);
  world.settle();
}

std::size_t opened(const Observed& world) { return world.story.opened.size(); }

/// Puts the process's timeouts back.
class DefaultTimeouts {
 public:
  ~DefaultTimeouts() { (void)set_default_timeouts(before_); }

 private:
  Timeouts before_ = default_timeouts();
};

}  // namespace

// The user's pause -----------------------------------------------------------------------------------------------------------

TEST_CASE("after a pause nobody is accepted and nothing wakes for who comes, until accepting is resumed") {
  Observed world;
  world.observed->pause_accepting();
  world.observed->pause_accepting();
  CHECK_FALSE(world.is_watched());
  const std::vector<int> peers = world.peers_connect(3);
  world.kernel.forget_calls();
  world.run_for(10s);
  CHECK(world.kernel.count(Call::accept) == 0);
  CHECK(world.kernel.count(Call::epoll_control) == 0);
  CHECK(world.kernel.count(Call::epoll_wait) <= 8);

  world.observed->resume_accepting();
  CHECK(world.is_watched());
  CHECK(world.story.opened.empty());  // nothing is accepted from inside the call
  world.settle();
  CHECK(world.story.opened == peers);
  CHECK(world.kernel.count(Call::epoll_control) == 1 + 3);  // the interest back, and the three registered
  world.observed->resume_accepting();
  world.settle();
  CHECK(world.kernel.count(Call::epoll_control) == 1 + 3);
  CHECK(world.events.paused.empty());
  CHECK(world.events.resumed_after.empty());
  CHECK(world.reactor->counters().shed == 0);
}

TEST_CASE("a pause inside on_open is the end of the batch, and one resumed there is none") {
  Observed world;
  bool resumes = false;
  SUBCASE("paused") {}
  SUBCASE("paused and resumed") { resumes = true; }
  world.story.on_open = [&](Connection&) {
    world.observed->pause_accepting();
    if (resumes) world.observed->resume_accepting();
  };
  const std::vector<int> peers = world.peers_connect(3);
  world.settle();
  if (resumes) {
    CHECK(world.story.opened == peers);
    return;
  }
  for (std::size_t count = 1; count <= 3; ++count) {
    CHECK(opened(world) == count);
    world.observed->resume_accepting();
    world.settle();
  }
}

TEST_CASE("a pause holds before the first listen, and across close and listen") {
  Observed world;
  world.observed->close();
  world.observed->pause_accepting();
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  CHECK_FALSE(world.is_watched());
  world.observed->close();
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  const std::vector<int> peers = world.peers_connect(2);
  world.run_for(1s);
  CHECK(opened(world) == 0);
  world.observed->resume_accepting();
  world.settle();
  CHECK(world.story.opened == peers);
}

TEST_CASE("an event that was read before the pause is not answered by an accept") {
  Observed world;
  const int established = world.peers_connect(1).front();
  world.settle();
  world.story.on_receive = [&](Connection&, std::string_view) { world.observed->pause_accepting(); };
  world.kernel.peer_sends(established, "stop");
  (void)world.peers_connect(1);
  world.kernel.forget_calls();
  world.settle();
  CHECK(world.kernel.count(Call::accept) == 0);
  CHECK(opened(world) == 1);
}

TEST_CASE("the accept deadline stands still during a pause and goes on with the time that was left") {
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  Observed world(options);
  world.run_for(200ms);
  world.observed->pause_accepting();
  world.run_for(10s);
  CHECK(world.events.timed_out.empty());
  world.observed->resume_accepting();
  const Instant resumed = world.kernel.now();
  world.run_for(100ms);
  REQUIRE(world.events.timed_out.size() == 1);
  CHECK(world.events.timed_out[0] >= resumed + 50ms);
  CHECK(world.events.timed_out[0] <= resumed + 50ms + tick);
  CHECK(world.events.timed_out_after[0] >= 250ms);
  CHECK(world.events.timed_out_after[0] <= 250ms + tick);
}

TEST_CASE("the accept deadline of a listener that begins paused has its whole time when accepting is resumed") {
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  Observed world(options);
  world.observed->close();
  world.observed->pause_accepting();
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.run_for(3s);
  CHECK(world.events.timed_out.empty());
  const Instant resumed = world.kernel.now();
  world.observed->resume_accepting();
  world.run_for(300ms);
  REQUIRE(world.events.timed_out.size() == 1);
  CHECK(world.events.timed_out[0] >= resumed + 250ms);
  CHECK(world.events.timed_out[0] <= resumed + 250ms + tick);
}

// The maximum of connections -------------------------------------------------------------------------------------------------

TEST_CASE("at the maximum of connections the kernel's queue waits, and each that ends lets one in") {
  Observed world({.connections_max = 3});
  const std::vector<int> peers = world.peers_connect(10);
  world.settle();
  for (std::size_t ended = 0; ended < 7; ++ended) {
    CHECK(opened(world) == 3 + ended);
    CHECK(world.observed->connections() == 3);
    CHECK_FALSE(world.is_watched());
    world.kernel.forget_calls();
    world.run_for(1s);
    CHECK(world.kernel.count(Call::accept) == 0);
    CHECK(world.kernel.count(Call::epoll_wait) <= 4);
    end_one(world, peers[ended]);
  }
  CHECK(world.story.opened == peers);
  for (std::size_t ended = 7; ended < 10; ++ended) end_one(world, peers[ended]);
  CHECK(world.observed->connections() == 0);
  CHECK(world.is_watched());
  CHECK(world.reactor->counters().shed == 0);
  CHECK(world.reactor->counters().accept_pauses == 0);
  CHECK(world.events.paused.empty());
}

TEST_CASE("the accept deadline stands still at the maximum of connections") {
  ListenerOptions options{.connections_max = 1};
  options.timeouts.accept = 250ms;
  Observed world(options);
  world.run_for(100ms);
  const int peer = world.peers_connect(1).front();
  world.settle();
  world.run_for(3s);
  CHECK(world.events.timed_out.empty());
  const Instant ended = world.kernel.now();
  end_one(world, peer);
  world.run_for(300ms);
  REQUIRE(world.events.timed_out.size() == 1);
  CHECK(world.events.timed_out[0] >= ended + 250ms);
  CHECK(world.events.timed_out[0] <= ended + 250ms + 2 * tick);
}

TEST_CASE("a connection counts until it is told, however it came to nothing") {
  Observed world({.connections_max = 1});
  SUBCASE("it could not be watched") {
    world.kernel.will_fail(Call::epoll_control, ENOSPC);
    (void)world.peers_connect(1);
    world.settle();
    CHECK(world.story.records.size() == 1);
  }
  SUBCASE("it was closed in on_open") {
    world.story.on_open = [](Connection& connection) { connection.abort(); };
    (void)world.peers_connect(3);
    world.settle();
    CHECK(world.story.records.size() == 3);
    world.story.on_open = nullptr;
  }
  SUBCASE("it had timeouts of its own") {
    world.story.on_open = [](Connection& connection) { CHECK(connection.set_timeout(Deadline::receive, 1h)); };
    end_one(world, world.peers_connect(1).front());
    world.settle();
    REQUIRE(world.story.records.size() == 1);
  }
  SUBCASE("it died while it waited") {
    world.kernel.will_fail_to_accept(world.listening, ECONNABORTED);
    world.settle();
  }
  CHECK(world.observed->connections() == 0);
  const std::vector<int> peers = world.peers_connect(2);
  world.settle();
  CHECK(world.story.opened.back() == peers[0]);
  CHECK(world.observed->connections() == 1);
  end_one(world, peers[0]);
  CHECK(world.story.opened.back() == peers[1]);
}

TEST_CASE("a handler that ends its connection while it is built counts it no longer than until it is told") {
  Observed world;
  Story story;
  bool aborts = true;
  Listener<Actor> listener(*world.reactor, {.connections_max = 1}, [&](Connection& connection) {
    if (aborts) connection.abort();
    return Actor(story, connection);
  });
  REQUIRE(listener.listen("127.0.0.1:7002"));
  const int listening = world.kernel.listener();
  for (int count = 0; count < 3; ++count) (void)world.kernel.peer_connects(listening);
  world.settle();
  CHECK(story.opened.empty());
  CHECK(story.records.size() == 3);
  CHECK(listener.connections() == 0);
  aborts = false;
  (void)world.kernel.peer_connects(listening);
  (void)world.kernel.peer_connects(listening);
  world.settle();
  CHECK(story.opened.size() == 1);
  CHECK(listener.connections() == 1);
  listener.close();
  CHECK(story.handles.at(story.opened.front())->abort());
  world.settle();
  CHECK(listener.connections() == 0);
}

TEST_CASE("the count stays right when the policy is made anew for new process timeouts") {
  const DefaultTimeouts process;
  Observed world({.connections_max = 2});
  const int before = world.peers_connect(1).front();
  world.settle();
  Timeouts timeouts = default_timeouts();
  timeouts.receive = 1h;
  REQUIRE(set_default_timeouts(timeouts));
  const std::vector<int> after = world.peers_connect(2);
  world.settle();
  CHECK(opened(world) == 2);
  end_one(world, before);
  CHECK(opened(world) == 3);
  end_one(world, after[0]);
  end_one(world, after[1]);
  CHECK(world.observed->connections() == 0);
}

TEST_CASE("listeners of one reactor count separately") {
  Observed world({.connections_max = 1});
  Story story;
  Listener<Actor> other(*world.reactor, {.connections_max = 1}, [&](Connection& connection) { return Actor(story, connection); });
  REQUIRE(other.listen("127.0.0.1:7002"));
  const int listening = world.kernel.listener();
  const std::vector<int> peers = world.peers_connect(2);
  const int first = world.kernel.peer_connects(listening);
  (void)world.kernel.peer_connects(listening);
  world.settle();
  CHECK(opened(world) == 1);
  CHECK(story.opened == std::vector<int>{first});
  end_one(world, peers[0]);
  CHECK(opened(world) == 2);
  CHECK(story.opened.size() == 1);
  CHECK(other.connections() == 1);
  other.close();
  CHECK(story.handles.at(first)->abort());
  world.settle();
}

TEST_CASE("connections of before a close count when the listener listens again") {
  Observed world({.connections_max = 2});
  const std::vector<int> old = world.peers_connect(2);
  world.settle();
  world.observed->close();
  end_one(world, old[0]);
  CHECK(world.observed->connections() == 1);
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  const std::vector<int> fresh = world.peers_connect(2);
  world.settle();
  CHECK(opened(world) == 3);
  end_one(world, old[1]);
  CHECK(opened(world) == 4);
  world.observed->close();
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  (void)world.peers_connect(1);
  world.run_for(1s);
  CHECK(opened(world) == 4);  // full from its first moment
  end_one(world, fresh[0]);
  CHECK(opened(world) == 5);
}

TEST_CASE("a listener destroyed before its connections is not told of them, nor is the next one in its slot") {
  Observed world({.connections_max = 2});
  const std::vector<int> peers = world.peers_connect(2);
  world.settle();
  world.observed.reset();
  world.settle();
  world.observed.emplace(*world.reactor, ListenerOptions{.connections_max = 1},
                         [&](Connection& connection) { return Actor(world.story, connection); });
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  const int later = world.peers_connect(2).front();
  world.settle();
  CHECK(opened(world) == 3);
  CHECK(world.observed->connections() == 1);
  end_one(world, peers[0]);
  end_one(world, peers[1]);
  CHECK(world.observed->connections() == 1);
  CHECK(opened(world) == 3);
  end_one(world, later);
  CHECK(opened(world) == 4);
}

// The accept rate ------------------------------------------------------------------------------------------------------------

TEST_CASE("an accept rate is never passed over any stretch of time, hardly fallen short of, and nobody is shed") {
  std::uint32_t rate = 0;
  SUBCASE("5") { rate = 5; }
  SUBCASE("100") { rate = 100; }
  SUBCASE("3000") { rate = 3000; }
  Observed world({.accept_rate = rate});
  std::vector<Instant> accepted;
  world.story.on_open = [&](Connection& connection) {
    accepted.push_back(world.kernel.now());
    connection.abort();
  };
  const Instant start = world.kernel.now();
  // More come than may, all the time.
  world.kernel.forget_calls();
  for (Duration at{}; at < 4s; at += 10ms)
    world.kernel.at(start + at, [&world, rate] { (void)world.peers_connect(static_cast<int>(rate / 100 + 1)); });
  world.run_for(4s);

  const auto burst = static_cast<std::size_t>(RateLimit::burst_of(rate));
  std::size_t too_many = 0;  // counted, not checked one by one: there are over a million stretches
  for (std::size_t last = 0; last < accepted.size(); ++last)
    for (std::size_t first = 0; first <= last; first += 1 + (last - first) / 16) {
      const double seconds = std::chrono::duration<double>(accepted[last] - accepted[first]).count();
      if (static_cast<double>(last - first + 1) > rate * seconds + static_cast<double>(burst) + 1e-6) ++too_many;
    }
  CHECK(too_many == 0);
  CHECK(accepted.size() >= rate * 4 * 98 / 100);
  CHECK(accepted.size() <= rate * 4 + burst);
  CHECK(world.reactor->counters().shed == 0);
  CHECK(world.events.paused.empty());
  // One wait for each arrival, one for each tick at most in which a connection is free, and as many for the ends.
  CHECK(world.kernel.count(Call::epoll_wait) <= 400 + 3 * std::min<std::size_t>(4000, accepted.size()) + 100);
}

TEST_CASE("held by the rate nothing wakes before the next is free, and it is accepted on time") {
  Observed world({.accept_rate = 2});
  const std::vector<int> peers = world.peers_connect(3);
  world.settle();
  CHECK(opened(world) == 1);
  CHECK_FALSE(world.is_watched());
  for (std::size_t count = 2; count <= 3; ++count) {
    const Instant before = world.kernel.now();
    while (opened(world) < count) world.turn();
    CHECK(world.kernel.now() >= before + 499ms);
    CHECK(world.kernel.now() <= before + 500ms + 2 * tick);
  }
  world.run_for(1s);
  CHECK(world.is_watched());  // nobody is left: the poller tells of the next
}

TEST_CASE("a loop that was stopped for seconds accepts a burst and no more") {
  Observed world({.accept_rate = 100});
  (void)world.peers_connect(1000);
  world.settle();
  CHECK(opened(world) == 10);
  world.kernel.advance(5s);
  world.turn();
  world.settle();
  CHECK(opened(world) == 20);
  world.run_for(100ms);
  CHECK(opened(world) >= 29);
  CHECK(opened(world) <= 30);
}

TEST_CASE("closing and listening again gives no second burst") {
  Observed world({.accept_rate = 10});
  (void)world.peers_connect(5);
  world.settle();
  CHECK(opened(world) == 1);
  world.observed->close();
  REQUIRE(world.observed->listen("127.0.0.1:7001"));
  world.listening = world.kernel.listener();
  (void)world.peers_connect(5);
  world.settle();
  CHECK(opened(world) == 1);
  world.run_for(100ms + tick);
  CHECK(opened(world) == 2);
}

TEST_CASE("the accept deadline stands still while the rate holds, and each accept begins it anew") {
  ListenerOptions options{.accept_rate = 1};
  options.timeouts.accept = 250ms;
  Observed world(options);
  (void)world.peers_connect(3);
  world.run_for(2500ms);
  CHECK(opened(world) == 3);
  CHECK(world.events.timed_out.empty());
  world.run_for(2s);  // held until the third second is over, then 250 ms
  REQUIRE_FALSE(world.events.timed_out.empty());
  CHECK(world.events.timed_out_after[0] >= 250ms);
  CHECK(world.events.timed_out_after[0] <= 250ms + 2 * tick);
}

TEST_CASE("an accept rate out of range is refused and says so") {
  Simulation world;
  Story story;
  Listener<Actor> listener(*world.reactor, {.accept_rate = 1'000'001},
                           [&](Connection& connection) { return Actor(story, connection); });
  const auto listening = listener.listen("127.0.0.1:7001");
  REQUIRE_FALSE(listening);
  CHECK(listening.error() == Error{"listen", EINVAL});
  CHECK(std::string(listening.error().detail).find("accept_rate") != std::string::npos);
}

// Several causes at once -----------------------------------------------------------------------------------------------------

TEST_CASE("the last cause to go lets accepting go on, in whichever order they go") {
  Observed world({.connections_max = 1, .accept_rate = 2});
  const std::vector<int> peers = world.peers_connect(3);
  world.settle();
  REQUIRE(opened(world) == 1);  // held by the maximum and by the rate
  world.observed->pause_accepting();
  std::vector<std::function<void()>> releases{[&] { world.observed->resume_accepting(); }, [&] { end_one(world, peers[0]); },
                                              [&] { world.run_for(501ms); }};
  SUBCASE("user, maximum, rate") {}
  SUBCASE("maximum, rate, user") { std::swap(releases[0], releases[1]), std::swap(releases[1], releases[2]); }
  SUBCASE("rate, user, maximum") { std::swap(releases[0], releases[2]), std::swap(releases[1], releases[2]); }
  SUBCASE("rate, maximum, user") { std::swap(releases[0], releases[2]); }
  for (const auto& release : releases) {
    CHECK(opened(world) == 1);
    CHECK_FALSE(world.is_watched());
    release();
  }
  world.run_for(2 * tick);
  CHECK(opened(world) == 2);
  CHECK(world.story.opened.back() == peers[1]);
}

TEST_CASE("paused by the user while out of descriptors: nothing is tried, nothing shed, until accepting is resumed") {
  Observed world;
  world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
  (void)world.peers_connect(2);
  world.turn();
  REQUIRE(world.events.paused.size() == 1);
  world.observed->pause_accepting();
  world.kernel.forget_calls();
  world.run_for(5s);
  CHECK(world.kernel.count(Call::accept) == 0);
  CHECK(world.kernel.count(Call::epoll_wait) <= 4);
  CHECK(world.events.paused.size() == 1);
  CHECK(world.events.resumed_after.empty());
  SUBCASE("the descriptors have come back: it recovers at once, and says so") {
    world.kernel.limit_descriptors(1000);
    world.observed->resume_accepting();
    world.run_for(2 * tick);
    CHECK(opened(world) == 1);
    REQUIRE(world.events.resumed_after.size() == 1);
    CHECK(world.events.resumed_after[0] >= 5s);
  }
  SUBCASE("they have not: the row goes on with its growing delay") {
    world.observed->resume_accepting();
    world.run_for(2 * tick);
    CHECK(opened(world) == 0);
    CHECK(world.events.shed.size() == 2);
    CHECK(world.events.retries == std::vector<Duration>{10ms, 20ms});
  }
}

TEST_CASE("the retry for descriptors does not pass the maximum of connections, nor the rate") {
  ListenerOptions options;
  SUBCASE("maximum") { options.connections_max = 1; }
  SUBCASE("rate") { options.accept_rate = 1; }
  Observed world(options);
  world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
  (void)world.peers_connect(4);
  world.turn();
  REQUIRE(world.events.paused.size() == 1);
  world.kernel.limit_descriptors(1000);
  world.run_for(500ms);
  CHECK(opened(world) == 1);
  CHECK(world.events.shed.size() == 1);
  CHECK(world.events.resumed_after.size() == 1);
  CHECK_FALSE(world.is_watched());
}

TEST_CASE("who is accepted by the retry begins the accept deadline anew, though another cause holds at once") {
  ListenerOptions options{.connections_max = 1};
  options.timeouts.accept = 250ms;
  Observed world(options);
  world.run_for(200ms);
  world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
  (void)world.peers_connect(1);
  world.turn();
  REQUIRE(world.events.paused.size() == 1);
  world.kernel.limit_descriptors(1000);
  const int peer = world.peers_connect(1).front();
  world.run_for(2s);
  REQUIRE(opened(world) == 1);
  const Instant ended = world.kernel.now();
  end_one(world, peer);
  world.run_for(300ms);
  REQUIRE(world.events.timed_out.size() == 1);
  CHECK(world.events.timed_out[0] >= ended + 250ms);
}

TEST_CASE("whatever holds a listener, it closes, listens again, is destroyed, and shuts down with its reactor") {
  Observed world({.connections_max = 2, .accept_rate = 10});
  (void)world.peers_connect(4);
  world.settle();
  SUBCASE("held by the rate") {}
  SUBCASE("held by the maximum") {
    world.run_for(200ms);
    CHECK(opened(world) == 2);
  }
  SUBCASE("held by the user") { world.observed->pause_accepting(); }
  SUBCASE("held for want of descriptors") {
    world.run_for(100ms - tick);
    world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
    world.run_for(5 * tick);
    CHECK(world.events.paused.size() == 1);
    world.kernel.limit_descriptors(1000);
  }
  int way = 0;
  SUBCASE("shutdown") { way = 1; }
  SUBCASE("shutdown at once") { way = 2; }
  SUBCASE("destroyed") { way = 3; }
  SUBCASE("the reactor destroyed first") { way = 4; }
  if (way == 1 || way == 2) {
    REQUIRE(world.reactor->shutdown(way == 1 ? 1s : 0s));
    REQUIRE(world.reactor->run());
    CHECK(world.reactor->counters().opened == world.reactor->counters().closed);
    world.observed->pause_accepting();
    world.observed->resume_accepting();
  } else if (way == 3) {
    world.observed.reset();
    world.run_for(1s);
  } else if (way == 4) {
    world.reactor.reset();
    world.observed->pause_accepting();
    world.observed->resume_accepting();
    CHECK(world.observed->connections() == 0);
  }
}

TEST_CASE("a listener may be closed, listen again, or be destroyed from everything that is told") {
  enum class Do { destroy, close, listen_again };
  for (const Do what : {Do::destroy, Do::close, Do::listen_again}) {
    for (const std::string callback : {"make_handler", "on_open", "on_close", "timed out", "paused", "resumed", "shed"}) {
      CAPTURE(callback);
      CAPTURE(static_cast<int>(what));
      CheckedKernel kernel;
      Reactor reactor;
      Story story;
      int done = 0;
      std::optional<Listener<Actor>> listener;
      const auto act = [&](const std::string& where) {
        if (where != callback || done++ != 0) return;
        if (what == Do::destroy) return listener.reset();
        listener->close();
        if (what == Do::listen_again) CHECK(listener->listen("127.0.0.1:7001"));
      };
      struct Events {
        std::function<void(const std::string&)> act;
        void on_accept_timed_out(Duration) { act("timed out"); }
        void on_accept_paused(const Error&, Duration) { act("paused"); }
        void on_accept_resumed(Duration) { act("resumed"); }
        void on_shed(const CloseRecord&) { act("shed"); }
      } events{act};
      story.on_open = [&](Connection&) { act("on_open"); };
      story.on_close = [&](Connection&, const CloseRecord&) { act("on_close"); };
      ListenerOptions options{.connections_max = 3, .accept_rate = 1000};
      options.timeouts.accept = 50ms;
      listener.emplace(
          reactor, options,
          [&](Connection& connection) {
            act("make_handler");
            return Actor(story, connection);
          },
          events);
      REQUIRE(listener->listen("127.0.0.1:7000"));
      const auto run_for = [&](Duration duration) {
        const Instant end = kernel.now() + duration;
        while (kernel.now() < end) REQUIRE(reactor.turn(end - kernel.now()));
      };
      const auto peers_connect = [&](int count) {
        for (; kernel.listener() >= 0 && count > 0; --count) (void)kernel.peer_connects(kernel.listener());
      };
      kernel.limit_descriptors(kernel.open_descriptors().size());
      peers_connect(2);
      run_for(30ms);
      kernel.limit_descriptors(1000);
      peers_connect(5);
      run_for(200ms);
      for (int count = 0; count < 3 && !story.opened.empty(); ++count) {
        for (const int peer : std::vector<int>(story.opened)) (void)story.handles.at(peer)->abort();
        run_for(100ms);
      }
      run_for(500ms);
      CHECK(done >= 1);
      if (what != Do::listen_again) {
        CHECK(kernel.listener() == -1);
      } else {
        CHECK(kernel.listener() != -1);
        const std::size_t before = story.opened.size();
        for (const auto& [number, handle] : story.handles) (void)handle->abort();
        peers_connect(1);
        run_for(200ms);
        CHECK(story.opened.size() > before);
      }
      for (const auto& [number, handle] : story.handles) (void)handle->abort();
      run_for(20ms);
      CHECK(reactor.counters().opened == reactor.counters().closed);
      if (listener) CHECK(listener->connections() == 0);
      story.on_open = nullptr;
      story.on_close = nullptr;
    }
  }
}
