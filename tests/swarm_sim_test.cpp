// The swarm itself: what it finds is the oracle's business; that a world can be had again, and that lives are lived, is tested
// here.
#include "swarm.hpp"

#include <doctest/doctest.h>

#include <array>
#include <numeric>
#include <string>
#include <thread>

#include "oracle_clocks.hpp"
#include "support/seed.hpp"
#include "swarm_plan.hpp"
#include "swarm_text.hpp"

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

TEST_CASE("a world of the swarm is the same each time, and on any thread") {
  const std::uint64_t seed = test::seed_of("the swarm");
  for (std::uint64_t number = 0; number < 3; ++number) {
    CAPTURE(seed);
    CAPTURE(number);
    const WorldReport first = run_world({.seed = seed, .number = number});
    WorldReport second;
    std::thread([&] { second = run_world({.seed = seed, .number = number}); }).join();
    CHECK(first.digest == second.digest);
    CHECK(first.steps == second.steps);
    CHECK(first.lives == second.lives);
    CHECK(first.reasons == second.reasons);
    CHECK(first.faults == second.faults);
    CHECK(first.messages_each == second.messages_each);
    CHECK(run_world({.seed = seed, .number = number + 1000}).digest != first.digest);
  }
}

TEST_CASE("a world of the swarm tells its calls, its segments and its lives") {
  std::string traced;
  const WorldReport report =
      run_world({.seed = 1, .number = 2, .trace = [&](std::string_view line) { (traced += line) += '\n'; }});
  CHECK(report.lives > 0);
  CHECK(traced.find("recv(") != std::string::npos);
  CHECK(traced.find("SYN") != std::string::npos);
  CHECK(traced.find("on_close") != std::string::npos);
}

TEST_CASE("a fuzzer's choices drive a world, however few they are") {
  std::array<std::byte, 300> choices{};
  for (std::size_t index = 0; index < choices.size(); ++index) choices[index] = static_cast<std::byte>(index * 31);
  const WorldReport driven = run_world({.seed = 1, .number = 0, .choices = choices});
  CHECK(driven.digest == run_world({.seed = 1, .number = 0, .choices = choices}).digest);
  CHECK(driven.digest != run_world({.seed = 1, .number = 0}).digest);
}

TEST_CASE("reports add up") {
  const WorldReport one = run_world({.seed = 3, .number = 0}), other = run_world({.seed = 3, .number = 1});
  WorldReport sum;
  sum += one;
  sum += other;
  CHECK(sum.lives == one.lives + other.lives);
  CHECK(std::accumulate(sum.reasons.begin(), sum.reasons.end(), std::uint64_t{0}) == sum.lives);
  CHECK(sum.steps == one.steps + other.steps);
  CHECK(sum.messages == one.messages + other.messages);
}

TEST_CASE("bytes of a stream that are missing, doubled or of another stream do not match it") {
  const std::string piece(SwarmText::piece(4, 1000, 500));
  CHECK(SwarmText::matches(4, 1000, piece));
  CHECK_FALSE(SwarmText::matches(5, 1000, piece));
  CHECK_FALSE(SwarmText::matches(4, 1001, piece));
  std::string altered = piece;
  altered[250] = static_cast<char>(altered[250] ^ 1);
  CHECK_FALSE(SwarmText::matches(4, 1000, altered));
  std::string whole;
  while (whole.size() < 300'000) whole += SwarmText::piece(7, whole.size(), 300'000 - whole.size());
  CHECK(SwarmText::matches(7, 0, whole));
  CHECK(SwarmText::matches(7, 200'000, whole.substr(200'000)));
}

