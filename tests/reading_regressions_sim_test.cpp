// What went wrong once around held reading, tails and late looks at deadlines, and must not again.
#include <doctest/doctest.h>

#include <cerrno>
#include <string>

#include "support/deadline_world.hpp"
#include "support/simulation.hpp"

using namespace vigil;

namespace {

/// Consumes what its story says, and may close when it is told that its peer has gone.
struct Partial : Actor {
  using Actor::Actor;
  std::size_t on_receive(Connection& connection, Bytes bytes) { return story_->consume(connection, text_of(bytes)); }
  void on_peer_gone_while_paused(Connection& connection) {
    if (story_->on_peer_gone_while_paused) story_->on_peer_gone_while_paused(connection);
  }
};

struct LingeringPartial : Partial {
  using Partial::Partial;
  void on_peer_finished(Connection& connection) { story_->on_peer_finished(connection); }
};

}  // namespace

TEST_CASE("what the kernel said ended a stream stays the reason, whatever the handler answers to the last of its bytes") {
  for (const int error : {ETIMEDOUT, EHOSTUNREACH}) {
    SimulationOf<Partial> world;
    const int peer = world.accept();
    const std::string answer(10'000, 'x');  // goes to the kernel at once, which knows of no connection any more
    world.story.consume = [&](Connection& connection, std::string_view) -> std::size_t {
      if (connection.is_final()) connection.send(bytes_of(answer));
      return 0;
    };
    world.kernel.peer_sends(peer, "part");
    world.settle();
    world.kernel.connection_fails(peer, error);
    world.settle();
    CHECK(world.story.record(peer).reason ==
          (error == ETIMEDOUT ? CloseReason::network_timed_out : CloseReason::network_unreachable));
    CHECK(world.story.record(peer).error_number == error);
  }
}

TEST_CASE("a path that is lost while reading is paused is the reason of a close, not the peer's end") {
  SimulationOf<Partial> world;
  const int peer = world.accept();
  bool told = false;
  world.story.on_peer_gone_while_paused = [&](Connection& connection) {
    told = true;
    connection.close();
  };
  CHECK(world.story.connection(peer).pause_reading());
  world.kernel.connection_fails(peer, EHOSTUNREACH);
  world.settle();
  CHECK(told);
  CHECK(world.story.record(peer).reason == CloseReason::network_unreachable);
}

TEST_CASE("a message that is whole in the kernel beats its deadline, however many turns it takes to read") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  small.reads_per_turn = 1;
  DeadlineWorld world({.message = 2s}, small);
  const int peer = world.accept();
  world.mark_lines();
  const Instant opened = world.kernel.now();
  world.kernel.at(opened + 2s - 1us, [&] { world.kernel.peer_sends(peer, std::string(4095, 'x') + "\n"); });
  world.run_for(1999ms);
  world.kernel.will_oversleep(3ms);
  world.run_for(5ms);
  CHECK_FALSE(world.is_over(peer));
}

TEST_CASE("a peer that floods does not put off the deadline of its message") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  small.reads_per_turn = 1;
  DeadlineWorld world({.message = 20ms}, small);
  const int peer = world.accept();
  world.kernel.peer_floods(peer);
  for (int turns = 0; turns < 10'000 && !world.is_over(peer); ++turns) {
    world.turn();
    world.kernel.advance(100us);
  }
  REQUIRE(world.is_over(peer));
  CHECK(world.story.record(peer).reason == CloseReason::message_timed_out);
  CHECK(world.story.record(peer).age >= 20ms);
  CHECK(world.story.record(peer).age <= 30ms);
}

TEST_CASE("a message timeout that is shortened below what has passed is due at once: the loop was never late") {
  DeadlineWorld world({});
  const int peer = world.accept();
  world.run_for(1s);
  world.kernel.peer_sends(peer, "part of a message");
  world.settle();
  const Instant set_at = world.kernel.now();
  CHECK(world.connection(peer).set_timeout(Deadline::message, 200ms));  // it began a second ago
  world.run_for(5s);
  world.check_end(peer, CloseReason::message_timed_out, set_at);
}

