// What a script may do to its world at any moment, also from inside its own callbacks, and what it is told to be its own mistake.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <string>
#include <string_view>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Fault;
using sim::Host;
using sim::Peer;
using sim::World;

namespace {

struct Echo {
  void on_receive(Connection& connection, Bytes bytes) { connection.send(bytes); }
  void on_close(Connection&, const CloseRecord& record) {
    if (resets != nullptr && record.reason == CloseReason::peer_reset) ++*resets;
  }
  int* resets = nullptr;
};

/// A server of vigil's, its clients from another host, and that host's own servers.
struct Site {
  explicit Site(std::uint64_t seed = 7) : world({.seed = seed}) {
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
  }
  Peer& client() { return there.connect("10.0.0.1:7000"); }
  void connect_to(std::string_view address, int count) {
    for (int index = 0; index < count; ++index) REQUIRE(connector.connect(address));
  }

  World world;
  Host& there = world.host("10.0.0.2");
  int resets = 0;  // of what the connector made
  Reactor reactor;
  Listener<Echo> listener{reactor, {}};
  Connector<Echo> connector{reactor, {}, [this](Connection&) { return Echo{&resets}; }};
};

/// What a mistake is told as, by a process of its own, which ends with it.
template <class Mistake>
std::string last_words(Mistake mistake) {
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    (void)std::signal(SIGABRT, SIG_DFL);
    dup2(ends[1], STDERR_FILENO);
    mistake();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  std::array<char, 256> buffer;
  for (ssize_t size = 0; (size = read(ends[0], buffer.data(), buffer.size())) > 0;)
    words.append(buffer.data(), static_cast<std::size_t>(size));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  if (WIFSIGNALED(status)) CHECK(WTERMSIG(status) == SIGABRT);
  return words;
}

}  // namespace

TEST_SUITE_BEGIN("world misuse");

// From inside a callback ------------------------------------------------------------------------------------------------------

TEST_CASE("on_accept may end its own listener: nobody else is accepted, and who waited is reset") {
  Site site;
  int accepted = 0;
  const auto held = std::make_shared<std::string>(1000, 'q');
  std::size_t held_afterwards = 0;
  site.there.listen(80, [&, held](Peer& peer) {
    ++accepted;
    site.there.stop_listening(80);
    peer.send("bye");
    held_afterwards = held->size();
  });
  site.there.pause_accepting(80);
  site.connect_to("10.0.0.2:80", 3);
  site.world.run_for(1s);
  REQUIRE(accepted == 0);
  site.there.resume_accepting(80);
  site.world.run_for(1s);
  CHECK(accepted == 1);
  CHECK(held_afterwards == 1000);
  CHECK(site.resets == 2);
}

TEST_CASE("on_accept may turn its host off, and accepts nobody after that") {
  Site site;
  int accepted = 0;
  site.there.listen(80, [&](Peer&) {
    ++accepted;
    site.there.vanish();
  });
  site.there.pause_accepting(80);
  site.connect_to("10.0.0.2:80", 3);
  site.world.run_for(1s);
  site.there.resume_accepting(80);
  site.world.run_for(1s);
  CHECK(accepted == 1);
}

TEST_CASE("on_accept may resume its own listener: one peer after the other, never one inside another") {
  Site site;
  int depth = 0, deepest = 0, accepted = 0;
  site.there.listen(80, [&](Peer&) {
    ++accepted;
    deepest = std::max(deepest, ++depth);
    site.there.resume_accepting(80);
    --depth;
  });
  site.there.pause_accepting(80);
  site.connect_to("10.0.0.2:80", 3);
  site.world.run_for(1s);
  site.there.resume_accepting(80);
  CHECK(accepted == 3);
  CHECK(deepest == 1);
}

TEST_CASE("a peer's callback may put another in its own place, and goes on with what it holds") {
  Site site;
  Peer& client = site.client();
  const auto held = std::make_shared<std::string>(1000, 'q');
  std::size_t connected_with = 0, received_with = 0;
  int second = 0;
  client.on_connected = [&, held](Peer& peer) {
    peer.on_connected = {};
    connected_with = held->size();
  };
  client.on_receive = [&, held](Peer& peer, std::string_view) {
    peer.on_receive = [&](Peer&, std::string_view) { ++second; };
    received_with = held->size();
  };
  client.send("one");
  site.world.run_for(1s);
  CHECK(connected_with == 1000);
  CHECK(received_with == 1000);
  CHECK(second == 0);
  CHECK(held.use_count() == 1);  // both are gone with their last call
  client.send("two");
  site.world.run_for(1s);
  CHECK(second == 1);
}

TEST_CASE("what writes the trace may end it") {
  Site site;
  const auto held = std::make_shared<std::string>(1000, 'q');
  std::size_t lines = 0, held_afterwards = 0;
  site.world.trace([&, held](std::string_view) {
    site.world.trace({});
    ++lines;
    held_afterwards = held->size();
  });
  site.client().send("hello");
  site.world.run_for(1s);
  CHECK(lines == 1);
  CHECK(held_afterwards == 1000);
  CHECK(held.use_count() == 1);
}

// Bounds ----------------------------------------------------------------------------------------------------------------------

TEST_CASE("more connections to one address than there are ports fail as in the kernel") {
  constexpr int ports = 60999 - 32768 + 1;
  World world;
  Host& there = world.host("10.0.0.2");
  world.set_way(world.local(), there, sim::Way::cut);  // every attempt keeps its port
  for (int index = 0; index < ports; ++index) {
    const Peer& peer = there.connect("10.0.0.1:7000");
    if (peer.error() != 0) FAIL("the port of attempt ", index, " was not free: ", peer.error());
  }
  Peer& one_more = there.connect("10.0.0.1:7000");
  CHECK(one_more.error() == EADDRNOTAVAIL);
  CHECK_FALSE(one_more.connected());
  one_more.send("goes nowhere");
  one_more.close();
  CHECK(there.connect("10.0.0.1:7001").error() == 0);  // to another address every port is free again
}

TEST_CASE("a fault that a caller meets by trying again does not come for ever, with a chance of 1 either") {
  for (const Fault fault : {Fault::interrupted, Fault::spurious_event, Fault::accept_error}) {
    CAPTURE(sim::to_string(fault));
    Site site;
    site.world.set_chance(fault, 1);
    Peer& client = site.client();
    client.send("hello");
    site.world.run_for(60s);
    // Of so many errors accept gives up for this once.
    if (fault != Fault::accept_error) CHECK(client.received() == "hello");
    CHECK(site.world.count(fault) >= static_cast<std::uint64_t>(sim::strikes_in_a_row_max));
  }
}

// Mistakes --------------------------------------------------------------------------------------------------------------------

TEST_CASE("pausing or resuming a listener that is not there is told as the script's mistake") {
  World world;
  Host& there = world.host("10.0.0.2");
  CHECK(last_words([&] { there.resume_accepting(99); }).find("nobody listens on that port (10.0.0.2:99)") != std::string::npos);
  CHECK(last_words([&] { there.pause_accepting(99); }).find("nobody listens on that port (10.0.0.2:99)") != std::string::npos);
}

TEST_CASE("a listener without a callback may keep its queue, and is told as the script's mistake once it is to accept") {
  Site site;
  site.there.listen(81, {});
  site.there.pause_accepting(81);
  site.connect_to("10.0.0.2:81", 1);
  site.world.run_for(1s);
  CHECK(last_words([&] { site.there.resume_accepting(81); }).find("the callback is empty (10.0.0.2:81)") != std::string::npos);
}

TEST_SUITE_END();
