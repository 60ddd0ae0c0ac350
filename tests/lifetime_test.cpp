// What may be done from inside a callback: everything. Each deed below is done once from each place below, on real sockets, and
// afterwards every life must have been told exactly once, last, and never from inside the deed itself.
#include <doctest/doctest.h>

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "connection_life.hpp"
#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::ConnectionHandle;
using vigil::Connector;
using vigil::Deadline;
using vigil::Duration;
using vigil::Error;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::Readiness;
using vigil::Timer;
using vigil::Watch;
using vigil::WatchFor;
namespace test = vigil::test;

struct Pipe {
  Pipe() { REQUIRE(::pipe(ends.data()) == 0); }
  ~Pipe() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void put() const { REQUIRE(::write(ends[1], "x", 1) == 1); }
  std::array<int, 2> ends{};
};

/// One listener, two connections of it, and everything a deed may touch.
struct Play {
  using Deed = std::function<void(Play&, ConnectionHandle self)>;

  struct Events {
    void on_accept_timed_out(Duration) { happen(); }
    void on_accept_paused(const Error&, Duration) { happen(); }
    void on_accept_resumed(Duration) { happen(); }
    void on_shed(const CloseRecord& record) {
      test::report_reason(record);
      ++shed;
      happen();
    }
    void happen() const {
      if (wanted) wanted();
    }
    std::function<void()> wanted;
    std::size_t shed = 0;
  };

  explicit Play(Deed its_deed, const ListenerOptions& options = {}) : deed(std::move(its_deed)) {
    listener.emplace(
        reactor, options,
        [this](Connection& connection) {
          if (in_make_handler) std::exchange(in_make_handler, nullptr)(connection);
          return test::HookedHandler(hooks);
        },
        events);
    REQUIRE(listener->listen(test::loopback()));
    address = *listener->address();
    first = test::connect_client(reactor, hooks, address);
    second = test::connect_client(reactor, hooks, address);
  }

  /// To be called where the deed is to be done: the first time it is, later ones change nothing.
  void act(ConnectionHandle self) {
    if (done) return;
    done = true;
    hooks.calling([&] { deed(*this, self); });
  }

  void post_deed(std::function<void()> task) { REQUIRE(reactor.post(std::move(task))); }

  /// Runs until the deed is done and what it started has settled. A deed may stop or shut down the reactor.
  void run() {
    Timer pulse;
    int after = 0;
    pulse = Timer(reactor, [&] {
      if (done && ++after > 3) return reactor.stop();
      CHECK(pulse.arm_after(1ms));
    });
    REQUIRE(pulse.arm_after(1ms));
    const vigil::Instant give_up = test::now() + std::chrono::milliseconds(test::patience_ms);
    while (after <= 3 && test::now() < give_up) {
      REQUIRE(reactor.run());
      if (is_shut_down) break;
    }
    CHECK(done);
  }

  /// Ends what is left and checks what must hold of every play.
  void end() {
    events.wanted = nullptr;
    done = true;
    (void)reactor.shutdown(0ms);
    CHECK(test::turn_until(reactor, [this] { return reactor.counters().opened == reactor.counters().closed; }));
    test::check_all_told(reactor);
    CHECK(hooks.records.size() + events.shed == reactor.counters().closed);
    CHECK(hooks.handlers == 0);
    for (const ConnectionHandle& handle : hooks.opened) CHECK(!handle);
  }

  test::Hooks hooks;
  Events events;
  Reactor reactor;
  Deed deed;
  std::function<void(Connection&)> in_make_handler;
  std::optional<Listener<test::HookedHandler>> listener;
  vigil::Address address;
  test::Client first, second;
  bool done = false;
  bool is_shut_down = false;

  // What the place is called from, so that a deed can destroy it; and some more.
  Timer own_timer;
  Watch own_watch;
  Timer same_tick;
  std::vector<std::unique_ptr<Listener<test::HookedHandler>>> listeners;
  std::vector<std::unique_ptr<Connector<test::HookedHandler>>> connectors;
  std::vector<Timer> timers;
  int timers_fired = 0;
  int tasks_run = 0;
};

struct NamedDeed {
  const char* name;
  Play::Deed deed;
};

