// The message deadline on virtual time: where messages begin and end, and what marking them costs.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "reactor_core.hpp"
#include "support/deadline_world.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr CloseReason too_late = CloseReason::message_timed_out;

/// The handler consumes whole lines, each a message; the rest of a line stays.
void consume_lines(DeadlineWorld& world) {
  world.consume = [](Connection& connection, std::string_view text) {
    const std::size_t end = text.rfind('\n');
    if (end == std::string_view::npos) return std::size_t{0};
    connection.end_message();
    return end + 1;
  };
}

}  // namespace

TEST_CASE("unmarked, all that is received is one message, begun at open") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.accept();
  const Instant opened = world.kernel.now();
  for (int byte = 0; byte < 30; ++byte) {
    world.kernel.after(50ms, [&] { world.kernel.peer_sends(peer, "x"); });
    world.run_for(60ms);
  }
  world.run_for(5s);
  world.check_end(peer, too_late, opened + 2s);
  CHECK(world.story.record(peer).received == 30);
}

TEST_CASE("between two messages nothing is too late, and the next one has its whole time from its first byte") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.accept();
  world.mark_lines();
  Instant began{};
  for (const Duration idle : {Duration(0), Duration(300ms), Duration(1999ms), Duration(2s), Duration(7s), Duration(1h)}) {
    world.run_for(1900ms);
    world.kernel.peer_sends(peer, "the rest\n");
    world.settle();
    world.run_for(idle);
    REQUIRE_FALSE(world.is_over(peer));
    began = world.kernel.now();
    world.kernel.peer_sends(peer, "a beginning");
    world.settle();
  }
  world.run_for(5s);
  world.check_end(peer, too_late, began + 2s);
}

TEST_CASE("bytes that on_receive leaves behind an end begin the next message") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.accept();
  consume_lines(world);
  world.run_for(1s);
  const Instant began = world.kernel.now();
  SUBCASE("left at once") { world.kernel.peer_sends(peer, "whole\nbegun"); }
  SUBCASE("nothing left: no message runs") {
    world.kernel.peer_sends(peer, "whole\n");
    world.run_for(1h);
    CHECK_FALSE(world.is_over(peer));
    return;
  }
  SUBCASE("handed over again and left again: it is the same message") {
    world.kernel.peer_sends(peer, "whole\nbegun");
    world.run_for(1s);
    CHECK(world.connection(peer).receive_again());
  }
  SUBCASE("more of it comes: it is the same message") {
    world.kernel.peer_sends(peer, "whole\nbegun");
    world.run_for(1s);
    world.kernel.peer_sends(peer, ", continued");
  }
  world.run_for(5s);
  world.check_end(peer, too_late, began + 2s);
}

TEST_CASE("begin_message() begins one: where none runs, anew where one does, from any place") {
  DeadlineWorld world({.message = 2s});
  Instant began{};
  int peer = -1;
  SUBCASE("in the middle of one, from a timer") {
    peer = world.accept();
    world.run_for(1500ms);
    Timer timer(*world.reactor, [&] {
      world.connection(peer).begin_message();
      began = world.kernel.now();
    });
    REQUIRE(timer.arm_after(0ns));
    world.run_for(1s);
    CHECK_FALSE(world.is_over(peer));
  }
  SUBCASE("between two") {
    peer = world.accept();
    world.connection(peer).end_message();
    world.run_for(10s);
    world.connection(peer).begin_message();
    began = world.kernel.now();
  }
  SUBCASE("from within on_receive") {
    peer = world.accept();
    world.story.on_receive = [&](Connection& connection, std::string_view) {
      connection.end_message();
      connection.begin_message();
      began = world.kernel.now();
    };
    world.run_for(1s);
    world.kernel.peer_sends(peer, "x");
  }
  SUBCASE("from on_open") {
    world.story.on_open = [](Connection& connection) { connection.begin_message(); };
    began = world.kernel.now();
    peer = world.accept();
  }
  SUBCASE("before the connection is open: it begins with the open") {
    peer = world.connect();
    world.connection(peer).begin_message();
    world.run_for(3s);
    world.kernel.peer_accepts(peer);
    began = world.kernel.now();
  }
  world.run_for(5s);
  world.check_end(peer, too_late, began + 2s);
}

