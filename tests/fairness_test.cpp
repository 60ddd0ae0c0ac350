// Who waits for whom. Nothing here measures time: what counts is how many system calls one connection gets before all others had
// their turn, and which bytes were handed over in which turn.
#include <doctest/doctest.h>

#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::ConnectionHandle;
using vigil::Reactor;
using vigil::ReactorCounters;
using vigil::ReactorOptions;
namespace test = vigil::test;

/// As many bytes as the kernel takes without anybody reading.
std::size_t fill(test::Peer& peer) {
  static const std::string block(64 * 1024, 'f');
  std::size_t sent = 0;
  while (const std::size_t now = peer.send_some(block)) sent += now;
  return sent;
}

constexpr std::size_t read_bytes = 1024;
constexpr std::size_t reads_per_turn = 4;
const ReactorOptions small_reads{.receive_buffer_bytes = read_bytes, .reads_per_turn = reads_per_turn};

TEST_CASE("a firehose gets its budget of reads in a turn and a hundred others are all served in the same turn") {
  test::Hooks hooks;
  Reactor reactor(small_reads);
  const test::HookedListener server(reactor, hooks);
  test::Client firehose = test::connect_client(reactor, hooks, server.address);
  std::vector<test::Client> others;
  for (int count = 0; count < 100; ++count) others.push_back(test::connect_client(reactor, hooks, server.address));

  std::size_t from_firehose = 0;
  std::size_t from_others = 0;
  hooks.on_receive = [&](Connection& connection, Bytes) {
    ++(connection.handle() == firehose.connection ? from_firehose : from_others);
  };

  for (int round = 0; round < 20; ++round) {
    // It keeps its kernel buffer full, so that it is both left over from the last turn and reported anew.
    REQUIRE(fill(firehose.peer) + firehose.connection->received() > reads_per_turn * read_bytes);
    for (test::Client& other : others) other.peer.send("x");
    from_firehose = from_others = 0;
    const ReactorCounters before = reactor.counters();

    test::turn_at_once(reactor);

    CHECK(from_others == others.size());
    CHECK(from_firehose <= reads_per_turn);
    CHECK(reactor.counters().receive_calls - before.receive_calls <= reads_per_turn + others.size());
  }
  CHECK(firehose.connection->received() == 20 * reads_per_turn * read_bytes);  // nor is it starved itself
}

TEST_CASE("a firehose that waits on the ready list keeps no turn from waiting for the poller's news") {
  test::Hooks hooks;
  Reactor reactor({.receive_buffer_bytes = read_bytes, .events_per_wait = 1, .reads_per_turn = 1});
  const test::HookedListener server(reactor, hooks);
  test::Client firehose = test::connect_client(reactor, hooks, server.address);
  std::vector<test::Client> others;
  for (int count = 0; count < 10; ++count) others.push_back(test::connect_client(reactor, hooks, server.address));
  std::size_t from_others = 0;
  hooks.on_receive = [&](Connection& connection, Bytes) { from_others += connection.handle() == firehose.connection ? 0 : 1; };
  fill(firehose.peer);
  for (test::Client& other : others) other.peer.send("x");

  // One event a turn: the others need one turn each, and one more for the firehose's own event.
  for (std::size_t turn = 0; turn < others.size() + 1; ++turn) test::turn_at_once(reactor);

  CHECK(from_others == others.size());
}

TEST_CASE("a storm of connects leaves every established connection its turn") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  std::vector<test::Client> established;
  for (int count = 0; count < 20; ++count) established.push_back(test::connect_client(reactor, hooks, server.address));
  const std::size_t opened_before = hooks.opened.size();
  std::size_t served = 0;
  hooks.on_receive = [&](Connection&, Bytes) { ++served; };
  std::vector<test::Peer> storm;
  for (int count = 0; count < 400; ++count) storm.emplace_back(server.address);

  int turns = 0;
  while (hooks.opened.size() < opened_before + storm.size()) {
    REQUIRE(++turns < 1000);
    served = 0;
    const std::size_t opened = hooks.opened.size();
    for (test::Client& client : established) client.peer.send("x");

    test::turn_at_once(reactor);

    CHECK(served == established.size());
    CHECK(hooks.opened.size() - opened <= 64);
  }
}

