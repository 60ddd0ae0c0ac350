// Heartbeats in a simulated world: who is lost, when, and with which verdict; and who is not.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/seed.hpp"
#include "support/simulation.hpp"
#include "sys/sys.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::Way;
using sim::World;

namespace {

constexpr Duration tick = 1ms;

struct Kept {
  std::vector<CloseRecord> records;
  std::vector<Instant> ended_at;
  ConnectionHandle connection;
  std::function<void(Connection&)> on_open;
};

struct Watched {
  void on_open(Connection& connection) {
    kept->connection = connection.handle();
    if (kept->on_open) kept->on_open(connection);
  }
  void on_receive(Connection&, Bytes) {}
  void on_peer_gone_while_paused(Connection&) {}
  void on_close(Connection&, const CloseRecord& record) {
    kept->records.push_back(record);
    kept->ended_at.push_back(world->now());
  }
  World* world;
  Kept* kept;
};

/// A server that watches one peer, which answers each ping with a pong.
struct Scene {
  explicit Scene(const HeartbeatOptions& heartbeat, std::uint64_t seed = 1, Duration latency = 1ms,
                 const ReactorOptions& options = {})
      : world({.seed = seed}),
        there(world.host("10.0.0.2")),
        reactor(options),
        listener(reactor, with(heartbeat), [this](Connection&) {
          return Watched{&world, &kept};
        }) {
    world.path(world.local(), there).latency = world.path(there, world.local()).latency = latency;
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    there.set_buffers(16 * 1024, 16 * 1024);
    peer = &there.connect("10.0.0.1:7000");
    peer->on_receive = [this](Peer& self, std::string_view) {
      ++pings;
      last_ping = world.now();
      if (answers) self.send("pong");
    };
    world.run_for(10 * latency);
    REQUIRE(kept.connection);
  }
  static ListenerOptions with(const HeartbeatOptions& heartbeat) {
    ListenerOptions options;
    options.heartbeat = heartbeat;
    return options;
  }
  void way(Way way) { world.set_way(world.local(), there, way); }

  [[nodiscard]] const CloseRecord& lost(Duration at_most) {
    world.run_until([this] { return !kept.records.empty(); }, at_most);
    REQUIRE_FALSE(kept.records.empty());
    INFO(describe(kept.records[0]) << " " << to_json(kept.records[0]));
    CHECK(kept.records[0].reason == CloseReason::heartbeat_lost);
    REQUIRE(kept.records[0].verdict.has_value());
    return kept.records[0];
  }

  World world;
  sim::Host& there;
  Kept kept;
  Reactor reactor;
  Listener<Watched> listener;
  Peer* peer = nullptr;
  bool answers = true;
  int pings = 0;
  Instant last_ping{};
};

HeartbeatOptions within(Duration budget) {
  HeartbeatOptions options;
  options.budget = budget;
  options.ping = "ping";
  return options;
}

/// The budget counts from the last sign of life; the verdict may take the grace.
void check_in_time(const Scene& scene, Instant last_life, Duration budget, Duration grace = 1s) {
  const Duration after = scene.kept.ended_at.at(0) - last_life;
  CHECK(after >= budget);
  CHECK(after <= budget + grace + 2 * tick);
}

}  // namespace

TEST_SUITE_BEGIN("heartbeat");

TEST_CASE("a peer that answers lives for ever, and is asked only in its silences") {
  Scene scene(within(20s));
  scene.world.run_for(1h);
  CHECK(scene.kept.records.empty());
  // One silence ends with each answer; its probe comes after half an interval to a whole one.
  CHECK(scene.pings >= 3600 / 5);
  CHECK(scene.pings <= 2 * 3600 / 5);
  const int pings = scene.pings;
  for (int seconds = 0; seconds < 600; ++seconds) {
    scene.peer->send("busy");
    scene.world.run_for(1s);
  }
  CHECK(scene.pings == pings);
}