TEST_CASE("worlds differ in whose reactors turn, and in the family of their addresses") {
  unsigned families[3] = {}, servers = 0, several_reactors = 0, signalled = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    sim::Random random(seed);
    const WorldPlan plan = draw_world(random);
    ++families[static_cast<std::size_t>(plan.family)];
    servers += plan.server_reactors != 0 ? 1U : 0U;
    several_reactors += plan.server_reactors > 1 ? 1U : 0U;
    signalled += plan.server_reactors != 0 && plan.server_is_signalled ? 1U : 0U;
    CHECK((plan.server_reactors == 0 || plan.sites.size() == 1));
    for (const SitePlan& site : plan.sites) CHECK(site.listener.v6_only == (plan.family != Family::both));
  }
  for (const unsigned worlds : families) CHECK(worlds > 10);
  CHECK(servers > 10);
  CHECK(servers < 100);
  CHECK(several_reactors > 10);
  CHECK(signalled > 5);
}

TEST_CASE("a backlog that held reading is forgiven as long as it may have held it, and no longer") {
  constexpr Duration tick = 1ms;
  const Instant opened{1h};
  LifeClocks clocks(resolve({.message = 200ms}, {}), tick);
  clocks.opened(opened);
  clocks.turn_ended(opened);
  clocks.may_be_held(opened + 10ms, DelayLog{});
  CHECK_FALSE(clocks.overdue(opened + 10s, {}, {}));
  clocks.holds_no_more(opened + 50ms);
  CHECK(clocks.earliest(Deadline::message, {}) == opened + 200ms);
  CHECK_FALSE(clocks.overdue(opened + 200ms + 40ms + 2 * tick, {}, {}));
  const auto late = clocks.overdue(opened + 200ms + 40ms + 2 * tick + 1ns, {}, {});
  REQUIRE(late);
  CHECK(late->kind == Deadline::message);
}

TEST_CASE("what a message was forgiven before reading may have been held, or before its timeout changed, it keeps") {
  constexpr Duration tick = 1ms;
  constexpr Duration kept = 1s;
  const Instant opened{1h};
  for (const bool held : {false, true}) {
    CAPTURE(held);
    LifeClocks clocks(resolve({.message = 200ms}, {}), tick);
    clocks.opened(opened);
    clocks.turn_ended(opened);
    DelayLog delays;
    delays.note(opened + kept, kept);
    const Instant late = opened + kept + 800ms;  // so long it had been due
    const Instant changed = opened + kept + 10ms;
    if (held) {
      clocks.may_be_held(changed, delays);
      clocks.holds_no_more(changed);
    } else {
      clocks.may_be_forgiven(changed, delays);
      clocks.timeout_changed(Deadline::message, 200ms, changed);
    }
    CHECK_FALSE(clocks.overdue(late, {}, delays));
    CHECK(clocks.overdue(late + 100ms, {}, delays));
  }
}

TEST_CASE("a message that may have begun before the loop was kept is forgiven as much as if it had") {
  constexpr Duration tick = 1ms;
  const Instant opened{1h};
  LifeClocks clocks(resolve({.message = 200ms}, {}), tick);
  clocks.opened(opened);
  clocks.message_ended(opened, false);
  clocks.received(opened, 1);
  clocks.turn_ended(opened + 1s);  // it began at some time in this turn
  DelayLog delays;
  delays.note(opened + 1s, 1s);
  CHECK_FALSE(clocks.overdue(opened + 200ms + 2 * 800ms, {}, delays));
  CHECK(clocks.overdue(opened + 200ms + 2 * 800ms + 100ms, {}, delays));
}

TEST_CASE("a grace that may have stood still is not shortened by the bytes that come after it") {
  constexpr Duration tick = 1ms;
  const Instant opened{1h};
  LifeClocks clocks(resolve({.receive_rate = {.bytes_per_second = 1000, .window = 100ms, .grace = 50ms}}, {}), tick);
  clocks.opened(opened);
  clocks.rate_changed(Deadline::receive_rate, {.bytes_per_second = 1000, .window = 100ms, .grace = 300ms}, opened);
  clocks.may_be_held(opened + 10ms, DelayLog{});
  clocks.received(opened + 1s, 1);
  clocks.received(opened + 1s, 1);
  clocks.turn_ended(opened + 1s);
  CHECK_FALSE(clocks.overdue(opened + 1800ms, {}, {}));
  CHECK(clocks.overdue(opened + 5s, {}, {}));
}
