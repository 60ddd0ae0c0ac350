// Whether the oracle can speak of heartbeats: each of its rules is shown a silence that breaks it, and one that does not.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>

#include "oracle.hpp"

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

namespace {

constexpr Instant start{1h};
constexpr Duration tick = 1ms;
constexpr Duration budget = 10s;
constexpr Duration interval = 2s;
constexpr Duration grace = 900ms;

/// A life with a heartbeat, at its end or in a silence, true unless a test alters it.
struct Watched {
  LifeNotes notes;
  CloseRecord record;
  sim::Truth truth;
  DelayLog delays;
  Instant now{};
  Instant turn_began{};

  void at(Instant instant) { now = turn_began = instant; }

  [[nodiscard]] Problems judged() const {
    Problems problems;
    judge_heartbeat({notes, record, truth, now, turn_began}, delays, problems);
    return problems;
  }
  [[nodiscard]] bool breaks(std::string_view rule) const {
    const Problems problems = judged();
    return std::any_of(problems.begin(), problems.end(), [&](const Problem& one) { return one.rule == rule; });
  }
  [[nodiscard]] std::string told() const {
    std::string text;
    for (const Problem& one : judged()) text += std::string(one.rule) + ": " + one.told + "\n";
    return text;
  }
};

/// 100 bytes were received at `start`, where everything of ours had been acknowledged.
constexpr HeartbeatTerms usual{.budget = budget, .interval = interval, .grace = grace, .tick = tick};
Watched silent(const HeartbeatTerms& terms = usual) {
  Watched watched;
  LifeNotes& notes = watched.notes;
  notes.clocks = LifeClocks(default_timeouts(), tick);
  notes.heartbeat = HeartbeatClock(terms);
  notes.opened = true;
  notes.made_at = notes.opened_at = start - 1s;
  notes.clocks.opened(start - 1s);
  notes.heartbeat.said(50);
  notes.clocks.received(start, 100);
  notes.clocks.turn_ended(start);
  notes.heartbeat.heard(false);
  notes.given = 50;
  sim::Truth& truth = watched.truth;
  truth.was_connected = true;
  truth.arrived = truth.read = truth.peer_sent = truth.peer_handed = 100;
  truth.last_arrival = truth.last_heard = start;
  truth.peer_spoke_at = truth.peer_read_at = start - 10ms;
  truth.taken = truth.acknowledged = 50;
  truth.last_taken_at = truth.last_acknowledged = start - 500ms;
  truth.round_trip = 20ms;
  truth.room = truth.peer_room = 100'000;
  truth.last_recv = -EAGAIN;
  return watched;
}

/// It was asked each interval, with a byte, which its kernel acknowledged unless `is_severed`.
Watched asked(bool is_severed = false, const HeartbeatTerms& terms = usual, Instant until = start + budget) {
  Watched watched = silent(terms);
  for (Instant at = start + interval; at < until; at += interval) {
    watched.notes.heartbeat.asked(at, watched.truth, true);
    ++watched.notes.given;
    ++watched.truth.taken;
    watched.truth.last_taken_at = at;
    if (is_severed) {
      ++watched.truth.lost;
      watched.truth.last_lost = at;
    } else {
      ++watched.truth.acknowledged;
      watched.truth.last_acknowledged = watched.truth.last_heard = at + 20ms;
      watched.truth.peer_read_at = at + 10ms;
    }
  }
  return watched;
}

void lose(Watched& watched, Verdict verdict, Instant at = start + budget) {
  watched.at(at);
  watched.truth.last_sample = watched.truth.last_recv_at = at;
  watched.record.reason = CloseReason::heartbeat_lost;
  watched.record.origin = Origin::policy;
  watched.record.verdict = verdict;
  watched.record.evidence.emplace();
}

Watched hung() {
  Watched watched = asked();
  lose(watched, Verdict::hung);
  return watched;
}

Watched unreachable() {
  Watched watched = asked(true);
  lose(watched, Verdict::unreachable);
  return watched;
}

/// More was said than the peer's kernel has room for, before it was asked.
Watched not_reading() {
  Watched watched = silent();
  watched.notes.heartbeat.heard(true);
  watched.truth.taken += 1000;
  watched.truth.untransmitted = 1000;
  watched.truth.peer_room = 0;
  watched.truth.last_heard = start + budget - 100ms;  // it answers the probes of its window
  lose(watched, Verdict::not_reading);
  return watched;
}

/// Lost because of phi, an interval and 1.5 s after its first probe.
Watched doubted(Verdict verdict = Verdict::hung) {
  HeartbeatTerms terms = usual;
  terms.phi_from = interval + 1500ms;
  terms.phi_threshold = 8;
  const Instant at = start + interval + terms.phi_from;
  Watched watched = asked(false, terms, at);
  lose(watched, verdict, at);
  watched.record.evidence->phi = 8;
  return watched;
}

}  // namespace

