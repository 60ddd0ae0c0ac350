// What heartbeats do on a server whose many connections are idle: when the probes go out, and what they weigh in memory.
//
//   bench-idle-heartbeats [--connections N] [--interval MILLISECONDS]      10,000 and 20,000 unless told otherwise
//
// The server is a child process, one reactor; the peers are plain sockets of this one, which answer each probe with a byte. One
// server without heartbeats shows what a connection weighs without; then one with: its connections are opened as fast as they
// come, left alone for three intervals, then each gets a byte in one and the same turn, and they are left alone for three more.
//
// Probes are counted where they arrive, in buckets of 100 ms. The first half of an interval after such a beginning has none, by
// rule (a phase is half an interval to a whole one): it is part of the span that the mean is taken of, so the mean is low rather
// than high. Memory is what the server's allocator has handed out (mallinfo2: with its own overhead; mapped blocks too) and
// what is resident; what the kernel keeps for a socket is in neither.
//
// Exit status: 1 if a bucket held more than three times the mean, a connection was lost, or a heartbeat weighs more than 96
// bytes; else 0.
#include <arpa/inet.h>
#include <malloc.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "vigil/vigil.hpp"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto bucket = 100ms;
constexpr std::size_t buckets_per_second = 10;
constexpr int intervals = 3;
constexpr int bytes_allowed = 96;
constexpr std::size_t times_mean_allowed = 3;

std::size_t connections = 10'000;
std::chrono::milliseconds interval = 20s;

[[noreturn]] void die(const char* operation) {
  std::perror(operation);
  std::exit(2);
}

template <class Value>
Value must(vigil::Result<Value> result) {
  if (!result) std::exit(vigil::report(result.error()));
  return std::move(*result);
}

// --- the server

constexpr char answer = '.', broadcast = 'b';  // what a peer says
constexpr char tell_of_it = 't', send_some = 's', wait_for_more = 'w', go_on = 'g',
               end_now = 'e';  // what the server is told to do

constexpr std::size_t some_connections = 256;

struct Report {
  std::uint16_t port;
  std::uint64_t opened, closed;
  std::uint64_t heard_broadcast, turns_of_broadcast;
  std::uint64_t allocated_bytes, resident_bytes;
};

