// Heartbeats in a swarm: pings that are said and heard, their answers, and who watches the silences.
#include <algorithm>
#include <utility>

#include "swarm_text.hpp"
#include "swarm_world.hpp"

namespace vigil::tools {

/// Its handler is to say a ping: more of its stream, so that the peer can check it.
void Swarm::ping(SwarmLife& life) {
  LifeNotes& notes = life.notes;
  const sim::Truth facts = truth(life);
  Problems problems;
  judge_probe(notes, now(), problems);
  judge_silence(notes, facts, now(), delays, problems);
  take(&life, problems);
  notes.heartbeat.asked(now(), facts, true);
  if (life.script.is_mute) return;
  life.pings.push_back(notes.given);
  life.is_pinging = true;
  send(life, random.between(1, 40));
  life.is_pinging = false;
}

/// Those that the library has sent by itself, behind everything that was given before: whatever it holds or handed to the kernel
/// beyond that is pings, and whole ones. Asked before each send, so that their places are known.
void Swarm::find_pings(SwarmLife& life, std::uint64_t held_and_handed) {
  LifeNotes& notes = life.notes;
  const std::uint64_t size = notes.heartbeat.terms().ping_bytes;
  for (; held_and_handed > notes.given && size != 0; notes.given += size) {
    if (held_and_handed - notes.given < size) problem(&life, "a ping is sent whole", std::to_string(held_and_handed));
    const sim::Truth facts = truth(life);
    notes.heartbeat.asked(now(), facts, false);
    life.pings.push_back(notes.given);
    notes.clocks.sent(now(), size, facts.acknowledged);
    touch(life);
    tell(life, "has pinged behind", notes.given);
  }
}

void Swarm::find_pings(SwarmLife& life) {
  if (life.notes.heartbeat.terms().ping_bytes == 0 || life.notes.closed || !life.connection) return;
  find_pings(life, life.connection->handed_to_kernel() + life.connection->backlog_bytes());
}

/// Now and then each of them in turn: a silence that nothing ends is to be noticed too.
void Swarm::watch_next() {
  constexpr std::uint64_t steps_between = 16;
  if (watched_.empty() || world.steps() % steps_between != 0) return;
  if (next_watched_ >= watched_.size()) next_watched_ = 0;
  SwarmLife& life = *watched_[next_watched_];
  Problems problems;
  if (!life.notes.closed) {
    find_pings(life);
    const sim::Truth facts = truth(life);
    life.notes.heartbeat.sampled(facts);
    judge_silence(life.notes, facts, now(), delays, problems);
  }
  if (life.notes.closed || !problems.empty()) {
    watched_[next_watched_] = watched_.back();
    watched_.pop_back();
  } else {
    ++next_watched_;
  }
  take(&life, problems);
}

// --- the other side

/// Whether that is what follows: its stream, and between its pieces the library's pings.
bool Swarm::peer_knows(SwarmLife& life, std::string_view bytes) const {
  const std::uint64_t size = life.notes.heartbeat.terms().ping_bytes;
  std::uint64_t place = life.peer_checked;
  for (std::size_t ping = size == 0 ? life.pings.size() : life.peer_pings; !bytes.empty();) {
    const bool in_ping = ping < life.pings.size() && place >= life.pings[ping];
    const std::uint64_t until = in_ping ? life.pings[ping] + size : ping < life.pings.size() ? life.pings[ping] : UINT64_MAX;
    const std::string_view piece = bytes.substr(0, until - place);
    const std::uint64_t spoken = place - (size == 0 ? 0 : ping * size);
    const bool fits =
        in_ping ? piece.find_first_not_of('?') == std::string_view::npos : SwarmText::matches(life.stream_out(), spoken, piece);
    if (!fits) return false;
    place += piece.size();
    bytes.remove_prefix(piece.size());
    if (in_ping && place == until) ++ping;
  }
  return true;
}

/// A ping has been read whole: the next message answers it, now or later or never.
void Swarm::answer(SwarmLife& life) {
  const Answering how = life.peer_script.answering;
  if (how == Answering::never || (how == Answering::now_and_then && !one_in(random, 3))) return;
  const auto speak = [&life] {
    const bool has_said_all = life.messages_left == 0 && life.peer_script.end != PeerEnd::stays;
    if (life.peer_went || has_said_all || !life.peer->connected()) return;
    const std::string_view rest =
        SwarmText::piece(life.stream_in(), life.peer_given, life.script.message_bytes - life.message_given);
    life.peer->send(rest);
    life.peer_given += rest.size();
    life.message_given = 0;
  };
  if (how != Answering::late) return speak();
  const HeartbeatTerms& terms = life.notes.heartbeat.terms();
  world.after(random.between(Duration{}, terms.budget - terms.interval), speak);
}

}  // namespace vigil::tools