TEST_SUITE_BEGIN("oracle of heartbeats");

TEST_CASE("phi ends a silence before the budget does, where it has reached its threshold and the verdict is decided") {
  CHECK(doubted().told() == "");
  Watched watched = doubted();
  watched.at(watched.now - 1ns);
  CHECK(watched.breaks("no peer is lost early"));
  CHECK(watched.breaks("who is lost had time to answer"));
  watched = doubted();
  watched.truth.last_sample -= 1ns;
  CHECK(watched.breaks("the kernel is asked before a peer is lost"));
  watched = doubted();
  watched.truth.last_recv_at -= 1ns;
  CHECK(watched.breaks("the kernel is asked before a peer is lost"));
  watched = doubted();
  watched.record.evidence->phi = 7.9;
  CHECK(watched.breaks("a loss before the budget's end has reached phi's threshold"));
  watched.record.evidence.reset();
  CHECK(watched.breaks("a loss before the budget's end has reached phi's threshold"));
  CHECK(doubted(Verdict::unknown).breaks("a loss before the budget's end has its verdict"));
  watched = hung();
  watched.record.evidence->phi = 9;
  CHECK(watched.breaks("phi is told where it was asked for"));
}

TEST_CASE("the probe of an earlier silence holds this one's back: its acknowledgement may be life, and no later one") {
  Watched watched = silent();
  watched.truth.taken = 60;  // of which 10 were that probe
  watched.notes.heartbeat.asked(start + interval, watched.truth, true);
  watched.truth.acknowledged = 60;
  watched.truth.last_acknowledged = watched.truth.last_heard = start + interval + 50ms;
  watched.record.reason = CloseReason::local_close;
  watched.at(start + interval + 50ms + budget);
  CHECK(watched.told() == "");
  watched.at(start + 3 * interval + budget);
  CHECK(watched.breaks("no lost peer is told late"));
}

TEST_CASE("a first probe that the kernel took in parts may be acknowledged in parts, and so be life") {
  Watched watched = silent();
  watched.notes.heartbeat.asked(start + interval, watched.truth, true);
  watched.truth.taken = watched.truth.acknowledged = 52;
  watched.truth.last_acknowledged = watched.truth.last_heard = start + interval + 50ms;
  watched.record.reason = CloseReason::local_close;
  watched.at(start + interval + 50ms + budget);
  CHECK(watched.breaks("no lost peer is told late"));
  watched.truth.last_short_send = start + interval;
  CHECK(watched.told() == "");
  watched.at(start + 3 * interval + budget);
  CHECK(watched.breaks("no lost peer is told late"));
}

TEST_CASE("while reading is held, what was on its way when the last byte arrived may be acknowledged a round trip later") {
  Watched watched = silent();
  watched.notes.clocks.paused(start + 1s);
  watched.truth.arrived += 10;
  watched.truth.last_arrival = start + 3s;
  watched.truth.round_trip = 4s;
  watched.notes.heartbeat.asked(start + interval, watched.truth, true);
  watched.record.reason = CloseReason::local_close;
  const auto acknowledged = [&watched](Instant at) {
    watched.truth.taken = watched.truth.acknowledged = 60;
    watched.truth.last_acknowledged = watched.truth.last_heard = at;
    watched.at(at + budget);
  };
  acknowledged(watched.truth.last_arrival + 2 * (interval + 4s));
  CHECK(watched.told() == "");
  acknowledged(watched.truth.last_arrival + 3 * (interval + 4s));
  CHECK(watched.breaks("no lost peer is told late"));
}

