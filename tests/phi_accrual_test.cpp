// The adaptive threshold: the formula, the window, and what may be asked of it.
#include "vigil/phi_accrual.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include "support/seed.hpp"
#include "vigil/heartbeat_options.hpp"

using namespace vigil;
using namespace std::chrono_literals;

TEST_SUITE_BEGIN("heartbeat");

TEST_CASE("phi is the tail of the normal distribution, in powers of ten") {
  // Q(z) from tables: Q(0) = 0.5, Q(1) = 0.158655, Q(2.326348) = 0.01, Q(5.612001) = 1e-8.
  CHECK(phi(1s, 1s, 100ms) == doctest::Approx(0.30103).epsilon(1e-4));
  CHECK(phi(1100ms, 1s, 100ms) == doctest::Approx(0.79955).epsilon(1e-4));
  CHECK(phi(1232'634'787ns, 1s, 100ms) == doctest::Approx(2.0).epsilon(1e-5));
  CHECK(phi(1561'200'100ns, 1s, 100ms) == doctest::Approx(8.0).epsilon(1e-5));
  CHECK(phi(0s, 1s, 100ms) < 1e-9);
  CHECK(phi(24h, 1s, 1ms) == 300);
  CHECK(phi(1s, 1s, 0s) > 0);
}

TEST_CASE("the threshold's place in time is the formula solved: phi is there what was asked for") {
  CHECK(phi_deviations(8) == doctest::Approx(5.612001).epsilon(1e-6));
  CHECK(phi_deviations(2) == doctest::Approx(2.326348).epsilon(1e-6));
  std::mt19937_64 random(test::seed_of("phi's thresholds"));
  for (int round = 0; round < 200; ++round) {
    const double threshold = std::uniform_real_distribution(1.0, 100.0)(random);
    const Duration mean(std::uniform_int_distribution<std::int64_t>(0, 10'000'000'000)(random));
    const Duration deviation(std::uniform_int_distribution<std::int64_t>(1'000'000, 3'000'000'000)(random));
    const Duration there = mean + Duration(std::llround(phi_deviations(threshold) * static_cast<double>(deviation.count())));
    INFO("threshold " << threshold << ", mean " << mean.count() << ", deviation " << deviation.count());
    CHECK(phi(there, mean, deviation) == doctest::Approx(threshold).epsilon(1e-4));
  }
}

TEST_CASE("the window keeps the last 64 answers, and their mean and deviation are what the definition says") {
  AnswerTimes times;
  CHECK(times.count() == 0);
  CHECK(times.mean() == 0s);
  CHECK(times.deviation() == 0s);
  std::mt19937_64 random(test::seed_of("answers' times"));
  std::vector<double> all;
  for (int round = 0; round < 200; ++round) {
    const auto took = std::chrono::microseconds(random() % 5'000'000);
    times.add(took);
    all.push_back(static_cast<double>(took.count()));
    const std::size_t kept = std::min<std::size_t>(all.size(), 64);
    double sum = 0, squares = 0;
    for (std::size_t index = all.size() - kept; index < all.size(); ++index) sum += all[index];
    const double mean = sum / static_cast<double>(kept);
    for (std::size_t index = all.size() - kept; index < all.size(); ++index) squares += (all[index] - mean) * (all[index] - mean);
    CHECK(times.count() == kept);
    CHECK(std::abs(static_cast<double>(times.mean().count()) / 1000 - mean) <= 1);
    CHECK(std::abs(static_cast<double>(times.deviation().count()) / 1000 - std::sqrt(squares / static_cast<double>(kept))) <= 2);
  }
  AnswerTimes none, longest;
  none.add(-1s);
  CHECK(none.mean() == 0s);
  longest.add(1000h);
  CHECK(longest.mean() == std::chrono::microseconds(UINT32_MAX));
}

TEST_CASE("an adaptive threshold that can't be, or has nothing to say, is refused") {
  const auto why = [](HeartbeatOptions options, PhiAccrual phi) {
    options.phi = phi;
    const auto plan = plan_heartbeat(options);
    return plan ? std::string() : std::string(plan.error().detail);
  };
  const HeartbeatOptions fine{.budget = 20s, .ping = "ping"};
  CHECK(why(fine, {}).empty());
  CHECK(why({}, {}) == "a heartbeat needs a budget");
  CHECK(why({.budget = 20s, .keepalive_only = true}, {}) ==
        "keepalive_only sends no pings: it takes no interval, misses, ping or phi");
  for (const double threshold : {0.99, 0.0, -8.0, 100.1, std::nan("")})
    CHECK(why(fine, {.threshold = threshold}) == "phi threshold out of range (1 to 100)");
  for (const std::uint32_t answers : {0U, 1U, 65U})
    CHECK(why(fine, {.least_answers = answers}) == "phi's least_answers out of range (2 to 64)");
  for (const Duration deviation : {Duration(0), Duration(999'999ns), Duration(1h + 1ns)})
    CHECK(why(fine, {.least_deviation = deviation}) == "phi's least_deviation out of range (1 ms to 1 h)");
  CHECK(why({.budget = 3s, .interval = 1s, .ping = "ping"}, {}) ==
        "heartbeat budget below two intervals and 1.5 s, before which phi has nothing to say");
  CHECK(why({.budget = 3s, .interval = 1s, .ping = "ping", .wants_verdict = false}, {}).empty());
}

TEST_CASE("the plan says where phi reaches its threshold, and from when on it may speak") {
  const auto plan = plan_heartbeat({.budget = 20s, .ping = "ping", .phi = PhiAccrual{.threshold = 2}});
  REQUIRE(plan);
  CHECK(plan->phi_deviations == doctest::Approx(2.326348).epsilon(1e-6));
  CHECK(plan->phi_from == 5s + 1500ms);
  CHECK(plan->told_within == 21s);
}

TEST_SUITE_END();
