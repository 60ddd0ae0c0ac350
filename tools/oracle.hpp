// The oracle: judges each life by what its handler saw and did, and by what the world knows really happened. Independent of the
// library: it links nothing of it but the types of a record, and none of its conclusions is asked for, with one exception: how
// sure phi is that a peer is lost is taken from the record. Judged is only that phi speaks no sooner than it may, and never below
// its threshold, not what it has learned.
//
// Thread: one at a time. Ownership: notes are the swarm's, one for each life.
//
//   LifeNotes notes;                            // filled in by the handler as the life goes on
//   judge_end({notes, record, truth, now, turn_began, ...}, delays, problems);
//   if (!problems.empty()) ...                  // problems.front().rule names the promise that was broken
//
// oracle_reasons.cpp: which reason is true, in one table. oracle_counts.cpp: what a record counts. oracle_clocks.hpp: deadlines.
// oracle_heartbeat.hpp: silent peers, and what is said of them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "oracle_clocks.hpp"
#include "oracle_heartbeat.hpp"
#include "vigil/close_record.hpp"
#include "vigil/sim.hpp"

namespace vigil::tools {

/// What settled the reason of a life from this side, before the stream or a deadline did.
enum class Settled : std::uint8_t { by_nothing, by_close, by_abort, by_stopping, by_backlog, by_leaving, by_lying };

/// What the handler of one life saw and did.
struct LifeNotes {
  bool attempted = false;       ///< by a connector; else accepted
  bool reaches_itself = false;  ///< from the very address that it goes to
  bool opened = false;
  bool closed = false;
  // What its handler's type hears.
  bool hears_finish = false;
  bool hears_gone = false;
  bool hears_deadlines = false;

  Instant made_at{};
  Instant opened_at{};
  std::uint64_t consumed = 0;  ///< of what on_receive was given
  std::uint64_t given = 0;     ///< taken by send()

  Settled settled = Settled::by_nothing;
  Instant settled_at{};
  bool settled_from_outside = false;  ///< by no callback of its own: it may have ended in this turn already
  bool end_was_read = false;          ///< the peer's end had been told when it was settled
  bool was_told_gone = false;         ///< reading was held, it had been told that the peer is gone, and went without the rest
  bool end_in_doubt = false;          ///< either may be so: a backlog perhaps held reading, or the end was read and not yet told
  bool graceful = false;              ///< close() or a shutdown with time to drain came before any abort
  bool aborted = false;
  Instant aborted_at{};
  bool stopped_at_once = false;  ///< its reactor ended, or stopped without time to drain
  Instant stopped_at{};          ///< then
  Instant stops_at = never_due;  ///< a shutdown's end

  bool finish_called = false;
  bool heard_finish = false;  ///< on_peer_finished came
  Instant heard_finish_at{};
  bool heard_gone = false;                  ///< on_peer_gone_while_paused came
  Instant touched_from_outside_at{};        ///< something was done to it by no callback of its own
  std::optional<Deadline> refused;          ///< on_deadline was asked last about this kind, and gave no more time ...
  Instant refused_at{};                     ///< ... then
  std::uint64_t acknowledged_at_refusal{};  ///< and this much had been acknowledged when it was asked
  LifeClocks clocks;
  HeartbeatClock heartbeat;
};

/// A promise that was broken.
struct Problem {
  const char* rule;  ///< in a few words, the same for every life that breaks it
  std::string told;  ///< what was seen
};
using Problems = std::vector<Problem>;

/// A life at its end, while on_close is being told.
struct Ending {
  const LifeNotes& notes;
  const CloseRecord& record;
  const sim::Truth& truth;
  Instant now;
  Instant turn_began;  ///< of the turn that told it: the wait's end, or earlier
};

/// Everything that can be said of a life when its record is told.
void judge_end(const Ending& ending, const DelayLog& delays, Problems& problems);

/// The parts of it: the reason and what follows from it; what is counted; that nothing was late.
void judge_reason(const Ending& ending, Problems& problems);
void judge_counts(const Ending& ending, Problems& problems);
void judge_lateness(const LifeNotes& notes, const sim::Truth& truth, Instant now, const DelayLog& delays, Problems& problems);

/// A peer that is lost, with its verdict, or one that should have been; what the kernel's own verdict is then.
void judge_heartbeat(const Ending& ending, const DelayLog& delays, Problems& problems);
/// Of a verdict that judge_heartbeat() let pass: whether it was excused, since what was lost or slow may have misled whoever gave
/// it, or since it was given at an earlier look, of which the world has kept nothing.
[[nodiscard]] bool verdict_is_excused(const Ending& ending);
/// Asked at any time of an open life: its peer should have been lost long ago.
void judge_silence(const LifeNotes& notes, const sim::Truth& truth, Instant now, const DelayLog& delays, Problems& problems);
/// on_ping_due is told.
void judge_probe(const LifeNotes& notes, Instant now, Problems& problems);

/// A deadline that is told, by on_deadline or a record: never early, and payload before verdict.
void judge_verdict(const LifeNotes& notes, Deadline kind, const sim::Truth& truth, Instant now, Instant turn_began,
                   std::uint64_t acknowledged, Problems& problems);

/// What the peer of a life that has ended received, once nothing is on its way any more.
void judge_peer(const LifeNotes& notes, const CloseRecord& record, const sim::Peer& peer, bool could_read_all,
                Problems& problems);

/// An event of the stream that its handler is to hear of at once: `happened_at` or, if later, when it could be heard.
void judge_heard(const char* rule, Instant happened_at, Instant now, const DelayLog& delays, Problems& problems);

}  // namespace vigil::tools