TEST_CASE("where nobody was asked, or nobody knows when, phi ends no silence sooner than its first probe can have gone out") {
  Watched watched = doubted();
  HeartbeatTerms terms = watched.notes.heartbeat.terms();
  watched.notes.heartbeat = HeartbeatClock(terms);
  watched.notes.heartbeat.heard(true);
  CHECK(watched.breaks("no peer is lost early"));
  terms.ping_bytes = 4;
  watched.notes.heartbeat = HeartbeatClock(terms);
  watched.notes.heartbeat.heard(true);
  watched.at(start + interval / 2 + terms.phi_from);
  CHECK_FALSE(watched.breaks("no peer is lost early"));
  watched.at(start + interval / 2 + terms.phi_from - 1ns);
  CHECK(watched.breaks("no peer is lost early"));
}

TEST_CASE("losses that are true break no promise") {
  CHECK(hung().told() == "");
  CHECK(unreachable().told() == "");
  CHECK(not_reading().told() == "");
  Watched watched = asked();
  watched.at(start + budget);
  watched.record.reason = CloseReason::local_close;
  CHECK(watched.told() == "");
}

TEST_CASE("a peer is not lost where a deadline of receiving was due before") {
  constexpr const char* rule = "of deadlines due together the earliest comes first";
  Watched watched = hung();
  watched.notes.clocks.timeout_changed(Deadline::receive, budget, start + 1s);
  CHECK_FALSE(watched.breaks(rule));
  watched.notes.clocks.timeout_changed(Deadline::receive, budget - 1ns, start + 1s);
  CHECK(watched.breaks(rule));
}

TEST_CASE("a verdict comes with a lost heartbeat, and with nothing else") {
  constexpr const char* rule = "a verdict comes with a lost heartbeat, and with nothing else";
  Watched watched = hung();
  watched.record.verdict.reset();
  CHECK(watched.breaks(rule));
  watched = hung();
  watched.record.reason = CloseReason::receive_timed_out;
  CHECK(watched.breaks(rule));
  watched.record.verdict.reset();  // its evidence is left
  CHECK(watched.breaks(rule));
}

TEST_CASE("no peer is lost a nanosecond early, whatever was life") {
  constexpr const char* rule = "no peer is lost early";
  Watched watched = asked();
  lose(watched, Verdict::hung, start + budget - 1ns);
  CHECK(watched.breaks(rule));

  // Bytes that the kernel received while reading was held.
  watched = hung();
  watched.notes.clocks.paused(start + 1s);
  watched.truth.arrived += 10;
  watched.truth.last_arrival = start + 3s;
  CHECK(watched.breaks(rule));
  lose(watched, Verdict::hung, start + 3s + budget);
  CHECK_FALSE(watched.breaks(rule));

  // What was said before it was asked, and acknowledged afterwards: as of the look before.
  const auto owed = [](Instant acknowledged) {
    Watched one = silent();
    one.notes.heartbeat.heard(true);
    one.notes.heartbeat.said(1050);
    one.truth.taken = 1050;
    one.notes.heartbeat.asked(start + interval, one.truth, true);
    one.truth.acknowledged = 500;
    one.truth.last_acknowledged = one.truth.last_heard = acknowledged;
    one.truth.last_lost = start + 1s;
    one.truth.lost = 3;
    lose(one, Verdict::unreachable, start + budget + 100ms);
    return one;
  };
  CHECK(owed(start + 5s).breaks(rule));
  CHECK_FALSE(owed(start + 1s).breaks(rule));

  // The kernel's own verdict needs a doubt.
  watched = unreachable();
  lose(watched, Verdict::unknown, start + interval);
  watched.record.error_number = watched.truth.error = ETIMEDOUT;
  watched.truth.error_at = watched.now;
  CHECK_FALSE(watched.breaks(rule));
  lose(watched, Verdict::unknown, start + interval / 2 - 1ns);
  CHECK(watched.breaks(rule));
}