TEST_CASE("an end marked before the connection is open: the first byte begins the first message") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.connect();
  world.connection(peer).end_message();
  world.kernel.peer_accepts(peer);
  world.run_for(10s);
  REQUIRE_FALSE(world.is_over(peer));
  const Instant began = world.kernel.now();
  world.kernel.peer_sends(peer, "x");
  world.run_for(5s);
  world.check_end(peer, too_late, began + 2s);
}

TEST_CASE("a message begun while reading is paused has its whole time from the resume") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.accept();
  world.run_for(1s);
  CHECK(world.connection(peer).pause_reading());
  world.run_for(3s);
  world.connection(peer).begin_message();
  world.run_for(3s);
  const Instant resumed = world.kernel.now();
  CHECK(world.connection(peer).resume_reading());
  world.run_for(5s);
  world.check_end(peer, too_late, resumed + 2s);
}

TEST_CASE("bytes left by an on_receive that paused begin a message that stands still") {
  DeadlineWorld world({.message = 2s});
  const int peer = world.accept();
  world.consume = [&](Connection& connection, std::string_view) {
    connection.end_message();
    CHECK(connection.pause_reading());
    return std::size_t{1};
  };
  world.kernel.peer_sends(peer, "\nbegun");
  world.run_for(10s);
  REQUIRE_FALSE(world.is_over(peer));
  world.consume = [](Connection&, std::string_view) { return std::size_t{0}; };
  const Instant resumed = world.kernel.now();
  CHECK(world.connection(peer).resume_reading());
  world.run_for(5s);
  world.check_end(peer, too_late, resumed + 2s);
}

TEST_CASE("a message timeout set later counts from where the message began") {
  DeadlineWorld world({.drain = 5s});
  const int peer = world.accept();
  Instant began = world.kernel.now();
  Duration timeout = 4s;
  SUBCASE("unmarked") {}
  SUBCASE("marked before") {
    world.run_for(1s);
    world.connection(peer).end_message();
    world.run_for(1s);
    began = world.kernel.now();
    world.kernel.peer_sends(peer, "x");
  }
  SUBCASE("already passed") { timeout = 100ms; }
  world.run_for(1s);
  CHECK(world.connection(peer).set_timeout(Deadline::message, timeout));
  if (timeout < 1s) began = world.kernel.now() - timeout;
  world.run_for(10s);
  world.check_end(peer, too_late, began + timeout);
}

TEST_CASE("the earliest of a message's, a rate's and a silence's deadline wins") {
  for (const Duration silence : {Duration(500ms), Duration(10s)}) {
    for (const Duration whole : {Duration(800ms), Duration(10s)}) {
      DeadlineWorld world(
          {.receive = silence, .message = whole, .receive_rate = {.bytes_per_second = 1, .window = 1s, .grace = 0s}});
      const Instant opened = world.kernel.now();
      const int peer = world.accept();
      world.run_for(20s);
      const CloseReason expected = silence < 1s ? CloseReason::receive_timed_out
                                   : whole < 1s ? too_late
                                                : CloseReason::receive_too_slow;
      world.check_end(peer, expected, opened + std::min({silence, whole, Duration(1s)}));
    }
  }
}

// What a loop that stood still owes a message
// ------------------------------------------------------------------------------------

TEST_CASE("a message of which a part came while the loop stood still gets that time back, and no more than that") {
  for (const bool told : {true, false}) {
    for (const bool follows : {true, false}) {
      DeadlineWorld world({.message = 2s});
      const int peer = world.accept();
      world.mark_lines();
      const Instant due = world.kernel.now() + 2s;
      world.run_for(1500ms);
      world.kernel.will_oversleep(4s);
      world.kernel.after(100ms, [&] {
        constexpr std::string_view part = "all that fits into the kernel's buffer";
        told ? world.kernel.peer_sends(peer, part) : world.kernel.will_receive(peer, part);
      });
      world.turn();
      world.settle();
      REQUIRE_FALSE(world.is_over(peer));  // the rest could only follow when that had been read
      const Instant read = world.kernel.now();
      if (follows) world.kernel.after(500ms, [&] { world.kernel.peer_sends(peer, "the rest\n"); });
      world.run_for(1h);
      CHECK(world.is_over(peer) != follows);
      if (!follows) world.check_end(peer, too_late, read + (read - due));
    }
  }
}

