// A connection's life on real sockets: bytes, ends, resets and deadlines, in every order in which they can meet.
#include "vigil/connection.hpp"

#include <doctest/doctest.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "support/recorder.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::CutShort;
using vigil::Deadline;
using vigil::Duration;
using vigil::Error;
using vigil::Instant;
using vigil::Phase;
namespace test = vigil::test;

constexpr std::size_t mebibyte = 1024 * 1024;

bool refused_with(const vigil::Result<void>& result, const char* operation, int code) {
  return !result && result.error() == Error{operation, code};
}

// Timeout against closure ------------------------------------------------------------------------------------------------

TEST_CASE("data, then silence: the deadline, counted from the data") {
  test::Served<> scene({.timeouts = {.receive = 40ms}});
  test::Peer peer = scene.connect();
  const Instant before = test::now();
  peer.send("hello");

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received == "hello");
  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(scene.log.closed_at - before >= 40ms);
}

TEST_CASE("data, then the peer's end: finished, although a deadline runs") {
  test::Served<> scene({.timeouts = {.receive = 30s}});
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.finish();
  CHECK(scene.end().reason == CloseReason::peer_finished);
  CHECK(scene.log.received == "hello");
}

TEST_CASE("data, then a reset: the data first") {
  test::Served<> scene({.timeouts = {.receive = 30s}});
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.reset();
  CHECK(scene.end().reason == CloseReason::peer_reset);
  CHECK(scene.log.received == "hello");
}

TEST_CASE("what came before a deadline was looked at beats it: a late loop never blames the peer") {
  test::Served<> scene({.timeouts = {.receive = 20ms}});
  test::Peer peer = scene.connect();
  SUBCASE("a byte keeps it open") {
    peer.send("x");
    test::work_for(60ms);
    REQUIRE(scene.reactor.turn(0s));
    CHECK(scene.log.received == "x");
    CHECK(scene.log.closed.empty());
  }
  SUBCASE("the peer's end is told instead") {
    peer.finish();
    test::work_for(60ms);
    CHECK(scene.end().reason == CloseReason::peer_finished);
  }
  SUBCASE("a reset is told instead") {
    peer.reset();
    test::work_for(60ms);
    CHECK(scene.end().reason == CloseReason::peer_reset);
  }
}

TEST_CASE("a byte that comes while a slow callback makes its deadline pass keeps the connection open") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  REQUIRE(scene.reactor.post([&] {
    CHECK(scene.connection().set_timeout(Deadline::receive, 30ms));
    peer.send_some("just in time");
    test::work_for(50ms);
  }));

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received == "just in time");
  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(record.silence >= 30ms);  // counted anew from the byte
}

TEST_CASE("each byte moves the receive deadline: a slow trickle outlives it") {
  test::Served<> scene({.timeouts = {.receive = 200ms}});
  test::Peer peer;
  int left = 20;
  vigil::Timer trickle;
  trickle = vigil::Timer(scene.reactor, [&] {
    peer.send_some("x");
    if (--left > 0) CHECK(trickle.arm_after(20ms));
  });
  scene.log.at_open = [&](Connection&) { CHECK(trickle.arm_after(20ms)); };
  peer = scene.connect();

  const CloseRecord& record = scene.end();

  CHECK(record.received == 20);
  CHECK(record.age >= 20 * 20ms + 200ms);
  CHECK(record.silence >= 200ms);
}

TEST_CASE("a handler that works and then arms a timer gets it no earlier") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  Instant armed_at{}, fired_at{};
  vigil::Timer timer(scene.reactor, [&] { fired_at = test::now(); });
  scene.log.at_receive = [&](Connection&, Bytes) {
    test::work_for(50ms);
    armed_at = test::now();
    CHECK(timer.arm_after(10ms));
  };
  peer.send("x");
  REQUIRE(scene.turn_until([&] { return fired_at != Instant{}; }));
  CHECK(fired_at - armed_at >= 10ms);
}

TEST_CASE("a handler that works longer than its deadline does not shorten the peer's time") {
  test::Served<> scene({.timeouts = {.receive = 30ms}});
  test::Peer peer = scene.connect();
  Instant came_at{};
  scene.log.at_receive = [&](Connection&, Bytes) {
    came_at = test::now();
    test::work_for(50ms);
  };
  peer.send("x");
  CHECK(scene.end().reason == CloseReason::receive_timed_out);
  CHECK(scene.log.closed_at - came_at >= 30ms);
}

TEST_CASE("of several reads in one dispatch the last one counts, whatever the handler asked in between") {
  test::Served<> scene({.timeouts = {.receive = 60ms}}, {.receive_buffer_bytes = 1024, .reads_per_turn = 8});
  test::Peer peer = scene.connect();
  Instant came_at{};
  scene.log.at_receive = [&](Connection& connection, Bytes) {
    came_at = test::now();
    (void)connection.silence();  // reads the clock
    test::work_for(20ms);
  };
  peer.send(test::pattern(8 * 1024));

  const CloseRecord& record = scene.end();

  CHECK(record.received == 8 * 1024);
  CHECK(scene.log.closed_at - came_at >= 60ms);
}

TEST_CASE("a thousand reads in one dispatch are one stream and one deadline") {
  test::Served<> scene({.timeouts = {.receive = 50ms}, .socket = {.receive_buffer_bytes = 4 * 1024 * 1024}},
                       {.receive_buffer_bytes = 1024, .reads_per_turn = 1024});
  test::Peer peer = scene.connect();
  const std::string bytes = test::pattern(4 * mebibyte);
  std::string_view left = bytes;
  REQUIRE(scene.turn_until([&] {
    left.remove_prefix(peer.send_some(left));
    return left.empty();
  }));

  const CloseRecord& record = scene.end();

  CHECK(test::same(scene.log.received, bytes));
  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(record.silence >= 50ms);
}

