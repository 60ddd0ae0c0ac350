#include "vigil/socket.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "socket_calls.hpp"

#ifndef TCP_NODELAY  // the seam may have brought linux/tcp.h, which netinet/tcp.h collides with
#include <netinet/tcp.h>
#endif

namespace vigil {
namespace {

constexpr Timeout ask_once = Duration::zero();
constexpr const char* timeout_out_of_range = "timeout out of range";
constexpr const char* blocking_descriptor = "blocking descriptor: call set_nonblocking(fd) first";

bool is_usable(Timeout timeout) {
  return timeout.is_never() || (timeout.duration() >= Duration::zero() && timeout.duration() <= longest_timeout);
}

Received receive_failure(int code, const char* detail = "") { return {ReceiveOutcome::failed, 0, {"receive", code, detail}}; }
Sent send_failure(int code, std::size_t bytes, const char* detail = "") {
  return {SendOutcome::failed, bytes, {"send", code, detail}};
}

Accepted accept_failure(int code, const char* detail = "") {
  Accepted accepted;
  accepted.error = {"accept", code, detail};
  return accepted;
}

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

/// Waits until `descriptor` is ready for `events` or has an end to tell, and returns poll's revents; 0 once `due` has passed,
/// else -errno. Never early: the clock, not poll's answer, decides whether the time is over.
int wait_ready(int descriptor, short events, Instant due) {
  for (;;) {
    const Duration remaining = due == never_due ? Duration(-1) : std::max(due - sys::monotonic_now(), Duration::zero());
    pollfd entry{descriptor, events, 0};
    const int count = sys::poll(&entry, 1, remaining);
    if (count > 0) return (entry.revents & POLLNVAL) != 0 ? -EBADF : entry.revents;
    if (count < 0 && count != -EINTR) return count;
    if (due != never_due && sys::monotonic_now() >= due) return 0;
  }
}

/// Lets some time pass, but not beyond `due`. False once `due` has passed.
bool pause(Duration length, Instant due) {
  if (due != never_due) length = std::min(length, due - sys::monotonic_now());
  if (length <= Duration::zero()) return false;
  (void)sys::poll(nullptr, 0, length);  // an interrupted pause is a shorter pause
  return true;
}

/// An event that is not the one asked for (an error queue with IP_RECVERR) does not go away by waiting for it: without this pause
/// such a wait would spin.
constexpr Duration idle_event_pause = std::chrono::milliseconds(5);

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

/// accept and connect have no per-call "don't wait", so that a blocking descriptor would make them wait for ever.
Error blocking_error(int descriptor, const char* operation) {
  const int flags = sys::status_flags(descriptor);
  if (flags < 0) return {operation, -flags, ""};
  if (const int type = socket_type(descriptor); type < 0) return {operation, -type, ""};
  if ((flags & O_NONBLOCK) == 0) return {operation, EINVAL, blocking_descriptor};
  return {};
}

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
    (void)pause(idle_event_pause, due);
  }
}

/// A full backlog refuses a Unix connect with EAGAIN and tells nobody when it has room again: ask in growing steps.
Connected await_backlog(int descriptor, const SocketAddress& target, Instant due) {
  Duration step = std::chrono::milliseconds(1);
  while (pause(step, due)) {
    const int returned = uninterrupted([&] { return sys::connect(descriptor, target.get(), target.length); });
    if (!would_block(returned)) return connect_answer(-returned);
    step = std::min<Duration>(step * 2, std::chrono::milliseconds(50));
  }
  return {ConnectOutcome::timed_out, {}, Origin::policy};
}

/// Sets one int option; `detail` is what it is called outside.
Error set_int(int descriptor, int level, int name, int value, const char* operation, const char* detail) {
  const int status = sys::set_option(descriptor, level, name, &value, sizeof value);
  return status < 0 ? Error{operation, -status, detail} : Error{};
}

template <class Unit>
int rounded_up(Duration duration) {
  return static_cast<int>(std::chrono::ceil<Unit>(duration).count());
}