TEST_CASE("a message that begins after the loop stood still is owed nothing") {
  DeadlineWorld world({.receive = 1s, .message = 2s});
  const int peer = world.accept();
  world.connection(peer).end_message();
  world.kernel.will_oversleep(10s);
  world.kernel.after(100ms, [&] { world.kernel.will_receive(peer, "x"); });
  world.turn();
  world.settle();
  const Instant began = world.kernel.now();
  for (int step = 0; step < 30 && !world.is_over(peer); ++step) {
    world.kernel.peer_sends(peer, "x");
    world.run_for(500ms);
  }
  world.check_end(peer, too_late, began + 2s);
}

// What it costs
// ------------------------------------------------------------------------------------------------------------------

TEST_CASE("with message and rate deadlines on, a marked message still costs one wait, one recv and one send") {
  DeadlineWorld world({.receive = 30s,
                       .message = 10s,
                       .receive_rate = {.bytes_per_second = 1},
                       .send = 30s,
                       .send_rate = {.bytes_per_second = 1}});
  const int peer = world.accept();
  world.story.on_receive = [](Connection& connection, std::string_view text) {
    connection.end_message();
    connection.send(bytes_of(text));
  };
  world.kernel.peer_sends(peer, "first");
  world.run_for(100ms);
  world.kernel.forget_calls();
  const std::uint64_t fired = world.reactor->counters().timers_fired;
  for (int message = 0; message < 1000; ++message) {
    world.kernel.peer_sends(peer, "hello");
    world.turn();
  }
  CHECK(world.kernel.count(Call::epoll_wait) == 1000);
  CHECK(world.kernel.count(Call::recv) == 1000);
  CHECK(world.kernel.count(Call::send) == 1000);
  CHECK(world.kernel.calls().size() == 3000);
  CHECK(world.reactor->counters().timers_fired == fired);
}

TEST_CASE("an hour of short messages moves the node no more often than a period of its deadlines asks for") {
  DeadlineWorld world({.message = 10s});
  const int peer = world.accept();
  world.mark_lines();
  const std::uint64_t fired = world.reactor->counters().timers_fired;
  for (int message = 0; message < 3600; ++message) {
    world.kernel.peer_sends(peer, "part");
    world.run_for(500ms);
    world.kernel.peer_sends(peer, "end\n");
    world.run_for(500ms);
  }
  CHECK_FALSE(world.is_over(peer));
  CHECK(world.reactor->counters().timers_fired - fired <= 3600 / 9);
}

TEST_CASE("only a connection that needs it has a side block, and gives it back") {
  const auto blocks = [](DeadlineWorld& world) { return ReactorCore::of(*world.reactor).sides.in_use(); };
  SUBCASE("plain deadlines, unmarked: none") {
    DeadlineWorld world({.first_byte = 1s, .receive = 1s, .message = 30s, .send = 1s});
    const int peer = world.accept();
    for (int step = 0; step < 10; ++step) {
      world.kernel.peer_sends(peer, "x");
      world.connection(peer).send(bytes_of("y"));
      world.run_for(900ms);
    }
    CHECK_FALSE(world.is_over(peer));
    CHECK(blocks(world) == 0);
  }
  SUBCASE("each need: one") {
    for (int need = 0; need < 6; ++need) {
      DeadlineWorld world({.receive = 1s});
      world.consume = [](Connection&, std::string_view) { return std::size_t{0}; };
      world.on_deadline = [](Connection&, Deadline) { return Duration(1h); };
      const int peer = world.accept();
      CHECK(blocks(world) == 0);
      Connection& connection = world.connection(peer);
      if (need == 0) connection.end_message();
      if (need == 1) connection.begin_message();
      if (need == 2) CHECK(connection.pause_reading());
      if (need == 3) CHECK(connection.set_rate(Deadline::receive_rate, {.bytes_per_second = 1}));
      if (need == 4) world.kernel.peer_sends(peer, "left");
      world.run_for(need == 5 ? 2s : 10ms);
      CHECK(blocks(world) == 1);
      world.kernel.peer_resets(peer);
      if (need == 2) CHECK(connection.resume_reading());
      world.settle();
      CHECK(world.is_over(peer));
      CHECK(blocks(world) == 0);
    }
  }
}
