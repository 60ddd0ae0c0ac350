// Reading that is held, by the user or by a queue above its high mark, and bytes that on_receive leaves, on virtual time: what is
// asked of the kernel meanwhile, what a handler is told, and which reason the end has.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;
using sys::Ending;

namespace {

constexpr Duration tick = 1ms;

/// One that wants to know of a peer that is gone while it does not read.
template <class Base>
struct Watchful : Base {
  using Base::Base;
  void on_peer_gone_while_paused(Connection& connection) {
    CHECK_FALSE(this->closed_);
    if (this->story_->on_peer_gone_while_paused) this->story_->on_peer_gone_while_paused(connection);
  }
};

using WatchfulActor = Watchful<Actor>;
using WatchfulLingeringActor = Watchful<LingeringActor>;

/// A world of which one connection is looked at.
template <class Handler = WatchfulActor>
struct SceneOf : SimulationOf<Handler> {
  explicit SceneOf(const ListenerOptions& options = {}, const ReactorOptions& reactor_options = {})
      : SimulationOf<Handler>(options, reactor_options) {
    this->story.on_peer_gone_while_paused = [this](Connection&) { ++gone; };
    peer = this->accept();
  }

  [[nodiscard]] Connection& connection() { return this->story.connection(peer); }
  [[nodiscard]] const std::string& received() { return this->story.received[peer]; }
  [[nodiscard]] bool is_over() const { return !this->story.records.empty(); }
  [[nodiscard]] const CloseRecord& record() const { return this->story.record(peer); }

  void pause() {
    CHECK(connection().pause_reading());
    this->settle();
  }
  void resume() {
    CHECK(connection().resume_reading());
    this->settle();
  }
  void peer_sends(std::string_view bytes) {
    this->kernel.peer_sends(peer, bytes);
    this->settle();
  }

  int peer = -1;
  int gone = 0;  // how often on_peer_gone_while_paused was told
};

using Scene = SceneOf<>;

ListenerOptions with(Timeouts timeouts) {
  ListenerOptions options;
  options.timeouts = timeouts;
  return options;
}

/// Reading pauses from 1,000 queued bytes until 100.
ListenerOptions pausing_when_backlogged() {
  ListenerOptions options;
  options.backlog_high_mark_bytes = 1000;
  options.backlog_low_mark_bytes = 100;
  options.when_backlogged = WhenBacklogged::pause_reading;
  return options;
}

/// How a peer goes: what it still says, in this order.
struct Departure {
  const char* name;
  std::string_view bytes;
  bool finishes, resets;
  CloseReason reason;
};

constexpr Departure departures[] = {
    {"the peer's end", "", true, false, CloseReason::peer_finished},
    {"a reset", "", false, true, CloseReason::peer_reset},
    {"the peer's end and a reset", "", true, true, CloseReason::peer_finished},
    {"bytes and the peer's end", "farewell", true, false, CloseReason::peer_finished},
    {"bytes and a reset", "farewell", false, true, CloseReason::peer_reset},
    {"bytes, the peer's end and a reset", "farewell", true, true, CloseReason::peer_finished},
};

void depart(sys::ScriptedKernel& kernel, int peer, const Departure& departure) {
  if (!departure.bytes.empty()) kernel.peer_sends(peer, departure.bytes);
  if (departure.finishes) kernel.peer_finishes(peer);
  // Behind the peer's end the kernel knows a reset as EPIPE.
  if (departure.resets) kernel.connection_fails(peer, departure.finishes ? EPIPE : ECONNRESET);
}

/// A second goes by in which nobody has anything to do.
template <class World>
void check_rests(World& world) {
  world.settle();
  world.kernel.forget_calls();
  world.run_for(1s);
  CHECK(world.kernel.count(Call::recv) == 0);
  CHECK(world.kernel.count(Call::poll) == 0);
  CHECK(world.kernel.count(Call::epoll_wait) <= 3);
}

}  // namespace

// Pausing --------------------------------------------------------------------------------------------------------------------

