// What one echoed message costs a server: driven by bench/echo_cost.py, which counts this program's instructions and system
// calls.
//
//   bench-echo-cost SERVER MESSAGES AT_ONCE     serve ten connections, driven by a child process, until all have ended
//
// The client is a process of its own (this program executed again), so that the counts are the server's alone. It sends one
// 64-byte message on each of AT_ONCE connections and reads the echoes, MESSAGES times in all: with 1, every message is a wake-up
// of its own and carries the whole cost of a turn; with 10, ten share it. `bare` is the least an epoll server can do: one wait,
// one recv, one send per ready connection, no deadline, no queue, no errors told. `vigil` has a receive deadline on every
// connection, `heartbeat` a heartbeat too, `rates` a message deadline and a receive rate instead, and `marked` marks each
// message's end besides.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "vigil/vigil.hpp"

namespace {

constexpr int connections = 10;
constexpr std::size_t message_bytes = 64;
using namespace std::chrono_literals;

[[noreturn]] void die(const char* operation) {
  std::perror(operation);
  std::exit(1);
}

int run_client(int port, long messages, int at_once) {
  std::array<int, connections> sockets{};
  for (int& socket : sockets) {
    socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("connect");
    const int one = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  std::array<char, message_bytes> message{};
  std::memset(message.data(), 'x', message.size());
  for (long sent = 0; sent < messages; sent += at_once) {
    const auto socket = [&](long index) { return sockets[static_cast<std::size_t>((sent + index) % connections)]; };
    for (int index = 0; index < at_once; ++index)
      if (send(socket(index), message.data(), message.size(), 0) != static_cast<ssize_t>(message.size())) die("send");
    for (int index = 0; index < at_once; ++index)
      if (recv(socket(index), message.data(), message.size(), MSG_WAITALL) != static_cast<ssize_t>(message.size())) die("recv");
  }
  for (int socket : sockets) close(socket);
  return 0;
}

const char* own_path = "";
const char* at_once = "1";

void start_client(int port, long messages) {
  if (fork() != 0) return;
  const std::string port_text = std::to_string(port);
  const std::string messages_text = std::to_string(messages);
  execl(own_path, "bench-echo-cost", "client", port_text.c_str(), messages_text.c_str(), at_once, static_cast<char*>(nullptr));
  die("exec");
}

int run_bare(long messages) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || listen(listener, 128) != 0)
    die("listen");
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  const int poller = epoll_create1(0);
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  wanted.data.fd = listener;
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
  start_client(ntohs(address.sin_port), messages);
  static char buffer[64 * 1024];
  std::array<epoll_event, 512> events;
  for (int open = 0, seen = 0; seen < connections || open > 0;) {
    const int count = epoll_wait(poller, events.data(), static_cast<int>(events.size()), -1);
    for (int index = 0; index < count; ++index) {
      const int descriptor = events[static_cast<std::size_t>(index)].data.fd;
      if (descriptor == listener) {
        const int accepted = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
        const int one = 1;
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        wanted.events = EPOLLIN | EPOLLET;
        wanted.data.fd = accepted;
        epoll_ctl(poller, EPOLL_CTL_ADD, accepted, &wanted);
        ++open;
        ++seen;
        continue;
      }
      const ssize_t size = recv(descriptor, buffer, sizeof buffer, 0);
      if (size > 0) {
        if (send(descriptor, buffer, static_cast<std::size_t>(size), MSG_NOSIGNAL) != size) die("send");
      } else {
        close(descriptor);
        --open;
      }
    }
  }
  return 0;
}

template <bool marks>
struct Echo {
  vigil::Reactor* reactor;
  int* seen;
  int* open;
  void on_open(vigil::Connection&) {
    ++*seen;
    ++*open;
  }
  void on_receive(vigil::Connection& peer, vigil::Bytes bytes) {
    peer.send(bytes);
    if constexpr (marks) peer.end_message();
  }
  void on_close(vigil::Connection&, const vigil::CloseRecord&) {
    if (--*open == 0 && *seen == connections) reactor->stop();
  }
};

template <bool marks>
int run_vigil(long messages, const vigil::Timeouts& timeouts, const vigil::HeartbeatOptions& heartbeat = {}) {
  vigil::Reactor reactor;
  int seen = 0;
  int open = 0;
  vigil::Listener<Echo<marks>> listener(reactor, {.timeouts = timeouts, .heartbeat = heartbeat}, [&](vigil::Connection&) {
    return Echo<marks>{&reactor, &seen, &open};
  });
  if (auto bound = listener.listen("127.0.0.1:0"); !bound) return vigil::report(bound.error());
  auto address = listener.address();
  if (!address) return vigil::report(address.error());
  start_client(address->port(), messages);
  auto ran = reactor.run();
  const vigil::ReactorCounters& counters = reactor.counters();
  std::fprintf(stderr, "receive calls %llu, of them empty %llu, send calls %llu, turns %llu\n",
               static_cast<unsigned long long>(counters.receive_calls), static_cast<unsigned long long>(counters.empty_receives),
               static_cast<unsigned long long>(counters.send_calls), static_cast<unsigned long long>(counters.turns));
  return vigil::report(ran);
}

}  // namespace

int main(int count, char** arguments) {
  own_path = arguments[0];  // not /proc/self/exe, which is valgrind where valgrind runs this
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "client" && count == 5)
    return run_client(std::atoi(arguments[2]), std::atol(arguments[3]), std::atoi(arguments[4]));
  int status = 64;
  if (count == 4) at_once = arguments[3];
  const long messages = count == 4 ? std::atol(arguments[2]) : 0;
  const vigil::Timeouts rates{.receive = 30s, .message = 60s, .receive_rate = {.bytes_per_second = 1}};
  if (count == 4 && mode == "vigil") status = run_vigil<false>(messages, {.receive = 30s});
  if (count == 4 && mode == "heartbeat") status = run_vigil<false>(messages, {.receive = 30s}, {.budget = 20s, .ping = "ping"});
  if (count == 4 && mode == "rates") status = run_vigil<false>(messages, rates);
  if (count == 4 && mode == "marked") status = run_vigil<true>(messages, rates);
  if (count == 4 && mode == "bare") status = run_bare(messages);
  if (status == 64) {
    std::fputs("usage: bench-echo-cost bare|vigil|heartbeat|rates|marked MESSAGES AT_ONCE\n", stderr);
    return status;
  }
  while (wait(nullptr) > 0) {
  }
  return status;
}
