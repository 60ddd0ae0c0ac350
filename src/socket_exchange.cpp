// Receiving and sending without a reactor.
#include <cerrno>
#include <cstddef>

#include "socket_calls.hpp"
#include "socket_wait.hpp"

namespace vigil {
namespace {

Received receive_failure(int code, const char* detail = "") { return {ReceiveOutcome::failed, 0, {"receive", code, detail}}; }
Sent send_failure(int code, std::size_t bytes, const char* detail = "") {
  return {SendOutcome::failed, bytes, {"send", code, detail}};
}

Received receive_now(int descriptor, Buffer buffer) {
  const ssize_t returned = receive_once(descriptor, buffer.data(), buffer.size());
  switch (classify_receive(returned)) {
    case ReceiveOutcome::data:
      return {ReceiveOutcome::data, static_cast<std::size_t>(returned), {}};
    case ReceiveOutcome::finished:
      if (const int type = socket_type(descriptor); type >= 0 && type != SOCK_STREAM && type != SOCK_SEQPACKET)
        return {ReceiveOutcome::data, 0, {}};  // an empty datagram
      return {ReceiveOutcome::finished, 0, {}};
    case ReceiveOutcome::no_data:
      return {ReceiveOutcome::no_data, 0, {}};
    default:
      return receive_failure(static_cast<int>(-returned));
  }
}

Sent send_now(int descriptor, Bytes bytes) {
  const ssize_t returned = send_once(descriptor, bytes.data(), bytes.size());
  switch (classify_send(returned)) {
    case SendOutcome::sent:
      return {SendOutcome::sent, static_cast<std::size_t>(returned), {}};
    case SendOutcome::no_room:
      return {SendOutcome::no_room, 0, {}};
    default:
      return send_failure(static_cast<int>(-returned), 0);
  }
}

}  // namespace

// Receiving.

Received receive(Socket& socket, Buffer buffer) { return receive_within(socket, buffer, ask_once); }
Received receive(int descriptor, Buffer buffer) { return receive_within(descriptor, buffer, ask_once); }

Received receive_within(Socket& socket, Buffer buffer, Timeout timeout) {
  if (timeout.is_inherit()) timeout = socket.timeouts_.receive;
  const bool arguments_hold = !buffer.empty() && is_usable(timeout);
  if (arguments_hold && socket.receive_finished_) return {ReceiveOutcome::finished, 0, {}};
  if (arguments_hold && socket.receive_error_ != 0) return receive_failure(socket.receive_error_);
  return socket.latch(receive_within(socket.descriptor_, buffer, timeout));
}

Received receive_within(int descriptor, Buffer buffer, Timeout timeout) {
  if (buffer.empty()) return receive_failure(EINVAL, "zero-length buffer");
  if (timeout.is_inherit()) timeout = default_timeouts().receive;
  if (!is_usable(timeout)) return receive_failure(EINVAL, timeout_out_of_range);
  Received received = receive_now(descriptor, buffer);
  if (received.outcome != ReceiveOutcome::no_data || timeout == ask_once) return received;
  const Instant due = due_at(sys::monotonic_now(), timeout);
  for (;;) {
    const int ready = wait_ready(descriptor, POLLIN, due);
    if (ready < 0) return receive_failure(-ready);
    received = receive_now(descriptor, buffer);
    if (received.outcome != ReceiveOutcome::no_data) return received;
    if (ready == 0) return {ReceiveOutcome::timed_out, 0, {}};
    if ((ready & POLLIN) == 0) (void)pass_time(idle_event_pause, due);
  }
}

// Sending.

Sent send(Socket& socket, Bytes bytes) { return send_within(socket, bytes, ask_once); }
Sent send(int descriptor, Bytes bytes) { return send_within(descriptor, bytes, ask_once); }

Sent send_within(Socket& socket, Bytes bytes, Timeout timeout) {
  if (timeout.is_inherit()) timeout = socket.timeouts_.send;
  const bool arguments_hold = !bytes.empty() && is_usable(timeout);
  if (arguments_hold && socket.send_error_ != 0) return send_failure(socket.send_error_, 0);
  return socket.latch(send_within(socket.descriptor_, bytes, timeout));
}

Sent send_within(int descriptor, Bytes bytes, Timeout timeout) {
  if (bytes.empty()) return send_failure(EINVAL, 0, "no bytes");
  if (timeout.is_inherit()) timeout = default_timeouts().send;
  if (!is_usable(timeout)) return send_failure(EINVAL, 0, timeout_out_of_range);
  if (timeout == ask_once) return send_now(descriptor, bytes);
  const std::size_t size = bytes.size();
  Instant due = never_due;
  bool waited = false;
  for (bool is_last = false;;) {
    const Sent sent = send_now(descriptor, bytes);
    if (sent.outcome == SendOutcome::failed) return send_failure(sent.error.code, size - bytes.size());
    bytes = bytes.without_first(sent.bytes);
    if (bytes.empty()) return {SendOutcome::sent, size, {}};
    if (is_last) return {SendOutcome::timed_out, size - bytes.size(), {}};
    if (!waited) due = due_at(sys::monotonic_now(), timeout);
    waited = true;
    const int ready = wait_ready(descriptor, POLLOUT, due);
    if (ready < 0) return send_failure(-ready, size - bytes.size());
    is_last = ready == 0;
    if (ready != 0 && (ready & POLLOUT) == 0 && sent.outcome == SendOutcome::no_room) (void)pass_time(idle_event_pause, due);
  }
}

}  // namespace vigil
