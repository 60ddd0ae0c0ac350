// One life of a swarm: what both sides of a connection are told to do, how far they are, and the notes for the oracle.
//
// Thread: its world's. Ownership: the Swarm owns all its lives, which keep their places.
#pragma once

#include <cstdint>
#include <vector>

#include "oracle.hpp"
#include "swarm_plan.hpp"
#include "vigil/vigil.hpp"

namespace vigil::tools {

class Swarm;
struct SwarmSite;

/// What a handler, a timer or a task does to a connection.
enum class Deed : std::uint8_t {
  nothing,
  finish,
  close,
  abort,
  pause,
  resume,
  set_timeout,
  set_rate,
  begin_message,
  end_message,
  receive_again,
  send_some,
  send_much,
  send_pieces,
  post
};
inline constexpr std::uint64_t deed_count = static_cast<std::uint64_t>(Deed::post) + 1;

/// What the handler does.
struct HandlerScript {
  std::uint32_t message_bytes = 1;  ///< both sides know how long the peer's messages are
  std::uint32_t greeting_bytes = 0;
  std::uint32_t reply_bytes = 0;  ///< to each message
  bool marks = false;             ///< begin_message, end_message
  bool is_stubborn = false;       ///< leaves all of what it is given for a while
  bool lies = false;              ///< claims once to have consumed more than it was given
  Deed deed = Deed::nothing;      ///< after so many messages
  std::uint64_t deed_at = 0;
  Deed timed_deed = Deed::nothing;  ///< after so long
  Duration timed_after{};
  Deed at_finish = Deed::nothing;  ///< when it hears of the peer's end
  std::uint32_t more_time = 0;     ///< so often a deadline is given more
  bool is_mute = false;            ///< says nothing when a ping is due
};

enum class PeerStyle : std::uint8_t { chats, trickles, bursts, floods, silent };
enum class PeerEnd : std::uint8_t { stays, finishes, closes, resets, finishes_and_closes, finishes_and_resets };
enum class Reading : std::uint8_t { at_once, never, pauses };
enum class Answering : std::uint8_t { at_once, late, now_and_then, never };

/// What the peer does.
struct PeerScript {
  PeerStyle style = PeerStyle::chats;
  PeerEnd end = PeerEnd::stays;
  Reading reading = Reading::at_once;
  std::uint32_t messages = 0;
  Duration gap{};
  Duration lingers{};
  bool ends_at_finish = false;               ///< when it is told the other end
  Answering answering = Answering::at_once;  ///< of pings
};

struct SwarmLife {
  Swarm* swarm = nullptr;
  SwarmSite* site = nullptr;
  std::uint64_t number = 0;  ///< from 1
  bool outgoing = false;
  HandlerScript script;
  PeerScript peer_script;
  LifeNotes notes;

  // This side.
  ConnectionHandle connection;
  std::uint64_t socket = 0;  ///< the world's number of it
  Timer timer;
  Instant timer_due{};
  std::uint64_t received = 0;
  std::uint64_t messages_in = 0;
  std::uint64_t messages_out = 0;
  std::uint64_t spoken = 0;          ///< of its own stream; notes.given counts the library's pings too
  std::vector<std::uint64_t> pings;  ///< each behind so many bytes given
  std::uint32_t left = 0;            ///< by on_receive
  bool touched = false;              ///< in this turn
  bool in_receive = false;           ///< inside on_receive
  bool is_pinging = false;           ///< inside on_ping_due
  std::size_t deadlines = 0;
  CloseRecord record;

  // The other side.
  sim::Peer* peer = nullptr;
  std::uint64_t peer_given = 0;
  std::uint64_t peer_checked = 0;
  std::uint64_t peer_pings = 0;  ///< of those, pings it has read
  std::uint32_t messages_left = 0;
  std::uint32_t message_given = 0;  ///< of the message under way
  bool peer_went = false;           ///< closed or reset, or its host was meddled with
  bool peer_stopped = false;        ///< does not read (all)
  std::uint32_t own_faults = 0;

  [[nodiscard]] std::uint64_t stream_in() const { return 2 * number; }
  [[nodiscard]] std::uint64_t stream_out() const { return 2 * number + 1; }
};

[[nodiscard]] HandlerScript draw_handler_script(sim::Random& random, const SitePlan& site);
/// `is_watched`: by a heartbeat, so that what becomes of it in a silence is of interest.
[[nodiscard]] PeerScript draw_peer_script(sim::Random& random, bool is_watched);

}  // namespace vigil::tools