TEST_CASE("the first byte has its own deadline, and the receive deadline starts with it") {
  test::Served<> scene({.timeouts = {.first_byte = 250ms, .receive = 20ms}});
  test::Peer peer;
  vigil::Timer later(scene.reactor, [&] { peer.send_some("x"); });
  scene.log.at_open = [&](Connection&) { CHECK(later.arm_after(50ms)); };  // past the receive deadline, which does not run yet
  peer = scene.connect();

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(record.received == 1);
  CHECK(record.silence >= 20ms);
  CHECK(record.age >= 70ms);
}

// Payload before verdict --------------------------------------------------------------------------------------------------

/// Lets a peer push all of `bytes` while the scene turns.
void push(test::Scene& scene, test::Peer& peer, std::string_view bytes) {
  REQUIRE(scene.turn_until([&] {
    while (!bytes.empty()) {
      const std::size_t sent = peer.send_some(bytes);
      if (sent == 0) return peer.error != 0;
      bytes.remove_prefix(sent);
    }
    return true;
  }));
}

TEST_CASE("a mebibyte followed at once by the peer's end is delivered whole") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  const std::string bytes = test::pattern(mebibyte);
  push(scene, peer, bytes);
  peer.close();

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(record.received == mebibyte);
  CHECK(test::same(scene.log.received, bytes));
}

TEST_CASE("a reset after everything was acknowledged and before anything was read: all is delivered, then the reset") {
  test::Served<> scene({.socket = {.receive_buffer_bytes = 4 * 1024 * 1024}});
  test::Peer peer = scene.connect();
  // The system may grant less than was asked for; bookkeeping takes its part of it.
  int granted = 0;
  socklen_t length = sizeof granted;
  REQUIRE(::getsockopt(scene.connection().descriptor(), SOL_SOCKET, SO_RCVBUF, &granted, &length) == 0);
  const std::string bytes = test::pattern(std::min(mebibyte, static_cast<std::size_t>(granted) / 4));
  std::string_view left = bytes;
  REQUIRE(test::wait_until([&] {  // the reactor does not turn: nothing is read
    left.remove_prefix(peer.send_some(left));
    return left.empty() && peer.unacknowledged() == 0;
  }));
  peer.reset();

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(record.received == bytes.size());
  CHECK(test::same(scene.log.received, bytes));
}

TEST_CASE("a reset at once: an exact prefix, and the record says how much") {
  for (const std::size_t size : {std::size_t{1}, std::size_t{1000}, mebibyte, 8 * mebibyte}) {
    test::Served<> scene;
    test::Peer peer = scene.connect();
    const std::string bytes = test::pattern(size);
    peer.send_some(bytes);
    peer.reset();

    const CloseRecord& record = scene.end();

    CHECK(record.reason == CloseReason::peer_reset);
    CHECK(record.received == scene.log.received.size());
    CHECK(test::same(scene.log.received, std::string_view(bytes).substr(0, scene.log.received.size())));
  }
}

TEST_CASE("urgent bytes with data behind them lose nothing, and stay where they were sent") {
  test::Served<> scene({.timeouts = {.receive = 20s}});
  test::Peer peer = scene.connect();
  std::string expected;
  for (int round = 0; round < 50; ++round) {
    peer.send("before");
    peer.send_urgent('!');
    peer.send("behind");
    expected += "before!behind";
    if (round % 3 == 0) REQUIRE(scene.turn_until([&] { return scene.log.received.size() == expected.size(); }));
  }
  peer.send_urgent('?');
  expected += '?';
  REQUIRE(scene.turn_until([&] { return scene.log.received.size() == expected.size(); }));
  CHECK(scene.log.received == expected);
  peer.close();
  CHECK(scene.end().reason == CloseReason::peer_finished);
}

TEST_CASE("urgent bytes to a connector's connection lose nothing either") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  scene.connect(listener.address());
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  test::Peer peer = listener.accept();
  peer.send("before");
  peer.send_urgent('!');
  peer.send("behind");
  REQUIRE(scene.turn_until([&] { return scene.log.received.size() == 13; }));
  CHECK(scene.log.received == "before!behind");
}

TEST_CASE("a peer that half-closes after 8 MiB receives every byte of its echo") {
  test::Served<> scene;
  scene.log.at_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  const std::string bytes = test::pattern(8 * mebibyte);
  test::Peer peer = scene.connect();
  push(scene, peer, bytes);
  peer.finish();

  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));

  CHECK(test::same(peer.received, bytes));
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(record.received == bytes.size());
  CHECK(record.handed_to_kernel == bytes.size());
  CHECK(record.unsent == 0);
}

TEST_CASE("a firehose that resets at last has every byte before its reset delivered as a prefix") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  const std::string bytes = test::pattern(4 * mebibyte);
  push(scene, peer, bytes);
  peer.reset();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(test::same(scene.log.received, std::string_view(bytes).substr(0, scene.log.received.size())));
}

// Half-close ------------------------------------------------------------------------------------------------------------

TEST_CASE("without on_peer_finished what is owed to a peer that finished is still sent, then comes our end") {
  test::Served<> scene;
  const std::string answer = test::pattern(3 * mebibyte);
  scene.log.at_receive = [&](Connection& connection, Bytes) { connection.send(answer); };
  test::Peer peer = scene.connect(8192);
  peer.send("request");
  peer.finish();
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(test::same(peer.received, answer));
  CHECK(scene.end().reason == CloseReason::peer_finished);
}

