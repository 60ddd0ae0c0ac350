// What the simulated world has found about deadlines, each as small as it could be made: what must have been read before one is
// judged, and how late it may be told.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "support/seed.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Path;
using sim::Peer;
using sim::World;

namespace {

/// What a handler was told, and what it answers.
struct Story {
  Duration takes{};             ///< how long each on_receive keeps the loop
  std::vector<Duration> gives;  ///< on_deadline's answers, the first one first; then no more time

  ConnectionHandle connection;
  std::uint64_t life = 0;
  Instant opened{};
  std::size_t received = 0;
  Instant last_received{};  ///< when that on_receive returned
  std::vector<CloseRecord> records;
  Instant ended{};

  [[nodiscard]] std::string reason() const { return records.size() == 1 ? to_string(records[0].reason) : "not one record"; }
};

struct Served {
  Served(World& its_world, Story& its_story) : world(&its_world), story(&its_story) {}

  void on_open(Connection& connection) {
    story->connection = connection.handle();
    story->life = world->life(connection.descriptor());
    story->opened = world->now();
  }
  void on_receive(Connection&, Bytes bytes) {
    story->received += bytes.size();
    world->spend(story->takes);
    story->last_received = world->now();
  }
  Duration on_deadline(Connection&, Deadline) {
    if (story->gives.empty()) return 0s;
    const Duration more = story->gives.front();
    story->gives.erase(story->gives.begin());
    return more;
  }
  void on_close(Connection&, const CloseRecord& record) {
    story->records.push_back(record);
    story->ended = world->now();
  }

  World* world;
  Story* story;
};

/// One that goes on after its peer's end.
struct PatientlyServed : Served {
  using Served::Served;
  void on_peer_finished(Connection&) {}
};

/// A server in a world, and one peer of it. Whoever else connects has a story of no interest.
template <class Handler = Served>
struct Scene {
  explicit Scene(const Timeouts& timeouts, const ReactorOptions& options = {})
      : reactor(options), listener(reactor, options_with(timeouts), [this](Connection&) {
          return Handler(world, connections++ == 0 ? story : others);
        }) {
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    world.run_for(1ms);
    REQUIRE(story.connection->is_open());
  }

  static ListenerOptions options_with(const Timeouts& timeouts) {
    ListenerOptions options;
    options.timeouts = timeouts;
    return options;
  }

  static sim::Host& with_small_buffers(sim::Host& host) {
    host.set_buffers(64 * 1024, 4 * 1024);
    return host;
  }

  Path& way_there() { return world.path(world.local(), there); }

  /// The loop is kept from `begin` on, for so long. What `first` makes the peer send arrives meanwhile.
  void keep_loop(Instant begin, Duration takes, Task first) {
    keeper = Timer(reactor, [this, takes, first = std::move(first)]() mutable {
      first();
      world.spend(takes);
    });
    REQUIRE(keeper.arm_at(begin));
  }
  bool run_to_end() {
    return world.run_until([this] { return !story.records.empty(); }, 1h);
  }

  World world;
  const Instant began = world.now();
  Story story, others;
  int connections = 0;
  Reactor reactor;
  Timer keeper;
  Listener<Handler> listener;
  sim::Host& there = with_small_buffers(world.host("10.0.0.2"));
  Peer& peer = there.connect("10.0.0.1:7000");
};

/// Several ways to have the connection's one timer set anew.
constexpr int ways_to_rearm = 3;
void rearm(Connection& connection, int way) {
  if (way == 0) return connection.begin_message();
  if (way == 1) return static_cast<void>(connection.set_timeout(Deadline::receive, 1h));
  (void)connection.pause_reading();
  (void)connection.resume_reading();
}

}  // namespace

TEST_SUITE_BEGIN("world");