TEST_SUITE("threads") {
  TEST_CASE("a fast reader whose handler refills the queue whenever it drains starves nobody") {
    test::Hooks hooks;
    Reactor reactor;
    const test::HookedListener server(reactor, hooks);
    test::Client flooded = test::connect_client(reactor, hooks, server.address);
    std::vector<test::Client> others;
    for (int count = 0; count < 20; ++count) others.push_back(test::connect_client(reactor, hooks, server.address));
    const std::string piece(7 * 1024, 'p');
    const auto refill = [&](Connection& connection) {
      while (connection.backlog_bytes() <= 1280 * 1024) connection.send(piece);
    };
    hooks.on_send_drained = refill;
    std::size_t served = 0;
    hooks.on_receive = [&](Connection&, Bytes) { ++served; };
    std::atomic<bool> over = false;
    std::thread reader([descriptor = flooded.peer.descriptor(), &over] {
      std::vector<char> room(1 << 20);
      while (!over && ::recv(descriptor, room.data(), room.size(), 0) > 0) {
      }
    });
    refill(*flooded.connection);

    std::uint64_t most_calls = 0;
    for (int turn = 0; turn < 500; ++turn) {
      served = 0;
      for (test::Client& other : others) other.peer.send("x");
      const std::uint64_t calls_before = reactor.counters().send_calls;

      test::turn_at_once(reactor);

      CHECK(served == others.size());
      most_calls = std::max(most_calls, reactor.counters().send_calls - calls_before);
    }
    // One budget in its dispatch, one in the flush phase.
    CHECK(most_calls <= 2 * 16);
    CHECK(flooded.connection->handed_to_kernel() > 10 * 1024 * 1024);  // and it did flood

    over = true;
    REQUIRE(::shutdown(flooded.peer.descriptor(), SHUT_RDWR) == 0);
    reader.join();
  }
}

TEST_CASE("what became ready together with a stop is dispatched by the next run") {
  test::Hooks hooks;
  Reactor reactor(ReactorOptions{.receive_buffer_bytes = read_bytes, .reads_per_turn = 1});
  const test::HookedListener server(reactor, hooks);
  test::Client stopping = test::connect_client(reactor, hooks, server.address);
  test::Client finishing = test::connect_client(reactor, hooks, server.address);
  const std::string message(2 * read_bytes + read_bytes / 2, 'm');
  finishing.peer.send(message);
  test::turn_at_once(reactor);  // one read of the three: the rest is left over
  REQUIRE(finishing.connection->received() == read_bytes);

  // The end is reported in the turn that is stopped before it comes to it. Edges are told once: it must not be forgotten.
  hooks.on_receive = [&](Connection& connection, Bytes) {
    if (connection.handle() == stopping.connection) reactor.stop();
  };
  stopping.peer.send("s");
  finishing.peer.finish();
  REQUIRE(reactor.run());
  CHECK(finishing.connection->received() == read_bytes);

  CHECK(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  CHECK(hooks.records.at(0).reason == vigil::CloseReason::peer_finished);
  CHECK(hooks.records.at(0).received == message.size());
}

TEST_CASE("an echo costs one receive and one send, no registration is touched and hardly a read finds nothing") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  std::vector<test::Client> clients;
  for (int count = 0; count < 10; ++count) clients.push_back(test::connect_client(reactor, hooks, server.address));
  const std::string message(64, 'm');
  const ReactorCounters before = reactor.counters();

  constexpr std::size_t rounds = 500;
  for (std::size_t round = 1; round <= rounds; ++round) {
    for (test::Client& client : clients) client.peer.send(message);
    for (test::Client& client : clients)
      REQUIRE(test::turn_until(reactor, [&] { return client.peer.read().received.size() == round * message.size(); }));
  }

  const ReactorCounters& after = reactor.counters();
  const double messages = static_cast<double>(rounds * clients.size());
  const auto per_message = [&](std::uint64_t ReactorCounters::*counter) {
    return static_cast<double>(after.*counter - before.*counter) / messages;
  };
  CHECK(per_message(&ReactorCounters::receive_calls) + per_message(&ReactorCounters::send_calls) <= 2.05);
  CHECK(per_message(&ReactorCounters::empty_receives) <= 0.01);
  CHECK(per_message(&ReactorCounters::stalled_sends) == 0);
  CHECK(per_message(&ReactorCounters::events) <= 1.05);  // one edge a message: its own writes are not reported back
}

}  // namespace
