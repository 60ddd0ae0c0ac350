// The inside of a swarm's world: its sites, its lives, and what all of their callbacks do first and last.
//
// Thread: one. Callbacks of vigil's connections come through SwarmHandler (swarm_handler.cpp), those of the other sides through
// swarm_peer.cpp; swarm_weather.cpp meddles with both.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "oracle.hpp"
#include "swarm.hpp"
#include "swarm_life.hpp"
#include "swarm_plan.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

namespace vigil::tools {

/// A listener and a connector, whatever their handlers' type is.
class Door {
 public:
  virtual ~Door() = default;
  virtual ListenerBase& listener() = 0;
  virtual ConnectorBase& connector() = 0;
  /// From the very address that it goes to: an attempt that reaches itself. Its connector is gone when this returns.
  virtual Result<ConnectionHandle> connect_to_itself(const Address& address) = 0;
};

/// One reactor with what stands on it, and what is known of it. Its own, or one of a server's.
struct SwarmSite {
  const SitePlan* plan = nullptr;
  unsigned index = 0;
  std::string address;                 ///< that it listens on
  std::vector<std::string> addresses;  ///< that lead to it
  Reactor* reactor = nullptr;          ///< null once it was destroyed
  Door* door = nullptr;
  std::unique_ptr<Reactor> own_reactor;  ///< unless it is a server's
  std::unique_ptr<Door> own_door;
  std::uint64_t handlers = 0;  ///< that live
  std::uint64_t opened = 0;    ///< handlers built, and connections shed
  std::uint64_t records = 0;
  bool stopping = false;
  bool ending = false;     ///< destroyed
  bool was_held = false;   ///< accepting was, for a cause that is not in its plan
  bool is_shaken = false;  ///< it is just now
  Instant stops_at = never_due;
  bool listens = false;
  Instant accept_from{};  ///< the accept deadline runs from here at the earliest
  double accept_tokens = 0;
  Instant tokens_at{};
  // Before anything stood on it.
  std::size_t timers_before = 0, sources_before = 0, blocks_before = 0;

  // The listener's events.
  Swarm* swarm = nullptr;
  void on_accept_timed_out(Duration after);
  void on_accept_paused(const Error& error, Duration retry);
  void on_accept_resumed(Duration after);
  void on_shed(const CloseRecord& record);

  void count_accepted();
  void judge_accept_deadline();
};

/// A host that peers run on.
struct PeerHost {
  sim::Host* host = nullptr;
  std::vector<std::string> addresses{};  ///< as in an address with a port
  bool hangs = false;
  std::uint64_t deaths = 0;  ///< of its processes, and of what they listened on
};

class Swarm {
 public:
  explicit Swarm(WorldChoice choice);
  ~Swarm();
  Swarm(const Swarm&) = delete;
  Swarm& operator=(const Swarm&) = delete;
  void run();
  [[nodiscard]] WorldReport report();

  // --- what callbacks do
  /// First: it is a turn, and the world has come this far.
  void enter();
  /// Takes some time.
  void spend();
  void touch(SwarmLife& life);
  [[nodiscard]] SwarmLife& begin_life(SwarmSite& site, Connection& connection);
  /// A server's worker has made its shard; and its reactor is about to end.
  [[nodiscard]] SwarmSite& site_begins(Worker& worker);
  void site_ends(SwarmSite& site);
  void end_life(SwarmLife& life);

  /// Does something to a connection; `outside`: not in a callback of its own.
  void act(SwarmLife& life, Deed deed, bool outside);
  void send(SwarmLife& life, std::uint64_t bytes, bool outside = false);
  void send_pieces(SwarmLife& life, bool outside);
  void post(SwarmLife& life);
  void judge_before_hold(SwarmLife& life);
  /// A queue that has fallen to its low mark holds reading no more.
  void look_at_backlog(SwarmLife& life);
  void judge_read_while_backlogged(SwarmLife& life);
  void ping(SwarmLife& life);        ///< its handler is to
  void find_pings(SwarmLife& life);  ///< that the library has sent by itself
  void find_pings(SwarmLife& life, std::uint64_t held_and_handed);
  void watch(SwarmLife& life) { watched_.push_back(&life); }
  void settle(SwarmLife& life, Settled settled, bool outside);

