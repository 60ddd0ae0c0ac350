// The Socket itself: what it owns and what it latches. receive and send stand in socket_exchange.cpp, connect in
// socket_connect.cpp, listen and accept in socket_listen.cpp.
#include "vigil/socket.hpp"

#include <fcntl.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "socket_calls.hpp"

namespace vigil {
namespace {

constexpr const char* blocking_descriptor = "blocking descriptor: call set_nonblocking(fd) first";

/// Whether an error ended the connection, as against a call that could not work or a passing shortage.
bool is_end(int descriptor, int code) {
  switch (code) {
    case EINTR:
    case EINVAL:
    case EFAULT:
    case EMSGSIZE:
    case EBADF:
    case ENOTSOCK:
    case ENOMEM:
    case ENOBUFS:
    case ENOTCONN:
    case EDESTADDRREQ:
    case EOPNOTSUPP:
    case EISCONN:
    case EALREADY:
    case EPERM:
      return false;
    default:
      break;
  }
  if (!is_stream(descriptor)) return false;  // a datagram socket lives on after an ICMP error
  // With IP_RECVERR a TCP connection tells of ICMP errors it survives.
  return !sys::tcp_sample(descriptor).connected;
}

}  // namespace

int socket_type(int descriptor) {
  int type = 0;
  socklen_t length = sizeof type;
  const int status = sys::get_option(descriptor, SOL_SOCKET, SO_TYPE, &type, &length);
  return status < 0 ? status : type;
}

bool is_stream(int descriptor) {
  const int type = socket_type(descriptor);
  return type == SOCK_STREAM || type == SOCK_SEQPACKET;
}

Error blocking_error(int descriptor, const char* operation) {
  const int flags = sys::status_flags(descriptor);
  if (flags < 0) return {operation, -flags, ""};
  if (const int type = socket_type(descriptor); type < 0) return {operation, -type, ""};
  if ((flags & O_NONBLOCK) == 0) return {operation, EINVAL, blocking_descriptor};
  return {};
}

const char* to_string(ReceiveOutcome outcome) {
  constexpr const char* names[] = {"data", "no_data", "finished", "timed_out", "failed"};
  return names[static_cast<std::size_t>(outcome)];
}

const char* to_string(SendOutcome outcome) {
  constexpr const char* names[] = {"sent", "no_room", "timed_out", "failed"};
  return names[static_cast<std::size_t>(outcome)];
}

const char* to_string(AcceptOutcome outcome) {
  constexpr const char* names[] = {"accepted", "none_waiting", "timed_out", "failed"};
  return names[static_cast<std::size_t>(outcome)];
}

const char* to_string(ConnectOutcome outcome) {
  constexpr const char* names[] = {"accepted", "in_progress", "rejected", "timed_out", "unreachable", "failed"};
  return names[static_cast<std::size_t>(outcome)];
}

Socket::Socket() : inherited_(default_timeouts()), timeouts_(inherited_) {}
Socket::~Socket() { close(); }

Socket::Socket(Socket&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      receive_finished_(std::exchange(other.receive_finished_, false)),
      receive_error_(std::exchange(other.receive_error_, 0)),
      send_error_(std::exchange(other.send_error_, 0)),
      answer_(std::exchange(other.answer_, std::nullopt)),
      inherited_(other.inherited_),
      timeouts_(other.timeouts_) {}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this == &other) return *this;
  close();
  descriptor_ = std::exchange(other.descriptor_, -1);
  receive_finished_ = std::exchange(other.receive_finished_, false);
  receive_error_ = std::exchange(other.receive_error_, 0);
  send_error_ = std::exchange(other.send_error_, 0);
  answer_ = std::exchange(other.answer_, std::nullopt);
  inherited_ = other.inherited_;
  timeouts_ = other.timeouts_;
  return *this;
}

Socket Socket::adopt(int descriptor) {
  Socket socket;
  socket.descriptor_ = descriptor;
  return socket;
}

int Socket::release() {
  const int descriptor = std::exchange(descriptor_, -1);
  close();
  return descriptor;
}

void Socket::close() {
  // The descriptor is gone whatever close answers, EINTR included, and nobody is left to tell.
  if (descriptor_ >= 0) (void)sys::close(std::exchange(descriptor_, -1));
  receive_finished_ = false;
  receive_error_ = send_error_ = 0;
  answer_.reset();
}

Result<void> Socket::set_timeouts(const Timeouts& timeouts) {
  if (auto valid = validate(timeouts, "set_timeouts"); !valid) return valid;
  timeouts_ = over(timeouts, inherited_);
  return {};
}

Received Socket::latch(Received received) {
  if (received.outcome == ReceiveOutcome::finished) {
    // The kernel told send of the reset, so that it now calls it an orderly end. EPIPE is a reset after the peer's end: that end
    // came first.
    if (send_error_ != 0 && send_error_ != EPIPE) {
      receive_error_ = send_error_;
      return {ReceiveOutcome::failed, 0, {"receive", receive_error_, ""}};
    }
    receive_finished_ = true;
  }
  if (received.outcome == ReceiveOutcome::failed && is_end(descriptor_, received.error.code)) {
    receive_error_ = received.error.code;
    if (send_error_ == 0) send_error_ = receive_error_;
  }
  return received;
}

Sent Socket::latch(Sent sent) {
  // The receiving side is not ended by this: what the kernel still holds comes first.
  if (sent.outcome == SendOutcome::failed && is_end(descriptor_, sent.error.code)) send_error_ = sent.error.code;
  return sent;
}

Connected Socket::latch(Connected connected) {
  const bool failed_for_good = connected.error.code != 0 && connected.outcome != ConnectOutcome::in_progress &&
                               (connected.outcome != ConnectOutcome::failed || is_end(descriptor_, connected.error.code));
  if (failed_for_good) receive_error_ = send_error_ = connected.error.code;
  if (failed_for_good || connected.outcome == ConnectOutcome::accepted) answer_ = connected;
  return connected;
}

Result<void> set_nonblocking(int descriptor) {
  const int flags = sys::status_flags(descriptor);
  if (flags < 0) return Error{"set_nonblocking", -flags, ""};
  if ((flags & O_NONBLOCK) != 0) return {};
  const int status = sys::set_status_flags(descriptor, flags | O_NONBLOCK);
  if (status < 0) return Error{"set_nonblocking", -status, ""};
  return {};
}

}  // namespace vigil
