// What the simulated world has found, each as small as it could be made; about deadlines: world_deadlines_sim_test.cpp.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::Way;
using sim::World;

namespace {

/// Answers, and then takes its time.
struct SlowHandler {
  void on_receive(Connection& peer, Bytes bytes) {
    peer.send(bytes);
    world->spend(takes);
  }
  void on_close(Connection&, const CloseRecord& record) { records->push_back(record); }

  World* world;
  std::vector<CloseRecord>* records;
  Duration takes;
};

/// Greets, which leaves at the end of the turn, and so keeps the turn that its timers are due before, and a task behind them.
struct SlowGreeter {
  void on_open(Connection& peer) {
    constexpr std::string_view greeting = "hello";
    peer.send(Bytes(reinterpret_cast<const std::byte*>(greeting.data()), greeting.size()));
    world->spend(500ms);
    CHECK(peer.set_timeout(Deadline::receive, 1h));  // the reactor reads its clock
    (void)reactor->post([this] { world->spend(5s); });
  }
  void on_receive(Connection&, Bytes) {}
  void on_close(Connection&, const CloseRecord& record) { records->push_back(record); }

  World* world;
  Reactor* reactor;
  std::vector<CloseRecord>* records;
};

/// Attempts to reach a host, begun by a loop that is kept so long that they are over in the kernel when it looks again.
struct Attempts {
  struct Client {
    void on_open(Connection&) { ++attempts->opened; }
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord& record) { attempts->records.push_back(record); }
    Attempts* attempts;
  };

  Attempts() { world.attach(reactor); }

  void from_a_busy_loop(Task callback) {
    REQUIRE(reactor.post(std::move(callback)));
    world.run_for(1s);
  }
  void begin() {
    const auto begun = connector.connect("10.0.0.2:80");
    CHECK(begun);
    if (begun) attempt = *begun;
  }

  World world;
  sim::Host& there = world.host("10.0.0.2");
  int opened = 0;
  std::vector<CloseRecord> records;
  Reactor reactor;
  Connector<Client> connector{reactor, {}, [this](Connection&) { return Client{this}; }};
  ConnectionHandle attempt;
};

enum class Ends { by_close, by_shutdown, by_shutdown_at_once };

/// A server's connection, whose handler goes on after the peer's end, may take only the first half of what it is given, and lets
/// its test do the rest; and its peer.
struct ServedPeer {
  struct Handler {
    void on_open(Connection& connection) { scene->served = connection.handle(); }
    std::size_t on_receive(Connection& connection, Bytes bytes) {
      if (scene->at_receive) scene->at_receive(connection);
      return scene->takes_half ? bytes.size() / 2 : bytes.size();
    }
    void on_peer_finished(Connection& connection) {
      ++scene->finishes_told;
      if (scene->at_finish) scene->at_finish(connection);
    }
    void on_peer_gone_while_paused(Connection&) { ++scene->gone_told; }
    void on_close(Connection&, const CloseRecord& record) {
      scene->records.push_back(record);
      scene->ended = scene->world.now();
    }
    ServedPeer* scene;
  };

  explicit ServedPeer(const Timeouts& timeouts = {})
      : listener(reactor, options_with(timeouts), [this](Connection&) { return Handler{this}; }) {
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    world.run_for(1ms);
    REQUIRE(served->is_open());
  }

  static ListenerOptions options_with(const Timeouts& timeouts) {
    ListenerOptions options;
    options.timeouts = timeouts;
    return options;
  }

  void end(Ends ends) {
    if (ends == Ends::by_close) CHECK(served->close());
    if (ends == Ends::by_shutdown) CHECK(reactor.shutdown(1s));
    if (ends == Ends::by_shutdown_at_once) CHECK(reactor.shutdown(0s));
    world.run_for(1s);
  }

  void check_reason(CloseReason reason) const {
    REQUIRE(records.size() == 1);
    CHECK(std::string(to_string(records[0].reason)) == to_string(reason));
  }

  World world;
  sim::Host& there = world.host("10.0.0.2");
  bool takes_half = false;
  Callback<void(Connection&)> at_receive, at_finish;
  int finishes_told = 0, gone_told = 0;
  ConnectionHandle served;
  std::vector<CloseRecord> records;
  Instant ended{};
  Reactor reactor;
  Listener<Handler> listener;
  Peer& peer = there.connect("10.0.0.1:7000");
};

ListenerOptions impatient_with_peers(bool by_rate) {
  ListenerOptions options;
  if (by_rate) options.timeouts.send_rate = {.bytes_per_second = 5, .window = 1s, .grace = 0s};
  if (!by_rate) options.timeouts.send = 1s;
  return options;
}

}  // namespace

TEST_SUITE_BEGIN("world");