  // --- the other side
  void begin_peer(SwarmLife& life);  ///< connects, or listens for what will connect
  void meet_peer(SwarmLife& life, sim::Peer& peer);
  void listen_for_nobody(PeerHost& on);
  [[nodiscard]] static std::uint16_t port_of(const SwarmLife& life);
  [[nodiscard]] SwarmLife* life_at(std::uint16_t port);
  void end_processes(PeerHost& on);
  void answer(SwarmLife& life);
  void weather();
  void heal_after(Duration delay, sim::Host& host);
  void shake_listener(SwarmSite& site, Duration lasting);
  void listen(SwarmSite& site);

  /// A line of the trace, where one is wanted.
  void tell(const SwarmLife& life, const char* what, std::uint64_t number = 0) {
    if (trace_) tell_always(life, what, number);
  }
  void problem(const SwarmLife* life, const char* rule, std::string told);
  void take(const SwarmLife* life, Problems& problems);
  [[nodiscard]] sim::Truth truth(const SwarmLife& life) const { return world.truth(life.socket); }
  [[nodiscard]] Instant now() const { return world.now(); }
  [[nodiscard]] std::uint64_t shortages() const;
  void stop_site(SwarmSite& site, Duration drain);
  [[nodiscard]] const HeartbeatTerms& terms_of(const SwarmLife& life) const {
    return life.outgoing ? life.site->plan->attempted_heartbeat : life.site->plan->accepted_heartbeat;
  }

  sim::Random setting;  ///< drawn before the world is made
  WorldPlan plan;
  sim::World world;
  sim::Random& random;
  DelayLog delays;
  Instant turn_began{};
  WorldReport counts;

 private:
  friend struct SwarmSite;
  void tell_always(const SwarmLife& life, const char* what, std::uint64_t number);
  void set_up();
  [[nodiscard]] std::vector<std::string> name(sim::Host& host, std::string_view ip6) const;
  void begin_next_life();
  void timer_fired(SwarmLife& life);
  void watch_next();
  void step_over();
  SwarmSite& add_site(const SitePlan& site_plan, const std::string& port);
  void open_site(const SitePlan& site_plan);
  void note_baseline(SwarmSite& site);
  void begin_listening(SwarmSite& site);
  void start_server();
  void stop_server(bool by_signal);
  void mail_stop(Duration drain);
  void end_server();
  void judge_server();
  void note_stop(SwarmSite& site, Duration drain);
  void destroy_site(SwarmSite& site);
  static void close_site(SwarmSite& site);
  void shut_down();
  [[nodiscard]] bool is_over() const;
  void judge_world();
  void judge_site(SwarmSite& site);
  void judge_life(SwarmLife& life);
  void talk(SwarmLife& life);
  void end_talk(SwarmLife& life);
  void peer_received(SwarmLife& life, sim::Peer& peer, std::string_view bytes);
  [[nodiscard]] bool peer_knows(SwarmLife& life, std::string_view bytes) const;

  Callback<void(std::string_view)> trace_;
  Instant began_{};
  Instant ends_at_ = never_due;
  bool in_turn_ = false;
  std::uint64_t turn_step_ = 0;
  bool stopped_ = false;                ///< everything is to end
  bool judged_ = false;                 ///< and has
  std::shared_ptr<ServerBase> server_;  ///< shared with nobody: it is destroyed as what it is
  std::deque<SwarmSite> sites_;
  std::deque<SwarmLife> lives_;
  std::vector<SwarmLife*> touched_;
  std::vector<SwarmLife*> watched_;  ///< by heartbeats, while they are open
  std::size_t next_watched_ = 0;
  std::deque<PeerHost> peers_;
  std::vector<std::string> own_addresses_;  ///< as in an address with a port
  std::size_t descriptors_before_ = 0;
  SwarmLife* connecting_ = nullptr;  ///< whose connect() is under way
  std::uint64_t alive_ = 0;
};

/// With which of the six types of handler is told by SitePlan::handler_kind (swarm_doors.cpp).
[[nodiscard]] std::unique_ptr<Door> open_door(SwarmSite& site);
[[nodiscard]] std::shared_ptr<ServerBase> make_server(Swarm& swarm, const ServerOptions& options, std::uint64_t handler_kind);

}  // namespace vigil::tools