TEST_CASE("with on_peer_finished the handler may go on sending, and its close leaves peer_finished") {
  test::Served<test::PatientRecorder> scene;
  const std::string answer = test::pattern(2 * mebibyte);
  scene.log.at_peer_finish = [&](Connection& connection) { connection.send(answer); };
  test::Peer peer = scene.connect();
  peer.finish();
  REQUIRE(scene.peer_reads(peer, answer.size()));
  CHECK(test::same(peer.received, answer));
  CHECK(scene.log.closed.empty());

  REQUIRE(scene.connection().send("more"));
  REQUIRE(scene.connection().close());

  const CloseRecord& record = scene.end();
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(peer.received.substr(answer.size()) == "more");
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(scene.log.peer_finishes == 1);
}

TEST_CASE("after the peer's end each send starts the drain deadline anew") {
  test::Served<test::PatientRecorder> scene({.timeouts = {.drain = 150ms}});
  test::Peer peer = scene.connect();
  int left = 8;
  Instant last_sent{};
  vigil::Timer later;
  later = vigil::Timer(scene.reactor, [&] {
    last_sent = test::now();
    scene.connection().send("x");
    if (--left > 0) CHECK(later.arm_after(30ms));
  });
  scene.log.at_peer_finish = [&](Connection&) { CHECK(later.arm_after(30ms)); };
  peer.finish();

  const CloseRecord& record = scene.end();

  CHECK(left == 0);
  CHECK(record.reason == CloseReason::drain_timed_out);
  CHECK(record.handed_to_kernel == 8);
  CHECK(scene.log.closed_at - last_sent >= 150ms);
}

TEST_CASE("the receive side's deadlines end with the peer's end") {
  test::Served<test::PatientRecorder> scene({.timeouts = {.receive = 10ms, .drain = 60ms}});
  test::Peer peer = scene.connect();
  peer.finish();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::drain_timed_out);
  CHECK(record.silence >= 60ms);
}

TEST_CASE("finish sends what is queued, then our end, and goes on receiving") {
  test::Served<> scene;
  const std::string bytes = test::pattern(mebibyte);
  test::Peer peer = scene.connect();
  REQUIRE(scene.connection().send(bytes));
  REQUIRE(scene.connection().finish());
  REQUIRE(scene.connection().finish());  // changes nothing
  CHECK(refused_with(scene.connection().send("!"), "send", EPIPE));
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(test::same(peer.received, bytes));

  peer.send("goes on");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "goes on"; }));
  CHECK(scene.log.closed.empty());
  peer.close();

  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(record.phase == Phase::open);
  CHECK(record.unacknowledged == 0u);
}

TEST_CASE("a receive deadline goes on after finish") {
  test::Served<> scene({.timeouts = {.receive = 30ms}});
  scene.log.at_open = [](Connection& connection) { CHECK(connection.finish()); };
  const test::Peer peer = scene.connect();
  CHECK(scene.end().reason == CloseReason::receive_timed_out);
}

TEST_CASE("both ends: a handler that finished ends with its peer, asked or not") {
  test::Served<test::PatientRecorder> scene;
  test::Peer peer = scene.connect();
  SUBCASE("our end first") {
    REQUIRE(scene.connection().finish());
    REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
    peer.finish();
  }
  SUBCASE("the peer's first") {
    scene.log.at_peer_finish = [](Connection& connection) { CHECK(connection.finish()); };
    peer.finish();
  }
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(scene.log.peer_finishes == 1);
}

// Closing -----------------------------------------------------------------------------------------------------------------

TEST_CASE("close flushes, sends our end, and counts and discards what comes meanwhile") {
  test::Served<> scene;
  const std::string bytes = test::pattern(2 * mebibyte);
  test::Peer peer = scene.connect();
  REQUIRE(scene.connection().send(bytes));
  REQUIRE(scene.connection().close());
  CHECK_FALSE(scene.connection().is_open());
  CHECK(refused_with(scene.connection().send("!"), "send", EPIPE));
  CHECK(refused_with(scene.connection().finish(), "finish", EPIPE));
  CHECK(scene.connection().close());  // changes nothing
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(test::same(peer.received, bytes));
  peer.send("too late");
  REQUIRE(scene.turn_until([&] { return scene.connection().received() == 8; }));
  CHECK(scene.log.closed.empty());
  peer.finish();  // late, and in time

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received.empty());
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.phase == Phase::draining);
  CHECK(record.cut_short == CutShort::none);
  CHECK(record.received == 8);
  CHECK(record.handed_to_kernel == bytes.size());
  CHECK(record.unacknowledged == 0u);
}

TEST_CASE("a reset that meets a graceful close is told in cut_short only") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  REQUIRE(scene.connection().close());
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  peer.reset();

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.origin == vigil::Origin::local);
  CHECK(record.cut_short == CutShort::reset);
  CHECK(record.error_number == ECONNRESET);
  CHECK(record.phase == Phase::draining);
}

TEST_CASE("a peer that never closes is awaited for as long as drain says, and no shorter") {
  test::Served<> scene({.timeouts = {.drain = 50ms}});
  test::Peer peer = scene.connect();
  vigil::Timer chatter;
  chatter = vigil::Timer(scene.reactor, [&] {  // bytes that come refresh nothing
    peer.send_some("x");
    CHECK(chatter.arm_after(5ms));
  });
  REQUIRE(chatter.arm_after(5ms));
  const Instant before = test::now();
  REQUIRE(scene.connection().close());

  const CloseRecord& record = scene.end();

  chatter.cancel();
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.cut_short == CutShort::timed_out);
  CHECK(record.phase == Phase::draining);
  CHECK(record.received > 0);
  CHECK(scene.log.received.empty());
  CHECK(scene.log.closed_at - before >= 50ms);
}

