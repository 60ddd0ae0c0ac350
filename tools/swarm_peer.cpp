// The other side of a life: what its peer says, reads, and how it goes.
#include <algorithm>
#include <string>
#include <vector>

#include "swarm_text.hpp"
#include "swarm_world.hpp"

namespace vigil::tools {

namespace {

constexpr std::uint16_t first_port = 10'000;
constexpr std::uint16_t stuck_port = 9'000;  // where nobody accepts, and few fit into the queue

const std::string& any_of(sim::Random& random, const std::vector<std::string>& addresses) {
  return addresses.size() == 1 ? addresses.front() : addresses[random.below(addresses.size())];
}

}  // namespace

std::uint16_t Swarm::port_of(const SwarmLife& life) { return static_cast<std::uint16_t>(first_port + life.number); }

SwarmLife* Swarm::life_at(std::uint16_t port) {
  const std::size_t index = port - first_port - std::size_t{1};
  return port <= first_port || index >= lives_.size() ? nullptr : &lives_[index];
}

void Swarm::begin_peer(SwarmLife& life) {
  PeerHost& on = peers_[random.below(peers_.size())];
  sim::Host& host = *on.host;
  life.messages_left = life.peer_script.style == PeerStyle::silent ? 0 : life.peer_script.messages;
  if (!life.outgoing) {
    sim::Peer& peer = host.connect(any_of(random, life.site->addresses), port_of(life));
    meet_peer(life, peer);
    return;
  }
  std::uint16_t port = port_of(life);
  std::string ip = any_of(random, on.addresses);
  const std::uint64_t luck = random.below(32);
  if (luck == 0) {
    port = stuck_port;
  } else if (luck == 1) {
    life.notes.reaches_itself = true;
    ip = any_of(random, own_addresses_);
  } else if (luck != 2) {  // else nobody listens
    host.listen(port, [this, &life](sim::Peer& peer) {
      meet_peer(life, peer);
      talk(life);
    });
    if (luck == 3) {
      host.pause_accepting(port);
      world.after(any_magnitude(random, Duration(1'000'000), Duration(std::chrono::seconds(2))), [&on, port, deaths = on.deaths] {
        if (on.deaths == deaths) on.host->resume_accepting(port);
      });
    }
  }
  connecting_ = &life;
  const auto target = Address::parse(ip + ':' + std::to_string(port));
  if (!target) return problem(&life, "an address can be parsed", describe(target.error()));
  const std::uint64_t shortages_before = shortages();
  Door& door = *life.site->door;
  const auto attempt = life.notes.reaches_itself ? door.connect_to_itself(*target) : door.connector().connect(*target);
  connecting_ = nullptr;
  if (attempt) {
    life.connection = *attempt;
  } else if (shortages() == shortages_before && attempt.error().code != ESHUTDOWN) {
    problem(&life, "connect() fails for a reason", describe(attempt.error()));
  }
}

void Swarm::listen_for_nobody(PeerHost& on) {
  on.host->listen(
      stuck_port, [](sim::Peer&) {}, 2);
  on.host->pause_accepting(stuck_port);
}

void Swarm::meet_peer(SwarmLife& life, sim::Peer& peer) {
  life.peer = &peer;
  peer.on_connected = [this, &life](sim::Peer&) { talk(life); };
  peer.on_receive = [this, &life](sim::Peer& from, std::string_view bytes) { peer_received(life, from, bytes); };
  peer.on_finished = [&life](sim::Peer& from) {
    if (!life.peer_script.ends_at_finish || life.peer_went) return;
    life.peer_went = true;
    from.close();
  };
  if (life.peer_script.reading == Reading::never) {
    life.peer_stopped = true;
    peer.stop_reading();
  }
}

void Swarm::peer_received(SwarmLife& life, sim::Peer& peer, std::string_view bytes) {
  find_pings(life);
  if (!peer_knows(life, bytes))
    problem(&life, "what is delivered is a prefix of what was sent", "to the peer, at " + std::to_string(life.peer_checked));
  life.peer_checked += bytes.size();
  counts.bytes += bytes.size();
  const std::uint64_t pings_before = life.peer_pings;
  const std::uint64_t ping_bytes = std::max<std::uint64_t>(life.notes.heartbeat.terms().ping_bytes, 1);
  while (life.peer_pings < life.pings.size() && life.pings[life.peer_pings] + ping_bytes <= life.peer_checked) ++life.peer_pings;
  if (life.peer_pings != pings_before) answer(life);
  if (life.peer_script.reading != Reading::pauses || !one_in(random, 3)) return;
  peer.stop_reading();
  ++life.own_faults;
  life.peer_stopped = true;
  world.after(any_magnitude(random, Duration(10'000), Duration(std::chrono::seconds(1))), [&life, &peer] {
    life.peer_stopped = false;
    peer.read_on();
  });
}

/// The next piece of what the peer has to say, and then the next.
void Swarm::talk(SwarmLife& life) {
  if (life.peer_went || !life.peer->connected()) return;
  if (life.messages_left == 0) return end_talk(life);
  const PeerScript& script = life.peer_script;
  std::uint64_t bytes = life.script.message_bytes - life.message_given;
  switch (script.style) {
    case PeerStyle::trickles:
      bytes = random.between(1, std::max<std::uint64_t>(bytes / 8, 1));
      break;
    case PeerStyle::bursts:
      bytes += std::uint64_t{life.messages_left - 1} * life.script.message_bytes;
      break;
    case PeerStyle::floods:
      bytes = any_magnitude(random, 1024, 64 * 1024);
      break;
    default:
      break;
  }
  for (std::uint64_t left = bytes; left != 0;) {
    const std::string_view piece = SwarmText::piece(life.stream_in(), life.peer_given, left);
    life.peer->send(piece);
    life.peer_given += piece.size();
    left -= piece.size();
  }
  const std::uint64_t given = life.message_given + bytes;
  life.message_given = static_cast<std::uint32_t>(given % life.script.message_bytes);
  const std::uint64_t whole = given / life.script.message_bytes;
  life.messages_left -=
      static_cast<std::uint32_t>(script.style == PeerStyle::floods ? 1 : std::min<std::uint64_t>(whole, life.messages_left));
  world.after(random.below(6) == 0 ? Duration{} : random.between(Duration{}, script.gap), [this, &life] { talk(life); });
}

void Swarm::end_talk(SwarmLife& life) {
  const PeerScript& script = life.peer_script;
  const auto later = [this, &life, &script](void (sim::Peer::*deed)()) {
    world.after(random.between(Duration{}, script.lingers), [&life, deed] {
      life.peer_went = true;
      (life.peer->*deed)();
    });
  };
  switch (script.end) {
    case PeerEnd::stays:
      return;
    case PeerEnd::finishes:
      return life.peer->finish();
    case PeerEnd::closes:
      return later(&sim::Peer::close);
    case PeerEnd::resets:
      ++life.own_faults;
      return later(&sim::Peer::reset);
    case PeerEnd::finishes_and_closes:
      life.peer->finish();
      return later(&sim::Peer::close);
    case PeerEnd::finishes_and_resets:
      ++life.own_faults;
      life.peer->finish();
      return later(&sim::Peer::reset);
  }
}

}  // namespace vigil::tools
