// The decision alone, fed with evidence as it was recorded: one case for each rule, the waiting ones included.
#include "vigil/verdict.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <string>

using namespace vigil;
using namespace std::chrono_literals;

namespace {

constexpr Duration interval = 5s, budget = 20s;

/// A peer whose kernel acknowledged the last probe, on a good path.
Evidence acknowledged() {
  return {.known = true,
          .sent_in_silence = 12,
          .acknowledged_in_silence = true,
          .window_bytes = 65536,
          .round_trip = 100us,
          .retransmit_timeout = 200ms,
          .last_acknowledgement = 3s,
          .silence = 20s,
          .without_progress = 3s};
}
/// Bytes in flight, unanswered.
Evidence in_flight(std::uint32_t retransmits) {
  Evidence evidence = acknowledged();
  evidence.acknowledged_in_silence = false;
  evidence.unacknowledged_segments = 1;
  evidence.retransmits = evidence.retransmits_in_silence = retransmits;
  return evidence;
}
/// Bytes that the kernel could not send.
Evidence held_back(std::uint32_t window, std::uint32_t probes) {
  Evidence evidence = acknowledged();
  evidence.not_transmitted_bytes = 100;
  evidence.window_bytes = window;
  evidence.probes = probes;
  return evidence;
}

std::string judged(const Evidence& evidence, Duration with_interval = interval, Duration with_budget = budget) {
  const auto verdict = judge(evidence, with_interval, with_budget);
  return verdict ? to_string(*verdict) : "undecided";
}

}  // namespace

TEST_SUITE_BEGIN("verdict");

TEST_CASE("a peer whose kernel acknowledges and who does not answer hangs") { CHECK(judged(acknowledged()) == "hung"); }

TEST_CASE("an acknowledgement older than an interval and two retransmission timeouts proves no living kernel") {
  Evidence evidence = acknowledged();
  evidence.last_acknowledgement = interval + 400ms;
  CHECK(judged(evidence) == "hung");
  evidence.last_acknowledgement = interval + 401ms;
  CHECK(judged(evidence) == "undecided");
  evidence.retransmit_timeout = 50ms;  // at least 250 ms are allowed
  evidence.last_acknowledgement = interval + 250ms;
  CHECK(judged(evidence) == "hung");
  evidence.last_acknowledgement = interval + 251ms;
  CHECK(judged(evidence) == "undecided");
}

TEST_CASE("acknowledgements of what was sent before the silence prove nothing") {
  Evidence evidence = acknowledged();
  evidence.acknowledged_in_silence = false;
  CHECK(judged(evidence) == "undecided");
}

TEST_CASE("a path that has just healed is given time: its peer may still be backing off") {
  Evidence evidence = acknowledged();
  evidence.retransmits_in_silence = 1;
  CHECK(judged(evidence) == "hung");
  evidence.retransmits_in_silence = 2;
  CHECK(judged(evidence) == "undecided");
}

TEST_CASE("bytes in flight: two unanswered retransmissions prove that nothing gets there, one proves nothing") {
  CHECK(judged(in_flight(0)) == "undecided");
  CHECK(judged(in_flight(1)) == "undecided");
  CHECK(judged(in_flight(2)) == "unreachable");
  CHECK(judged(in_flight(9)) == "unreachable");
}

TEST_CASE("bytes in flight, and what went before them acknowledged lately: we go on sending to a process that hangs") {
  Evidence evidence = in_flight(0);
  evidence.acknowledged_in_silence = true;
  evidence.last_acknowledgement = 400ms;
  CHECK(judged(evidence) == "hung");
  evidence.last_acknowledgement = 401ms;
  CHECK(judged(evidence) == "undecided");
  evidence.last_acknowledgement = 100ms;
  evidence.retransmits = 1;
  CHECK(judged(evidence) == "undecided");
  evidence.retransmits = 0;
  evidence.retransmits_in_silence = 1;
  CHECK(judged(evidence) == "hung");
  evidence.retransmits_in_silence = 2;
  CHECK(judged(evidence) == "undecided");
  evidence.retransmits_in_silence = 0;
  evidence.acknowledged_in_silence = false;
  CHECK(judged(evidence) == "undecided");
}

TEST_CASE("bytes never transmitted under an open window: our own side can't send, once it had time to") {
  Evidence evidence = held_back(65536, 0);
  CHECK(judged(evidence) == "unreachable");
  evidence.without_progress = 399ms;
  CHECK(judged(evidence) == "undecided");
  evidence.without_progress = 400ms;
  CHECK(judged(evidence) == "unreachable");
  evidence.retransmit_timeout = 300ms;
  CHECK(judged(evidence) == "undecided");
  evidence.without_progress = 600ms;
  CHECK(judged(evidence) == "unreachable");
}

TEST_CASE("a closed window: answered probes say that it does not read, two unanswered that it is gone, one waits") {
  CHECK(judged(held_back(0, 0)) == "not_reading");
  CHECK(judged(held_back(0, 1)) == "undecided");
  CHECK(judged(held_back(0, 2)) == "unreachable");
  Evidence backed_off = held_back(0, 0);  // the last probe was answered before the silence, and none has gone out since
  backed_off.last_acknowledgement = backed_off.silence + 1s;
  CHECK(judged(backed_off) == "undecided");
  backed_off.last_acknowledgement = backed_off.silence - 9ms;  // it came with the last byte, and the kernel counts in ticks
  CHECK(judged(backed_off) == "undecided");
  backed_off.last_acknowledgement = backed_off.silence - 10ms;
  CHECK(judged(backed_off) == "not_reading");
}

TEST_CASE("where the window is not known, nobody is blamed for it: only probes that nobody answered decide") {
  for (const std::uint32_t unanswered : {0U, 1U, 2U}) {
    CAPTURE(unanswered);
    Evidence evidence = held_back(0, unanswered);
    evidence.window_bytes.reset();
    CHECK(judged(evidence) == (unanswered == 2 ? "unreachable" : "undecided"));
  }
}

TEST_CASE("a round trip above half the budget is congestion, which decides nothing") {
  for (Evidence evidence : {acknowledged(), in_flight(5), held_back(0, 0), held_back(0, 3), held_back(65536, 0)}) {
    evidence.round_trip = budget / 2;
    CHECK(judged(evidence) != "undecided");
    evidence.round_trip = budget / 2 + 1ns;
    CHECK(judged(evidence) == "undecided");
  }
}

TEST_CASE("without evidence nothing is decided") {
  Evidence evidence = in_flight(9);
  evidence.known = false;
  CHECK(judged(evidence) == "undecided");
  CHECK(judged({}) == "undecided");
}

TEST_CASE("back-off, old acknowledgements and bytes in flight prove nothing alone") {
  Evidence evidence = in_flight(0);
  evidence.last_acknowledgement = 19s;
  evidence.without_progress = 19s;
  evidence.probes = 5;
  CHECK(judged(evidence) == "undecided");
}

TEST_SUITE_END();