TEST_CASE("a peer that reads nothing can't hold a close: without a send deadline drain's duration counts") {
  test::Served<> scene({.timeouts = {.drain = 60ms}, .socket = {.send_buffer_bytes = 16 * 1024}});
  const std::string bytes = test::pattern(mebibyte);
  test::Peer peer = scene.connect(4096);
  const Instant before = test::now();
  REQUIRE(scene.connection().send(bytes));
  REQUIRE(scene.connection().close());

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.cut_short == CutShort::timed_out);
  CHECK(record.unsent > 0);
  CHECK(record.handed_to_kernel + record.unsent == bytes.size());
  CHECK(scene.log.closed_at - before >= 60ms);
  REQUIRE(scene.turn_until([&] { return peer.read().finished || peer.error != 0; }));
  CHECK(peer.error == ECONNRESET);  // a truncated stream is no whole one
}

TEST_CASE("abort resets at once, in every phase, and keeps the reason that was settled") {
  test::Served<test::PatientRecorder> scene;
  test::Peer peer = scene.connect();
  CloseReason expected = CloseReason::local_close;
  CutShort cut_short = CutShort::none;
  SUBCASE("open") {}
  SUBCASE("with bytes queued") { REQUIRE(scene.connection().send(test::pattern(8 * mebibyte))); }
  SUBCASE("draining") {
    REQUIRE(scene.connection().close());
    cut_short = CutShort::reset;
    REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
    peer.finished = false;
  }
  SUBCASE("the peer has finished") {
    peer.finish();
    REQUIRE(scene.turn_until([&] { return scene.log.peer_finishes == 1; }));
  }
  SUBCASE("closing after the peer has finished") {
    expected = CloseReason::peer_finished;
    peer.finish();
    REQUIRE(scene.turn_until([&] { return scene.log.peer_finishes == 1; }));
    REQUIRE(scene.connection().close());
    cut_short = CutShort::reset;
  }
  REQUIRE(scene.connection().abort());
  CHECK(scene.connection().abort());  // changes nothing
  CHECK(scene.log.closed.empty());    // not from inside the call

  const CloseRecord& record = scene.end();

  CHECK(record.reason == expected);
  CHECK(record.cut_short == cut_short);
  int pending = 0;
  socklen_t length = sizeof pending;
  REQUIRE(scene.turn_until(
      [&] { return ::getsockopt(peer.descriptor(), SOL_SOCKET, SO_ERROR, &pending, &length) == 0 && pending != 0; }));
  CHECK((pending == ECONNRESET || pending == EPIPE));
}

TEST_CASE("close after the peer's end was told leaves peer_finished") {
  test::Served<test::PatientRecorder> scene;
  test::Peer peer = scene.connect();
  scene.log.at_peer_finish = [](Connection& connection) {
    CHECK(connection.send("bye"));
    CHECK(connection.close());
    CHECK(refused_with(connection.send("!"), "send", EPIPE));
  };
  peer.finish();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(record.handed_to_kernel == 3);
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(peer.received == "bye");
}

TEST_CASE("close from on_receive discards what the same dispatch still reads") {
  test::Served<> scene({}, {.receive_buffer_bytes = 1024});
  test::Peer peer = scene.connect();
  scene.log.at_receive = [](Connection& connection, Bytes) { connection.close(); };
  peer.send(test::pattern(10'000));
  peer.finish();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.received == 10'000);
  CHECK(scene.log.received.size() == 1024);
  CHECK(record.left_unread == 0);
}

TEST_CASE("abort from on_receive says what was left unread and what was never sent") {
  test::Served<> scene({}, {.receive_buffer_bytes = 1024});
  test::Peer peer = scene.connect();
  scene.log.at_receive = [](Connection& connection, Bytes) {
    connection.send("never sent");
    connection.abort();
    CHECK(refused_with(connection.send("!"), "send", EPIPE));
  };
  peer.send(test::pattern(10'000));
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.received == 1024);
  CHECK(record.left_unread == 10'000 - 1024);
  CHECK(record.unsent == 10);
  CHECK(record.handed_to_kernel == 0);
}

TEST_CASE("a stale handle changes nothing and answers zero") {
  test::Served<> scene;
  test::Peer first = scene.connect();
  const vigil::ConnectionHandle stale = scene.log.connection;
  first.close();
  scene.log.at_close = [&](Connection& connection, const CloseRecord&) { CHECK(connection.handle() == stale); };
  REQUIRE(scene.end().reason == CloseReason::peer_finished);
  scene.log.at_close = nullptr;

  const auto check_stale = [&] {
    CHECK_FALSE(stale);
    CHECK(refused_with(stale->send("x"), "send", EBADF));
    CHECK(refused_with(stale->finish(), "finish", EBADF));
    CHECK(refused_with(stale->close(), "close", EBADF));
    CHECK(refused_with(stale->abort(), "abort", EBADF));
    CHECK(refused_with(stale->set_timeout(Deadline::receive, 1s), "set timeout", EBADF));
    CHECK_FALSE(stale->local_address());
    CHECK(stale->peer() == vigil::Address{});
    CHECK(stale->descriptor() == -1);
    CHECK_FALSE(stale->is_open());
    CHECK(stale->received() == 0);
    CHECK(stale->handed_to_kernel() == 0);
    CHECK(stale->backlog_bytes() == 0);
    CHECK(stale->age() == 0ns);
    CHECK(stale->silence() == 0ns);
  };
  check_stale();
  test::Peer second = scene.connect();  // takes the same slot
  check_stale();
  second.send("alive");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "alive"; }));
  CHECK(vigil::ConnectionHandle {} -> received() == 0);
}

TEST_CASE("inside on_close the handle still lives, and every call is refused") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  const vigil::Address address = scene.connection().peer();
  bool told = false;
  scene.log.at_close = [&](Connection& connection, const CloseRecord&) {
    told = true;
    CHECK(scene.log.connection);
    CHECK(refused_with(connection.send("x"), "send", EPIPE));
    CHECK(refused_with(connection.finish(), "finish", EPIPE));
    CHECK(connection.close());
    CHECK(connection.abort());
    CHECK_FALSE(connection.set_timeout(Deadline::receive, 1s));
    CHECK(connection.peer() == address);
    CHECK(connection.descriptor() == -1);
    CHECK_FALSE(connection.local_address());
    CHECK_FALSE(connection.is_open());
    CHECK(connection.received() == 5);
  };
  peer.send("hello");
  peer.close();
  scene.end();
  REQUIRE(told);
  scene.log.at_close = nullptr;
}

