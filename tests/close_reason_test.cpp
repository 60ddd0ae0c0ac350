// Every close reason, produced by real kernel sockets and told with its evidence. The last check fails if one was never seen.
#include "vigil/close_record.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

#include "support/last_check.hpp"
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
using vigil::Origin;
using vigil::Phase;
namespace test = vigil::test;

int missing_reasons() {
  const test::ReasonsSeen& reasons = test::reasons_seen();
  int missing = 0;
  for (std::size_t index = 0; index < vigil::close_reason_count; ++index) {
    if (reasons.seen[index] || reasons.excused[index]) continue;
    ++missing;
    std::printf("MISSING: no real connection ended with %s\n", vigil::to_string(static_cast<CloseReason>(index)));
  }
  return missing;
}

const test::LastCheck every_reason_was_seen(missing_reasons);

/// For reasons that take a network of one's own.
bool skip_without_root(CloseReason reason) {
  if (!test::skip_without_root()) return false;
  test::reasons_seen().excused[static_cast<std::size_t>(reason)] = true;
  return true;
}

void check_cause(const CloseRecord& record, CloseReason reason, Origin origin, Phase phase, int error_number = 0,
                 const std::string& operation = "") {
  INFO(vigil::describe(record));
  CHECK(record.reason == reason);
  CHECK(record.origin == origin);
  CHECK(record.phase == phase);
  CHECK(record.error_number == error_number);
  CHECK(std::string(record.operation) == operation);
  CHECK(record.silence <= record.age);
  CHECK(record.unconsumed == 0);
}

void check_bytes(const CloseRecord& record, std::uint64_t received, std::uint64_t handed_to_kernel, std::uint64_t unsent = 0) {
  INFO(vigil::describe(record));
  CHECK(record.received == received);
  CHECK(record.handed_to_kernel == handed_to_kernel);
  CHECK(record.unsent == unsent);
  CHECK(record.left_unread == 0);
}

TEST_CASE("local_close: this program closed it, and the peer's end was awaited") {
  test::Served<> scene;
  scene.log.at_receive = [](Connection& connection, Bytes) {
    connection.send("bye");
    connection.close();
  };
  test::Peer peer = scene.connect();
  peer.send("hello");
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(scene.log.closed.empty());
  peer.close();

  const CloseRecord& record = scene.end();

  CHECK(peer.received == "bye");
  check_cause(record, CloseReason::local_close, Origin::local, Phase::draining);
  check_bytes(record, 5, 3);
  CHECK(record.unacknowledged == 0u);
  CHECK(record.cut_short == CutShort::none);
}

TEST_CASE("peer_finished: the peer ended its stream in order and all it sent was delivered") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.close();

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received == "hello");
  check_cause(record, CloseReason::peer_finished, Origin::peer, Phase::open);
  check_bytes(record, 5, 0);
  CHECK(record.unacknowledged == 0u);
}

TEST_CASE("peer_reset: what the peer sent before its reset is delivered first") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.reset();

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received == "hello");
  check_cause(record, CloseReason::peer_reset, Origin::peer, Phase::open, ECONNRESET, "recv");
  check_bytes(record, 5, 0);
}

TEST_CASE("connect_refused: nobody listens there") {
  const test::ClosedPort nobody;
  test::Attempted<> scene;
  scene.connect(nobody.address());

  const CloseRecord& record = scene.end();

  CHECK(scene.log.opened == 0);
  check_cause(record, CloseReason::connect_refused, Origin::peer, Phase::connecting, ECONNREFUSED, "connect");
  check_bytes(record, 0, 0);
  CHECK_FALSE(record.unacknowledged);
}

TEST_CASE("connect_timed_out: the attempt got no answer within its deadline") {
  const test::FullBacklog silent;
  test::Attempted<> scene({.timeouts = {.connect = 50ms}});
  scene.connect(silent.address());

  const CloseRecord& record = scene.end();

  CHECK(scene.log.opened == 0);
  check_cause(record, CloseReason::connect_timed_out, Origin::policy, Phase::connecting);
  check_bytes(record, 0, 0);
  CHECK(record.age >= 50ms);
}

TEST_CASE("connect_unreachable: there is no way to a broadcast address") {
  test::Attempted<> scene;
  scene.connect(vigil::Address::from_ipv4({127, 255, 255, 255}, 7));

  const CloseRecord& record = scene.end();

  CHECK(scene.log.opened == 0);
  check_cause(record, CloseReason::connect_unreachable, Origin::network, Phase::connecting, ENETUNREACH, "connect");
}

