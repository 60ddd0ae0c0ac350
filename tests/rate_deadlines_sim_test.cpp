// receive_rate and send_rate on virtual time: grace, windows one after another, what counts, and what is never judged.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <vector>

#include "support/deadline_world.hpp"

using namespace vigil;

namespace {

constexpr Duration tick = DeadlineWorld::tick;
constexpr Rate hundred{.bytes_per_second = 100, .window = 1s, .grace = 3s};

constexpr CloseReason reason_of(Deadline kind) {
  return kind == Deadline::receive_rate ? CloseReason::receive_too_slow : CloseReason::send_too_slow;
}

Timeouts with(Deadline kind, const Rate& rate) {
  Timeouts timeouts{.drain = 24h};
  timeouts.rate_of(kind) = rate;
  return timeouts;
}

/// An open connection that has much to receive, or to be acknowledged.
int accept(DeadlineWorld& world, Deadline kind) {
  const int peer = world.accept();
  if (kind == Deadline::receive_rate) return peer;
  world.kernel.will_not_acknowledge(peer);
  world.connection(peer).send(bytes_of(std::string(1'000'000, 's')));
  world.settle();
  return peer;
}

/// The peer moves so many bytes, and nobody is told of it where that is possible.
void move_bytes(DeadlineWorld& world, int peer, Deadline kind, std::size_t bytes) {
  if (kind == Deadline::receive_rate)
    world.kernel.peer_sends(peer, std::string(bytes, 'r'));
  else
    world.kernel.peer_acknowledges(peer, bytes);
}

constexpr Deadline both[] = {Deadline::receive_rate, Deadline::send_rate};

}  // namespace

TEST_CASE("within the grace nothing is judged; exactly enough bytes in each window are enough, one fewer is too slow") {
  for (const Deadline kind : both) {
    for (const std::size_t too_slow_in : {0U, 1U, 5U}) {
      INFO(std::string(to_string(kind)) << ", window " << too_slow_in);
      DeadlineWorld world(with(kind, hundred));
      const Instant opened = world.kernel.now();
      const int peer = accept(world, kind);
      world.run_until(opened + 3s + 500ms);
      for (std::size_t window = 0; window <= too_slow_in; ++window) {
        REQUIRE_FALSE(world.is_over(peer));
        move_bytes(world, peer, kind, window == too_slow_in ? 99 : 100);
        world.run_for(1s);
      }
      world.run_for(1s);
      world.check_end(peer, reason_of(kind), opened + 3s + (too_slow_in + 1) * Duration(1s), 2 * tick);
    }
  }
}

TEST_CASE("windows of receiving follow one another: that each is judged with a tick's delay adds up to nothing") {
  const Rate rate{.bytes_per_second = 100, .window = 10'300us, .grace = 2'700us};  // two bytes a window, which ends between ticks
  DeadlineWorld world(with(Deadline::receive_rate, rate));
  world.kernel.advance(400us);
  const Instant opened = world.kernel.now();
  const int peer = world.accept();
  for (int window = 0; window < 200; ++window) {
    world.run_until(opened + rate.grace + window * rate.window + 5ms);
    REQUIRE_FALSE(world.is_over(peer));
    world.kernel.peer_sends(peer, "xy");
  }
  world.run_for(1s);
  world.check_end(peer, CloseReason::receive_too_slow, opened + rate.grace + 201 * rate.window);
}

