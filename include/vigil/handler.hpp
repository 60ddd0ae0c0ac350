// How a handler's callbacks are reached: a constant table of functions per handler type, found at compile time.
//
// A handler is any struct with
// - `void on_receive(vigil::Connection&, vigil::Bytes)`: mandatory. Bytes arrived; they are borrowed for the call.
//   Or `std::size_t on_receive(...)`: the bytes it consumed, from the front. The rest waits, at most message_bytes_max of it, and
//   is handed over again in front of what follows, by resume_reading(), or by receive_again(); at the peer's end once more
//   (Connection::is_final()), then it counts as unconsumed. More than was given ends the connection: system_error, EINVAL
// - `void on_close(vigil::Connection&, const vigil::CloseRecord&)`: mandatory. The life is over; comes exactly once
// - `void on_open(vigil::Connection&)`: the connection is established
// - `void on_send_drained(vigil::Connection&)`: the queue fell to the low mark after having passed the high one
// - `void on_peer_finished(vigil::Connection&)`: the peer's end came; without it the connection flushes and closes.
//   With it, it may go on sending: from then on `send` is the only deadline until the queue is empty, and `drain` after that
// - `void on_peer_gone_while_paused(vigil::Connection&)`: the peer ended or reset its stream while reading is paused by
//   pause_reading(), not while a backlog alone holds it (then its end is read when the queue has fallen, which `send` bounds);
//   comes once. The end itself is told after what the kernel still holds: resume_reading(), or close() to end without it
// - `void on_ping_due(vigil::Connection&)`: the peer is silent; send something it must answer. What is sent here is the probe;
//   any byte that comes back ends the silence. It is called only where the heartbeat's options give a budget and no ping, and
//   only into a silence: first half an interval to a whole one after the last sign of life, then an interval apart, but not while
//   bytes wait in our queue (heartbeat_options.hpp). It may send nothing: at the budget's end the peer is judged all the same.
//   It may close the connection
// - `vigil::Duration on_deadline(vigil::Connection&, vigil::Deadline)`: a deadline is about to close an open connection;
//   the answer is how much longer it may take from now (for a rate: when the next window is judged, at the earliest a window from
//   now), 0 or less closes. Not asked for connect and drain, nor at the end of a heartbeat's budget, which is no Deadline, nor
//   once closing. Without it deadlines close
//
// A misspelled mandatory callback does not compile, nor does an optional one that exists by name but can't be called as above:
// plain, overloaded, templated or private. Of a `final` struct the language does not tell as much: there a private optional
// callback is not noticed, and a wrong one may not be where it is overloaded for the same number of arguments, or a template of
// anything but one type. One that can be called as above is always called.
// Callbacks run on the reactor's thread and are noexcept: one that throws terminates the program.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "vigil/bytes.hpp"
#include "vigil/callback_names.hpp"
#include "vigil/close_record.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

class Connection;

struct HandlerThunks {
  std::size_t size;
  std::size_t alignment;
  void (*destroy)(void* handler) noexcept;
  void (*on_receive)(void* handler, Connection&, Bytes) noexcept;
  void (*on_close)(void* handler, Connection&, const CloseRecord&) noexcept;
  void (*on_open)(void* handler, Connection&) noexcept;  ///< these may be null
  void (*on_send_drained)(void* handler, Connection&) noexcept;
  void (*on_peer_finished)(void* handler, Connection&) noexcept;
  void (*on_peer_gone_while_paused)(void* handler, Connection&) noexcept;
  void (*on_ping_due)(void* handler, Connection&) noexcept;
  Duration (*on_deadline)(void* handler, Connection&, Deadline) noexcept;
};

