// Listeners and connectors on the kernel: what they refuse and in which words, and the addresses they listen on.
#include "vigil/listener.hpp"

#include <doctest/doctest.h>

#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/hooks.hpp"
#include "support/network_namespace.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Connector;
using vigil::ConnectorOptions;
using vigil::Deadline;
using vigil::Duration;
using vigil::Error;
using vigil::Instant;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::Timer;
namespace test = vigil::test;
using test::HookedHandler;

std::string detail_of(const Error& error) { return error.detail; }

// --- what is refused

TEST_CASE("malformed addresses are refused by listen and connect alike, before anything is opened") {
  test::Hooks hooks;
  Reactor reactor;
  Listener<HookedHandler> listener(reactor, {}, hooks.make());
  Connector<HookedHandler> connector(reactor, {}, hooks.make());
  for (const std::string_view text : {"",
                                      ":",
                                      "7000",
                                      "localhost:7000",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:65536",
                                      "127.0.0.1:-1",
                                      "127.0.0.1:+1",
                                      "127.0.0.1:7000 ",
                                      " 127.0.0.1:7000",
                                      "127.0.0.1:0x10",
                                      "127.0.0.1:99999999999999999999",
                                      "127.0.0:7000",
                                      "127.0.0.256:7000",
                                      "127.0.0.01:7000",
                                      "::1:7000",
                                      "[::1]",
                                      "[::1]:",
                                      "[::1:7000",
                                      "[:::1]:7000",
                                      "[127.0.0.1]:7000",
                                      "[::1%lo]:70000",
                                      "unix:",
                                      "unix:@"}) {
    CAPTURE(text);
    const auto listening = listener.listen(text);
    REQUIRE_FALSE(listening);
    CHECK(listening.error() == Error{"parse address", EINVAL});
    CHECK_FALSE(detail_of(listening.error()).empty());
    const auto connecting = connector.connect(text);
    REQUIRE_FALSE(connecting);
    CHECK(connecting.error() == Error{"parse address", EINVAL});
  }
  CHECK(reactor.counters().opened == 0);
  CHECK(listener.listen("127.0.0.1:0"));  // nothing was lost by it
}

TEST_CASE("addresses that nobody here has are refused by the kernel's own word") {
  test::Hooks hooks;
  Reactor reactor;
  Listener<HookedHandler> listener(reactor, {}, hooks.make());
  CHECK(listener.listen("192.0.2.1:0").error() == Error{"listen", EADDRNOTAVAIL});
  CHECK(detail_of(listener.listen("192.0.2.1:0").error()) == "bind");
  CHECK_FALSE(listener.listen("[fe80::1%no-such-device]:0"));
  Connector<HookedHandler> connector(reactor, {}, hooks.make());
  CHECK(connector.connect("127.0.0.1:0").error() == Error{"connect", EINVAL});
  Connector<HookedHandler> elsewhere(reactor, {.source = *Address::parse("192.0.2.1:0")}, hooks.make());
  CHECK(elsewhere.connect("127.0.0.1:9").error() == Error{"connect", EADDRNOTAVAIL});
  CHECK(reactor.counters().opened == 0);
}

TEST_CASE("a port in use is refused, listening twice as well, and the first listener goes on") {
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener first(reactor, hooks);
  Listener<HookedHandler> second(reactor, {}, hooks.make());

  CHECK(second.listen(first.address).error() == Error{"listen", EADDRINUSE});
  CHECK(second.address().error() == Error{"address", ENOTCONN});
  CHECK(first.listener.listen("127.0.0.1:0").error() == Error{"listen", EINVAL});
  CHECK(*first.listener.address() == first.address);
  CHECK(test::connect_client(reactor, hooks, first.address).connection->is_open());

  first.listener.close();
  CHECK(second.listen(first.address));  // and it is free again, with a connection of it still open
  CHECK(test::connect_client(reactor, hooks, first.address).connection->is_open());
}

