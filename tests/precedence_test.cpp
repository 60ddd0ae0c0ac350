// Which reason wins where two causes are there in the same turn, on real sockets: while the reactor is not turned the peer acts,
// the kernel is seen to know of it, and the deadline passes; then one turn meets both. precedence_sim_test.cpp has every pair.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>

#include "support/network_namespace.hpp"
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
using vigil::Timeouts;
namespace test = vigil::test;

constexpr Duration timeout = 20ms;
constexpr std::size_t mebibyte = 1024 * 1024;

/// What the peer has done when the turn begins.
enum class Deed { sends, finishes, resets, sends_and_finishes, sends_and_resets, finishes_and_resets };

bool sends(Deed deed) { return deed == Deed::sends || deed == Deed::sends_and_finishes || deed == Deed::sends_and_resets; }
bool finishes(Deed deed) {
  return deed == Deed::finishes || deed == Deed::sends_and_finishes || deed == Deed::finishes_and_resets;
}
bool resets(Deed deed) { return deed == Deed::resets || deed == Deed::sends_and_resets || deed == Deed::finishes_and_resets; }

/// The peer acts, and this side's kernel knows of all of it.
void act(test::Peer& peer, Deed deed, int our_descriptor) {
  if (sends(deed)) peer.send("data");
  if (finishes(deed)) peer.finish();
  if (resets(deed)) peer.reset();
  if (sends(deed)) REQUIRE(test::wait_for_unread(our_descriptor, 4));
  REQUIRE(test::wait_for(our_descriptor, static_cast<short>(resets(deed) ? POLLHUP : finishes(deed) ? POLLRDHUP : POLLIN)));
}

void wait_past(Instant instant) {
  REQUIRE(test::wait_until([=] { return test::now() > instant; }));
}

/// A connection whose peer acknowledges nothing, with more sent to it than the kernel takes.
struct Unacknowledged : test::Served<> {
  Unacknowledged() : Served({.socket = {.send_buffer_bytes = 16 * 1024}}), peer(connect()) {
    peer.go_deaf();
    REQUIRE(connection().send(test::pattern(mebibyte)));
    REQUIRE(reactor.turn(0ns));
    REQUIRE(connection().backlog_bytes() > 0);
  }

  /// A deadline of this kind comes due so much later than now: the instant. Some count from the open, send from now.
  Instant run(Deadline kind, Duration from_now) {
    const Instant due = test::now() + from_now;
    REQUIRE(connection().set_timeout(kind, (kind == Deadline::send ? Duration::zero() : connection().age()) + from_now));
    return due;
  }

  test::Peer peer;
};

/// One turn, in which the connection ends, or the next ones, in which what it began is completed.
template <class Scene>
const CloseRecord& meet(Scene& scene) {
  REQUIRE(scene.reactor.turn(0ns));
  return scene.end();
}

void check_end(const CloseRecord& record, CloseReason reason, CutShort cut_short = CutShort::none) {
  INFO(vigil::describe(record));
  CHECK(record.reason == reason);
  CHECK(record.cut_short == cut_short);
}

// The stream against a deadline -----------------------------------------------------------------------------------------------

struct StreamMeetsDeadline {
  const char* name;
  Deed deed;
  Timeouts timeouts;
  CloseReason reason;
};

TEST_CASE("what the stream says comes first, before a deadline that has passed as well") {
  using enum CloseReason;
  static const StreamMeetsDeadline pairs[] = {
      {"the peer's end beats a first_byte deadline", Deed::finishes, {.first_byte = timeout}, peer_finished},
      {"bytes and the peer's end beat a first_byte deadline", Deed::sends_and_finishes, {.first_byte = timeout}, peer_finished},
      {"a reset beats a first_byte deadline", Deed::resets, {.first_byte = timeout}, peer_reset},
      {"bytes and a reset beat a first_byte deadline", Deed::sends_and_resets, {.first_byte = timeout}, peer_reset},
      {"the peer's end beats a receive deadline", Deed::finishes, {.receive = timeout}, peer_finished},
      {"bytes and the peer's end beat a receive deadline", Deed::sends_and_finishes, {.receive = timeout}, peer_finished},
      {"a reset beats a receive deadline", Deed::resets, {.receive = timeout}, peer_reset},
      {"bytes and a reset beat a receive deadline", Deed::sends_and_resets, {.receive = timeout}, peer_reset},
      {"the peer's end beats a message deadline", Deed::finishes, {.message = timeout}, peer_finished},
      {"bytes and the peer's end beat a message deadline", Deed::sends_and_finishes, {.message = timeout}, peer_finished},
      {"a reset beats a message deadline", Deed::resets, {.message = timeout}, peer_reset},
      {"bytes and a reset beat a message deadline", Deed::sends_and_resets, {.message = timeout}, peer_reset},
      {"the peer's end and a reset beat a receive deadline", Deed::finishes_and_resets, {.receive = timeout}, peer_finished},
  };
  for (const StreamMeetsDeadline& pair : pairs) {
    SUBCASE(pair.name) {
      test::Served<> scene({.timeouts = pair.timeouts});
      test::Peer peer = scene.connect();
      const Instant due = test::now() + timeout;
      act(peer, pair.deed, scene.connection().descriptor());
      wait_past(due);
      const CloseRecord& record = meet(scene);
      check_end(record, pair.reason);
      CHECK(scene.log.received == (sends(pair.deed) ? "data" : ""));
    }
  }
}

