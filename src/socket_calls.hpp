// The one place where a socket call's answer becomes an outcome; sockets without a reactor and connections both stand on it.
//
// Thread: as the calls themselves. Nothing is owned and nothing latched here: an error is handed out once, so keep the first.
//
//   const ssize_t returned = receive_once(descriptor, buffer.data(), buffer.size());
//   switch (classify_receive(returned)) { case ReceiveOutcome::data: ... }      // failed: the errno is -returned
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "sys/sys.hpp"
#include "vigil/address.hpp"
#include "vigil/result.hpp"
#include "vigil/socket.hpp"

namespace vigil {

/// A call that does not wait is hardly ever interrupted; the bound keeps a storm of signals from holding the thread for ever,
/// after which EINTR is told as an error rather than as "nothing there", which an edge-triggered caller would wait on for ever.
inline constexpr int interruptions_max = 100;

template <class Call>
inline auto uninterrupted(Call call) {
  auto returned = call();
  for (int tries = 0; returned == -EINTR && tries < interruptions_max; ++tries) [[unlikely]] returned = call();
  return returned;
}

inline ssize_t receive_once(int descriptor, void* buffer, std::size_t size) {
  return uninterrupted([=] { return sys::recv(descriptor, buffer, size); });
}

inline ssize_t send_once(int descriptor, const void* bytes, std::size_t size) {
  return uninterrupted([=] { return sys::send(descriptor, bytes, size); });
}

inline ssize_t send_vector_once(int descriptor, const iovec* pieces, std::size_t count) {
  return uninterrupted([=] { return sys::send_vector(descriptor, pieces, count); });
}

inline bool would_block(ssize_t returned) { return returned == -EAGAIN || returned == -EWOULDBLOCK; }

/// Of a stream socket and a buffer that is not empty. (On a datagram socket 0 is an empty datagram: receive() asks which it is.)
inline ReceiveOutcome classify_receive(ssize_t returned) {
  if (returned > 0) [[likely]]
    return ReceiveOutcome::data;
  if (returned == 0) return ReceiveOutcome::finished;
  return would_block(returned) ? ReceiveOutcome::no_data : ReceiveOutcome::failed;
}

inline SendOutcome classify_send(ssize_t returned) {
  if (returned >= 0) [[likely]]
    return SendOutcome::sent;
  return would_block(returned) ? SendOutcome::no_room : SendOutcome::failed;
}

enum class AcceptAnswer : std::uint8_t {
  accepted,
  none_waiting,
  skip,              ///< this one died while it waited: ask for the next
  out_of_resources,  ///< no descriptor or memory for it; it stays in the queue
  failed,
};

inline AcceptAnswer classify_accept(int returned) {
  if (returned >= 0) return AcceptAnswer::accepted;
  if (would_block(returned)) return AcceptAnswer::none_waiting;
  switch (-returned) {
    case ECONNABORTED:  // gone before we came (BSD; Linux hands out the dead connection instead)
    case EPERM:         // a firewall forbids this one
    // The errors pending on the new connection, which accept(2) says to treat as "try again".
    case ENETDOWN:
    case EPROTO:
    case ENOPROTOOPT:
    case EHOSTDOWN:
#ifdef ENONET
    case ENONET:
#endif
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
      return AcceptAnswer::skip;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
      return AcceptAnswer::out_of_resources;
    default:
      return AcceptAnswer::failed;
  }
}

/// SOCK_STREAM and the like, or -errno.
[[nodiscard]] int socket_type(int descriptor);
[[nodiscard]] bool is_stream(int descriptor);

/// accept and connect have no per-call "don't wait", so that a blocking descriptor would make them wait for ever. Code 0: it is
/// not.
[[nodiscard]] Error blocking_error(int descriptor, const char* operation);

/// Sets one int option; `detail` is what it is called outside. Code 0: done.
[[nodiscard]] Error set_int_option(int descriptor, int level, int name, int value, const char* operation, const char* detail);

/// Closes with a reset, so that no peer takes what it has for the whole stream.
inline void close_with_reset(int descriptor) {
  const linger at_once{1, 0};
  (void)sys::set_option(descriptor, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);  // fails on a dead socket only
  sys::close(descriptor);
}

/// SO_ERROR, which the kernel hands out once; 0: none.
[[nodiscard]] inline int socket_error(int descriptor) {
  int error = 0;
  socklen_t length = sizeof error;
  return sys::get_option(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : 0;
}

/// An address as the kernel takes it.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

/// PF_INET, PF_INET6 or PF_UNIX.
[[nodiscard]] int protocol_family(Address::Family family);

/// Resolves the scope to an interface of this host. Error{operation, EINVAL or ENODEV, what is wrong}.
[[nodiscard]] Result<SocketAddress> resolve(const Address& address, const char* operation);

/// The other way, of an address the kernel filled in; a scope becomes its number. A family that is not ours reads as 0.0.0.0:0.
[[nodiscard]] Address from_socket_address(const sockaddr* address, socklen_t length);
[[nodiscard]] PeerAddress peer_from(const sockaddr* address, socklen_t length);

/// A new socket for a listener: its options set and bound, not listening yet. Errors as listen_on.
[[nodiscard]] Result<Socket> bound_socket(const Address& address, const ListenSocketOptions& options);

/// Finishes a connect: SO_ERROR, asked once, then the peer's name. 0: connected; EINPROGRESS: no answer yet; else the cause.
[[nodiscard]] int connect_result(int descriptor);

}  // namespace vigil