TEST_CASE("a deadline is judged when all has been read that had arrived, and the peer's end or reset right behind it") {
  // One read of 1 KiB a turn: these take several, and the last byte comes once with a deadline's own look and once between two.
  constexpr std::size_t read_bytes = 1024;
  for (const Duration after : {Duration(250ms), Duration(730ms)})
    for (const Deadline kind : {Deadline::message, Deadline::receive_rate, Deadline::send, Deadline::send_rate, Deadline::drain})
      for (const std::size_t reads : {std::size_t{20}, std::size_t{21}})
        for (const bool by_reset : {false, true}) {
          CAPTURE(to_string(kind));
          CAPTURE(after.count());
          CAPTURE(reads);
          CAPTURE(by_reset);
          Timeouts timeouts;
          if (is_rate(kind)) timeouts.rate_of(kind) = {.bytes_per_second = 1'000'000, .window = after, .grace = 0s};
          if (!is_rate(kind)) timeouts.of(kind) = after;
          Scene scene(timeouts, {.receive_buffer_bytes = read_bytes, .reads_per_turn = 1});
          if (kind == Deadline::send || kind == Deadline::send_rate) {
            scene.way_there().way = sim::Way::cut;
            REQUIRE(scene.story.connection->send("nobody hears"));
          }
          if (kind == Deadline::drain) REQUIRE(scene.story.connection->close());
          const std::string bytes(reads * read_bytes, 'x');
          scene.keep_loop(scene.world.now() + after - 3ms, 9ms, [&] {
            scene.peer.send(bytes);
            by_reset ? scene.peer.reset() : scene.peer.finish();
          });
          REQUIRE(scene.run_to_end());
          const CloseReason reason = kind == Deadline::drain ? CloseReason::local_close
                                     : by_reset              ? CloseReason::peer_reset
                                                             : CloseReason::peer_finished;
          CHECK(scene.story.reason() == to_string(reason));
          const CloseRecord& record = scene.story.records.front();
          CHECK(record.cut_short == (kind == Deadline::drain && by_reset ? CutShort::reset : CutShort::none));
          CHECK(record.received == bytes.size());
          CHECK(record.left_unread == 0);
        }
}

TEST_CASE("a deadline that waited for what was to be read is told in the turn after, and not a tick later") {
  for (const Duration tick : {Duration(40ms), Duration(90ms)}) {
    CAPTURE(tick.count());
    Scene scene({.message = 2 * tick + 20ms}, {.tick = tick, .receive_buffer_bytes = 1024, .reads_per_turn = 1});
    scene.story.takes = 1ms;
    scene.world.run_until(scene.began + 3 * tick - 5ms);  // the deadline is overdue, and looked at with the next tick
    scene.peer.send(std::string(12 * 1024, 'x'));
    REQUIRE(scene.run_to_end());
    CHECK(scene.story.reason() == to_string(CloseReason::message_timed_out));
    CHECK(scene.story.received == 12 * 1024);
    CHECK(scene.story.last_received > scene.began + 3 * tick);
    CHECK(scene.story.ended == scene.story.last_received);
  }
}

TEST_CASE("behind the peer's end a reset that has arrived comes before a deadline, even if its event was not yet seen") {
  for (const Duration after : {Duration(180ms), Duration(700ms)})
    for (const bool owed : {false, true}) {
      CAPTURE(after.count());
      CAPTURE(owed);
      // Lingering with nothing to say it waits for `drain`; with bytes that nobody acknowledges for `send`.
      Scene<PatientlyServed> scene({.send = after, .drain = owed ? 1min : after}, {.events_per_wait = 1});
      Peer* const others[] = {&scene.there.connect("10.0.0.1:7000"), &scene.there.connect("10.0.0.1:7000")};
      scene.peer.finish();
      scene.world.run_for(10ms);
      scene.way_there().way = sim::Way::cut;
      const Instant from = owed ? scene.world.now() : scene.world.now() - 10ms;
      if (owed) REQUIRE(scene.story.connection->send("nobody hears"));
      scene.keep_loop(from + after - 3ms, 9ms, [&] {
        for (Peer* other : others) other->send("the events of these come first");
        scene.peer.reset();
      });
      REQUIRE(scene.run_to_end());
      CHECK(scene.story.reason() == to_string(owed ? CloseReason::peer_reset : CloseReason::peer_finished));
    }
}