TEST_CASE("bytes that are there save a connection whose deadline has passed") {
  Timeouts timeouts;
  SUBCASE("first_byte") { timeouts.first_byte = timeout; }
  SUBCASE("receive") { timeouts.receive = timeout; }
  test::Served<> scene({.timeouts = timeouts});
  test::Peer peer = scene.connect();
  const Instant due = test::now() + timeout;
  act(peer, Deed::sends, scene.connection().descriptor());
  wait_past(due);
  REQUIRE(scene.reactor.turn(0ns));
  CHECK(scene.log.closed.empty());
  CHECK(scene.log.received == "data");
}

TEST_CASE("what the stream says comes before a send deadline that has passed as well") {
  using enum CloseReason;
  struct Pair {
    const char* name;
    Deed deed;
    CloseReason reason;
  };
  static constexpr Pair pairs[] = {
      {"bytes are delivered, and don't stop it", Deed::sends, send_timed_out},
      {"the peer's end is heard, and does not stop what is queued for it", Deed::finishes, send_timed_out},
      {"a reset beats it", Deed::resets, peer_reset},
      {"bytes and a reset beat it", Deed::sends_and_resets, peer_reset},
      {"a reset behind the peer's end, which is owed something, beats it", Deed::finishes_and_resets, peer_reset},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      Unacknowledged scene;
      wait_past(scene.run(Deadline::send, timeout));
      act(scene.peer, pair.deed, scene.connection().descriptor());
      const CloseRecord& record = meet(scene);
      check_end(record, pair.reason);
      CHECK(scene.log.received == (sends(pair.deed) ? "data" : ""));
    }
  }
}

TEST_CASE("how a close is cut short: what the stream says comes before a drain deadline that has passed as well") {
  struct Pair {
    const char* name;
    Deed deed;
    CutShort cut_short;
  };
  static constexpr Pair pairs[] = {
      {"bytes are counted, and don't stop it", Deed::sends, CutShort::timed_out},
      {"the peer's end completes the close", Deed::finishes, CutShort::none},
      {"bytes and the peer's end complete the close", Deed::sends_and_finishes, CutShort::none},
      {"a reset cuts it short", Deed::resets, CutShort::reset},
      {"bytes and a reset cut it short", Deed::sends_and_resets, CutShort::reset},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      CloseReason reason = CloseReason::local_close;
      test::Served<> scene({.timeouts = {.drain = timeout}});
      test::Peer peer = scene.connect();
      SUBCASE("close()") { REQUIRE(scene.connection().close()); }
      SUBCASE("shutdown()") {
        REQUIRE(scene.reactor.shutdown(1h));
        reason = CloseReason::server_stopping;
      }
      REQUIRE(scene.reactor.turn(0ns));
      const Instant due = test::now() + timeout;
      act(peer, pair.deed, scene.connection().descriptor());
      wait_past(due);
      const CloseRecord& record = meet(scene);
      check_end(record, reason, pair.cut_short);
      CHECK(record.unconsumed == (sends(pair.deed) ? 4 : 0));
    }
  }
}