TEST_CASE("a handler that sends and then takes longer than the send timeout does not blame its peer") {
  for (const bool by_rate : {false, true}) {
    World world;
    std::vector<CloseRecord> records;
    Reactor reactor;
    Listener<SlowHandler> listener(reactor, impatient_with_peers(by_rate), [&](Connection&) {
      return SlowHandler{&world, &records, 5s};
    });
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    world.path(world.local(), world.host("10.0.0.2")).latency = 20ms;
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    peer.send("hello");
    world.run_for(1min);
    CHECK(peer.received() == "hello");
    CHECK(records.empty());
    world.host("10.0.0.2").vanish();
    world.detach(reactor);
  }
}

TEST_CASE("what is sent and waits behind timers and tasks of its turn does not blame the peer") {
  for (const bool by_rate : {false, true}) {
    CAPTURE(by_rate);
    World world;
    std::vector<CloseRecord> records;
    Reactor reactor;
    Listener<SlowGreeter> listener(reactor, impatient_with_peers(by_rate), [&](Connection&) {
      return SlowGreeter{&world, &reactor, &records};
    });
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    world.path(world.local(), world.host("10.0.0.2")).latency = 20ms;
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    world.run_for(1min);
    CHECK(peer.received() == "hello");
    CHECK(records.empty());
    world.host("10.0.0.2").vanish();
    world.detach(reactor);
  }
}

TEST_CASE("a send timeout set while nothing is outstanding runs from the send, not from when it was set") {
  World world;
  Reactor reactor;
  std::vector<CloseRecord> records;
  ConnectionHandle served;
  struct Keeper {
    void on_open(Connection& peer) { *handle = peer.handle(); }
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord& record) { records->push_back(record); }
    ConnectionHandle* handle;
    std::vector<CloseRecord>* records;
  };
  Listener<Keeper> listener(reactor, {}, [&](Connection&) { return Keeper{&served, &records}; });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  world.host("10.0.0.2").connect("10.0.0.1:7000");
  world.run_for(1ms);
  REQUIRE(served->set_timeout(Deadline::send, 8s));
  world.run_for(900ms);
  world.set_way(world.local(), world.host("10.0.0.2"), Way::cut);
  const Instant sent = world.now();
  REQUIRE(served->send("nobody hears"));
  REQUIRE(world.run_until([&] { return !records.empty(); }, 1min));
  CHECK(records[0].reason == CloseReason::send_timed_out);
  CHECK(world.now() - sent >= 8s);
  CHECK(world.now() - sent <= 9s + 2ms);
}

TEST_CASE("an attempt that finds the peer's end and a reset behind it has met an orderly end, for nothing was owed") {
  for (const bool ends_first : {false, true}) {
    CAPTURE(ends_first);
    Attempts attempts;
    attempts.there.listen(80, [&](Peer& peer) {
      if (ends_first) peer.finish();
      peer.reset();
    });
    attempts.from_a_busy_loop([&] {
      attempts.begin();
      attempts.world.spend(10ms);
    });
    REQUIRE(attempts.records.size() == 1);
    CHECK(attempts.opened == 1);
    const CloseReason reason = ends_first ? CloseReason::peer_finished : CloseReason::peer_reset;
    CHECK(std::string(to_string(attempts.records[0].reason)) == to_string(reason));
  }
}

TEST_CASE("a soft error of the path between the handshake's end and the reactor's look fails no attempt") {
  for (const Way way : {Way::host_unreachable, Way::net_unreachable, Way::port_unreachable, Way::prohibited}) {
    CAPTURE(static_cast<int>(way));
    Attempts attempts;
    Peer* accepted = nullptr;
    attempts.there.listen(80, [&](Peer& peer) { accepted = &peer; });
    attempts.from_a_busy_loop([&] {
      attempts.begin();
      sim::Path& path = attempts.world.path(attempts.world.local(), attempts.there);
      path.way = way;  // the first segment is on its way; the next one, which ends the handshake, is answered by a router
      attempts.world.spend(10ms);
      CHECK(attempts.world.count(sim::Fault::path_rejected) == 1);
      path.way = Way::open;
    });
    CHECK(attempts.opened == 1);
    CHECK(attempts.records.empty());
    REQUIRE(attempts.attempt->send("hello"));
    attempts.world.run_for(5s);
    REQUIRE(accepted != nullptr);
    CHECK(accepted->received() == "hello");
  }
}

TEST_CASE("an attempt that ends with bytes queued resets the peer that its kernel has reached, as an open connection does") {
  enum class End { close, abort, shutdown };
  for (const End end : {End::close, End::abort, End::shutdown})
    for (const bool queued : {false, true}) {
      CAPTURE(static_cast<int>(end));
      CAPTURE(queued);
      Attempts attempts;
      Peer* accepted = nullptr;
      attempts.there.listen(80, [&](Peer& peer) { accepted = &peer; });
      attempts.from_a_busy_loop([&] {
        attempts.begin();
        if (queued) CHECK(attempts.attempt->send("hello"));
        attempts.world.spend(10ms);
        if (end == End::close) CHECK(attempts.attempt->close());
        if (end == End::abort) CHECK(attempts.attempt->abort());
        if (end == End::shutdown) CHECK(attempts.reactor.shutdown(0s));
      });
      CHECK(attempts.opened == 0);
      REQUIRE(attempts.records.size() == 1);
      CHECK(attempts.records[0].unsent == (queued ? 5U : 0U));
      REQUIRE(accepted != nullptr);
      CHECK(accepted->error() == (queued || end == End::abort ? ECONNRESET : 0));
      CHECK(accepted->finished() == (!queued && end != End::abort));
    }
}

