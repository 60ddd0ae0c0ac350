// The other end of a connection, as a plain kernel socket that knows nothing of vigil: what a test makes it do is all it does.
// Nothing here waits but connect(), which the kernel answers by itself, so that peer and reactor can share the test's thread.
//
//   test::Peer peer(address);
//   peer.send("hello");
//   REQUIRE(scene.turn_until([&] { return peer.read().finished; }));
//   CHECK(peer.received == "bye");
#pragma once

#include <doctest/doctest.h>

#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vigil/address.hpp"

namespace vigil::test {

struct RawAddress {
  explicit RawAddress(const Address& address) {
    if (address.family() == Address::Family::ipv6) {
      auto& raw = reinterpret_cast<sockaddr_in6&>(storage);
      raw.sin6_family = AF_INET6;
      raw.sin6_port = htons(address.port());
      std::memcpy(&raw.sin6_addr, address.ip().data(), 16);
      length = sizeof raw;
    } else if (!address.is_ip()) {
      auto& raw = reinterpret_cast<sockaddr_un&>(storage);
      raw.sun_family = AF_UNIX;
      const bool is_abstract = address.family() == Address::Family::unix_abstract;
      REQUIRE(address.path().size() < sizeof raw.sun_path);
      std::memcpy(raw.sun_path + (is_abstract ? 1 : 0), address.path().data(), address.path().size());
      length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + address.path().size());
    } else {
      auto& raw = reinterpret_cast<sockaddr_in&>(storage);
      raw.sin_family = AF_INET;
      raw.sin_port = htons(address.port());
      std::memcpy(&raw.sin_addr, address.ip().data(), 4);
      length = sizeof raw;
    }
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] int open() const { return ::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0); }

  sockaddr_storage storage{};
  socklen_t length = 0;
};

class Peer {
 public:
  std::string received;   ///< everything read so far
  bool finished = false;  ///< the other side's orderly end was read
  int error = 0;          ///< the errno a read or send failed with; kept, as the kernel tells it once

  Peer() = default;
  explicit Peer(int descriptor) : descriptor_(descriptor) {}
  /// A receive buffer that is set does not grow: the peer takes little before somebody reads.
  explicit Peer(const Address& address, int receive_buffer_bytes = 0) {
    const RawAddress raw(address);
    descriptor_ = raw.open();
    REQUIRE(descriptor_ >= 0);
    if (receive_buffer_bytes != 0)
      REQUIRE(::setsockopt(descriptor_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes) == 0);
    REQUIRE(::connect(descriptor_, raw.get(), raw.length) == 0);
  }
  ~Peer() { close(); }
  Peer(Peer&& other) noexcept { *this = std::move(other); }
  Peer& operator=(Peer&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    received = std::move(other.received);
    finished = other.finished;
    error = other.error;
    return *this;
  }

  [[nodiscard]] int descriptor() const { return descriptor_; }

  /// What the kernel takes now; how much that was.
  std::size_t send_some(std::string_view bytes) {
    const ssize_t sent = ::send(descriptor_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) error = errno;
    return sent < 0 ? 0 : static_cast<std::size_t>(sent);
  }
  /// All of it, which must fit.
  void send(std::string_view bytes) { REQUIRE(send_some(bytes) == bytes.size()); }
  void send_urgent(char byte) { REQUIRE(::send(descriptor_, &byte, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL) == 1); }

  /// Reads what is there now, at most `most`.
  Peer& read(std::size_t most = SIZE_MAX) {
    std::vector<char> room(std::min<std::size_t>(most, 1 << 18));
    while (most > 0 && !finished && error == 0) {
      const ssize_t size = ::recv(descriptor_, room.data(), std::min(room.size(), most), MSG_DONTWAIT);
      if (size < 0 && errno == EAGAIN) break;
      if (size < 0) error = errno;
      if (size == 0) finished = true;
      if (size > 0) {
        received.append(room.data(), static_cast<std::size_t>(size));
        most -= static_cast<std::size_t>(size);
      }
    }
    return *this;
  }

  /// From now on its kernel drops every segment that comes, as a lost link would: nothing is acknowledged any more.
  void go_deaf() const {
    sock_filter drop{BPF_RET | BPF_K, 0, 0, 0};
    const sock_fprog program{1, &drop};
    REQUIRE(::setsockopt(descriptor_, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  }

  /// Ends its own stream in order (FIN); reading goes on.
  void finish() { REQUIRE(::shutdown(descriptor_, SHUT_WR) == 0); }
  /// Closes with RST.
  void reset() {
    const linger at_once{1, 0};
    REQUIRE(::setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    close();
  }
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

  /// Bytes the other side's kernel has not acknowledged.
  [[nodiscard]] int unacknowledged() const {
    int bytes = -1;
    REQUIRE(::ioctl(descriptor_, SIOCOUTQ, &bytes) == 0);
    return bytes;
  }

 private:
  int descriptor_ = -1;
};

/// A plain listener. Connections wait in the kernel's queue until accept().
class PeerListener {
 public:
  explicit PeerListener(const Address& address = Address::from_ipv4({127, 0, 0, 1}, 0), int backlog = 16) {
    const RawAddress raw(address);
    descriptor_ = raw.open();
    REQUIRE(descriptor_ >= 0);
    REQUIRE(::bind(descriptor_, raw.get(), raw.length) == 0);
    REQUIRE(::listen(descriptor_, backlog) == 0);
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    REQUIRE(::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&bound), &length) == 0);
    // The port stands at the same place in both families; a Unix address has none and stays as it is.
    address_ = address.with_port(ntohs(reinterpret_cast<sockaddr_in&>(bound).sin_port));
  }
  ~PeerListener() { ::close(descriptor_); }
  PeerListener(const PeerListener&) = delete;
  PeerListener& operator=(const PeerListener&) = delete;

  [[nodiscard]] const Address& address() const { return address_; }
  [[nodiscard]] int descriptor() const { return descriptor_; }
  /// One that has arrived already.
  [[nodiscard]] Peer accept() const {
    const int accepted = ::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC);
    REQUIRE(accepted >= 0);
    return Peer(accepted);
  }

 private:
  int descriptor_ = -1;
  Address address_;
};

/// `size` bytes in which every position can be told from its neighbours, so that a lost or doubled byte is seen.
inline std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  std::uint32_t state = 0x9E3779B9;
  for (char& letter : text) {
    state = state * 1664525 + 1013904223;
    letter = static_cast<char>(state >> 24);
  }
  return text;
}

/// Equal, without printing megabytes where they are not.
inline bool same(std::string_view left, std::string_view right) { return left == right; }

}  // namespace vigil::test