TEST_CASE("a silence that nobody ends is late: two ticks, the grace with its own, and the loop's delay") {
  constexpr const char* rule = "no lost peer is told late";
  const auto told_late = [&](Watched watched) {
    Problems problems;
    judge_silence(watched.notes, watched.truth, watched.now, watched.delays, problems);
    return !problems.empty() && problems.front().rule == std::string_view(rule);
  };
  Watched watched = asked();
  const Instant latest = start + budget + grace + 3 * tick;
  watched.at(latest);
  CHECK_FALSE(told_late(watched));
  watched.at(latest + 1ns);
  CHECK(told_late(watched));
  watched.record.reason = CloseReason::local_close;
  CHECK(watched.breaks(rule));

  // Unless the loop could not, its heartbeat had ended, or the stream had.
  Watched other = watched;
  other.delays.note(start + 1s, 0ms);
  other.delays.note(start + 2s, 1ms);
  CHECK_FALSE(told_late(other));
  other = watched;
  other.notes.finish_called = true;
  CHECK_FALSE(told_late(other));
  other = watched;
  other.notes.settled = Settled::by_close;
  CHECK_FALSE(told_late(other));
  other = watched;
  other.truth.end_arrived_at = latest;
  CHECK_FALSE(told_late(other));

  // The acknowledgement of a probe is no life, that of what was said is.
  other = watched;
  other.truth.last_acknowledged = latest - 10ms;
  CHECK(told_late(other));
  other.truth.last_arrival = start + 1s;  // of bytes that were read then
  CHECK(told_late(other));
  other.notes.heartbeat.said(other.truth.acknowledged);
  other.truth.last_heard = latest;
  CHECK_FALSE(told_late(other));

  // Without a verdict there is no grace.
  watched = silent({.budget = budget, .interval = interval, .tick = tick, .wants_verdict = false});
  watched.at(start + budget + 2 * tick);
  CHECK_FALSE(told_late(watched));
  watched.at(start + budget + 2 * tick + 1ns);
  CHECK(told_late(watched));
}

TEST_CASE("what the kernel holds, and the stream said, comes before a loss") {
  Watched watched = hung();
  watched.truth.last_sample = start + budget - 1ns;
  CHECK(watched.breaks("the kernel is asked before a peer is lost"));
  watched = hung();
  watched.truth.last_recv_at = start + budget - 1ns;
  CHECK(watched.breaks("the kernel is asked before a peer is lost"));
  watched = hung();
  ++watched.truth.arrived;
  watched.truth.last_arrival = watched.turn_began - 1ns;
  CHECK(watched.breaks("bytes come before a lost heartbeat"));
  watched = hung();
  watched.truth.end_arrived_at = watched.turn_began - 1ns;
  CHECK(watched.breaks("what the stream says comes before a lost heartbeat"));
  watched = hung();
  watched.truth.error_at = watched.turn_began - 1ns;
  watched.truth.error = ECONNRESET;
  CHECK(watched.breaks("what the stream says comes before a lost heartbeat"));
}

TEST_CASE("who is lost was asked, could be, and had time to answer") {
  Watched watched = silent();
  lose(watched, Verdict::unknown);
  CHECK(watched.breaks("who is lost was asked"));
  watched = hung();
  watched.notes.finish_called = true;
  CHECK(watched.breaks("who can't be asked is not lost"));
  watched = silent();
  watched.notes.heartbeat.asked(start + interval + 1ns, watched.truth, true);
  lose(watched, Verdict::unknown);
  CHECK(watched.breaks("who is lost had time to answer"));
  watched = silent();
  watched.notes.heartbeat.asked(start + interval + 1ns, watched.truth, false);  // it may have been earlier
  lose(watched, Verdict::unknown);
  CHECK_FALSE(watched.breaks("who is lost had time to answer"));
}

