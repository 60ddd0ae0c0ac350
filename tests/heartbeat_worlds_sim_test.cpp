// What lives in simulated worlds have found out about heartbeats stays found.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sys/sys.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::Way;
using sim::World;

namespace {

struct Kept {
  std::vector<CloseRecord> records;
  std::vector<Instant> ended_at;
  ConnectionHandle connection;
  std::function<void(Connection&)> on_ping_due = [](Connection& peer) { peer.send("ping"); };
  bool resumes_when_gone = false;
  int pings = 0;
};

struct Watched {
  void on_open(Connection& connection) { kept->connection = connection.handle(); }
  void on_receive(Connection&, Bytes) {}
  void on_peer_finished(Connection&) {}
  void on_peer_gone_while_paused(Connection& connection) {
    if (kept->resumes_when_gone) (void)connection.resume_reading();
  }
  void on_ping_due(Connection& connection) {
    ++kept->pings;
    kept->on_ping_due(connection);
  }
  void on_close(Connection&, const CloseRecord& record) {
    kept->records.push_back(record);
    kept->ended_at.push_back(world->now());
  }
  World* world;
  Kept* kept;
};

/// A server that watches one peer, which answers nothing unless it is told to.
struct Scene {
  explicit Scene(const HeartbeatOptions& heartbeat, Duration latency = 1ms, Duration user_timeout = {})
      : there(world.host("10.0.0.2")), listener(reactor, with(heartbeat, user_timeout), [this](Connection&) {
          return Watched{&world, &kept};
        }) {
    world.path(world.local(), there).latency = world.path(there, world.local()).latency = latency;
    world.local().set_buffers(16 * 1024, 16 * 1024);
    there.set_buffers(16 * 1024, 16 * 1024);
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    peer = &there.connect("10.0.0.1:7000");
    peer->on_receive = [](Peer&, std::string_view) {};
    world.run_for(10 * latency);
    REQUIRE(kept.connection);
  }
  static ListenerOptions with(const HeartbeatOptions& heartbeat, Duration user_timeout) {
    ListenerOptions options;
    options.heartbeat = heartbeat;
    options.socket.user_timeout = user_timeout;
    return options;
  }

  World world;
  sim::Host& there;
  Kept kept;
  Reactor reactor;
  Listener<Watched> listener;
  Peer* peer = nullptr;
};

HeartbeatOptions within(Duration budget) {
  HeartbeatOptions options;
  options.budget = budget;
  return options;
}

}  // namespace

TEST_SUITE_BEGIN("heartbeat");