TEST_CASE("re-arming often puts no sample of acknowledged progress off, also after more time was given") {
  struct Progress {
    Duration given;  // by on_deadline, which is asked after one timeout or a little more
    Duration after;  // the peer makes its last progress so long after the send
  };
  for (const Duration timeout : {Duration(80ms), Duration(700ms), Duration(9s)})
    for (const Progress& last :
         {Progress{0s, timeout * 7 / 20}, {4 * timeout, timeout * 67 / 20}, {4 * timeout, timeout * 23 / 5}})
      for (int way = 0; way < ways_to_rearm; ++way) {
        CAPTURE(timeout.count());
        CAPTURE(last.after.count());
        CAPTURE(way);
        Scene scene({.send = timeout});
        scene.story.gives = {last.given};
        scene.peer.stop_reading();
        REQUIRE(scene.story.connection->send(std::string(32 * 1024, 'x')));  // more than its buffer holds, even twice
        const Instant sent = scene.world.now();
        scene.world.at(sent + last.after, [&] {
          scene.peer.read_on();
          scene.peer.stop_reading();
        });
        while (scene.story.records.empty() && scene.world.now() < sent + 10 * timeout) {
          scene.world.run_for(timeout / 17);
          rearm(*scene.story.connection, way);
        }
        CHECK(scene.story.reason() == to_string(CloseReason::send_timed_out));
        const Instant acknowledged = scene.world.truth(scene.story.life).last_acknowledged;
        CHECK(acknowledged >= sent + last.after);
        CHECK(scene.story.ended >= acknowledged + timeout);
        CHECK(scene.story.ended <= acknowledged + timeout + timeout / 8 + 1ms);
      }
}

TEST_CASE("send is late by an eighth of its timeout and a tick at most, beyond the loop's own delay, however these fall") {
  std::mt19937_64 random(test::seed_of("lateness of send"));
  const auto between = [&](Duration least, Duration most) {
    return Duration(std::uniform_int_distribution<std::int64_t>(least.count(), most.count())(random));
  };
  for (int round = 0; round < 400; ++round) {
    // Just above a whole number of ticks is where rounding costs most.
    const Duration timeout = between(1ms, round % 4 == 0 ? 400ms : 40ms) / 1ms * Duration(1ms) + between(1ns, 100us);
    const bool wakes_late = round % 2 == 0;
    INFO("timeout in ns: " << timeout.count());
    CAPTURE(wakes_late);
    Scene scene({.send = timeout});
    scene.peer.stop_reading();
    REQUIRE(scene.story.connection->send(std::string(32 * 1024, 'x')));  // more than its buffer holds, even a few times
    const Instant sent = scene.world.now();
    for (int progress = 1; progress <= 3; ++progress)
      scene.world.at(sent + between(progress * timeout / 2, progress * timeout * 3 / 4), [&] {
        scene.peer.read_on();
        scene.peer.stop_reading();
      });
    if (wakes_late) scene.world.set_chance(sim::Fault::late_wakeup, 0.5);
    Instant acknowledged{};
    Duration delays_before{};
    while (scene.story.records.empty() && scene.world.now() < sent + 10 * timeout + 1s) {
      const Duration delays = scene.world.delays();
      scene.world.step();
      const Instant last = scene.world.truth(scene.story.life).last_acknowledged;
      if (last != acknowledged) delays_before = delays;
      acknowledged = last;
    }
    REQUIRE(scene.story.reason() == to_string(CloseReason::send_timed_out));
    const Duration late = scene.story.ended - (std::max(acknowledged, sent) + timeout);
    CHECK(late.count() >= 0);
    CHECK(late.count() <= (std::max(timeout / 8, Duration(1ms)) + 1ms + scene.world.delays() - delays_before).count());
  }
}

