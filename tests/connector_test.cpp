// Every way a connection attempt can end, and what a connector refuses before it asks the kernel.
#include "vigil/connector.hpp"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "support/network_namespace.hpp"
#include "support/recorder.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Deadline;
using vigil::Error;
using vigil::Origin;
using vigil::Phase;
namespace test = vigil::test;

void check_attempt(const test::Scene& scene, const CloseRecord& record, CloseReason reason, Origin origin, int error_number) {
  INFO(vigil::describe(record));
  CHECK(scene.log.opened == 0);
  CHECK(record.reason == reason);
  CHECK(record.origin == origin);
  CHECK(record.phase == Phase::connecting);
  CHECK(record.error_number == error_number);
  CHECK(std::string(record.operation) == (error_number == 0 ? "" : "connect"));
  CHECK(record.received == 0);
  CHECK(record.handed_to_kernel == 0);
  CHECK_FALSE(record.unacknowledged);
}

// Accepted ----------------------------------------------------------------------------------------------------------------

TEST_CASE("an accepted attempt opens in a later turn, never from inside connect") {
  const test::PeerListener listener;
  test::Attempted<> scene;

  const vigil::ConnectionHandle attempt = scene.connect(listener.address());

  CHECK(scene.log.opened == 0);
  CHECK_FALSE(attempt->is_open());
  CHECK(attempt->peer() == listener.address());
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  CHECK(attempt->is_open());
  test::Peer peer = listener.accept();
  peer.send("hello");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "hello"; }));
  peer.close();
  CHECK(scene.end().reason == CloseReason::peer_finished);
  CHECK_FALSE(attempt);
}

TEST_CASE("what is sent while connecting leaves once connected, in order") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  const std::string large = test::pattern(100'000);
  scene.log.at_open = [](Connection& connection) { connection.send("last"); };
  const vigil::ConnectionHandle attempt = scene.connect(listener.address());
  REQUIRE(attempt->send("first"));
  REQUIRE(attempt->send(large));
  CHECK(attempt->backlog_bytes() == 100'005);
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));

  test::Peer peer = listener.accept();
  REQUIRE(scene.peer_reads(peer, 100'009));

  CHECK(test::same(peer.received, "first" + large + "last"));
  CHECK(attempt->handed_to_kernel() == 100'009);
}

TEST_CASE("finish while connecting: what was sent before leaves, then our end, and receiving goes on") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  const vigil::ConnectionHandle attempt = scene.connect(listener.address());
  REQUIRE(attempt->send("only this"));
  REQUIRE(attempt->finish());
  const auto refused = attempt->send("!");
  CHECK((!refused && refused.error() == Error{"send", EPIPE}));
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));

  test::Peer peer = listener.accept();
  REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
  CHECK(peer.received == "only this");
  peer.send("answer");
  peer.close();

  CHECK(scene.end().reason == CloseReason::peer_finished);
  CHECK(scene.log.received == "answer");
}

TEST_CASE("finish with nothing to send while connecting ends our stream once connected") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  REQUIRE(scene.connect(listener.address())->finish());
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  test::Peer peer = listener.accept();
  CHECK(scene.turn_until([&] { return peer.read().finished; }));
}

TEST_CASE("a send while connecting that would pass the bound ends the attempt") {
  const test::FullBacklog silent;
  test::Attempted<> scene({.backlog_bytes_max = 10});
  const vigil::ConnectionHandle attempt = scene.connect(silent.address());
  REQUIRE(attempt->send("123456789"));

  const auto refused = attempt->send("ab");

  CHECK((!refused && refused.error() == Error{"send", ENOBUFS}));
  const CloseRecord& record = scene.end();
  check_attempt(scene, record, CloseReason::backlog_full, Origin::policy, 0);
  CHECK(record.unsent == 9);
}

TEST_CASE("a peer that accepts and resets at once was open before it reset") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  const vigil::ConnectionHandle attempt = scene.connect(listener.address());
  REQUIRE(test::wait_for(listener.descriptor(), POLLIN));
  test::Peer peer = listener.accept();
  peer.reset();
  REQUIRE(test::wait_for(attempt->descriptor(), POLLHUP));  // both are known before the reactor looks

  const CloseRecord& record = scene.end();

  INFO(vigil::describe(record));
  CHECK(scene.log.opened == 1);
  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(record.error_number == ECONNRESET);
  CHECK(record.phase == Phase::open);
}

