// How a handler's callbacks are reached: a constant table of functions per handler type, found at compile time.
//
// A handler is any struct with
// - `void on_receive(vigil::Connection&, vigil::Bytes)`: mandatory. Bytes arrived; they are borrowed for the call
// - `void on_close(vigil::Connection&, const vigil::CloseRecord&)`: mandatory. The life is over; comes exactly once
// - `void on_open(vigil::Connection&)`: the connection is established
// - `void on_send_drained(vigil::Connection&)`: the queue fell to the low mark after having passed the high one
// - `void on_peer_finished(vigil::Connection&)`: the peer's end came; without it the connection flushes and closes
//
// A misspelled mandatory callback does not compile, nor does an optional one that exists by name but can't be called as above.
// Callbacks run on the reactor's thread and are noexcept: one that throws terminates the program.
#pragma once

#include <cstddef>
#include <type_traits>

#include "vigil/bytes.hpp"
#include "vigil/callback_names.hpp"
#include "vigil/close_record.hpp"

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
};

namespace handler_detail {

using namespace callback_names;

using Plain = void (*)(void*, Connection&) noexcept;

template <class Handler>
consteval Plain on_open() {
  if constexpr (names_on_open<Handler>()) {
    static_assert(
        requires(Handler & handler, Connection & connection) { handler.on_open(connection); },
        "on_open must be callable as void on_open(vigil::Connection&)");
    return [](void* handler, Connection& connection) noexcept { static_cast<Handler*>(handler)->on_open(connection); };
  } else {
    return nullptr;
  }
}

template <class Handler>
consteval Plain on_send_drained() {
  if constexpr (names_on_send_drained<Handler>()) {
    static_assert(
        requires(Handler & handler, Connection & connection) { handler.on_send_drained(connection); },
        "on_send_drained must be callable as void on_send_drained(vigil::Connection&)");
    return [](void* handler, Connection& connection) noexcept { static_cast<Handler*>(handler)->on_send_drained(connection); };
  } else {
    return nullptr;
  }
}

template <class Handler>
consteval Plain on_peer_finished() {
  if constexpr (names_on_peer_finished<Handler>()) {
    static_assert(
        requires(Handler & handler, Connection & connection) { handler.on_peer_finished(connection); },
        "on_peer_finished must be callable as void on_peer_finished(vigil::Connection&)");
    return [](void* handler, Connection& connection) noexcept { static_cast<Handler*>(handler)->on_peer_finished(connection); };
  } else {
    return nullptr;
  }
}

template <class Handler>
consteval HandlerThunks make_thunks() {
  static_assert(
      requires(Handler & handler, Connection & connection, Bytes bytes) {
        { handler.on_receive(connection, bytes) } -> std::same_as<void>;
      },
      "a handler needs void on_receive(vigil::Connection&, vigil::Bytes)");
  static_assert(
      requires(Handler & handler, Connection & connection, const CloseRecord& record) { handler.on_close(connection, record); },
      "a handler needs void on_close(vigil::Connection&, const vigil::CloseRecord&)");
  static_assert(alignof(Handler) <= 64, "a handler is stored in its connection's slot, which is aligned to 64 bytes");
  return {
      .size = sizeof(Handler),
      .alignment = alignof(Handler),
      .destroy = [](void* handler) noexcept { static_cast<Handler*>(handler)->~Handler(); },
      .on_receive = [](void* handler, Connection& connection,
                       Bytes bytes) noexcept { static_cast<Handler*>(handler)->on_receive(connection, bytes); },
      .on_close = [](void* handler, Connection& connection,
                     const CloseRecord& record) noexcept { static_cast<Handler*>(handler)->on_close(connection, record); },
      .on_open = on_open<Handler>(),
      .on_send_drained = on_send_drained<Handler>(),
      .on_peer_finished = on_peer_finished<Handler>(),
  };
}

}  // namespace handler_detail

template <class Handler>
inline constexpr HandlerThunks handler_thunks = handler_detail::make_thunks<Handler>();

}  // namespace vigil