TEST_CASE("connect_failed: no local port was left") {
  if (skip_without_root(CloseReason::connect_failed)) return;
  const test::NetworkNamespace network;
  network.run("echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range");
  const auto inside = network.enter();
  const test::PeerListener listener(test::loopback(7000));
  const test::Peer takes_the_only_port(listener.address());
  test::Attempted<> scene;
  scene.connect(listener.address());

  const CloseRecord& record = scene.end();

  CHECK(scene.log.opened == 0);
  check_cause(record, CloseReason::connect_failed, Origin::local, Phase::connecting, EADDRNOTAVAIL, "connect");
}

TEST_CASE("self_connect: the attempt reached its own socket") {
  vigil::Address own;
  {
    const test::ClosedPort free;
    own = free.address();
  }
  test::Attempted<> scene({.source = own});
  scene.connect(own);

  const CloseRecord& record = scene.end();

  CHECK(scene.log.opened == 0);
  check_cause(record, CloseReason::self_connect, Origin::local, Phase::connecting);
  check_bytes(record, 0, 0);
}

struct ShedEvents {
  explicit ShedEvents(test::Scene& its_scene) : scene(&its_scene) {}
  void on_shed(const CloseRecord& record) {
    test::report_reason(record);
    ++scene->shed;
    if (!first) first = record;
  }
  void on_accept_paused(const vigil::Error& error, vigil::Duration) { paused_by = error.code; }
  void on_accept_resumed(vigil::Duration) { resumed = true; }

  test::Scene* scene;
  std::optional<CloseRecord> first;
  int paused_by = 0;
  bool resumed = false;
};

TEST_CASE("accept_shed: no descriptor was left for it, and its peer is told at once") {
  test::Scene scene;
  ShedEvents events(scene);
  vigil::Listener<test::Recorder> listener(
      scene.reactor, {}, [&](Connection& connection) { return test::Recorder(scene.log, connection); }, events);
  REQUIRE(listener.listen(test::loopback()));
  test::Peer peer(*listener.address());
  {
    const test::NoDescriptorsLeft none_left;
    REQUIRE(scene.turn_until([&] { return events.first && peer.read().error != 0; }));
  }

  CHECK(peer.error == ECONNRESET);
  check_cause(*events.first, CloseReason::accept_shed, Origin::policy, Phase::connecting, EMFILE, "accept");
  check_bytes(*events.first, 0, 0);
  CHECK(events.paused_by == EMFILE);
  CHECK(scene.reactor.counters().shed == scene.shed);
  CHECK(scene.log.closed.empty());

  // Once there are descriptors again, whoever comes is served.
  const test::Peer next(*listener.address());
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  CHECK(events.resumed);
}

TEST_CASE("first_byte_timed_out: not a single byte came in time") {
  test::Served<> scene({.timeouts = {.first_byte = 30ms, .receive = 10ms}});
  const test::Peer peer = scene.connect();

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::first_byte_timed_out, Origin::policy, Phase::open);
  check_bytes(record, 0, 0);
  CHECK(record.silence >= 30ms);
}

TEST_CASE("receive_timed_out: no byte came for as long as the deadline allows") {
  test::Served<> scene({.timeouts = {.receive = 30ms}});
  test::Peer peer = scene.connect();
  peer.send("hello");

  const CloseRecord& record = scene.end();

  CHECK(scene.log.received == "hello");
  check_cause(record, CloseReason::receive_timed_out, Origin::policy, Phase::open);
  check_bytes(record, 5, 0);
  CHECK(record.silence >= 30ms);
}

/// Waits for a newline.
struct LineReader : test::Recorder {
  using Recorder::Recorder;
  std::size_t on_receive(Connection& connection, Bytes bytes) {
    Recorder::on_receive(connection, bytes);
    return bytes.text().find('\n') + 1;  // none: npos + 1 is 0
  }
};

