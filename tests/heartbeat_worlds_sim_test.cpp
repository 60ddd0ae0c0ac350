// What lives in simulated worlds have found out about heartbeats stays found.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

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
  Scene scene(within(10s), 1ms, 3s);
  REQUIRE(scene.kept.connection->pause_reading());
  scene.peer->send("not read");
  scene.world.run_for(100ms);
  const Instant cut = scene.world.now();
  scene.world.set_way(scene.world.local(), scene.there, Way::cut);
  scene.world.run_for(1min);
  REQUIRE(scene.kept.records.size() == 1);
  CHECK(scene.kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(scene.kept.records[0].error_number == ETIMEDOUT);
  CHECK(scene.kept.ended_at[0] - cut <= 10s + 2ms);
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

TEST_SUITE_END();