const std::vector<NamedDeed>& deeds() {
  static const std::vector<NamedDeed> all{
      {"close itself", [](Play&, ConnectionHandle self) { self->close(); }},
      {"abort itself", [](Play&, ConnectionHandle self) { self->abort(); }},
      {"send, finish, close and abort itself",
       [](Play&, ConnectionHandle self) {
         self->send("farewell");
         self->finish();
         self->close();
         CHECK(self->send("too late").error().code != 0);
         self->abort();
         self->abort();
         self->close();
       }},
      {"close another", [](Play& play, ConnectionHandle) { play.second.connection->close(); }},
      {"abort another", [](Play& play, ConnectionHandle) { play.second.connection->abort(); }},
      {"write to all and end all",
       [](Play& play, ConnectionHandle) {
         for (const ConnectionHandle& handle : play.hooks.opened) handle->send(std::string(100'000, 'w'));
         for (const ConnectionHandle& handle : play.hooks.opened) handle->close();
         play.second.connection->abort();
       }},
      {"overfill itself and another",
       [](Play& play, ConnectionHandle self) {
         const std::string lot(40 * 1024 * 1024, 'o');
         self->send(lot);
         play.second.connection->send(lot);
         self->send("more");
       }},
      {"destroy the listener", [](Play& play, ConnectionHandle) { play.listener.reset(); }},
      {"close the listener and listen again",
       [](Play& play, ConnectionHandle) {
         play.listener->close();
         CHECK(play.listener->listen(test::loopback()));
         CHECK(play.listener->address());
       }},
      {"destroy its own timer and watch",
       [](Play& play, ConnectionHandle) {
         play.own_timer = Timer();
         play.own_watch = Watch();
         play.same_tick.cancel();
       }},
      {"post",
       [](Play& play, ConnectionHandle) {
         for (int count = 0; count < 1000; ++count) CHECK(play.reactor.post([&play] { ++play.tasks_run; }));
         CHECK(play.reactor.mailbox().post([&play] { ++play.tasks_run; }));
       }},
      {"arm, move and cancel timers",
       [](Play& play, ConnectionHandle) {
         for (int count = 0; count < 1000; ++count) {
           play.timers.emplace_back(play.reactor, [&play] { ++play.timers_fired; });
           CHECK(play.timers.back().arm_after(count % 2 == 0 ? 0ms : 1ms));
         }
         for (std::size_t index = 0; index < 1000; index += 3) play.timers[index].disarm();
         for (std::size_t index = 1; index < 1000; index += 3) CHECK(play.timers[index].arm_after(1s));
         for (std::size_t index = 1; index < 1000; index += 6) play.timers[index].cancel();
         for (Timer& timer : play.timers) CHECK((timer.arm_after(1us) || !timer.active()));
       }},
      {"create listeners, connectors and connections",
       [](Play& play, ConnectionHandle) {
         for (int count = 0; count < 20; ++count) {
           // Out of descriptors, in some places, is an answer like another.
           play.listeners.push_back(
               std::make_unique<Listener<test::HookedHandler>>(play.reactor, ListenerOptions{}, play.hooks.make()));
           if (!play.listeners.back()->listen(test::loopback())) continue;
           play.connectors.push_back(
               std::make_unique<Connector<test::HookedHandler>>(play.reactor, vigil::ConnectorOptions{}, play.hooks.make()));
           for (int attempt = 0; attempt < 5; ++attempt) (void)play.connectors.back()->connect(*play.listeners.back()->address());
         }
         for (std::size_t index = 0; index < play.listeners.size(); index += 2) play.listeners[index].reset();
         play.connectors.clear();
       }},
      {"stop the reactor", [](Play& play, ConnectionHandle) { play.reactor.stop(); }},
      {"shut the reactor down at once",
       [](Play& play, ConnectionHandle) {
         play.is_shut_down = true;
         CHECK(play.reactor.shutdown(0ms));
       }},
      {"shut the reactor down with a drain, twice",
       [](Play& play, ConnectionHandle self) {
         play.is_shut_down = true;
         CHECK(play.reactor.shutdown(10s));
         CHECK(self->send("x").error().code != 0);
         CHECK(play.reactor.shutdown(1ms));
       }},
      {"run it from inside",
       [](Play& play, ConnectionHandle) {
         CHECK(play.reactor.run().error() == Error{"run", EBUSY});
         CHECK(play.reactor.turn(0ms).error() == Error{"run", EBUSY});
       }},
      {"override timeouts",
       [](Play& play, ConnectionHandle self) {
         for (const ConnectionHandle handle : {self, play.first.connection, play.second.connection})
           for (const Deadline kind :
                {Deadline::connect, Deadline::first_byte, Deadline::receive, Deadline::send, Deadline::drain})
             if (handle->is_open()) CHECK(handle->set_timeout(kind, 10s));
       }},
  };
  return all;
}

/// A place arranges for the deed to be done in its callback, then runs the play.
void in_every_deed(const std::function<void(Play&)>& place, const ListenerOptions& options = {}) {
  for (const NamedDeed& named : deeds()) {
    INFO("deed: ", std::string(named.name));
    Play play(named.deed, options);
    place(play);
    play.end();
  }
}

TEST_CASE("everything can be done from on_open") {
  in_every_deed([](Play& play) {
    play.hooks.on_open = [&](Connection& connection) { play.act(connection.handle()); };
    const test::Peer third(play.address);
    play.run();
  });
}

TEST_CASE("everything can be done from a connector's on_open") {
  in_every_deed([](Play& play) {
    play.hooks.on_open = [&](Connection& connection) { play.act(connection.handle()); };
    const test::PeerListener server;
    Connector<test::HookedHandler> connector(play.reactor, {}, play.hooks.make());
    REQUIRE(connector.connect(server.address()));
    play.run();
  });
}

TEST_CASE("everything can be done from on_receive, with both connections ready") {
  in_every_deed([](Play& play) {
    play.hooks.on_receive = [&](Connection& connection, Bytes) { play.act(connection.handle()); };
    play.first.peer.send("x");
    play.second.peer.send("y");
    play.run();
  });
}

TEST_CASE("everything can be done from on_receive that has gathered replies") {
  in_every_deed([](Play& play) {
    play.hooks.on_receive = [&](Connection& connection, Bytes bytes) {
      connection.send(bytes);
      play.second.connection->send(bytes);
      play.act(connection.handle());
    };
    play.first.peer.send("x");
    play.second.peer.send("y");
    play.run();
  });
}

TEST_CASE("everything can be done from on_send_drained") {
  in_every_deed(
      [](Play& play) {
        play.hooks.on_send_drained = [&](Connection& connection) { play.act(connection.handle()); };
        play.post_deed([&] {
          for (int count = 0; count < 20; ++count) play.first.connection->send(std::string(4096, 'd'));
        });
        play.run();
      },
      {.backlog_high_mark_bytes = 64 * 1024, .backlog_low_mark_bytes = 16 * 1024});
}

TEST_CASE("everything can be done from on_peer_finished, with both peers finished") {
  in_every_deed([](Play& play) {
    play.hooks.on_peer_finished = [&](Connection& connection) {
      play.act(connection.handle());
      connection.close();
    };
    play.first.peer.finish();
    play.second.peer.finish();
    play.run();
  });
}

TEST_CASE("everything can be done from on_close after the connection's own abort") {
  in_every_deed([](Play& play) {
    play.hooks.on_close = [&](Connection& connection, const CloseRecord&) { play.act(connection.handle()); };
    play.post_deed([&] { play.first.connection->abort(); });
    play.run();
  });
}

TEST_CASE("everything can be done from on_close, with both peers reset") {
  in_every_deed([](Play& play) {
    play.hooks.on_close = [&](Connection& connection, const CloseRecord&) { play.act(connection.handle()); };
    play.first.peer.reset();
    play.second.peer.reset();
    play.run();
  });
}

TEST_CASE("everything can be done from on_close of an attempt that was refused") {
  in_every_deed([](Play& play) {
    play.hooks.on_close = [&](Connection& connection, const CloseRecord&) { play.act(connection.handle()); };
    Connector<test::HookedHandler> connector(play.reactor, {}, play.hooks.make());
    const test::ClosedPort closed;
    REQUIRE(connector.connect(closed.address()));
    play.run();
  });
}

TEST_CASE("everything can be done from on_close of a deadline") {
  in_every_deed(
      [](Play& play) {
        play.hooks.on_close = [&](Connection& connection, const CloseRecord&) { play.act(connection.handle()); };
        play.run();
      },
      {.timeouts = {.receive = 2ms}});
}

TEST_CASE("everything can be done from a timer, with another due in the same tick") {
  in_every_deed([](Play& play) {
    play.own_timer = Timer(play.reactor, [&] { play.act(play.first.connection); });
    play.same_tick = Timer(play.reactor, [&] { play.act(play.first.connection); });
    REQUIRE(play.own_timer.arm_after(0ms));
    REQUIRE(play.same_tick.arm_after(0ms));
    play.run();
  });
}

TEST_CASE("everything can be done from a watch") {
  in_every_deed([](Play& play) {
    const Pipe pipe;
    auto watch = play.reactor.watch(pipe.ends[0], WatchFor::readable, [&](Readiness) { play.act(play.first.connection); });
    REQUIRE(watch);
    play.own_watch = std::move(*watch);
    pipe.put();
    play.run();
    play.own_watch.cancel();
  });
}

TEST_CASE("everything can be done from a signal's callback") {
  in_every_deed([](Play& play) {
    auto watch = play.reactor.on_signal(SIGUSR1, [&](int number) {
      CHECK(number == SIGUSR1);
      play.act(play.first.connection);
    });
    REQUIRE(watch);
    play.own_watch = std::move(*watch);
    REQUIRE(::raise(SIGUSR1) == 0);
    play.run();
  });
}

TEST_CASE("everything can be done from a posted task, with another behind it") {
  in_every_deed([](Play& play) {
    play.post_deed([&] { play.act(play.first.connection); });
    play.post_deed([&] { ++play.tasks_run; });
    play.run();
    CHECK(play.tasks_run >= 1);
  });
}

TEST_CASE("everything can be done from a listener's make_handler") {
  in_every_deed([](Play& play) {
    play.in_make_handler = [&](Connection& connection) { play.act(connection.handle()); };
    const test::Peer third(play.address);
    const test::Peer fourth(play.address);
    play.run();
  });
}

TEST_CASE("everything can be done from a connector's make_handler") {
  in_every_deed([](Play& play) {
    Connector<test::HookedHandler> connector(play.reactor, {}, [&](Connection& connection) {
      play.act(connection.handle());
      return test::HookedHandler(play.hooks);
    });
    REQUIRE(connector.connect(play.address));
    play.run();
  });
}

TEST_CASE("a connector can be destroyed by the make_handler that its connect called") {
  test::Hooks hooks;
  Reactor reactor;
  const test::PeerListener server;
  std::optional<Connector<test::HookedHandler>> connector;
  const std::string captured(1000, 'c');
  connector.emplace(reactor, vigil::ConnectorOptions{}, [&hooks, &connector, captured](Connection&) {
    connector.reset();
    CHECK(captured == std::string(1000, 'c'));
    return test::HookedHandler(hooks);
  });

  REQUIRE(connector->connect(server.address()));

  CHECK(test::turn_until(reactor, [&] { return hooks.opened.size() == 1; }));
}

TEST_CASE("everything can be done where the accept deadline is told") {
  in_every_deed(
      [](Play& play) {
        play.events.wanted = [&] { play.act(play.first.connection); };
        play.run();
      },
      {.timeouts = {.accept = 2ms}});
}

TEST_CASE("everything can be done where one is shed without a descriptor left, where accepting pauses and where it resumes") {
  for (int skipped = 0; skipped < 3; ++skipped) {
    INFO("events before the deed's: ", skipped);
    in_every_deed([skipped](Play& play) {
      int seen = 0;
      bool resumed = false;
      play.events.wanted = [&] {
        if (seen++ == skipped) play.act(play.first.connection);
        resumed = seen > 2;
      };
      const test::Peer third(play.address);
      const test::Peer fourth(play.address);
      {
        const test::NoDescriptorsLeft none;
        REQUIRE(test::turn_until(play.reactor, [&] { return seen >= 2 || play.done; }));
      }
      if (skipped == 2) REQUIRE(test::turn_until(play.reactor, [&] { return resumed; }));
      play.run();
    });
  }
}

TEST_CASE("a stale handle answers EBADF and zeros, and changes nothing") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  test::Client gone = test::connect_client(reactor, hooks, server.address);
  gone.peer.send("hello");
  REQUIRE(test::turn_until(reactor, [&] { return gone.connection->received() == 5; }));
  gone.connection->abort();
  CHECK(gone.connection);  // until on_close has returned
  hooks.on_close = [&](Connection& connection, const CloseRecord&) {
    CHECK(gone.connection);
    CHECK(gone.connection == connection.handle());
    CHECK(connection.descriptor() == -1);
    CHECK(connection.peer().port() != 0);
    CHECK(connection.received() == 5);
  };
  REQUIRE(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  hooks.on_close = nullptr;
  // A second life in the same slot is not the one the handle meant.
  test::Client next = test::connect_client(reactor, hooks, server.address);

  for (const ConnectionHandle& stale : {gone.connection, ConnectionHandle{}}) {
    CHECK(!stale);
    CHECK(stale->send("x").error() == Error{"send", EBADF});
    CHECK(stale->send("").error() == Error{"send", EBADF});
    CHECK(stale->finish().error() == Error{"finish", EBADF});
    CHECK(stale->close().error() == Error{"close", EBADF});
    CHECK(stale->abort().error() == Error{"abort", EBADF});
    CHECK(stale->set_timeout(Deadline::receive, 1ms).error() == Error{"set timeout", EBADF});
    CHECK(stale->local_address().error().code == EBADF);
    CHECK(stale->descriptor() == -1);
    CHECK_FALSE(stale->is_open());
    CHECK(stale->received() == 0);
    CHECK(stale->handed_to_kernel() == 0);
    CHECK(stale->backlog_bytes() == 0);
    CHECK(stale->age() == Duration{});
    CHECK(stale->silence() == Duration{});
    CHECK(stale->peer() == vigil::Address{});
  }

  CHECK(next.connection->is_open());
  next.peer.send("still here");
  CHECK(test::turn_until(reactor, [&] { return next.connection->received() == 10; }));
}

TEST_CASE("the record's own callback may use the connection, and what it asks for there is refused in words") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  test::Client client = test::connect_client(reactor, hooks, server.address);
  hooks.on_close = [&](Connection& connection, const CloseRecord&) {
    CHECK(connection.send("x").error() == Error{"send", EPIPE});
    CHECK(connection.finish().error() == Error{"finish", EPIPE});
    CHECK(connection.close());
    CHECK(connection.abort());
    CHECK_FALSE(connection.set_timeout(Deadline::receive, 1s));
    CHECK_FALSE(connection.is_open());
  };

  client.connection->close();
  client.peer.close();

  REQUIRE(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  CHECK(hooks.records[0].reason == CloseReason::local_close);
}

TEST_CASE("connections that end each other from on_close are each told once") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  std::vector<test::Client> clients;
  for (int count = 0; count < 30; ++count) clients.push_back(test::connect_client(reactor, hooks, server.address));
  // Each end brings the next: more rounds than one turn has.
  hooks.on_close = [&](Connection&, const CloseRecord&) {
    if (hooks.records.size() < clients.size()) hooks.calling([&] { clients[hooks.records.size()].connection->abort(); });
  };

  clients[0].connection->abort();

  // What is left over makes the next turn not wait, so few turns are enough.
  for (int turn = 0; turn < 10; ++turn)
    REQUIRE(reactor.turn(std::chrono::milliseconds(test::patience_ms / 10) * (hooks.records.size() < clients.size())));
  CHECK(hooks.records.size() == clients.size());
  test::check_all_told(reactor);
}

// --- lives in the same slot, events in the same batch

/// The slab of `reactor` that its connections live in.
vigil::SourceSlab& connection_slab(Reactor& reactor) {
  for (auto& slab : vigil::ReactorCore::of(reactor).slabs_)
    if (slab->construct() == &vigil::ConnectionLife::construct_slot) return *slab;
  FAIL("it has none");
  return *vigil::ReactorCore::of(reactor).slabs_.front();
}

TEST_CASE("a slot whose generations are used up retires: a handle to none of its lives ever meets another") {
  constexpr std::uint32_t generation_max = 2;
  constexpr std::size_t lives = 50;
  test::Hooks hooks;
  Reactor reactor;
  {
    // A slab of the shape the listener will ask for, found instead of a new one.
    test::Hooks its_hooks;
    Reactor other;
    const test::HookedListener server(other, its_hooks);
    const vigil::SourceSlab& shape = connection_slab(other);
    vigil::ReactorCore::of(reactor).slabs_.push_back(
        std::make_unique<vigil::SourceSlab>(shape.slot_bytes(), shape.alignment(), shape.construct(), generation_max));
  }
  const vigil::SourceSlab& slab = connection_slab(reactor);
  const test::HookedListener server(reactor, hooks);
  std::set<const Connection*> slots;
  const test::Client last = [&] {
    for (std::size_t life = 1; life <= lives; ++life) {
      const test::Client client = test::connect_client(reactor, hooks, server.address);
      REQUIRE(slab.taken() == 1);  // it is this slab that is used
      slots.insert(&*client.connection);
      client.connection->abort();
      REQUIRE(test::turn_until(reactor, [&] { return hooks.records.size() == life; }));
    }
    return test::connect_client(reactor, hooks, server.address);
  }();
  CHECK(slots.size() >= lives / (generation_max + 1));
  for (const ConnectionHandle& handle : hooks.opened) {
    if (handle == last.connection) continue;
    CHECK_FALSE(handle);
    CHECK(handle->abort().error() == Error{"abort", EBADF});
    CHECK(handle->send("x").error() == Error{"send", EBADF});
  }
  test::turn_at_once(reactor);
  CHECK(last.connection->is_open());
  CHECK(hooks.records.size() == lives);
}

TEST_CASE("who comes to a listener that another's callback closed in the same batch reaches nothing that took its descriptor") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  test::Client a = test::connect_client(reactor, hooks, server.address);
  const test::PeerListener elsewhere;
  Connector<test::HookedHandler> connector(reactor, {}, hooks.make());
  const int number = ::dup(0);
  ::close(number);
  std::optional<test::HookedListener> closed(std::in_place, reactor, hooks);
  bool destroys = false;
  SUBCASE("closed") {}
  SUBCASE("destroyed") { destroys = true; }
  ConnectionHandle attempt;
  hooks.on_receive = [&](Connection&, Bytes) {
    destroys ? closed.reset() : closed->listener.close();
    attempt = *connector.connect(elsewhere.address());
  };
  const std::uint64_t events_before = reactor.counters().events;
  a.peer.send("close it");
  const test::Peer late(closed->address);  // behind a's bytes in the kernel's list of what is ready
  REQUIRE(test::wait_for(number, POLLIN));

  test::turn_at_once(reactor);

  CHECK(reactor.counters().events - events_before == 2);
  REQUIRE(attempt);
  CHECK(attempt->descriptor() == number);
  CHECK(test::turn_until(reactor, [&] { return attempt->is_open(); }));
  CHECK(hooks.opened.size() == 2);
  CHECK(hooks.records.empty());
}