TEST_CASE("bytes that came with the handshake's end are delivered after on_open, also before a reset") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  std::string order;
  scene.log.at_open = [&](Connection&) { order += "open "; };
  scene.log.at_receive = [&](Connection&, Bytes bytes) { order += bytes.text(); };
  const vigil::ConnectionHandle attempt = scene.connect(listener.address());
  REQUIRE(test::wait_for(listener.descriptor(), POLLIN));
  test::Peer peer = listener.accept();
  peer.send("greeting");
  peer.finish();
  REQUIRE(test::wait_for(attempt->descriptor(), POLLRDHUP));

  CHECK(scene.end().reason == CloseReason::peer_finished);

  CHECK(order == "open greeting");
}

TEST_CASE("IPv6 and the source address are what was asked for") {
  const test::PeerListener listener(*Address::parse("[::1]:0"));
  Address source = *Address::parse("[::1]:0");
  test::Attempted<> scene({.source = source});

  const vigil::ConnectionHandle attempt = scene.connect(listener.address());

  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  const test::Peer peer = listener.accept();
  CHECK(attempt->peer() == listener.address());
  const auto local = attempt->local_address();
  REQUIRE(local);
  CHECK(local->ip() == source.ip());
  CHECK(local->port() != 0);
}

TEST_CASE("another loopback address can be the source") {
  const test::PeerListener listener;
  test::Attempted<> scene({.source = Address::from_ipv4({127, 0, 0, 9}, 0)});
  const vigil::ConnectionHandle attempt = scene.connect(listener.address());
  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1; }));
  const auto local = attempt->local_address();
  REQUIRE(local);
  CHECK(local->ip() == Address::from_ipv4({127, 0, 0, 9}, 0).ip());
}

TEST_CASE("attempts and connections outlive their connector") {
  const test::PeerListener listener;
  test::Scene scene;
  std::optional<vigil::Connector<test::Recorder>> connector;
  connector.emplace(scene.reactor, vigil::ConnectorOptions{},
                    [&](Connection& connection) { return test::Recorder(scene.log, connection); });
  REQUIRE(connector->connect(listener.address()));
  REQUIRE(connector->connect(listener.address()));

  connector.reset();

  REQUIRE(scene.turn_until([&] { return scene.log.opened == 2; }));
  test::Peer peer = listener.accept();
  peer.send("hello");
  REQUIRE(scene.turn_until([&] { return scene.log.received == "hello"; }));
}

// Not accepted -------------------------------------------------------------------------------------------------------------

TEST_CASE("a closed port rejects, over IPv4 and IPv6") {
  test::Attempted<> scene;
  for (const char* text : {"127.0.0.1:0", "[::1]:0"}) {
    Address address = *Address::parse(text);
    {
      const test::PeerListener was_there(address);
      address = was_there.address();
    }
    scene.connect(address);
  }
  REQUIRE(scene.turn_until([&] { return scene.log.closed.size() == 2; }));
  for (const CloseRecord& record : scene.log.closed)
    check_attempt(scene, record, CloseReason::connect_refused, Origin::peer, ECONNREFUSED);
}

TEST_CASE("bytes sent while connecting are told as unsent by a rejected attempt") {
  const test::ClosedPort nobody;
  test::Attempted<> scene;
  REQUIRE(scene.connect(nobody.address())->send("hello"));
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::connect_refused);
  CHECK(record.unsent == 5);
}

TEST_CASE("a connect deadline is never early, whichever layer it comes from") {
  const test::FullBacklog silent;
  const test::ProcessTimeouts process;
  vigil::ReactorOptions reactor_options;
  vigil::ConnectorOptions options;
  SUBCASE("the process's") { process.set(Deadline::connect, 40ms); }
  SUBCASE("the reactor's, over the process's") {
    process.set(Deadline::connect, 1ms);
    reactor_options.timeouts.connect = 40ms;
  }
  SUBCASE("the connector's, over the reactor's") {
    reactor_options.timeouts.connect = 1ms;
    options.timeouts.connect = 40ms;
  }
  SUBCASE("the attempt's own, over the connector's") { options.timeouts.connect = 1ms; }
  test::Attempted<> scene(options, reactor_options);
  const vigil::Instant before = test::now();
  const vigil::ConnectionHandle attempt = scene.connect(silent.address());
  if (options.timeouts.connect == vigil::Timeout(1ms)) REQUIRE(attempt->set_timeout(Deadline::connect, 40ms));

  const CloseRecord& record = scene.end();

  check_attempt(scene, record, CloseReason::connect_timed_out, Origin::policy, 0);
  CHECK(record.age >= 40ms);
  CHECK(scene.log.closed_at - before >= 40ms);
}

