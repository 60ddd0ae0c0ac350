// Sockets without a reactor: each call says exactly what happened, and waits either never or for a stated time.
//
//   receive(socket, buffer)                        never waits                      (the mode of fcntl O_NONBLOCK)
//   receive_within(socket, buffer, 5s)             waits at most that long          (the mode of settimeout)
//   receive_within(socket, buffer)                 waits for the socket's own timeout, else the process's
//
// and the same pair for send, accept and connect. A timeout of 0 asks once, exactly as the call that never waits; `never` waits
// for as long as it takes; a negative one or one beyond ten years is the caller's error (EINVAL). EINTR is handled inside, no
// wait ends early, and no SIGPIPE is raised.
//
// Each call takes a Socket or a bare descriptor. A Socket owns its descriptor and latches how its connection ended: the kernel
// hands an error out once and then says "orderly end", so a Socket repeats the first, true answer for ever. A bare descriptor
// latches nothing: its caller must keep the first end it is told. There, the process's timeouts are read at each call; a Socket
// takes them when it is made and keeps them.
//
// receive and send work on any socket, also a blocking one somebody else opened. accept and connect need a non-blocking one and
// answer EINVAL on another (see set_nonblocking). What is no socket answers ENOTSOCK, what is not open EBADF.
//
// Thread: a Socket belongs to one thread at a time; nothing here is shared but the process's timeouts.
//
//   auto socket = vigil::open_socket(address.family());
//   if (!socket) return vigil::report(socket.error());
//   if (auto connected = vigil::connect_within(*socket, address, 3s); connected.outcome == vigil::ConnectOutcome::accepted) ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "vigil/address.hpp"
#include "vigil/bytes.hpp"
#include "vigil/close_record.hpp"
#include "vigil/result.hpp"
#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

/// What a receive found.
enum class ReceiveOutcome : std::uint8_t {
  data,       ///< bytes came; zero of them is an empty datagram
  no_data,    ///< nothing there yet (EAGAIN, EWOULDBLOCK); the connection is as it was
  finished,   ///< the peer ended its stream in order, and everything it sent was delivered
  timed_out,  ///< nothing came within the timeout; the connection is as it was. Never the kernel's ETIMEDOUT, which is `failed`
  failed,     ///< `error` tells: the connection's end, or a call that could not work
};

/// What a send found.
enum class SendOutcome : std::uint8_t {
  sent,       ///< send: the kernel took `bytes` of them, at least one; send_within: all of them
  no_room,    ///< the kernel took nothing now
  timed_out,  ///< not all were taken within the timeout; `bytes` of them were
  failed,     ///< `error` tells; `bytes` were taken before
};

/// What an accept found.
enum class AcceptOutcome : std::uint8_t {
  accepted,      ///< `socket` and `peer` are the new connection's
  none_waiting,  ///< nobody is waiting
  timed_out,     ///< nobody came within the timeout
  failed,        ///< `error` tells; EMFILE, ENFILE, ENOBUFS and ENOMEM leave the connection waiting
};

/// What became of a connection attempt.
enum class ConnectOutcome : std::uint8_t {
  accepted,     ///< connected (the peer's kernel completed the handshake)
  in_progress,  ///< not answered yet; connect again, with the same address, asks again
  rejected,     ///< nobody listens there (ECONNREFUSED)
  timed_out,    ///< no answer: errno 0 and origin policy is our timeout, ETIMEDOUT and origin network the kernel's own
  unreachable,  ///< no route, no such host, link down, or a route or firewall that forbids it
  failed,       ///< `error` tells
};

[[nodiscard]] const char* to_string(ReceiveOutcome outcome);
[[nodiscard]] const char* to_string(SendOutcome outcome);
[[nodiscard]] const char* to_string(AcceptOutcome outcome);
[[nodiscard]] const char* to_string(ConnectOutcome outcome);

/// The outcome an errno from connect (or SO_ERROR after it) means; 0 is accepted. EINVAL counts as unreachable, because on a
/// valid address only a blackhole route answers it.
[[nodiscard]] ConnectOutcome classify_connect(int error_number);

