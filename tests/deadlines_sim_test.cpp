// Deadlines on virtual time: each kind in each state a connection can be in. What is peculiar to messages, to being asked for
// more time and to rates stands in message_deadlines_sim_test.cpp, on_deadline_sim_test.cpp and rate_deadlines_sim_test.cpp.
#include <doctest/doctest.h>

#include <chrono>
#include <random>
#include <string>

#include "support/deadline_world.hpp"
#include "support/seed.hpp"

using namespace vigil;

namespace {

constexpr Duration tick = DeadlineWorld::tick;
constexpr Duration long_drain = 24h;

struct Kind {
  Deadline deadline;
  CloseReason reason;
  bool of_receiving;  // stands still while reading is paused, ends with the peer's stream and with our close
};

constexpr Kind kinds[] = {
    {Deadline::connect, CloseReason::connect_timed_out, false},
    {Deadline::first_byte, CloseReason::first_byte_timed_out, true},
    {Deadline::receive, CloseReason::receive_timed_out, true},
    {Deadline::message, CloseReason::message_timed_out, true},
    {Deadline::receive_rate, CloseReason::receive_too_slow, true},
    {Deadline::send, CloseReason::send_timed_out, false},
    {Deadline::send_rate, CloseReason::send_too_slow, false},
    {Deadline::drain, CloseReason::local_close, false},
};

bool is_of_sending(const Kind& kind) { return kind.deadline == Deadline::send || kind.deadline == Deadline::send_rate; }
bool is_of_open_connection(const Kind& kind) { return kind.of_receiving || is_of_sending(kind); }

Rate rate_of(Duration window) { return {.bytes_per_second = 10'000, .window = window, .grace = 0ns}; }

/// This kind alone, and a drain deadline that does not interfere.
Timeouts timeouts_of(const Kind& kind, Duration timeout) {
  Timeouts timeouts{.drain = long_drain};
  if (is_rate(kind.deadline))
    timeouts.rate_of(kind.deadline) = rate_of(timeout);
  else
    timeouts.of(kind.deadline) = timeout;
  return timeouts;
}

/// Beyond the instant it is due: those of sending are sampled, and a window of theirs opens at a tick and is judged at another.
Duration late_at_most(const Kind& kind, Duration timeout) {
  return tick + (is_of_sending(kind) ? timeout / 8 : 0ns) + (kind.deadline == Deadline::send_rate ? tick : 0ns);
}

/// The deadline runs from now on. Returns the descriptor.
int begin(DeadlineWorld& world, const Kind& kind) {
  world.mark_lines();
  if (kind.deadline == Deadline::connect) return world.connect();
  const int peer = world.accept();
  if (is_of_sending(kind)) {
    world.kernel.will_not_acknowledge(peer);
    world.connection(peer).send(bytes_of(std::string(200'000, 's')));
  }
  if (kind.deadline == Deadline::drain) world.connection(peer).close();
  world.settle();
  return peer;
}

/// The peer does what the deadline waits for. Nobody is told of it where the kernel can keep silent: the deadline must ask.
void relieve(DeadlineWorld& world, int peer, const Kind& kind, Duration timeout) {
  const std::size_t wanted = rate_of(timeout).bytes_per_window();
  switch (kind.deadline) {
    case Deadline::connect:
      return world.kernel.peer_accepts(peer);
    case Deadline::message:
      return world.kernel.will_receive(peer, "the end\n");
    case Deadline::receive_rate:
      return world.kernel.will_receive(peer, std::string(wanted, 'r'));
    case Deadline::send:
      return world.kernel.peer_acknowledges(peer, 1);
    case Deadline::send_rate:
      return world.kernel.peer_acknowledges(peer, wanted);
    case Deadline::drain:
      return world.kernel.will_receive_end(peer);
    default:
      return world.kernel.will_receive(peer, "x");
  }
}

/// It is over, as this kind of deadline ends a connection.
void check_expired(DeadlineWorld& world, int peer, const Kind& kind, Instant due, Duration late) {
  world.check_end(peer, kind.reason, due, late);
  CHECK(world.story.record(peer).error_number == 0);
  CHECK(world.story.record(peer).origin == (kind.deadline == Deadline::drain ? Origin::local : Origin::policy));
  CHECK(world.story.record(peer).cut_short == (kind.deadline == Deadline::drain ? CutShort::timed_out : CutShort::none));
}

/// What the deadline waited for came in time.
void check_relieved(DeadlineWorld& world, int peer, const Kind& kind) {
  CHECK(world.is_over(peer) == (kind.deadline == Deadline::drain));
  if (world.is_over(peer)) CHECK(world.story.record(peer).cut_short == CutShort::none);
}

Duration random_duration(std::mt19937_64& random, Duration least, Duration most) {
  return Duration(std::uniform_int_distribution<std::int64_t>(least.count(), most.count())(random));
}

}  // namespace

TEST_CASE("each kind of deadline falls on time: never early, at most a tick late, of sending an eighth more") {
  std::mt19937_64 random(test::seed_of("deadlines that fall on time"));
  for (const Kind& kind : kinds) {
    INFO(std::string(to_string(kind.deadline)));
    for (int round = 0; round < 40; ++round) {
      const Duration timeout = random_duration(random, 1ms, round % 2 == 0 ? 20ms : 5s);
      INFO("timeout in ns: " << timeout.count());
      DeadlineWorld world(timeouts_of(kind, timeout));
      world.kernel.advance(random_duration(random, 0ns, 5ms));
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      world.run_for(2 * timeout + 10ms);
      check_expired(world, peer, kind, start + timeout, late_at_most(kind, timeout));
    }
  }
}

TEST_CASE("what the peer did just before a deadline beats it, though nobody was told") {
  const Duration timeout = 800ms;
  for (const Kind& kind : kinds) {
    for (const Duration before : {Duration(0), Duration(1), Duration(300us)}) {
      INFO(std::string(to_string(kind.deadline)) << ", " << before.count() << " ns before");
      DeadlineWorld world(timeouts_of(kind, timeout));
      world.kernel.advance(400us);
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      world.kernel.at(start + timeout - before, [&] { relieve(world, peer, kind, timeout); });
      world.run_until(start + timeout + 5ms);
      check_relieved(world, peer, kind);
      if (!is_of_open_connection(kind)) continue;
      world.run_for(2 * timeout);
      if (kind.deadline == Deadline::first_byte || kind.deadline == Deadline::message) {
        CHECK_FALSE(world.is_over(peer));  // it is done with
      } else {
        check_expired(world, peer, kind, start + 2 * timeout - before, late_at_most(kind, timeout) + tick);
      }
    }
  }
}

TEST_CASE("those of receiving stand still while reading is paused, and resume with the time that was left; others run on") {
  std::mt19937_64 random(test::seed_of("deadlines that stand still"));
  for (const Kind& kind : kinds) {
    if (!is_of_open_connection(kind)) continue;
    INFO(std::string(to_string(kind.deadline)));
    for (int round = 0; round < 20; ++round) {
      const Duration timeout = random_duration(random, 50ms, 3s);
      INFO("timeout in ns: " << timeout.count());
      DeadlineWorld world(timeouts_of(kind, timeout));
      world.kernel.advance(random_duration(random, 0ns, 5ms));
      const Instant start = world.kernel.now();
      if (round % 4 == 0) world.story.on_open = [](Connection& connection) { CHECK(connection.pause_reading()); };
      const int peer = begin(world, kind);
      const auto live = [&](Duration duration) {
        if (!world.is_over(peer)) world.run_for(duration);
      };
      Duration stood{};
      const auto pause_for = [&](Duration duration) {
        if (world.is_over(peer)) return;
        CHECK(world.connection(peer).pause_reading());
        CHECK(world.connection(peer).pause_reading());
        live(duration);
        if (world.is_over(peer)) return;
        CHECK(world.connection(peer).resume_reading());
        CHECK(world.connection(peer).resume_reading());
        stood += duration;
      };
      for (int pauses = 0; pauses < 4; ++pauses) {
        if (round % 4 != 0 || pauses > 0) live(random_duration(random, 0ns, timeout / 5));
        pause_for(random_duration(random, 0ns, 3 * timeout));
      }
      if (!kind.of_receiving) stood = 0ns;
      live(2 * timeout);
      check_expired(world, peer, kind, start + timeout + stood, late_at_most(kind, timeout));
    }
  }
}

TEST_CASE("a pause that began before the connection was open counts from the open") {
  for (const Kind& kind : kinds) {
    if (!kind.of_receiving) continue;
    INFO(std::string(to_string(kind.deadline)));
    DeadlineWorld world(timeouts_of(kind, 1s));
    const int peer = world.connect();
    CHECK(world.connection(peer).pause_reading());
    world.run_for(10s);
    world.kernel.peer_accepts(peer);
    world.run_for(10s);
    REQUIRE_FALSE(world.is_over(peer));
    const Instant resumed = world.kernel.now();
    CHECK(world.connection(peer).resume_reading());
    world.run_for(3s);
    check_expired(world, peer, kind, resumed + 1s, tick);
  }
}

TEST_CASE("those of receiving end with the peer's stream, those of sending run on") {
  for (const Kind& kind : kinds) {
    if (!is_of_open_connection(kind)) continue;
    INFO(std::string(to_string(kind.deadline)));
    DeadlineWorld world(timeouts_of(kind, 800ms));
    const Instant start = world.kernel.now();
    const int peer = begin(world, kind);
    world.run_for(400ms);
    world.kernel.peer_finishes(peer);
    world.run_for(10s);
    if (!kind.of_receiving) {
      check_expired(world, peer, kind, start + 800ms, late_at_most(kind, 800ms));
      continue;
    }
    CHECK_FALSE(world.is_over(peer));
    world.connection(peer).close();
    world.settle();
    CHECK(world.story.record(peer).reason == CloseReason::peer_finished);
  }
}

TEST_CASE("those of receiving end with our close, those of sending cut it short; after finish() all run on") {
  for (const bool closes : {true, false}) {
    for (const Kind& kind : kinds) {
      if (!is_of_open_connection(kind)) continue;
      INFO(std::string(to_string(kind.deadline)) << (closes ? ", close" : ", finish"));
      DeadlineWorld world(timeouts_of(kind, 800ms));
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      world.run_for(400ms);
      const auto begun = closes ? world.connection(peer).close() : world.connection(peer).finish();
      CHECK(begun);
      world.run_for(10s);
      if (!closes) {
        check_expired(world, peer, kind, start + 800ms, late_at_most(kind, 800ms));
      } else if (kind.of_receiving) {
        CHECK_FALSE(world.is_over(peer));
        world.kernel.peer_finishes(peer);
        world.settle();
        CHECK(world.story.record(peer).reason == CloseReason::local_close);
        CHECK(world.story.record(peer).cut_short == CutShort::none);
      } else {
        world.check_end(peer, CloseReason::local_close, start + 800ms, late_at_most(kind, 800ms));
        CHECK(world.story.record(peer).cut_short == CutShort::timed_out);
      }
      CHECK(world.asked.size() == (closes ? 0u : 1u));
    }
  }
}

// The loop that stood still
// ------------------------------------------------------------------------------------------------------

namespace {

enum class Stall { in_the_wait, in_a_callback, in_a_timer };

/// The loop stands still for 4 s from 300 ms before the deadline on; the peer does something 100 ms into it.
void stall_across(DeadlineWorld& world, Stall stall, Instant due, const std::function<void()>& meanwhile) {
  const auto stand_still = [&] { world.kernel.advance(4s); };
  int other = -1;
  Timer timer(*world.reactor, stand_still);
  if (stall == Stall::in_a_callback) {
    other = world.accept();
    const auto before = world.story.on_receive;
    world.story.on_receive = [&, other, before](Connection& connection, std::string_view text) {
      connection.descriptor() == other ? stand_still() : before(connection, text);
    };
    CHECK(world.connection(other).set_rate(Deadline::receive_rate, Rate::never()));
    CHECK(world.connection(other).set_timeout(Deadline::receive, never));
    CHECK(world.connection(other).set_timeout(Deadline::first_byte, never));
    CHECK(world.connection(other).set_timeout(Deadline::message, never));
  }
  const Instant begins = due - 300ms;
  world.kernel.at(begins + 100ms, meanwhile);
  switch (stall) {
    case Stall::in_the_wait:
      world.run_until(begins);
      world.kernel.will_oversleep(4s);
      break;
    case Stall::in_a_callback:
      world.kernel.at(begins, [&, other] { world.kernel.peer_sends(other, "work"); });
      break;
    case Stall::in_a_timer:
      REQUIRE(timer.arm_at(begins));
      break;
  }
  while (world.kernel.now() < begins + 4s) world.turn(begins + 4s - world.kernel.now());
  world.settle();
  if (other >= 0) world.connection(other).abort();
  world.settle();
}

}  // namespace

TEST_CASE("a loop that stood still for seconds closes no peer that did its part meanwhile") {
  const Duration timeout = 1s;
  for (const Stall stall : {Stall::in_the_wait, Stall::in_a_callback, Stall::in_a_timer}) {
    for (const Kind& kind : kinds) {
      INFO(std::string(to_string(kind.deadline)) << ", stall " << static_cast<int>(stall));
      DeadlineWorld world(timeouts_of(kind, timeout));
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      stall_across(world, stall, start + timeout, [&] { relieve(world, peer, kind, timeout); });
      check_relieved(world, peer, kind);
    }
  }
}

TEST_CASE("a loop that stood still for seconds still closes a peer that did nothing, with the true reason") {
  const Duration timeout = 1s;
  for (const Stall stall : {Stall::in_the_wait, Stall::in_a_callback, Stall::in_a_timer}) {
    for (const Kind& kind : kinds) {
      INFO(std::string(to_string(kind.deadline)) << ", stall " << static_cast<int>(stall));
      DeadlineWorld world(timeouts_of(kind, timeout));
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      stall_across(world, stall, start + timeout, [] {});
      const Instant looked = world.kernel.now();
      CHECK(world.is_over(peer) == !is_rate(kind.deadline));  // a rate is measured again, by a whole window
      world.run_for(2 * timeout);
      check_expired(world, peer, kind, is_rate(kind.deadline) ? looked + timeout : start + timeout,
                    is_rate(kind.deadline) ? 2 * tick : 4s + tick);
    }
  }
}

TEST_CASE("a send timeout set while bytes wait to leave counts from when they do") {
  DeadlineWorld world({.drain = long_drain});
  const int peer = world.accept();
  world.kernel.will_not_acknowledge(peer);
  REQUIRE(world.reactor->post([&] {
    world.connection(peer).send(bytes_of("news"));
    CHECK(world.connection(peer).set_timeout(Deadline::send, 1s));
    world.kernel.advance(700ms);
  }));
  world.settle();
  const Instant left = world.kernel.now();
  world.run_for(1min);
  world.check_end(peer, CloseReason::send_timed_out, left + 1s, 125ms + tick);
}

TEST_CASE(
    "a send timeout that was never for a while counts from when it is set again, also where a rate kept its clock running") {
  for (const bool has_rate : {false, true}) {
    CAPTURE(has_rate);
    Timeouts timeouts{.send = 10s, .drain = long_drain};
    if (has_rate) timeouts.send_rate = {.bytes_per_second = 1, .window = 2h, .grace = 0s};
    DeadlineWorld world(timeouts);
    const int peer = world.accept();
    world.kernel.will_not_acknowledge(peer);
    world.connection(peer).send(bytes_of("news"));
    world.run_for(5s);
    CHECK(world.connection(peer).set_timeout(Deadline::send, never));
    world.run_for(1h);
    REQUIRE_FALSE(world.is_over(peer));
    const Instant again = world.kernel.now();
    CHECK(world.connection(peer).set_timeout(Deadline::send, 10s));
    world.run_for(1min);
    world.check_end(peer, CloseReason::send_timed_out, again + 10s, 1250ms + tick);
  }
}

TEST_CASE("to send nothing restarts no drain, to send something does") {
  for (const bool something : {false, true}) {
    CAPTURE(something);
    DeadlineWorld world({.drain = 5s});
    const int peer = world.accept();
    world.kernel.peer_finishes(peer);
    world.settle();
    const Instant finished = world.kernel.now();
    world.run_for(3s);
    world.connection(peer).send(bytes_of(something ? "a word more" : ""));
    world.settle();
    world.run_for(1min);
    world.check_end(peer, CloseReason::drain_timed_out, finished + (something ? 8s : 5s));
  }
}