TEST_CASE("the kernel's own connect timeout is the network's doing, with its errno") {
  const test::FullBacklog silent;
  const test::ProcessTimeouts process;
  test::Attempted<> scene;
  SUBCASE("with no deadline at all") {}
  SUBCASE("with a process default that the attempt sets back to never") { process.set(Deadline::connect, 1ms); }
  const vigil::ConnectionHandle attempt = scene.connect(silent.address());
  REQUIRE(attempt->set_timeout(Deadline::connect, vigil::never));
  const int tries = 1;
  REQUIRE(::setsockopt(attempt->descriptor(), IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof tries) == 0);

  const CloseRecord& record = scene.end();

  check_attempt(scene, record, CloseReason::connect_timed_out, Origin::network, ETIMEDOUT);
}

TEST_CASE("an attempt that is answered before its deadline was looked at is accepted") {
  const test::PeerListener listener;
  test::Attempted<> scene({.timeouts = {.connect = 1ms}});
  scene.connect(listener.address());

  test::work_for(5ms);  // the loop is late, the peer was not

  REQUIRE(scene.turn_until([&] { return scene.log.opened == 1 || !scene.log.closed.empty(); }));
  CHECK(scene.log.opened == 1);
}

TEST_CASE("routes that lead nowhere are unreachable, each with its errno") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace network;
  network.run("ip route add unreachable 10.1.0.0/16 && ip route add prohibit 10.2.0.0/16 && ip route add blackhole 10.3.0.0/16");
  const auto inside = network.enter();
  test::Attempted<> scene;
  const struct {
    const char* address;
    int error_number;
  } routes[] = {{"10.1.0.1:7", EHOSTUNREACH},
                {"10.2.0.1:7", EACCES},
                {"10.3.0.1:7", EINVAL},
                {"10.4.0.1:7", ENETUNREACH},
                {"[2001:db8::1]:7", ENETUNREACH}};

  for (const auto& route : routes) scene.connect(*Address::parse(route.address));

  REQUIRE(scene.turn_until([&] { return scene.log.closed.size() == std::size(routes); }));
  for (std::size_t index = 0; index < std::size(routes); ++index) {
    INFO(routes[index].address);
    check_attempt(scene, scene.log.closed[index], CloseReason::connect_unreachable, Origin::network, routes[index].error_number);
  }
}

TEST_CASE("no such host on the link, and a firewall's answer, are unreachable") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace here, there;
  test::connect_by_cable(here, "10.5.0.1/24", there, "10.5.0.2/24");
  there.run(
      "nft add table ip wall && nft 'add chain ip wall in { type filter hook input priority 0; }' && "
      "nft add rule ip wall in tcp dport 7 reject with icmp type host-prohibited");
  const auto inside = here.enter();
  test::Attempted<> scene;

  scene.connect(*Address::parse("10.5.0.2:7"));
  check_attempt(scene, scene.end(), CloseReason::connect_unreachable, Origin::network, EHOSTUNREACH);
  scene.connect(*Address::parse("10.5.0.77:7"));
  REQUIRE(scene.turn_until([&] { return scene.log.closed.size() == 2; }));

  check_attempt(scene, scene.log.closed[1], CloseReason::connect_unreachable, Origin::network, EHOSTUNREACH);
}

TEST_CASE("a link that is down is unreachable") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace here, there;
  test::connect_by_cable(here, "10.5.0.1/24", there, "10.5.0.2/24");
  here.run("ip link set veth0 down");
  const auto inside = here.enter();
  test::Attempted<> scene;
  scene.connect(*Address::parse("10.5.0.2:7"));
  check_attempt(scene, scene.end(), CloseReason::connect_unreachable, Origin::network, ENETUNREACH);
}