TEST_CASE("message_too_large: on_receive left more than it may") {
  test::Served<LineReader> scene({.message_bytes_max = 1000});
  test::Peer peer = scene.connect();
  peer.send("a line\n" + std::string(1001, 'x'));

  const CloseRecord& record = scene.end();

  INFO(vigil::describe(record));
  CHECK(record.reason == CloseReason::message_too_large);
  CHECK(record.origin == Origin::policy);
  CHECK(record.phase == Phase::open);
  CHECK(record.unconsumed == 1001);
  check_bytes(record, 1008, 0);
}

TEST_CASE("send_timed_out: the peer acknowledged nothing for as long as the deadline allows") {
  test::Served<> scene({.timeouts = {.send = 80ms}, .socket = {.send_buffer_bytes = 64 * 1024}});
  const std::string bytes = test::pattern(4 * 1024 * 1024);
  scene.log.at_open = [&](Connection& connection) { connection.send(bytes); };
  const test::Peer peer = scene.connect(4096);

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::send_timed_out, Origin::policy, Phase::open);
  CHECK(record.handed_to_kernel + record.unsent == bytes.size());
  CHECK(record.unsent > 0);
  CHECK(record.unacknowledged.value_or(0) > 0);
  CHECK(record.age >= 80ms);
}

TEST_CASE("heartbeat_lost: the peer's process hangs, and its kernel gives it away") {
  vigil::ListenerOptions options;
  options.heartbeat.budget = 2s;
  options.heartbeat.ping = "ping";
  test::Served<> scene(options);
  const test::Peer peer = scene.connect();  // it never reads, and never answers

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::heartbeat_lost, Origin::policy, Phase::open);
  CHECK(record.age >= 2s);
  CHECK(record.verdict == vigil::Verdict::hung);
  REQUIRE(record.evidence);
  CHECK(record.evidence->acknowledged_in_silence);
  CHECK(record.evidence->sent_in_silence >= 4);
  CHECK(vigil::describe(record).find("the peer is hung") != std::string::npos);
  CHECK(vigil::to_json(record).find(R"("verdict":"hung")") != std::string::npos);
  CHECK(vigil::to_json(record).find(R"("evidence":{"known":true)") != std::string::npos);
}

TEST_CASE("message_timed_out: a message that had begun was not whole in time, though bytes came") {
  test::Served<> scene({.timeouts = {.receive = 30s, .message = 60ms}});
  scene.log.at_receive = [](Connection& connection, Bytes bytes) {
    if (bytes.text().ends_with('\n')) connection.end_message();
  };
  test::Peer peer = scene.connect();
  peer.send("one\n");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "one\n"; }));
  const auto ended = test::now();
  REQUIRE(scene.turn_until([&] { return test::now() >= ended + 150ms; }));  // between messages nothing is too late
  REQUIRE(scene.log.closed.empty());
  const auto began = test::now();
  REQUIRE(scene.turn_until([&] {
    if (scene.log.closed.empty()) peer.send_some("x");
    return !scene.log.closed.empty();
  }));

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::message_timed_out, Origin::policy, Phase::open);
  CHECK(record.received == scene.log.received.size());
  CHECK(scene.log.received.size() > 4);
  CHECK(scene.log.closed_at >= began + 60ms);
  CHECK(record.silence < record.age);
}

TEST_CASE("receive_too_slow: bytes came, but fewer than the rate asks for") {
  test::Served<> scene(
      {.timeouts = {.receive = 30s, .receive_rate = {.bytes_per_second = 1'000'000, .window = 50ms, .grace = 30ms}}});
  test::Peer peer = scene.connect();
  std::uint64_t sent = 0;

  REQUIRE(scene.turn_until([&] {
    if (scene.log.closed.empty()) sent += peer.send_some("x");
    return !scene.log.closed.empty();
  }));
  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::receive_too_slow, Origin::policy, Phase::open);
  CHECK(record.received > 0);
  CHECK(record.received <= sent);
  CHECK(record.age >= 80ms);
}

