// Making sockets, listening, and accepting without a reactor.
#include <cerrno>
#include <utility>

#include "socket_calls.hpp"
#include "socket_wait.hpp"

namespace vigil {
namespace {

Accepted accept_failure(int code, const char* detail = "") {
  Accepted accepted;
  accepted.error = {"accept", code, detail};
  return accepted;
}

Accepted accept_now(int descriptor) {
  // As many dead connections as a full queue may hold; a peer who resets for ever gets no more of this call's time.
  constexpr int skips_max = 4096;
  for (int skips = 0; skips < skips_max; ++skips) {
    SocketAddress peer;
    peer.length = sizeof peer.storage;
    const int returned = uninterrupted([&] { return sys::accept(descriptor, peer.get(), &peer.length); });
    Accepted accepted;
    switch (classify_accept(returned)) {
      case AcceptAnswer::accepted:
        accepted.outcome = AcceptOutcome::accepted;
        accepted.socket = Socket::adopt(returned);
        accepted.peer = from_socket_address(peer.get(), peer.length);
        return accepted;
      case AcceptAnswer::none_waiting:
        accepted.outcome = AcceptOutcome::none_waiting;
        return accepted;
      case AcceptAnswer::skip:
        if (returned == -EOPNOTSUPP && !is_stream(descriptor)) return accept_failure(EOPNOTSUPP, "not a stream socket");
        break;
      case AcceptAnswer::out_of_resources:
        return accept_failure(-returned);
      case AcceptAnswer::failed:
        return accept_failure(-returned, returned == -EINVAL ? "the socket is not listening" : "");
    }
  }
  Accepted accepted;
  accepted.outcome = AcceptOutcome::none_waiting;
  return accepted;
}

Result<Socket> open_socket(Address::Family family, bool v6_only, const char* operation) {
  const int descriptor = sys::socket(protocol_family(family), SOCK_STREAM);
  if (descriptor < 0) return Error{operation, -descriptor, ""};
  Socket socket = Socket::adopt(descriptor);
  if (family == Address::Family::ipv6) {
    const Error error = set_int_option(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, v6_only ? 1 : 0, operation, "v6_only");
    if (error.code != 0) return error;
  }
  return socket;
}

Result<void> bind(int descriptor, const Address& address, const char* operation) {
  const auto resolved = resolve(address, operation);
  if (!resolved) return resolved.error();
  const int status = sys::bind(descriptor, resolved->get(), resolved->length);
  if (status < 0) return Error{operation, -status, ""};
  return {};
}

}  // namespace

// Making sockets.

Result<Socket> open_socket(Address::Family family, bool v6_only) { return open_socket(family, v6_only, "open_socket"); }

Result<Socket> bound_socket(const Address& address, const ListenSocketOptions& options) {
  constexpr const char* operation = "listen";
  if (options.backlog < 0) return Error{operation, EINVAL, "backlog out of range"};  // before a path is bound for nothing
  if (auto valid = validate(options.socket, address.is_ip(), operation); !valid) return valid.error();
  auto socket = open_socket(address.family(), options.v6_only, operation);
  if (!socket) return socket;
  const int descriptor = socket->descriptor();
  if (auto applied = apply(descriptor, options.socket, address.is_ip()); !applied) return applied.error();
  if (options.reuse_address && address.is_ip()) {
    const Error error = set_int_option(descriptor, SOL_SOCKET, SO_REUSEADDR, 1, operation, "reuse_address");
    if (error.code != 0) return error;
  }
  if (options.reuse_port && address.is_ip()) {
    const Error error = set_int_option(descriptor, SOL_SOCKET, SO_REUSEPORT, 1, operation, "reuse_port");
    if (error.code != 0) return error;
  }
  if (auto bound = bind(descriptor, address, operation); !bound) {
    Error error = bound.error();
    if (*error.detail == '\0') error.detail = "bind";
    return error;
  }
  return socket;
}

Result<Socket> listen_on(const Address& address, const ListenSocketOptions& options) {
  auto socket = bound_socket(address, options);
  if (!socket) return socket;
  if (auto listening = listen(*socket, options.backlog); !listening) return listening.error();
  return socket;
}

Result<void> bind(Socket& socket, const Address& address) { return bind(socket.descriptor(), address); }
Result<void> bind(int descriptor, const Address& address) { return bind(descriptor, address, "bind"); }

Result<void> listen(Socket& socket, int backlog) { return listen(socket.descriptor(), backlog); }

Result<void> listen(int descriptor, int backlog) {
  if (backlog < 0) return Error{"listen", EINVAL, "backlog out of range"};
  const int status = sys::listen(descriptor, backlog);
  if (status < 0) return Error{"listen", -status, ""};
  return {};
}

// Accepting.

Accepted accept(Socket& listener) { return accept_within(listener, ask_once); }
Accepted accept(int descriptor) { return accept_within(descriptor, ask_once); }

Accepted accept_within(Socket& listener, Timeout timeout) {
  return accept_within(listener.descriptor(), timeout.is_inherit() ? listener.timeouts().accept : timeout);
}

Accepted accept_within(int descriptor, Timeout timeout) {
  if (timeout.is_inherit()) timeout = default_timeouts().accept;
  if (!is_usable(timeout)) return accept_failure(EINVAL, timeout_out_of_range);
  if (const Error error = blocking_error(descriptor, "accept"); error.code != 0) return accept_failure(error.code, error.detail);
  Accepted accepted = accept_now(descriptor);
  if (accepted.outcome != AcceptOutcome::none_waiting || timeout == ask_once) return accepted;
  const Instant due = due_at(sys::monotonic_now(), timeout);
  for (;;) {
    const int ready = wait_ready(descriptor, POLLIN, due);
    if (ready < 0) return accept_failure(-ready);
    accepted = accept_now(descriptor);
    if (accepted.outcome != AcceptOutcome::none_waiting) return accepted;
    if (ready == 0) {
      accepted.outcome = AcceptOutcome::timed_out;
      return accepted;
    }
    if ((ready & POLLIN) == 0) (void)pass_time(idle_event_pause, due);
  }
}

}  // namespace vigil
