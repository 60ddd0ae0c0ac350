// How to test a server in virtual time: vigil-echo's own, line for line, in a simulated world (vigil/sim.hpp), where a day takes
// no time and everything that happens is a function of the seed.
#include <doctest/doctest.h>

#include <chrono>
#include <csignal>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../tools/echo_server.hpp"
#include "vigil/sim.hpp"

using namespace vigil;
using namespace std::chrono_literals;

namespace {

/// Keeps how the connections ended; the rest of what the server tells is not looked at here.
class EndKeeper final : public tools::EchoObserver {
 public:
  explicit EndKeeper(std::vector<CloseRecord>& ends) : ends_(ends) {}

  void opened(std::uint64_t, const Address&) override {}
  void closed(std::uint64_t, const Address&, const CloseRecord& why) override { ends_.push_back(why); }
  void accept_timed_out(Duration) override {}
  void accept_paused(const Error&, Duration) override {}
  void accept_resumed(Duration) override {}
  void shed(const CloseRecord&) override {}
  void stats(const ReactorCounters&) override {}

 private:
  std::vector<CloseRecord>& ends_;
};

/// A client that says a line every five hours, up to an instant.
struct Chatter {
  Chatter(sim::World& its_world, sim::Peer& its_peer, Instant says_up_to) : world(its_world), peer(its_peer), until(says_up_to) {
    peer.on_finished = [this](sim::Peer&) { end = world.now(); };
  }
  void say() {
    if (world.now() >= until) return;
    peer.send("still here\n");
    last_word = world.now();
    world.after(5h, [this] { say(); });
  }

  sim::World& world;
  sim::Peer& peer;
  Instant until;
  Instant last_word{};
  std::optional<Instant> end;  // when it was told that the server has ended the connection
};

/// A world with an echo server at 10.0.0.1:7000.
struct EchoWorld {
  explicit EchoWorld(const Timeouts& timeouts, std::uint64_t seed = 1) : world({.seed = seed}) {
    server = tools::make_echo_server({.server = {.reactors = 2, .listener = {.timeouts = timeouts}}},
                                     [this](Worker&) { return std::make_unique<EndKeeper>(ends); });
    REQUIRE(server->start("10.0.0.1:7000"));
  }

  sim::Peer& connect_from(std::string_view ip) { return world.host(ip).connect("10.0.0.1:7000"); }
  /// It begins within five hours.
  void add_chatter(std::string_view ip, Instant until) {
    Chatter& added = chatters.emplace_back(world, connect_from(ip), until);
    world.after(world.random().between(0s, 5h), [&added] { added.say(); });
  }

  sim::World world;  // made first and gone last
  std::vector<CloseRecord> ends;
  std::deque<Chatter> chatters;
  std::shared_ptr<ServerBase> server;
};

}  // namespace

TEST_CASE("a thousand connections idle for a day, and those that fall silent are closed on time") {
  EchoWorld echo({.receive = 6h});
  sim::World& world = echo.world;
  for (int number = 0; number < 1000; ++number) {
    const bool falls_silent = number % 10 == 0;
    echo.add_chatter("10.0.1." + std::to_string(number % 100),
                     falls_silent ? world.now() + world.random().between(6h, 15h) : never_due);
  }
  world.run_for(24h);

  for (const Chatter& chatter : echo.chatters) {
    CHECK(chatter.peer.received_bytes() == chatter.peer.sent_bytes());
    if (chatter.until == never_due) {
      CHECK(chatter.peer.connected());
    } else {
      REQUIRE(chatter.end);
      const Duration silence = *chatter.end - chatter.last_word;
      CHECK(silence >= 6h);
      CHECK(silence <= 6h + 2ms);  // a tick of the server's, and the way there and back
    }
  }
  CHECK(echo.ends.size() == 100);
  for (const CloseRecord& end : echo.ends) CHECK(end.reason == CloseReason::receive_timed_out);
}

TEST_CASE("a client whose host vanishes is closed by whichever deadline it can no longer meet") {
  EchoWorld echo({.receive = 30s, .send = 10s});
  sim::Peer& idle = echo.connect_from("10.0.0.2");
  sim::Peer& busy = echo.connect_from("10.0.0.2");
  sim::Peer& neighbour = echo.connect_from("10.0.0.3");
  echo.world.run_for(1s);
  busy.send("hello");
  neighbour.send("hello");
  echo.world.run_for(150us);  // the echo is on its way
  echo.world.host("10.0.0.2").vanish();
  echo.world.run_for(25s);
  REQUIRE(echo.ends.size() == 1);
  CHECK(echo.ends[0].reason == CloseReason::send_timed_out);
  CHECK(echo.ends[0].unacknowledged == 5);

  neighbour.send("again");
  echo.world.run_for(25s);
  REQUIRE(echo.ends.size() == 2);
  CHECK(echo.ends[1].reason == CloseReason::receive_timed_out);
  CHECK(echo.ends[1].received == 0);
  CHECK(neighbour.received() == "helloagain");
  CHECK(idle.error() == 0);  // nobody is left there to be told
}

TEST_CASE("a partition that heals in time costs a client nothing but the wait") {
  EchoWorld echo({.receive = 60s, .send = 60s});
  sim::World& world = echo.world;
  sim::Peer& client = echo.connect_from("10.0.0.2");
  client.send("before, ");
  world.run_for(1s);
  world.set_way(world.local(), client.host(), sim::Way::cut);
  client.send("during");
  world.run_for(20s);
  CHECK(client.received() == "before, ");
  world.heal(world.local(), client.host());
  CHECK(world.run_until([&] { return client.received() == "before, during"; }, 20s));  // it knocks ever more rarely
  CHECK(echo.ends.empty());
}

TEST_CASE("SIGTERM lets a slow client have what it is owed, and ends the server") {
  EchoWorld echo({.receive = 30s});
  sim::World& world = echo.world;
  sim::Peer& slow = echo.connect_from("10.0.0.2");
  slow.on_finished = [](sim::Peer& client) { client.close(); };
  world.path(world.local(), slow.host()).bytes_per_second = 20'000;
  slow.send(std::string(50'000, 'x'));
  world.run_for(1s);
  CHECK(slow.received_bytes() < 20'000);

  world.raise(SIGTERM);
  REQUIRE(echo.server->run());  // returns once the last record is told, as it does outside
  CHECK(slow.received_bytes() == 50'000);
  REQUIRE(echo.ends.size() == 1);
  CHECK(echo.ends[0].reason == CloseReason::server_stopping);
  CHECK(echo.ends[0].cut_short == CutShort::none);
}

TEST_CASE("a bad day can be had again by its seed") {
  const auto day = [](std::uint64_t seed) {
    EchoWorld echo({.receive = 6h}, seed);
    sim::World& world = echo.world;
    for (const sim::Fault fault : {sim::Fault::lost, sim::Fault::duplicated, sim::Fault::delayed, sim::Fault::late_wakeup})
      world.set_chance(fault, 0.1);
    for (int number = 0; number < 10; ++number)
      echo.add_chatter("10.0.1." + std::to_string(number), world.now() + world.random().between(6h, 15h));
    world.run_for(24h);
    CHECK(echo.ends.size() == 10);
    CHECK(world.count(sim::Fault::lost) > 0);
    return world.digest();
  };
  CHECK(day(42) == day(42));
  CHECK(day(42) != day(43));
}