Result<Address> name_of(int descriptor, int (*ask)(int, sockaddr*, socklen_t*), const char* operation) {
  SocketAddress name;
  name.length = sizeof name.storage;
  if (const int status = ask(descriptor, name.get(), &name.length); status < 0) return Error{operation, -status, ""};
  return from_socket_address(name.get(), name.length);
}

Result<Socket> open_socket(Address::Family family, bool v6_only, const char* operation) {
  const int descriptor = sys::socket(protocol_family(family), SOCK_STREAM);
  if (descriptor < 0) return Error{operation, -descriptor, ""};
  Socket socket = Socket::adopt(descriptor);
  if (family == Address::Family::ipv6) {
    const Error error = set_int(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, v6_only ? 1 : 0, operation, "v6_only");
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

// The bridge to the kernel's addresses.

int protocol_family(Address::Family family) {
  switch (family) {
    case Address::Family::ipv4:
      return AF_INET;
    case Address::Family::ipv6:
      return AF_INET6;
    default:
      return AF_UNIX;
  }
}

Result<SocketAddress> resolve(const Address& address, const char* operation) {
  SocketAddress result;
  if (address.family() == Address::Family::ipv4) {
    sockaddr_in target{};
    target.sin_family = AF_INET;
    target.sin_port = htons(address.port());
    std::memcpy(&target.sin_addr, address.ip().data(), sizeof target.sin_addr);
    std::memcpy(&result.storage, &target, sizeof target);
    result.length = sizeof target;
    return result;
  }
  if (address.family() == Address::Family::ipv6) {
    sockaddr_in6 target{};
    target.sin6_family = AF_INET6;
    target.sin6_port = htons(address.port());
    std::memcpy(&target.sin6_addr, address.ip().data(), sizeof target.sin6_addr);
    if (!address.scope().empty()) {
      const std::string scope(address.scope());
      target.sin6_scope_id = sys::interface_index(scope.c_str());
      if (target.sin6_scope_id == 0) {
        // No interface has that name: a number is an index, as from_socket_address writes it.
        for (const char digit : scope) {
          if (digit < '0' || digit > '9' || scope.size() > 9) return Error{operation, ENODEV, "no such interface"};
          target.sin6_scope_id = target.sin6_scope_id * 10 + static_cast<std::uint32_t>(digit - '0');
        }
      }
    } else if (address.is_link_local()) {
      return Error{operation, EINVAL, "a link-local address needs its interface, as in [fe80::1%eth0]:7000"};
    }
    std::memcpy(&result.storage, &target, sizeof target);
    result.length = sizeof target;
    return result;
  }
  const std::string_view name = address.path();
  const bool is_abstract = address.family() == Address::Family::unix_abstract;
  sockaddr_un target{};
  target.sun_family = AF_UNIX;
  // Either the NUL behind a path or the NUL in front of an abstract name.
  if (name.empty() || name.size() >= sizeof target.sun_path) return Error{operation, EINVAL, "Unix path empty or too long"};
  std::memcpy(target.sun_path + (is_abstract ? 1 : 0), name.data(), name.size());
  std::memcpy(&result.storage, &target, sizeof target);
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return result;
}

Address from_socket_address(const sockaddr* address, socklen_t length) {
  if (length >= sizeof(sockaddr_in) && address->sa_family == AF_INET) return peer_from(address, length).to_address();
  if (length >= sizeof(sockaddr_in6) && address->sa_family == AF_INET6) return peer_from(address, length).to_address();
  if (length < sizeof address->sa_family || address->sa_family != AF_UNIX) return {};
  const std::size_t offset = offsetof(sockaddr_un, sun_path);
  const std::size_t size = std::min<std::size_t>(length > offset ? length - offset : 0, sizeof(sockaddr_un::sun_path));
  const char* name = reinterpret_cast<const char*>(address) + offset;
  if (size == 0) return Address::from_unix_path({});  // unnamed, as a client's end is
  if (name[0] == '\0') return Address::from_unix_abstract(std::string(name + 1, size - 1));
  return Address::from_unix_path(std::string(name, ::strnlen(name, size)));
}

PeerAddress peer_from(const sockaddr* address, socklen_t length) {
  Address::IpBytes ip{};
  if (length >= sizeof(sockaddr_in) && address->sa_family == AF_INET) {
    sockaddr_in from;
    std::memcpy(&from, address, sizeof from);
    std::memcpy(ip.data(), &from.sin_addr, sizeof from.sin_addr);
    return {Address::Family::ipv4, ip, ntohs(from.sin_port)};
  }
  if (length >= sizeof(sockaddr_in6) && address->sa_family == AF_INET6) {
    sockaddr_in6 from;
    std::memcpy(&from, address, sizeof from);
    std::memcpy(ip.data(), &from.sin6_addr, sizeof from.sin6_addr);
    return {Address::Family::ipv6, ip, ntohs(from.sin6_port), from.sin6_scope_id};
  }
  if (length >= sizeof address->sa_family && address->sa_family == AF_UNIX) return {Address::Family::unix_path, ip, 0};
  return {};
}

int connect_result(int descriptor) {
  int error = 0;
  const auto ask = [&] {
    socklen_t length = sizeof error;
    const int status = sys::get_option(descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
    return status < 0 ? -status : error;
  };
  if (const int answer = ask(); answer != 0) return answer;
  // A write event alone is no success: the peer's name is.
  SocketAddress peer;
  peer.length = sizeof peer.storage;
  const int status = sys::peer_name(descriptor, peer.get(), &peer.length);
  if (status == 0) return 0;
  if (status != -ENOTCONN) return -status;
  pollfd entry{descriptor, POLLOUT, 0};
  if (sys::poll(&entry, 1, Duration::zero()) <= 0 || (entry.revents & POLLHUP) == 0) return EINPROGRESS;
  // Closed: the error came after the first question, or somebody else was told.
  const int answer = ask();
  return answer != 0 ? answer : ENOTCONN;
}

// Names.

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

// Socket.

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
      return receive_failure(receive_error_);
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
    if ((ready & POLLIN) == 0) (void)pause(idle_event_pause, due);
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
    if (ready != 0 && (ready & POLLOUT) == 0 && sent.outcome == SendOutcome::no_room) (void)pause(idle_event_pause, due);
  }
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
    if ((ready & POLLIN) == 0) (void)pause(idle_event_pause, due);
  }
}

