// Connecting without a reactor, and what an answer means; connections ask the same questions.
#include <algorithm>
#include <cerrno>
#include <chrono>

#include "socket_calls.hpp"
#include "socket_wait.hpp"

namespace vigil {
namespace {

/// The call could not work: no statement about a connection.
Connected connect_refusal(int code, const char* detail) {
  return {ConnectOutcome::failed, {"connect", code, detail}, Origin::local};
}

/// What the kernel said of an attempt.
Connected connect_answer(int code) {
  const ConnectOutcome outcome = classify_connect(code);
  if (outcome == ConnectOutcome::accepted) return {outcome, {}, connect_origin(code)};
  return {outcome, {"connect", code, ""}, connect_origin(code)};
}

bool is_unspecified(const Address& address) {
  return std::all_of(address.ip().begin(), address.ip().end(), [](std::uint8_t byte) { return byte == 0; });
}

/// A connected socket, asked whether it is connected to what was meant.
Connected confirm(int descriptor, const Address& wanted) {
  if (!wanted.is_ip()) return connect_answer(0);
  const auto peer = peer_address(descriptor);
  if (!peer) return connect_answer(peer.error().code);
  const bool same_ip = peer->ip() == wanted.ip() || is_unspecified(wanted);  // 0.0.0.0 means this host, told as 127.0.0.1
  if (peer->port() != wanted.port() || !same_ip) return connect_refusal(EISCONN, "already connected to another address");
  if (is_self_connected(descriptor)) return connect_refusal(EADDRNOTAVAIL, "the socket reached itself");
  return connect_answer(0);
}

/// Waits for the answer to a running attempt.
Connected await_answer(int descriptor, const Address& address, Instant due) {
  for (;;) {
    const int ready = wait_ready(descriptor, POLLOUT, due);
    if (ready < 0) return connect_refusal(-ready, "");
    const int result = connect_result(descriptor);
    if (result == 0) return confirm(descriptor, address);
    if (result != EINPROGRESS) return connect_answer(result);
    if (ready == 0) return {ConnectOutcome::timed_out, {}, Origin::policy};
    (void)pass_time(idle_event_pause, due);
  }
}

/// A full backlog refuses a Unix connect with EAGAIN and tells nobody when it has room again: ask in growing steps.
Connected await_backlog(int descriptor, const SocketAddress& target, Instant due) {
  Duration step = std::chrono::milliseconds(1);
  while (pass_time(step, due)) {
    const int returned = uninterrupted([&] { return sys::connect(descriptor, target.get(), target.length); });
    if (!would_block(returned)) return connect_answer(-returned);
    step = std::min<Duration>(step * 2, std::chrono::milliseconds(50));
  }
  return {ConnectOutcome::timed_out, {}, Origin::policy};
}

}  // namespace

int connect_result(int descriptor) {
  int error = 0;
  const auto ask = [&] {
    socklen_t length = sizeof error;
    const int status = sys::get_option(descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
    return status < 0 ? -status : error;
  };
  const int told = ask();
  // A write event alone is no success: the peer's name is. Where it has one, what SO_ERROR told is a soft error of the path.
  SocketAddress peer;
  peer.length = sizeof peer.storage;
  const int status = sys::peer_name(descriptor, peer.get(), &peer.length);
  if (status == 0) return 0;
  if (told != 0) return told;
  if (status != -ENOTCONN) return -status;
  pollfd entry{descriptor, POLLOUT, 0};
  if (sys::poll(&entry, 1, Duration::zero()) <= 0 || (entry.revents & POLLHUP) == 0) return EINPROGRESS;
  // Closed: the error came after the first question, or somebody else was told.
  const int answer = ask();
  return answer != 0 ? answer : ENOTCONN;
}

ConnectOutcome classify_connect(int error_number) {
  switch (error_number) {
    case 0:
      return ConnectOutcome::accepted;
    case EINPROGRESS:
    case EALREADY:
      return ConnectOutcome::in_progress;
    case ECONNREFUSED:
      return ConnectOutcome::rejected;
    case ETIMEDOUT:
      return ConnectOutcome::timed_out;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    case EACCES:  // a prohibit route, ICMP "administratively prohibited"
    case EPERM:   // a local firewall
    case EINVAL:
      return ConnectOutcome::unreachable;  // a blackhole route
    default:
      return ConnectOutcome::failed;
  }
}

Origin connect_origin(int error_number) {
  switch (classify_connect(error_number)) {
    case ConnectOutcome::accepted:
    case ConnectOutcome::rejected:
      return Origin::peer;
    case ConnectOutcome::timed_out:
    case ConnectOutcome::unreachable:
      return Origin::network;
    case ConnectOutcome::failed:
      return error_number == ECONNRESET ? Origin::peer : Origin::local;
    default:
      return Origin::local;
  }
}

Connected connect(Socket& socket, const Address& address) { return connect_within(socket, address, ask_once); }
Connected connect(int descriptor, const Address& address) { return connect_within(descriptor, address, ask_once); }

Connected connect_within(Socket& socket, const Address& address, Timeout timeout) {
  if (timeout.is_inherit()) timeout = socket.timeouts_.connect;
  if (!is_usable(timeout)) return connect_refusal(EINVAL, timeout_out_of_range);
  if (socket.answer_) return *socket.answer_;
  // A receive or send was told the answer to the attempt: the kernel has forgotten it.
  if (socket.receive_error_ != 0) return connect_answer(socket.receive_error_);
  if (socket.send_error_ != 0) return connect_answer(socket.send_error_);
  return socket.latch(connect_within(socket.descriptor_, address, timeout));
}

Connected connect_within(int descriptor, const Address& address, Timeout timeout) {
  if (timeout.is_inherit()) timeout = default_timeouts().connect;
  if (!is_usable(timeout)) return connect_refusal(EINVAL, timeout_out_of_range);
  if (const Error error = blocking_error(descriptor, "connect"); error.code != 0)
    return connect_refusal(error.code, error.detail);
  const auto target = resolve(address, "connect");
  if (!target) return {ConnectOutcome::failed, target.error(), Origin::local};
  const int returned = uninterrupted([&] { return sys::connect(descriptor, target->get(), target->length); });
  if (returned == 0 || returned == -EISCONN) return confirm(descriptor, address);
  const bool is_backlog_full = would_block(returned) && !address.is_ip();
  const bool is_running = returned == -EINPROGRESS || returned == -EALREADY;
  if (!is_running && !is_backlog_full) return connect_answer(-returned);
  if (timeout == ask_once && is_backlog_full)
    return {ConnectOutcome::in_progress, {"connect", EAGAIN, "the listener's backlog is full"}, Origin::local};
  if (timeout == ask_once) return {ConnectOutcome::in_progress, {}, Origin::local};
  const Instant due = due_at(sys::monotonic_now(), timeout);
  return is_backlog_full ? await_backlog(descriptor, *target, due) : await_answer(descriptor, address, due);
}

bool is_self_connected(int descriptor) {
  const auto local = local_address(descriptor);
  const auto peer = peer_address(descriptor);
  return local && peer && local->is_ip() && *local == *peer;
}

}  // namespace vigil