TEST_CASE("a peer that finished gets the reply it is owed, though what it sent last was left unread") {
  SimulationOf<Partial> world;
  const int peer = world.accept();
  world.story.consume = [](Connection& connection, std::string_view text) {
    CHECK(connection.pause_reading());
    return text.size();
  };
  world.story.on_peer_gone_while_paused = [](Connection& connection) {
    connection.send(bytes_of("the reply you are owed"));
    connection.close();
  };
  world.kernel.peer_sends(peer, "request");
  world.settle();
  world.kernel.will_not_acknowledge(peer);
  world.kernel.peer_sends(peer, "and more");
  world.kernel.peer_finishes(peer);
  world.settle();
  CHECK(world.story.record(peer).reason == CloseReason::peer_finished);
  CHECK(world.story.record(peer).unconsumed == 8);
  CHECK(world.kernel.sent(peer) == "the reply you are owed");
  CHECK(world.kernel.ending(peer) == sys::Ending::orderly);  // no reset, which would take the reply back
}

TEST_CASE("a handler that pauses when it is given its last bytes is told of the end when it resumes") {
  SimulationOf<LingeringPartial> world;
  const int peer = world.accept();
  bool finished = false;
  world.story.on_peer_finished = [&](Connection& connection) {
    finished = true;
    connection.close();
  };
  world.story.consume = [](Connection& connection, std::string_view) -> std::size_t {
    if (connection.is_final()) CHECK(connection.pause_reading());
    return 0;
  };
  world.kernel.peer_sends(peer, "part");
  world.settle();
  world.kernel.peer_finishes(peer);
  world.settle();
  CHECK_FALSE(finished);
  CHECK(world.story.connection(peer).resume_reading());
  world.settle();
  CHECK(finished);
  CHECK(world.story.record(peer).unconsumed == 4);
}

TEST_CASE("reading held after a send failed does not hold the end for ever") {
  ListenerOptions options;
  options.backlog_bytes_max = 1 << 20;
  options.backlog_high_mark_bytes = 10'000;
  options.backlog_low_mark_bytes = 1'000;
  options.when_backlogged = WhenBacklogged::pause_reading;
  options.timeouts.receive = 1s;
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  small.reads_per_turn = 1;
  for (const int error : {EHOSTUNREACH, ENOBUFS, EPERM}) {
    Simulation world(options, small);
    const int peer = world.accept();
    world.story.on_receive = [](Connection& connection, std::string_view) { connection.send(bytes_of(std::string(9'000, 'x'))); };
    world.kernel.will_fail_to_send(peer, error);
    world.kernel.peer_sends(peer, std::string(20'000, 'q'));
    world.run_for(10s);
    REQUIRE(world.story.records.size() == 1);
    CHECK(world.story.records.front().error_number == error);
  }
}

TEST_CASE("reading resumed inside the callback that leaves bytes hands them over again") {
  SimulationOf<Partial> world;
  const int peer = world.accept();
  int calls = 0;
  world.story.consume = [&](Connection& connection, std::string_view text) -> std::size_t {
    if (++calls > 1) return text.size();
    CHECK(connection.pause_reading());
    CHECK(connection.resume_reading());
    return 0;
  };
  world.kernel.peer_sends(peer, "part");
  world.settle();
  CHECK(calls == 2);
}

TEST_CASE("bytes that waited when a message was ended begin the next, whose deadline runs without another byte") {
  ListenerOptions options;
  options.timeouts.message = 100ms;
  SimulationOf<Partial> world(options);
  const int peer = world.accept();
  world.story.consume = [](Connection&, std::string_view) -> std::size_t { return 0; };
  world.kernel.peer_sends(peer, "half");
  world.settle();
  world.run_for(50ms);
  world.story.connection(peer).end_message();
  world.run_for(200ms);
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.record(peer).reason == CloseReason::message_timed_out);
  CHECK(world.story.record(peer).age >= 150ms);
  CHECK(world.story.record(peer).age <= 151ms + 1ms);
}
