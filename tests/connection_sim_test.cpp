// Connections on virtual time: which system calls a message costs, how deadlines fall, and which reason an end has when several
// causes meet in one turn.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;
using sys::Ending;

namespace {

constexpr Duration tick = 1ms;

void echo(Connection& connection, std::string_view text) { connection.send(bytes_of(text)); }

ListenerOptions with(Timeouts timeouts) {
  ListenerOptions options;
  options.timeouts = timeouts;
  return options;
}

/// Never early, at most a tick late.
void check_on_time(Instant ended, Instant due) {
  CHECK(ended >= due);
  CHECK(ended <= due + tick);
}

}  // namespace

// What a message costs -------------------------------------------------------------------------------------------------------

TEST_CASE("an echoed message costs one wait, one recv and one send") {
  Simulation world(with({.receive = 30s, .send = 30s}));
  const int peer = world.accept();
  world.story.on_receive = echo;
  world.kernel.peer_sends(peer, "first");
  world.settle();
  world.kernel.forget_calls();
  for (int message = 0; message < 100; ++message) {
    world.kernel.peer_sends(peer, "hello");
    world.turn();
  }
  CHECK(world.kernel.count(Call::epoll_wait) == 100);
  CHECK(world.kernel.count(Call::recv) == 100);
  CHECK(world.kernel.count(Call::send) == 100);
  CHECK(world.kernel.calls().size() <= 305);  // what is acknowledged is asked for now and then, not per message
  CHECK(world.reactor->counters().empty_receives == 0);
}

TEST_CASE("without a send deadline a message costs nothing else at all") {
  Simulation world(with({.receive = 30s}));
  const int peer = world.accept();
  world.story.on_receive = echo;
  world.kernel.forget_calls();
  for (int message = 0; message < 3; ++message) {
    world.kernel.peer_sends(peer, "hello");
    world.turn();
  }
  CHECK(world.kernel.names() == "epoll_wait recv send epoll_wait recv send epoll_wait recv send");
}

TEST_CASE("many small sends of one dispatch leave in one system call") {
  Simulation world;
  const int peer = world.accept();
  std::string expected;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    for (int piece = 0; piece < 100; ++piece) {
      std::string text = std::to_string(piece) + ";";
      CHECK(connection.send(bytes_of(text)));
      expected += text;
      text.assign(text.size(), '!');  // nothing is borrowed
    }
    CHECK(connection.backlog_bytes() == expected.size());
  };
  world.kernel.peer_sends(peer, "go");
  world.kernel.forget_calls();
  world.turn();
  CHECK(world.kernel.sent(peer) == expected);
  CHECK(world.kernel.names() == "epoll_wait recv send");
}

TEST_CASE("a large piece leaves at once, together with what was gathered before it") {
  Simulation world;
  const int peer = world.accept();
  const std::string large(100'000, 'L');
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    connection.send(bytes_of("head;"));
    connection.send(bytes_of(large));
    CHECK(world.kernel.sent(peer) == "head;" + large);
    connection.send(bytes_of(";tail"));
  };
  world.kernel.peer_sends(peer, "go");
  world.kernel.forget_calls();
  world.turn();
  CHECK(world.kernel.sent(peer) == "head;" + large + ";tail");
  CHECK(world.kernel.names() == "epoll_wait recv send_vector send");
}

TEST_CASE("what the kernel does not take is kept in order and sent when there is room") {
  Simulation world;
  const int peer = world.accept();
  std::string expected;
  std::mt19937 random(1);
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    for (int piece = 0; piece < 40; ++piece) {
      const std::string text(1 + random() % 20'000, static_cast<char>('a' + piece % 26));
      expected += text;
      CHECK(connection.send(bytes_of(text)));
    }
  };
  world.kernel.will_take(peer, 1234);
  world.kernel.peer_sends(peer, "go");
  world.settle();
  CHECK(world.kernel.sent(peer) == expected.substr(0, 1234));
  while (world.kernel.sent(peer).size() < expected.size()) {
    const std::size_t before = world.kernel.sent(peer).size();
    const std::size_t room = 1 + random() % 50'000;
    world.kernel.peer_reads(peer, room);
    world.settle();
    REQUIRE(world.kernel.sent(peer).size() == std::min(expected.size(), before + room));
  }
  CHECK(world.kernel.sent(peer) == expected);
  CHECK(world.story.connection(peer).backlog_bytes() == 0);
}

TEST_CASE("a stalled connection makes no send until it is told of room") {
  Simulation world;
  const int peer = world.accept();
  world.story.on_receive = echo;
  world.kernel.will_take(peer, 0);
  world.kernel.peer_sends(peer, "a");
  world.settle();
  world.kernel.forget_calls();
  for (int message = 0; message < 10; ++message) {
    world.kernel.will_receive(peer, "b");
    world.kernel.report(peer, EPOLLIN);
    world.turn();
  }
  CHECK(world.kernel.count(Call::send) + world.kernel.count(Call::send_vector) == 0);
  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(world.kernel.sent(peer) == "abbbbbbbbbb");
}

