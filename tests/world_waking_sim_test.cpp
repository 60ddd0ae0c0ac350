// Whoever calls a reactor that sleeps in a simulated world is heard at once: on a thread of its own it could not have slept.
#include <doctest/doctest.h>

#include <chrono>
#include <string_view>
#include <vector>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::World;

namespace {

/// One connection on which nothing happens, so that its reactor sleeps for ever; and two other hosts that have something to say
/// to each other after an hour, of which the reactor's kernel learns nothing.
struct Asleep {
  struct Handler {
    void on_open(Connection& peer) { asleep->connection = peer.handle(); }
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord& record) {
      asleep->records.push_back(record);
      asleep->closed_at = asleep->world.now();
    }
    Asleep* asleep;
  };
  enum class Hook { accept, connected, receive, finished, error };
  enum class Deed { close, post, shut_down };

  Asleep() {
    REQUIRE(listener.listen("10.0.0.1:7000"));
    client.on_finished = [](Peer& peer) { peer.close(); };
  }

  void strangers_meet(Hook hook) {
    world.host("10.0.0.4").listen(80, [this, hook](Peer& peer) {
      if (hook == Hook::accept) call();
      if (hook == Hook::receive) peer.on_receive = [this](Peer&, std::string_view) { call(); };
      if (hook == Hook::finished) peer.on_finished = [this](Peer&) { call(); };
      if (hook == Hook::error) peer.on_error = [this](Peer&) { call(); };
    });
    world.after(1h, [this, hook] {
      Peer& stranger = world.host("10.0.0.3").connect("10.0.0.4:80");
      if (hook == Hook::receive) stranger.send("hello");
      if (hook == Hook::finished) stranger.finish();
      stranger.on_connected = [this, hook](Peer& peer) {
        if (hook == Hook::connected) call();
        if (hook == Hook::error) peer.reset();
      };
    });
  }
  void call() {
    called_at = world.now();
    if (deed == Deed::close) CHECK(connection->close());
    if (deed == Deed::post) CHECK(reactor.post([this] { connection->close(); }));
    if (deed == Deed::shut_down) CHECK(reactor.shutdown(1h));
  }
  /// The end needs a way to the client and back.
  void check_heard() const {
    REQUIRE(called_at != Instant{});
    REQUIRE(records.size() == 1);
    CHECK(closed_at - called_at < 1ms);
  }

  World world;
  Deed deed = Deed::close;
  std::vector<CloseRecord> records;
  Instant called_at{}, closed_at{};
  Reactor reactor;
  ConnectionHandle connection;
  Listener<Handler> listener{reactor, {}, [this](Connection&) { return Handler{this}; }};
  Peer& client = world.host("10.0.0.2").connect("10.0.0.1:7000");
};

constexpr Asleep::Deed deeds[] = {Asleep::Deed::close, Asleep::Deed::post, Asleep::Deed::shut_down};

}  // namespace

TEST_SUITE_BEGIN("world");

TEST_CASE("a reactor that sleeps hears at once what any callback of a peer asks of it") {
  using Hook = Asleep::Hook;
  for (const Hook hook : {Hook::accept, Hook::connected, Hook::receive, Hook::finished, Hook::error}) {
    for (const Asleep::Deed deed : deeds) {
      CAPTURE(static_cast<int>(hook));
      CAPTURE(static_cast<int>(deed));
      Asleep asleep;
      asleep.deed = deed;
      asleep.world.attach(asleep.reactor);
      asleep.strangers_meet(hook);
      asleep.world.run_for(2h);
      asleep.check_heard();
    }
  }
}

TEST_CASE("a reactor that sleeps hears at once what run_until's condition asks of it, and what is asked between two steps") {
  for (const Asleep::Deed deed : deeds) {
    for (const bool steps : {false, true}) {
      CAPTURE(static_cast<int>(deed));
      CAPTURE(steps);
      Asleep asleep;
      asleep.deed = deed;
      asleep.world.attach(asleep.reactor);
      asleep.world.run_for(1s);
      const Instant due = asleep.world.now() + 1h;  // of a task; after it the network's segments are on their way
      asleep.strangers_meet(Asleep::Hook::accept);
      asleep.world.host("10.0.0.4").stop_listening(80);
      const auto ends = [&] {
        if (asleep.world.now() > due && asleep.called_at == Instant{}) asleep.call();
        return !asleep.records.empty();
      };
      if (steps) {
        while (!ends() && asleep.world.step()) {
        }
      } else {
        CHECK(asleep.world.run_until(ends, 2h));
      }
      asleep.check_heard();
    }
  }
}

TEST_CASE("a reactor that runs by itself hears at once what a peer's callback or a task asks of it") {
  for (const bool by_task : {false, true}) {
    CAPTURE(by_task);
    Asleep asleep;
    asleep.deed = Asleep::Deed::shut_down;
    if (by_task) {
      asleep.world.after(1h, [&asleep] { asleep.call(); });
    } else {
      asleep.strangers_meet(Asleep::Hook::receive);
    }
    CHECK(asleep.reactor.run());
    asleep.check_heard();
  }
}

TEST_SUITE_END();
