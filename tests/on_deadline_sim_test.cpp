// on_deadline on virtual time: who is asked, what each answer does, and what a handler may do meanwhile.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/deadline_world.hpp"

using namespace vigil;

namespace {

constexpr Duration tick = DeadlineWorld::tick;
constexpr Duration timeout = 2s;
const std::size_t window_bytes = 20;

struct Kind {
  Deadline deadline;
  CloseReason reason;
};

constexpr Kind kinds[] = {
    {Deadline::first_byte, CloseReason::first_byte_timed_out},
    {Deadline::receive, CloseReason::receive_timed_out},
    {Deadline::message, CloseReason::message_timed_out},
    {Deadline::receive_rate, CloseReason::receive_too_slow},
    {Deadline::send, CloseReason::send_timed_out},
    {Deadline::send_rate, CloseReason::send_too_slow},
};

bool is_of_sending(const Kind& kind) { return kind.deadline == Deadline::send || kind.deadline == Deadline::send_rate; }

Timeouts timeouts_of(const Kind& kind) {
  Timeouts timeouts{.drain = 24h};
  if (is_rate(kind.deadline))
    timeouts.rate_of(kind.deadline) = {.bytes_per_second = 10, .window = timeout, .grace = 0s};
  else
    timeouts.of(kind.deadline) = timeout;
  return timeouts;
}

Duration late_at_most(const Kind& kind) { return is_of_sending(kind) ? timeout / 8 + tick : tick; }

/// A connection on which this kind of deadline runs from now on.
int begin(DeadlineWorld& world, const Kind& kind) {
  world.mark_lines();
  const int peer = world.accept();
  if (kind.deadline == Deadline::receive) world.kernel.peer_sends(peer, "x");
  world.settle();
  if (!is_of_sending(kind)) return peer;
  world.kernel.will_not_acknowledge(peer);
  world.connection(peer).send(bytes_of(std::string(1000, 's')));
  world.settle();
  return peer;
}

/// What the ordinary rule begins anew with.
void relieve(DeadlineWorld& world, int peer, const Kind& kind) {
  if (kind.deadline == Deadline::receive) world.kernel.peer_sends(peer, "x");
  if (kind.deadline == Deadline::message) world.kernel.peer_sends(peer, "end\n");
  if (kind.deadline == Deadline::receive_rate) world.kernel.peer_sends(peer, std::string(window_bytes, 'x'));
  if (kind.deadline == Deadline::send) world.kernel.peer_acknowledges(peer, 1);
  if (kind.deadline == Deadline::send_rate) world.kernel.peer_acknowledges(peer, window_bytes);
  world.settle();
}

/// When each question came.
struct Questions {
  explicit Questions(DeadlineWorld& world, std::function<Duration(Connection&)> answer) {
    world.on_deadline = [this, &world, answer = std::move(answer)](Connection& connection, Deadline) {
      at.push_back(world.kernel.now());
      return answer(connection);
    };
  }
  std::vector<Instant> at;
};

}  // namespace

TEST_CASE("an answer of nothing or less closes at once, and the question comes once") {
  for (const Kind& kind : kinds) {
    for (const Duration answer : {Duration(0), Duration(-1), Duration::min()}) {
      INFO(std::string(to_string(kind.deadline)) << ", answer " << answer.count());
      DeadlineWorld world(timeouts_of(kind));
      world.on_deadline = [&](Connection&, Deadline) { return answer; };
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      world.run_for(10s);
      world.check_end(peer, kind.reason, start + timeout, late_at_most(kind));
      CHECK(world.asked == std::vector<Deadline>{kind.deadline});
    }
  }
}

TEST_CASE("more time is given from the answer on: never less, at most a tick more, and then the question comes again") {
  for (const Kind& kind : kinds) {
    for (const Duration answer : {Duration(1), Duration(3ms), Duration(2s), Duration(2500ms), Duration(1h)}) {
      INFO(std::string(to_string(kind.deadline)) << ", answer " << answer.count());
      DeadlineWorld world(timeouts_of(kind));
      Questions questions(world, [&](Connection&) { return questions.at.size() < 4 ? answer : Duration(0); });
      const Instant start = world.kernel.now();
      const int peer = begin(world, kind);
      world.run_for(timeout + 4 * std::max(answer, timeout));
      REQUIRE(questions.at.size() == 4);
      DeadlineWorld::check_instant(questions.at[0], start + timeout, late_at_most(kind));
      for (std::size_t index = 1; index < 4; ++index) {
        const Duration more = is_rate(kind.deadline) ? std::max(answer, timeout) : answer;  // a window is measured whole
        DeadlineWorld::check_instant(questions.at[index], questions.at[index - 1] + more, late_at_most(kind));
      }
      world.check_end(peer, kind.reason, questions.at[3], 0ns);
    }
  }
}

