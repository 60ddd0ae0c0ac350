// Where a backlog and the peer's reset meet, in the simulated world.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <vector>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::World;

TEST_SUITE_BEGIN("world");

TEST_CASE("a reset that a send has met is the reason, however much more its handler echoes: the bound is not to blame") {
  constexpr std::size_t bound = 64 * 1024;
  for (const bool pauses : {false, true}) {
    CAPTURE(pauses);
    World world;
    world.local().set_buffers(4 * 1024, 1024 * 1024);
    world.host("10.0.0.2").set_buffers(1024 * 1024, 4 * 1024);
    std::vector<CloseRecord> records;
    int refused_with = 0;
    struct Echo {
      void on_receive(Connection& connection, Bytes bytes) {
        if (const auto sent = connection.send(bytes); !sent) *refused_with = sent.error().code;
      }
      void on_close(Connection&, const CloseRecord& record) { records->push_back(record); }
      std::vector<CloseRecord>* records;
      int* refused_with;
    };
    // One read a turn: the bound is met in a later turn than the reset.
    Reactor reactor({.receive_buffer_bytes = 1024, .reads_per_turn = 1});
    ListenerOptions options;
    options.backlog_bytes_max = bound;
    options.backlog_high_mark_bytes = bound / 2;
    options.backlog_low_mark_bytes = bound / 4;
    if (pauses) options.when_backlogged = WhenBacklogged::pause_reading;
    Listener<Echo> listener(reactor, options, [&](Connection&) { return Echo{&records, &refused_with}; });
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    world.run_for(1ms);
    peer.stop_reading();
    const std::string bytes(4 * bound, 'x');
    REQUIRE(reactor.post([&] {
      peer.send(bytes);
      world.spend(1s);
      peer.reset();
      world.spend(10ms);
    }));
    world.run_for(1min);
    REQUIRE(records.size() == 1);
    CHECK(std::string(to_string(records[0].reason)) == to_string(CloseReason::peer_reset));
    CHECK(records[0].received == bytes.size());
    CHECK(records[0].left_unread == 0);
    CHECK(records[0].unsent <= bound);
    CHECK(refused_with == ECONNRESET);
  }
}

TEST_SUITE_END();