TEST_CASE("send_too_slow: the peer acknowledged bytes, but fewer than the rate asks for") {
  test::Served<> scene(
      {.timeouts = {.send = 30s, .send_rate = {.bytes_per_second = 1'000'000'000, .window = 100ms, .grace = 30ms}},
       .socket = {.send_buffer_bytes = 64 * 1024}});
  const std::string bytes = test::pattern(4 * 1024 * 1024);
  scene.log.at_open = [&](Connection& connection) { connection.send(bytes); };
  test::Peer peer = scene.connect(4096);

  // It reads a piece at each turn: `send` has nothing to complain of.
  REQUIRE(scene.turn_until([&] { return !scene.log.closed.empty() || (peer.read(512), false); }));
  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::send_too_slow, Origin::policy, Phase::open);
  CHECK(record.handed_to_kernel + record.unsent == bytes.size());
  CHECK(record.unsent > 0);
  CHECK(!peer.received.empty());
  CHECK(record.age >= 130ms);
}

TEST_CASE("drain_timed_out: the peer finished, and its handler neither sent nor closed") {
  test::Served<test::PatientRecorder> scene({.timeouts = {.drain = 30ms}});
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.finish();

  const CloseRecord& record = scene.end();

  CHECK(scene.log.peer_finishes == 1);
  check_cause(record, CloseReason::drain_timed_out, Origin::policy, Phase::open);
  check_bytes(record, 5, 0);
  CHECK(record.silence >= 30ms);
}

TEST_CASE("network_timed_out: the kernel's keepalive probes of an idle connection went unanswered") {
  if (skip_without_root(CloseReason::network_timed_out)) return;
  const test::NetworkNamespace network;
  const auto inside = network.enter();
  test::Served<> scene({.socket = {.keep_alive = vigil::KeepAlive{.idle = 1s, .interval = 1s, .count = 1}}});
  test::Peer peer = scene.connect();
  peer.send("hello");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "hello" && peer.unacknowledged() == 0; }));
  network.run("nft add table ip loss && nft 'add chain ip loss in { type filter hook input priority 0; policy drop; }'");

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::network_timed_out, Origin::network, Phase::open, ETIMEDOUT, "recv");
  check_bytes(record, 5, 0);
  CHECK(record.silence >= 1s);
}

TEST_CASE("network_timed_out: what was sent stayed unacknowledged for the user timeout") {
  if (skip_without_root(CloseReason::network_timed_out)) return;
  const test::NetworkNamespace network;
  const auto inside = network.enter();
  test::Served<> scene({.socket = {.user_timeout = 500ms}});
  const test::Peer peer = scene.connect();
  network.run("nft add table ip loss && nft 'add chain ip loss in { type filter hook input priority 0; policy drop; }'");
  scene.connection().send("anybody?");

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::network_timed_out, Origin::network, Phase::open, ETIMEDOUT, "recv");
  check_bytes(record, 0, 8);
  CHECK(record.unacknowledged == 8u);
  CHECK(record.age >= 500ms);
}

TEST_CASE("network_unreachable: the kernel lost the way to the peer") {
  if (skip_without_root(CloseReason::network_unreachable)) return;
  const test::NetworkNamespace network;
  const auto inside = network.enter();
  test::Served<> scene({.socket = {.user_timeout = 500ms}});
  const test::Peer peer = scene.connect();
  network.run(
      "nft add table ip loss && nft 'add chain ip loss in { type filter hook input priority 0; }' && "
      "nft add rule ip loss in meta l4proto tcp reject with icmp type host-unreachable");
  scene.connection().send("anybody?");

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::network_unreachable, Origin::network, Phase::open, EHOSTUNREACH, "recv");
  check_bytes(record, 0, 8);
  CHECK(record.unacknowledged == 8u);
}