TEST_CASE("options out of range are refused by listen and connect, and say which") {
  constexpr std::size_t too_much = std::numeric_limits<std::size_t>::max();
  test::Hooks hooks;
  Reactor reactor;
  const std::pair<ListenerOptions, std::string> wrong[] = {
      {{.timeouts = {.first_byte = 0ms}}, "first_byte"},
      {{.timeouts = {.receive = 999us}}, "receive"},
      {{.timeouts = {.send = -1s}}, "send"},
      {{.timeouts = {.accept = std::chrono::years(11)}}, "accept"},
      {{.timeouts = {.connect = std::chrono::hours::max()}}, "connect"},
      {{.timeouts = {.drain = vigil::never}}, "drain"},
      {{.timeouts = {.drain = std::chrono::duration<double>(1e300)}}, "drain"},
      {{.socket = {.user_timeout = -1ms}}, "user_timeout"},
      {{.socket = {.send_buffer_bytes = -1}}, "send_buffer"},
      {{.socket = {.receive_buffer_bytes = std::numeric_limits<int>::max()}}, "receive_buffer"},
      {{.backlog_bytes_max = 0}, "backlog_bytes_max"},
      {{.backlog_bytes_max = too_much}, "backlog_bytes_max"},
      {{.backlog_high_mark_bytes = 10, .backlog_low_mark_bytes = 11}, "low mark"},
      {{.accept_queue = 0}, "accept_queue"},
      {{.accept_queue = -1}, "accept_queue"},
  };
  for (const auto& [options, name] : wrong) {
    CAPTURE(name);
    Listener<HookedHandler> listener(reactor, options, hooks.make());
    const auto listening = listener.listen("127.0.0.1:0");
    REQUIRE_FALSE(listening);
    CHECK(listening.error() == Error{"listen", EINVAL});
    CHECK(detail_of(listening.error()).find(name) != std::string::npos);
    if (name == "accept_queue") continue;

    Connector<HookedHandler> connector(reactor,
                                       {.timeouts = options.timeouts,
                                        .socket = options.socket,
                                        .backlog_bytes_max = options.backlog_bytes_max,
                                        .backlog_high_mark_bytes = options.backlog_high_mark_bytes,
                                        .backlog_low_mark_bytes = options.backlog_low_mark_bytes},
                                       hooks.make());
    const auto connecting = connector.connect("127.0.0.1:9");
    REQUIRE_FALSE(connecting);
    CHECK(connecting.error() == Error{"connect", EINVAL});
    CHECK(detail_of(connecting.error()).find(name) != std::string::npos);
  }
  CHECK(reactor.counters().opened == 0);
}

TEST_CASE("the ends of the options' ranges are taken") {
  test::Hooks hooks;
  Reactor reactor;
  for (const ListenerOptions& options :
       {ListenerOptions{.timeouts = {.receive = 1ms, .send = vigil::longest_timeout, .drain = 1ms}, .accept_queue = 1},
        ListenerOptions{.backlog_bytes_max = 1, .backlog_high_mark_bytes = 0, .backlog_low_mark_bytes = 0},
        ListenerOptions{.backlog_bytes_max = std::numeric_limits<std::uint32_t>::max(),
        .accept_queue = std::numeric_limits<int>::max()}}) {
    Listener<HookedHandler> listener(reactor, options, hooks.make());
    CHECK(listener.listen("127.0.0.1:0"));
  }
}

TEST_CASE("timeouts out of range change nothing on an open connection") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  const test::Client client = test::connect_client(reactor, hooks, server.address);
  for (const vigil::Timeout timeout : {vigil::Timeout(0ms), vigil::Timeout(-1ms), vigil::Timeout(std::chrono::years(11))})
    CHECK(client.connection->set_timeout(Deadline::receive, timeout).error() == Error{"set timeout", EINVAL});
  CHECK(client.connection->set_timeout(Deadline::drain, vigil::never).error() == Error{"set timeout", EINVAL});
  CHECK(client.connection->set_timeout(Deadline::accept, 1s).error() == Error{"set timeout", EINVAL});
  CHECK(client.connection->set_timeout(Deadline::receive, vigil::longest_timeout));
  CHECK(client.connection->set_timeout(Deadline::receive, vigil::inherit));
  test::turn_at_once(reactor);
  CHECK(client.connection->is_open());
}

TEST_CASE("without a descriptor left listen and connect say so and begin nothing") {
  test::Hooks hooks;
  Reactor reactor;
  Listener<HookedHandler> listener(reactor, {}, hooks.make());
  Connector<HookedHandler> connector(reactor, {}, hooks.make());
  const test::PeerListener server;
  {
    const test::NoDescriptorsLeft none;
    CHECK(listener.listen("127.0.0.1:0").error() == Error{"listen", EMFILE});
    CHECK(connector.connect(server.address()).error() == Error{"connect", EMFILE});
  }
  CHECK(reactor.counters().opened == 0);
  CHECK(listener.listen("127.0.0.1:0"));
  CHECK(connector.connect(server.address()));
}

// --- listening

TEST_CASE("nothing is accepted from inside listen, and closing a listener leaves its connections") {
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener server(reactor, hooks);
  test::Client client = test::connect_client(reactor, hooks, server.address);
  test::Peer unaccepted(server.address);
  hooks.calling([&] { server.listener.close(); });
  hooks.calling([&] { server.listener.close(); });
  hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  client.peer.send("still here");
  CHECK(test::turn_until(reactor, [&] { return client.peer.read().received == "still here"; }));
  CHECK(test::turn_until(reactor, [&] { return unaccepted.read().error == ECONNRESET; }));
  CHECK(hooks.opened.size() == 1);
}

