#include "oracle.hpp"

#include <algorithm>
#include <cerrno>

#include "readable.hpp"

namespace vigil::tools {
void judge_heard(const char* rule, Instant happened_at, Instant now, const DelayLog& delays, Problems& problems) {
  if (now <= happened_at || now - happened_at <= delays.since(happened_at)) return;
  problems.push_back({rule, "heard " + readable(now - happened_at) + " later, of which the loop was kept " +
                                readable(delays.since(happened_at))});
}

/// What should have been told by now: a deadline, the peer's end, an error, bytes.
void judge_lateness(const LifeNotes& notes, const sim::Truth& truth, Instant now, const DelayLog& delays, Problems& problems) {
  if (const auto late = notes.clocks.overdue(now, truth, delays))
    problems.push_back({"no deadline is late", std::string(to_string(late->kind)) + ": due " + readable(now - late->since) +
                                                   " ago, at most " + readable(late->allowed) + " late; " +
                                                   notes.clocks.describe(late->kind, now, truth)});
  if (!notes.opened) {
    if (notes.attempted && truth.error_at)
      judge_heard("a failed attempt is told at once", *truth.error_at, now, delays, problems);
    if (notes.attempted && truth.was_connected)
      judge_heard("a connection is told at once", truth.connected_at, now, delays, problems);
    return;
  }
  if (notes.clocks.is_held() || notes.clocks.is_perhaps_held()) return;
  const Instant could_hear = std::max(notes.opened_at, notes.clocks.last_release());
  if (truth.error_at) judge_heard("an error is told at once", std::max(*truth.error_at, could_hear), now, delays, problems);
  if (truth.end_arrived_at && !notes.heard_finish) {
    // Without on_peer_finished what is queued is still sent before the end is told.
    const bool flushed = truth.taken == notes.given;
    if (notes.hears_finish && notes.settled == Settled::by_nothing)
      judge_heard("the peer's end is told at once", std::max(*truth.end_arrived_at, could_hear), now, delays, problems);
    else if (flushed)
      judge_heard("the peer's end is told at once",
                  std::max({*truth.end_arrived_at, could_hear, truth.last_taken_at, notes.settled_at}), now, delays, problems);
  }
  if (truth.unread() != 0) judge_heard("bytes are read at once", std::max(truth.last_arrival, could_hear), now, delays, problems);
}

void judge_end(const Ending& ending, const DelayLog& delays, Problems& problems) {
  const LifeNotes& notes = ending.notes;
  if (notes.closed) problems.push_back({"one record for each life", "told again"});
  judge_counts(ending, problems);
  judge_reason(ending, problems);
  judge_heartbeat(ending, delays, problems);
  judge_lateness(notes, ending.truth, ending.now, delays, problems);
  const bool at_once = notes.settled == Settled::by_abort || notes.settled == Settled::by_backlog ||
                       notes.settled == Settled::by_leaving || notes.settled == Settled::by_lying;
  if (at_once) judge_heard("an end of our own is told at once", notes.settled_at, ending.now, delays, problems);
  if (notes.stopped_at_once) judge_heard("a stop is told at once", notes.stopped_at, ending.now, delays, problems);
}

}  // namespace vigil::tools