TEST_CASE("the longest duration is as good as for ever") {
  for (const Kind& kind : kinds) {
    INFO(std::string(to_string(kind.deadline)));
    DeadlineWorld world(timeouts_of(kind));
    world.on_deadline = [](Connection&, Deadline) { return Duration::max(); };
    const int peer = begin(world, kind);
    world.run_for(12h);
    CHECK_FALSE(world.is_over(peer));
    CHECK(world.asked.size() == 1);
  }
}

TEST_CASE("more time counts once: with the next byte, message or acknowledgement the ordinary rule returns") {
  for (const Kind& kind : kinds) {
    if (kind.deadline == Deadline::first_byte) continue;  // its next byte is its end
    INFO(std::string(to_string(kind.deadline)));
    DeadlineWorld world(timeouts_of(kind));
    Questions questions(world, [&](Connection&) { return questions.at.size() == 1 ? Duration(1h) : Duration(0); });
    const int peer = begin(world, kind);
    world.run_for(30s);
    REQUIRE(questions.at.size() == 1);
    relieve(world, peer, kind);
    Instant again = world.kernel.now();
    if (kind.deadline == Deadline::message) {
      world.run_for(5s);
      REQUIRE_FALSE(world.is_over(peer));
      again = world.kernel.now();
      world.kernel.peer_sends(peer, "the next one");
    }
    // A rate's answer says when the next window is judged; that one has its bytes now, the one after has none.
    if (is_rate(kind.deadline)) again = questions.at[0] + 1h;
    world.run_for(2h);
    if (kind.deadline == Deadline::receive_rate || kind.deadline == Deadline::send_rate) {
      world.check_end(peer, kind.reason, again, timeout / 8 + tick);  // the bytes came before its window opened
    } else {
      world.check_end(peer, kind.reason, again + timeout, late_at_most(kind));
    }
  }
}

TEST_CASE("a message begun after more time was given for the one before is measured by its own rate") {
  DeadlineWorld world({.receive_rate = {.bytes_per_second = 10, .window = timeout, .grace = 1s}});
  Questions questions(world, [&](Connection&) { return questions.at.size() == 1 ? Duration(1h) : Duration(0); });
  const int peer = world.accept();
  world.mark_lines();
  world.run_for(30s);
  REQUIRE(questions.at.size() == 1);
  world.kernel.peer_sends(peer, "end\n");
  world.run_for(5s);
  const Instant began = world.kernel.now();
  world.kernel.peer_sends(peer, "x");
  world.run_for(1h);
  world.check_end(peer, CloseReason::receive_too_slow, began + 1s + timeout, 2 * tick);
}

TEST_CASE("the time that was given stands still while reading is paused") {
  for (const Kind& kind : kinds) {
    if (is_of_sending(kind)) continue;
    for (const Duration answer : {Duration(500ms), Duration(10s), Duration(1min)}) {
      INFO(std::string(to_string(kind.deadline)) << ", answer " << answer.count());
      DeadlineWorld world(timeouts_of(kind));
      Questions questions(world, [&](Connection&) { return questions.at.size() == 1 ? answer : Duration(0); });
      const int peer = begin(world, kind);
      world.run_for(timeout + 100ms);
      REQUIRE(questions.at.size() == 1);
      CHECK(world.connection(peer).pause_reading());
      world.run_for(30s);
      CHECK(world.connection(peer).resume_reading());
      world.run_for(2min);
      const Duration more = is_rate(kind.deadline) ? std::max(answer, timeout) : answer;
      world.check_end(peer, kind.reason, questions.at[0] + more + 30s, 2 * tick);
    }
  }
}