// --- writes to another connection

/// Whoever writes to B: it must be in the kernel's hands when the turn ends.
struct Two {
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener server{reactor, hooks};
  test::Client a = test::connect_client(reactor, hooks, server.address);
  test::Client b = test::connect_client(reactor, hooks, server.address);

  void write() const {
    b.connection->send("one ");
    b.connection->send("two ");
    b.connection->send(std::string(20'000, '3'));
    b.connection->send(" four");
    b.connection->send("");
  }
  void check_left() {
    CHECK(b.connection->handed_to_kernel() == 20'013);
    CHECK(b.connection->backlog_bytes() == 0);
    CHECK(test::turn_until(reactor, [&] { return b.peer.read().received.size() == 20'013; }));
    CHECK(test::same(b.peer.received, "one two " + std::string(20'000, '3') + " four"));
  }
};

TEST_CASE("what A's callback writes to B leaves in the same turn") {
  Two two;
  bool done = false;
  two.hooks.on_receive = [&](Connection& a, Bytes bytes) {
    a.send(bytes);
    two.write();
    a.send(bytes);
    done = true;
  };
  two.a.peer.send("go");
  test::turn_at_once(two.reactor);
  REQUIRE(done);
  two.check_left();
  CHECK(test::turn_until(two.reactor, [&] { return two.a.peer.read().received == "gogo"; }));
}

TEST_CASE("what a timer writes to B leaves in the same turn") {
  Two two;
  Timer timer(two.reactor, [&] { two.write(); });
  REQUIRE(timer.arm_after(0ms));
  test::turn_at_once(two.reactor);
  two.check_left();
}

TEST_CASE("what a posted task writes to B leaves in the same turn") {
  Two two;
  REQUIRE(two.reactor.post([&] { two.write(); }));
  test::turn_at_once(two.reactor);
  two.check_left();
}

TEST_CASE("what on_close of A writes to B leaves in the same turn") {
  Two two;
  two.hooks.on_close = [&](Connection& connection, const CloseRecord&) {
    if (connection.handle() == two.a.connection) two.write();
  };
  two.a.connection->abort();
  test::turn_at_once(two.reactor);
  two.check_left();
}

TEST_CASE("what is written outside of any callback leaves in the next turn") {
  Two two;
  two.write();
  test::turn_at_once(two.reactor);
  two.check_left();
}

// --- the reactor's end

TEST_CASE("the reactor's end tells every connection while its handler lives") {
  test::Hooks hooks;
  test::Peer peer, silent;
  vigil::Mailbox mailbox = [&] {
    Reactor reactor;
    const test::HookedListener server(reactor, hooks);
    peer = test::connect_client(reactor, hooks, server.address).peer;
    silent = test::connect_client(reactor, hooks, server.address).peer;
    hooks.opened[0]->send("queued");
    hooks.on_close = [&](Connection& connection, const CloseRecord& record) {
      CHECK(record.reason == CloseReason::server_stopping);
      CHECK(hooks.handlers > 0);
      CHECK(connection.received() == 0);
      // What is begun now is refused or comes to nothing.
      Connector<test::HookedHandler> connector(reactor, {}, hooks.make());
      CHECK(connector.connect("127.0.0.1:1").error().code == ESHUTDOWN);
      CHECK(reactor.run().error() == Error{"run", EBUSY});
      CHECK(reactor.post([] { FAIL_CHECK("nothing runs after the end"); }));
      for (const ConnectionHandle& other : hooks.opened) other->abort();
    };
    return reactor.mailbox();
  }();

  CHECK(hooks.records.size() == 2);
  CHECK(hooks.handlers == 0);
  CHECK(mailbox.post([] {}).error() == Error{"post", ESHUTDOWN});
}

TEST_CASE("an attempt under way is told when the reactor ends") {
  test::Hooks hooks;
  const test::FullBacklog server;
  {
    Reactor reactor;
    Connector<test::HookedHandler> connector(reactor, {}, hooks.make());
    REQUIRE(connector.connect(server.address()));
    test::turn_at_once(reactor);
  }
  REQUIRE(hooks.records.size() == 1);
  CHECK(hooks.records[0].reason == CloseReason::server_stopping);
  CHECK(hooks.records[0].phase == vigil::Phase::connecting);
  CHECK(hooks.opened.empty());
}

TEST_CASE("what a registration's callback holds is destroyed when it is cancelled, at the latest with the reactor") {
  const auto alive = std::make_shared<int>(0);
  Timer timer;
  Watch watch;
  const Pipe pipe;
  {
    Reactor reactor;
    timer = Timer(reactor, [alive] {});
    Timer cancelled(reactor, [alive] {});
    CHECK(alive.use_count() == 3);
    cancelled.cancel();
    test::turn_at_once(reactor);
    CHECK(alive.use_count() == 2);
    watch = *reactor.watch(pipe.ends[0], WatchFor::readable, [alive](Readiness) {});
    CHECK(reactor.post([alive] {}));
    CHECK(reactor.mailbox().post([alive] {}));
    CHECK(alive.use_count() == 5);
  }
  CHECK(alive.use_count() == 1);

  // Inert from here on.
  CHECK_FALSE(timer.active());
  CHECK_FALSE(timer.armed());
  CHECK(timer.arm_after(1ms).error() == Error{"arm timer", ECANCELED});
  CHECK(timer.arm_at(vigil::Instant{}).error() == Error{"arm timer", ECANCELED});
  timer.disarm();
  timer.cancel();
  CHECK_FALSE(watch.active());
  CHECK(watch.change(WatchFor::both).error() == Error{"watch", ECANCELED});
  watch.cancel();
}

TEST_CASE("a timer whose callback owns the timer is destroyed with the reactor") {
  const auto alive = std::make_shared<int>(0);
  {
    Reactor reactor;
    struct Owner {
      Timer timer;
      std::shared_ptr<int> alive;
    };
    auto owner = std::make_shared<Owner>();
    owner->alive = alive;
    owner->timer = Timer(reactor, [owner] { owner->timer.cancel(); });
    REQUIRE(owner->timer.arm_after(0ms));
    owner.reset();
    test::turn_at_once(reactor);
  }
  CHECK(alive.use_count() == 1);
}

}  // namespace