TEST_CASE("while reading is paused nothing is received and no turn is taken; afterwards all of it comes, in order") {
  Scene scene(with({.receive = never}));
  scene.pause();
  CHECK(scene.connection().is_reading_paused());
  scene.peer_sends("one ");
  scene.peer_sends("two ");
  check_rests(scene);
  CHECK(scene.received().empty());
  scene.resume();
  CHECK_FALSE(scene.connection().is_reading_paused());
  scene.peer_sends("three");
  CHECK(scene.received() == "one two three");
  CHECK(scene.gone == 0);
}

TEST_CASE("a handler that pauses is told nothing more, wherever it does it") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  SUBCASE("in the middle of a read loop") {
    Scene scene({}, small);
    scene.story.on_receive = [](Connection& connection, std::string_view) { CHECK(connection.pause_reading()); };
    const std::string bytes(5000, 'x');
    scene.peer_sends(bytes);
    CHECK(scene.received().size() == 1024);
    check_rests(scene);
    for (std::size_t resumed = 2; resumed <= 5; ++resumed) {
      scene.resume();
      CHECK(scene.received().size() == std::min<std::size_t>(resumed * 1024, bytes.size()));
    }
    check_rests(scene);
  }
  SUBCASE("in on_open") {
    Simulation world;
    world.story.on_open = [](Connection& connection) { CHECK(connection.pause_reading()); };
    const int peer = world.kernel.peer_connects(world.listening);
    world.kernel.peer_sends(peer, "early");
    check_rests(world);
    CHECK(world.story.received[peer].empty());
    CHECK(world.story.connection(peer).resume_reading());
    world.settle();
    CHECK(world.story.received[peer] == "early");
  }
  SUBCASE("before it is open") {
    Simulation world;
    const int attempt = world.connect();
    CHECK(world.story.connection(attempt).pause_reading());
    world.kernel.peer_accepts(attempt);
    world.kernel.peer_sends(attempt, "banner");
    check_rests(world);
    CHECK(world.story.opened == std::vector<int>{attempt});
    CHECK(world.story.received[attempt].empty());
    CHECK(world.story.connection(attempt).resume_reading());
    world.settle();
    CHECK(world.story.received[attempt] == "banner");
  }
  SUBCASE("and resumed before it is open: as if nothing had been") {
    Simulation world;
    const int attempt = world.connect();
    CHECK(world.story.connection(attempt).pause_reading());
    CHECK(world.story.connection(attempt).resume_reading());
    world.kernel.peer_accepts(attempt);
    world.kernel.peer_sends(attempt, "banner");
    world.settle();
    CHECK(world.story.received[attempt] == "banner");
  }
}

TEST_CASE("pausing twice is pausing once, and resuming what is not paused changes nothing") {
  Scene scene;
  CHECK(scene.connection().resume_reading());
  scene.peer_sends("one ");
  CHECK(scene.received() == "one ");
  scene.pause();
  scene.pause();
  scene.peer_sends("two");
  CHECK(scene.received() == "one ");
  scene.resume();
  CHECK(scene.received() == "one two");
  scene.kernel.forget_calls();
  scene.resume();
  CHECK(scene.kernel.count(Call::recv) == 0);
}