TEST_CASE("a listener listens on IPv6, and an IPv6 listener takes IPv4 only where it is told to") {
  for (const bool v6_only : {true, false}) {
    CAPTURE(v6_only);
    test::Hooks hooks;
    Reactor reactor;
    Listener<HookedHandler> listener(reactor, {.v6_only = v6_only}, hooks.make());
    REQUIRE(listener.listen("[::]:0"));
    const std::uint16_t port = listener.address()->port();
    CHECK(port != 0);
    CHECK(test::connect_client(reactor, hooks, Address::parse("[::1]:1")->with_port(port)).connection->is_open());
    vigil::Socket v4 = *vigil::open_socket(Address::Family::ipv4);
    const auto outcome = vigil::connect_within(v4, test::loopback(port), std::chrono::milliseconds(test::patience_ms)).outcome;
    CHECK(outcome == (v6_only ? vigil::ConnectOutcome::rejected : vigil::ConnectOutcome::accepted));
    if (v6_only) continue;
    // It reads as what it is to an IPv6 socket: mapped.
    REQUIRE(test::turn_until(reactor, [&] { return hooks.opened.size() == 2; }));
    const Address peer = hooks.opened[1]->peer();
    const Address client = *vigil::local_address(v4.descriptor());
    CHECK(peer.to_string() == "[::ffff:127.0.0.1]:" + std::to_string(client.port()));
    CHECK(*Address::parse(peer.to_string()) == peer);
    CHECK(hooks.opened[1]->local_address()->to_string() == "[::ffff:127.0.0.1]:" + std::to_string(port));
  }
}

TEST_CASE("an IPv4 listener stands beside an IPv6-only one on the same port") {
  test::Hooks hooks;
  Reactor reactor;
  Listener<HookedHandler> v6(reactor, {}, hooks.make());
  REQUIRE(v6.listen("[::]:0"));
  Listener<HookedHandler> v4(reactor, {}, hooks.make());
  REQUIRE(v4.listen(test::loopback(v6.address()->port())));
  CHECK(test::connect_client(reactor, hooks, *v4.address()).connection->peer().family() == Address::Family::ipv4);
}

TEST_CASE("a link-local address is listened on and reached through its interface, by name or number, and refused without") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace left;
  const test::NetworkNamespace right;
  test::connect_by_cable(left, "fe80::a/64", right, "fe80::b/64");
  test::Hooks hooks;
  test::Hooks clients;
  Reactor reactor;
  Listener<HookedHandler> listener(reactor, {}, hooks.make());
  unsigned there = 0;
  {
    const auto inside = right.enter();
    there = ::if_nametoindex("veth0");
    CHECK(listener.listen("[fe80::b]:7000").error() == Error{"listen", EINVAL});
    CHECK(listener.listen("[fe80::b%eth7]:7000").error() == Error{"listen", ENODEV});
    SUBCASE("listening by name") { REQUIRE(listener.listen("[fe80::b%veth0]:7000")); }
    SUBCASE("listening by number") { REQUIRE(listener.listen("[fe80::b%" + std::to_string(there) + "]:7000")); }
  }
  CHECK(listener.address()->to_string() == "[fe80::b%" + std::to_string(there) + "]:7000");

  Connector<HookedHandler> connector(reactor, {}, clients.make());
  unsigned here = 0;
  {
    const auto inside = left.enter();
    here = ::if_nametoindex("veth0");
    CHECK(connector.connect("[fe80::b]:7000").error() == Error{"connect", EINVAL});
    REQUIRE(connector.connect("[fe80::b%veth0]:7000"));
  }
  REQUIRE(test::turn_until(reactor, [&] { return clients.opened.size() == 1 && hooks.opened.size() == 1; }));
  CHECK(clients.opened[0]->peer().to_string() == "[fe80::b%" + std::to_string(here) + "]:7000");
  CHECK(hooks.opened[0]->peer().ip() == Address::parse("[fe80::a%veth0]:1")->ip());
  CHECK(hooks.opened[0]->peer().scope() == std::to_string(there));
  CHECK(hooks.opened[0]->peer().port() == clients.opened[0]->local_address()->port());
}

TEST_CASE("listeners with reuse_port share an address") {
  test::Hooks hooks;
  Reactor reactor;
  Listener<HookedHandler> first(reactor, {.reuse_port = true}, hooks.make());
  Listener<HookedHandler> second(reactor, {.reuse_port = true}, hooks.make());
  REQUIRE(first.listen("127.0.0.1:0"));
  REQUIRE(second.listen(*first.address()));
  for (int count = 0; count < 10; ++count) CHECK(test::connect_client(reactor, hooks, *first.address()).connection->is_open());
}

TEST_CASE("process timeouts set later are those of the connections accepted later") {
  const test::ProcessTimeouts process;
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  const test::Client before = test::connect_client(reactor, hooks, server.address);
  process.set(Deadline::receive, 5ms);
  const test::Client after = test::connect_client(reactor, hooks, server.address);
  CHECK(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  CHECK(before.connection->is_open());
  CHECK_FALSE(after.connection);
  CHECK(hooks.records.at(0).reason == CloseReason::receive_timed_out);
}

}  // namespace
