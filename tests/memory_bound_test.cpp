// Memory under a peer that never reads: bounded by the option, told exactly, and given back.
#include <doctest/doctest.h>

#include <malloc.h>

#include <cerrno>
#include <chrono>
#include <list>
#include <string>

#include "support/hooks.hpp"
#include "support/recorder.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Error;
using vigil::ListenerOptions;
using vigil::Origin;
using vigil::Reactor;
namespace test = vigil::test;

constexpr std::size_t mebibyte = 1024 * 1024;

/// Bytes the process has allocated. A sanitizer's own allocator says 0, and a check of what was added holds of itself.
std::size_t allocated() {
  const auto info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// Little is taken by the kernel, so that the queue is what grows.
ListenerOptions with_bound(std::size_t bytes) {
  ListenerOptions options;
  options.backlog_bytes_max = bytes;
  options.socket.send_buffer_bytes = 16 * 1024;
  return options;
}

/// What the record says of the bytes sent adds up to what send() took, and to what the peer can have.
void check_sums(const CloseRecord& record, std::size_t taken_by_send, test::Peer& peer, const std::string& stream) {
  INFO(vigil::describe(record));
  CHECK(record.reason == CloseReason::backlog_full);
  CHECK(record.origin == Origin::policy);
  CHECK(record.handed_to_kernel + record.unsent == taken_by_send);
  REQUIRE(record.unacknowledged);
  CHECK(*record.unacknowledged <= record.handed_to_kernel);
  CHECK(record.unsent > 0);
  peer.read();
  CHECK(peer.error == ECONNRESET);  // nobody takes the part for the whole
  CHECK(peer.received.size() >= record.handed_to_kernel - *record.unacknowledged);
  CHECK(peer.received.size() <= record.handed_to_kernel);
  CHECK(test::same(peer.received, stream.substr(0, peer.received.size())));
}

TEST_CASE("what is kept for a peer that never reads is bounded, and the send beyond it ends the connection") {
  constexpr std::size_t bound = 2 * mebibyte;
  std::size_t piece = 0;
  SUBCASE("in small pieces") { piece = 100; }
  SUBCASE("in pieces of a page") { piece = 4096; }
  SUBCASE("in pieces as long as a quarter of the bound") { piece = bound / 4; }
  const std::string stream = test::pattern(bound + mebibyte);
  test::Served<> scene(with_bound(bound));
  test::Peer peer = scene.connect(4096);
  const std::size_t allocated_before = allocated();

  std::size_t taken = 0;
  vigil::Result<void> sent;
  while (sent && taken + piece <= stream.size()) {
    sent = scene.connection().send(stream.substr(taken, piece));
    if (sent) taken += piece;
    REQUIRE(scene.connection().backlog_bytes() <= bound);
    if (taken % (64 * piece) == 0) REQUIRE(scene.reactor.turn(0ns));
  }
  CHECK(sent.error() == Error{"send", ENOBUFS});
  CHECK(scene.connection().backlog_bytes() + piece > bound);  // not a byte earlier
  // What is allocated for it is what is queued, and the rest of the chunks at its ends.
  CHECK(allocated() <= allocated_before + bound + bound / 100 + 64 * 1024);

  const CloseRecord& record = scene.end();
  check_sums(record, taken, peer, stream);
  CHECK(record.received == 0);
  CHECK(allocated() <= allocated_before + mebibyte + 64 * 1024);  // all but a few chunks kept for the next
}

TEST_CASE(
    "a peer that asks for replies and never reads them ends with backlog_full, and what it sent adds up with what it was sent") {
  constexpr std::size_t bound = mebibyte;
  const std::string stream = test::pattern(64 * mebibyte);
  test::Served<> scene(with_bound(bound));
  std::size_t taken = 0, refused = 0;
  scene.log.at_receive = [&](Connection& connection, Bytes bytes) {
    if (connection.send(bytes)) {
      taken += bytes.size();
    } else {
      refused += bytes.size();
    }
    CHECK(connection.backlog_bytes() <= bound);
  };
  test::Peer peer = scene.connect(4096);
  std::size_t asked = 0;
  REQUIRE(scene.turn_until([&] {
    asked += peer.send_some(std::string_view(stream).substr(asked, 64 * 1024));
    return !scene.log.closed.empty() || asked == stream.size();
  }));
  REQUIRE(scene.log.closed.size() == 1);
  const CloseRecord& record = scene.log.closed.front();
  CHECK(record.received == taken + refused);
  CHECK(refused > 0);
  CHECK(record.unconsumed == 0);
  CHECK(record.received + record.left_unread <= asked);
  CHECK(test::same(scene.log.received, stream.substr(0, record.received)));
  peer.error = 0;  // a send may have been told of the reset, which is told once
  peer.read();
  CHECK(record.handed_to_kernel + record.unsent == taken);
  CHECK(record.reason == CloseReason::backlog_full);
  CHECK(peer.received.size() <= record.handed_to_kernel);
  CHECK(test::same(peer.received, stream.substr(0, peer.received.size())));
}

TEST_CASE("many peers that never read cost their bound each, and the others nothing but that") {
  constexpr std::size_t bound = 128 * 1024;
  constexpr std::size_t peers = 40;
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks, with_bound(bound));
  std::list<test::Client> deaf;
  for (std::size_t count = 0; count < peers; ++count) deaf.push_back(test::connect_client(reactor, hooks, server.address));
  test::Client reading = test::connect_client(reactor, hooks, server.address);
  hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  for (test::Client& client : deaf) client.peer.go_deaf();
  const std::size_t allocated_before = allocated();
  const std::string piece = test::pattern(bound / 8);
  for (int round = 0; round < 8; ++round) {
    for (test::Client& client : deaf) CHECK(client.connection->send(piece));
    reading.peer.send("hello");
    CHECK(test::turn_until(reactor,
                           [&] { return reading.peer.read().received.size() == 5U * (static_cast<unsigned>(round) + 1); }));
  }
  CHECK(allocated() <= allocated_before + peers * (bound + bound / 8 + 16 * 1024));
  CHECK(hooks.records.empty());

  for (test::Client& client : deaf)
    while (client.connection->send(piece)) {
    }
  CHECK(test::turn_until(reactor, [&] { return hooks.records.size() == peers; }));
  for (const CloseRecord& record : hooks.records) {
    CHECK(record.reason == CloseReason::backlog_full);
    CHECK((record.handed_to_kernel + record.unsent) % piece.size() == 0);
    CHECK(record.unsent <= bound);
    CHECK(record.unacknowledged == record.handed_to_kernel);  // they acknowledged nothing
  }
  reading.peer.send("hello");
  CHECK(test::turn_until(reactor, [&] { return reading.peer.read().received.size() == 45; }));
  CHECK(allocated() <= allocated_before + mebibyte + 64 * 1024);
}