namespace handler_detail {

using namespace callback_names;

/// What on_receive left of `bytes`, or claims to have consumed beyond them.
void not_all_consumed(Connection& connection, Bytes bytes, std::size_t consumed) noexcept;

// A callback that takes the connection alone, or null.
#define VIGIL_PLAIN_CALLBACK(name)                                                                                     \
  template <class Handler>                                                                                             \
  consteval auto name()->void (*)(void*, Connection&) noexcept {                                                       \
    if constexpr (names_##name<Handler, Connection&>()) {                                                              \
      static_assert(                                                                                                   \
          requires(Handler & handler, Connection & connection) { handler.name(connection); },                          \
          #name " must be callable as void " #name "(vigil::Connection&)");                                            \
      return [](void* handler, Connection& connection) noexcept { static_cast<Handler*>(handler)->name(connection); }; \
    } else {                                                                                                           \
      return nullptr;                                                                                                  \
    }                                                                                                                  \
  }

VIGIL_PLAIN_CALLBACK(on_open)
VIGIL_PLAIN_CALLBACK(on_send_drained)
VIGIL_PLAIN_CALLBACK(on_peer_finished)
VIGIL_PLAIN_CALLBACK(on_peer_gone_while_paused)
VIGIL_PLAIN_CALLBACK(on_ping_due)
#undef VIGIL_PLAIN_CALLBACK

template <class Handler>
consteval auto on_deadline() -> Duration (*)(void*, Connection&, Deadline) noexcept {
  if constexpr (names_on_deadline<Handler, Connection&, Deadline>()) {
    static_assert(
        requires(Handler & handler, Connection & connection, Deadline kind) {
          { handler.on_deadline(connection, kind) } -> std::convertible_to<Duration>;
        },
        "on_deadline must be callable as vigil::Duration on_deadline(vigil::Connection&, vigil::Deadline)");
    return [](void* handler, Connection& connection, Deadline kind) noexcept -> Duration {
      return static_cast<Handler*>(handler)->on_deadline(connection, kind);
    };
  } else {
    return nullptr;
  }
}

template <class Handler>
consteval auto on_receive() -> void (*)(void*, Connection&, Bytes) noexcept {
  using Answer = decltype(std::declval<Handler&>().on_receive(std::declval<Connection&>(), Bytes()));
  if constexpr (std::is_void_v<Answer>) {
    return [](void* handler, Connection& connection, Bytes bytes) noexcept {
      static_cast<Handler*>(handler)->on_receive(connection, bytes);
    };
  } else {
    return [](void* handler, Connection& connection, Bytes bytes) noexcept {
      const std::size_t consumed = static_cast<Handler*>(handler)->on_receive(connection, bytes);
      if (consumed != bytes.size()) [[unlikely]]
        not_all_consumed(connection, bytes, consumed);
    };
  }
}

template <class Handler>
concept Receives = requires(Handler& handler, Connection& connection, Bytes bytes) {
  { handler.on_receive(connection, bytes) } -> std::same_as<void>;
}
|| requires(Handler& handler, Connection& connection, Bytes bytes) {
  { handler.on_receive(connection, bytes) } -> std::same_as<std::size_t>;
};

template <class Handler>
consteval HandlerThunks make_thunks() {
  static_assert(Receives<Handler>,
                "a handler needs void on_receive(vigil::Connection&, vigil::Bytes), or one that answers std::size_t");
  static_assert(
      requires(Handler & handler, Connection & connection, const CloseRecord& record) { handler.on_close(connection, record); },
      "a handler needs void on_close(vigil::Connection&, const vigil::CloseRecord&)");
  static_assert(alignof(Handler) <= 64, "a handler is stored in its connection's slot, which is aligned to 64 bytes");
  return {
      .size = sizeof(Handler),
      .alignment = alignof(Handler),
      .destroy = [](void* handler) noexcept { static_cast<Handler*>(handler)->~Handler(); },
      .on_receive = on_receive<Handler>(),
      .on_close = [](void* handler, Connection& connection,
                     const CloseRecord& record) noexcept { static_cast<Handler*>(handler)->on_close(connection, record); },
      .on_open = on_open<Handler>(),
      .on_send_drained = on_send_drained<Handler>(),
      .on_peer_finished = on_peer_finished<Handler>(),
      .on_peer_gone_while_paused = on_peer_gone_while_paused<Handler>(),
      .on_ping_due = on_ping_due<Handler>(),
      .on_deadline = on_deadline<Handler>(),
  };
}

}  // namespace handler_detail

template <class Handler>
inline constexpr HandlerThunks handler_thunks = handler_detail::make_thunks<Handler>();

}  // namespace vigil
