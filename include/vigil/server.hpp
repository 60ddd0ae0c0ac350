// Serves one address with N reactors on N threads. Each has its own listener (SO_REUSEPORT: the kernel spreads the connections)
// and shares nothing with the others.
//
// Thread: a server belongs to the thread that made it, where its control reactor runs; shutdown() may be called from any. A
// handler, and the shard it was made by, belong to the thread of their reactor. Ownership: what make_shard and shards refer to
// must outlive the server.
//
//   vigil::Server<Echo> server({.reactors = 4, .listener = {.timeouts = {.receive = 30s}}});
//   if (auto started = server.start("127.0.0.1:7000"); !started) return vigil::report(started.error());
//   return vigil::report(server.run());  // until SIGTERM or SIGINT
//
// What the handlers of one reactor share is a shard: one for each reactor, made on its thread before it listens and destroyed
// there after its last record was told. It may have any of these members, found by name; one that can't be called like this does
// not compile:
// - `Handler make_handler(vigil::Connection&)` builds each handler (otherwise they are default-constructed)
// - on_accept_timed_out, on_accept_paused, on_accept_resumed, on_shed: it is the listener's events object (listener.hpp)
//
//   struct Shard {
//     explicit Shard(vigil::Worker& worker) : upstream(worker.reactor()) {}
//     Session make_handler(vigil::Connection&) { return Session(upstream); }
//     vigil::Connector<Upstream> upstream;
//   };
//   vigil::Server<Session, Shard> server(options);
#pragma once

#include <concepts>
#include <memory>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>

#include "vigil/address.hpp"
#include "vigil/callback.hpp"
#include "vigil/callback_names.hpp"
#include "vigil/connection.hpp"
#include "vigil/listener.hpp"
#include "vigil/reactor.hpp"
#include "vigil/result.hpp"
#include "vigil/time.hpp"

namespace vigil {

struct ServerOptions {
  unsigned reactors = 1;        ///< up to 1,024; 0: one for each CPU the calling thread may use
  bool pin_cpus = false;        ///< reactor i runs on the i-th of those CPUs alone, beginning again where there are fewer
  bool stop_on_signals = true;  ///< the first SIGTERM or SIGINT shuts down with `drain`, the next one at once
  Duration drain = std::chrono::seconds(5);  ///< 0 to 10 years
  ReactorOptions reactor{};                  ///< of each
  ListenerOptions listener{};  ///< of each; with several reactors reuse_port is always set, but start() tolerates somebody else
                               ///< who listens there already only if you set it
};

/// One of a server's reactors as its shard sees it. It and what it refers to outlive the shard.
class Worker {
 public:
  [[nodiscard]] unsigned index() const { return index_; }        ///< from 0
  [[nodiscard]] unsigned reactors() const { return reactors_; }  ///< how many the server has
  [[nodiscard]] Reactor& reactor() { return *reactor_; }
  [[nodiscard]] ListenerBase& listener() { return *listener_; }  ///< not yet listening while the shard is being made

 private:
  friend struct ServerWorker;
  Worker(unsigned index, unsigned reactors, Reactor& reactor, ListenerBase& listener)
      : index_(index), reactors_(reactors), reactor_(&reactor), listener_(&listener) {}

  unsigned index_;
  unsigned reactors_;
  Reactor* reactor_;
  ListenerBase* listener_;
};

struct ServerState;

namespace server_detail {

/// What stands on one reactor and depends on the user's types: the listener and, once made, the shard.
class Site {
 public:
  Site() = default;
  Site(const Site&) = delete;
  Site& operator=(const Site&) = delete;
  virtual ~Site() = default;
  virtual ListenerBase& listener() = 0;
  virtual void make_shard(Worker& worker) = 0;
};

using MakeSite = Callback<std::unique_ptr<Site>(Reactor&, const ListenerOptions&)>;

}  // namespace server_detail

/// The part of a server that does not depend on its handler's type.
class ServerBase {
 public:
  ServerBase(const ServerBase&) = delete;
  ServerBase& operator=(const ServerBase&) = delete;

  /// Starts the reactors one after another, each listening before the next is started; the port the system chose for port 0 is
  /// the same for all. On failure those already started have ended, and no thread, descriptor or blocked signal is left. Errors
  /// name the operation: as Reactor and Listener::listen give them; {start, EINVAL, the option}; {start, EINVAL}: a Unix address
  /// with several reactors, which can't share it; {start, EBUSY}: it has been started and its run has not ended;
  /// {start worker, EAGAIN, ...}: no thread could be had; and those of Reactor::on_signal. Call it before other threads start
  /// unless stop_on_signals is off.
  [[nodiscard]] Result<void> start(std::string_view address);
  [[nodiscard]] Result<void> start(const Address& address);

  /// What it listens on, with the port the system chose for port 0. ENOTCONN: not started.
  [[nodiscard]] Result<Address> address() const;