// Connecting.

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

// Making sockets.

Result<void> set_nonblocking(int descriptor) {
  const int flags = sys::status_flags(descriptor);
  if (flags < 0) return Error{"set_nonblocking", -flags, ""};
  if ((flags & O_NONBLOCK) != 0) return {};
  const int status = sys::set_status_flags(descriptor, flags | O_NONBLOCK);
  if (status < 0) return Error{"set_nonblocking", -status, ""};
  return {};
}

Result<Socket> open_socket(Address::Family family, bool v6_only) { return open_socket(family, v6_only, "open_socket"); }

Result<Socket> listen_on(const Address& address, const ListenSocketOptions& options) {
  constexpr const char* operation = "listen";
  if (auto valid = validate(options.socket, address.is_ip(), operation); !valid) return valid.error();
  auto socket = open_socket(address.family(), options.v6_only, operation);
  if (!socket) return socket;
  const int descriptor = socket->descriptor();
  if (auto applied = apply(descriptor, options.socket, address.is_ip()); !applied) return applied.error();
  if (options.reuse_address && address.is_ip()) {
    const Error error = set_int(descriptor, SOL_SOCKET, SO_REUSEADDR, 1, operation, "reuse_address");
    if (error.code != 0) return error;
  }
  if (options.reuse_port && address.is_ip()) {
    const Error error = set_int(descriptor, SOL_SOCKET, SO_REUSEPORT, 1, operation, "reuse_port");
    if (error.code != 0) return error;
  }
  if (auto bound = bind(descriptor, address, operation); !bound) {
    Error error = bound.error();
    if (*error.detail == '\0') error.detail = "bind";
    return error;
  }
  if (auto listening = listen(descriptor, options.backlog); !listening) return listening.error();
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

Result<Address> local_address(int descriptor) { return name_of(descriptor, &sys::local_name, "local_address"); }
Result<Address> peer_address(int descriptor) { return name_of(descriptor, &sys::peer_name, "peer_address"); }

// Options.

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
    if (error.code == 0) error = set_int(descriptor, level, name, value, operation, option);
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