TEST_CASE("a reset behind the peer's end comes before a drain deadline that has passed as well") {
  test::Served<test::PatientRecorder> scene({.timeouts = {.drain = timeout}});
  test::Peer peer = scene.connect();
  peer.finish();
  REQUIRE(scene.turn_until([&] { return scene.log.peer_finishes == 1; }));
  const Instant due = test::now() + timeout;
  act(peer, Deed::resets, scene.connection().descriptor());
  wait_past(due);
  check_end(meet(scene), CloseReason::peer_finished);
}

TEST_CASE("the answer to an attempt comes before its deadline that has passed as well") {
  test::Attempted<> scene({.timeouts = {.connect = timeout}});
  SUBCASE("a refusal") {
    const test::ClosedPort nobody;
    const vigil::ConnectionHandle attempt = scene.connect(nobody.address());
    wait_past(test::now() + timeout);
    REQUIRE(test::wait_for(attempt->descriptor(), POLLHUP));
    check_end(meet(scene), CloseReason::connect_refused);
  }
  SUBCASE("an acceptance") {
    const test::PeerListener server;
    const vigil::ConnectionHandle attempt = scene.connect(server.address());
    wait_past(test::now() + timeout);
    REQUIRE(test::wait_for(attempt->descriptor(), POLLOUT));
    REQUIRE(scene.reactor.turn(0ns));
    CHECK(scene.log.opened == 1);
    CHECK(scene.log.closed.empty());
  }
}

// The kernel's own verdict ----------------------------------------------------------------------------------------------------

TEST_CASE("the kernel's own verdict comes before a deadline that has passed as well, and cuts a close short") {
  if (test::skip_without_root()) return;
  using enum CloseReason;
  struct Pair {
    const char* name;
    const char* rule;
    Deadline deadline;
    bool closes;
    CloseReason reason;
    CutShort cut_short;
  };
  static constexpr const char* drop = "drop";
  static constexpr const char* reject = "reject with icmp type host-unreachable";
  static const Pair pairs[] = {
      {"its timeout beats a receive deadline", drop, Deadline::receive, false, network_timed_out, CutShort::none},
      {"its timeout beats a send deadline", drop, Deadline::send, false, network_timed_out, CutShort::none},
      {"its timeout cuts a close short", drop, Deadline::drain, true, local_close, CutShort::timed_out},
      {"its unreachable beats a receive deadline", reject, Deadline::receive, false, network_unreachable, CutShort::none},
      {"its unreachable beats a send deadline", reject, Deadline::send, false, network_unreachable, CutShort::none},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      const test::NetworkNamespace network;
      const auto inside = network.enter();
      test::Served<> scene({.socket = {.user_timeout = 250ms}});
      const test::Peer peer = scene.connect();
      network.run(
          "nft add table ip loss && nft 'add chain ip loss in { type filter hook input priority 0; }' && "
          "nft add rule ip loss in meta l4proto tcp " +
          std::string(pair.rule));
      scene.connection().send("anybody?");
      if (pair.closes) scene.connection().close();
      REQUIRE(scene.reactor.turn(0ns));
      REQUIRE(scene.connection().set_timeout(pair.deadline, scene.connection().age() + timeout));
      const Instant due = test::now() + scene.connection().age() + timeout;
      REQUIRE(test::wait_for(scene.connection().descriptor(), POLLERR));
      wait_past(due);
      const CloseRecord& record = meet(scene);
      check_end(record, pair.reason, pair.cut_short);
      CHECK(record.error_number != 0);
    }
  }
}

// Our own end -----------------------------------------------------------------------------------------------------------------