TEST_CASE("backlog_full: a send would have passed the bound, and took nothing") {
  test::Served<> scene({.socket = {.send_buffer_bytes = 4096}, .backlog_bytes_max = 100'000});
  const std::string bytes = test::pattern(100'000);
  test::Peer peer = scene.connect(4096);
  Connection& connection = scene.connection();
  while (connection.backlog_bytes() == 0) REQUIRE(connection.send(bytes));  // until the kernel is full
  const std::uint64_t handed = connection.handed_to_kernel();
  const std::size_t held = connection.backlog_bytes();
  const std::size_t room = 100'000 - held;
  REQUIRE(connection.send(Bytes(bytes).first(room)));

  const auto refused = connection.send("!");

  REQUIRE_FALSE(refused);
  CHECK(refused.error() == vigil::Error{"send", ENOBUFS});
  CHECK(scene.log.closed.empty());  // told later, not from inside the call
  const CloseRecord& record = scene.end();
  check_cause(record, CloseReason::backlog_full, Origin::policy, Phase::open);
  check_bytes(record, 0, handed, 100'000);
  REQUIRE(scene.turn_until([&] { return peer.read().error != 0; }));
  CHECK(peer.error == ECONNRESET);  // it must not take the truncated stream for a whole one
}

TEST_CASE("server_stopping: the reactor's end closed it, in every phase") {
  const test::FullBacklog silent;
  test::Attempted<> attempted;
  attempted.connect(silent.address());
  test::Served<> served;
  test::Peer peer = served.connect();
  peer.send("hello");
  REQUIRE(served.turn_until([&] { return served.log.received == "hello"; }));

  REQUIRE(attempted.reactor.shutdown(0s));
  REQUIRE(served.reactor.shutdown(0s));

  check_cause(attempted.end(), CloseReason::server_stopping, Origin::local, Phase::connecting);
  check_cause(served.end(), CloseReason::server_stopping, Origin::local, Phase::open);
  check_bytes(served.end(), 5, 0);
}

TEST_CASE("server_stopping: a shutdown that drains awaits the peers' ends") {
  test::Served<> scene;
  test::Peer quick = scene.connect();
  test::Peer slow = scene.connect();
  REQUIRE(scene.reactor.shutdown(250ms));
  REQUIRE(scene.turn_until([&] { return quick.read().finished && slow.read().finished; }));
  quick.close();

  check_cause(scene.end(), CloseReason::server_stopping, Origin::local, Phase::draining);
  CHECK(scene.end().cut_short == CutShort::none);
  REQUIRE(scene.turn_until([&] { return scene.log.closed.size() == 2; }));

  check_cause(scene.log.closed[1], CloseReason::server_stopping, Origin::local, Phase::draining);
  CHECK(scene.log.closed[1].cut_short == CutShort::timed_out);
  CHECK(scene.log.closed[1].age >= 250ms);
}

/// Puts something that is no socket in the place of a connection's descriptor.
void replace_by_no_socket(int descriptor) {
  const int nothing = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  REQUIRE(nothing >= 0);
  REQUIRE(::dup3(nothing, descriptor, O_CLOEXEC) == descriptor);
  ::close(nothing);
}

TEST_CASE("system_error: a send failed in a way that no other reason describes") {
  test::Served<> scene;
  const test::Peer peer = scene.connect();
  replace_by_no_socket(scene.connection().descriptor());
  REQUIRE(scene.connection().send("hello"));

  const CloseRecord& record = scene.end();

  check_cause(record, CloseReason::system_error, Origin::local, Phase::open, ENOTSOCK, "send");
  check_bytes(record, 0, 0, 5);
}

TEST_CASE("system_error: a receive failed in a way that no other reason describes") {
  test::Served<> scene({.timeouts = {.receive = 20ms}});
  const test::Peer peer = scene.connect();
  replace_by_no_socket(scene.connection().descriptor());

  const CloseRecord& record = scene.end();  // when the deadline asks once more

  check_cause(record, CloseReason::system_error, Origin::local, Phase::open, ENOTSOCK, "recv");
}

TEST_CASE("every close reason has a name and a line of meaning of its own") {
  for (std::size_t index = 0; index < vigil::close_reason_count; ++index) {
    const auto reason = static_cast<CloseReason>(index);
    CHECK_FALSE(std::string(vigil::to_string(reason)).empty());
    CHECK_FALSE(std::string(vigil::meaning(reason)).empty());
    for (std::size_t other = 0; other < index; ++other)
      CHECK(std::string(vigil::meaning(reason)) != vigil::meaning(static_cast<CloseReason>(other)));
  }
}

TEST_CASE("a record is described in one line and in one JSON object") {
  test::Served<> scene;
  test::Peer peer = scene.connect();
  peer.send("hello");
  peer.reset();

  const CloseRecord& record = scene.end();

  const std::string line = vigil::describe(record);
  CHECK(line.find("peer_reset (peer, open): ") == 0);
  CHECK(line.find("recv: Connection reset by peer (ECONNRESET)") != std::string::npos);
  CHECK(line.find("received 5") != std::string::npos);
  CHECK(line.find('\n') == std::string::npos);
  const std::string object = vigil::to_json(record);
  CHECK(object.find(R"({"reason":"peer_reset","verdict":null,"origin":"peer","phase":"open","errno":104,"operation":"recv")") ==
        0);
  CHECK(object.find(R"("received":5,"handed_to_kernel":0)") != std::string::npos);
  CHECK(object.back() == '}');
}

}  // namespace
