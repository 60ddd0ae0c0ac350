// Accepts connections on one address and gives each its handler.
//
// Thread: the reactor's. Ownership: destroying a listener closes its socket; the connections it accepted live on. It must not
// outlive its reactor. Nothing is accepted from inside listen().
//
//   vigil::Listener<Echo> listener(reactor, {.timeouts = {.receive = 30s}});
//   if (auto bound = listener.listen("127.0.0.1:7000"); !bound) return vigil::report(bound.error());
//
// Handlers that share state are built by a function of the connection:
//
//   vigil::Listener<Session> listener(reactor, options, [&](vigil::Connection&) { return Session{database}; });
//
// On a Unix path: a file left by a process that is gone is replaced; one whose owner lives, or that is no socket, is EADDRINUSE.
// The file's mode is the umask's, and it is removed when the listener closes if it is still the listener's own.
//
// Out of descriptors or memory: the head of the kernel's queue is shed (accepted on a reserve descriptor and closed, told as
// accept_shed), then accepting pauses and is retried with a growing delay, told to the events object. At connections_max, at the
// accept rate, and after pause_accepting() nothing is accepted and nothing shed: whoever connects waits in the kernel's queue,
// which is accept_queue long. Where that is full, a TCP peer's kernel tries again, and a Unix peer is told EAGAIN. The accept
// deadline stands still whenever accepting does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>

#include "vigil/address.hpp"
#include "vigil/callback.hpp"
#include "vigil/callback_names.hpp"
#include "vigil/connection.hpp"
#include "vigil/handler.hpp"
#include "vigil/heartbeat_options.hpp"
#include "vigil/reactor.hpp"
#include "vigil/result.hpp"
#include "vigil/socket.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

struct ListenerOptions {
  Timeouts timeouts{};                                ///< the listener's layer of defaults, inherited by its connections
  SocketOptions socket{};                             ///< set once on the listening socket; accepted ones inherit them
  std::size_t backlog_bytes_max = 16 * 1024 * 1024;   ///< hard bound on one send() and all that waits before it; up to 4 GiB - 1
  std::size_t backlog_high_mark_bytes = 1024 * 1024;  ///< on_send_drained comes after the queue passed this ...
  std::size_t backlog_low_mark_bytes = 256 * 1024;    ///< ... and has fallen to this
  WhenBacklogged when_backlogged = WhenBacklogged::close;
  HeartbeatOptions heartbeat{};       ///< how a peer that is silently gone is noticed; off unless it has a budget
  std::size_t message_bytes_max = 0;  ///< the most on_receive may leave; 0: the reactor's receive_buffer_bytes, also the most
  int accept_queue = 4096;            ///< listen(2)'s backlog; the system may cap it (net.core.somaxconn)
  bool reuse_port = false;            ///< SO_REUSEPORT: several listeners share the address
  bool v6_only = true;                ///< an IPv6 listener takes no IPv4 connections
  /// How many of this listener's connections may be open at once; others wait in the kernel's queue. 0: no bound.
  std::size_t connections_max = 0;
  /// How many connections are accepted a second, over any stretch of time; beyond that a burst of a tenth of it, at least one.
  /// Others wait in the kernel's queue. 0: no bound; at most 1,000,000.
  std::uint32_t accept_rate = 0;
};

/// What belongs to no connection. An events object has any of these members, found by name; one that can't be called like this
/// does not compile.
/// - `void on_accept_timed_out(vigil::Duration after)`: nobody was accepted for the accept timeout; told once per period
/// - `void on_accept_paused(const vigil::Error&, vigil::Duration retry)`: out of descriptors or memory; tried again after `retry`
/// - `void on_accept_resumed(vigil::Duration after)`: accepting again, `after` the first pause
/// - `void on_shed(const vigil::CloseRecord&)`: a connection was closed for want of a descriptor or memory
struct ListenerEventThunks {
  void (*on_accept_timed_out)(void* events, Duration after) noexcept = nullptr;
  void (*on_accept_paused)(void* events, const Error& error, Duration retry) noexcept = nullptr;
  void (*on_accept_resumed)(void* events, Duration after) noexcept = nullptr;
  void (*on_shed)(void* events, const CloseRecord& record) noexcept = nullptr;
};

/// The part of a listener that does not depend on its handler's type.
class ListenerBase {
 public:
  ListenerBase(const ListenerBase&) = delete;
  ListenerBase& operator=(const ListenerBase&) = delete;

  /// Binds and listens; connections come from the next turn on. Errors name the operation (parse address, listen, bind, ...):
  /// EADDRINUSE, EACCES, EINVAL (options out of range; already listening), ESHUTDOWN (the reactor is shutting down).
  [[nodiscard]] Result<void> listen(std::string_view address);
  [[nodiscard]] Result<void> listen(const Address& address);