TEST_CASE("what comes between a window's end and its judging is not missing from the next") {
  const Rate rate{.bytes_per_second = 100, .window = 10'300us, .grace = 0s};
  DeadlineWorld world(with(Deadline::receive_rate, rate));
  const Instant opened = world.kernel.now();
  const int peer = world.accept();
  world.run_until(opened + 5ms);
  world.kernel.peer_sends(peer, "xy");
  world.kernel.at(opened + rate.window + 100us, [&] { world.kernel.peer_sends(peer, "ab"); });
  world.run_until(opened + rate.window + 200us);
  CHECK(world.story.received[peer] == "xyab");
  const Instant judged = opened + 11ms;  // the window that begins here has none, and no earlier one had too few
  world.run_for(1s);
  world.check_end(peer, CloseReason::receive_too_slow, judged + rate.window);
}

TEST_CASE("bytes of the grace count for no window") {
  for (const Deadline kind : both) {
    INFO(std::string(to_string(kind)));
    DeadlineWorld world(with(kind, hundred));
    const Instant opened = world.kernel.now();
    const int peer = accept(world, kind);
    world.run_for(2900ms);
    move_bytes(world, peer, kind, 100'000);
    world.run_for(10s);
    world.check_end(peer, reason_of(kind), opened + 4s, 2 * tick);
  }
}

TEST_CASE("a peer that pauses for less than a window and catches up is not too slow") {
  for (const Deadline kind : both) {
    INFO(std::string(to_string(kind)));
    DeadlineWorld world(with(kind, hundred));
    const Instant opened = world.kernel.now();
    const int peer = accept(world, kind);
    for (int window = 0; window < 20; ++window) {
      world.run_until(opened + 3s + window * Duration(1s) + 950ms);
      REQUIRE_FALSE(world.is_over(peer));
      move_bytes(world, peer, kind, 100);
    }
    world.run_for(3s);
    CHECK(world.is_over(peer));
  }
}

TEST_CASE("the node fires for windows and samples only, whatever moves") {
  for (const Deadline kind : both) {
    INFO(std::string(to_string(kind)));
    DeadlineWorld world(with(kind, hundred));
    const int peer = accept(world, kind);
    world.run_for(3500ms);
    const std::uint64_t fired = world.reactor->counters().timers_fired;
    for (int step = 0; step < 1000; ++step) {
      move_bytes(world, peer, kind, 10);
      world.run_for(10ms);
    }
    CHECK_FALSE(world.is_over(peer));
    const std::uint64_t per_window = kind == Deadline::receive_rate ? 1 : 9;
    CHECK(world.reactor->counters().timers_fired - fired <= 10 * per_window + 2);
  }
}

TEST_CASE("between messages nobody is too slow, and each message has its own grace") {
  for (const Rate& rate : {hundred, Rate{.bytes_per_second = 100, .window = 1s, .grace = 0s},
                           Rate{.bytes_per_second = 100, .window = 8s, .grace = 2s}}) {
    INFO("window " << rate.window.count() << " grace " << rate.grace.count());
    DeadlineWorld world(with(Deadline::receive_rate, rate));
    const int peer = world.accept();
    world.mark_lines();
    Instant began{};
    for (const Duration idle : {Duration(0), Duration(700ms), Duration(1h)}) {
      world.kernel.peer_sends(peer, "end\n");
      world.run_for(idle);
      REQUIRE_FALSE(world.is_over(peer));
      began = world.kernel.now();
      world.kernel.peer_sends(peer, "begin");
      world.run_for(rate.grace / 2 + rate.window / 2);
      REQUIRE_FALSE(world.is_over(peer));
    }
    world.run_for(1h);
    world.check_end(peer, CloseReason::receive_too_slow, began + rate.grace + rate.window, 2 * tick);
  }
}

TEST_CASE("a grace shorter than an eighth of its window may last that long, not longer") {
  DeadlineWorld world(with(Deadline::receive_rate, {.bytes_per_second = 100, .window = 8s, .grace = 10ms}));
  const int peer = world.accept();
  world.mark_lines();
  world.kernel.peer_sends(peer, "end\n");
  const std::uint64_t fired = world.reactor->counters().timers_fired;
  world.run_for(1h);
  CHECK(world.reactor->counters().timers_fired - fired <= 3600 + 1);
  const Instant began = world.kernel.now();
  world.kernel.peer_sends(peer, "begin");
  world.run_for(1h);
  world.check_end(peer, CloseReason::receive_too_slow, began + 10ms + 8s, 1s + 2 * tick);
}

TEST_CASE("a stream that ends a message and begins the next in one read is measured by the next") {
  DeadlineWorld world(with(Deadline::receive_rate, {.bytes_per_second = 100, .window = 1s, .grace = 0s}));
  const int peer = world.accept();
  world.consume = [](Connection& connection, std::string_view text) {
    const std::size_t end = text.rfind('\n');
    if (end == std::string_view::npos) return std::size_t{0};
    connection.end_message();
    return end + 1;
  };
  world.run_for(500ms);
  const Instant began = world.kernel.now();
  world.kernel.peer_sends(peer, std::string(500, 'x') + "\nbegun");
  world.run_for(1h);
  world.check_end(peer, CloseReason::receive_too_slow, began + 1s, 2 * tick);
}

TEST_CASE("a window in which all was acknowledged that was outstanding at its beginning is not too slow, however few bytes") {
  DeadlineWorld world(with(Deadline::send_rate, {.bytes_per_second = 1'000'000, .window = 1s, .grace = 0s}));
  const int peer = world.accept();
  world.kernel.will_not_acknowledge(peer);
  world.connection(peer).send(bytes_of("x"));
  // One byte is outstanding at every moment, and each is acknowledged within a window.
  for (int byte = 0; byte < 100; ++byte) {
    world.run_for(900ms);
    REQUIRE_FALSE(world.is_over(peer));
    world.connection(peer).send(bytes_of("x"));
    world.settle();
    world.kernel.peer_acknowledges(peer, 1);
  }
  world.run_for(3s);
  CHECK(world.story.record(peer).reason == CloseReason::send_too_slow);
}

TEST_CASE("the send rate rests while nothing is outstanding, and what is sent then has its grace") {
  DeadlineWorld world(with(Deadline::send_rate, hundred));
  const int peer = world.accept();
  world.connection(peer).send(bytes_of("taken and acknowledged"));
  world.run_for(10s);
  const std::uint64_t fired = world.reactor->counters().timers_fired;
  world.kernel.forget_calls();
  world.run_for(1h);
  CHECK(world.kernel.calls().size() == world.kernel.count(sys::Call::epoll_wait));  // nothing is sampled
  CHECK(world.reactor->counters().timers_fired == fired);
  world.kernel.will_not_acknowledge(peer);
  const Instant sent = world.kernel.now();
  world.connection(peer).send(bytes_of(std::string(1000, 'x')));
  world.run_for(10s);
  world.check_end(peer, CloseReason::send_too_slow, sent + 4s, 125ms + 2 * tick);
}

TEST_CASE("a slow reader that drains is never closed by `send`, but by `send_rate` if that asks for more") {
  for (const std::uint64_t bytes_per_second : {std::uint64_t{0}, std::uint64_t{50}, std::uint64_t{200}}) {
    DeadlineWorld world(
        {.send = 1s, .send_rate = {.bytes_per_second = bytes_per_second, .window = 2s, .grace = 1s}, .drain = 24h});
    const int peer = accept(world, Deadline::send_rate);
    for (int step = 0; step < 400 && !world.is_over(peer); ++step) {
      world.kernel.peer_acknowledges(peer, 80);
      world.run_for(800ms);
    }
    CHECK(world.is_over(peer) == (bytes_per_second == 200));
    if (world.is_over(peer)) CHECK(world.story.record(peer).reason == CloseReason::send_too_slow);
  }
}

TEST_CASE("a rate of the send side runs while draining; of the receive side it does not") {
  SUBCASE("send") {
    DeadlineWorld world(with(Deadline::send_rate, hundred));
    const Instant opened = world.kernel.now();
    const int peer = accept(world, Deadline::send_rate);
    world.connection(peer).close();
    for (int step = 0; step < 6; ++step) {
      world.run_for(990ms);
      move_bytes(world, peer, Deadline::send_rate, 100);
    }
    REQUIRE_FALSE(world.is_over(peer));
    world.run_for(10s);
    world.check_end(peer, CloseReason::local_close, opened + 6s, 2s + 125ms);
    CHECK(world.story.record(peer).cut_short == CutShort::timed_out);
  }
  SUBCASE("receive") {
    DeadlineWorld world(with(Deadline::receive_rate, hundred));
    const int peer = world.accept();
    world.connection(peer).close();
    world.run_for(1h);
    CHECK_FALSE(world.is_over(peer));
  }
}

// Setting them
// --------------------------------------------------------------------------------------------------------------------

TEST_CASE("the nearest layer's rate counts: process, reactor, listener, connection") {
  const struct Restored {
    Timeouts before = default_timeouts();
    ~Restored() { (void)set_default_timeouts(before); }
  } restored;
  const auto slow_after = [](Duration grace) { return Rate{.bytes_per_second = 1, .window = 1s, .grace = grace}; };
  for (const Deadline kind : both) {
    for (int layers = 1; layers <= 4; ++layers) {
      INFO(std::string(to_string(kind)) << ", layers " << layers);
      Timeouts process = restored.before;
      process.rate_of(kind) = slow_after(1s);
      REQUIRE(set_default_timeouts(process));
      ReactorOptions reactor_options;
      if (layers >= 2) reactor_options.timeouts.rate_of(kind) = slow_after(2s);
      Timeouts own{.drain = 24h};
      if (layers >= 3) own.rate_of(kind) = slow_after(3s);
      DeadlineWorld world(own, reactor_options);
      if (layers >= 4) world.story.on_open = [&](Connection& connection) { CHECK(connection.set_rate(kind, slow_after(4s))); };
      const Instant opened = world.kernel.now();
      const int peer = accept(world, kind);
      world.run_for(20s);
      world.check_end(peer, reason_of(kind), opened + layers * Duration(1s) + 1s, 125ms + 2 * tick);
    }
  }
}

TEST_CASE("set_rate begins anew: from then on, with its own grace") {
  for (const Deadline kind : both) {
    for (const bool never_between : {true, false}) {
      INFO(std::string(to_string(kind)) << (never_between ? ", never, and back to what it inherits" : ", another rate"));
      DeadlineWorld world(with(kind, hundred));
      const int peer = accept(world, kind);
      world.run_for(3900ms);
      if (never_between) {
        CHECK(world.connection(peer).set_rate(kind, Rate::never()));
        world.run_for(1h);
        REQUIRE_FALSE(world.is_over(peer));
      }
      const Instant set = world.kernel.now();
      CHECK(
          world.connection(peer).set_rate(kind, never_between ? Rate{} : Rate{.bytes_per_second = 1, .window = 4s, .grace = 2s}));
      world.run_for(1h);
      world.check_end(peer, reason_of(kind), set + (never_between ? 4s : 6s), 500ms + 2 * tick);
    }
  }
}

TEST_CASE("a rate that is refused changes nothing") {
  for (const Deadline kind : both) {
    INFO(std::string(to_string(kind)));
    DeadlineWorld world(with(kind, hundred));
    const Instant opened = world.kernel.now();
    const int peer = accept(world, kind);
    world.run_for(3900ms);
    Connection& connection = world.connection(peer);
    for (const Rate& wrong : {Rate{.bytes_per_second = 1, .window = 0s}, Rate{.bytes_per_second = 1, .window = 1s, .grace = -1ns},
                              Rate{.bytes_per_second = 1, .window = longest_timeout + 1ns}})
      CHECK(connection.set_rate(kind, wrong).error().code == EINVAL);
    CHECK(connection.set_rate(Deadline::receive, hundred).error().code == EINVAL);
    world.run_for(1h);
    world.check_end(peer, reason_of(kind), opened + 4s, 125ms + 2 * tick);
  }
}

TEST_CASE("a window stands still while reading is paused, and so does a grace") {
  for (const Duration paused_after : {Duration(1s), Duration(3500ms)}) {
    DeadlineWorld world(with(Deadline::receive_rate, hundred));
    const Instant opened = world.kernel.now();
    const int peer = world.accept();
    world.run_for(paused_after);
    CHECK(world.connection(peer).pause_reading());
    world.run_for(10s);
    CHECK(world.connection(peer).resume_reading());
    world.run_for(1h);
    world.check_end(peer, CloseReason::receive_too_slow, opened + 14s, 2 * tick);
  }
}

TEST_CASE("a rate set while reading is paused has its whole grace from the resume") {
  DeadlineWorld world({.drain = 24h});
  const int peer = world.accept();
  CHECK(world.connection(peer).pause_reading());
  world.run_for(10s);
  CHECK(world.connection(peer).set_rate(Deadline::receive_rate, hundred));
  world.run_for(10s);
  const Instant resumed = world.kernel.now();
  CHECK(world.connection(peer).resume_reading());
  world.run_for(1h);
  world.check_end(peer, CloseReason::receive_too_slow, resumed + 4s, 2 * tick);
}

TEST_CASE("what a callback gives before it works for long has its grace from when it leaves, whoever looks before") {
  for (const bool looked_at : {false, true}) {
    CAPTURE(looked_at);
    Timeouts timeouts = with(Deadline::send_rate, {.bytes_per_second = 100, .window = 1s, .grace = 500ms});
    timeouts.receive = 5s;
    DeadlineWorld world(timeouts);
    const int peer = world.accept();
    world.run_for(4s);
    world.kernel.peer_sends(peer, "x");  // the node stays at 5 s, and moves when it is looked at there
    world.settle();
    world.kernel.will_not_acknowledge(peer);
    Instant left{};  // when the callback returns
    const auto give = [&] {
      world.connection(peer).send(bytes_of(std::string(1000, 's')));
      world.kernel.advance(700ms);
      left = world.kernel.now();
    };
    Timer timer(*world.reactor, give);
    if (looked_at) {
      REQUIRE(timer.arm_after(500ms));
      // The loop comes late to both: the timer's callback first, then the node, and only then what was given leaves.
      REQUIRE(world.reactor->post([&] { world.kernel.advance(1500ms); }));
    } else {
      REQUIRE(world.reactor->post(give));
    }
    world.run_for(4s);
    REQUIRE(left != Instant{});
    world.run_for(1min);
    world.check_end(peer, CloseReason::send_too_slow, left + 1500ms, 125ms + 3 * tick);
  }
}

TEST_CASE("a rate set on an attempt counts from its open") {
  DeadlineWorld world({.drain = 24h});
  const int peer = world.connect();
  CHECK(world.connection(peer).set_rate(Deadline::receive_rate, hundred));
  world.run_for(30s);
  world.kernel.peer_accepts(peer);
  const Instant opened = world.kernel.now();
  world.run_for(1h);
  world.check_end(peer, CloseReason::receive_too_slow, opened + 4s, 2 * tick);
}

TEST_CASE("the largest rate there is can be asked for, and is never fast enough") {
  for (const Deadline kind : both) {
    for (const Duration grace : {Duration(0), Duration(1s)}) {
      DeadlineWorld world(with(kind, {.bytes_per_second = Rate::inherited - 1, .window = 2s, .grace = grace}));
      const Instant opened = world.kernel.now();
      const int peer = accept(world, kind);
      move_bytes(world, peer, kind, 1000);
      world.settle();
      world.connection(peer).begin_message();
      world.run_for(1h);
      world.check_end(peer, reason_of(kind), opened + grace + 2s, 250ms + 2 * tick);
    }
  }
}

TEST_CASE("no rate at all judges nobody, whatever else it says") {
  for (const Deadline kind : both) {
    DeadlineWorld world(with(kind, {.bytes_per_second = 0, .window = 1ms, .grace = 0s}));
    const int peer = accept(world, kind);
    CHECK(world.connection(peer).pause_reading());  // for a side block
    CHECK(world.connection(peer).resume_reading());
    world.run_for(1h);
    CHECK_FALSE(world.is_over(peer));
  }
}
