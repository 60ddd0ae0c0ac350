// The handlers of a swarm's connections: six types that hear of different things, all led by the life's script.
//
// Thread: the world's. Ownership: as every handler, the connection's slot.
#pragma once

#include "swarm_world.hpp"

namespace vigil::tools {

/// What every type has. Its life outlives it.
class SwarmHandler {
 public:
  explicit SwarmHandler(SwarmLife& life);
  ~SwarmHandler();
  SwarmHandler(const SwarmHandler&) = delete;
  SwarmHandler& operator=(const SwarmHandler&) = delete;

  void on_open(Connection& connection);
  void on_ping_due(Connection& connection);
  void on_close(Connection& connection, const CloseRecord& record);

 protected:
  /// Consumes all, or (`parses`) whole messages; answers how much.
  std::size_t received(Connection& connection, Bytes bytes, bool parses);
  void drained();
  void heard_finish();
  void heard_gone();
  Duration asked(Deadline kind);

 private:
  void enter(const char* callback);
  void heard_life();
  void count_messages(std::uint64_t consumed_before, bool leaves);
  void mark(std::uint64_t messages, bool rest_waits);

  SwarmLife& life_;
  Swarm& swarm_;
};

template <class Handler>
struct Takes : Handler {
  using Handler::Handler;
  static constexpr bool parses = false;
  void on_receive(Connection& connection, Bytes bytes) { (void)this->received(connection, bytes, false); }
};

template <class Handler>
struct Parses : Handler {
  using Handler::Handler;
  static constexpr bool parses = true;
  std::size_t on_receive(Connection& connection, Bytes bytes) { return this->received(connection, bytes, true); }
};

template <class Handler>
struct HearsDrained : Handler {
  using Handler::Handler;
  void on_send_drained(Connection&) { this->drained(); }
};

template <class Handler>
struct HearsFinish : Handler {
  using Handler::Handler;
  void on_peer_finished(Connection&) { this->heard_finish(); }
};

template <class Handler>
struct HearsGone : Handler {
  using Handler::Handler;
  void on_peer_gone_while_paused(Connection&) { this->heard_gone(); }
};

template <class Handler>
struct HearsDeadlines : Handler {
  using Handler::Handler;
  Duration on_deadline(Connection&, Deadline kind) { return this->asked(kind); }
};

}  // namespace vigil::tools