  /// Turns the control reactor until every reactor has told its last record and its thread has ended; afterwards it may be
  /// started again. A reactor whose wait fails shuts down the others, with `drain`, and its error is the answer. {run, EINVAL}:
  /// not started. {run, EBUSY}: from inside a callback.
  [[nodiscard]] Result<void> run();

  /// From any thread: every reactor shuts down as Reactor::shutdown(drain) does, when the control reactor turns; run() then
  /// returns. Changes nothing unless started. {shutdown, EINVAL}: drain is not from 0 to 10 years.
  [[nodiscard]] Result<void> shutdown(Duration drain) const;

  /// The reactor that run() turns: for timers, watches and posts of your own on this thread. Its stop() and shutdown() don't end
  /// the server, nor do the other reactors' stop() and, but for that one, shutdown().
  [[nodiscard]] Reactor& control();

  /// Hands the sum of all reactors' counters to `callback` on this thread, soon: each is asked on its own. It is not called if
  /// run() fails, or the server is destroyed, before. {sample, ESHUTDOWN}: no reactor runs.
  [[nodiscard]] Result<void> sample(Callback<void(const ReactorCounters&)> callback);

  /// The sum of all reactors' counters at the end of the last run(); zeros before.
  [[nodiscard]] const ReactorCounters& counters() const;

  /// How many were started; 0 before start() and after run().
  [[nodiscard]] unsigned reactors() const;

 protected:
  ServerBase(const ServerOptions& options, server_detail::MakeSite make_site);
  /// Shuts down at once and waits for the threads.
  ~ServerBase();

 private:
  std::unique_ptr<ServerState> state_;
};

/// The shard of a server whose handlers share nothing.
struct NoShard {};

namespace server_detail {

template <class Handler, class Shard>
Handler make_handler(Shard& shard, Connection& connection) {
  if constexpr (callback_names::names_make_handler<Shard, Connection&>()) {
    static_assert(
        requires {
          { shard.make_handler(connection) } -> std::same_as<Handler>;
        },
        "make_handler must be callable as Handler make_handler(vigil::Connection&)");
    return shard.make_handler(connection);
  } else {
    static_assert(std::is_default_constructible_v<Handler>,
                  "a handler that can't be default-constructed needs a shard with Handler make_handler(vigil::Connection&)");
    return Handler();
  }
}

template <class Handler, class Shard, class MakeShard>
class SiteOf final : public Site {
 public:
  /// `make` is borrowed. The listener knows the shard's place; it uses it when there is something to accept.
  SiteOf(Reactor& reactor, const ListenerOptions& options, MakeShard& make)
      : make_(make),
        listener_(
            reactor, options,
            [this](Connection& connection) -> Handler { return server_detail::make_handler<Handler>(shard_, connection); },
            shard_) {}
  ~SiteOf() override {
    if (made_) shard_.~Shard();
  }

  ListenerBase& listener() override { return listener_; }
  void make_shard(Worker& worker) override {
    ::new (static_cast<void*>(std::addressof(shard_))) Shard(make_(worker));
    made_ = true;
  }

 private:
  MakeShard& make_;
  bool made_ = false;
  union {  // made later than the listener, and not necessarily movable
    Shard shard_;
  };
  Listener<Handler> listener_;
};

template <class Shard>
inline constexpr bool makes_itself = std::is_constructible_v<Shard, Worker&> || std::is_default_constructible_v<Shard>;

template <class Shard>
struct MakeItself {
  Shard operator()([[maybe_unused]] Worker& worker) const {
    if constexpr (std::is_constructible_v<Shard, Worker&>) {
      return Shard(worker);
    } else {
      return Shard();
    }
  }
};

template <class Handler, class Shard, class MakeShard>
MakeSite make_site(MakeShard make_shard) {
  static_assert(std::is_class_v<Shard>, "a shard is an object of a class");
  static_assert(std::is_same_v<std::invoke_result_t<MakeShard&, Worker&>, Shard>,
                "make_shard(vigil::Worker&) must return the shard");
  return [make_shard = std::move(make_shard)](Reactor& reactor, const ListenerOptions& options) mutable {
    return std::unique_ptr<Site>(new SiteOf<Handler, Shard, MakeShard>(reactor, options, make_shard));
  };
}

}  // namespace server_detail

template <class Handler, class Shard = NoShard>
class Server : public ServerBase {
 public:
  /// Each shard is constructed from its Worker&, or from nothing.
  explicit Server(const ServerOptions& options = {}) requires server_detail::makes_itself<Shard>
      : Server(options, server_detail::MakeItself<Shard>()) {}

  /// Each shard is what make_shard(vigil::Worker&) returns. It is called on the reactors' threads, never by two at once.
  template <class MakeShard>
  requires std::is_invocable_v<MakeShard&, Worker&> Server(const ServerOptions& options, MakeShard make_shard)
      : ServerBase(options, server_detail::make_site<Handler, Shard>(std::move(make_shard))) {}
};

}  // namespace vigil
