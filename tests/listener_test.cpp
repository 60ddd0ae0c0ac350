// Listeners and connectors on the kernel: what they refuse and in which words, and what happens when descriptors run out.
#include "vigil/listener.hpp"

#include <doctest/doctest.h>

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
  }
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

// --- out of descriptors

/// What an events object was told, one letter each: p(aused), r(esumed), s(hed), t(imed out).
struct Told {
  void on_accept_paused(const Error& error, Duration retry) {
    CHECK(error == Error{"accept", EMFILE});
    order += 'p';
    retries.push_back(retry);
  }
  void on_accept_resumed(Duration after) {
    order += 'r';
    resumed_after = after;
  }
  void on_shed(const CloseRecord& record) {
    test::report_reason(record);
    CHECK(record.reason == CloseReason::accept_shed);
    CHECK(record.origin == vigil::Origin::policy);
    CHECK(record.phase == vigil::Phase::connecting);
    CHECK(record.error_number == EMFILE);
    CHECK(std::string_view(record.operation) == "accept");
    order += 's';
  }
  void on_accept_timed_out(Duration after) {
    order += 't';
    timed_out_after.push_back(after);
  }
  [[nodiscard]] std::size_t count(char what) const {
    return static_cast<std::size_t>(std::count(order.begin(), order.end(), what));
  }

  std::string order;
  std::vector<Duration> retries;
  std::vector<Duration> timed_out_after;
  Duration resumed_after{};
};

struct Crowd {
  explicit Crowd(const ListenerOptions& options = {}) : listener(reactor, options, hooks.make(), told) {
    REQUIRE(listener.listen(test::loopback()));
    address = *listener.address();
  }
  test::Hooks hooks;
  Told told;
  Reactor reactor;
  Listener<HookedHandler> listener;
  Address address;
};

TEST_CASE("without a descriptor left a listener sheds, tells, pauses longer and longer without spinning, and recovers") {
  Crowd crowd;
  test::Client established = test::connect_client(crowd.reactor, crowd.hooks, crowd.address);
  crowd.hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  std::vector<test::Peer> waiting;
  for (int count = 0; count < 12; ++count) waiting.emplace_back(crowd.address);
  const auto before = crowd.reactor.counters();
  {
    const test::NoDescriptorsLeft none;
    crowd.hooks.on_open = [](Connection&) { FAIL_CHECK("there was no descriptor for it"); };
    // Each turn waits as long as the reactor itself wants to: what is counted is how often it wanted to wake.
    Timer guard(crowd.reactor, [] { FAIL_CHECK("accepting stopped in silence"); });
    REQUIRE(guard.arm_after(std::chrono::milliseconds(test::patience_ms)));
    while (crowd.told.count('p') < 6 && guard.armed()) REQUIRE(crowd.reactor.turn());
    CHECK(crowd.told.order == "spspspspspsp");
    CHECK(crowd.told.retries == std::vector<Duration>{10ms, 20ms, 40ms, 80ms, 100ms, 100ms});
    // One wake-up a retry, and few for the wheel's own slots; a spin would be thousands.
    CHECK(crowd.reactor.counters().turns - before.turns <= 30);

    established.peer.send("served meanwhile");
    CHECK(test::turn_until(crowd.reactor, [&] { return established.peer.read().received == "served meanwhile"; }));
    crowd.hooks.on_open = nullptr;
  }
  const std::size_t shed = crowd.told.count('s');
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('r') == 1; }));
  REQUIRE(
      test::turn_until(crowd.reactor, [&] { return crowd.hooks.opened.size() == 1 + waiting.size() - crowd.told.count('s'); }));

  CHECK(crowd.told.count('s') == shed);
  CHECK(crowd.told.resumed_after >= 250ms);
  CHECK(crowd.reactor.counters().shed == shed);
  CHECK(crowd.reactor.counters().accept_pauses == crowd.told.count('p'));
  CHECK(crowd.reactor.counters().closed_for[static_cast<std::size_t>(CloseReason::accept_shed)] == shed);
  CHECK(crowd.reactor.counters().opened - crowd.reactor.counters().closed == crowd.hooks.opened.size());
  // Those at the head of the queue were told by a reset, the others are served.
  for (std::size_t index = 0; index < waiting.size(); ++index) {
    waiting[index].read();
    CHECK(waiting[index].error == (index < shed ? ECONNRESET : 0));
  }
  CHECK(test::connect_client(crowd.reactor, crowd.hooks, crowd.address).connection->is_open());
}

TEST_CASE("without a descriptor left a listener without an events object sheds and recovers too") {
  test::Hooks hooks;
  Reactor reactor;
  const test::HookedListener server(reactor, hooks);
  std::vector<test::Peer> waiting;
  for (int count = 0; count < 3; ++count) waiting.emplace_back(server.address);
  {
    const test::NoDescriptorsLeft none;
    REQUIRE(test::turn_until(reactor, [&] { return reactor.counters().shed == 2; }));
  }
  CHECK(test::turn_until(reactor, [&] { return hooks.opened.size() == 1; }));
  CHECK(hooks.records.empty());
  CHECK(reactor.counters().closed == 2);
}

TEST_CASE("a listener closed while it pauses without a descriptor left may listen again") {
  Crowd crowd;
  const test::Peer waiting(crowd.address);
  {
    const test::NoDescriptorsLeft none;
    REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('p') == 1; }));
    crowd.listener.close();
  }
  REQUIRE(crowd.listener.listen(crowd.address));
  CHECK(test::connect_client(crowd.reactor, crowd.hooks, crowd.address).connection->is_open());
  CHECK(crowd.told.count('r') == 0);
}

TEST_CASE("the accept deadline is told once per period, and its listener lives on") {
  Crowd crowd({.timeouts = {.accept = 20ms}});
  const Instant begun = crowd.reactor.now();
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('t') == 3; }));
  CHECK(crowd.reactor.now() - begun >= 60ms);
  for (const Duration after : crowd.told.timed_out_after) CHECK(after >= 20ms);
  CHECK(test::connect_client(crowd.reactor, crowd.hooks, crowd.address).connection->is_open());
  const std::size_t told = crowd.told.count('t');
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('t') == told + 1; }));
  CHECK(crowd.told.timed_out_after.back() >= 20ms);
}

TEST_CASE("whoever came before the accept deadline was looked at beats it") {
  Crowd crowd({.timeouts = {.accept = 5ms}});
  const test::Peer punctual(crowd.address);
  test::work_for(20ms);  // the loop was late, the peer was not
  test::turn_at_once(crowd.reactor);
  CHECK(crowd.hooks.opened.size() == 1);
  CHECK(crowd.told.order.empty());
}

TEST_CASE("the accept deadline stands still while accepting pauses without a descriptor left") {
  Crowd crowd({.timeouts = {.accept = 30ms}});
  std::vector<test::Peer> waiting;
  for (int count = 0; count < 12; ++count) waiting.emplace_back(crowd.address);
  {
    const test::NoDescriptorsLeft none;
    REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('p') == 5; }));  // at least 150 ms
  }
  CHECK(crowd.told.count('t') == 0);
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('t') == 1; }));
  CHECK(crowd.told.order.find('r') < crowd.told.order.find('t'));
}

}  // namespace