// A reset behind the peer's end -----------------------------------------------------------------------------------------------

TEST_CASE("the peer's end and a reset, both before we look: finished if it was owed nothing, else reset") {
  test::Served<> scene;
  test::Peer peer = scene.connect(4096);
  SUBCASE("owed nothing") {
    peer.send("hello");
    peer.finish();
    peer.reset();
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_finished);
    CHECK(scene.log.received == "hello");
  }
  SUBCASE("owed bytes that were queued") {
    REQUIRE(scene.connection().send(test::pattern(8 * mebibyte)));
    REQUIRE(scene.turn_until([&] { return scene.connection().handed_to_kernel() > 0; }));
    peer.send("hello");
    peer.finish();
    peer.reset();
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_reset);
    CHECK(record.error_number == EPIPE);
    CHECK(record.unsent > 0);
    CHECK(scene.log.received == "hello");
  }
  SUBCASE("owed what its own last bytes asked for") {
    scene.log.at_receive = [](Connection& connection, Bytes) { connection.send("answer"); };
    peer.send("question");
    peer.finish();
    peer.reset();
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_reset);
    CHECK(record.unsent == 6);
    CHECK(record.handed_to_kernel == 0);
    CHECK(scene.log.received == "question");
  }
}

TEST_CASE("a reset after the peer's end was told: finished if it was owed nothing, else reset") {
  test::Served<test::PatientRecorder> scene;
  test::Peer peer = scene.connect(4096);
  peer.finish();
  REQUIRE(scene.turn_until([&] { return scene.log.peer_finishes == 1; }));
  SUBCASE("owed nothing") {
    peer.reset();
    CHECK(scene.end().reason == CloseReason::peer_finished);
  }
  SUBCASE("owed what was sent since") {
    REQUIRE(scene.connection().send(test::pattern(8 * mebibyte)));
    REQUIRE(scene.turn_until([&] { return scene.connection().handed_to_kernel() > 0; }));
    peer.reset();
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_reset);
    CHECK(record.unsent > 0);
  }
  SUBCASE("owed while closing") {
    REQUIRE(scene.connection().send(test::pattern(8 * mebibyte)));
    REQUIRE(scene.connection().close());
    REQUIRE(scene.turn_until([&] { return scene.connection().handed_to_kernel() > 0; }));
    peer.reset();
    CHECK(scene.end().reason == CloseReason::peer_reset);
  }
  SUBCASE("learned by sending") {
    peer.reset();
    REQUIRE(scene.connection().send("into the void"));
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_reset);
    CHECK(record.unsent == 13);
  }
}

TEST_CASE("bytes the peer's kernel has acknowledged are no debt: a reset behind the peer's end is an orderly end then") {
  test::Served<test::PatientRecorder> scene;
  test::Peer peer = scene.connect();
  peer.finish();
  REQUIRE(scene.turn_until([&] { return scene.log.peer_finishes == 1; }));
  REQUIRE(scene.connection().send("unread"));
  REQUIRE(scene.turn_until([&] {
    int outstanding = 0;
    return scene.connection().handed_to_kernel() == 6 && ::ioctl(scene.connection().descriptor(), SIOCOUTQ, &outstanding) == 0 &&
           outstanding == 0;
  }));
  peer.close();  // with unread bytes, which makes it a reset
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_finished);
  CHECK(record.unacknowledged == 0u);
}

// Sending -----------------------------------------------------------------------------------------------------------------