/// Whose doing that is: peer for accepted and rejected, network for unreachable and the kernel's own timeout, else local.
[[nodiscard]] Origin connect_origin(int error_number);

struct Received {
  ReceiveOutcome outcome = ReceiveOutcome::failed;
  std::size_t bytes = 0;
  Error error{};  ///< code 0 unless failed
};

struct Sent {
  SendOutcome outcome = SendOutcome::failed;
  std::size_t bytes = 0;
  Error error{};  ///< code 0 unless failed
};

struct Connected {
  ConnectOutcome outcome = ConnectOutcome::failed;
  Error error{};  ///< code 0 for accepted, in_progress (but EAGAIN where a Unix listener's backlog is full) and our own timeout
  Origin origin = Origin::local;
};

/// Owns one descriptor and closes it. Empty after a move, release() or close().
class Socket {
 public:
  /// Owns nothing; takes the process's timeouts as they are now, as every constructor does.
  Socket();
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;

  /// Takes over a descriptor somebody else opened, as it is: its flags and options stay.
  [[nodiscard]] static Socket adopt(int descriptor);

  [[nodiscard]] explicit operator bool() const { return descriptor_ >= 0; }
  /// -1 where empty. Do not close it; do not receive, send or connect on it directly: the Socket would miss the end.
  [[nodiscard]] int descriptor() const { return descriptor_; }
  /// Gives the descriptor away: the caller closes it.
  [[nodiscard]] int release();
  void close();

  /// What the waiting calls use when they get no timeout: every kind valued.
  [[nodiscard]] const Timeouts& timeouts() const { return timeouts_; }
  /// Replaces them; `inherit` means the process's timeouts as they were when this Socket was made. EINVAL changes nothing.
  Result<void> set_timeouts(const Timeouts& timeouts);

 private:
  friend Received receive_within(Socket&, Buffer, Timeout);
  friend Sent send_within(Socket&, Bytes, Timeout);
  friend Connected connect_within(Socket&, const Address&, Timeout);

  Received latch(Received received);
  Sent latch(Sent sent);
  Connected latch(Connected connected);

  int descriptor_ = -1;
  bool receive_finished_ = false;  // the peer's end was told
  int receive_error_ = 0;          // the error that ended the receiving side
  int send_error_ = 0;             // the error that ended the sending side
  std::optional<Connected> answer_;
  Timeouts inherited_;
  Timeouts timeouts_;
};

struct Accepted {
  AcceptOutcome outcome = AcceptOutcome::failed;
  Socket socket{};  ///< non-blocking, close-on-exec
  Address peer{};
  Error error{};  ///< code 0 unless failed
};

// Receiving. A zero-length buffer is the caller's error (EINVAL). After our own shutdown of the receiving side: finished.
// At the end of the timeout the kernel is asked once more: what has arrived beats its deadline.
[[nodiscard]] Received receive(Socket& socket, Buffer buffer);
[[nodiscard]] Received receive(int descriptor, Buffer buffer);
[[nodiscard]] Received receive_within(Socket& socket, Buffer buffer, Timeout timeout = inherit);
[[nodiscard]] Received receive_within(int descriptor, Buffer buffer, Timeout timeout = inherit);

// Sending. send takes what fits; send_within waits until everything is taken. Nothing is borrowed after the return. "Taken" means
// by our own kernel, not by the peer. No bytes at all is the caller's error (EINVAL). After a peer's reset is told to receive,
// send repeats it, and the other way round; EPIPE (an end after the peer's FIN) leaves receiving an orderly end.
[[nodiscard]] Sent send(Socket& socket, Bytes bytes);
[[nodiscard]] Sent send(int descriptor, Bytes bytes);
[[nodiscard]] Sent send_within(Socket& socket, Bytes bytes, Timeout timeout = inherit);
[[nodiscard]] Sent send_within(int descriptor, Bytes bytes, Timeout timeout = inherit);

// Accepting. Connections that died while they waited are skipped. The new Socket takes the process's timeouts, not the
// listener's.
[[nodiscard]] Accepted accept(Socket& listener);
[[nodiscard]] Accepted accept(int descriptor);
[[nodiscard]] Accepted accept_within(Socket& listener, Timeout timeout = inherit);
[[nodiscard]] Accepted accept_within(int descriptor, Timeout timeout = inherit);