TEST_CASE("close and abort end an attempt at once") {
  const test::FullBacklog silent;
  test::Attempted<> scene;
  const vigil::ConnectionHandle attempt = scene.connect(silent.address());
  SUBCASE("close") { REQUIRE(attempt->close()); }
  SUBCASE("abort") { REQUIRE(attempt->abort()); }
  CHECK(scene.log.closed.empty());  // not from inside the call
  check_attempt(scene, scene.end(), CloseReason::local_close, Origin::local, 0);
}

// Refused before the kernel is asked -----------------------------------------------------------------------------------------

TEST_CASE("what is wrong with an attempt is connect's own error, and no handler is told") {
  test::Attempted<> scene;
  const auto refused = [&](std::string_view address, const Error& expected) {
    INFO(std::string(address));
    const auto attempt = scene.connector.connect(address);
    REQUIRE_FALSE(attempt);
    CHECK(attempt.error() == expected);
  };

  refused("", {"parse address", EINVAL});
  refused("localhost", {"parse address", EINVAL});
  refused("127.0.0.1", {"parse address", EINVAL});
  refused("127.0.0.1:65536", {"parse address", EINVAL});
  refused("127.0.0.1:-1", {"parse address", EINVAL});
  refused("256.0.0.1:7", {"parse address", EINVAL});
  refused("[::1:7", {"parse address", EINVAL});
  refused("127.0.0.1:0", {"connect", EINVAL});
  refused("[::1]:0", {"connect", EINVAL});
  refused("[fe80::1%no-such-link]:7", {"connect", ENODEV});

  CHECK(scene.reactor.counters().opened == 0);
}

TEST_CASE("options out of range are connect's own error") {
  const test::PeerListener listener;
  vigil::ConnectorOptions options;
  SUBCASE("a timeout of zero") { options.timeouts.receive = 0s; }
  SUBCASE("a negative timeout") { options.timeouts.connect = -1s; }
  SUBCASE("a timeout beyond ten years") { options.timeouts.send = std::chrono::years(11); }
  SUBCASE("a drain that never ends") { options.timeouts.drain = vigil::never; }
  SUBCASE("no room for a single byte") { options.backlog_bytes_max = 0; }
  SUBCASE("marks the wrong way round") { options.backlog_low_mark_bytes = options.backlog_high_mark_bytes + 1; }
  SUBCASE("a socket option") { options.socket.user_timeout = -1s; }
  test::Attempted<> scene(options);

  const auto attempt = scene.connector.connect(listener.address());

  REQUIRE_FALSE(attempt);
  CHECK(attempt.error() == Error{"connect", EINVAL});
  CHECK_FALSE(std::string(attempt.error().detail).empty());
  CHECK(scene.reactor.counters().opened == 0);
}

TEST_CASE("a source address that is not ours, or taken, is connect's own error") {
  const test::PeerListener listener;
  const auto refused = [&](const Address& source, int error_number) {
    test::Attempted<> scene({.source = source});
    const auto attempt = scene.connector.connect(listener.address());
    REQUIRE_FALSE(attempt);
    CHECK(attempt.error() == Error{"connect", error_number});
    CHECK(scene.reactor.counters().opened == 0);
  };
  refused(Address::from_ipv4({192, 0, 2, 1}, 0), EADDRNOTAVAIL);
  refused(listener.address(), EADDRINUSE);
  const auto other_family = *Address::parse("[::1]:0");
  test::Attempted<> scene({.source = other_family});
  CHECK_FALSE(scene.connector.connect(listener.address()));
}

TEST_CASE("without a descriptor an attempt is refused, and the next one works") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  {
    const test::NoDescriptorsLeft none_left;
    const auto attempt = scene.connector.connect(listener.address());
    REQUIRE_FALSE(attempt);
    CHECK(attempt.error() == Error{"connect", EMFILE});
  }
  scene.connect(listener.address());
  CHECK(scene.turn_until([&] { return scene.log.opened == 1; }));
}

TEST_CASE("a reactor that is shutting down refuses attempts") {
  const test::PeerListener listener;
  test::Attempted<> scene;
  REQUIRE(scene.reactor.shutdown(0s));
  const auto attempt = scene.connector.connect(listener.address());
  REQUIRE_FALSE(attempt);
  CHECK(attempt.error() == Error{"connect", ESHUTDOWN});
}

}  // namespace