TEST_CASE("a peer whose process hangs is lost within the budget, and its kernel gives it away") {
  std::mt19937_64 random(test::seed_of("hung peers"));
  for (int round = 0; round < 20; ++round) {
    const auto budget = Duration(std::chrono::milliseconds(2000 + random() % 30'000));
    INFO("budget in ns: " << budget.count());
    Scene scene(within(budget), random(), std::chrono::microseconds(50 + random() % 20'000));
    scene.world.run_for(Duration(static_cast<std::int64_t>(random() % 60'000'000'000)));
    const Instant began = scene.world.now();
    scene.there.hang();
    CHECK(*scene.lost(budget * 3).verdict == Verdict::hung);
    CHECK(scene.kept.records[0].origin == Origin::policy);
    CHECK(scene.kept.records[0].evidence.has_value());
    check_in_time(scene, scene.kept.ended_at[0] - scene.kept.records[0].silence, budget);
    CHECK(scene.kept.ended_at[0] >= began);
  }
}

TEST_CASE("a partition in either direction or both, and a host that is gone, are unreachable") {
  std::mt19937_64 random(test::seed_of("unreachable peers"));
  for (int round = 0; round < 40; ++round) {
    const auto budget = Duration(std::chrono::milliseconds(4000 + random() % 30'000));
    INFO("budget in ns: " << budget.count() << ", kind " << round % 4);
    Scene scene(within(budget), random());
    scene.world.run_for(Duration(static_cast<std::int64_t>(random() % 60'000'000'000)));
    if (round % 4 == 0) scene.way(Way::cut);
    if (round % 4 == 1) scene.world.path(scene.world.local(), scene.there).way = Way::cut;
    if (round % 4 == 2) scene.world.path(scene.there, scene.world.local()).way = Way::cut;
    if (round % 4 == 3) scene.there.vanish();
    CHECK(*scene.lost(budget * 3).verdict == Verdict::unreachable);
    check_in_time(scene, scene.kept.ended_at[0] - scene.kept.records[0].silence, budget);
  }
}

TEST_CASE("our own route that is lost is unreachable too") {
  Scene scene(within(10s));
  scene.world.path(scene.world.local(), scene.there).way = Way::no_route;
  CHECK(*scene.lost(30s).verdict == Verdict::unreachable);
}

TEST_CASE(
    "a peer that stops reading with a full window is not reading, hung or not; one whose window is open and hangs is hung") {
  for (const bool hangs : {false, true}) {
    Scene scene(within(10s));
    if (hangs) scene.there.hang();
    if (!hangs) scene.peer->stop_reading();
    scene.world.after(1ms, [&] { scene.kept.connection->send(std::string(100'000, 'x')); });
    CHECK(*scene.lost(60s).verdict == Verdict::not_reading);
  }
}

TEST_CASE("a slow reader that drains is never lost: acknowledged progress is life") {
  Scene scene(within(6s));
  scene.answers = false;
  scene.peer->stop_reading();
  scene.world.after(1ms, [&] { scene.kept.connection->send(std::string(200'000, 'x')); });
  for (int rounds = 0; rounds < 40; ++rounds) {
    scene.world.run_for(1s);
    scene.peer->read_on();
    scene.peer->stop_reading();
    if (rounds < 10) CHECK(scene.kept.records.empty());
  }
}

TEST_CASE("a partition that heals at a third of the budget, a flap, a late answer and a short stop lose nobody") {
  std::mt19937_64 random(test::seed_of("healing partitions"));
  for (int round = 0; round < 30; ++round) {
    const Duration budget = 20s;
    Scene scene(within(budget), random());
    scene.world.run_for(Duration(static_cast<std::int64_t>(random() % 60'000'000'000)));
    if (round % 3 == 0) {
      scene.way(Way::cut);
      scene.world.run_for(budget / 3);
      scene.way(Way::open);
    } else if (round % 3 == 1) {
      scene.world.path(scene.world.local(), scene.there).way = Way::no_route;
      scene.world.run_for(500ms);
      scene.way(Way::open);
    } else {
      scene.there.hang();
      scene.world.run_for(budget * 7 / 10);
      scene.there.resume();
    }
    scene.world.run_for(5min);
    INFO("kind " << round % 3);
    CHECK(scene.kept.records.empty());
  }
}

TEST_CASE("our own stop, longer than the budget, loses nobody") {
  Scene scene(within(10s));
  for (int round = 0; round < 10; ++round) {
    scene.world.run_for(std::chrono::milliseconds(977 * round));
    scene.world.local().hang();
    scene.world.run_for(25s);
    scene.world.local().resume();
    scene.world.run_for(30s);
    CHECK(scene.kept.records.empty());
  }
}

TEST_CASE("bytes in our own queue are owed too: their acknowledgement is life, also when a loop that slept looks first") {
  std::mt19937_64 random(test::seed_of("sleeping senders"));
  for (int round = 0; round < 20; ++round) {
    Scene scene(within(6s), random());
    scene.answers = false;
    scene.world.path(scene.world.local(), scene.there).bytes_per_second = 200'000;
    const ConnectionHandle sender = scene.kept.connection;
    scene.world.after(1ms, [&] { sender->send(std::string(15'000'000, 'x')); });
    scene.world.run_for(Duration(static_cast<std::int64_t>(random() % 10'000'000'000)));
    // While another one is accepted the kernel's queue drains, and nobody fills it before the heartbeat is due.
    scene.kept.on_open = [&](Connection&) { scene.world.spend(10s); };
    scene.there.connect("10.0.0.1:7000").on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
    scene.world.run_for(30s);
    CHECK(scene.kept.records.empty());
    CHECK(sender->backlog_bytes() > 0);
    scene.there.hang();
    scene.world.run_for(20s);
    REQUIRE(scene.kept.records.size() == 2);
    CHECK(scene.kept.records[0].verdict != scene.kept.records[1].verdict);  // the sender's window is closed
  }
}

TEST_CASE("what has come is read before a probe goes out: a silence that is over, or a stream, is not probed") {
  std::mt19937_64 random(test::seed_of("unread ends"));
  for (int round = 0; round < 20; ++round) {
    Scene scene(within(60s), random());
    scene.world.run_for(Duration(static_cast<std::int64_t>(random() % 100'000'000'000)));
    // While another one is accepted a probe becomes due; the peer speaks, ends its stream and resets.
    scene.kept.on_open = [&](Connection&) {
      scene.world.spend(20s);
      scene.peer->send("farewell");
      scene.peer->finish();
      scene.world.spend(100ms);
      scene.peer->reset();
      scene.world.spend(100ms);
    };
    scene.there.connect("10.0.0.1:7000");
    scene.world.run_for(1s);
    REQUIRE(scene.kept.records.size() == 1);
    INFO(describe(scene.kept.records[0]));
    CHECK(scene.kept.records[0].reason == CloseReason::peer_finished);
    CHECK(scene.kept.records[0].received == scene.peer->sent_bytes());  // an answer may have been on its way
    CHECK(scene.kept.records[0].unsent == 0);
  }
}

TEST_CASE("with reading paused, bytes that the kernel received are life, and nothing else is") {
  Scene scene(within(10s));
  scene.answers = false;
  REQUIRE(scene.kept.connection->pause_reading());
  for (int seconds = 0; seconds < 120; ++seconds) {
    scene.peer->send("still here");
    scene.world.run_for(1s);
    CHECK(scene.kept.records.empty());
  }
  scene.there.hang();
  CHECK(*scene.lost(30s).verdict == Verdict::hung);
}

TEST_CASE("with reading paused, what came hardly after the last byte is no new life at each look, whatever the kernel rounds") {
  constexpr Duration budget = 9'999'300us;  // its looks differ in where within a millisecond they come
  for (const bool fills_buffer : {false, true}) {
    CAPTURE(fills_buffer);
    for (Duration later = 0ns; later < 4ms; later += 100us) {
      CAPTURE(later.count());
      Scene scene(within(budget), 1, 1ms, {.tick = 100us});  // a look may come within one of the kernel's milliseconds
      scene.answers = false;
      const int size = 8192;
      REQUIRE(sys::set_option(scene.kept.connection->descriptor(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
      scene.world.run_for(1s);
      scene.peer->send("one");
      scene.world.run_for(1200us);
      REQUIRE(scene.kept.connection->pause_reading());
      if (!fills_buffer) scene.peer->send("two");
      scene.world.run_for(later);
      scene.peer->send(fills_buffer ? std::string(5000, 'x') : "three");
      const Instant sent = scene.world.now();
      scene.world.run_for(1500us);
      scene.way(Way::cut);
      (void)scene.lost(2 * budget);
      check_in_time(scene, sent, budget - 5ms, 8ms);
    }
  }
}

TEST_CASE("the kernel's own ETIMEDOUT in the middle of a doubt is heartbeat_lost with the last living evidence") {
  HeartbeatOptions options = within(60s);
  ListenerOptions listener_options = Scene::with(options);
  World world;
  Kept kept;
  Reactor reactor;
  listener_options.socket.user_timeout = 20s;
  Listener<Watched> listener(reactor, listener_options, [&](Connection&) { return Watched{&world, &kept}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
  peer.on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
  world.run_for(1min);
  world.set_way(world.local(), world.host("10.0.0.2"), Way::cut);
  world.run_for(10min);
  REQUIRE(kept.records.size() == 1);
  CHECK(kept.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(kept.records[0].error_number == ETIMEDOUT);
  CHECK(kept.records[0].origin == Origin::network);
}

TEST_CASE("many that fell silent in the same instant are asked over the whole interval, and never in step") {
  World world;
  Kept kept;
  Reactor reactor;
  Listener<Watched> listener(reactor, Scene::with(within(20s)), [&](Connection&) { return Watched{&world, &kept}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  std::map<std::int64_t, int> buckets;
  int pings = 0;
  constexpr int peers = 2000;
  for (int index = 0; index < peers; ++index) {
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    peer.on_receive = [&](Peer& self, std::string_view) {
      ++pings;
      ++buckets[world.now().time_since_epoch() / 100ms];
      self.send("pong");
    };
  }
  world.run_for(100s);
  const double mean = static_cast<double>(pings) / 1000;
  for (const auto& [bucket, count] : buckets)
    if (bucket > 36'000 + 100) CHECK(count <= 3 * mean + 10);
  CHECK(kept.records.empty());
}

TEST_CASE("keepalive alone finds a partition within its plan, and never a process that hangs") {
  HeartbeatOptions options;
  options.budget = 20s;
  options.keepalive_only = true;
  const Duration told_within = plan_heartbeat(options)->told_within;
  Scene cut(options);
  const Instant began = cut.world.now();
  cut.way(Way::cut);
  REQUIRE(cut.world.run_until([&] { return !cut.kept.records.empty(); }, 10min));
  CHECK(cut.kept.records[0].reason == CloseReason::network_timed_out);
  CHECK(cut.world.now() - began <= told_within + 1s);
  CHECK_FALSE(cut.kept.records[0].verdict);
  Scene hung(options);
  hung.there.hang();
  hung.world.run_for(24h);
  CHECK(hung.kept.records.empty());
}

TEST_CASE("the handler may say the ping itself") {
  struct Pinger {
    void on_receive(Connection&, Bytes) {}
    void on_ping_due(Connection& peer) { peer.send("PING " + std::to_string(++said) + "\n"); }
    void on_close(Connection&, const CloseRecord&) { *ended = true; }
    bool* ended;
    int said = 0;
  };
  World world;
  bool ended = false;
  Reactor reactor;
  ListenerOptions options;
  options.heartbeat.budget = 20s;
  Listener<Pinger> listener(reactor, options, [&](Connection&) { return Pinger{&ended}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
  std::string heard;
  peer.on_receive = [&](Peer& self, std::string_view bytes) {
    heard += bytes;
    self.send("PONG\n");
  };
  world.run_for(1min);
  CHECK_FALSE(ended);
  CHECK(heard.starts_with("PING 1\nPING 2\n"));
}

/// A Unix peer that connects and says nothing by itself; its kernel is ours.
struct UnixScene {
  UnixScene()
      : listener(*world.reactor, Scene::with(within(10s)),
                 [this](Connection& connection) { return Actor(world.story, connection); }) {
    REQUIRE(listener.listen("unix:@hung"));
    peer = world.kernel.peer_connects(world.kernel.listener());
    world.settle();
  }
  Connection& connection() { return world.story.connection(peer); }

  Simulation world;
  Listener<Actor> listener;
  int peer = -1;
};

TEST_CASE("of a Unix peer there is no evidence to wait for: it is lost at the budget's end, and not a grace later") {
  UnixScene scene;
  const Instant opened = scene.world.kernel.now();
  scene.world.run_for(10s - 1ms);
  CHECK(scene.world.story.records.empty());
  scene.world.run_for(3ms);
  REQUIRE(scene.world.story.records.size() == 1);
  const CloseRecord& record = scene.world.story.record(scene.peer);
  CHECK(record.reason == CloseReason::heartbeat_lost);
  CHECK(record.verdict == Verdict::unknown);
  CHECK(record.age >= 10s);
  CHECK(opened + record.age <= scene.world.kernel.now());
}

TEST_CASE("with reading paused, what a Unix peer says before the first look is life, and the budget counts from it") {
  UnixScene scene;
  REQUIRE(scene.connection().pause_reading());
  scene.world.run_for(1200ms);  // the first look comes after 1.25 s at the earliest
  scene.world.kernel.peer_sends(scene.peer, "the last");
  scene.world.run_for(1min);
  REQUIRE(scene.world.story.records.size() == 1);
  const CloseRecord& record = scene.world.story.record(scene.peer);
  CHECK(record.reason == CloseReason::heartbeat_lost);
  CHECK(record.left_unread == 8);
  CHECK(record.age >= 1200ms + 10s);
  CHECK(record.age <= 20s);
}

TEST_CASE("with reading paused, a Unix peer whose bytes may be all that it can send is not lost before we read") {
  for (const bool fills : {false, true}) {
    CAPTURE(fills);
    UnixScene scene;
    REQUIRE(scene.connection().pause_reading());
    scene.world.kernel.peer_sends(scene.peer, std::string(fills ? 277 : 276, 'x'));
    scene.world.run_for(1min);
    CHECK(scene.world.story.records.empty() == fills);
    if (!fills) continue;
    REQUIRE(scene.connection().resume_reading());
    scene.world.run_for(10s - 1ms);
    CHECK(scene.world.story.records.empty());
    scene.world.run_for(3ms);  // it has room again, and says nothing
    REQUIRE(scene.world.story.records.size() == 1);
    CHECK(scene.world.story.record(scene.peer).reason == CloseReason::heartbeat_lost);
  }
}

TEST_CASE("keepalive alone is refused of a Unix address, before anything is opened") {
  Simulation world;
  ListenerOptions options;
  options.heartbeat = {.budget = 10s, .keepalive_only = true};
  Listener<Actor> listener(*world.reactor, options, [&](Connection& connection) { return Actor(world.story, connection); });
  const std::size_t open_before = world.kernel.open_descriptors().size();
  const auto refused = listener.listen("unix:@here");
  REQUIRE_FALSE(refused);
  CHECK(describe(refused.error()).find("listen: keepalive_only is for TCP") == 0);
  CHECK(world.kernel.open_descriptors().size() == open_before);
}

TEST_CASE("with phi, a peer that used to answer fast is lost long before its budget, and one that answers late is not") {
  std::mt19937_64 random(test::seed_of("phi"));
  for (int round = 0; round < 20; ++round) {
    HeartbeatOptions options = within(60s);
    options.interval = std::chrono::milliseconds(1000 + random() % 3000);
    options.phi = PhiAccrual{.threshold = 8};
    Scene scene(options, random());
    scene.world.run_for(*options.interval * 12);  // eleven answers at least
    if (round % 2 == 0) scene.there.hang();
    if (round % 2 == 1) scene.way(Way::cut);
    const CloseRecord& record = scene.lost(5min);
    CHECK(*record.verdict == (round % 2 == 0 ? Verdict::hung : Verdict::unreachable));
    // From the first probe: an interval and 1.5 s; that probe comes an interval after the last answer at the latest. The
    // network's evidence takes a few looks more.
    CHECK(record.silence >= *options.interval * 3 / 2 + 1500ms);
    CHECK(record.silence <= 2 * *options.interval + 1500ms + *options.interval + 2 * tick);
    REQUIRE(record.evidence);
    CHECK(record.evidence->phi >= 8);
  }
}

TEST_CASE("phi is silent before it has heard enough answers: then the budget holds") {
  HeartbeatOptions options = within(30s);
  options.phi = PhiAccrual{.threshold = 1, .least_answers = 64};
  Scene scene(options);
  scene.world.run_for(3min);
  scene.there.hang();
  const CloseRecord& record = scene.lost(5min);
  CHECK(*record.verdict == Verdict::hung);
  CHECK(record.evidence->phi == 0);
  check_in_time(scene, scene.kept.ended_at[0] - record.silence, 30s);
}

TEST_CASE("a peer whose answers vary as widely as its silence is not doubted by phi") {
  std::mt19937_64 random(test::seed_of("answers that vary"));
  HeartbeatOptions options = within(60s);
  options.interval = 2s;
  options.phi = PhiAccrual{.threshold = 8};
  Scene scene(options);
  int answered = 0;
  bool answers_later = false;
  scene.peer->on_receive = [&](Peer& self, std::string_view) {
    if (answers_later) return;
    answers_later = true;
    // One at once, the next after six to eight seconds, as a peer does that collects its garbage.
    const auto late = std::chrono::milliseconds(++answered % 2 == 0 ? 5 : 6000 + random() % 2000);
    scene.world.after(late, [&] {
      answers_later = false;
      self.send("pong");
    });
  };
  scene.world.run_for(20min);
  CHECK(answered > 150);
  CHECK(scene.kept.records.empty());
}

TEST_CASE("what the peer says by itself does not count as an answer's time, and its silence is doubted from the probe on") {
  HeartbeatOptions options = within(60s);
  options.interval = 4s;
  options.phi = PhiAccrual{.threshold = 8};
  Scene scene(options);
  for (int seconds = 0; seconds < 300; ++seconds) {  // never silent for half an interval: no probe, no answer, no phi
    scene.peer->send("tick");
    scene.world.run_for(1s);
  }
  CHECK(scene.pings == 0);
  scene.there.hang();
  const CloseRecord& record = scene.lost(5min);
  CHECK(record.evidence->phi == 0);
  check_in_time(scene, scene.kept.ended_at[0] - record.silence, 60s);
}

TEST_CASE("each silence draws its own phase: between half an interval and a whole one, evenly") {
  HeartbeatOptions options = within(20s);
  options.interval = 4s;
  Scene scene(options);
  std::vector<double> phases;
  Instant before = scene.world.now();
  scene.peer->on_receive = [&](Peer& self, std::string_view) {
    phases.push_back(std::chrono::duration<double>(scene.world.now() - before).count());
    before = scene.world.now();
    self.send("pong");
  };
  scene.world.run_for(2h);
  phases.erase(phases.begin());
  double sum = 0, low = 9, high = 0;
  for (const double phase : phases) sum += phase, low = std::min(low, phase), high = std::max(high, phase);
  CHECK(phases.size() > 2000);
  CHECK(sum / static_cast<double>(phases.size()) == doctest::Approx(3.0).epsilon(0.02));
  CHECK(low >= 2.0);
  CHECK(low <= 2.05);
  CHECK(high <= 4.01);
  CHECK(high >= 3.95);
}

TEST_CASE("callbacks that hold the loop before a probe leaves take nothing from the peer, whichever way it leaves") {
  struct Slow {
    void on_receive(Connection&, Bytes) {}
    void on_ping_due(Connection& peer) {
      if (size > 100) world->spend(1s);  // a large piece leaves at once
      peer.send(bytes_of(std::string(size, 'p')));
      if (size > 100) return;
      // A small one leaves when the turn comes to it: after this callback, and after a task that reads on meanwhile.
      if (!pauses) return world->spend(1s);
      if (std::exchange(has_paused, true)) return;
      (void)reactor->post([world = world, handle = peer.handle()] {
        if (handle) CHECK((handle->pause_reading() && handle->resume_reading()));
        world->spend(1s);
      });
    }
    void on_close(Connection&, const CloseRecord&) { ++*ended; }
    World* world;
    Reactor* reactor;
    int* ended;
    std::size_t size;
    bool pauses;
    bool has_paused = false;
  };
  for (const auto& [size, pauses] : {std::pair<std::size_t, bool>(4, false), {4, true}, {10'000, false}}) {
    CAPTURE(size);
    CAPTURE(pauses);
    World world;
    int ended = 0, pings = 0;
    Reactor reactor;
    ListenerOptions options;
    // No evidence that could save it, and less time than the callback takes.
    options.heartbeat = {.budget = 300ms, .interval = 100ms, .wants_verdict = false};
    Listener<Slow> listener(reactor, options, [&](Connection&) { return Slow{&world, &reactor, &ended, size, pauses}; });
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    peer.on_receive = [&](Peer& self, std::string_view) {
      ++pings;
      world.after(50ms, [&self] { self.send("pong"); });
    };
    world.run_for(1min);
    CHECK(ended == 0);
    CHECK(pings >= 50);
    world.host("10.0.0.2").hang();
    world.run_for(10s);
    CHECK(ended == 1);
  }
}

TEST_CASE("a probe that the kernel had no room for asks from when it leaves, however late the loop is by then") {
  struct Keeper {
    void on_receive(Connection&, Bytes) { world->spend(7s); }
    void on_close(Connection&, const CloseRecord&) {}
    World* world;
  };
  World world;
  Kept kept;
  Reactor reactor;
  Listener<Keeper> others(reactor, {}, [&](Connection&) { return Keeper{&world}; });
  REQUIRE(others.listen("10.0.0.1:7001"));
  struct Asking {
    void on_receive(Connection&, Bytes) {}
    void on_ping_due(Connection& peer) {
      world->set_chance(sim::Fault::out_of_room, 1);
      peer.send(bytes_of("ping"));
      world->after(100us, [at = world, one = other] {  // before there is room again
        at->set_chance(sim::Fault::out_of_room, 0);
        one->send("keep it");
      });
    }
    void on_close(Connection&, const CloseRecord& record) { kept->records.push_back(record); }
    World* world;
    Kept* kept;
    Peer* other;
  };
  Peer* other = nullptr;
  ListenerOptions options;
  options.heartbeat = {.budget = 4s, .interval = 1s, .wants_verdict = false};
  Listener<Asking> listener(reactor, options, [&](Connection&) { return Asking{&world, &kept, other}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  other = &world.host("10.0.0.3").connect("10.0.0.1:7001");
  world.run_for(10ms);
  Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
  peer.on_receive = [](Peer& self, std::string_view) { self.send("pong"); };
  world.run_for(1min);
  CHECK(kept.records.empty());
}

TEST_CASE("a hung peer is lost within the budget although the handler says no ping and the program goes on sending") {
  struct Mute {
    void on_open(Connection& peer) { *handle = peer.handle(); }
    void on_receive(Connection&, Bytes) {}
    void on_ping_due(Connection&) {}
    void on_close(Connection&, const CloseRecord& record) {
      kept->records.push_back(record);
      kept->ended_at.push_back(world->now());
    }
    World* world;
    Kept* kept;
    ConnectionHandle* handle;
  };
  World world;
  Kept kept;
  ConnectionHandle handle;
  Reactor reactor;
  ListenerOptions options;
  options.heartbeat.budget = 8s;
  Listener<Mute> listener(reactor, options, [&](Connection&) { return Mute{&world, &kept, &handle}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
  world.run_for(10ms);
  peer.send("hello");
  world.run_for(10ms);
  world.host("10.0.0.2").hang();
  const Instant hung = world.now();
  for (int sends = 0; sends < 100 && kept.records.empty(); ++sends) {
    if (handle->is_open()) handle->send(bytes_of("x"));
    world.run_for(200ms);
  }
  REQUIRE(kept.records.size() == 1);
  CHECK(kept.records[0].verdict == Verdict::hung);
  CHECK(kept.ended_at[0] - hung <=
        8s + 2s + 1s);  // an interval at most until what it was asked with is acknowledged, and the grace
}

TEST_CASE("what contradicts itself is refused before any connection is touched") {
  World world;
  Kept kept;
  Reactor reactor;
  const auto refused = [&](const HeartbeatOptions& heartbeat, std::size_t backlog_bytes_max = 1024) {
    ListenerOptions options = Scene::with(heartbeat);
    options.backlog_bytes_max = backlog_bytes_max;
    Listener<Watched> listener(reactor, options, [&](Connection&) { return Watched{&world, &kept}; });
    const auto answer = listener.listen("10.0.0.1:7000");
    REQUIRE_FALSE(answer);
    CHECK(answer.error() == Error{"listen", EINVAL});
    return std::string(answer.error().detail);
  };
  HeartbeatOptions options = within(20s);
  options.interval = 0s;
  CHECK(refused(options) == "heartbeat interval out of range");
  options.interval = 30s;
  CHECK(refused(options) == "heartbeat budget shorter than the interval");
  options = within(20s);
  options.ping = "";
  CHECK(refused(options) == "an empty ping is no probe");
  options.ping.reset();
  CHECK(refused(options) == "a heartbeat needs a ping, or a handler with on_ping_due");
  options.ping = std::string(1025, 'p');
  CHECK(refused(options) == "heartbeat ping larger than backlog_bytes_max");
  ListenerOptions both;
  both.heartbeat = {.budget = 20s, .keepalive_only = true};
  both.socket.keep_alive = KeepAlive{600s, 75s, 9};
  Listener<Watched> listener(reactor, both, [&](Connection&) { return Watched{&world, &kept}; });
  const auto answer = listener.listen("10.0.0.1:7000");
  REQUIRE_FALSE(answer);
  CHECK(std::string(answer.error().detail) == "keepalive_only sets the socket's keep_alive and user_timeout itself");
}

TEST_SUITE_END();
