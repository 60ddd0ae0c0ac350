// The rate limit is a plain value: time is a number the test moves.
#include "rate_limit.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using namespace std::chrono_literals;
using vigil::Duration;
using vigil::Instant;
using vigil::RateLimit;

constexpr Instant start{std::chrono::hours(1)};

/// How many are allowed at this instant.
int taken_at(RateLimit& limit, Instant now) {
  int taken = 0;
  for (; taken < 10'000'000 && limit.allows(now); ++taken) limit.take(now);
  return taken;
}

TEST_CASE("a rate limit allows a tenth of a second's worth at once, and at least one") {
  for (const std::uint32_t rate : {1U, 2U, 9U, 10U, 19U, 20U, 1000U, RateLimit::per_second_max}) {
    CAPTURE(rate);
    RateLimit limit(rate);
    CHECK(taken_at(limit, start) == RateLimit::burst_of(rate));
    CHECK(taken_at(limit, start) == 0);
    CHECK(taken_at(limit, limit.free_at() - 1ns) == 0);
    CHECK(taken_at(limit, limit.free_at()) == 1);
  }
  CHECK(RateLimit::burst_of(1) == 1);
  CHECK(RateLimit::burst_of(19) == 1);
  CHECK(RateLimit::burst_of(20) == 2);
  CHECK(RateLimit::burst_of(5000) == 500);
}

TEST_CASE("time that passes unused fills a rate limit to its burst and no further") {
  RateLimit limit(1000);
  CHECK(taken_at(limit, start) == 100);
  CHECK(taken_at(limit, start + 50ms) == 50);
  CHECK(taken_at(limit, start + 1h) == 100);
  CHECK(taken_at(limit, start + 1h + 1ms) == 1);
}

TEST_CASE("a rate of 0 is no limit") {
  RateLimit limit(0);
  for (int count = 0; count < 1000; ++count) {
    REQUIRE(limit.allows(start));
    limit.take(start);
  }
}

TEST_CASE("over any stretch of time no more than rate times its length and the burst are allowed, and hardly fewer") {
  std::mt19937_64 random(20'240'501);
  for (const std::uint32_t rate : {3U, 40U, 777U, 30'000U}) {
    CAPTURE(rate);
    RateLimit limit(rate);
    std::vector<Instant> taken;
    Instant now = start;
    // Somebody asks at irregular instants, sometimes after a long pause, and takes whatever he is given.
    const Instant end = start + 20s;
    while (now < end) {
      for (int count = taken_at(limit, now); count > 0; --count) taken.push_back(now);
      now += random() % 2000 == 0 ? Duration(random() % 1'000'000'000) : Duration(random() % 3'000'000);
    }
    // A stretch that begins and ends with an event is the worst of its length.
    double beyond = 0;
    for (int check = 0; check < 20'000; ++check) {
      const std::size_t first = random() % taken.size();
      const std::size_t last = first + random() % (taken.size() - first);
      const double seconds = std::chrono::duration<double>(taken[last] - taken[first]).count();
      beyond = std::max(beyond, static_cast<double>(last - first + 1) - rate * seconds);
    }
    CHECK(beyond <= static_cast<double>(RateLimit::burst_of(rate)) + 1e-6);
    CHECK(static_cast<double>(taken.size()) > 0.5 * rate * 20);
  }
}

}  // namespace
