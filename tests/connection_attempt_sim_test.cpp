// An attempt that a Unix listener's full queue refuses (EAGAIN), on virtual time: how often it is made again, and every way it
// ends.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr Duration tick = 1ms;

/// Attempts to reach a Unix listener whose queue is full for the first so many times they are made.
struct Crowded : Simulation {
  explicit Crowded(int refusals, Timeout connect_timeout = never) : Simulation({.timeouts = {.connect = connect_timeout}}) {
    for (int count = 0; count < refusals; ++count) kernel.will_fail(Call::connect, EAGAIN);
    kernel.forget_calls();
    began = kernel.now();
    const auto made = connector->connect("unix:/run/crowded");
    REQUIRE(made);
    attempt = *made;
    descriptor = attempt->descriptor();
  }

  /// When each connect was made, since the first.
  [[nodiscard]] std::vector<Duration> made_after() const {
    std::vector<Duration> after;
    for (const auto& call : kernel.calls())
      if (call.call == Call::connect) after.push_back(call.at - began);
    return after;
  }
  [[nodiscard]] std::size_t attempts() const { return kernel.count(Call::connect, descriptor); }

  Instant began{};
  ConnectionHandle attempt;
  int descriptor = -1;
};

}  // namespace

TEST_CASE("an attempt refused for a full queue is made again in growing steps, and opens when there is room") {
  Crowded world(10);
  world.run_for(5s);
  REQUIRE(world.story.opened == std::vector<int>{world.descriptor});
  const std::vector<Duration> after = world.made_after();
  REQUIRE(after.size() == 11);
  Duration step = 1ms;
  for (std::size_t index = 1; index < after.size(); ++index) {
    CAPTURE(index);
    CHECK(after[index] - after[index - 1] >= step);
    CHECK(after[index] - after[index - 1] <= step + tick);
    step = std::min<Duration>(2 * step, 100ms);
  }
  CHECK(world.attempt->is_open());
  world.kernel.peer_sends(world.descriptor, "hello");
  world.settle();
  CHECK(world.story.received[world.descriptor] == "hello");
}

TEST_CASE(
    "an attempt that waits for room is not given to the poller, which would call it hung up, and wakes for its retries only") {
  Crowded world(1'000);
  world.kernel.forget_calls();
  world.run_for(2s);
  CHECK(world.kernel.registered_for(world.descriptor) == 0);
  CHECK(world.attempts() >= 20);
  CHECK(world.attempts() <= 28);
  CHECK(world.kernel.count(Call::epoll_wait) <= 2 * world.attempts());
  CHECK(world.story.records.empty());
}

TEST_CASE("an attempt that finds no room ends at its connect deadline, by us") {
  Crowded world(1'000, 250ms);
  while (world.story.records.empty()) world.turn();
  const CloseRecord& record = world.story.record(world.descriptor);
  CHECK(record.reason == CloseReason::connect_timed_out);
  CHECK(record.origin == Origin::policy);
  CHECK(record.phase == Phase::connecting);
  CHECK(record.error_number == 0);
  CHECK(world.kernel.now() >= world.began + 250ms);
  CHECK(world.kernel.now() <= world.began + 250ms + tick);
  CHECK(world.story.opened.empty());
}

TEST_CASE("the deadline asks once more: room that came while the loop was stopped is not missed") {
  Crowded world(1, 250ms);
  world.kernel.will_oversleep(10s);
  world.run_for(1s);
  CHECK(world.story.opened == std::vector<int>{world.descriptor});
  CHECK(world.story.records.empty());
}

TEST_CASE("room found by the very question of the deadline opens the connection") {
  Crowded world(9, 300ms);  // the tenth would be made after 311 ms, were it not for the deadline
  world.run_for(1s);
  CHECK(world.story.opened == std::vector<int>{world.descriptor});
  const std::vector<Duration> after = world.made_after();
  REQUIRE(after.size() == 10);
  CHECK(after.back() >= 300ms);
  CHECK(after.back() <= 300ms + tick);
}

TEST_CASE("an attempt whose listener goes away meanwhile ends with what the kernel says then") {
  int error = 0;
  CloseReason reason{};
  SUBCASE("nobody listens any more") { error = ECONNREFUSED, reason = CloseReason::connect_refused; }
  SUBCASE("its path is gone") { error = ENOENT, reason = CloseReason::connect_failed; }
  Crowded world(3);
  world.kernel.will_fail(Call::connect, error);
  world.run_for(1s);
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == reason);
  CHECK(world.story.records[0].error_number == error);
  CHECK(std::string(world.story.records[0].operation) == "connect");
}

TEST_CASE("what was sent while an attempt waited for room leaves once it is open") {
  Crowded world(4);
  CHECK(world.attempt->send("early"));
  world.run_for(1s);
  CHECK(world.kernel.sent(world.descriptor) == "early");
}

TEST_CASE("an attempt that waits for room ends once, whoever ends it") {
  Crowded world(1'000);
  world.run_for(10ms);
  CloseReason reason = CloseReason::local_close;
  SUBCASE("close") { CHECK(world.attempt->close()); }
  SUBCASE("abort") { CHECK(world.attempt->abort()); }
  SUBCASE("shutdown") {
    reason = CloseReason::server_stopping;
    CHECK(world.reactor->shutdown(1s));
  }
  SUBCASE("the reactor's end") {
    reason = CloseReason::server_stopping;
    world.reactor.reset();
  }
  SUBCASE("a new connect timeout") {
    reason = CloseReason::connect_timed_out;
    CHECK(world.attempt->set_timeout(Deadline::connect, 50ms));
  }
  if (world.reactor) world.run_for(1s);
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == reason);
  CHECK(world.story.records[0].phase == Phase::connecting);
  CHECK(world.story.opened.empty());
}

TEST_CASE("a TCP attempt answered EAGAIN has no port left to come from: it fails at once") {
  Simulation world;
  world.kernel.will_fail(Call::connect, EAGAIN);
  const auto attempt = world.connector->connect("192.0.2.1:80");
  REQUIRE(attempt);
  world.settle();
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == CloseReason::connect_failed);
  CHECK(world.story.records[0].error_number == EAGAIN);
}

TEST_CASE("a connection that can't be watched when its attempt succeeds at last ends with system_error") {
  Crowded world(2);
  world.kernel.will_fail(Call::epoll_control, ENOSPC);
  world.run_for(1s);
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.records[0].reason == CloseReason::system_error);
  CHECK(world.story.opened.empty());
}