// Connecting. in_progress, and timed_out by our own timeout, leave the attempt running: the same call again goes on waiting,
// closing gives it up. Any other answer is latched by a Socket: it makes one connection. A TCP socket that reached itself
// (possible when connecting to an ephemeral port of this host) is failed, EADDRNOTAVAIL.
[[nodiscard]] Connected connect(Socket& socket, const Address& address);
[[nodiscard]] Connected connect(int descriptor, const Address& address);
[[nodiscard]] Connected connect_within(Socket& socket, const Address& address, Timeout timeout = inherit);
[[nodiscard]] Connected connect_within(int descriptor, const Address& address, Timeout timeout = inherit);

/// Whether both ends of a TCP connection are this very socket.
[[nodiscard]] bool is_self_connected(int descriptor);

/// Sets O_NONBLOCK.
Result<void> set_nonblocking(int descriptor);

/// A new stream socket: non-blocking, close-on-exec. `v6_only` is set explicitly on an IPv6 one.
[[nodiscard]] Result<Socket> open_socket(Address::Family family, bool v6_only = true);

/// Binds to a local address, Error{"bind", ...}.
Result<void> bind(Socket& socket, const Address& address);
Result<void> bind(int descriptor, const Address& address);

/// Makes a bound socket listen.
Result<void> listen(Socket& socket, int backlog);
Result<void> listen(int descriptor, int backlog);

[[nodiscard]] Result<Address> local_address(int descriptor);
/// ENOTCONN where there is no connection, also where it was already reset.
[[nodiscard]] Result<Address> peer_address(int descriptor);

/// The kernel's own probing of an idle connection: first after `idle`, then every `interval`; after `count` unanswered ones it
/// ends with ETIMEDOUT. It detects nothing while bytes of ours are unacknowledged. Whole seconds, rounded up: 1 s to 32767 s;
/// count 1 to 127.
struct KeepAlive {
  Duration idle{};
  Duration interval{};
  int count = 0;
};

struct SocketOptions {
  bool no_delay = true;                   ///< TCP_NODELAY; no meaning for a Unix socket, where it is ignored
  std::optional<KeepAlive> keep_alive{};  ///< nothing: leave it as it is (off, unless inherited)
  Duration user_timeout{};    ///< how long bytes may stay unacknowledged (TCP_USER_TIMEOUT); 0: the system's own. 1 ms to 24 days
  int send_buffer_bytes = 0;  ///< 0: the system's own, which tunes itself. At most 1 GiB; the kernel has a lower limit
  int receive_buffer_bytes = 0;  ///< the same; on a listener, before it listens, so that the window scales
};

struct ListenSocketOptions {
  SocketOptions socket{};     ///< set before it listens; accepted connections inherit them
  bool reuse_address = true;  ///< bind although connections of an earlier listener linger (SO_REUSEADDR)
  bool reuse_port = false;    ///< several listeners share the port (SO_REUSEPORT)
  bool v6_only = true;        ///< an IPv6 listener takes no IPv4 connections; set explicitly either way
  int backlog = 4096;         ///< connections waiting to be accepted; the kernel's own limit holds as well
};

/// A new listening socket. Error{"listen", ...}: EADDRINUSE, EACCES, EINVAL for options out of range, ...
[[nodiscard]] Result<Socket> listen_on(const Address& address, const ListenSocketOptions& options = {});

/// Error{operation, EINVAL, the option} for the first that is out of range, or that a Unix socket (`tcp` false) can't honour.
[[nodiscard]] Result<void> validate(const SocketOptions& options, bool tcp, const char* operation);

/// Validates, then sets them, and on a TCP socket SO_OOBINLINE: urgent bytes stay in the stream where they were sent, none is
/// lost (RFC 6093 section 6). Error{"socket options", errno, the option}; those before it stay set.
Result<void> apply(int descriptor, const SocketOptions& options, bool tcp);

}  // namespace vigil