TEST_CASE("a kernel that gives up in a doubt is a lost heartbeat, with its errno") {
  constexpr const char* rule = "a kernel that gives up in a doubt is a lost heartbeat";
  Watched watched = asked(true);
  watched.record.reason = CloseReason::network_timed_out;
  watched.record.error_number = watched.truth.error = ETIMEDOUT;
  const Instant doubt = start + interval + 2 * tick;
  watched.at(doubt + 1ns);
  watched.truth.error_at = watched.now;
  CHECK(watched.breaks(rule));
  watched.truth.error_at = doubt;
  CHECK_FALSE(watched.breaks(rule));

  watched = unreachable();
  watched.record.error_number = ETIMEDOUT;
  CHECK(watched.breaks("a kernel that gave up said so"));
}

TEST_CASE("hung: the kernel has acknowledged what was asked, the window is open and the process has said nothing") {
  constexpr const char* rule = "the verdict is true";
  Watched watched = asked(true);
  lose(watched, Verdict::hung);
  CHECK(watched.breaks(rule));
  watched = hung();
  ++watched.truth.peer_handed;
  watched.truth.peer_spoke_at = start + 5s;
  CHECK(watched.breaks(rule));
  watched.truth.last_lost = start + 5s;  // and what it said was lost
  watched.truth.lost = 1;
  CHECK_FALSE(watched.breaks(rule));
  watched = not_reading();
  watched.truth.last_acknowledged = start + 2s;
  lose(watched, Verdict::hung);
  CHECK(watched.breaks(rule));
}

TEST_CASE("not reading: something waits, the kernel answers, and its window is closed") {
  constexpr const char* rule = "the verdict is true";
  Watched watched = asked();
  lose(watched, Verdict::not_reading);
  CHECK(watched.breaks(rule));
  watched = not_reading();
  watched.truth.last_heard = start;
  CHECK(watched.breaks(rule));
  watched = not_reading();
  watched.truth.peer_room = 1;
  CHECK(watched.breaks(rule));
  watched.truth.peer_read_at = watched.now - 10ms;  // just now
  CHECK_FALSE(watched.breaks(rule));
}

TEST_CASE("unreachable: something is outstanding, and something was lost or slow") {
  constexpr const char* rule = "the verdict is true";
  Watched watched = unreachable();
  watched.truth.acknowledged = watched.truth.taken;
  CHECK(watched.breaks(rule));
  watched = unreachable();
  watched.truth.lost = 0;
  watched.truth.last_lost = {};
  CHECK(watched.breaks(rule));
  watched.truth.slow_until = start + 1s;
  CHECK_FALSE(watched.breaks(rule));
  watched.truth.last_heard = start + 5s;  // what was slow came, and its kernel answers
  CHECK(watched.breaks(rule));
  watched.truth.slow_until = watched.now - 10ms;
  CHECK_FALSE(watched.breaks(rule));
  watched.truth.last_heard = start;
  watched.truth.slow_until = {};
  watched.truth.peer_is_gone = true;
  CHECK_FALSE(watched.breaks(rule));
}

TEST_CASE("what was lost excuses a verdict until it has been made good, and that it was excused is told") {
  constexpr const char* rule = "the verdict is true";
  const auto excused = [](const Watched& watched) {
    return verdict_is_excused({watched.notes, watched.record, watched.truth, watched.now, watched.turn_began});
  };
  CHECK_FALSE(excused(hung()));
  CHECK_FALSE(excused(not_reading()));
  CHECK_FALSE(excused(unreachable()));
  Watched heard = unreachable();
  heard.truth.last_heard = start + 5s;
  CHECK_FALSE(heard.breaks(rule));
  CHECK(excused(heard));
  // The process has spoken, the window was open, the path is whole; and something was lost before.
  Watched spoke = hung();
  ++spoke.truth.peer_handed;
  spoke.truth.peer_spoke_at = start + 5s;
  Watched reads = not_reading();
  reads.truth.peer_room = 1;
  for (Watched* watched : {&spoke, &reads}) {
    watched->truth.lost = 1;
    watched->truth.offered_at = start - 1s;
    watched->truth.last_lost = start + 5s;  // tried for six seconds, and again within as many
    CHECK_FALSE(watched->breaks(rule));
    CHECK(excused(*watched));
    // What a peer said is sent again when its own kernel thinks fit: all the silence long it may have been lost.
    const bool is_made_good = watched == &reads;
    watched->truth.last_lost = start + 1s;
    CHECK(watched->breaks(rule) == is_made_good);
    CHECK(excused(*watched) != is_made_good);
    watched->truth.last_lost = start - 4s;
    CHECK(watched->breaks(rule));
    CHECK_FALSE(excused(*watched));
  }
}