TEST_CASE("bytes written to another connection leave in the same turn, in one call") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  const auto write = [&] {
    for (const char* word : {"one ", "two ", "three"}) CHECK(world.story.connection(b).send(bytes_of(word)));
  };
  Timer timer(*world.reactor, write);
  SUBCASE("from its callback") {
    world.story.on_receive = [&](Connection&, std::string_view) { write(); };
    world.kernel.peer_sends(a, "x");
  }
  SUBCASE("from a timer") { REQUIRE(timer.arm_after(5ms)); }
  SUBCASE("from a task") { REQUIRE(world.reactor->post(write)); }
  SUBCASE("from a task posted through the mailbox") { REQUIRE(world.reactor->mailbox().post(write)); }
  SUBCASE("from an end") {
    world.story.on_close = [&](Connection&, const CloseRecord&) { write(); };
    world.story.connection(a).abort();
  }
  SUBCASE("from outside, before the turn") { write(); }
  world.kernel.forget_calls();
  world.turn();
  CHECK(world.kernel.sent(b) == "one two three");
  CHECK(world.kernel.count(Call::send, b) + world.kernel.count(Call::send_vector, b) == 1);
}

TEST_CASE("two connections that write to each other from their callbacks keep each stream in order") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  world.story.on_receive = [&](Connection& connection, std::string_view text) {
    connection.send(bytes_of("own:"));
    world.story.connection(connection.descriptor() == a ? b : a).send(bytes_of("other:"));
    connection.send(bytes_of(text));
  };
  world.kernel.peer_sends(a, "x");
  world.kernel.peer_sends(b, "y");
  world.turn();
  CHECK(world.kernel.sent(a) == "own:xother:");
  CHECK(world.kernel.sent(b) == "other:own:y");
}

// Reading --------------------------------------------------------------------------------------------------------------------

TEST_CASE("readiness with nothing behind it, interruptions and false alarms are no end") {
  Simulation world(with({.receive = 30s}));
  const int peer = world.accept();
  world.kernel.report(peer, EPOLLIN);
  world.turn();
  world.kernel.report(peer, EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI);
  world.turn();
  world.kernel.will_receive_hiccup(peer, EINTR);
  world.kernel.will_receive_hiccup(peer, EINTR);
  world.kernel.peer_sends(peer, "hello");
  world.turn();
  CHECK(world.story.received[peer] == "hello");
  world.kernel.will_receive_hiccup(peer, EAGAIN);
  world.kernel.report(peer, EPOLLIN | EPOLLHUP);
  world.turn();
  world.settle();
  CHECK(world.story.records.empty());
}

TEST_CASE("an urgent mark in the middle of the stream loses nothing") {
  Simulation world;
  const int peer = world.accept();
  world.kernel.will_receive(peer, "before");
  world.kernel.will_stop_short(peer);
  world.kernel.will_receive(peer, "behind");
  world.kernel.report(peer, EPOLLIN | EPOLLPRI);
  world.turn();
  CHECK(world.story.received[peer] == "beforebehind");
}

TEST_CASE("one that never stops sending delays the others by no more than its budget, and is never asked in vain") {
  Simulation world({}, {.receive_buffer_bytes = 1024, .reads_per_turn = 8});
  const int firehose = world.accept();
  const int other = world.accept();
  world.kernel.peer_floods(firehose);
  world.turn();
  for (int turn = 0; turn < 10; ++turn) {
    world.kernel.forget_calls();
    world.kernel.peer_sends(other, "x");
    world.turn();
    CHECK(world.kernel.count(Call::recv, firehose) <= 8);
    CHECK(world.kernel.count(Call::recv, other) == 1);
    CHECK(world.kernel.last_timeout() == 0ns);
  }
  CHECK(world.story.received[other] == std::string(10, 'x'));
  world.story.connection(firehose).abort();
}

