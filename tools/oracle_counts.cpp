// What a record counts, against what was counted on both sides of the library.
#include <algorithm>

#include "oracle.hpp"

namespace vigil::tools {
namespace {

std::string told_and_true(std::uint64_t told, std::uint64_t truth) {
  return "told " + std::to_string(told) + ", true is " + std::to_string(truth);
}

void count(const char* rule, std::uint64_t told, std::uint64_t truth, Problems& problems) {
  if (told != truth) problems.push_back({rule, told_and_true(told, truth)});
}

}  // namespace

void judge_counts(const Ending& ending, Problems& problems) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  count("received is what recv handed out", record.received, truth.read, problems);
  count("handed_to_kernel is what the kernel took", record.handed_to_kernel, truth.taken, problems);
  count("unsent is what was given and the kernel never took", record.unsent, notes.given - std::min(notes.given, truth.taken),
        problems);
  count("no more is handed to the kernel than was given", std::max(truth.taken, notes.given), notes.given, problems);
  count("unconsumed is what was received and on_receive did not take", record.unconsumed, truth.read - notes.consumed, problems);
  if (notes.opened) {
    if (!record.unacknowledged) problems.push_back({"unacknowledged is known of a TCP connection", "told nothing"});
    count("unacknowledged is what the peer's kernel owes", record.unacknowledged.value_or(truth.unacknowledged()),
          truth.unacknowledged(), problems);
    count("left_unread is what the kernel still held", record.left_unread, truth.unread(), problems);
  }
  count("age runs from the beginning to the end", static_cast<std::uint64_t>(record.age.count()),
        static_cast<std::uint64_t>((now - notes.made_at).count()), problems);
  // Bytes that came while closing have no callback that tells of them; the stamp of the others lies within a turn.
  const Span last = notes.clocks.last_received();
  const Duration shortest = last.latest == never_due ? Duration{} : now - last.latest;
  const bool in_silence = record.silence >= Duration{} && record.silence <= record.age;
  const bool exact = notes.settled != Settled::by_nothing || notes.heard_finish || !notes.opened ||
                     truth.end_arrived_at.has_value() || (record.silence <= now - last.earliest && record.silence >= shortest);
  if (!in_silence || !exact)
    problems.push_back({"silence runs from the last byte", "told " + std::to_string(record.silence.count()) + " ns, true is " +
                                                               std::to_string((now - last.earliest).count()) + " ns"});
}

void judge_peer(const LifeNotes& notes, const CloseRecord& record, const sim::Peer& peer, bool could_read_all,
                Problems& problems) {
  if (peer.received_bytes() > notes.given)
    count("nobody receives what was not sent", peer.received_bytes(), notes.given, problems);
  if (peer.finished()) count("who is told an end has received all before it", peer.received_bytes(), notes.given, problems);
  const bool orderly = !notes.aborted && !notes.stopped_at_once && record.unsent == 0 && record.unacknowledged.value_or(1) == 0;
  if (orderly && could_read_all && peer.error() == 0)
    count("all that was sent arrives when the end was orderly", peer.received_bytes(), notes.given, problems);
}

}  // namespace vigil::tools