TEST_CASE("16 MiB and more arrive intact at a slow reader") {
  test::Served<> scene({.backlog_bytes_max = 32 * mebibyte});
  const std::string bytes = test::pattern(20 * mebibyte);
  test::Peer peer = scene.connect(32 * 1024);
  REQUIRE(scene.connection().send(bytes));
  while (peer.received.size() < bytes.size())
    REQUIRE(scene.peer_reads(peer, std::min(bytes.size(), peer.received.size() + 100'000)));
  CHECK(test::same(peer.received, bytes));
  CHECK(scene.connection().handed_to_kernel() == bytes.size());
  CHECK(scene.connection().backlog_bytes() == 0);
}

TEST_CASE("the bound on queued bytes is exact, also with gathered ones, and the refused send takes nothing") {
  test::Served<> scene({.backlog_bytes_max = 1000});
  bool refused_too_much = false, took_the_bound = false;
  scene.log.at_receive = [&](Connection& connection, Bytes) {
    took_the_bound = bool(connection.send(test::pattern(600))) && bool(connection.send(test::pattern(400)));
    CHECK(connection.backlog_bytes() == 1000);
    refused_too_much = refused_with(connection.send("!"), "send", ENOBUFS);
    CHECK(refused_with(connection.send("!"), "send", EPIPE));  // over
  };
  test::Peer peer = scene.connect();
  peer.send("x");
  const CloseRecord& record = scene.end();
  CHECK(took_the_bound);
  CHECK(refused_too_much);
  CHECK(record.reason == CloseReason::backlog_full);
  CHECK(record.unsent == 1000);
  CHECK(record.handed_to_kernel == 0);
  CHECK(scene.log.closed.size() == 1);
}

TEST_CASE("one piece beyond the bound is refused, whatever the kernel might have taken") {
  test::Served<> scene({.backlog_bytes_max = 1000});
  const test::Peer peer = scene.connect();
  CHECK(refused_with(scene.connection().send(test::pattern(1001)), "send", ENOBUFS));
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::backlog_full);
  CHECK(record.unsent == 0);
  CHECK(record.handed_to_kernel == 0);
}

TEST_CASE("on_send_drained comes once each time the queue falls from above the high mark to the low one") {
  test::Served<> scene(
      {.socket = {.send_buffer_bytes = 16 * 1024}, .backlog_high_mark_bytes = 300'000, .backlog_low_mark_bytes = 50'000});
  std::vector<std::size_t> backlogs;
  scene.log.at_drained = [&](Connection& connection) { backlogs.push_back(connection.backlog_bytes()); };
  test::Peer peer = scene.connect(8192);
  std::size_t sent = 0;
  for (int round = 1; round <= 3; ++round) {
    REQUIRE(scene.connection().send(test::pattern(mebibyte)));
    sent += mebibyte;
    REQUIRE(scene.peer_reads(peer, sent));
    REQUIRE(scene.turn_until([&] { return scene.connection().backlog_bytes() == 0; }));
    CHECK(scene.log.drained == round);
    REQUIRE(scene.connection().send(test::pattern(200'000)));  // below the high mark: not told
    sent += 200'000;
    REQUIRE(scene.peer_reads(peer, sent));
    REQUIRE(scene.turn_until([&] { return scene.connection().backlog_bytes() == 0; }));
    CHECK(scene.log.drained == round);
  }
  for (const std::size_t backlog : backlogs) CHECK(backlog <= 50'000);
}

TEST_CASE("on_send_drained can keep the queue full: a stream of any length through a bounded queue") {
  test::Served<> scene({.backlog_bytes_max = 300'000, .backlog_high_mark_bytes = 100'000, .backlog_low_mark_bytes = 50'000});
  const std::string bytes = test::pattern(10 * mebibyte);
  std::size_t sent = 0;
  const auto fill = [&](Connection& connection) {
    while (sent < bytes.size() && connection.backlog_bytes() <= 100'000) {
      const Bytes piece = Bytes(bytes).without_first(sent).first(64 * 1024);
      CHECK(connection.send(piece));
      sent += piece.size();
    }
    if (sent == bytes.size()) connection.close();
  };
  scene.log.at_open = fill;
  scene.log.at_drained = fill;
  test::Peer peer = scene.connect();
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(test::same(peer.received, bytes));
  peer.close();
  CHECK(scene.end().reason == CloseReason::local_close);
}

TEST_CASE("many small sends of one dispatch leave in one system call") {
  test::Served<> scene;
  std::string expected;
  scene.log.at_receive = [&](Connection& connection, Bytes) {
    for (int index = 0; index < 100; ++index) {
      const std::string piece = "piece " + std::to_string(index) + '\n';
      connection.send(piece);
      expected += piece;
    }
  };
  test::Peer peer = scene.connect();
  const std::uint64_t calls_before = scene.reactor.counters().send_calls;
  peer.send("x");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "x"; }));
  CHECK(scene.reactor.counters().send_calls == calls_before + 1);
  REQUIRE(scene.peer_reads(peer, expected.size()));
  CHECK(peer.received == expected);
}

TEST_CASE("pieces of every size keep their order, through the gather buffer, the kernel and the queue") {
  test::Served<> scene({}, {.gather_buffer_bytes = 2048});
  const std::string source = test::pattern(256 * 1024);
  const std::size_t sizes[] = {1, 10, 100, 1000, 2047, 2048, 2049, 8191, 8192, 8193, 20'000, 70'000};
  std::string expected;
  std::uint32_t state = 7;
  scene.log.at_receive = [&](Connection& connection, Bytes bytes) {
    for (std::size_t index = 0; index < 8 * bytes.size(); ++index) {
      state = state * 1664525 + 1013904223;
      const std::size_t size = sizes[(state >> 16) % std::size(sizes)];
      const std::string_view piece = std::string_view(source).substr((state >> 8) % 100'000, size);
      connection.send(piece);
      expected += piece;
    }
  };
  test::Peer peer = scene.connect(16 * 1024);
  for (std::size_t round = 1; round <= 40; ++round) {
    peer.send("xx");
    REQUIRE(scene.turn_until([&] { return scene.log.received.size() == 2 * round; }));
    REQUIRE(scene.peer_reads(peer, expected.size() / 2));
  }
  REQUIRE(scene.peer_reads(peer, expected.size()));
  CHECK(test::same(peer.received, expected));
}

TEST_CASE("writes to another connection from a callback, a timer and a task leave in the same turn") {
  test::Served<> scene;
  test::Peer idle = scene.connect();
  const vigil::ConnectionHandle target = scene.log.connection;
  test::Peer talker = scene.connect();
  std::string expected;
  std::uint64_t turns_at_write = 0;
  const auto write = [&](std::string_view text) {
    target->send(text);
    expected += text;
    turns_at_write = scene.reactor.counters().turns;
  };
  const auto check_left = [&] {
    REQUIRE(scene.turn_until([&] { return turns_at_write != 0; }));
    CHECK(scene.reactor.counters().turns == turns_at_write);
    CHECK(target->handed_to_kernel() == expected.size());
    turns_at_write = 0;
  };
  scene.log.at_receive = [&](Connection&, Bytes) { write("from a callback,"); };
  talker.send("x");
  check_left();
  vigil::Timer timer(scene.reactor, [&] { write("from a timer,"); });
  REQUIRE(timer.arm_after(0s));
  check_left();
  REQUIRE(scene.reactor.post([&] { write("from a task"); }));
  check_left();
  REQUIRE(scene.peer_reads(idle, expected.size()));
  CHECK(idle.received == expected);
}

TEST_CASE("bytes sent between turns leave in the next one, small and large in order") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  const std::string large = test::pattern(50'000);
  REQUIRE(scene.connection().send("small,"));
  REQUIRE(scene.connection().send(large));
  REQUIRE(scene.connection().send(",small"));
  REQUIRE(scene.connection().send(""));  // nothing is nothing
  REQUIRE(scene.peer_reads(peer, 50'012));
  CHECK(test::same(peer.received, "small," + large + ",small"));
}

TEST_CASE("a send deadline is never early, and at most an eighth late where the machine is not") {
  // Lateness is the machine's as well: one round of twenty must be in time, and none may be early.
  bool in_time = false;
  for (int round = 0; round < 20 && !in_time; ++round) {
    constexpr Duration timeout = 160ms;
    test::Served<> scene({.timeouts = {.send = timeout}, .socket = {.send_buffer_bytes = 32 * 1024}});
    const test::Peer peer = scene.connect(4096);
    REQUIRE(scene.connection().send(test::pattern(mebibyte)));
    // The kernel's own record of what was acknowledged: the last progress came after one look and before the next.
    std::uint64_t acknowledged = 0;
    Instant last_look = test::now(), progress_after = last_look, progress_before = last_look;
    REQUIRE(scene.turn_until([&] {
      int outstanding = 0;
      if (!scene.log.closed.empty() || ::ioctl(scene.connection().descriptor(), SIOCOUTQ, &outstanding) != 0) return true;
      const std::uint64_t handed = scene.connection().handed_to_kernel();
      const Instant look = test::now();
      if (handed - static_cast<std::uint64_t>(outstanding) != acknowledged) {
        acknowledged = handed - static_cast<std::uint64_t>(outstanding);
        progress_after = last_look;
        progress_before = look;
      }
      last_look = look;
      return false;
    }));
    CHECK(scene.end().reason == CloseReason::send_timed_out);
    CHECK(scene.log.closed_at - progress_after >= timeout);
    in_time = scene.log.closed_at - progress_before <= timeout + timeout / 8 + 1ms;
  }
  CHECK(in_time);
}

TEST_CASE("a slow reader that keeps reading is not closed by a send deadline") {
  test::Served<> scene({.timeouts = {.send = 1s}, .socket = {.send_buffer_bytes = 32 * 1024}});
  const std::string bytes = test::pattern(1'000'000);
  test::Peer peer = scene.connect(8192);
  REQUIRE(scene.connection().send(bytes));
  vigil::Timer reader;
  reader = vigil::Timer(scene.reactor, [&] {
    peer.read(4000);
    CHECK(reader.arm_after(5ms));
  });
  REQUIRE(reader.arm_after(5ms));
  REQUIRE(scene.turn_until([&] { return peer.received.size() == bytes.size() || !scene.log.closed.empty(); }));
  CHECK(scene.log.closed.empty());
  CHECK(test::same(peer.received, bytes));
}

TEST_CASE("a send deadline does not run while nothing is outstanding") {
  test::Served<> scene({.timeouts = {.receive = 700ms, .send = 350ms}});
  test::Peer peer = scene.connect();
  REQUIRE(scene.connection().send("hello"));
  REQUIRE(scene.peer_reads(peer, 5));
  CHECK(scene.end().reason == CloseReason::receive_timed_out);  // well after the send deadline would have passed
}

TEST_CASE("opening, queries and counters tell what the kernel tells") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  sockaddr_in own{};
  socklen_t length = sizeof own;
  REQUIRE(::getsockname(peer.descriptor(), reinterpret_cast<sockaddr*>(&own), &length) == 0);
  CHECK(scene.connection().peer() == test::loopback(ntohs(own.sin_port)));
  const auto local = scene.connection().local_address();
  REQUIRE(local);
  CHECK(*local == *scene.listener.address());
  CHECK(scene.connection().is_open());
  peer.send("hello");
  REQUIRE(scene.turn_until([&] { return scene.connection().received() == 5; }));
  CHECK(scene.reactor.counters().received_bytes == 5);
  CHECK(scene.reactor.counters().opened == 1);
  CHECK(scene.reactor.counters().closed == 0);
  CHECK(scene.connection().silence() <= scene.connection().age());
}

TEST_CASE("an IPv6 connection lives the same life") {
  test::Served<> scene({}, {}, *vigil::Address::parse("[::1]:0"));
  scene.log.at_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  test::Peer peer = scene.connect();
  CHECK(scene.connection().peer().family() == vigil::Address::Family::ipv6);
  peer.send("hello");
  peer.finish();
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(peer.received == "hello");
  CHECK(scene.end().reason == CloseReason::peer_finished);
}

// Layers of defaults -----------------------------------------------------------------------------------------------------------

TEST_CASE("the nearest layer's deadline counts") {
  const test::ProcessTimeouts process;
  process.set(Deadline::receive, 40ms);
  vigil::ListenerOptions options;
  vigil::ReactorOptions reactor_options;
  vigil::Timeout own = vigil::inherit;
  SUBCASE("the process's alone") {}
  SUBCASE("the reactor's over the process's") {
    process.set(Deadline::receive, 30s);
    reactor_options.timeouts.receive = 40ms;
  }
  SUBCASE("the listener's over the reactor's") {
    reactor_options.timeouts.receive = 30s;
    options.timeouts.receive = 40ms;
  }
  SUBCASE("the connection's over the listener's") {
    options.timeouts.receive = 30s;
    own = 40ms;
  }
  test::Served<> scene(options, reactor_options);
  scene.log.at_open = [&](Connection& connection) {
    if (own.is_inherit()) CHECK(connection.set_timeout(Deadline::receive, 30s));  // and back
    CHECK(connection.set_timeout(Deadline::receive, own));
  };
  const test::Peer peer = scene.connect();

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(record.silence >= 40ms);
}

TEST_CASE("never in a nearer layer beats a duration in a farther one") {
  const test::ProcessTimeouts process;
  process.set(Deadline::receive, 20ms);
  test::Served<> scene({.timeouts = {.receive = vigil::never}});
  test::Peer patient = scene.connect();
  const vigil::ConnectionHandle kept = scene.log.connection;
  const test::Peer judged = scene.connect();
  REQUIRE(scene.connection().set_timeout(Deadline::receive, 80ms));

  scene.end();  // of the one judged: four times the process's default has passed

  CHECK(scene.log.closed.size() == 1);
  CHECK(kept->is_open());
  patient.send("still here");
  CHECK(scene.turn_until([&] { return scene.log.received == "still here"; }));
}

TEST_CASE("a new process default changes no open connection, only those accepted afterwards") {
  const test::ProcessTimeouts process;
  test::Served<> scene;
  const test::Peer before = scene.connect();
  const vigil::ConnectionHandle opened_before = scene.log.connection;
  process.set(Deadline::receive, 40ms);
  const test::Peer after = scene.connect();
  const vigil::ConnectionHandle opened_after = scene.log.connection;

  const CloseRecord& record = scene.end();

  CHECK(record.reason == CloseReason::receive_timed_out);
  CHECK(record.silence >= 40ms);
  CHECK_FALSE(opened_after);
  CHECK(opened_before->is_open());
}

TEST_CASE("one connection's own timeout is no other's") {
  test::Served<> scene({.timeouts = {.receive = vigil::never}});
  const test::Peer first = scene.connect();
  const vigil::ConnectionHandle short_lived = scene.log.connection;
  REQUIRE(short_lived->set_timeout(Deadline::receive, 30ms));
  const test::Peer second = scene.connect();
  const vigil::ConnectionHandle other = scene.log.connection;
  scene.end();
  CHECK_FALSE(short_lived);
  CHECK(other->is_open());
  CHECK(scene.log.closed.size() == 1);
}

TEST_CASE("a timeout set on a running deadline counts from its old start") {
  test::Served<> scene({.timeouts = {.receive = 30s}});
  test::Peer peer = scene.connect();
  peer.send("x");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "x" && scene.connection().silence() >= 30ms; }));
  REQUIRE(scene.connection().set_timeout(Deadline::receive, 20ms));  // has passed already
  REQUIRE(scene.reactor.turn(0s));
  CHECK(scene.log.closed.size() == 1);
  CHECK(scene.end().reason == CloseReason::receive_timed_out);
}

TEST_CASE("a timeout that can't be is refused and changes nothing") {
  test::Served<> scene({.timeouts = {.receive = 40ms}});
  scene.log.at_open = [](Connection& connection) {
    CHECK(refused_with(connection.set_timeout(Deadline::receive, 0s), "set timeout", EINVAL));
    CHECK(refused_with(connection.set_timeout(Deadline::receive, -1s), "set timeout", EINVAL));
    CHECK(refused_with(connection.set_timeout(Deadline::receive, 999us), "set timeout", EINVAL));
    CHECK(refused_with(connection.set_timeout(Deadline::receive, std::chrono::years(11)), "set timeout", EINVAL));
    CHECK(refused_with(connection.set_timeout(Deadline::drain, vigil::never), "set timeout", EINVAL));
    CHECK(refused_with(connection.set_timeout(Deadline::accept, 1s), "set timeout", EINVAL));
  };
  const test::Peer peer = scene.connect();
  CHECK(scene.end().reason == CloseReason::receive_timed_out);
}

TEST_CASE("of deadlines due together the one due earliest is told") {
  test::Served<> scene({.timeouts = {.receive = 30ms, .send = 60ms}, .socket = {.send_buffer_bytes = 32 * 1024}});
  const test::Peer peer = scene.connect(4096);
  REQUIRE(scene.connection().send(test::pattern(mebibyte)));
  REQUIRE(scene.reactor.turn(0s));
  test::work_for(200ms);  // both have passed
  CHECK(scene.end().reason == CloseReason::receive_timed_out);
}

}  // namespace
