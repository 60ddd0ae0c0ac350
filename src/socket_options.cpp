// Socket options: what they may be, and how they reach the kernel.
#include <cerrno>
#include <chrono>

#include "socket_calls.hpp"

#ifndef TCP_NODELAY  // the seam may have brought linux/tcp.h, which netinet/tcp.h collides with
#include <netinet/tcp.h>
#endif

namespace vigil {
namespace {

template <class Unit>
int rounded_up(Duration duration) {
  return static_cast<int>(std::chrono::ceil<Unit>(duration).count());
}

}  // namespace

Error set_int_option(int descriptor, int level, int name, int value, const char* operation, const char* detail) {
  const int status = sys::set_option(descriptor, level, name, &value, sizeof value);
  return status < 0 ? Error{operation, -status, detail} : Error{};
}

Result<void> validate(const SocketOptions& options, bool tcp, const char* operation) {
  using std::chrono::milliseconds;
  using std::chrono::seconds;
  // Linux's own limits (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT), the lowest among the systems.
  const auto is_keep_alive_span = [](Duration span) { return span >= seconds(1) && span <= seconds(32767); };
  constexpr int buffer_bytes_max = 1 << 30;  // the kernel doubles it
  const auto is_buffer = [](int bytes) { return bytes >= 0 && bytes <= buffer_bytes_max; };
  const auto invalid = [operation](const char* detail) { return Error{operation, EINVAL, detail}; };
  if (options.keep_alive) {
    if (!tcp) return invalid("keep_alive: not a TCP socket");
    if (!is_keep_alive_span(options.keep_alive->idle)) return invalid("keep_alive.idle out of range (1 s to 32767 s)");
    if (!is_keep_alive_span(options.keep_alive->interval)) return invalid("keep_alive.interval out of range (1 s to 32767 s)");
    if (options.keep_alive->count < 1 || options.keep_alive->count > 127)
      return invalid("keep_alive.count out of range (1 to 127)");
  }
  if (options.user_timeout != Duration::zero()) {
    if (!tcp) return invalid("user_timeout: not a TCP socket");
    if (options.user_timeout < milliseconds(1) || options.user_timeout > std::chrono::days(24))
      return invalid("user_timeout out of range (1 ms to 24 days)");
  }
  if (!is_buffer(options.send_buffer_bytes)) return invalid("send_buffer_bytes out of range");
  if (!is_buffer(options.receive_buffer_bytes)) return invalid("receive_buffer_bytes out of range");
  return {};
}

Result<void> apply(int descriptor, const SocketOptions& options, bool tcp) {
  constexpr const char* operation = "socket options";
  if (auto valid = validate(options, tcp, operation); !valid) return valid;
  Error error;
  const auto set = [&](int level, int name, int value, const char* option) {
    if (error.code == 0) error = set_int_option(descriptor, level, name, value, operation, option);
  };
  if (tcp) set(IPPROTO_TCP, TCP_NODELAY, options.no_delay ? 1 : 0, "no_delay");
  if (tcp) set(SOL_SOCKET, SO_OOBINLINE, 1, "urgent data inline");
  if (options.keep_alive) {
    const KeepAlive& keep_alive = *options.keep_alive;
    set(IPPROTO_TCP, TCP_KEEPIDLE, rounded_up<std::chrono::seconds>(keep_alive.idle), "keep_alive.idle");
    set(IPPROTO_TCP, TCP_KEEPINTVL, rounded_up<std::chrono::seconds>(keep_alive.interval), "keep_alive.interval");
    set(IPPROTO_TCP, TCP_KEEPCNT, keep_alive.count, "keep_alive.count");
    set(SOL_SOCKET, SO_KEEPALIVE, 1, "keep_alive");
  }
  if (options.user_timeout != Duration::zero())
    set(IPPROTO_TCP, TCP_USER_TIMEOUT, rounded_up<std::chrono::milliseconds>(options.user_timeout), "user_timeout");
  if (options.send_buffer_bytes != 0) set(SOL_SOCKET, SO_SNDBUF, options.send_buffer_bytes, "send_buffer_bytes");
  if (options.receive_buffer_bytes != 0) set(SOL_SOCKET, SO_RCVBUF, options.receive_buffer_bytes, "receive_buffer_bytes");
  if (error.code != 0) return error;
  return {};
}

}  // namespace vigil