TEST_CASE("nobody is asked of connect and drain, nor once closing") {
  SUBCASE("connect") {
    DeadlineWorld world({.connect = 1s});
    const int attempt = world.connect();
    world.run_for(5s);
    CHECK(world.story.record(attempt).reason == CloseReason::connect_timed_out);
    CHECK(world.asked.empty());
  }
  SUBCASE("drain, of a handler that forgot to close") {
    DeadlineWorld world({.drain = 1s});
    const int peer = world.accept();
    world.kernel.peer_finishes(peer);
    world.run_for(5s);
    CHECK(world.story.record(peer).reason == CloseReason::drain_timed_out);
    CHECK(world.asked.empty());
  }
  SUBCASE("drain, send and send_rate of a connection that is closing") {
    for (const Timeouts& timeouts : {Timeouts{.drain = 1s}, Timeouts{.send = 1s, .drain = 1h},
                                     Timeouts{.send_rate = {.bytes_per_second = 1}, .drain = 1h}}) {
      DeadlineWorld world(timeouts);
      const int peer = world.accept();
      world.kernel.will_not_acknowledge(peer);
      world.connection(peer).send(bytes_of("unheard"));
      world.connection(peer).close();
      world.run_for(20s);
      CHECK(world.story.record(peer).reason == CloseReason::local_close);
      CHECK(world.story.record(peer).cut_short == CutShort::timed_out);
      CHECK(world.asked.empty());
    }
  }
}

TEST_CASE("more time given to a peer that takes nothing does not keep a close waiting") {
  for (const Timeout send : {Timeout(1s), never}) {
    DeadlineWorld world({.send = send, .send_rate = {.bytes_per_second = 1, .window = 1s, .grace = 0s}, .drain = 3s});
    world.on_deadline = [](Connection&, Deadline) { return Duration::max(); };
    const int peer = world.accept();
    world.kernel.will_take(peer, 10);
    world.kernel.will_not_acknowledge(peer);
    world.connection(peer).send(bytes_of(std::string(100, 'x')));
    world.run_for(1h);
    REQUIRE_FALSE(world.is_over(peer));
    const Instant closed = world.kernel.now();
    world.connection(peer).close();
    world.run_for(1h);
    const Duration owed = send.is_never() ? Duration(3s) : Duration(1s);
    world.check_end(peer, CloseReason::local_close, closed + owed, owed / 8 + tick);
    CHECK(world.story.record(peer).cut_short == CutShort::timed_out);
  }
}

// What a handler may do when it is asked
// ------------------------------------------------------------------------------------------

namespace {

/// One deadline of each kind, whose handler acts when it is asked first, answers `answer`, and then nothing.
template <class Act, class Check>
void when_asked(Act act, Check check) {
  for (const Kind& kind : kinds) {
    for (const Duration answer : {Duration(0), Duration(10s)}) {
      INFO(std::string(to_string(kind.deadline)) << ", answer " << answer.count());
      DeadlineWorld world(timeouts_of(kind));
      world.on_deadline = [&](Connection& connection, Deadline) {
        if (world.asked.size() > 1) return Duration(0);
        act(connection, kind);
        return answer;
      };
      const Instant due = world.kernel.now() + timeout;
      const int peer = begin(world, kind);
      world.run_for(60s);
      check(world, peer, kind, due, answer);
    }
  }
}

}  // namespace

TEST_CASE("a handler that closes when it is asked has its close, whatever it answers") {
  when_asked([](Connection& connection, const Kind&) { CHECK(connection.close()); },
             [](DeadlineWorld& world, int peer, const Kind& kind, Instant, Duration) {
               CHECK(world.kernel.sent_end(peer));
               // Those of sending run while it closes, and this one is due.
               CHECK(world.is_over(peer) == is_of_sending(kind));
               world.kernel.peer_finishes(peer);
               world.settle();
               CHECK(world.story.record(peer).reason == CloseReason::local_close);
               CHECK(world.story.record(peer).cut_short == (is_of_sending(kind) ? CutShort::timed_out : CutShort::none));
             });
}