TEST_CASE("with reading held, one sign of life is one: each look at it sees it a little elsewhere") {
  HeartbeatOptions options = within(2s);
  options.interval = 50ms;
  for (int round = 0; round < 50; ++round) {
    Scene scene(options);
    scene.world.set_chance(sim::Fault::late_wakeup, 1);  // up to 20 ms: the looks fall between the milliseconds
    REQUIRE(scene.kept.connection->pause_reading());
    scene.world.run_for(std::chrono::microseconds(100'017 + 131 * round));
    scene.peer->send("the last word");
    scene.world.run_for(1100us);
    const Instant life = scene.world.now();
    const int pings = scene.kept.pings;
    scene.there.hang();
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(*scene.kept.records[0].verdict == Verdict::hung);
    CHECK(scene.kept.ended_at[0] - life <= 2s + 50ms + 3 * 20ms);
    CHECK(scene.kept.pings - pings <= 2s / 50ms + 1);
  }
}

TEST_CASE("with reading held, what came before the first look is life as well: the budget counts from it") {
  enum class Before { nothing, buffer_filled, more_was_read };
  for (const Before before : {Before::nothing, Before::buffer_filled, Before::more_was_read}) {
    CAPTURE(static_cast<int>(before));
    const bool fills_buffer = before == Before::buffer_filled;
    Scene scene(within(10s));
    REQUIRE(scene.kept.connection->pause_reading());
    if (fills_buffer) scene.peer->send(std::string(100'000, 'x'));
    if (before == Before::more_was_read) {  // and a look had counted it
      scene.peer->send("more than the last word");
      scene.world.run_for(5s);
      REQUIRE(scene.kept.connection->resume_reading());
      scene.world.run_for(5ms);
      REQUIRE(scene.kept.connection->pause_reading());
    }
    const int pings = scene.kept.pings;
    scene.world.run_for(1s);  // the first look comes after 1.25 s at the earliest
    // A byte of the peer's, or where it can send none, its kernel's word on ours.
    if (fills_buffer)
      scene.world.after(0s, [&] { scene.kept.connection->send("news"); });
    else
      scene.peer->send("the last word");
    scene.world.run_for(5ms);
    const Instant life = scene.world.now();
    CHECK(scene.kept.pings == pings);
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
    CHECK(scene.kept.ended_at[0] - life >= 10s - 5ms);
    CHECK(scene.kept.ended_at[0] - life <= 10s + 1s + 2ms);
  }
}

TEST_CASE("each silence asks anew: what is acknowledged before its own probe is life, however it follows an answer") {
  for (const bool held : {false, true}) {
    CAPTURE(held);
    HeartbeatOptions options = within(1500ms);
    options.interval = 300ms;
    options.wants_verdict = false;
    Scene scene(options);
    if (held) REQUIRE(scene.kept.connection->pause_reading());
    bool answers = true;
    scene.peer->on_receive = [&](Peer& self, std::string_view) {
      if (std::exchange(answers, false)) self.send("pong");
    };
    REQUIRE(scene.world.run_until([&] { return !answers; }, 10s));
    scene.world.run_for(5ms);
    // All of it is on its way at once, and takes twice the budget to get there; the next probe is behind it.
    scene.world.path(scene.world.local(), scene.there).bytes_per_second = 4000;
    const Instant began = scene.world.now();
    for (int piece = 0; piece < 12; ++piece)
      scene.world.after(piece * 1ms, [&] { scene.kept.connection->send(std::string(1000, 'x')); });
    scene.world.run_for(3s);
    CHECK(scene.kept.records.empty());
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
    CHECK(scene.kept.ended_at[0] - began >= 3s + 1500ms);
  }
}

TEST_CASE("who can't be asked any more, because our stream has ended, is neither asked nor lost") {
  Scene scene(within(5s));
  scene.world.after(1s, [&] { REQUIRE(scene.kept.connection->finish()); });
  scene.world.run_for(1h);
  CHECK(scene.kept.records.empty());
  CHECK(scene.kept.pings == 0);
}

TEST_CASE("a peer whose end waits behind bytes that are not read has not fallen silent") {
  Scene scene(within(5s));
  REQUIRE(scene.kept.connection->pause_reading());
  scene.peer->send("all there is");
  scene.peer->finish();
  scene.world.run_for(1h);
  CHECK(scene.kept.records.empty());
  scene.world.after(1ms, [&] { REQUIRE(scene.kept.connection->resume_reading()); });
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::drain_timed_out);
  CHECK(scene.kept.records[0].received == 12);
}

TEST_CASE("an earlier probe that is still on its way is not owed: its acknowledgement is no life") {
  HeartbeatOptions options = within(4s);
  options.interval = 100ms;
  Scene scene(options, 150ms);  // there is always one on its way
  scene.peer->send("the last word");
  scene.world.run_for(155ms);
  scene.there.hang();
  const Instant began = scene.world.now();
  scene.world.after(1ms, [&] { scene.kept.connection->send("said"); });
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(*scene.kept.records[0].verdict == Verdict::hung);
  INFO("after " << (scene.kept.ended_at[0] - began) / 1ms << " ms, asked " << scene.kept.pings);
  CHECK(scene.kept.ended_at[0] - began <= 4s + 300ms + 1s + 4ms);
}

TEST_CASE("a handler that reads on when it is told that the peer is gone reads what came before the peer is lost") {
  Scene scene(within(5s));
  scene.kept.resumes_when_gone = true;
  REQUIRE(scene.kept.connection->pause_reading());
  scene.world.run_for(3s);
  // The reactor sleeps over what comes, and finds it in the turn in which the budget has ended.
  scene.world.local().hang();
  scene.peer->send("the rest");
  scene.peer->finish();
  scene.world.run_for(10s);
  scene.world.local().resume();
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::drain_timed_out);
  CHECK(scene.kept.records[0].received == 8);
}

TEST_CASE("in the grace nobody is asked any more: what shows that a process hangs is not hidden by the next probe") {
  HeartbeatOptions options = within(4s);
  options.interval = 60ms;
  Scene scene(options, 40ms);
  scene.there.hang();
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(*scene.kept.records[0].verdict == Verdict::hung);
}

TEST_CASE("a peer that has filled our buffer while reading is held lives as long as its kernel answers") {
  Scene scene(within(5s));
  REQUIRE(scene.kept.connection->pause_reading());
  scene.peer->send(std::string(100'000, 'x'));
  scene.world.run_for(1h);
  CHECK(scene.kept.records.empty());
  const Instant cut = scene.world.now();
  scene.world.set_way(scene.world.local(), scene.there, Way::cut);
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(*scene.kept.records[0].verdict == Verdict::unreachable);
  CHECK(scene.kept.ended_at[0] - cut <= 5s + 1s + 2ms);
}

TEST_CASE("the kernel's ETIMEDOUT behind bytes that are not read is a lost heartbeat: a dead socket shows no life") {
  for (const std::size_t unread : {8U, 100'000U}) {  // the latter fill the buffer, and only the kernel would speak
    CAPTURE(unread);
    Scene scene(within(10s), 1ms, 3s);
    REQUIRE(scene.kept.connection->pause_reading());
    scene.peer->send(std::string(unread, 'x'));
    scene.world.run_for(100ms);
    const Instant cut = scene.world.now();
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
    CHECK(scene.kept.records[0].error_number == ETIMEDOUT);
    CHECK(scene.kept.records[0].verdict == Verdict::unknown);
    CHECK(scene.kept.ended_at[0] - cut <= 10s + 2ms);
  }
}

TEST_CASE("a kernel that answers at each look speaks for a peer that has filled our buffer, however often we look") {
  for (const Duration interval : {Duration(10ms), Duration(50ms), Duration(200ms), Duration(1s)}) {
    CAPTURE(interval.count());
    HeartbeatOptions options = within(5s);
    options.interval = interval;
    Scene scene(options);
    REQUIRE(scene.kept.connection->pause_reading());
    scene.peer->send(std::string(100'000, 'x'));
    scene.world.run_for(1min);
    CHECK(scene.kept.records.empty());
  }
}

TEST_CASE("a quarter of our buffer's size counts as full while reading is held, for the kernel needs room around the bytes") {
  for (const bool fills : {false, true}) {
    CAPTURE(fills);
    Scene scene(within(5s));
    REQUIRE(scene.kept.connection->pause_reading());
    int size = 0;
    socklen_t length = sizeof size;
    REQUIRE(sys::get_option(scene.kept.connection->descriptor(), SOL_SOCKET, SO_RCVBUF, &size, &length) == 0);
    const auto quarter = static_cast<std::size_t>(size / 4);
    scene.peer->send(std::string(fills ? quarter : quarter - 1, 'x'));
    scene.world.run_for(1min);
    CHECK(scene.kept.records.empty() == fills);
    if (!fills) CHECK(scene.kept.records.at(0).verdict == Verdict::hung);
  }
}

TEST_CASE("evidence counts from the silence's first probe, whatever happened before it") {
  Scene scene(within(10s));
  scene.peer->on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
  scene.world.run_for(5s);
  scene.world.after(0s, [&] {
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.kept.connection->send("said into a partition that heals\n");
  });
  scene.world.run_for(2s);
  scene.world.set_way(scene.world.local(), scene.there, Way::open);
  scene.world.run_for(20s);
  CHECK(scene.kept.records.empty());
  scene.there.hang();
  const int pings = scene.kept.pings;
  SUBCASE("a process that hangs, its kernel well") {
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    const Evidence& evidence = scene.kept.records[0].evidence.value();
    CHECK(evidence.acknowledged_in_silence);
    CHECK(evidence.sent_in_silence == 4U * static_cast<unsigned>(scene.kept.pings - pings));
    CHECK(evidence.retransmits_in_silence == 0);
    CHECK(evidence.without_progress <= 2500ms + 5ms);  // the last probe is acknowledged
  }
  SUBCASE("a kernel that acknowledges one probe and no more") {
    REQUIRE(scene.world.run_until([&] { return scene.kept.pings == pings + 1; }, 10s));
    scene.world.run_for(10ms);
    const Instant cut = scene.world.now();
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    const Evidence& evidence = scene.kept.records[0].evidence.value();
    CHECK(evidence.without_progress + 3s >= scene.kept.ended_at[0] - cut);
    CHECK(evidence.retransmits_in_silence >= 2);
  }
  SUBCASE("a way that is cut before the first probe") {
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    const Evidence& evidence = scene.kept.records[0].evidence.value();
    CHECK_FALSE(evidence.acknowledged_in_silence);
    CHECK(evidence.sent_in_silence == 4U * static_cast<unsigned>(scene.kept.pings - pings));
    CHECK(evidence.without_progress == evidence.silence);
  }
}

TEST_CASE("where acknowledged progress is life, the budget counts from when it came, and not from the look that found it") {
  HeartbeatOptions options = within(8s);
  options.interval = 2s;
  options.wants_verdict = false;
  for (Duration later = 0ms; later < 2s; later += 250ms) {
    CAPTURE(later.count());
    Scene scene(options);
    scene.peer->stop_reading();
    scene.world.after(0s, [&] { scene.kept.connection->send(std::string(200'000, 'x')); });
    scene.world.run_for(3s + later);
    scene.peer->read_on();
    scene.world.run_for(3ms);
    scene.peer->stop_reading();
    scene.world.run_for(3ms);
    const Instant life = scene.world.now();
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
    CHECK(scene.kept.ended_at[0] - life >= 8s - 10ms);
    CHECK(scene.kept.ended_at[0] - life <= 8s + 5ms);
  }
}

TEST_CASE("bytes that came while on_ping_due took its time are read before the budget's end is judged") {
  HeartbeatOptions options = within(400ms);
  options.interval = 100ms;
  options.wants_verdict = false;
  Scene scene(options);
  // The probe due last before the end keeps the loop until the end has passed, and the peer answers meanwhile.
  scene.kept.on_ping_due = [&](Connection& connection) {
    connection.send("ping");
    if (connection.silence() < 300ms) return;
    scene.peer->send("late, and not too late");
    scene.world.spend(90ms);
  };
  scene.world.run_for(10s);
  CHECK(scene.kept.records.empty());
}

// --- what readers of the code have found

TEST_CASE("what a task says before it works for long is handed over afterwards: no deadline counts from before") {
  for (const bool heartbeat : {false, true}) {
    CAPTURE(heartbeat);
    World world;
    Kept kept;
    Reactor reactor;
    ListenerOptions options;
    if (heartbeat) options.heartbeat = {.budget = 3s, .interval = 100ms, .wants_verdict = false};
    options.timeouts.send = 500ms;
    Listener<Watched> listener(reactor, options, [&](Connection&) { return Watched{&world, &kept}; });
    sim::Host& there = world.host("10.0.0.2");
    world.path(world.local(), there).latency = world.path(there, world.local()).latency = 20ms;
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    Peer& peer = there.connect("10.0.0.1:7000");
    peer.on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
    world.run_for(1s);
    for (int round = 0; round < 5; ++round) {
      (void)reactor.post([&] {
        if (kept.connection) kept.connection->send("news");
        world.spend(3s);
      });
      world.run_for(5s);
    }
    CHECK(kept.records.empty());
  }
}

TEST_CASE("phi says nothing of a peer that nobody could ask, for bytes that wait before the probe") {
  HeartbeatOptions options{.budget = 20s, .interval = 1s, .phi = PhiAccrual{}};
  Scene scene(options);
  scene.peer->on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
  scene.world.run_for(30s);  // many answers, all fast
  scene.peer->stop_reading();
  const Instant began = scene.world.now();
  scene.world.after(0s, [&] { scene.kept.connection->send(std::string(100'000, 'x')); });
  scene.world.run_until([&] { return !scene.kept.records.empty(); }, 2min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].verdict == Verdict::not_reading);
  CHECK(scene.kept.ended_at[0] - began >= 19s);
}

TEST_CASE("a process that hangs is found although its kernel goes on acknowledging what the program sends") {
  for (const Duration latency : {Duration(1ms), Duration(10ms), Duration(50ms)})
    for (const Duration period : {Duration(15ms), Duration(45ms), Duration(100ms), Duration(700ms)}) {
      CAPTURE(latency.count());
      CAPTURE(period.count());
      Scene scene({.budget = 4s, .interval = 1s}, latency);
      scene.peer->on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
      Timer sender;
      sender = Timer(scene.reactor, [&] {
        if (scene.kept.connection) scene.kept.connection->send("and so on, and so on\n");
        (void)sender.arm_after(period);
      });
      REQUIRE(sender.arm_after(period));
      scene.world.run_for(5s);
      CHECK(scene.kept.records.empty());
      const Instant began = scene.world.now();
      scene.there.hang();
      scene.world.run_until([&] { return !scene.kept.records.empty(); }, 30s);
      REQUIRE(scene.kept.records.size() == 1);
      CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
      CHECK(*scene.kept.records[0].verdict == Verdict::hung);
      CHECK(scene.kept.ended_at[0] - began <= 4s + 1s + 2 * latency + 1s);
    }
}

TEST_CASE("a ping too large for the kernel's buffer is lost with its peer all the same") {
  HeartbeatOptions options{.budget = 6s, .interval = 1s};
  Scene scene(options);
  scene.kept.on_ping_due = [](Connection& peer) { peer.send(std::string(64 * 1024, 'p')); };
  scene.there.hang();
  const Instant began = scene.world.now();
  scene.world.run_until([&] { return !scene.kept.records.empty(); }, 2min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(scene.kept.ended_at[0] - began <= 6s + 1s + 2s);
}

TEST_CASE("a resume between a probe and its leaving takes no heartbeat away") {
  HeartbeatOptions options{.budget = 6s, .interval = 1s};
  Scene scene(options);
  REQUIRE(scene.kept.connection->pause_reading());
  scene.kept.on_ping_due = [&](Connection& peer) {
    peer.send("ping");
    (void)scene.reactor.post([&] {
      if (!scene.kept.connection) return;
      (void)scene.kept.connection->resume_reading();
      (void)scene.kept.connection->pause_reading();
    });
  };
  scene.there.vanish();
  scene.world.run_until([&] { return !scene.kept.records.empty(); }, 2min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(scene.kept.records[0].silence <= 6s + 1s + 10ms);
}

TEST_CASE("the kernel gives up behind a look that saw a living kernel: the way is lost, nobody hangs") {
  Scene scene({.budget = 60s, .interval = 5s}, 1ms, 10s);
  scene.there.hang();
  scene.world.run_for(12s);  // its kernel has acknowledged at least one ping
  CHECK(scene.kept.pings >= 1);
  scene.world.set_way(scene.world.local(), scene.there, Way::cut);
  scene.world.run_until([&] { return !scene.kept.records.empty(); }, 2min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(scene.kept.records[0].error_number == ETIMEDOUT);
  CHECK(scene.kept.records[0].verdict == Verdict::unreachable);
}

TEST_CASE("a loop that comes late to the budget's end looks again within the grace before it says unknown") {
  Scene scene({.budget = 3s, .interval = 500ms});
  scene.there.hang();
  scene.world.run_for(1s);
  scene.world.after(0s, [&] {
    scene.kept.connection->send("more");  // on its way when the loop turns again
  });
  (void)scene.reactor.post([&] { scene.world.spend(6s); });
  scene.world.run_until([&] { return !scene.kept.records.empty(); }, 1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].verdict == Verdict::hung);
}

TEST_CASE("a ping's text outlives its listener, also with a connection that has timeouts of its own") {
  World world;
  Kept kept;
  Reactor reactor;
  ListenerOptions options;
  options.heartbeat = {.budget = 4s, .interval = 1s, .ping = "a ping longer than any string keeps in itself\n"};
  std::optional<Listener<Watched>> listener(std::in_place, reactor, options, [&](Connection&) { return Watched{&world, &kept}; });
  REQUIRE(listener->listen("10.0.0.1:7000"));
  world.attach(reactor);
  std::string heard;
  const auto connect = [&] {
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    peer.on_receive = [&](Peer& self, std::string_view bytes) {
      heard = bytes;
      self.send("pong");
    };
    world.run_for(10ms);
  };
  connect();
  REQUIRE(kept.connection->set_timeout(Deadline::receive, 1h));
  connect();
  listener.reset();
  world.run_for(10s);
  CHECK(heard == "a ping longer than any string keeps in itself\n");
  CHECK(kept.records.empty());
}

// --- rules of which nothing else would tell that they are broken

TEST_CASE("phi counts from the probe, with the mean of the answers and the least deviation, as soon as it has heard enough") {
  for (const Duration takes : {Duration(2ms), Duration(3s)}) {
    CAPTURE(takes.count());
    HeartbeatOptions options{.budget = 60s, .interval = 4s, .phi = PhiAccrual{.threshold = 8, .least_deviation = 1s}};
    Scene scene(options);
    int answers = 0;
    scene.peer->on_receive = [&](Peer& self, std::string_view) {
      scene.world.after(takes - 2ms, [&] {
        self.send("pong");
        ++answers;
      });
    };
    REQUIRE(scene.world.run_until([&] { return answers == 8; }, 10min));
    scene.there.hang();
    const int pings = scene.kept.pings;
    REQUIRE(scene.world.run_until([&] { return scene.kept.pings == pings + 1; }, 10s));
    const Instant probed = scene.world.now();
    scene.world.run_for(2min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].verdict == Verdict::hung);
    CHECK(scene.kept.ended_at[0] - probed >= takes + 5612ms - 3ms);
    CHECK(scene.kept.ended_at[0] - probed <= takes + 5612ms + 3ms);
    CHECK(scene.kept.records[0].evidence.value().phi == doctest::Approx(8).epsilon(0.01));
  }
}

TEST_CASE("what no evidence decides is unknown once the grace is over: asked until the budget's end, and not in the grace") {
  for (const bool phi : {false, true}) {
    CAPTURE(phi);
    constexpr Duration budget = 7900ms;  // less than twice the round trip: congestion, which decides nothing
    HeartbeatOptions options{.budget = budget, .interval = 1s};
    if (phi) options.phi = PhiAccrual{.threshold = 1, .least_answers = 2};
    Scene scene(options);
    scene.peer->on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
    scene.world.path(scene.world.local(), scene.there).latency = scene.world.path(scene.there, scene.world.local()).latency = 2s;
    scene.world.run_for(5min);
    CHECK(scene.kept.records.empty());
    Instant last_asked{};
    scene.kept.on_ping_due = [&](Connection& peer) {
      last_asked = scene.world.now();
      peer.send("ping");
    };
    scene.there.hang();
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].verdict == Verdict::unknown);
    const Duration silence = scene.kept.records[0].evidence.value().silence;
    CHECK(silence >= budget + 1s);
    CHECK(silence <= budget + 1s + 12ms);
    CHECK(scene.kept.ended_at[0] - last_asked >= 1s);
    CHECK(scene.kept.ended_at[0] - last_asked <= 1s + 1s + 12ms);
  }
}

TEST_CASE("who wants no verdict is given none, whoever finds that the peer is lost") {
  for (const int kernel_gives_up_with : {0, ETIMEDOUT, EHOSTUNREACH}) {
    CAPTURE(kernel_gives_up_with);
    HeartbeatOptions options = within(20s);
    options.wants_verdict = false;
    Scene scene(options, 1ms, kernel_gives_up_with != 0 ? Duration(5s) : Duration{});
    scene.world.run_for(100ms);
    scene.there.hang();
    if (kernel_gives_up_with != 0) {
      scene.world.run_until([&] { return scene.kept.pings == 1; }, 20s);
      const Way way = kernel_gives_up_with == ETIMEDOUT ? Way::cut : Way::host_unreachable;
      scene.world.run_for(10ms);
      scene.world.set_way(scene.world.local(), scene.there, way);
    }
    scene.world.run_for(1min);
    REQUIRE(scene.kept.records.size() == 1);
    CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
    CHECK(scene.kept.records[0].error_number == kernel_gives_up_with);
    CHECK(scene.kept.records[0].verdict == Verdict::unknown);
  }
}

TEST_CASE("the kernel gives up before the first probe of a silence: that is the network's end, not the heartbeat's") {
  Scene scene(within(60s), 1ms, 2s);
  scene.world.after(0s, [&] {
    scene.world.set_way(scene.world.local(), scene.there, Way::cut);
    scene.kept.connection->send("into the void");
  });
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.pings == 0);
  CHECK(scene.kept.records[0].reason == CloseReason::network_timed_out);
  CHECK_FALSE(scene.kept.records[0].verdict);
}

TEST_CASE("a loop that slept over the budget asks first, and waits for the answer, also where no verdict's grace would save it") {
  HeartbeatOptions options = within(10s);
  options.wants_verdict = false;
  Scene scene(options);
  scene.peer->on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
  // An answer takes longer than an interval: the next look comes before it.
  scene.world.path(scene.world.local(), scene.there).latency = scene.world.path(scene.there, scene.world.local()).latency =
      1500ms;
  for (int round = 0; round < 10; ++round) {
    scene.world.run_for(std::chrono::milliseconds(977 * round));
    scene.world.local().hang();
    scene.world.run_for(25s);
    scene.world.local().resume();
    scene.world.run_for(30s);
    CHECK(scene.kept.records.empty());
  }
}

TEST_SUITE_END();