std::uint64_t resident_bytes() {
  unsigned long total = 0, resident = 0;
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%lu %lu", &total, &resident) != 2) die("/proc/self/statm");
  std::fclose(file);
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

struct Idle {
  vigil::Reactor* reactor;
  Report* report;
  std::uint64_t* last_turn;
  std::vector<vigil::ConnectionHandle>* some;
  void on_open(vigil::Connection& connection) const {
    if (some->size() < some_connections) some->push_back(connection.handle());
  }
  void on_receive(vigil::Connection&, vigil::Bytes bytes) {
    if (bytes.text().find(broadcast) == std::string_view::npos) return;
    ++report->heard_broadcast;
    const std::uint64_t turn = reactor->counters().turns;
    if (turn != *last_turn) ++report->turns_of_broadcast;
    *last_turn = turn;
  }
  void on_close(vigil::Connection&, const vigil::CloseRecord& record) {
    if (record.origin != vigil::Origin::peer) std::fprintf(stderr, "%s\n", vigil::describe(record).c_str());
  }
};

char next_order(int control) {
  char order = end_now;
  if (read(control, &order, 1) < 0) die("read");
  return order;
}

int serve(int control, bool with_heartbeat) {
  Report report{};
  std::uint64_t last_turn = 0;
  std::vector<vigil::ConnectionHandle> some;
  some.reserve(some_connections);
  vigil::Reactor reactor({.events_per_wait = 65'536});
  vigil::HeartbeatOptions heartbeat;
  if (with_heartbeat) heartbeat = {.budget = 4 * interval, .interval = interval, .ping = "ping"};
  vigil::Listener<Idle> listener(reactor, {.timeouts = {.receive = 1h}, .heartbeat = heartbeat}, [&](vigil::Connection&) {
    return Idle{&reactor, &report, &last_turn, &some};
  });
  if (auto bound = listener.listen("127.0.0.1:0"); !bound) return vigil::report(bound.error());
  report.port = must(listener.address()).port();
  const auto tell = [&] {
    report.opened = reactor.counters().opened;
    report.closed = reactor.counters().closed;
    const auto allocator = mallinfo2();
    report.allocated_bytes = allocator.uordblks + allocator.hblkhd;
    report.resident_bytes = resident_bytes();
    if (write(control, &report, sizeof report) != sizeof report) die("write");
  };
  const auto watch = must(reactor.watch(control, vigil::WatchFor::readable, [&](vigil::Readiness) {
    const char order = next_order(control);
    if (order == end_now) reactor.stop();
    if (order == tell_of_it) tell();
    if (order == send_some)
      for (const vigil::ConnectionHandle& connection : some) connection->send(".");
    if (order != wait_for_more) return;
    // In a task, behind what this turn dispatches: all that comes meanwhile is for the next.
    const auto posted = reactor.post([&] {
      tell();
      (void)next_order(control);
    });
    if (!posted) std::exit(vigil::report(posted.error()));
  }));
  return vigil::report(reactor.run());
}

class Server {
 public:
  explicit Server(bool with_heartbeat) {
    std::array<int, 2> ends{};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) die("socketpair");
    process_ = fork();
    if (process_ < 0) die("fork");
    if (process_ == 0) {
      close(ends[0]);
      _exit(serve(ends[1], with_heartbeat));
    }
    close(ends[1]);
    control_ = ends[0];
  }
  ~Server() {
    tell(end_now);
    waitpid(process_, nullptr, 0);
    close(control_);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void tell(char order) const {
    if (write(control_, &order, 1) != 1) die("write");
  }
  Report report(char order = tell_of_it) const {
    tell(order);
    Report report{};
    if (recv(control_, &report, sizeof report, MSG_WAITALL) != sizeof report) die("recv");
    return report;
  }

 private:
  pid_t process_;
  int control_;
};

// --- the peers

class Peers {
 public:
  explicit Peers(std::uint16_t port) : sockets_(connections), poller_(epoll_create1(0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int& peer : sockets_) {
      peer = socket(AF_INET, SOCK_STREAM, 0);
      if (peer < 0) die("socket");
      if (connect(peer, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("connect");
      epoll_event wanted{};
      wanted.events = EPOLLIN;
      wanted.data.fd = peer;
      if (epoll_ctl(poller_, EPOLL_CTL_ADD, peer, &wanted) != 0) die("epoll_ctl");
    }
  }
  ~Peers() {
    for (const int peer : sockets_) close(peer);
    close(poller_);
  }
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  void all_say(char word) const {
    for (const int peer : sockets_) say(peer, word);
  }

  /// Answers probes for that many intervals: how many came in each bucket.
  [[nodiscard]] std::vector<std::size_t> answer_probes(Clock::time_point begin) const {
    std::vector<std::size_t> counts(static_cast<std::size_t>(intervals * interval / bucket));
    const auto end = begin + intervals * interval;
    std::array<epoll_event, 64> events;
    for (auto now = Clock::now(); now < end; now = Clock::now()) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - now).count() + 1;
      const int count = epoll_wait(poller_, events.data(), static_cast<int>(events.size()), static_cast<int>(left));
      const auto arrived = static_cast<std::size_t>((Clock::now() - begin) / bucket);
      for (int index = 0; index < count; ++index) {
        const int peer = events[static_cast<std::size_t>(index)].data.fd;
        std::array<char, 64> probe;
        if (recv(peer, probe.data(), probe.size(), 0) <= 0) die("a connection has ended: recv");
        if (probe[0] != 'p') continue;
        if (arrived < counts.size()) ++counts[arrived];
        say(peer, answer);
      }
    }
    return counts;
  }

 private:
  static void say(int peer, char word) {
    if (send(peer, &word, 1, MSG_NOSIGNAL) != 1) die("send");
  }

  std::vector<int> sockets_;
  int poller_;
};

// --- what was seen

bool failed = false;

void missed(const char* what) {
  std::fprintf(stderr, "missed: %s\n", what);
  failed = true;
}

void print(const char* since, const std::vector<std::size_t>& counts) {
  const std::size_t all = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  const std::size_t most = *std::max_element(counts.begin(), counts.end());
  const double mean = static_cast<double>(all) / static_cast<double>(counts.size());
  std::printf("\nprobes since %s: %zu in %.1f s; of the 100 ms buckets the mean is %.1f, the largest %zu: %.2f times the mean\n",
              since, all, static_cast<double>(counts.size()) / buckets_per_second, mean, most, static_cast<double>(most) / mean);
  // Every second's largest bucket as a bar, on a scale of which three times the mean is the full width.
  constexpr std::size_t width = 90;
  for (std::size_t at = 0; at < counts.size(); at += buckets_per_second) {
    const auto first = counts.begin() + static_cast<std::ptrdiff_t>(at);
    const auto last = counts.begin() + static_cast<std::ptrdiff_t>(std::min(at + buckets_per_second, counts.size()));
    const std::size_t largest = *std::max_element(first, last);
    const auto length = static_cast<std::size_t>(static_cast<double>(largest * width) / (times_mean_allowed * mean));
    std::printf("%3zu s %5zu, at most %4zu |%s\n", at / buckets_per_second, std::accumulate(first, last, std::size_t{0}), largest,
                std::string(std::min(length, width), '#').c_str());
  }
  if (static_cast<double>(most) > static_cast<double>(times_mean_allowed) * mean) missed("a bucket of at most 3 times the mean");
}

void print(const char* when, const Report& before, const Report& now) {
  const auto each = [](std::uint64_t from, std::uint64_t to) {
    return (static_cast<double>(to) - static_cast<double>(from)) / static_cast<double>(connections);
  };
  std::printf("%-46s %10.1f bytes allocated, %10.1f resident\n", when, each(before.allocated_bytes, now.allocated_bytes),
              each(before.resident_bytes, now.resident_bytes));
}

/// Something is sent on some of them at once, so that the reactor has the buffers that it keeps for reuse (1 MiB for all
/// together) with heartbeats and without.
Report when_all_are_open(const Server& server) {
  while (server.report().opened < connections) {
  }
  server.tell(send_some);
  return server.report();
}

[[noreturn]] void usage() {
  std::fputs("usage: bench-idle-heartbeats [--connections N (1 to 19,900)] [--interval MILLISECONDS (1,000 to 60,000)]\n",
             stderr);
  std::exit(64);
}

}  // namespace

int main(int count, char** arguments) {
  for (int index = 1; index < count; index += 2) {
    const std::string_view option = arguments[index];
    const std::string_view text = index + 1 < count ? arguments[index + 1] : "";
    std::size_t value = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) usage();
    if (option == "--connections" && value >= 1 && value <= 19'900) {
      connections = value;
    } else if (option == "--interval" && value >= 1000 && value <= 60'000) {
      interval = std::chrono::milliseconds(value);
    } else {
      usage();
    }
  }
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  setrlimit(RLIMIT_NOFILE, &descriptors);
  setvbuf(stdout, nullptr, _IOLBF, 0);

  double load = 0;
  getloadavg(&load, 1);
  std::printf("%zu connections, an interval of %.1f s, load average %.2f\n\nper connection, in the server\n", connections,
              static_cast<double>(interval.count()) / 1000, load);
  double bare = 0;
  {
    const Server server(false);
    const Report before = server.report();
    const Peers peers(before.port);
    const Report open = when_all_are_open(server);
    print("without a heartbeat", before, open);
    bare = static_cast<double>(open.allocated_bytes - before.allocated_bytes);
  }
  const Server server(true);
  const Report before = server.report();
  const Peers peers(before.port);
  print("with one, open", before, when_all_are_open(server));
  const auto since_open = peers.answer_probes(Clock::now());
  const Report probed = server.report();
  print("with one, after three intervals", before, probed);
  const double heartbeat =
      (static_cast<double>(probed.allocated_bytes - before.allocated_bytes) - bare) / static_cast<double>(connections);
  std::printf("%-46s %10.1f bytes allocated\n", "a heartbeat, therefore", heartbeat);
  if (heartbeat > bytes_allowed) missed("a heartbeat of at most 96 bytes");
  print("all were opened", since_open);

  server.report(wait_for_more);
  peers.all_say(broadcast);
  const auto began = Clock::now();
  server.tell(go_on);
  const auto since_broadcast = peers.answer_probes(began);
  const Report after = server.report();
  std::printf("\n%" PRIu64 " connections received a byte in %" PRIu64 " turn(s)\n", after.heard_broadcast,
              after.turns_of_broadcast);
  print("that", since_broadcast);
  if (after.closed != 0) missed("no connection lost");
  return failed ? 1 : 0;
}
