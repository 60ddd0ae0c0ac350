// A world of lives: some hundred connections and attempts in one simulated world, each with its own behaviour on both sides, all
// of them judged by the oracle. What the world is like, and what goes wrong in it, is drawn from the seed and the world's number.
//
// Thread: any; several may run worlds at once, nothing is shared and nothing printed. The same seed and number give the same
// report, byte for byte.
//
//   const WorldReport report = run_world({.seed = 7, .number = 4711});
//   if (!report.problems.empty()) ...
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vigil/bytes.hpp"
#include "vigil/close_record.hpp"
#include "vigil/sim.hpp"
#include "vigil/timeouts.hpp"
#include "vigil/verdict.hpp"

namespace vigil::tools {

struct WorldChoice {
  std::uint64_t seed = 1;
  std::uint64_t number = 0;  ///< of the world, from 0
  Bytes choices{};           ///< drawn before the seed is (sim::Random): how a fuzzer drives it
  Callback<void(std::string_view line)> trace{};
};

/// A promise that was broken in one life, or in the world as a whole.
struct Violation {
  std::string rule;
  std::string told;
  std::uint64_t life = 0;  ///< its number in the world, from 1; 0: the world's
  std::uint64_t step = 0;
  Duration at{};  ///< since the world began
};

/// How many lives had how many of something; the last place counts all that had more.
using Spread = std::array<std::uint64_t, 64>;

struct WorldReport {
  std::uint64_t lives = 0;    ///< that ended, each with its record
  std::uint64_t opened = 0;   ///< of those
  std::uint64_t counted = 0;  ///< of those, with a deadline armed, three messages and a fault
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;  ///< delivered, in both directions
  std::uint64_t steps = 0;
  std::uint64_t digest = 0;
  Duration simulated{};
  std::array<std::uint64_t, sim::fault_count> faults{};
  std::array<std::uint64_t, close_reason_count> reasons{};
  std::array<std::uint64_t, verdict_count> verdicts{};   ///< of lost heartbeats
  std::array<std::uint64_t, verdict_count> excused{};    ///< of those, passed only for what was lost, slow or is not known
  std::array<std::uint64_t, deadline_count> extended{};  ///< deadlines that on_deadline gave more time
  Spread deadlines_each{};                               ///< of lives that opened
  Spread messages_each{};
  Spread faults_each{};
  std::vector<Violation> violations;  ///< the first few

  WorldReport& operator+=(const WorldReport& other);
};

[[nodiscard]] WorldReport run_world(WorldChoice choice);

}  // namespace vigil::tools
