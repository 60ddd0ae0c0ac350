// Keeps a connection's send queue full: what `--flood` means.
//
// Thread: the reactor's. Call fill() when the connection opens and whenever its queue has drained to the low mark.
#pragma once

#include <cstddef>

#include "vigil/connection.hpp"
#include "vigil/reactor.hpp"

namespace vigil::tools {

class Flood {
 public:
  Flood(Reactor& reactor, std::size_t backlog_high_mark_bytes) : reactor_(&reactor), mark_(backlog_high_mark_bytes) {}

  /// Sends, from a task of its own, until the queue has passed the high mark, so that on_send_drained is bound to come. (Inside
  /// the connection's own callback small pieces would only be gathered, which passes no mark.) A kernel that takes everything at
  /// once does not keep us there for ever: the rest follows in the next turn.
  void fill(Connection& connection) const;

 private:
  void send_some(Connection& connection) const;

  Reactor* reactor_;
  std::size_t mark_;
};

}  // namespace vigil::tools
