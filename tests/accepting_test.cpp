// Accepting on the kernel: descriptors running out, the accept deadline, and what holds accepting while the kernel's queue waits.
#include <doctest/doctest.h>

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rate_limit.hpp"
#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Duration;
using vigil::Error;
using vigil::Instant;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::Timer;
namespace test = vigil::test;
using test::HookedHandler;

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

TEST_CASE("a listener out of descriptors accepts within 200 ms of one becoming free, and hardly wakes meanwhile") {
  Crowd crowd;
  std::optional<test::Client> established = test::connect_client(crowd.reactor, crowd.hooks, crowd.address);
  // Every retry sheds one: enough of them that somebody still waits at the end.
  std::vector<test::Peer> waiting;
  for (int count = 0; count < 40; ++count) waiting.emplace_back(crowd.address);
  const test::NoDescriptorsLeft none;
  const std::uint64_t turns_before = crowd.reactor.counters().turns;
  Timer guard(crowd.reactor, [] { FAIL_CHECK("accepting stopped in silence"); });
  REQUIRE(guard.arm_after(std::chrono::milliseconds(test::patience_ms)));
  while (crowd.told.count('p') < 10 && guard.armed()) REQUIRE(crowd.reactor.turn());
  const std::uint64_t pauses = crowd.reactor.counters().accept_pauses;
  CHECK(pauses == 10);
  CHECK(crowd.told.count('s') == pauses);
  CHECK(crowd.told.count('p') == pauses);
  CHECK(crowd.reactor.counters().turns - turns_before <= 3 * pauses + 20);  // a spin would be ten thousands

  // The limit stays: one descriptor becomes free, and one peer is served. What the loop itself was kept from is not counted.
  const std::uint64_t delay_before = crowd.reactor.counters().loop_delay_ns_total;
  const Instant freed = crowd.reactor.now();
  REQUIRE(established->connection->abort());
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.hooks.opened.size() == 2; }));
  const Duration delay(crowd.reactor.counters().loop_delay_ns_total - delay_before);
  CHECK(crowd.reactor.now() - freed - delay <= 200ms);
  CHECK(crowd.hooks.opened[1]->is_open());
}

// --- the accept deadline

TEST_CASE("the accept deadline is told once per period, and its listener lives on") {
  const auto begun = std::chrono::steady_clock::now();  // before listen(), from which it counts
  Crowd crowd({.timeouts = {.accept = 20ms}});
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.told.count('t') == 3; }));
  CHECK(std::chrono::steady_clock::now() - begun >= 60ms);
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

// --- what holds accepting

/// Turns for so long that a spin would show, and says how often the reactor wanted to.
std::uint64_t turns_in(Reactor& reactor, Duration duration) {
  Timer over(reactor, [] {});
  REQUIRE(over.arm_after(duration));
  const std::uint64_t before = reactor.counters().turns;
  while (over.armed()) REQUIRE(reactor.turn());
  return reactor.counters().turns - before;
}

TEST_CASE("while accepting is paused the kernel's queue keeps who comes, and what they send") {
  Crowd crowd;
  crowd.listener.pause_accepting();
  std::vector<test::Peer> waiting;
  for (int count = 0; count < 5; ++count) {
    waiting.emplace_back(crowd.address);
    waiting.back().send("early");
  }
  CHECK(turns_in(crowd.reactor, 100ms) <= 10);
  CHECK(crowd.hooks.opened.empty());
  crowd.listener.resume_accepting();
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.hooks.received.size() == 25; }));
  CHECK(crowd.hooks.opened.size() == 5);
  CHECK(crowd.told.order.empty());
}

TEST_CASE("at the maximum of connections the others wait in the kernel's queue, and each end lets one in") {
  Crowd crowd({.connections_max = 2});
  std::vector<test::Peer> peers;
  for (int count = 0; count < 6; ++count) peers.emplace_back(crowd.address);
  for (std::size_t ended = 0; ended < 6; ++ended) {
    const std::size_t expected = std::min<std::size_t>(6, ended + 2);
    REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.hooks.opened.size() >= expected; }));
    CHECK(turns_in(crowd.reactor, 20ms) <= 10);
    CHECK(crowd.hooks.opened.size() == expected);
    CHECK(crowd.listener.connections() == expected - ended);
    peers[ended].close();
    REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.hooks.records.size() == ended + 1; }));
  }
  CHECK(crowd.listener.connections() == 0);
  CHECK(crowd.told.order.empty());
  CHECK(crowd.reactor.counters().shed == 0);
}

TEST_CASE("an accept rate lets in a burst and then no more than its rate, and in the end everybody") {
  constexpr std::uint32_t rate = 100;
  Crowd crowd({.accept_rate = rate});
  std::vector<test::Peer> peers;
  for (int count = 0; count < 30; ++count) peers.emplace_back(crowd.address);
  const Instant begun = crowd.reactor.now();
  REQUIRE(test::turn_until(crowd.reactor, [&] { return crowd.hooks.opened.size() == 30; }));
  const double seconds = std::chrono::duration<double>(crowd.reactor.now() - begun).count();
  CHECK(30 <= rate * seconds + static_cast<double>(vigil::RateLimit::burst_of(rate)));
  CHECK(crowd.told.order.empty());
  CHECK(crowd.reactor.counters().shed == 0);
}

}  // namespace
