// The peers of bench/lateness.cpp: plain sockets on a thread of their own, which do what they are told to at random moments and
// write down the time just before and just after. What they write is read after the thread has ended.
#pragma once

#include <linux/filter.h>
#include <linux/tcp.h>  // netinet's lacks tcpi_bytes_received, and the two can't be included together
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <queue>
#include <random>
#include <thread>
#include <vector>

#include "vigil/time.hpp"

namespace lateness {

using vigil::Duration;
using vigil::Instant;
using Random = std::mt19937_64;

/// The bench's own clock reading, not the reactor's.
inline Instant clock_now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return Instant(std::chrono::seconds(time.tv_sec) + Duration(time.tv_nsec));
}

inline void sleep_until(Instant wake) {
  const std::int64_t count = wake.time_since_epoch().count();
  const timespec time{count / 1'000'000'000, count % 1'000'000'000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

[[noreturn]] inline void die(const char* operation) {
  std::perror(operation);
  std::exit(2);
}

inline Duration scaled(Duration duration, double factor) {
  return Duration(static_cast<std::int64_t>(static_cast<double>(duration.count()) * factor));
}

/// Something happened between these two instants.
struct Span {
  Instant before{};
  Instant after{};
};

struct Peer {
  std::uint16_t server_port = 0;
  Duration timeout{};
  Instant connect_at{};
  int receive_buffer_bytes = 0;     // 0: the system's
  std::vector<Duration> moments{};  // when it acts, from its connect
  // What happened.
  int descriptor = -1;
  std::uint16_t port = 0;  // 0: not connected
  Span connected{};
  std::vector<Span> acts{};
  bool acknowledged = true;  // false: what was to be acknowledged was not
};

inline void connect_peer(Peer& peer) {
  peer.descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (peer.descriptor < 0) die("socket");
  const int one = 1;
  setsockopt(peer.descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (peer.receive_buffer_bytes != 0)
    setsockopt(peer.descriptor, SOL_SOCKET, SO_RCVBUF, &peer.receive_buffer_bytes, sizeof peer.receive_buffer_bytes);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(peer.server_port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  peer.connected.before = clock_now();
  if (connect(peer.descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("connect");
  peer.connected.after = clock_now();
  socklen_t length = sizeof address;
  getsockname(peer.descriptor, reinterpret_cast<sockaddr*>(&address), &length);
  peer.port = ntohs(address.sin_port);
}

// --- what a peer may do. A connection that vigil has ended makes some of these fail, which is no matter.

inline void send_byte(const Peer& peer) { (void)send(peer.descriptor, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT); }

inline void close_peer(Peer& peer) {
  close(peer.descriptor);
  peer.descriptor = -1;
}

inline void reset_peer(Peer& peer) {
  const linger at_once{1, 0};
  setsockopt(peer.descriptor, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close_peer(peer);
}

/// From now on the peer's kernel drops every segment, as a lost link would: nothing is acknowledged any more.
inline void go_deaf(const Peer& peer) {
  sock_filter drop{BPF_RET | BPF_K, 0, 0, 0};
  const sock_fprog program{1, &drop};
  if (setsockopt(peer.descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) die("SO_ATTACH_FILTER");
}

inline std::uint64_t bytes_arrived(const Peer& peer) {
  tcp_info info{};
  socklen_t length = sizeof info;
  getsockopt(peer.descriptor, IPPROTO_TCP, TCP_INFO, &info, &length);
  return info.tcpi_bytes_received;
}

/// False: nothing was there.
inline bool read_some(const Peer& peer) {
  static thread_local std::array<char, 8 * 1024> buffer;
  return recv(peer.descriptor, buffer.data(), buffer.size(), MSG_DONTWAIT) > 0;
}

/// Reads from the full receive buffer, so that its kernel takes more; then goes deaf. TCP_QUICKACK sends an acknowledgement that
/// waits, which it does only where nothing is unread: left alone it would come some 40 ms later.
inline void acknowledge_once_more(Peer& peer) {
  const std::uint64_t before = bytes_arrived(peer);
  (void)read_some(peer);
  go_deaf(peer);
  while (read_some(peer)) {
  }
  const int one = 1;
  setsockopt(peer.descriptor, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
  peer.acknowledged = bytes_arrived(peer) > before;
}

/// A thread that connects each peer and lets it act at its moments.
class PeerThread {
 public:
  PeerThread(std::vector<Peer>& peers, std::function<void(Peer&)> act)
      : peers_(peers), act_(std::move(act)), thread_([this] { run(); }) {}
  ~PeerThread() { join(); }
  PeerThread(const PeerThread&) = delete;
  PeerThread& operator=(const PeerThread&) = delete;

  /// Waits for its end; from then on the peers may be read.
  void join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  struct Planned {
    Instant at;
    Peer* peer;
    bool operator>(const Planned& other) const { return at > other.at; }
  };

  void run() {
    std::priority_queue<Planned, std::vector<Planned>, std::greater<>> plan;
    for (Peer& peer : peers_) plan.push({peer.connect_at, &peer});
    while (!plan.empty()) {
      Peer& peer = *plan.top().peer;
      sleep_until(plan.top().at);
      plan.pop();
      if (peer.port == 0) {
        connect_peer(peer);
      } else {
        Span& span = peer.acts.emplace_back();
        span.before = clock_now();
        act_(peer);
        span.after = clock_now();
      }
      if (peer.acts.size() < peer.moments.size()) plan.push({peer.connected.before + peer.moments[peer.acts.size()], &peer});
    }
  }

  std::vector<Peer>& peers_;
  std::function<void(Peer&)> act_;
  std::thread thread_;
};

}  // namespace lateness