TEST_CASE("re-arming often takes no grace from what is sent after all before it was acknowledged") {
  for (const Duration window : {Duration(80ms), Duration(700ms), Duration(9s)})
    for (int way = 0; way < ways_to_rearm; ++way) {
      CAPTURE(window.count());
      CAPTURE(way);
      Scene scene({.send_rate = {.bytes_per_second = 1'000'000, .window = window, .grace = window}});
      REQUIRE(scene.story.connection->send("heard"));
      const Instant sent = scene.world.now() + window * 9 / 10;
      scene.world.at(sent, [&] {
        scene.way_there().way = sim::Way::cut;
        CHECK(scene.story.connection->send("not heard"));
      });
      while (scene.story.records.empty() && scene.world.now() < sent + 10 * window) {
        scene.world.run_for(window / 17);
        rearm(*scene.story.connection, way);
      }
      CHECK(scene.story.reason() == to_string(CloseReason::send_too_slow));
      CHECK(scene.story.ended >= sent + 2 * window);
      CHECK(scene.story.ended <= sent + 2 * window + 2ms);  // a tick for each
    }
}

TEST_CASE("a stall in which another deadline was overdue gives a message no more time") {
  for (const Duration message : {Duration(600ms), Duration(1300ms)}) {
    CAPTURE(message.count());
    Scene scene({.message = message, .send = 80ms});
    // Acknowledged at once, which the loop finds out when it looks again.
    REQUIRE(scene.story.connection->send("hello"));
    scene.keep_loop(scene.world.now() + 2ms, message - 100ms, [&] { scene.peer.send("x"); });
    REQUIRE(scene.run_to_end());
    CHECK(scene.story.reason() == to_string(CloseReason::message_timed_out));
    CHECK(scene.story.received == 1);
    CHECK(scene.story.ended >= scene.story.opened + message);
    CHECK(scene.story.ended <= scene.story.opened + message + 1ms);
  }
}

TEST_CASE("time given to a message, by its handler or for a stall, puts no window of its rate off") {
  struct GivesMessagesTime : Served {
    using Served::Served;
    Duration on_deadline(Connection&, Deadline kind) { return kind == Deadline::message ? 10s : 0s; }
  };
  const Rate rate{.bytes_per_second = 100, .window = 100ms, .grace = 50ms};
  for (const bool stalls : {false, true}) {
    CAPTURE(stalls);
    Scene<GivesMessagesTime> scene({.message = 20ms, .receive_rate = rate});
    Instant from = scene.story.opened + rate.grace;
    if (stalls) {  // the message is late by the loop's fault; windows begin when it turns again
      scene.keep_loop(scene.world.now() + 1ms, 400ms, [&] { scene.peer.send("x"); });
      scene.world.run_for(402ms);
      from = scene.world.now() + rate.window;
    }
    REQUIRE(scene.run_to_end());
    CHECK(scene.story.reason() == to_string(CloseReason::receive_too_slow));
    CHECK((scene.story.ended - from).count() <= (rate.window + 3ms).count());
  }
}

TEST_CASE("a message timeout that is over when it is set is told at once, although the loop once stood still") {
  for (const Duration message : {Duration(90ms), Duration(700ms)}) {
    CAPTURE(message.count());
    Scene scene({});
    scene.keep_loop(scene.world.now() + 1s, 300ms, [&] { scene.peer.send("x"); });
    for (int tenths = 0; tenths < 50; ++tenths) {
      scene.world.run_for(100ms);
      scene.peer.send("y");
    }
    scene.world.run_for(1ms);
    const Instant set = scene.world.now();
    REQUIRE(scene.story.connection->set_timeout(Deadline::message, message));
    REQUIRE(scene.run_to_end());
    CHECK(scene.story.reason() == to_string(CloseReason::message_timed_out));
    CHECK((scene.story.ended - set).count() <= Duration(1ms).count());
  }
}

TEST_SUITE_END();
