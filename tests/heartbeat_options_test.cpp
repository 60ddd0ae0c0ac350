// What follows from a liveness budget, and what contradicts it.
#include "vigil/heartbeat_options.hpp"

#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>

using namespace vigil;
using namespace std::chrono_literals;

namespace {

HeartbeatPlan planned(const HeartbeatOptions& options) {
  const auto plan = plan_heartbeat(options);
  if (!plan) FAIL(describe(plan.error()));
  return *plan;
}

void check_refused(const HeartbeatOptions& options, const char* why) {
  const auto plan = plan_heartbeat(options, "listen");
  REQUIRE_FALSE(plan);
  CHECK(plan.error() == Error{"listen", EINVAL});
  CHECK(std::string(plan.error().detail) == why);
}

}  // namespace

TEST_SUITE_BEGIN("heartbeat");

TEST_CASE("without a budget there is no heartbeat") {
  CHECK_FALSE(planned({}).is_on());
  check_refused({.interval = 1s}, "a heartbeat needs a budget");
  check_refused({.misses = 3}, "a heartbeat needs a budget");
  check_refused({.ping = "ping"}, "a heartbeat needs a budget");
  check_refused({.keepalive_only = true}, "a heartbeat needs a budget");
}

TEST_CASE("from the budget alone: four intervals, three of them missed, and a second of grace") {
  const HeartbeatPlan plan = planned({.budget = 20s, .ping = "ping"});
  CHECK(plan.is_on());
  CHECK(plan.interval == 5s);
  CHECK(plan.misses == 3);
  CHECK(plan.told_within == 21s);
  CHECK(plan.keepalive_count == 0);
  CHECK(plan.user_timeout == 0s);
}

TEST_CASE("a short budget leaves a verdict the time it needs") {
  CHECK(planned({.budget = 1800ms}).interval == 300ms);
  CHECK(planned({.budget = 2s}).interval == 500ms);
  CHECK(planned({.budget = 1800ms, .wants_verdict = false}).interval == 450ms);
  check_refused({.budget = 1500ms}, "heartbeat budget below interval + 1.5 s, which a verdict needs");
  CHECK(planned({.budget = 100ms, .wants_verdict = false}).told_within == 100ms);
}

TEST_CASE("interval and misses can each be set by hand; the other follows") {
  CHECK(planned({.budget = 20s, .interval = 2s}).misses == 9);
  CHECK(planned({.budget = 20s, .misses = 4}).interval == 4s);
  CHECK(planned({.budget = 20s, .interval = 2s, .misses = 4}).misses == 4);
}

TEST_CASE("contradictions are refused, each with its reason") {
  check_refused({.budget = 0s}, "heartbeat budget out of range");
  check_refused({.budget = -1s}, "heartbeat budget out of range");
  check_refused({.budget = std::chrono::years(11)}, "heartbeat budget out of range");
  check_refused({.budget = 20s, .interval = 0s}, "heartbeat interval out of range");
  check_refused({.budget = 20s, .interval = 21s}, "heartbeat budget shorter than the interval");
  check_refused({.budget = 20s, .interval = 7s}, "heartbeat budget below three intervals");
  check_refused({.budget = 2s, .interval = 600ms}, "heartbeat budget below interval + 1.5 s, which a verdict needs");
  check_refused({.budget = 20s, .misses = 1}, "fewer than 2 heartbeat misses");
  check_refused({.budget = 20s, .interval = 5s, .misses = 4}, "more heartbeat misses than fit into the budget");
  check_refused({.budget = 20s, .misses = 100'000}, "more heartbeat misses than probes 1 ms apart fit into the budget");
  check_refused({.budget = 20s, .misses = 20'000}, "more heartbeat misses than probes 1 ms apart fit into the budget");
  CHECK(planned({.budget = 20s, .misses = 19'999}).interval == 1ms);
  check_refused({.budget = 20s, .ping = ""}, "an empty ping is no probe");
  check_refused({.budget = 20s, .grace = -1ns}, "heartbeat grace out of range");
  check_refused({.budget = 20s, .grace = 1001ms}, "heartbeat grace out of range");
  check_refused({.budget = 20s, .ping = "ping", .keepalive_only = true},
                "keepalive_only sends no pings: it takes no interval, misses, ping or phi");
}

TEST_CASE("keepalive alone fits into the budget in whole seconds, and the plan says where it can't") {
  const HeartbeatPlan plan = planned({.budget = 20s, .keepalive_only = true});
  CHECK(plan.keepalive_idle == 11s);
  CHECK(plan.keepalive_interval == 3s);
  CHECK(plan.keepalive_count == 3);
  CHECK(plan.user_timeout == 20s);
  CHECK(plan.told_within == 20s);
  for (Duration budget = 1s; budget <= 100s; budget += 300ms) {
    const HeartbeatPlan other = planned({.budget = budget, .keepalive_only = true});
    CHECK(other.told_within == other.keepalive_idle + other.keepalive_count * other.keepalive_interval);
    CHECK(other.user_timeout >= other.told_within);
    CHECK((other.told_within <= budget || budget < 4s));
  }
  CHECK(planned({.budget = 2500ms, .keepalive_only = true}).told_within == 4s);
}

TEST_CASE("keepalive_only takes no longer budget than the kernel can count") {
  CHECK(planned({.budget = 18h, .keepalive_only = true}).keepalive_idle <= 32767s);
  check_refused({.budget = 19h, .keepalive_only = true}, "heartbeat budget longer than keepalive_only can keep (18 h)");
}

TEST_SUITE_END();
