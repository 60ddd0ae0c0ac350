// What each of the six types of handler is reached through: a listener and a connector on a reactor of the swarm's own, or a
// Server with a shard on each of its reactors.
#include "swarm_handler.hpp"

namespace vigil::tools {
namespace {

template <class Handler>
Handler make(SwarmSite& site, Connection& connection) {
  SwarmLife& life = site.swarm->begin_life(site, connection);
  life.notes.hears_finish = handler_thunks<Handler>.on_peer_finished != nullptr;
  life.notes.hears_gone = handler_thunks<Handler>.on_peer_gone_while_paused != nullptr;
  life.notes.clocks.ends_with_peer(!life.notes.hears_finish);
  life.notes.hears_deadlines = handler_thunks<Handler>.on_deadline != nullptr;
  return Handler(life);
}

template <class Handler>
auto maker_at(SwarmSite& site) {
  return [&site](Connection& connection) -> Handler { return make<Handler>(site, connection); };
}

template <class Handler>
class WayOut : public Door {
 public:
  explicit WayOut(SwarmSite& site) : site_(site), connector_(*site.reactor, site.plan->connector, maker_at<Handler>(site)) {}

  ConnectorBase& connector() override { return connector_; }
  Result<ConnectionHandle> connect_to_itself(const Address& address) override {
    ConnectorOptions options = site_.plan->connector;
    options.source = address;
    Connector<Handler> from_there(*site_.reactor, options, maker_at<Handler>(site_));
    return from_there.connect(address);
  }

 private:
  SwarmSite& site_;
  Connector<Handler> connector_;
};

template <class Handler>
class DoorOf final : public WayOut<Handler> {
 public:
  explicit DoorOf(SwarmSite& site)
      : WayOut<Handler>(site), listener_(*site.reactor, site.plan->listener, maker_at<Handler>(site), site) {}
  ListenerBase& listener() override { return listener_; }

 private:
  Listener<Handler> listener_;
};

/// On one of a server's reactors: a site that begins and ends with it.
template <class Handler>
class Shard {
 public:
  Shard(Swarm& swarm, Worker& worker) : site_(swarm.site_begins(worker)), door_(site_, worker.listener()) { site_.door = &door_; }
  ~Shard() { site_.swarm->site_ends(site_); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  Handler make_handler(Connection& connection) { return make<Handler>(site_, connection); }
  void on_accept_timed_out(Duration after) { site_.on_accept_timed_out(after); }
  void on_accept_paused(const Error& error, Duration retry) { site_.on_accept_paused(error, retry); }
  void on_accept_resumed(Duration after) { site_.on_accept_resumed(after); }
  void on_shed(const CloseRecord& record) { site_.on_shed(record); }

 private:
  class DoorOfShard final : public WayOut<Handler> {
   public:
    DoorOfShard(SwarmSite& site, ListenerBase& listener) : WayOut<Handler>(site), listener_(listener) {}
    ListenerBase& listener() override { return listener_; }

   private:
    ListenerBase& listener_;
  };

  SwarmSite& site_;
  DoorOfShard door_;
};

template <class Use>
auto with_handler(std::uint64_t kind, Use use) {
  using Plain = SwarmHandler;
  static_assert(handler_kind_count == 6);
  switch (kind) {
    case 0:
      return use.template operator()<Takes<Plain>>();
    case 1:
      return use.template operator()<HearsDeadlines<HearsDrained<Parses<Plain>>>>();
    case 2:
      return use.template operator()<HearsFinish<HearsGone<HearsDeadlines<HearsDrained<Takes<Plain>>>>>>();
    case 3:
      return use.template operator()<HearsFinish<Parses<Plain>>>();
    case 4:
      return use.template operator()<HearsGone<HearsDrained<Parses<Plain>>>>();
    default:
      return use.template operator()<HearsFinish<HearsGone<HearsDeadlines<Parses<Plain>>>>>();
  }
}

}  // namespace

std::unique_ptr<Door> open_door(SwarmSite& site) {
  return with_handler(site.plan->handler_kind,
                      [&site]<class Handler>() -> std::unique_ptr<Door> { return std::make_unique<DoorOf<Handler>>(site); });
}

std::shared_ptr<ServerBase> make_server(Swarm& swarm, const ServerOptions& options, std::uint64_t handler_kind) {
  return with_handler(handler_kind, [&]<class Handler>() -> std::shared_ptr<ServerBase> {
    return std::make_shared<Server<Handler, Shard<Handler>>>(options,
                                                             [&swarm](Worker& worker) { return Shard<Handler>(swarm, worker); });
  });
}

}  // namespace vigil::tools