TEST_CASE("what arrived before an end is delivered before it is told") {
  Simulation world({}, {.receive_buffer_bytes = 1024, .reads_per_turn = 2});
  const int peer = world.accept();
  const std::string data(50'000, 'd');
  std::string when_closed;
  world.story.on_close = [&](Connection&, const CloseRecord&) { when_closed = world.story.received[peer]; };
  world.kernel.peer_sends(peer, data);
  CloseReason expected = CloseReason::peer_finished;
  SUBCASE("FIN") { world.kernel.peer_finishes(peer); }
  SUBCASE("RST") {
    world.kernel.peer_resets(peer);
    expected = CloseReason::peer_reset;
  }
  SUBCASE("the network's verdict") {
    world.kernel.connection_fails(peer, ETIMEDOUT);
    expected = CloseReason::network_timed_out;
  }
  SUBCASE("the way lost") {
    world.kernel.connection_fails(peer, EHOSTUNREACH);
    expected = CloseReason::network_unreachable;
  }
  world.settle();
  CHECK(when_closed.size() == data.size());
  CHECK(world.story.record(peer).reason == expected);
  CHECK(world.story.record(peer).received == data.size());
}

TEST_CASE("a reset that a send is told of does not swallow what arrived before it, nor becomes an orderly end") {
  Simulation world;
  const int peer = world.accept();
  world.story.on_receive = echo;
  world.kernel.will_receive(peer, "one");
  world.kernel.will_stop_short(peer);
  world.kernel.will_receive(peer, "two");
  world.kernel.will_receive_error(peer, ECONNRESET);
  SUBCASE("told together with the data") { world.kernel.report(peer, EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR); }
  SUBCASE("not told yet: a short read, then the echo meets the reset") { world.kernel.report(peer, EPOLLIN); }
  world.settle();
  CHECK(world.story.received[peer] == "onetwo");
  CHECK(world.story.record(peer).reason == CloseReason::peer_reset);
  CHECK(world.story.record(peer).error_number == ECONNRESET);
  CHECK(world.story.record(peer).origin == Origin::peer);
}

TEST_CASE("a send on a dead socket is told after it returned, once, with its errno") {
  Simulation world;
  const int peer = world.accept();
  bool told_inside = false;
  bool inside = false;
  world.story.on_close = [&](Connection&, const CloseRecord&) { told_inside = inside; };
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    inside = true;
    connection.send(bytes_of(std::string(100'000, 'x')));  // goes to the kernel at once
    inside = false;
  };
  world.kernel.will_fail_to_send(peer, ECONNRESET);
  world.kernel.peer_sends(peer, "go");
  world.settle();
  CHECK_FALSE(told_inside);
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.record(peer).reason == CloseReason::peer_reset);
  CHECK(world.story.record(peer).error_number == ECONNRESET);
  CHECK(world.story.record(peer).unsent == 100'000);
}

TEST_CASE("a reset behind the peer's end is an orderly end unless something was owed") {
  SimulationOf<LingeringActor> world;
  const int peer = world.accept();
  world.kernel.peer_finishes(peer);
  world.settle();
  REQUIRE(world.story.records.empty());
  CloseReason expected = CloseReason::peer_finished;
  SUBCASE("nothing was") {}
  SUBCASE("something was not acknowledged") {
    world.kernel.will_not_acknowledge(peer);
    world.story.connection(peer).send(bytes_of("owed"));
    expected = CloseReason::peer_reset;
  }
  SUBCASE("something was not taken") {
    world.kernel.will_take(peer, 0);
    world.story.connection(peer).send(bytes_of("owed"));
    expected = CloseReason::peer_reset;
  }
  world.settle();
  world.kernel.peer_resets(peer);
  world.settle();
  CHECK(world.story.record(peer).reason == expected);
}

// Deadlines ------------------------------------------------------------------------------------------------------------------

TEST_CASE("silence ends a connection on time, never early and at most one tick late") {
  std::mt19937_64 random(3);
  for (int round = 0; round < 50; ++round) {
    const Duration timeout(1'000'000 + random() % 3'000'000'000);
    Simulation world(with({.receive = timeout}));
    world.kernel.advance(Duration(random() % 5'000'000));
    const int peer = world.accept();
    Instant ended{};
    world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
    const Instant opened = world.kernel.now();
    world.run_for(4s);
    const CloseRecord& record = world.story.record(peer);
    CHECK(record.reason == CloseReason::receive_timed_out);
    CHECK(record.origin == Origin::policy);
    CHECK(record.error_number == 0);
    check_on_time(ended, opened + timeout);
    CHECK(ended - opened == record.age);
    CHECK(record.silence == record.age);
  }
}

TEST_CASE("each kind of deadline falls on time and has its own reason") {
  Instant ended{};
  const auto note_end = [&](auto& world) {
    world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  };
  SUBCASE("connect") {
    Simulation world(with({.connect = 250ms}));
    note_end(world);
    const Instant start = world.kernel.now();
    const int attempt = world.connect();
    world.run_for(1s);
    CHECK(world.story.record(attempt).reason == CloseReason::connect_timed_out);
    CHECK(world.story.record(attempt).phase == Phase::connecting);
    CHECK(world.story.record(attempt).error_number == 0);
    check_on_time(ended, start + 250ms);
  }
  SUBCASE("first byte") {
    Simulation world(with({.first_byte = 250ms, .receive = 100ms}));
    note_end(world);
    const Instant start = world.kernel.now();
    const int peer = world.accept();
    world.run_for(1s);
    CHECK(world.story.record(peer).reason == CloseReason::first_byte_timed_out);
    check_on_time(ended, start + 250ms);
  }
  SUBCASE("receive, after the first byte") {
    Simulation world(with({.first_byte = 250ms, .receive = 100ms}));
    note_end(world);
    const int peer = world.accept();
    world.run_for(200ms);
    world.kernel.peer_sends(peer, "x");
    const Instant heard = world.kernel.now();
    world.run_for(1s);
    CHECK(world.story.record(peer).reason == CloseReason::receive_timed_out);
    check_on_time(ended, heard + 100ms);
  }
  SUBCASE("receive, after a first byte that came long before its own deadline") {
    Simulation world(with({.first_byte = 3s, .receive = 200ms}));
    note_end(world);
    const int peer = world.accept();
    world.run_for(350ms);
    world.kernel.peer_sends(peer, "x");
    const Instant heard = world.kernel.now();
    world.run_for(5s);
    CHECK(world.story.record(peer).reason == CloseReason::receive_timed_out);
    check_on_time(ended, heard + 200ms);
  }
  SUBCASE("send: never early, at most an eighth and a tick late") {
    Simulation world(with({.send = 800ms}));
    note_end(world);
    const int peer = world.accept();
    world.kernel.will_not_acknowledge(peer);
    const Instant start = world.kernel.now();
    world.story.connection(peer).send(bytes_of("unheard"));
    world.run_for(2s);
    CHECK(world.story.record(peer).reason == CloseReason::send_timed_out);
    CHECK(world.story.record(peer).unacknowledged == 7);
    CHECK(ended >= start + 800ms);
    CHECK(ended <= start + 900ms + tick);
  }
  SUBCASE("drain, after our close") {
    Simulation world(with({.drain = 250ms}));
    note_end(world);
    const int peer = world.accept();
    const Instant start = world.kernel.now();
    world.story.connection(peer).close();
    world.run_for(1s);
    CHECK(world.story.record(peer).reason == CloseReason::local_close);
    CHECK(world.story.record(peer).cut_short == CutShort::timed_out);
    CHECK(world.story.record(peer).phase == Phase::draining);
    check_on_time(ended, start + 250ms);
  }
  SUBCASE("drain, of a handler that forgets to close") {
    SimulationOf<LingeringActor> world(with({.drain = 250ms}));
    note_end(world);
    const int peer = world.accept();
    const Instant start = world.kernel.now();
    world.kernel.peer_finishes(peer);
    world.run_for(1s);
    CHECK(world.story.record(peer).reason == CloseReason::drain_timed_out);
    check_on_time(ended, start + 250ms);
  }
}

TEST_CASE("a byte just before the deadline keeps the connection open, and it runs anew from there") {
  Simulation world(with({.receive = 100ms}));
  const int peer = world.accept();
  Instant last = world.kernel.now();
  for (int round = 0; round < 20; ++round) {
    world.kernel.at(last + 99ms, [&] { world.kernel.peer_sends(peer, "x"); });
    world.run_until(last + 99ms);
    last = world.kernel.now();
    REQUIRE(world.story.records.empty());
  }
  Instant ended{};
  world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  world.run_for(200ms);
  check_on_time(ended, last + 100ms);
}

TEST_CASE("data that arrives in the same turn as its deadline beats it") {
  Simulation world(with({.receive = 100ms}));
  const int peer = world.accept();
  const Instant due = world.kernel.now() + 100ms;
  SUBCASE("told of") {
    world.kernel.at(due, [&] { world.kernel.peer_sends(peer, "just in time"); });
  }
  SUBCASE("not told of: the deadline asks") {
    world.kernel.at(due, [&] { world.kernel.will_receive(peer, "just in time"); });
  }
  SUBCASE("while another's callback works") {
    const int other = world.accept();
    world.story.on_receive = [&, other](Connection& connection, std::string_view) {
      if (connection.descriptor() == other) world.kernel.advance(30ms);
    };
    world.kernel.at(due - 5ms, [&, other] { world.kernel.peer_sends(other, "work"); });
    world.kernel.at(due, [&] { world.kernel.peer_sends(peer, "just in time"); });
  }
  world.run_until(due + 50ms);
  CHECK(world.story.received[peer] == "just in time");
  CHECK(world.story.records.empty());
}

TEST_CASE("an end that arrived with the deadline is told, not the deadline") {
  Simulation world(with({.receive = 100ms}));
  const int peer = world.accept();
  const Instant due = world.kernel.now() + 100ms;
  CloseReason expected = CloseReason::peer_finished;
  SUBCASE("FIN") {
    world.kernel.at(due, [&] { world.kernel.will_receive_end(peer); });
  }
  SUBCASE("RST") {
    world.kernel.at(due, [&] { world.kernel.will_receive_error(peer, ECONNRESET); });
    expected = CloseReason::peer_reset;
  }
  SUBCASE("data, then FIN") {
    world.kernel.at(due, [&] {
      world.kernel.will_receive(peer, "last words");
      world.kernel.will_receive_end(peer);
    });
  }
  world.run_until(due + 50ms);
  CHECK(world.story.record(peer).reason == expected);
}

TEST_CASE("a process that was stopped for 4 s blames no peer whose bytes had arrived") {
  Simulation world(with({.receive = 1s}));
  std::vector<int> peers;
  for (int count = 0; count < 20; ++count) peers.push_back(world.accept());
  const int silent = world.accept();
  world.run_for(500ms);
  world.kernel.will_oversleep(4s);
  world.kernel.after(100ms, [&] {
    for (const int peer : peers) world.kernel.peer_sends(peer, "alive");
  });
  world.turn();
  world.settle();
  for (const int peer : peers) CHECK(world.story.received[peer] == "alive");
  CHECK(world.story.closed == std::vector<int>{silent});
}

TEST_CASE("of bytes received while a handler works long, the deadline counts from after them: late by that work, never early") {
  Simulation world(with({.receive = 100ms}));
  const int peer = world.accept();
  world.story.on_receive = [&](Connection&, std::string_view) { world.kernel.advance(50ms); };
  const Instant heard = world.kernel.now();
  world.kernel.peer_sends(peer, "x");
  Instant ended{};
  world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  world.run_for(500ms);
  CHECK(ended >= heard + 100ms);
  CHECK(ended <= heard + 150ms + tick);
}

TEST_CASE("acknowledged progress keeps a slow reader open") {
  Simulation world(with({.send = 800ms}));
  const int peer = world.accept();
  world.kernel.will_not_acknowledge(peer);
  world.story.connection(peer).send(bytes_of(std::string(1000, 'x')));
  for (int step = 0; step < 10; ++step) {
    world.run_for(700ms);
    world.kernel.peer_acknowledges(peer, 1);
  }
  CHECK(world.story.records.empty());
  world.run_for(1s);
  CHECK(world.story.record(peer).reason == CloseReason::send_timed_out);
}

TEST_CASE("setting the send timeout again does not begin its deadline anew") {
  Simulation world(with({.send = 800ms}));
  const int peer = world.accept();
  world.kernel.will_not_acknowledge(peer);
  world.story.connection(peer).send(bytes_of("unheard"));
  for (int step = 0; step < 6 && world.story.records.empty(); ++step) {
    CHECK(world.story.connection(peer).set_timeout(Deadline::send, 800ms));
    world.run_for(200ms);
  }
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.record(peer).reason == CloseReason::send_timed_out);
  CHECK(world.story.record(peer).age <= 800ms + 100ms + 2 * tick);
}

TEST_CASE("a send deadline rests while nothing is outstanding, and starts with the next byte") {
  Simulation world(with({.send = 800ms}));
  const int peer = world.accept();
  world.story.connection(peer).send(bytes_of("taken and acknowledged"));
  world.run_for(10s);
  CHECK(world.story.records.empty());
  world.kernel.forget_calls();
  world.run_for(10s);
  CHECK(world.kernel.calls().size() <= 3);  // no sampling either
  world.kernel.will_not_acknowledge(peer);
  const Instant start = world.kernel.now();
  Instant ended{};
  world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  world.story.connection(peer).send(bytes_of("unheard"));
  world.run_for(2s);
  CHECK(ended >= start + 800ms);
  CHECK(ended <= start + 900ms + tick);
}

TEST_CASE("the earlier of two deadlines wins") {
  Simulation world(with({.receive = 900ms, .send = 500ms}));
  const int peer = world.accept();
  world.kernel.will_not_acknowledge(peer);
  world.story.connection(peer).send(bytes_of("unheard"));
  world.run_for(3s);
  CHECK(world.story.record(peer).reason == CloseReason::send_timed_out);
}

TEST_CASE("a connection's own timeout takes over from where the old one began") {
  Simulation world(with({.receive = 10s}));
  const int peer = world.accept();
  const Instant opened = world.kernel.now();
  Instant ended{};
  world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  world.run_for(1s);
  Instant due{};
  SUBCASE("shorter") {
    REQUIRE(world.story.connection(peer).set_timeout(Deadline::receive, 3s));
    due = opened + 3s;
  }
  SUBCASE("shorter than what has passed") {
    REQUIRE(world.story.connection(peer).set_timeout(Deadline::receive, 500ms));
    due = opened + 1s;
  }
  SUBCASE("longer") {
    REQUIRE(world.story.connection(peer).set_timeout(Deadline::receive, 20s));
    due = opened + 20s;
  }
  SUBCASE("never, and back to what it inherits") {
    REQUIRE(world.story.connection(peer).set_timeout(Deadline::receive, never));
    world.run_for(60s);
    CHECK(world.story.records.empty());
    REQUIRE(world.story.connection(peer).set_timeout(Deadline::receive, inherit));
    due = opened + 61s;
  }
  world.run_for(30s);
  check_on_time(ended, due);
}

TEST_CASE("deadlines cost no timer operation per message, and fire once per period at most") {
  Simulation world(with({.receive = 10s}));
  const int peer = world.accept();
  const std::uint64_t before = world.reactor->counters().timers_fired;
  for (int message = 0; message < 1000; ++message) {
    world.kernel.after(1ms, [&] { world.kernel.peer_sends(peer, "x"); });
    world.turn();
  }
  CHECK(world.reactor->counters().timers_fired - before <= 2);
}

TEST_CASE("ten thousand deadlines with random work in the callbacks: none early") {
  Simulation world(with({.receive = 200ms}));
  std::mt19937_64 random(9);
  std::map<int, Instant> heard;
  int early = 0;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    heard[connection.descriptor()] = world.kernel.now();
    world.kernel.advance(Duration(random() % 300'000));
  };
  world.story.on_close = [&](Connection&, const CloseRecord& record) {
    CHECK(record.reason == CloseReason::receive_timed_out);
    const int descriptor = world.story.closed.back();
    if (world.kernel.now() < heard[descriptor] + 200ms) ++early;
    world.kernel.advance(Duration(random() % 300'000));
  };
  world.story.on_open = [&](Connection& connection) { heard[connection.descriptor()] = world.kernel.now(); };
  for (int round = 0; round < 100; ++round) {
    for (int count = 0; count < 100; ++count) {
      const int peer = world.kernel.peer_connects(world.listening);
      for (std::uint64_t message = random() % 3; message > 0; --message)
        world.kernel.after(Duration(random() % 300'000'000), [&world, peer] { world.kernel.peer_sends(peer, "x"); });
    }
    world.run_for(50ms);
  }
  world.run_for(2s);
  CHECK(early == 0);
  CHECK(world.story.records.size() == 10'000);
}

// Ends -----------------------------------------------------------------------------------------------------------------------

TEST_CASE("a connection closed by another's callback hears no event of the same batch") {
  Simulation world;
  const int a = world.accept();
  const int b = world.accept();
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    if (connection.descriptor() == a) world.story.connection(b).abort();
  };
  world.kernel.peer_sends(a, "x");
  world.kernel.peer_sends(b, "never told");
  world.kernel.peer_finishes(b);
  world.turn();
  CHECK(world.story.received[b].empty());
  CHECK(world.story.closed == std::vector<int>{b});
  CHECK(world.story.record(b).reason == CloseReason::local_close);
  CHECK(world.story.record(b).left_unread == 10);
  CHECK(world.kernel.ending(b) == Ending::reset);
}

TEST_CASE("an event for a life that is over does not reach the next one in its slot and its descriptor") {
  Simulation world;
  const int first = world.accept();
  world.kernel.is_duplicated(first);  // as after a fork: closing does not end the registration
  world.story.connection(first).abort();
  world.settle();
  const int second = world.accept();
  REQUIRE(second == first);
  const std::uint64_t stale = world.reactor->counters().stale_events;
  world.kernel.forget_calls();
  world.kernel.report_orphan(first, EPOLLIN | EPOLLHUP | EPOLLERR);
  world.turn(0ns);
  CHECK(world.kernel.count(Call::recv) == 0);
  CHECK(world.reactor->counters().stale_events == stale + 1);
  CHECK(world.story.records.size() == 1);
}

TEST_CASE("a handle lives until its end was told, and changes nothing afterwards") {
  Simulation world(with({.receive = 30s}));
  const int first = world.accept();
  const ConnectionHandle handle = world.story.handles.at(first);
  world.story.on_close = [&](Connection&, const CloseRecord&) {
    CHECK(handle);
    CHECK_FALSE(handle->is_open());
    CHECK(handle->send(bytes_of("x")).error() == Error{"send", EPIPE});
    CHECK(handle->finish().error() == Error{"finish", EPIPE});
    CHECK(handle->pause_reading().error() == Error{"pause reading", EPIPE});
    CHECK(handle->set_timeout(Deadline::receive, 1s).error() == Error{"set timeout", EBADF});
    CHECK(handle->set_rate(Deadline::receive_rate, {.bytes_per_second = 1}).error() == Error{"set rate", EBADF});
    CHECK(handle->local_address().error() == Error{"local address", EBADF});
    CHECK(handle->close());
    CHECK(handle->abort());
    CHECK(handle->resume_reading());
    CHECK(handle->receive_again());
    CHECK(handle->descriptor() == -1);
  };
  handle->abort();
  CHECK_FALSE(handle->is_open());
  world.settle();
  const int second = world.accept();
  REQUIRE(second == first);
  CHECK_FALSE(handle);
  world.kernel.forget_calls();
  CHECK(handle->send(bytes_of("x")).error() == Error{"send", EBADF});
  CHECK(handle->close().error().code == EBADF);
  CHECK(handle->abort().error().code == EBADF);
  CHECK(handle->finish().error().code == EBADF);
  CHECK(handle->set_timeout(Deadline::receive, 1s).error().code == EBADF);
  CHECK(handle->descriptor() == -1);
  CHECK(handle->backlog_bytes() == 0);
  CHECK(handle->age() == 0ns);
  CHECK(handle->silence() == 0ns);
  CHECK_FALSE(handle->local_address());
  world.settle();
  CHECK(world.kernel.sent(second).empty());
  CHECK(world.story.connection(second).is_open());
}

TEST_CASE("everything may be done from every callback") {
  SimulationOf<LingeringActor> world(with({.receive = 50ms, .drain = 20ms}));
  Timer timer(*world.reactor, [] {});
  std::mt19937 random(11);
  std::vector<int> all;
  const auto anything = [&] {
    const int victim = all[random() % all.size()];
    switch (random() % 9) {
      case 0:
        world.story.connection(victim).close();
        break;
      case 1:
        world.story.connection(victim).abort();
        break;
      case 2:
        world.story.connection(victim).finish();
        break;
      case 3:
        (void)world.reactor->post([] {});
        break;
      case 4:
        (void)timer.arm_after(1ms);
        break;
      case 5:
        timer.disarm();
        break;
      case 6:
        (void)world.story.connection(victim).set_timeout(Deadline::receive, 10ms);
        break;
      case 7:
        (void)world.connector->connect("192.0.2.1:80");
        break;
      default:
        world.story.connection(victim).send(bytes_of("something"));
    }
  };
  world.story.on_open = [&](Connection& connection) {
    all.push_back(connection.descriptor());
    anything();
  };
  world.story.on_receive = [&](Connection&, std::string_view) { anything(); };
  world.story.on_close = [&](Connection&, const CloseRecord&) {
    if (!all.empty()) anything();
  };
  world.story.on_peer_finished = [&](Connection&) { anything(); };
  for (int round = 0; round < 2000; ++round) {
    const int peer = world.kernel.peer_connects(world.listening);
    world.kernel.after(Duration(random() % 30'000'000), [&world, peer] { world.kernel.peer_sends(peer, "x"); });
    if (random() % 2 == 0)
      world.kernel.after(Duration(random() % 60'000'000), [&world, peer] { world.kernel.peer_finishes(peer); });
    if (random() % 4 == 0)
      world.kernel.after(Duration(random() % 60'000'000), [&world, peer] { world.kernel.peer_resets(peer); });
    world.run_for(Duration(random() % 3'000'000));
  }
  CHECK(world.story.records.size() > 2000);
}

TEST_CASE("a graceful close sends what is queued, then our end, and awaits the peer's; what comes meanwhile is discarded") {
  Simulation world;
  const int peer = world.accept();
  world.kernel.will_take(peer, 3);
  world.story.connection(peer).send(bytes_of("farewell"));
  world.story.connection(peer).close();
  CHECK(world.story.connection(peer).send(bytes_of("x")).error() == Error{"send", EPIPE});
  world.settle();
  CHECK_FALSE(world.kernel.sent_end(peer));
  world.kernel.peer_sends(peer, "unheard");
  world.settle();
  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(world.kernel.sent(peer) == "farewell");
  CHECK(world.kernel.sent_end(peer));
  CHECK(world.story.records.empty());
  world.kernel.peer_finishes(peer);
  world.settle();
  const CloseRecord& record = world.story.record(peer);
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.cut_short == CutShort::none);
  CHECK(record.received == 7);
  CHECK(record.handed_to_kernel == 8);
  CHECK(world.story.received[peer].empty());
  CHECK(world.kernel.ending(peer) == Ending::orderly);
}

TEST_CASE("a peer that half-closes gets what it is owed") {
  Simulation world;
  const int peer = world.accept();
  const std::string owed(100'000, 'o');
  world.story.on_receive = [&](Connection& connection, std::string_view) { connection.send(bytes_of(owed)); };
  world.kernel.will_take(peer, 10);
  world.kernel.peer_sends(peer, "request");
  world.kernel.peer_finishes(peer);
  world.settle();
  CHECK(world.story.records.empty());
  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(world.kernel.sent(peer) == owed);
  CHECK(world.story.record(peer).reason == CloseReason::peer_finished);
  CHECK(world.story.record(peer).unsent == 0);
}

TEST_CASE("a stream cut in the middle ends with a reset") {
  Simulation world(with({.send = 100ms, .drain = 100ms}));
  const int peer = world.accept();
  world.kernel.will_take(peer, 3);
  world.story.connection(peer).send(bytes_of("truncated"));
  world.run_for(1s);
  CHECK(world.story.record(peer).reason == CloseReason::send_timed_out);
  CHECK(world.story.record(peer).unsent == 6);
  CHECK(world.kernel.ending(peer) == Ending::reset);
}

TEST_CASE("bytes beyond the bound end the connection and are not taken") {
  ListenerOptions options;
  options.backlog_bytes_max = 1000;
  options.backlog_high_mark_bytes = 500;
  options.backlog_low_mark_bytes = 100;
  Simulation world(options);
  const int peer = world.accept();
  world.kernel.will_take(peer, 0);
  Connection& connection = world.story.connection(peer);
  CHECK(connection.send(bytes_of(std::string(1000, 'x'))));
  CHECK(connection.send(bytes_of("")));
  CHECK(connection.send(bytes_of("y")).error() == Error{"send", ENOBUFS});
  CHECK(world.story.records.empty());  // told after the call
  world.settle();
  CHECK(world.story.record(peer).reason == CloseReason::backlog_full);
  CHECK(world.story.record(peer).unsent == 1000);
}

TEST_CASE("on_send_drained comes once when the queue falls to the low mark after it had passed the high one") {
  ListenerOptions options;
  options.backlog_high_mark_bytes = 500;
  options.backlog_low_mark_bytes = 100;
  Simulation world(options);
  const int peer = world.accept();
  int drained = 0;
  world.story.on_send_drained = [&](Connection& connection) {
    ++drained;
    CHECK(connection.backlog_bytes() <= 100);
  };
  world.kernel.will_take(peer, 0);
  world.story.connection(peer).send(bytes_of(std::string(500, 'x')));
  world.kernel.peer_reads(peer, 450);
  world.settle();
  CHECK(drained == 0);  // not above the high mark
  world.story.connection(peer).send(bytes_of(std::string(600, 'x')));
  world.settle();
  world.kernel.peer_reads(peer, 500);
  world.settle();
  CHECK(drained == 0);
  world.kernel.peer_reads(peer, 50);
  world.settle();
  CHECK(drained == 1);
  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(drained == 1);
}

// Attempts -------------------------------------------------------------------------------------------------------------------

TEST_CASE("an attempt that succeeds is open, and what was sent before goes out") {
  Simulation world(with({.connect = 1s, .receive = 300ms}));
  const int attempt = world.connect();
  CHECK(world.story.opened.empty());
  CHECK(world.story.connection(attempt).send(bytes_of("early")));
  world.run_for(100ms);
  world.kernel.peer_accepts(attempt);
  world.settle();
  CHECK(world.story.opened == std::vector<int>{attempt});
  CHECK(world.kernel.sent(attempt) == "early");
  world.run_for(1s);
  CHECK(world.story.record(attempt).reason == CloseReason::receive_timed_out);
}

TEST_CASE("an attempt that succeeds at once is told in the next turn") {
  Simulation world;
  world.kernel.will_connect_at_once();
  const auto attempt = world.connector->connect("192.0.2.1:80");
  REQUIRE(attempt);
  CHECK(world.story.opened.empty());
  world.settle();
  CHECK(world.story.opened.size() == 1);
}

TEST_CASE("how an attempt fails is told apart, with no on_open") {
  Simulation world(with({.connect = 1s}));
  const auto fails_with = [&](int error) {
    const int attempt = world.connect();
    world.kernel.peer_refuses(attempt, error);
    world.settle();
    CHECK(world.story.record(attempt).phase == Phase::connecting);
    CHECK(world.story.record(attempt).error_number == error);
    return world.story.record(attempt).reason;
  };
  CHECK(fails_with(ECONNREFUSED) == CloseReason::connect_refused);
  CHECK(fails_with(ETIMEDOUT) == CloseReason::connect_timed_out);
  CHECK(fails_with(EHOSTUNREACH) == CloseReason::connect_unreachable);
  CHECK(fails_with(ENETUNREACH) == CloseReason::connect_unreachable);
  CHECK(fails_with(EACCES) == CloseReason::connect_unreachable);
  CHECK(fails_with(ENOBUFS) == CloseReason::connect_failed);
  CHECK(world.story.opened.empty());
}

TEST_CASE("an attempt that fails at once is told by the record, not by the call") {
  Simulation world;
  world.kernel.will_fail(Call::connect, ENETUNREACH);
  const auto attempt = world.connector->connect("192.0.2.1:80");
  REQUIRE(attempt);
  CHECK(world.story.records.empty());
  world.settle();
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == CloseReason::connect_unreachable);
}

TEST_CASE("an attempt that reached itself is no connection") {
  Simulation world;
  const int attempt = world.connect();
  world.kernel.reaches_itself(attempt);
  world.settle();
  CHECK(world.story.record(attempt).reason == CloseReason::self_connect);
  CHECK(world.story.opened.empty());
}

TEST_CASE("a false alarm does not end an attempt") {
  Simulation world;
  const int attempt = world.connect();
  world.kernel.report(attempt, EPOLLOUT);
  world.turn();
  world.kernel.report(attempt, EPOLLIN | EPOLLERR | EPOLLHUP);
  world.turn();
  CHECK(world.story.records.empty());
  CHECK(world.story.opened.empty());
  world.kernel.peer_accepts(attempt);
  world.settle();
  CHECK(world.story.opened == std::vector<int>{attempt});
}

TEST_CASE("an answer that came in time beats the connect deadline though the loop is late") {
  Simulation world(with({.connect = 100ms}));
  const int attempt = world.connect();
  world.kernel.will_oversleep(4s);
  world.kernel.after(50ms, [&] { world.kernel.peer_accepts(attempt); });
  world.run_for(1s);
  CHECK(world.story.opened == std::vector<int>{attempt});
}

TEST_CASE("an attempt may be given up") {
  Simulation world(with({.connect = 1s}));
  const int attempt = world.connect();
  SUBCASE("close") { world.story.connection(attempt).close(); }
  SUBCASE("abort") { world.story.connection(attempt).abort(); }
  world.settle();
  CHECK(world.story.record(attempt).reason == CloseReason::local_close);
  CHECK(world.story.record(attempt).phase == Phase::connecting);
}

TEST_CASE("an attempt that can't be watched ends with system_error") {
  Simulation world;
  world.kernel.will_fail(Call::epoll_control, ENOSPC);
  REQUIRE(world.connector->connect("192.0.2.1:80"));
  world.settle();
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == CloseReason::system_error);
  CHECK(world.story.records[0].error_number == ENOSPC);
}
