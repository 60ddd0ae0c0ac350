// Opens connections and gives each its handler.
//
// Thread: the reactor's. Ownership: a connector may be destroyed at any time; its attempts and connections live on. It must not
// outlive its reactor.
//
//   vigil::Connector<Client> connector(reactor, {.timeouts = {.connect = 5s}});
//   if (auto attempt = connector.connect("127.0.0.1:7000"); !attempt) return vigil::report(attempt.error());
//
// What is wrong before the kernel is asked to connect is connect()'s own error. From then on the handler is told: on_open, or
// on_close in phase `connecting` with no on_open before it. A Unix listener whose queue is full refuses an attempt (EAGAIN): it
// is made again, first after 1 ms, then in growing steps of up to 100 ms, until its connect deadline.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "vigil/address.hpp"
#include "vigil/connection.hpp"
#include "vigil/heartbeat_options.hpp"
#include "vigil/listener.hpp"
#include "vigil/reactor.hpp"
#include "vigil/socket.hpp"

namespace vigil {

struct ConnectorOptions {
  Timeouts timeouts{};                               ///< the connector's layer of defaults
  SocketOptions socket{};                            ///< set on each socket before it connects
  std::size_t backlog_bytes_max = 16 * 1024 * 1024;  ///< as ListenerOptions
  std::size_t backlog_high_mark_bytes = 1024 * 1024;
  std::size_t backlog_low_mark_bytes = 256 * 1024;
  WhenBacklogged when_backlogged = WhenBacklogged::close;
  HeartbeatOptions heartbeat{};  ///< as ListenerOptions
  std::size_t message_bytes_max = 0;
  std::optional<Address> source{};  ///< bind here before connecting; port 0: any
};

/// The part of a connector that does not depend on its handler's type.
class ConnectorBase {
 public:
  ConnectorBase(const ConnectorBase&) = delete;
  ConnectorBase& operator=(const ConnectorBase&) = delete;

  /// Begins one attempt. Errors: parse address, EINVAL; EMFILE and the like from the socket; EINVAL options out of range;
  /// ESHUTDOWN the reactor is shutting down.
  [[nodiscard]] Result<ConnectionHandle> connect(std::string_view address);
  [[nodiscard]] Result<ConnectionHandle> connect(const Address& address);

 protected:
  struct Setup {
    const HandlerThunks* handler;
    Callback<void(void* storage, Connection&)> construct;
  };
  ConnectorBase(Reactor& reactor, const ConnectorOptions& options, Setup setup);
  ~ConnectorBase();

 private:
  ReactorCore* core_;
  ConnectorOptions options_;
  std::shared_ptr<Setup> setup_;  // shared with a connect() under way: make_handler may destroy its connector
  ConnectionPolicy* policy_ = nullptr;
};

template <class Handler>
class Connector : public ConnectorBase {
 public:
  explicit Connector(Reactor& reactor, const ConnectorOptions& options = {}) requires std::is_default_constructible_v<Handler>
      : ConnectorBase(reactor, options, {&handler_thunks<Handler>, listener_detail::default_constructor<Handler>()}) {}

  template <class Make>
  requires std::is_invocable_v<Make&, Connection&> Connector(Reactor& reactor, const ConnectorOptions& options, Make make_handler)
      : ConnectorBase(reactor, options,
                      {&handler_thunks<Handler>, listener_detail::constructor_from<Handler>(std::move(make_handler))}) {}
};

}  // namespace vigil