TEST_CASE("a handler that aborts when it is asked has its reset, whatever it answers") {
  when_asked([](Connection& connection, const Kind&) { CHECK(connection.abort()); },
             [](DeadlineWorld& world, int peer, const Kind& kind, Instant due, Duration) {
               world.check_end(peer, CloseReason::local_close, due, late_at_most(kind));
               CHECK(world.kernel.ending(peer) == sys::Ending::reset);
             });
}

TEST_CASE("a handler that sends when it is asked is heard if it gives more time") {
  when_asked([](Connection& connection, const Kind&) { CHECK(connection.send(bytes_of("are you there?"))); },
             [](DeadlineWorld& world, int peer, const Kind& kind, Instant due, Duration answer) {
               world.check_end(peer, kind.reason, due + answer, 2 * late_at_most(kind) + tick);
               if (answer > 0ns) CHECK(world.kernel.sent(peer).ends_with("are you there?"));
             });
}

TEST_CASE("a handler that pauses reading when it is asked has the given time from the resume on") {
  when_asked([](Connection& connection, const Kind&) { CHECK(connection.pause_reading()); },
             [](DeadlineWorld& world, int peer, const Kind& kind, Instant due, Duration answer) {
               if (is_of_sending(kind) || answer == 0ns)
                 return world.check_end(peer, kind.reason, due + answer, 2 * late_at_most(kind) + tick);
               REQUIRE_FALSE(world.is_over(peer));
               const Instant resumed = world.kernel.now();
               CHECK(world.connection(peer).resume_reading());
               world.run_for(60s);
               world.check_end(peer, kind.reason, resumed + answer, 2 * tick);
             });
}

TEST_CASE("a handler that sets the timeout to never when it is asked, and back later, begins it anew where never does") {
  const auto set = [](Connection& connection, const Kind& kind, bool never_again) {
    if (is_rate(kind.deadline))
      CHECK(connection.set_rate(kind.deadline, never_again ? Rate::never() : Rate{}));
    else
      CHECK(connection.set_timeout(kind.deadline, never_again ? never : inherit));
  };
  when_asked([&](Connection& connection, const Kind& kind) { set(connection, kind, true); },
             [&](DeadlineWorld& world, int peer, const Kind& kind, Instant due, Duration answer) {
               if (answer == 0ns) return world.check_end(peer, kind.reason, due, late_at_most(kind));
               REQUIRE_FALSE(world.is_over(peer));
               const Instant back = world.kernel.now();
               set(world.connection(peer), kind, false);
               world.run_for(60s);
               // The others of receiving are judged from their old beginning.
               const bool anew = is_of_sending(kind) || is_rate(kind.deadline);
               world.check_end(peer, kind.reason, anew ? back + timeout : back, late_at_most(kind) + 2 * tick);
             });
}

TEST_CASE("more time given to `send` stays although the handler has sent and set it anew when it was asked") {
  const Kind& send = kinds[4];
  for (const Duration answer : {Duration(500ms), Duration(30s)}) {
    CAPTURE(answer.count());
    DeadlineWorld world(timeouts_of(send));
    Questions questions(world, [&](Connection& connection) {
      if (questions.at.size() > 1) return Duration(0);
      CHECK(connection.send(bytes_of("more")));
      CHECK(connection.set_timeout(Deadline::send, never));
      CHECK(connection.set_timeout(Deadline::send, timeout));
      return answer;
    });
    const int peer = begin(world, send);
    world.run_for(1min);
    REQUIRE(questions.at.size() == 2);
    DeadlineWorld::check_instant(questions.at[1], questions.at[0] + answer, late_at_most(send));
    world.check_end(peer, send.reason, questions.at[1], 0ns);
  }
}

TEST_CASE("more time given to a rate of sending stays when a send timeout is set") {
  const Kind& rate = kinds[5];
  DeadlineWorld world(timeouts_of(rate));
  Questions questions(world, [](Connection&) { return 30s; });
  const int peer = begin(world, rate);
  world.run_for(timeout + late_at_most(rate));
  REQUIRE(questions.at.size() == 1);
  Connection& connection = world.connection(peer);
  CHECK(connection.send(bytes_of("more")));  // leaves in the next turn, and so the send clock begins there
  CHECK(connection.set_timeout(Deadline::send, 1h));
  world.run_for(29s);
  CHECK(questions.at.size() == 1);
  world.run_for(4s);
  CHECK(questions.at.size() == 2);
}