TEST_CASE("our own end stays what it is, whatever stands behind it in the stream") {
  using enum CloseReason;
  enum class Does {
    close,
    abort,
    close_and_abort,
    shut_down,
    shut_down_at_once,
    close_and_shut_down,
    shut_down_and_close,
    overflow
  };
  struct Pair {
    const char* name;
    Does does;
    Deed behind;
    CloseReason reason;
    CutShort cut_short;
  };
  static constexpr Pair pairs[] = {
      {"close(), the peer's end", Does::close, Deed::sends_and_finishes, local_close, CutShort::none},
      {"close(), a reset", Does::close, Deed::sends_and_resets, local_close, CutShort::reset},
      {"abort(), the peer's end", Does::abort, Deed::sends_and_finishes, local_close, CutShort::none},
      {"abort(), a reset", Does::abort, Deed::sends_and_resets, local_close, CutShort::none},
      {"close(), abort(), a reset", Does::close_and_abort, Deed::sends_and_resets, local_close, CutShort::reset},
      {"shutdown(), the peer's end", Does::shut_down, Deed::sends_and_finishes, server_stopping, CutShort::none},
      {"shutdown(), a reset", Does::shut_down, Deed::sends_and_resets, server_stopping, CutShort::reset},
      {"shutdown() at once, a reset", Does::shut_down_at_once, Deed::sends_and_resets, server_stopping, CutShort::none},
      {"close(), shutdown(), the peer's end", Does::close_and_shut_down, Deed::sends_and_finishes, local_close, CutShort::none},
      {"close(), shutdown(), a reset", Does::close_and_shut_down, Deed::sends_and_resets, local_close, CutShort::reset},
      {"shutdown(), close(), the peer's end", Does::shut_down_and_close, Deed::sends_and_finishes, server_stopping,
       CutShort::none},
      {"a send beyond the bound, the peer's end", Does::overflow, Deed::sends_and_finishes, backlog_full, CutShort::none},
      {"a send beyond the bound, a reset", Does::overflow, Deed::sends_and_resets, backlog_full, CutShort::none},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      test::Served<> scene({.backlog_bytes_max = 1000});
      test::Peer peer = scene.connect();
      scene.log.at_receive = [&](Connection& connection, Bytes) {
        const auto shut_down = [&](Duration drain) { CHECK(scene.reactor.shutdown(drain)); };
        if (pair.does == Does::shut_down || pair.does == Does::shut_down_and_close) shut_down(1h);
        if (pair.does == Does::shut_down_at_once) shut_down(0s);
        if (pair.does == Does::close || pair.does == Does::close_and_abort || pair.does == Does::close_and_shut_down ||
            pair.does == Does::shut_down_and_close)
          connection.close();
        if (pair.does == Does::close_and_shut_down) shut_down(1h);
        if (pair.does == Does::abort || pair.does == Does::close_and_abort) connection.abort();
        if (pair.does == Does::overflow) CHECK_FALSE(connection.send(test::pattern(1001)));
      };
      act(peer, pair.behind, scene.connection().descriptor());
      check_end(meet(scene), pair.reason, pair.cut_short);
      CHECK(scene.log.received == "data");
    }
  }
}

TEST_CASE("what the stream has said stays when our own end follows in the same turn") {
  using enum CloseReason;
  test::Served<> scene;
  test::Peer peer = scene.connect();
  Deed deed = Deed::sends_and_finishes;
  CloseReason reason = peer_finished;
  SUBCASE("the peer's end") {}
  SUBCASE("a reset") {
    deed = Deed::sends_and_resets;
    reason = peer_reset;
  }
  const vigil::ConnectionHandle connection = scene.log.connection;
  SUBCASE("close()") {
    REQUIRE(scene.reactor.post([=] { connection->close(); }));
  }
  SUBCASE("abort()") {
    REQUIRE(scene.reactor.post([=] { connection->abort(); }));
  }
  SUBCASE("shutdown()") {
    REQUIRE(scene.reactor.post([&scene] { CHECK(scene.reactor.shutdown(0s)); }));
  }
  act(peer, deed, scene.connection().descriptor());
  check_end(meet(scene), reason);
}

// Two deadlines ---------------------------------------------------------------------------------------------------------------

TEST_CASE("of deadlines that have all passed the one due earliest wins") {
  struct Pair {
    const char* name;
    Deadline first, second;
    CloseReason reason;
  };
  static constexpr Pair pairs[] = {
      {"first_byte before send", Deadline::first_byte, Deadline::send, CloseReason::first_byte_timed_out},
      {"send before first_byte", Deadline::send, Deadline::first_byte, CloseReason::send_timed_out},
      {"receive before send", Deadline::receive, Deadline::send, CloseReason::receive_timed_out},
      {"send before receive", Deadline::send, Deadline::receive, CloseReason::send_timed_out},
      {"message before send", Deadline::message, Deadline::send, CloseReason::message_timed_out},
      {"send before message", Deadline::send, Deadline::message, CloseReason::send_timed_out},
      {"message before receive", Deadline::message, Deadline::receive, CloseReason::message_timed_out},
      {"receive before message", Deadline::receive, Deadline::message, CloseReason::receive_timed_out},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      Unacknowledged scene;
      scene.run(pair.first, timeout);
      wait_past(scene.run(pair.second, 2 * timeout));
      check_end(meet(scene), pair.reason);
    }
  }
}

}  // namespace