TEST_CASE("a kernel that gave up leaves what an earlier look said: only what was never so in this silence is found") {
  constexpr const char* rule = "the verdict is true";
  const auto given_up = [](Watched watched) {
    watched.record.error_number = watched.truth.error = ETIMEDOUT;
    return watched;
  };
  CHECK_FALSE(given_up(unreachable()).breaks(rule));
  CHECK_FALSE(given_up(not_reading()).breaks(rule));
  Watched watched = given_up(not_reading());
  watched.truth.peer_room = 1;  // and it read last before the silence began
  CHECK(watched.breaks(rule));
}

TEST_CASE("unknown is no verdict where the evidence was there") {
  constexpr const char* rule = "the verdict is true";
  const auto unknown = [](Watched watched) {
    watched.record.verdict = Verdict::unknown;
    return watched;
  };
  CHECK(unknown(hung()).breaks(rule));
  CHECK(unknown(unreachable()).breaks(rule));
  CHECK(unknown(not_reading()).breaks(rule));

  // Each of what excuses it.
  Watched watched = unknown(hung());
  watched.truth.lost = 1;  // the situation changed
  watched.truth.last_lost = start + 1s;
  CHECK_FALSE(watched.breaks(rule));
  watched = unknown(hung());
  watched.truth.round_trip = budget / 2 + 1ns;
  CHECK_FALSE(watched.breaks(rule));
  watched = unknown(hung());
  watched.truth.last_taken_at = start + 3s;  // nothing was said lately
  CHECK_FALSE(watched.breaks(rule));
  watched = unknown(unreachable());
  watched.truth.round_trip = 1s;  // too slow for two retransmissions
  CHECK_FALSE(watched.breaks(rule));
  watched.truth.round_trip = 0s;  // none was measured, and a second is waited for the first answer
  CHECK_FALSE(watched.breaks(rule));
  watched = unknown(unreachable());
  watched.record.error_number = watched.truth.error = ETIMEDOUT;
  CHECK_FALSE(watched.breaks(rule));
  const auto terms = [](Duration given_grace, bool wants_verdict) {
    return HeartbeatTerms{
        .budget = budget, .interval = interval, .grace = given_grace, .tick = tick, .wants_verdict = wants_verdict};
  };
  for (const HeartbeatTerms& other : {terms({}, false), terms(10ms, true)}) {
    watched = silent(other);
    watched.notes.heartbeat.asked(start + interval, watched.truth, true);
    watched.truth.taken = watched.truth.acknowledged = 51;
    watched.truth.last_taken_at = start + budget - 5ms;  // its answer is still to come
    watched.truth.last_acknowledged = watched.truth.last_heard = start + budget - 100ms;
    lose(watched, Verdict::unknown);
    CHECK_FALSE(watched.breaks(rule));
  }
}

TEST_CASE("a probe goes out only into a silence") {
  const auto breaks = [](const LifeNotes& notes, Instant now) {
    Problems problems;
    judge_probe(notes, now, problems);
    return !problems.empty();
  };
  Watched watched = silent();
  CHECK(breaks(watched.notes, start + interval / 2 - 1ns));
  CHECK_FALSE(breaks(watched.notes, start + interval / 2));
  watched.notes.heartbeat.asked(start + interval, watched.truth, true);
  CHECK(breaks(watched.notes, start + interval + interval / 2 - 1ns));
  CHECK_FALSE(breaks(watched.notes, start + 2 * interval));
  LifeNotes ended = watched.notes;
  ended.finish_called = true;
  CHECK(breaks(ended, start + 2 * interval));
  ended = watched.notes;
  ended.graceful = true;
  CHECK(breaks(ended, start + 2 * interval));
  CHECK(breaks(LifeNotes{}, start + 2 * interval));
}

TEST_SUITE_END();