TEST_CASE("what a router says of a path that stays broken is why an open connection was lost, port unreachable too") {
  struct Answer {
    Way way;
    int error;
  };
  for (const Answer& answer : {Answer{Way::port_unreachable, ECONNREFUSED},
                               {Way::host_unreachable, EHOSTUNREACH},
                               {Way::net_unreachable, ENETUNREACH},
                               {Way::prohibited, EHOSTUNREACH}}) {
    CAPTURE(answer.error);
    ServedPeer scene;
    scene.world.path(scene.world.local(), scene.there).way = answer.way;
    REQUIRE(scene.served->send("nobody hears"));
    REQUIRE(scene.world.run_until([&] { return !scene.records.empty(); }, 1h));
    scene.check_reason(CloseReason::network_unreachable);
    CHECK(scene.records[0].origin == Origin::network);
    CHECK(scene.records[0].error_number == answer.error);
    CHECK(scene.records[0].unacknowledged == 12);
  }
}

TEST_CASE("the peer's end that was told stays the reason of a close and of every shutdown") {
  for (const Ends ends : {Ends::by_close, Ends::by_shutdown, Ends::by_shutdown_at_once}) {
    CAPTURE(static_cast<int>(ends));
    ServedPeer scene;
    scene.peer.finish();
    scene.world.run_for(1s);
    CHECK(scene.finishes_told == 1);
    CHECK(scene.records.empty());
    scene.end(ends);
    scene.check_reason(CloseReason::peer_finished);
  }
}

TEST_CASE("a reset that was told while reading was paused stays the reason of a close and of every shutdown") {
  for (const Ends ends : {Ends::by_close, Ends::by_shutdown, Ends::by_shutdown_at_once}) {
    CAPTURE(static_cast<int>(ends));
    ServedPeer scene;
    REQUIRE(scene.served->pause_reading());
    scene.peer.send("unread");
    scene.peer.reset();
    scene.world.run_for(1s);
    CHECK(scene.gone_told == 1);
    CHECK(scene.records.empty());
    scene.end(ends);
    scene.check_reason(CloseReason::peer_reset);
    CHECK(scene.records[0].left_unread == 6);
  }
}

TEST_CASE("a reset that our own end meets behind the peer's is told: the peer was owed bytes") {
  for (const bool owed : {true, false}) {
    CAPTURE(owed);
    ServedPeer scene;
    if (owed) {
      scene.world.path(scene.world.local(), scene.there).way = Way::cut;
      REQUIRE(scene.served->send("nobody hears"));
    }
    scene.at_finish = [&](Connection& connection) {
      scene.peer.reset();
      scene.world.spend(10ms);  // it arrives now: no event tells of it before our end is sent
      CHECK(connection.close());
    };
    scene.peer.finish();
    scene.world.run_for(1s);
    scene.check_reason(owed ? CloseReason::peer_reset : CloseReason::peer_finished);
  }
}

TEST_CASE("bytes left while reading is paused begin a message when the one before is marked, and it stands still") {
  ServedPeer scene({.message = 3s});
  scene.takes_half = true;
  scene.peer.send("first.second");
  scene.world.run_for(1s);
  REQUIRE(scene.served->pause_reading());
  const Instant paused = scene.world.now();
  scene.world.run_for(10s);
  REQUIRE(scene.records.empty());
  scene.served->end_message();
  scene.world.run_for(10s);
  REQUIRE(scene.records.empty());
  REQUIRE(scene.served->resume_reading());
  const Instant resumed = scene.world.now();
  REQUIRE(scene.world.run_until([&] { return !scene.records.empty(); }, 1h));
  scene.check_reason(CloseReason::message_timed_out);
  CHECK(scene.ended >= resumed + 3s);
  CHECK(scene.ended <= resumed + 3s + 1ms);
  CHECK(resumed - paused == 20s);
}

TEST_CASE("a handler that asks for what it left again and again puts no deadline off") {
  for (const Deadline kind : {Deadline::receive, Deadline::message, Deadline::receive_rate}) {
    CAPTURE(to_string(kind));
    Timeouts timeouts;
    if (is_rate(kind)) timeouts.rate_of(kind) = {.bytes_per_second = 10, .window = 1s, .grace = 0s};
    if (!is_rate(kind)) timeouts.of(kind) = 1s;
    ServedPeer scene(timeouts);
    scene.takes_half = true;
    scene.at_receive = [&](Connection& connection) {
      scene.world.spend(1ms);
      CHECK(connection.receive_again());
    };
    scene.peer.send("x");
    const Instant sent = scene.world.now();
    scene.world.run_for(2s);
    REQUIRE(scene.records.size() == 1);
    CHECK(scene.ended - sent <= 1s + 10ms);
  }
}

TEST_SUITE_END();