  /// What it is bound to, with the port the system chose for port 0. ENOTCONN: not listening.
  [[nodiscard]] Result<Address> address() const;

  /// Stops accepting and closes the socket; its connections live on. It may listen again.
  void close();

  /// Nothing is accepted until resume_accepting(): whoever connects waits in the kernel's queue. Calls are not counted: one
  /// resume is enough. It may be called before listen(), and is kept across close().
  void pause_accepting();
  void resume_accepting();

  /// Accepted by this listener, before a close() too, and not yet ended (their on_close told, their memory free).
  [[nodiscard]] std::size_t connections() const;

  /// What the typed listener knows and the rest of it needs.
  struct Setup {
    const HandlerThunks* handler;
    Callback<void(void* storage, Connection&)> construct;
    void* events;
    const ListenerEventThunks* event_thunks;
  };

 protected:
  ListenerBase(Reactor& reactor, const ListenerOptions& options, Setup setup);
  ~ListenerBase();

 private:
  Registration source_;
};

namespace listener_detail {

template <class Events>
inline constexpr ListenerEventThunks event_thunks = [] {
  using namespace callback_names;
  ListenerEventThunks thunks;
  if constexpr (names_on_accept_timed_out<Events, Duration>()) {
    static_assert(
        requires(Events & events) { events.on_accept_timed_out(Duration{}); },
        "on_accept_timed_out must be callable as void on_accept_timed_out(vigil::Duration)");
    thunks.on_accept_timed_out = [](void* events, Duration after) noexcept {
      static_cast<Events*>(events)->on_accept_timed_out(after);
    };
  }
  if constexpr (names_on_accept_paused<Events, const Error&, Duration>()) {
    static_assert(
        requires(Events & events, const Error& error) { events.on_accept_paused(error, Duration{}); },
        "on_accept_paused must be callable as void on_accept_paused(const vigil::Error&, vigil::Duration)");
    thunks.on_accept_paused = [](void* events, const Error& error, Duration retry) noexcept {
      static_cast<Events*>(events)->on_accept_paused(error, retry);
    };
  }
  if constexpr (names_on_accept_resumed<Events, Duration>()) {
    static_assert(
        requires(Events & events) { events.on_accept_resumed(Duration{}); },
        "on_accept_resumed must be callable as void on_accept_resumed(vigil::Duration)");
    thunks.on_accept_resumed = [](void* events, Duration after) noexcept {
      static_cast<Events*>(events)->on_accept_resumed(after);
    };
  }
  if constexpr (names_on_shed<Events, const CloseRecord&>()) {
    static_assert(
        requires(Events & events, const CloseRecord& record) { events.on_shed(record); },
        "on_shed must be callable as void on_shed(const vigil::CloseRecord&)");
    thunks.on_shed = [](void* events, const CloseRecord& record) noexcept { static_cast<Events*>(events)->on_shed(record); };
  }
  return thunks;
}();

template <class Handler, class Make>
Callback<void(void*, Connection&)> constructor_from(Make make) {
  static_assert(std::is_same_v<std::invoke_result_t<Make&, Connection&>, Handler>,
                "make_handler(Connection&) must return the handler");
  return [make = std::move(make)](void* storage, Connection& connection) mutable { ::new (storage) Handler(make(connection)); };
}

template <class Handler>
Callback<void(void*, Connection&)> default_constructor() {
  return [](void* storage, Connection&) { ::new (storage) Handler(); };
}

}  // namespace listener_detail

template <class Handler>
class Listener : public ListenerBase {
 public:
  explicit Listener(Reactor& reactor, const ListenerOptions& options = {}) requires std::is_default_constructible_v<Handler>
      : ListenerBase(reactor, options,
                     {&handler_thunks<Handler>, listener_detail::default_constructor<Handler>(), nullptr, &none_}) {}

  template <class Make>
  requires std::is_invocable_v<Make&, Connection&> Listener(Reactor& reactor, const ListenerOptions& options, Make make_handler)
      : ListenerBase(
            reactor, options,
            {&handler_thunks<Handler>, listener_detail::constructor_from<Handler>(std::move(make_handler)), nullptr, &none_}) {}

  /// `events` must outlive the listener.
  template <class Make, class Events>
  requires std::is_invocable_v<Make&, Connection&> Listener(Reactor& reactor, const ListenerOptions& options, Make make_handler,
                                                            Events& events)
      : ListenerBase(reactor, options,
                     {&handler_thunks<Handler>, listener_detail::constructor_from<Handler>(std::move(make_handler)), &events,
                      &listener_detail::event_thunks<Events>}) {}

 private:
  static constexpr ListenerEventThunks none_{};
};

}  // namespace vigil
