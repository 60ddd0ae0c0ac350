// What the simulated world has found, each as small as it could be made.
#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <vector>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
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

}  // namespace

TEST_SUITE_BEGIN("world");

TEST_CASE("a handler that sends and then takes longer than the send timeout does not blame its peer") {
  for (const bool by_rate : {false, true}) {
    World world;
    std::vector<CloseRecord> records;
    Reactor reactor;
    ListenerOptions options;
    if (by_rate) options.timeouts.send_rate = {.bytes_per_second = 5, .window = 1s, .grace = 0s};
    if (!by_rate) options.timeouts.send = 1s;
    Listener<SlowHandler> listener(reactor, options, [&](Connection&) { return SlowHandler{&world, &records, 5s}; });
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
  world.set_way(world.local(), world.host("10.0.0.2"), sim::Way::cut);
  const Instant sent = world.now();
  REQUIRE(served->send("nobody hears"));
  REQUIRE(world.run_until([&] { return !records.empty(); }, 1min));
  CHECK(records[0].reason == CloseReason::send_timed_out);
  CHECK(world.now() - sent >= 8s);
  CHECK(world.now() - sent <= 9s + 2ms);
}

TEST_SUITE_END();