TEST_CASE("pausing and resuming in one callback loses nothing") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  Scene scene({}, small);
  scene.story.on_receive = [](Connection& connection, std::string_view) {
    CHECK(connection.pause_reading());
    CHECK(connection.resume_reading());
  };
  scene.kernel.peer_sends(scene.peer, std::string(20'000, 'x'));
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  CHECK(scene.received().size() == 20'000);
  CHECK(scene.record().reason == CloseReason::peer_finished);
}

TEST_CASE("calls that end a paused connection end it as any other") {
  Scene scene(with({.drain = 1s}));
  scene.pause();
  scene.peer_sends("unheard");
  Connection& connection = scene.connection();
  SUBCASE("close reads and discards what comes, and awaits the peer's end") {
    connection.close();
    CHECK(connection.pause_reading().error() == Error{"pause reading", EPIPE});
    CHECK(connection.resume_reading());
    scene.settle();
    CHECK_FALSE(scene.is_over());
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    CHECK(scene.record().reason == CloseReason::local_close);
    CHECK(scene.record().cut_short == CutShort::none);
    CHECK(scene.record().unconsumed == 7);
    CHECK(scene.kernel.ending(scene.peer) == Ending::orderly);
  }
  SUBCASE("close that meets a reset tells how it was cut short") {
    connection.close();
    scene.settle();
    scene.kernel.peer_resets(scene.peer);
    scene.settle();
    CHECK(scene.record().reason == CloseReason::local_close);
    CHECK(scene.record().cut_short == CutShort::reset);
  }
  SUBCASE("abort says what was left unread") {
    connection.abort();
    scene.settle();
    CHECK(scene.record().reason == CloseReason::local_close);
    CHECK(scene.record().left_unread == 7);
    CHECK(scene.kernel.ending(scene.peer) == Ending::reset);
  }
  SUBCASE("finish sends our end and reading stays paused") {
    connection.finish();
    check_rests(scene);
    CHECK(scene.kernel.sent_end(scene.peer));
    scene.kernel.peer_finishes(scene.peer);
    check_rests(scene);
    CHECK(scene.gone == 1);
    scene.resume();
    CHECK(scene.received() == "unheard");
    CHECK(scene.record().reason == CloseReason::peer_finished);
    return;
  }
  SUBCASE("shutdown reads and discards what comes") {
    CHECK(scene.reactor->shutdown(1h));
    scene.settle();
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    CHECK(scene.record().reason == CloseReason::server_stopping);
    CHECK(scene.record().unconsumed == 7);
  }
  SUBCASE("the reactor's destructor says what was left unread") {
    scene.connector.reset();
    scene.listener.reset();
    scene.reactor.reset();
    CHECK(scene.record().reason == CloseReason::server_stopping);
    CHECK(scene.record().left_unread == 7);
  }
  CHECK(scene.received().empty());
  CHECK(scene.gone == 0);
}

// The peer goes meanwhile ----------------------------------------------------------------------------------------------------

TEST_CASE("a peer that goes while reading is paused is told of once, and ends it when all it sent was delivered") {
  for (const Departure& departure : departures) {
    SUBCASE(departure.name) {
      Scene scene;
      bool was_paused_before = true;
      SUBCASE("in one turn") {
        scene.pause();
        depart(scene.kernel, scene.peer, departure);
      }
      SUBCASE("one thing a turn") {
        scene.pause();
        depart(scene.kernel, scene.peer, {"", departure.bytes, false, false, {}});
        scene.settle();
        if (departure.finishes) scene.kernel.peer_finishes(scene.peer);
        scene.settle();
        if (departure.resets) scene.kernel.connection_fails(scene.peer, departure.finishes ? EPIPE : ECONNRESET);
      }
      SUBCASE("before the pause was seen by anybody") {
        depart(scene.kernel, scene.peer, departure);
        scene.pause();
      }
      SUBCASE("together with the bytes whose handler pauses") {
        was_paused_before = false;
        scene.story.on_receive = [](Connection& connection, std::string_view text) {
          if (text == "first") CHECK(connection.pause_reading());
        };
        scene.kernel.peer_sends(scene.peer, "first");
        scene.kernel.will_stop_short(scene.peer);
        depart(scene.kernel, scene.peer, departure);
      }
      check_rests(scene);
      CHECK(scene.gone == 1);
      REQUIRE_FALSE(scene.is_over());
      CHECK(scene.connection().is_open());
      scene.resume();
      CHECK(scene.received() == (was_paused_before ? "" : "first") + std::string(departure.bytes));
      CHECK(scene.record().reason == departure.reason);
      CHECK(scene.record().received == scene.received().size());
      CHECK(scene.record().left_unread == 0);
      CHECK(scene.gone == 1);
    }
  }
}

TEST_CASE("a reset behind the peer's end, both while reading is paused, is a reset if anything of ours was owed") {
  const auto owe_and_depart = [](auto& scene) {
    scene.kernel.will_not_acknowledge(scene.peer);
    CHECK(scene.connection().send(bytes_of("reply")));
    scene.pause();
    depart(scene.kernel, scene.peer, departures[5]);
    scene.settle();
    CHECK(scene.gone == 1);
  };
  SUBCASE("found after resuming") {
    Scene scene;
    owe_and_depart(scene);
    scene.resume();
    CHECK(scene.received() == "farewell");
    CHECK(scene.record().reason == CloseReason::peer_reset);
    CHECK(scene.record().unacknowledged.value_or(0) == 5);
  }
  SUBCASE("found after resuming, by a handler that would go on sending") {
    SceneOf<WatchfulLingeringActor> scene;
    owe_and_depart(scene);
    scene.resume();
    CHECK(scene.received() == "farewell");
    REQUIRE(scene.is_over());
    CHECK(scene.record().reason == CloseReason::peer_reset);
  }
  SUBCASE("found by a close") {
    Scene scene;
    owe_and_depart(scene);
    scene.connection().close();
    scene.settle();
    CHECK(scene.record().reason == CloseReason::peer_reset);
    CHECK(scene.record().left_unread == 8);
  }
  SUBCASE("found by a shutdown: it was told before") {
    Scene scene;
    owe_and_depart(scene);
    CHECK(scene.reactor->shutdown(1h));
    scene.settle();
    CHECK(scene.record().reason == CloseReason::peer_reset);
    CHECK(scene.record().left_unread == 8);
  }
}

TEST_CASE("a handler that closes after its peer has gone ends at once, with what it did not want to read") {
  for (const Departure& departure : departures) {
    SUBCASE(departure.name) {
      Scene scene;
      SUBCASE("inside on_peer_gone_while_paused") {
        scene.story.on_peer_gone_while_paused = [](Connection& connection) { connection.close(); };
        scene.pause();
        depart(scene.kernel, scene.peer, departure);
        scene.settle();
      }
      SUBCASE("after it") {
        scene.pause();
        depart(scene.kernel, scene.peer, departure);
        scene.run_for(1s);
        REQUIRE_FALSE(scene.is_over());
        scene.connection().close();
        scene.settle();
      }
      REQUIRE(scene.is_over());
      CHECK(scene.received().empty());
      CHECK(scene.record().reason == departure.reason);
      CHECK(scene.record().received == 0);
      CHECK(scene.record().left_unread == departure.bytes.size());
      CHECK(scene.record().phase == Phase::open);
    }
  }
}

TEST_CASE("what is queued for a peer that has finished is still sent when its handler closes unread") {
  Scene scene;
  scene.story.on_peer_gone_while_paused = [](Connection& connection) {
    connection.send(bytes_of("goodbye"));
    connection.close();
  };
  scene.pause();
  depart(scene.kernel, scene.peer, departures[0]);
  scene.settle();
  CHECK(scene.kernel.sent(scene.peer) == "goodbye");
  CHECK(scene.record().reason == CloseReason::peer_finished);
  CHECK(scene.kernel.ending(scene.peer) == Ending::orderly);
}

TEST_CASE("a handler may abort or resume where it is told that its peer has gone") {
  Scene scene;
  SUBCASE("abort") {
    scene.story.on_peer_gone_while_paused = [](Connection& connection) { connection.abort(); };
    scene.pause();
    depart(scene.kernel, scene.peer, departures[4]);
    scene.settle();
    CHECK(scene.record().reason == CloseReason::local_close);
    CHECK(scene.record().left_unread == 8);
  }
  SUBCASE("resume") {
    scene.story.on_peer_gone_while_paused = [](Connection& connection) { CHECK(connection.resume_reading()); };
    scene.pause();
    depart(scene.kernel, scene.peer, departures[4]);
    scene.settle();
    CHECK(scene.received() == "farewell");
    CHECK(scene.record().reason == CloseReason::peer_reset);
  }
}

TEST_CASE("a handler without on_peer_gone_while_paused hears of it when it resumes or closes") {
  for (const Departure& departure : departures) {
    SUBCASE(departure.name) {
      SceneOf<Actor> scene;
      scene.pause();
      depart(scene.kernel, scene.peer, departure);
      check_rests(scene);
      REQUIRE_FALSE(scene.is_over());
      SUBCASE("resumes") {
        scene.resume();
        CHECK(scene.received() == departure.bytes);
      }
      CloseReason reason = departure.reason;
      SUBCASE("closes, before it was told: the reason is its own") {
        scene.connection().close();
        scene.settle();
        CHECK(scene.record().unconsumed == departure.bytes.size());
        CHECK(scene.record().cut_short == (departure.resets ? CutShort::reset : CutShort::none));
        reason = CloseReason::local_close;
      }
      CHECK(scene.record().reason == reason);
    }
  }
}

TEST_CASE("a handler that pauses again and again is told once that its peer has gone, and loses nothing") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  Scene scene({}, small);
  scene.story.on_receive = [](Connection& connection, std::string_view) { CHECK(connection.pause_reading()); };
  scene.kernel.peer_sends(scene.peer, std::string(5000, 'x'));
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  for (int resumed = 0; resumed < 10 && !scene.is_over(); ++resumed) {
    check_rests(scene);
    scene.resume();
  }
  CHECK(scene.gone == 1);
  CHECK(scene.received().size() == 5000);
  CHECK(scene.record().reason == CloseReason::peer_finished);
}

TEST_CASE("after the peer's end was told a reset ends it although reading is paused: there is nothing left to read") {
  SceneOf<WatchfulLingeringActor> scene;
  scene.kernel.will_not_acknowledge(scene.peer);
  scene.story.on_peer_finished = [](Connection& connection) {
    connection.send(bytes_of("reply"));
    CHECK(connection.pause_reading());
  };
  scene.kernel.peer_finishes(scene.peer);
  check_rests(scene);
  REQUIRE_FALSE(scene.is_over());
  scene.kernel.connection_fails(scene.peer, EPIPE);
  scene.settle();
  REQUIRE(scene.is_over());
  CHECK(scene.record().reason == CloseReason::peer_reset);
}

TEST_CASE("a send that fails while reading is paused tells that the peer has gone; its bytes come before its end") {
  Scene scene;
  scene.pause();
  scene.kernel.will_receive(scene.peer, "farewell");
  scene.kernel.will_fail_to_send(scene.peer, ECONNRESET);
  CHECK(scene.connection().send(bytes_of("reply")));
  scene.settle();
  CHECK(scene.gone == 1);
  REQUIRE_FALSE(scene.is_over());
  check_rests(scene);
  SUBCASE("resumed") {
    scene.resume();
    CHECK(scene.received() == "farewell");
    CHECK(scene.record().left_unread == 0);
  }
  SUBCASE("closed") {
    scene.connection().close();
    scene.settle();
    CHECK(scene.record().left_unread == 8);
  }
  CHECK(scene.record().reason == CloseReason::peer_reset);
  CHECK(scene.record().unsent == 5);
  CHECK(scene.gone == 1);
}

TEST_CASE("a reset comes before a deadline of sending that falls due while reading is paused") {
  Scene scene(with({.send = 100ms}));
  const Duration due = 200ms;
  scene.kernel.will_not_acknowledge(scene.peer);
  CHECK(scene.connection().send(bytes_of("reply")));
  scene.pause();
  SUBCASE("told of before") {
    scene.kernel.peer_resets(scene.peer);
    scene.settle();
    CHECK(scene.gone == 1);
  }
  SUBCASE("found by asking") { scene.kernel.will_receive_error(scene.peer, ECONNRESET); }
  scene.run_for(due);
  CHECK(scene.record().reason == CloseReason::peer_reset);
}

TEST_CASE("a deadline of sending runs on while reading is paused, also behind the peer's end") {
  const Rate rate{.bytes_per_second = 1000, .window = 100ms, .grace = 0ns};
  for (const bool is_rate : {false, true})
    for (const bool finishes : {false, true}) {
      CAPTURE(is_rate);
      CAPTURE(finishes);
      Scene scene(is_rate ? with({.send_rate = rate}) : with({.send = 100ms}));
      scene.kernel.will_not_acknowledge(scene.peer);
      scene.pause();
      CHECK(scene.connection().send(bytes_of("reply")));
      if (finishes) scene.kernel.peer_finishes(scene.peer);
      scene.run_for(300ms);
      CHECK(scene.record().reason == (is_rate ? CloseReason::send_too_slow : CloseReason::send_timed_out));
    }
}

TEST_CASE("an urgent mark that came while reading was paused hides nothing behind it") {
  Scene scene;
  scene.pause();
  scene.kernel.peer_sends(scene.peer, "before ");
  scene.kernel.peer_sends_urgent_mark(scene.peer);
  scene.kernel.peer_sends(scene.peer, "behind");
  scene.settle();
  scene.resume();
  CHECK(scene.received() == "before behind");
}

// Deadlines of receiving stand still -----------------------------------------------------------------------------------------

namespace {

struct Extending : Actor {
  using Actor::Actor;
  Duration on_deadline(Connection& connection, Deadline) {
    CHECK(connection.pause_reading());
    return 1s;
  }
};

/// When the only connection ends, if it does within the time.
template <class World>
Instant end_within(World& world, Duration duration) {
  const Instant give_up = world.kernel.now() + duration;
  while (world.story.records.empty() && world.kernel.now() < give_up) world.turn(give_up - world.kernel.now());
  REQUIRE_FALSE(world.story.records.empty());
  return world.kernel.now();
}

}  // namespace

TEST_CASE("a deadline of receiving resumes with the time that was left") {
  struct Kind {
    const char* name;
    Timeouts timeouts;
    CloseReason reason;
  };
  const Kind kinds[] = {
      {"first_byte", {.first_byte = 10s}, CloseReason::first_byte_timed_out},
      {"receive", {.receive = 10s}, CloseReason::receive_timed_out},
      {"message", {.message = 10s}, CloseReason::message_timed_out},
      {"receive_rate", {.receive_rate = {.bytes_per_second = 1000, .window = 4s, .grace = 6s}}, CloseReason::receive_too_slow},
  };
  for (const Kind& kind : kinds) {
    SUBCASE(kind.name) {
      Scene scene(with(kind.timeouts));
      scene.run_for(3s);
      scene.pause();
      scene.run_for(60s);
      REQUIRE_FALSE(scene.is_over());
      scene.resume();
      scene.run_for(4s);
      scene.pause();
      scene.run_for(60s);
      const Instant resumed = scene.kernel.now();
      scene.resume();
      const Instant ended = end_within(scene, 10s);
      CHECK(scene.record().reason == kind.reason);
      CHECK(ended >= resumed + 3s);
      CHECK(ended <= resumed + 3s + tick);
    }
  }
}

TEST_CASE("the grace of a rate resumes with the time that was left") {
  Scene scene;
  scene.run_for(10s);
  CHECK(scene.connection().set_rate(Deadline::receive_rate, {.bytes_per_second = 1000, .window = 4s, .grace = 6s}));
  scene.run_for(3s);
  scene.pause();
  scene.run_for(60s);
  const Instant resumed = scene.kernel.now();
  scene.resume();
  const Instant ended = end_within(scene, 20s);
  CHECK(scene.record().reason == CloseReason::receive_too_slow);
  CHECK(ended >= resumed + 3s + 4s);
  CHECK(ended <= resumed + 3s + 4s + 2 * tick);
}

TEST_CASE("a byte that waited while reading was paused moves the receive deadline when it is read") {
  Scene scene(with({.receive = 10s}));
  scene.run_for(9s);
  scene.pause();
  scene.peer_sends("x");
  scene.run_for(5s);
  const Instant resumed = scene.kernel.now();
  scene.resume();
  CHECK(scene.received() == "x");
  CHECK(end_within(scene, 20s) >= resumed + 10s);
}

TEST_CASE("a handler may pause where it gives more time: that time stands still too") {
  SimulationOf<Extending> world(with({.receive = 10s}));
  const int peer = world.accept();
  world.run_for(60s);
  REQUIRE(world.story.records.empty());
  CHECK(world.story.connection(peer).is_reading_paused());
  const Instant resumed = world.kernel.now();
  CHECK(world.story.connection(peer).resume_reading());
  world.run_for(1s + tick);
  CHECK(world.story.connection(peer).is_reading_paused());  // it was asked again, no later
  CHECK(world.story.records.empty());
  CHECK(world.kernel.now() <= resumed + 1s + 2 * tick);
}

// A queue above its high mark ------------------------------------------------------------------------------------------------

namespace {

void echo(Connection& connection, std::string_view text) { connection.send(bytes_of(text)); }

/// An echo whose peer takes nothing: its queue is above the high mark, and 600 bytes wait in the kernel.
struct Backlogged : Scene {
  explicit Backlogged(ListenerOptions options = pausing_when_backlogged()) : Scene(options) {
    story.on_receive = echo;
    kernel.will_take(peer, 0);
    peer_sends(std::string(1200, 'a'));
    REQUIRE(connection().backlog_bytes() == 1200);
    peer_sends(std::string(600, 'b'));
    REQUIRE(received().size() == 1200);
  }
};

}  // namespace

TEST_CASE("from the high mark until the low mark nothing is received") {
  Backlogged scene;
  CHECK_FALSE(scene.connection().is_reading_paused());
  check_rests(scene);
  scene.kernel.peer_reads(scene.peer, 1099);
  scene.settle();
  CHECK(scene.connection().backlog_bytes() == 101);
  CHECK(scene.received().size() == 1200);
  scene.kernel.peer_reads(scene.peer, 1);
  scene.settle();
  CHECK(scene.received().size() == 1800);
  CHECK(scene.connection().backlog_bytes() == 700);
  scene.kernel.peer_reads_all(scene.peer);
  scene.settle();
  CHECK(scene.kernel.sent(scene.peer) == std::string(1200, 'a') + std::string(600, 'b'));
  CHECK(scene.gone == 0);
}

TEST_CASE("on_send_drained is told and reading goes on in either order of sends from it") {
  Backlogged scene;
  int drained = 0;
  scene.story.on_send_drained = [&](Connection& connection) {
    if (++drained == 1) connection.send(bytes_of(std::string(1500, 'c')));  // above the high mark at once
  };
  scene.kernel.peer_reads(scene.peer, 1200);
  scene.settle();
  CHECK(drained == 1);
  CHECK(scene.received().size() == 1200);
  scene.kernel.peer_reads_all(scene.peer);
  scene.settle();
  CHECK(scene.received().size() == 1800);
  CHECK(scene.kernel.sent(scene.peer) == std::string(1200, 'a') + std::string(1500, 'c') + std::string(600, 'b'));
}

TEST_CASE("what is sent before it is open pauses reading until it was taken") {
  ConnectorOptions options;
  options.backlog_high_mark_bytes = 1000;
  options.backlog_low_mark_bytes = 100;
  options.when_backlogged = WhenBacklogged::pause_reading;
  Simulation world;
  Connector<Actor> connector(*world.reactor, options, [&](Connection& connection) { return Actor(world.story, connection); });
  const int attempt = (*connector.connect("192.0.2.1:80"))->descriptor();
  world.kernel.will_take(attempt, 0);
  CHECK(world.story.connection(attempt).send(bytes_of(std::string(2000, 'x'))));
  world.kernel.peer_accepts(attempt);
  world.kernel.peer_sends(attempt, "banner");
  world.settle();
  CHECK(world.story.received[attempt].empty());
  world.kernel.peer_reads_all(attempt);
  world.settle();
  CHECK(world.story.received[attempt] == "banner");
}

TEST_CASE("the bound on queued bytes holds while a backlog holds reading") {
  ListenerOptions options = pausing_when_backlogged();
  options.backlog_bytes_max = 2000;
  Backlogged scene(options);
  CHECK(scene.connection().send(bytes_of(std::string(800, 'c'))));
  CHECK(scene.connection().send(bytes_of("d")).error() == Error{"send", ENOBUFS});
  scene.settle();
  CHECK(scene.record().reason == CloseReason::backlog_full);
  CHECK(scene.record().unsent == 2000);
  CHECK(scene.record().left_unread == 600);
}

TEST_CASE("deadlines of receiving stand still while a backlog holds reading") {
  ListenerOptions options = pausing_when_backlogged();
  options.timeouts = {.receive = 10s, .message = 30s};
  Backlogged scene(options);
  scene.run_for(120s);
  REQUIRE_FALSE(scene.is_over());
  const Instant resumed = scene.kernel.now();
  scene.kernel.peer_reads_all(scene.peer);
  scene.settle();
  CHECK(scene.received().size() == 1800);
  const Instant ended = end_within(scene, 60s);
  CHECK(scene.record().reason == CloseReason::receive_timed_out);
  CHECK(ended >= resumed + 10s);
  CHECK(ended <= resumed + 10s + tick);
}

TEST_CASE("the peer's end behind a backlog is told after what stands before it, and after all that it is owed was sent") {
  Backlogged scene;
  scene.kernel.peer_finishes(scene.peer);
  check_rests(scene);
  REQUIRE_FALSE(scene.is_over());
  CHECK(scene.gone == 0);  // nobody has paused: it may have finished and read on
  SUBCASE("who pauses meanwhile is told at once that it has gone") {
    scene.pause();
    CHECK(scene.gone == 1);
    scene.resume();
    CHECK(scene.received().size() == 1200);
  }
  SUBCASE("who does not is not told") {}
  scene.kernel.peer_reads_all(scene.peer);
  scene.settle();
  CHECK(scene.kernel.sent(scene.peer) == std::string(1200, 'a') + std::string(600, 'b'));
  CHECK(scene.record().reason == CloseReason::peer_finished);
}

TEST_CASE("a reset behind a backlog does not wait for a queue that never falls") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  SceneOf<WatchfulActor> scene(pausing_when_backlogged(), small);
  scene.story.on_receive = echo;
  scene.kernel.will_take(scene.peer, 0);
  scene.peer_sends(std::string(6000, 'a'));
  REQUIRE(scene.received().size() < 6000);
  SUBCASE("told of by the poller") { scene.kernel.peer_resets(scene.peer); }
  SUBCASE("told of by the poller, which says nothing of sending") {
    scene.kernel.will_receive_error(scene.peer, ECONNRESET);
    scene.kernel.report(scene.peer, EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
  }
  SUBCASE("told of by a send") {
    scene.kernel.will_fail_to_send(scene.peer, ECONNRESET);
    scene.kernel.peer_reads(scene.peer, 1);
  }
  scene.settle();
  REQUIRE(scene.is_over());
  CHECK(scene.received().size() == 6000);
  CHECK(scene.record().reason == CloseReason::peer_reset);
  CHECK(scene.record().unsent == 6000);
}

TEST_CASE("a pause by the user and one for a backlog end each for itself") {
  Backlogged scene;
  const auto drain = [&] {
    scene.kernel.peer_reads_all(scene.peer);
    scene.settle();
  };
  SUBCASE("resumed first") {
    scene.pause();
    scene.resume();
    CHECK(scene.received().size() == 1200);
    drain();
  }
  SUBCASE("drained first") {
    scene.pause();
    drain();
    CHECK(scene.connection().is_reading_paused());
    CHECK(scene.received().size() == 1200);
    scene.resume();
  }
  SUBCASE("paused first") {
    drain();
    REQUIRE(scene.received().size() == 1800);
    scene.pause();
    scene.peer_sends(std::string(100, 'c'));
    Connection& connection = scene.connection();
    scene.kernel.will_take(scene.peer, 0);
    CHECK(connection.send(bytes_of(std::string(1200, 'd'))));
    scene.settle();
    SUBCASE("resumed first") {
      scene.resume();
      CHECK(scene.received().size() == 1800);
      drain();
    }
    SUBCASE("drained first") {
      drain();
      CHECK(scene.received().size() == 1800);
      scene.resume();
    }
    CHECK(scene.received().size() == 1900);
    return;
  }
  CHECK(scene.received().size() == 1800);
}

TEST_CASE("close and abort end a connection whose backlog holds reading") {
  Backlogged scene;
  SUBCASE("close reads on, discards, and still sends what is queued") {
    scene.connection().close();
    scene.settle();
    scene.kernel.peer_reads_all(scene.peer);
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    CHECK(scene.kernel.sent(scene.peer) == std::string(1200, 'a'));
    CHECK(scene.record().reason == CloseReason::local_close);
    CHECK(scene.record().unconsumed == 600);
    CHECK(scene.kernel.ending(scene.peer) == Ending::orderly);
  }
  SUBCASE("abort") {
    scene.connection().abort();
    scene.settle();
    CHECK(scene.record().left_unread == 600);
    CHECK(scene.record().unsent == 1200);
  }
}
