// What a world of the swarm is like, drawn from chance: some are quiet, some are awful, none has everything.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "oracle_heartbeat.hpp"
#include "vigil/connector.hpp"
#include "vigil/listener.hpp"
#include "vigil/reactor.hpp"
#include "vigil/sim.hpp"

namespace vigil::tools {

/// Between the two, every magnitude as likely as the next.
[[nodiscard]] Duration any_magnitude(sim::Random& random, Duration least, Duration most);
[[nodiscard]] std::uint64_t any_magnitude(sim::Random& random, std::uint64_t least, std::uint64_t most);
[[nodiscard]] inline bool one_in(sim::Random& random, std::uint64_t count) { return random.below(count) == 0; }

/// What the weather does from time to time; a world has some of them.
enum class Weather : std::uint8_t {
  hang,
  vanish,
  reboot,
  kill,
  cut,
  cut_one_way,
  refuse_route,
  reject,
  lose,
  slow_down,
  few_descriptors,
  shake_listener
};
inline constexpr std::size_t weather_count = static_cast<std::size_t>(Weather::shake_listener) + 1;

/// Which of the handler's types a site uses.
inline constexpr std::uint64_t handler_kind_count = 6;

struct SitePlan {
  ReactorOptions reactor{};
  ListenerOptions listener{};
  ConnectorOptions connector{};
  std::uint64_t handler_kind = 0;
  Timeouts accepted{};  ///< what its accepted connections go by, every kind valued; resolved here and not by the library
  Timeouts attempted{};
  HeartbeatTerms accepted_heartbeat{};  ///< and what their options' heartbeats promise, likewise
  HeartbeatTerms attempted_heartbeat{};
  Duration ends_after = Duration::max();  ///< destroyed with all it has open
};

/// What its addresses are of; where it is both, listeners take both at one socket.
enum class Family : std::uint8_t { v4, v6, both };

struct WorldPlan {
  std::vector<SitePlan> sites;
  unsigned server_reactors = 0;  ///< of a Server that is all there is, with one site's plan on each; 0: none, reactors of our own
  bool server_is_signalled = false;  ///< to stop
  Family family = Family::v4;
  unsigned peers = 1;  ///< hosts that peers run on
  unsigned lives = 0;
  Duration spread{};         ///< over which they begin
  Duration lasts{};          ///< then everything is shut down
  Duration drain{};          ///< with this much time to drain
  bool stops_early = false;  ///< in the middle of it
  std::array<double, sim::fault_count> chances{};
  sim::Path path{};
  std::size_t own_send_buffer = 0, own_receive_buffer = 0, peer_send_buffer = 0, peer_receive_buffer = 0;
  std::vector<Weather> weather;
  Duration weather_gap{};
  Duration weather_longest{};        ///< that it lasts
  Duration spends_most{};            ///< of most callbacks
  std::uint64_t dawdles_one_in = 0;  ///< so rarely one takes up to dawdles_most
  Duration dawdles_most{};
  std::uint64_t outgoing_percent = 0;
};

[[nodiscard]] WorldPlan draw_world(sim::Random& random);
[[nodiscard]] Timeouts draw_timeouts(sim::Random& random, unsigned percent);
[[nodiscard]] Timeout draw_timeout(sim::Random& random);
[[nodiscard]] Rate draw_rate(sim::Random& random);

/// `nearer` where it has a value, else `farther`, else what is built in.
[[nodiscard]] Timeouts resolve(const Timeouts& nearer, const Timeouts& farther);

}  // namespace vigil::tools
