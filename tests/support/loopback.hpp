// Real sockets on loopback in a known state, and waiting for an event instead of for a time.
//
//   auto [near, far] = test::tcp_pair();                     // two ends of one connection, as vigil::Socket
//   test::reset(far);                                        // far is gone, near's kernel is being told
//   REQUIRE(test::wait_for(near.descriptor(), POLLHUP));     // and now it knows
#pragma once

#include <doctest/doctest.h>

#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "vigil/socket.hpp"

// A failing check prints outcomes and errors by name.
namespace doctest {

template <>
struct StringMaker<vigil::Error> {
  static String convert(const vigil::Error& error) { return vigil::describe(error).c_str(); }
};

template <class Outcome>
struct OutcomeMaker {
  static String convert(Outcome outcome) { return vigil::to_string(outcome); }
};
template <>
struct StringMaker<vigil::ReceiveOutcome> : OutcomeMaker<vigil::ReceiveOutcome> {};
template <>
struct StringMaker<vigil::SendOutcome> : OutcomeMaker<vigil::SendOutcome> {};
template <>
struct StringMaker<vigil::AcceptOutcome> : OutcomeMaker<vigil::AcceptOutcome> {};
template <>
struct StringMaker<vigil::ConnectOutcome> : OutcomeMaker<vigil::ConnectOutcome> {};
template <>
struct StringMaker<vigil::Origin> : OutcomeMaker<vigil::Origin> {};

}  // namespace doctest

namespace vigil::test {

/// How long a test waits for what must come. Only a broken program or a dead machine ever waits that long.
inline constexpr int patience_ms = 30'000;

/// Waits for any of `events`, or for POLLHUP or POLLERR where asked for; false when patience ends.
inline bool wait_for(int descriptor, short events) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
  while (std::chrono::steady_clock::now() < give_up) {
    pollfd entry{descriptor, events, 0};
    if (::poll(&entry, 1, 100) > 0 && (entry.revents & events) != 0) return true;
    // Something else keeps the descriptor ready, so that poll does not wait.
    if (entry.revents != 0) ::poll(nullptr, 0, 1);
  }
  return false;
}

/// Waits until `condition()` holds; false when patience ends.
template <class Condition>
bool wait_until(Condition condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= give_up) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

/// Waits until the kernel holds at least `count` bytes for the reader.
inline bool wait_for_unread(int descriptor, int count) {
  return wait_until([=] {
    int unread = 0;
    return ::ioctl(descriptor, FIONREAD, &unread) == 0 && unread >= count;
  });
}

inline Address loopback(std::uint16_t port = 0) { return Address::from_ipv4({127, 0, 0, 1}, port); }

/// A listener on any free port, or on `address`.
inline Socket listening(const Address& address = loopback(), const ListenSocketOptions& options = {}) {
  auto listener = listen_on(address, options);
  if (!listener) FAIL(describe(listener.error()));
  return std::move(*listener);
}

inline Address address_of(const Socket& socket) { return *local_address(socket.descriptor()); }

inline Socket connected_to(const Address& address) {
  auto socket = open_socket(address.family());
  REQUIRE(socket);
  REQUIRE(connect_within(*socket, address, std::chrono::milliseconds(patience_ms)).outcome == ConnectOutcome::accepted);
  return std::move(*socket);
}

struct Pair {
  Socket near;
  Socket far;
};

inline Pair connected_pair(const Address& address) {
  Socket listener = listening(address);
  Socket near = connected_to(address_of(listener));
  Accepted accepted = accept_within(listener, std::chrono::milliseconds(patience_ms));
  REQUIRE(accepted.outcome == AcceptOutcome::accepted);
  return {std::move(near), std::move(accepted.socket)};
}

/// Two ends of one TCP connection over 127.0.0.1.
inline Pair tcp_pair() { return connected_pair(loopback()); }

/// Closes with RST instead of FIN.
inline void reset(Socket& socket) {
  const linger at_once{1, 0};
  REQUIRE(::setsockopt(socket.descriptor(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
  socket.close();
}

/// Nobody listens there: a port that was just free, held by a bound socket that does not listen.
struct ClosedPort {
  ClosedPort() : socket(std::move(*open_socket(Address::Family::ipv4))) { REQUIRE(bind(socket, loopback())); }
  [[nodiscard]] Address address() const { return address_of(socket); }
  Socket socket;
};

/// A listener whose queue is full: the kernel drops what knocks, so that an attempt gets no answer at all. Tried on Linux 6.18:
/// with a backlog of 0 one connection is queued, and every SYN after it is dropped.
struct FullBacklog {
  FullBacklog() : listener(listening(loopback(), {.backlog = 0})), first(connected_to(address())) {
    REQUIRE(wait_for(listener.descriptor(), POLLIN));
  }
  [[nodiscard]] Address address() const { return address_of(listener); }
  Socket listener;
  Socket first;
};

/// Lets the process open no further descriptor while it lives.
class NoDescriptorsLeft {
 public:
  NoDescriptorsLeft() {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    const int lowest_free = ::dup(0);
    REQUIRE(lowest_free >= 0);
    ::close(lowest_free);
    rlimit none = before_;
    none.rlim_cur = static_cast<rlim_t>(lowest_free);
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  }
  ~NoDescriptorsLeft() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  NoDescriptorsLeft(const NoDescriptorsLeft&) = delete;
  NoDescriptorsLeft& operator=(const NoDescriptorsLeft&) = delete;

 private:
  rlimit before_{};
};

/// Replaces the process's timeouts and puts them back.
class ProcessTimeouts {
 public:
  ProcessTimeouts() : before_(default_timeouts()) {}
  ~ProcessTimeouts() { (void)set_default_timeouts(before_); }
  ProcessTimeouts(const ProcessTimeouts&) = delete;
  ProcessTimeouts& operator=(const ProcessTimeouts&) = delete;

  void set(Deadline kind, Timeout timeout) const {
    Timeouts timeouts = default_timeouts();
    timeouts.of(kind) = timeout;
    REQUIRE(set_default_timeouts(timeouts));
  }

 private:
  Timeouts before_;
};

}  // namespace vigil::test