TEST_CASE("with when_backlogged pause_reading, one that asks and never reads is not read either, and costs the high mark") {
  ListenerOptions options = with_bound(4 * mebibyte);
  options.when_backlogged = vigil::WhenBacklogged::pause_reading;
  options.backlog_high_mark_bytes = 256 * 1024;
  options.backlog_low_mark_bytes = 64 * 1024;
  const std::string stream = test::pattern(8 * mebibyte);
  test::Served<> scene(options);
  std::size_t largest = 0;
  scene.log.at_receive = [&](Connection& connection, Bytes bytes) {
    CHECK(connection.send(bytes));
    largest = std::max(largest, connection.backlog_bytes());
  };
  test::Peer peer = scene.connect(4096);
  const std::size_t allocated_before = allocated();
  // It asks until nothing is taken any more, not by its own kernel either.
  std::size_t asked = 0;
  int idle_turns = 0;
  REQUIRE(scene.turn_until([&] {
    const std::size_t more = peer.send_some(std::string_view(stream).substr(asked, 64 * 1024));
    asked += more;
    idle_turns = more == 0 ? idle_turns + 1 : 0;
    return idle_turns == 20;
  }));
  REQUIRE(asked < stream.size());
  CHECK(scene.log.closed.empty());
  CHECK(largest <= options.backlog_high_mark_bytes + 8 * 64 * 1024);  // and what one turn had already read
  CHECK(allocated() <=
        allocated_before + options.backlog_high_mark_bytes + 8 * 64 * 1024 + scene.log.received.capacity() + mebibyte);

  // Once it reads, everything comes.
  REQUIRE(scene.turn_until([&] {
    asked += peer.send_some(std::string_view(stream).substr(asked, 64 * 1024));
    return peer.read().received.size() == stream.size() || peer.error != 0 || peer.finished;
  }));
  CHECK(test::same(peer.received, stream));
  CHECK(largest <= options.backlog_high_mark_bytes + 8 * 64 * 1024);
}

}  // namespace
