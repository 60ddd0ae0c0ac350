// A listener in a scripted world whose events object notes everything it is told, and when.
//
//   Observed world({.connections_max = 2});
//   world.peers_connect(3);
//   world.settle();
//   CHECK(world.story.opened.size() == 2);
#pragma once

#include <optional>
#include <vector>

#include "simulation.hpp"

namespace vigil {

/// What belongs to no connection, with the instants at which it was told.
struct ListenerEvents {
  sys::ScriptedKernel* kernel;
  std::vector<Instant> timed_out{};
  std::vector<Duration> timed_out_after{};
  std::vector<Error> paused{};
  std::vector<Duration> retries{};
  std::vector<Duration> resumed_after{};
  std::vector<CloseRecord> shed{};

  void on_accept_timed_out(Duration after) {
    timed_out.push_back(kernel->now());
    timed_out_after.push_back(after);
  }
  void on_accept_paused(const Error& error, Duration retry) {
    paused.push_back(error);
    retries.push_back(retry);
  }
  void on_accept_resumed(Duration after) { resumed_after.push_back(after); }
  void on_shed(const CloseRecord& record) { shed.push_back(record); }
};

/// A listener with an events object, beside the simulation's own.
struct Observed : Simulation {
  explicit Observed(const ListenerOptions& options = {}) : events{.kernel = &kernel} {
    observed.emplace(
        *reactor, options, [this](Connection& connection) { return Actor(story, connection); }, events);
    REQUIRE(observed->listen("127.0.0.1:7001"));
    listening = kernel.listener();
    settle();
  }
  ~Observed() { observed.reset(); }

  /// So many peers connect; they wait in the kernel's queue.
  std::vector<int> peers_connect(int count) {
    std::vector<int> peers;
    while (count-- > 0) peers.push_back(kernel.peer_connects(listening));
    return peers;
  }
  /// Whether the poller tells of who comes.
  [[nodiscard]] bool is_watched() const { return (kernel.registered_for(listening) & EPOLLIN) != 0; }

  ListenerEvents events;
  std::optional<Listener<Actor>> observed;
};

}  // namespace vigil
