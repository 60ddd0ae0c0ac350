// Whether a simulated world does what kernels and networks do: each case states one fact of the real ones.
#include <doctest/doctest.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sys/sys.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Fault;
using sim::Peer;
using sim::Way;
using sim::World;

namespace {

/// One socket of vigil's host, called as the library calls it.
struct Caller {
  World world{{.seed = 7}};
  sim::Host& there = world.host("10.0.0.2");
  int listener = -1;
  int descriptor = -1;
  Peer* peer = nullptr;

  static sockaddr_in name(std::uint32_t ip, std::uint16_t port) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(ip);
    name.sin_port = htons(port);
    return name;
  }

  void listen(int backlog = 16) {
    listener = sys::socket(AF_INET, SOCK_STREAM);
    REQUIRE(listener >= 0);
    const sockaddr_in at = name(0x0A000001, 7000);
    REQUIRE(sys::bind(listener, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0);
    REQUIRE(sys::listen(listener, backlog) == 0);
  }
  /// A peer's connection, accepted.
  void accept() {
    listen();
    peer = &there.connect("10.0.0.1:7000");
    world.run_for(1ms);
    descriptor = sys::accept(listener, nullptr, nullptr);
    REQUIRE(descriptor >= 0);
  }
  [[nodiscard]] int connect(std::uint32_t ip = 0x0A000002, std::uint16_t port = 80) {
    if (descriptor < 0) descriptor = sys::socket(AF_INET, SOCK_STREAM);
    const sockaddr_in to = name(ip, port);
    return sys::connect(descriptor, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  }
  /// How long an attempt that gets no good answer takes, and what it says in the end.
  struct Failure {
    Duration after;
    int error;
  };
  [[nodiscard]] Failure failure_of_connect(Duration at_most) {
    const Instant began = world.now();
    REQUIRE(connect() == -EINPROGRESS);
    pollfd entry{descriptor, POLLOUT, 0};
    if (sys::poll(&entry, 1, at_most) == 0) return {at_most, 0};
    return {world.now() - began, error()};
  }
  [[nodiscard]] int error() const {
    int code = 0;
    socklen_t length = sizeof code;
    REQUIRE(sys::get_option(descriptor, SOL_SOCKET, SO_ERROR, &code, &length) == 0);
    return code;
  }
  void set(int level, int option, int value) const {
    REQUIRE(sys::set_option(descriptor, level, option, &value, sizeof value) == 0);
  }
  void keep_alive(int idle_s, int interval_s, int count) const {
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, idle_s);
    set(IPPROTO_TCP, TCP_KEEPINTVL, interval_s);
    set(IPPROTO_TCP, TCP_KEEPCNT, count);
  }
  [[nodiscard]] ssize_t recv(std::size_t size = 65536) {
    buffer.resize(size);
    return sys::recv(descriptor, buffer.data(), size);
  }
  [[nodiscard]] ssize_t send(std::string_view bytes) const { return sys::send(descriptor, bytes.data(), bytes.size()); }
  [[nodiscard]] short state() const {
    pollfd entry{descriptor, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    return sys::poll(&entry, 1, 0ns) == 0 ? short{0} : entry.revents;
  }
  /// When the connection dies by itself, counted from now; `at_most` if it does not.
  [[nodiscard]] Duration dies_after(Duration at_most) {
    const Instant began = world.now();
    pollfd entry{descriptor, 0, 0};
    return sys::poll(&entry, 1, at_most) == 0 ? at_most : world.now() - began;
  }
  void way(Way way) { world.set_way(world.local(), there, way); }

  std::string buffer;
};

}  // namespace

TEST_SUITE_BEGIN("world");

// Reading and ending ----------------------------------------------------------------------------------------------------------

TEST_CASE("bytes arrive in order, an end after them, and recv says so") {
  Caller caller;
  caller.accept();
  CHECK(caller.recv() == -EAGAIN);
  caller.peer->send("hello");
  caller.peer->finish();
  caller.world.run_for(1ms);
  CHECK((caller.state() & (POLLIN | POLLRDHUP)) == (POLLIN | POLLRDHUP));
  CHECK(caller.recv() == 5);
  CHECK(caller.buffer.substr(0, 5) == "hello");
  CHECK(caller.recv() == 0);
  CHECK(caller.send("still here") == 10);
  caller.world.run_for(1ms);
  CHECK(caller.peer->received() == "still here");
}

TEST_CASE("what came before a reset is read first, the error is handed out once, then recv says 0 and send EPIPE") {
  Caller caller;
  caller.accept();
  caller.peer->send("last words");
  caller.world.run_for(1ms);
  caller.peer->reset();
  caller.world.run_for(1ms);
  CHECK((caller.state() & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP));
  CHECK(caller.recv() == 10);
  CHECK(caller.recv() == -ECONNRESET);
  CHECK(caller.recv() == 0);
  CHECK(caller.send("x") == -EPIPE);
  CHECK(caller.error() == 0);
}

TEST_CASE("SO_ERROR takes the error, and recv says 0 afterwards") {
  Caller caller;
  caller.accept();
  caller.peer->reset();
  caller.world.run_for(1ms);
  CHECK(caller.error() == ECONNRESET);
  CHECK(caller.recv() == 0);
}

TEST_CASE("a reset behind the peer's end is a broken pipe, which recv never tells of") {
  Caller caller;
  caller.accept();
  caller.peer->finish();
  caller.world.run_for(1ms);
  caller.peer->reset();
  caller.world.run_for(1ms);
  CHECK(caller.recv() == 0);
  CHECK((caller.state() & POLLERR) != 0);
  CHECK(caller.send("x") == -EPIPE);
  CHECK(caller.error() == 0);
}

TEST_CASE("closing with unread bytes resets the peer, closing without ends its stream") {
  for (const bool unread : {true, false}) {
    Caller caller;
    caller.accept();
    if (unread) caller.peer->send("nobody reads this");
    caller.world.run_for(1ms);
    REQUIRE(sys::close(caller.descriptor) == 0);
    caller.world.run_for(1ms);
    CHECK(caller.peer->error() == (unread ? ECONNRESET : 0));
    CHECK(caller.peer->finished() == !unread);
  }
}

TEST_CASE("a recv stops short at an urgent mark, which POLLPRI tells of") {
  Caller caller;
  caller.accept();
  caller.world.set_chance(Fault::urgent_mark, 1);
  caller.peer->send("0123456789");
  caller.world.run_for(1ms);
  CHECK((caller.state() & POLLPRI) != 0);
  ssize_t total = 0;
  int calls = 0;
  for (ssize_t size = 0; (size = caller.recv()) > 0; ++calls) total += size;
  CHECK(total == 10);
  CHECK(calls <= 2);
  CHECK(caller.world.count(Fault::urgent_mark) == 1);
}

TEST_CASE("a full send buffer takes a part, then nothing, and has room again when a third of it is free") {
  Caller caller;
  caller.there.set_buffers(8192, 8192);
  caller.world.local().set_buffers(9000, 9000);
  caller.accept();
  caller.peer->stop_reading();
  const std::string much(50'000, 'x');
  ssize_t taken = 0;
  for (ssize_t size = 0; (size = caller.send(much)) > 0;) {
    taken += size;
    caller.world.run_for(1ms);
  }
  CHECK(taken == 9000 + 8192);
  CHECK((caller.state() & POLLOUT) == 0);
  caller.world.run_for(10s);
  CHECK((caller.state() & POLLOUT) == 0);
  CHECK(caller.world.count(Fault::window_closed) == 1);
  caller.peer->read_on();
  caller.world.run_for(300ms);
  CHECK((caller.state() & POLLOUT) != 0);
  CHECK(caller.peer->received_bytes() == 9000 + 8192);
}

// Connecting ------------------------------------------------------------------------------------------------------------------

TEST_CASE("a closed port refuses, at once") {
  Caller caller;
  const auto [after, error] = caller.failure_of_connect(1s);
  CHECK(error == ECONNREFUSED);
  CHECK(after < 1ms);
}

TEST_CASE("where packets are swallowed the kernel gives up after two minutes, or as TCP_SYNCNT says") {
  Caller caller;
  caller.way(Way::cut);
  const auto [after, error] = caller.failure_of_connect(1h);
  CHECK(error == ETIMEDOUT);
  CHECK(after == 127s);  // 1 + 2 + 4 + 8 + 16 + 32 + 64
  Caller hasty;
  hasty.way(Way::cut);
  hasty.descriptor = sys::socket(AF_INET, SOCK_STREAM);
  hasty.set(IPPROTO_TCP, TCP_SYNCNT, 1);
  CHECK(hasty.failure_of_connect(1h).after == 3s);
}

TEST_CASE("a full backlog answers no handshake until there is room") {
  Caller caller;
  caller.there.listen(
      80, [](Peer&) {}, 0);
  caller.there.pause_accepting(80);
  Peer& first = caller.world.host("10.0.0.3").connect("10.0.0.2:80");
  caller.world.run_for(1s);
  CHECK(first.connected());
  CHECK(caller.failure_of_connect(500ms).error == 0);
  CHECK(caller.world.count(Fault::queue_full) > 0);
  caller.there.resume_accepting(80);
  pollfd entry{caller.descriptor, POLLOUT, 0};
  CHECK(sys::poll(&entry, 1, 10s) == 1);
  CHECK(caller.error() == 0);
}

TEST_CASE("a host that is not there is unreachable after three seconds") {
  for (const bool was_there : {true, false}) {
    Caller caller;
    if (was_there) caller.there.vanish();
    const Instant began = caller.world.now();
    REQUIRE(caller.connect(was_there ? 0x0A000002 : 0x0A0000FF) == -EINPROGRESS);
    pollfd entry{caller.descriptor, POLLOUT, 0};
    REQUIRE(sys::poll(&entry, 1, 1h) == 1);
    CHECK(caller.error() == EHOSTUNREACH);
    CHECK(caller.world.now() - began == 3050ms);
  }
}

TEST_CASE("routes of one's own refuse at once, each with its errno") {
  const std::pair<Way, int> ways[] = {{Way::no_route, ENETUNREACH},
                                      {Way::unreachable_route, EHOSTUNREACH},
                                      {Way::prohibited_route, EACCES},
                                      {Way::blackhole_route, EINVAL}};
  for (const auto& [way, error] : ways) {
    Caller caller;
    caller.way(way);
    CHECK(caller.connect() == -error);
  }
}

TEST_CASE("who answers on the way ends an attempt at once, and an established connection not at all") {
  const std::pair<Way, int> ways[] = {{Way::port_unreachable, ECONNREFUSED},
                                      {Way::host_unreachable, EHOSTUNREACH},
                                      {Way::net_unreachable, ENETUNREACH},
                                      {Way::prohibited, EHOSTUNREACH},
                                      {Way::reset, ECONNREFUSED}};
  for (const auto& [way, error] : ways) {
    Caller caller;
    caller.way(way);
    CHECK(caller.failure_of_connect(1s).error == error);
    Caller other;
    other.accept();
    other.way(way);
    REQUIRE(other.send("anybody?") == 8);
    other.world.run_for(100ms);
    if (way == Way::reset) {
      CHECK(other.recv() == -ECONNRESET);
      continue;
    }
    CHECK((other.state() & (POLLERR | POLLHUP)) == 0);
    other.way(Way::open);
    other.world.run_for(1s);
    CHECK(other.peer->received() == "anybody?");
  }
}

TEST_CASE("what the path said of an established connection is forgotten once something is acknowledged") {
  for (const bool comes_through : {false, true}) {
    Caller caller;
    caller.accept();
    caller.set(IPPROTO_TCP, TCP_USER_TIMEOUT, 3000);
    caller.way(Way::host_unreachable);
    REQUIRE(caller.send("anybody?") == 8);
    caller.world.run_for(100ms);
    if (comes_through) {
      caller.way(Way::open);
      caller.world.run_for(1s);
      CHECK(caller.peer->received() == "anybody?");
      CHECK(caller.error() == 0);
    }
    // It is what the kernel gives up with.
    caller.way(Way::cut);
    if (comes_through) REQUIRE(caller.send("still?") == 6);
    CHECK(caller.dies_after(10s) < 10s);
    CHECK(caller.recv() == (comes_through ? -ETIMEDOUT : -EHOSTUNREACH));
  }
}

TEST_CASE("a connect to its own port reaches itself") {
  Caller caller;
  caller.descriptor = sys::socket(AF_INET, SOCK_STREAM);
  const sockaddr_in own = Caller::name(0x0A000001, 40'000);
  REQUIRE(sys::bind(caller.descriptor, reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0);
  REQUIRE(caller.connect(0x0A000001, 40'000) == -EINPROGRESS);
  caller.world.run_for(1ms);
  CHECK(caller.error() == 0);
  REQUIRE(caller.send("me") == 2);
  caller.world.run_for(1ms);
  CHECK(caller.recv() == 2);
}

// Accepting -------------------------------------------------------------------------------------------------------------------

TEST_CASE("accept succeeds of a connection that was reset meanwhile: what it sent can be read, then the reset") {
  Caller caller;
  caller.listen();
  Peer& peer = caller.there.connect("10.0.0.1:7000");
  peer.send("early");
  caller.world.run_for(1ms);
  peer.reset();
  caller.world.run_for(1ms);
  caller.descriptor = sys::accept(caller.listener, nullptr, nullptr);
  REQUIRE(caller.descriptor >= 0);
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  CHECK(sys::peer_name(caller.descriptor, reinterpret_cast<sockaddr*>(&name), &length) == -ENOTCONN);
  CHECK(caller.recv() == 5);
  CHECK(caller.recv() == -ECONNRESET);
}

TEST_CASE("without a descriptor left accept says EMFILE, even with nobody in the queue, and so does socket") {
  Caller caller;
  caller.listen();
  caller.there.connect("10.0.0.1:7000");
  caller.world.run_for(1ms);
  caller.world.local().limit_descriptors(1);
  CHECK(sys::accept(caller.listener, nullptr, nullptr) == -EMFILE);
  caller.world.local().limit_descriptors(2);
  CHECK(sys::accept(caller.listener, nullptr, nullptr) >= 0);
  CHECK(sys::accept(caller.listener, nullptr, nullptr) == -EMFILE);
  CHECK(sys::socket(AF_INET, SOCK_STREAM) == -EMFILE);
  CHECK(caller.world.count(Fault::descriptors_limited) == 3);
}

TEST_CASE("closing a listener resets who waits in its queue") {
  Caller caller;
  caller.listen();
  const Peer& peer = caller.there.connect("10.0.0.1:7000");
  caller.world.run_for(1ms);
  CHECK(peer.connected());
  REQUIRE(sys::close(caller.listener) == 0);
  caller.world.run_for(1ms);
  CHECK(peer.error() == ECONNRESET);
}

// Silence ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("keepalive finds a silent partition on an idle connection, and nothing while bytes are unacknowledged") {
  for (const bool idle : {true, false}) {
    Caller caller;
    caller.accept();
    caller.keep_alive(1, 1, 3);
    caller.way(Way::cut);
    if (!idle) REQUIRE(caller.send("x") == 1);
    const Duration after = caller.dies_after(60s);
    if (!idle) {
      CHECK(after == 60s);
      continue;
    }
    CHECK(after >= 3s);
    CHECK(after <= 4100ms);
    CHECK(caller.recv() == -ETIMEDOUT);
  }
}

TEST_CASE("a hung peer's kernel answers keepalive and acknowledges: nothing in the kernel ever tells") {
  Caller caller;
  caller.accept();
  caller.keep_alive(1, 1, 3);
  caller.set(IPPROTO_TCP, TCP_USER_TIMEOUT, 3000);
  caller.there.hang();
  REQUIRE(caller.send("anybody?") == 8);
  CHECK(caller.dies_after(1h) == 1h);
  const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
  CHECK(sample.bytes_acked == 8);
  CHECK(sample.unacked == 0);
  CHECK(sample.last_ack_recv_ms <= 1100);
  CHECK(caller.peer->received().empty());
  caller.there.resume();
  CHECK(caller.peer->received() == "anybody?");
}

TEST_CASE("the user timeout kills with bytes in flight, and a live peer that stops reading too") {
  Caller caller;
  caller.accept();
  caller.set(IPPROTO_TCP, TCP_USER_TIMEOUT, 3000);
  caller.way(Way::cut);
  REQUIRE(caller.send("x") == 1);
  const Duration after = caller.dies_after(60s);
  CHECK(after >= 3s);
  CHECK(after <= 4s);
  Caller other;
  other.there.set_buffers(4096, 4096);
  other.accept();
  other.set(IPPROTO_TCP, TCP_USER_TIMEOUT, 3000);
  other.peer->stop_reading();
  REQUIRE(other.send(std::string(10'000, 'x')) == 10'000);
  const Duration killed_after = other.dies_after(60s);
  CHECK(killed_after >= 3s);
  CHECK(killed_after <= 4s);
  CHECK(other.recv() == -ETIMEDOUT);
}

TEST_CASE("the handshake measures the round trip: on a far path nothing is sent twice") {
  for (const Duration latency : {100us, 101000us, 200000us, 400000us, 1100000us}) {
    CAPTURE(latency.count());
    Caller caller;
    caller.world.path(caller.world.local(), caller.there).latency = latency;
    caller.world.path(caller.there, caller.world.local()).latency = latency;
    const bool connects = latency != 200000us;  // from either side
    if (connects) {
      caller.there.listen(80, [&](Peer& accepted) { caller.peer = &accepted; });
      REQUIRE(caller.connect() == -EINPROGRESS);
      caller.world.run_for(10s);
    } else {
      caller.listen();
      caller.peer = &caller.there.connect("10.0.0.1:7000");
      caller.world.run_for(10s);
      caller.descriptor = sys::accept(caller.listener, nullptr, nullptr);
      REQUIRE(caller.descriptor >= 0);
    }
    REQUIRE(caller.peer != nullptr);
    const auto round_trip_us = static_cast<std::uint32_t>(2 * latency / 1us);
    // Longer than a second: the SYN was sent twice, and does not count (Karn); what follows does.
    const bool measured = round_trip_us < 1'000'000;
    CHECK(sys::tcp_sample(caller.descriptor).rtt_us == (measured ? round_trip_us : 0));
    REQUIRE(caller.send("hello") == 5);
    caller.world.run_for(10s);
    const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
    if (measured) CHECK(sample.total_retrans == 0);
    CHECK(sample.unacked == 0);
    CHECK(sample.rtt_us == round_trip_us);
  }
}

TEST_CASE("a peer that hangs far away is told as hung, since its kernel acknowledges") {
  struct Watched {
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord& record) { *verdict = record.verdict; }
    std::optional<Verdict>* verdict;
  };
  for (const Duration latency : {101ms, 150ms, 250ms, 400ms}) {
    for (const std::uint64_t seed : {1U, 5U}) {
      CAPTURE(latency.count());
      CAPTURE(seed);
      World world({.seed = seed});
      Reactor reactor;
      std::optional<Verdict> verdict;
      ListenerOptions options;
      options.heartbeat = {.budget = 20s, .ping = "ping\n"};
      Listener<Watched> listener(reactor, options, [&](Connection&) { return Watched{&verdict}; });
      REQUIRE(listener.listen("10.0.0.1:7000"));
      world.attach(reactor);
      sim::Host& there = world.host("10.0.0.2");
      world.path(world.local(), there).latency = world.path(there, world.local()).latency = latency;
      there.connect("10.0.0.1:7000").on_receive = [](Peer& peer, std::string_view) { peer.send("pong"); };
      world.run_for(60s);
      CHECK_FALSE(verdict);
      there.hang();
      world.run_for(60s);
      CHECK(verdict == Verdict::hung);
    }
  }
}

TEST_CASE("what was sent twice is measured all the same, by its timestamp") {
  Caller caller;
  caller.accept();
  caller.way(Way::cut);
  REQUIRE(caller.send("hello") == 5);
  caller.world.run_for(100ms);
  caller.world.path(caller.world.local(), caller.there).latency = 300ms;
  caller.way(Way::open);
  const std::uint32_t before = sys::tcp_sample(caller.descriptor).rtt_us;
  caller.world.run_for(5s);
  const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
  CHECK(sample.total_retrans >= 1);
  CHECK(sample.unacked == 0);
  CHECK(sample.rtt_us == (7 * before + 300100) / 8);  // of its first retransmission, whatever was sent after that
}

TEST_CASE("a healed partition recovers with the back-off of its retransmissions") {
  Caller caller;
  caller.accept();
  caller.way(Way::cut);
  REQUIRE(caller.send("x") == 1);
  caller.world.run_for(4s);
  const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
  CHECK(sample.unacked == 1);
  CHECK(sample.retransmits >= 3);
  caller.way(Way::open);
  caller.world.run_for(1s);
  CHECK(caller.peer->received().empty());  // the next try is still to come
  caller.world.run_for(4s);
  CHECK(caller.peer->received() == "x");
  CHECK(sys::tcp_sample(caller.descriptor).total_retrans == 5);
}

TEST_CASE("without a route of its own an established connection keeps its bytes untransmitted, and sends them later") {
  Caller caller;
  caller.accept();
  caller.world.path(caller.world.local(), caller.there).way = Way::no_route;
  REQUIRE(caller.send("later") == 5);
  caller.world.run_for(2s);
  const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
  CHECK(sample.unacked == 0);
  CHECK(sample.notsent_bytes == 5);
  CHECK(sample.snd_wnd > 0);
  caller.way(Way::open);
  caller.world.run_for(1s);
  CHECK(caller.peer->received() == "later");
}

TEST_CASE("without a route of its own a connection keeps its end too, and sends it later") {
  Caller caller;
  caller.accept();
  caller.world.path(caller.world.local(), caller.there).way = Way::no_route;
  REQUIRE(sys::shutdown(caller.descriptor, SHUT_WR) == 0);
  caller.world.run_for(2s);
  CHECK_FALSE(caller.peer->finished());
  CHECK(sys::tcp_sample(caller.descriptor).unacked == 0);
  CHECK(caller.world.count(Fault::window_closed) == 0);  // which is the other reason why nothing is in flight
  caller.way(Way::open);
  caller.world.run_for(1s);
  CHECK(caller.peer->finished());
}

TEST_CASE("what is in flight when its own route is lost counts each retransmission that the route refuses") {
  Caller caller;
  caller.accept();
  caller.way(Way::cut);
  REQUIRE(caller.send("lost") == 4);
  caller.world.run_for(1ms);
  caller.world.path(caller.world.local(), caller.there).way = Way::no_route;
  caller.world.run_for(5s);
  const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
  CHECK(sample.unacked == 1);
  CHECK(sample.retransmits >= 2);
  caller.way(Way::open);
  caller.world.run_for(10s);
  CHECK(caller.peer->received() == "lost");
}

TEST_CASE("a closed window is seen in the evidence: its probes are answered by who lives, and counted if nobody does") {
  for (const bool lives : {true, false}) {
    Caller caller;
    caller.there.set_buffers(4096, 4096);
    caller.accept();
    caller.peer->stop_reading();
    REQUIRE(caller.send(std::string(10'000, 'x')) == 10'000);
    caller.world.run_for(1s);
    if (!lives) caller.way(Way::cut);
    caller.world.run_for(5s);
    const sys::TcpSample sample = sys::tcp_sample(caller.descriptor);
    CHECK(sample.unacked == 0);
    CHECK(sample.notsent_bytes > 0);
    CHECK(sample.snd_wnd == 0);
    CHECK((sample.probes >= 2) == !lives);
  }
}

TEST_CASE("a closed window is asked for at twice the interval each time, answered or not, until it opens") {
  for (const bool is_answered : {true, false}) {
    Caller caller;
    caller.there.set_buffers(4096, 4096);
    caller.accept();
    caller.peer->stop_reading();
    REQUIRE(caller.send(std::string(10'000, 'x')) == 10'000);
    caller.world.run_for(100ms);
    if (!is_answered) caller.way(Way::cut);
    const Instant began = caller.world.now();
    for (const std::uint32_t asked : {1U, 2U, 3U, 4U, 5U}) {
      const Instant latest = began + 10s;
      while (sys::tcp_sample(caller.descriptor).backoff < asked && caller.world.now() < latest) caller.world.run_for(10ms);
      const Duration since = caller.world.now() - began;
      CHECK(since >= 200ms * ((1 << asked) - 1) - 100ms);
      CHECK(since <= 210ms * ((1 << asked) - 1) + 50ms);
      caller.world.run_for(100ms);
      CHECK(sys::tcp_sample(caller.descriptor).probes == (is_answered ? 0 : asked));
    }
    // Up to two minutes.
    caller.way(Way::open);
    caller.world.run_for(1000s);
    const auto answered_ms = [&] { return sys::tcp_sample(caller.descriptor).last_ack_recv_ms; };
    for (int step = 0; answered_ms() > 1000 && step < 300; ++step) caller.world.run_for(500ms);
    caller.world.run_for(118s);
    CHECK(answered_ms() >= 118'000);
    caller.world.run_for(3s);
    CHECK(answered_ms() <= 3000);
    caller.peer->read_on();
    caller.world.run_for(130s);
    CHECK(sys::tcp_sample(caller.descriptor).backoff == 0);
    CHECK(caller.peer->received().size() == 10'000);
  }
}

TEST_CASE("a host that knows nothing of the connection resets it at our next packet") {
  Caller caller;
  caller.accept();
  caller.there.reboot();
  CHECK(caller.dies_after(1h) == 1h);
  REQUIRE(caller.send("x") == 1);
  CHECK(caller.dies_after(1h) < 1ms);
  CHECK(caller.recv() == -ECONNRESET);
}

TEST_CASE("a host that has forgotten a connection and connects again from the same port finds the old one, which then ends") {
  Caller caller;
  caller.listen();
  caller.there.connect("10.0.0.1:7000", 40'000);
  caller.world.run_for(1ms);
  caller.descriptor = sys::accept(caller.listener, nullptr, nullptr);
  REQUIRE(caller.descriptor >= 0);
  caller.there.reboot();
  const Peer& again = caller.there.connect("10.0.0.1:7000", 40'000);
  caller.world.run_for(1ms);
  CHECK(caller.recv() == -ECONNRESET);
  CHECK_FALSE(again.connected());
  caller.world.run_for(2s);  // its handshake knocks once more
  CHECK(again.connected());
}

TEST_CASE("old segments of a connection that is over make no new one") {
  Caller caller;
  caller.listen();
  caller.world.set_chance(Fault::duplicated, 1);
  caller.world.set_chance(Fault::delayed, 0.5);
  for (int lives = 0; lives < 50; ++lives) {
    Peer& peer = caller.there.connect("10.0.0.1:7000", 40'000);
    caller.world.run_for(200ms);
    caller.descriptor = sys::accept(caller.listener, nullptr, nullptr);
    REQUIRE(caller.descriptor >= 0);
    peer.reset();
    REQUIRE(sys::close(caller.descriptor) == 0);
    caller.world.run_for(200ms);
    CHECK(sys::accept(caller.listener, nullptr, nullptr) == -EAGAIN);
  }
}

TEST_CASE("a killed process ends its streams, with a reset where it had bytes unread") {
  for (const bool unread : {true, false}) {
    Caller caller;
    caller.accept();
    if (unread) {
      caller.peer->stop_reading();
      REQUIRE(caller.send("unread") == 6);
      caller.world.run_for(1ms);
    }
    caller.there.kill();
    caller.world.run_for(1ms);
    CHECK(caller.recv() == (unread ? -ECONNRESET : 0));
  }
}

TEST_CASE("the kernel of a host that hangs answers a handshake, and who waits is accepted when it resumes") {
  Caller caller;
  int accepted = 0;
  const auto count = [&](Peer&) { ++accepted; };
  caller.there.listen(80, count);
  caller.there.listen(81, count);
  caller.there.hang();
  REQUIRE(caller.connect() == -EINPROGRESS);
  caller.world.run_for(1ms);
  CHECK((caller.state() & (POLLOUT | POLLHUP | POLLERR)) == POLLOUT);
  REQUIRE(caller.send("hello") == 5);
  caller.world.run_for(1s);
  CHECK(accepted == 0);
  caller.there.resume();
  caller.world.run_for(1ms);
  CHECK(accepted == 1);
}

TEST_CASE("who comes to a host after the processes that hung were killed does not hang") {
  Caller caller;
  caller.listen();
  caller.there.hang();
  caller.there.kill();
  Peer& peer = caller.there.connect("10.0.0.1:7000");
  caller.world.run_for(1ms);
  caller.descriptor = sys::accept(caller.listener, nullptr, nullptr);
  REQUIRE(caller.send("hello") == 5);
  caller.world.run_for(1ms);
  CHECK(peer.received() == "hello");
}

TEST_CASE("after five minutes of loss on every tenth segment every byte has come, once and in order") {
  Caller caller;
  caller.accept();
  for (const Fault fault : {Fault::lost, Fault::duplicated, Fault::delayed}) caller.world.set_chance(fault, 0.1);
  std::string sent;
  for (int number = 0; number < 1000; ++number) sent += std::to_string(number) + ' ';
  std::size_t given = 0;
  caller.peer->send(sent);
  caller.peer->finish();
  std::string received;
  for (int seconds = 0; seconds < 300; ++seconds) {
    if (given < sent.size())
      given += static_cast<std::size_t>(std::max<ssize_t>(caller.send(std::string_view(sent).substr(given, 100)), 0));
    caller.world.run_for(1s);
    for (ssize_t size = 0; (size = caller.recv(97)) > 0;) received += caller.buffer.substr(0, static_cast<std::size_t>(size));
  }
  CHECK(received == sent);
  CHECK(caller.peer->received() == std::string_view(sent).substr(0, given));
  CHECK(caller.world.count(Fault::lost) > 0);
}

// The world itself ------------------------------------------------------------------------------------------------------------

namespace {

struct Chatter {
  explicit Chatter(World& its_world) : world(&its_world) {}
  void on_receive(Connection& peer, Bytes bytes) {
    world->spend(world->random().between(1us, 300us));
    peer.send(bytes);
  }
  void on_close(Connection&, const CloseRecord&) {}
  World* world;
};

std::uint64_t digest_of_chatter(std::uint64_t seed) {
  World world({.seed = seed});
  for (const Fault fault : {Fault::interrupted, Fault::spurious_event, Fault::shuffled_events, Fault::late_wakeup, Fault::lost})
    world.set_chance(fault, 0.05);
  Reactor reactor;
  Listener<Chatter> listener(reactor, {.timeouts = {.receive = 3s}}, [&](Connection&) { return Chatter(world); });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(reactor);
  for (int index = 0; index < 20; ++index) {
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
    peer.on_receive = [](Peer& self, std::string_view bytes) {
      if (self.received_bytes() < 2000) self.send(bytes);
    };
    peer.send("hello");
  }
  world.run_for(60s);
  CHECK(reactor.counters().opened == 20);
  CHECK(reactor.counters().closed == 20);
  world.detach(reactor);
  return world.digest();
}

}  // namespace

TEST_CASE("a seed tells everything: the same one gives the same world, another one another") {
  const std::uint64_t first = digest_of_chatter(1);
  CHECK(digest_of_chatter(1) == first);
  CHECK(digest_of_chatter(2) != first);
}

TEST_CASE("two reactors of a world on two hosts talk to each other over its paths") {
  World world;
  sim::Host& other = world.host("10.0.0.9");
  Reactor server;
  Listener<Chatter> listener(server, {}, [&](Connection&) { return Chatter(world); });
  REQUIRE(listener.listen("10.0.0.1:7000"));
  world.attach(server);
  world.enter(other);
  Reactor client;
  world.attach(client);
  struct Asker {
    void on_open(Connection& peer) { peer.send("ping"); }
    void on_receive(Connection& peer, Bytes bytes) {
      CHECK(bytes.text() == "ping");
      peer.close();
    }
    void on_close(Connection&, const CloseRecord& record) { *reason = record.reason; }
    CloseReason* reason;
  };
  CloseReason reason = CloseReason::system_error;
  Connector<Asker> connector(client, {}, [&](Connection&) { return Asker{&reason}; });
  REQUIRE(connector.connect("10.0.0.1:7000"));
  world.run_for(1s);
  CHECK(reason == CloseReason::local_close);
  CHECK(server.counters().closed_for[static_cast<std::size_t>(CloseReason::peer_finished)] == 1);
  world.detach(client);
  world.detach(server);
}

TEST_CASE("time that callbacks take delays timers, and none fires early") {
  World world;
  Reactor reactor;
  world.attach(reactor);
  const Instant began = world.now();
  Instant fired{};
  Timer slow(reactor, [&] { world.spend(50ms); });
  Timer late(reactor, [&] { fired = world.now(); });
  REQUIRE(slow.arm_after(10ms));
  REQUIRE(late.arm_after(12ms));
  world.run_for(1s);
  CHECK(fired - began >= 60ms);
  CHECK(fired - began <= 62ms);
  CHECK(world.delays() == 50ms);
  world.detach(reactor);
}

TEST_CASE("a run returns when its time is over, also where a reactor has something to do in each turn") {
  World world;
  Reactor reactor;
  struct Busy {
    World& world;
    Reactor& reactor;
    int turns = 0;
    void turn() {
      world.spend(3ms);
      if (++turns < 10'000) CHECK(reactor.post([this] { turn(); }));
    }
  } busy{world, reactor};
  world.attach(reactor);
  busy.turn();
  for (int run = 0; run < 3; ++run) {
    const Instant until = world.now() + 1s;
    if (run < 2) world.run_for(1s);
    if (run == 2) CHECK_FALSE(world.run_until([] { return false; }, 1s));
    CHECK(world.now() >= until);
    CHECK(world.now() <= until + 3ms);
  }
  CHECK(busy.turns >= 999);
  world.detach(reactor);
}

TEST_CASE("a length that leads beyond the end of time is for ever, and takes none where nothing will ever happen") {
  World world;
  Reactor reactor;
  world.attach(reactor);
  int tasks = 0;
  const Instant due = world.now() + 1h;
  world.after(1h, [&] { ++tasks; });
  world.after(Duration::max(), [&] { ++tasks; });
  CHECK_FALSE(world.run_until([] { return false; }, Duration::max()));
  CHECK(tasks == 1);
  CHECK(world.now() == due);
  world.after(1h, [&] { ++tasks; });
  world.run_for(Duration::max());
  CHECK(tasks == 2);
  CHECK(world.now() == due + 1h);
  CHECK(world.run_until([] { return true; }, Duration::max()));
  world.detach(reactor);
}

TEST_CASE("a descriptor that can't be watched for want of memory is refused with ENOMEM or ENOSPC, and its truth says so") {
  std::vector<int> seen;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    World world({.seed = seed});
    Reactor reactor;
    struct Refused {
      void on_receive(Connection&, Bytes) {}
      void on_close(Connection&, const CloseRecord& record) { *told = record.error_number; }
      int* told;
    };
    int told = 0;
    std::uint64_t life = 0;
    Listener<Refused> listener(reactor, {}, [&](Connection& connection) {
      life = world.life(connection.descriptor());
      world.set_chance(Fault::no_buffers, 1);  // from here on, so that it was accepted
      return Refused{&told};
    });
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    world.host("10.0.0.2").connect("10.0.0.1:7000");
    world.run_for(1s);
    CHECK((told == ENOMEM || told == ENOSPC));
    CHECK(world.truth(life).watch_error == told);
    seen.push_back(told);
    world.detach(reactor);
  }
  CHECK(std::count(seen.begin(), seen.end(), ENOMEM) > 0);
  CHECK(std::count(seen.begin(), seen.end(), ENOSPC) > 0);
}

TEST_CASE("a hung host of one's own turns no reactor, and the time counts as delay once something waits") {
  World world;
  Reactor reactor;
  world.attach(reactor);
  Instant fired{};
  Timer timer(reactor, [&] { fired = world.now(); });
  REQUIRE(timer.arm_after(1s));
  world.run_for(1ms);
  const Instant began = world.now();
  world.local().hang();
  world.run_for(5s);
  CHECK(fired == Instant{});
  world.local().resume();
  world.run_for(1s);
  CHECK(fired - began == 5s);
  CHECK(world.delays() >= 4s);
  world.detach(reactor);
}

TEST_CASE("a reactor may end while it is attached") {
  World world;
  auto reactor = std::make_unique<Reactor>();
  world.attach(*reactor);
  reactor.reset();
  world.run_for(1s);
  CHECK(world.open_descriptors() == 0);
}

TEST_CASE("who waits for ever where nothing will ever happen is told so") {
  World world;
  Reactor reactor;
  const auto ran = reactor.run();
  REQUIRE_FALSE(ran);
  CHECK(ran.error() == Error{"wait", EDEADLK});
}

TEST_CASE("each fault of the calls strikes where it may, and is counted") {
  World world;
  const int socket = sys::socket(AF_INET, SOCK_STREAM);
  REQUIRE(socket >= 0);
  world.set_chance(Fault::no_descriptor, 1);
  const int refused = sys::socket(AF_INET, SOCK_STREAM);
  CHECK((refused == -EMFILE || refused == -ENFILE));
  world.set_chance(Fault::no_descriptor, 0);
  world.set_chance(Fault::no_buffers, 1);
  const int starved = sys::socket(AF_INET, SOCK_STREAM);
  CHECK((starved == -ENOBUFS || starved == -ENOMEM));
  world.set_chance(Fault::no_buffers, 0);
  world.set_chance(Fault::no_port, 1);
  const sockaddr_in anywhere{.sin_family = AF_INET, .sin_port = htons(80), .sin_addr = {htonl(0x0A000002)}, .sin_zero = {}};
  CHECK(sys::connect(socket, reinterpret_cast<const sockaddr*>(&anywhere), sizeof anywhere) == -EADDRNOTAVAIL);
  CHECK(world.truth(world.life(socket)).error == EADDRNOTAVAIL);
  CHECK(world.count(Fault::no_descriptor) == 1);
  CHECK(world.count(Fault::no_buffers) == 1);
  CHECK(world.count(Fault::no_port) == 1);
  CHECK(world.open_descriptors() == 1);
  CHECK(sys::close(socket) == 0);
  CHECK(world.open_descriptors() == 0);
  CHECK(sys::close(socket) == -EBADF);
  CHECK(world.calls_on_closed() == 1);
}

TEST_CASE("bytes are offered when a kernel that holds none is given some, and that stays so until all were acknowledged") {
  for (const bool has_room : {true, false}) {
    Caller caller;
    caller.accept();
    const auto offered_at = [&] { return caller.world.truth(caller.world.life(caller.descriptor)).offered_at; };
    CHECK(offered_at() == Instant{});
    const Instant first = caller.world.now();
    if (!has_room) caller.world.set_chance(Fault::out_of_room, 1);
    CHECK(caller.send("x") == (has_room ? 1 : -EAGAIN));
    caller.world.set_chance(Fault::out_of_room, 0);
    caller.world.run_for(10ms);
    CHECK(offered_at() == first);
    caller.way(Way::cut);
    REQUIRE(caller.send("y") == 1);
    const Instant second = has_room ? caller.world.now() : first;
    caller.world.run_for(10ms);
    REQUIRE(caller.send("z") == 1);
    CHECK(offered_at() == second);
  }
}

TEST_CASE("the truth of a life tells what its kernel and the other side know, also after its end") {
  Caller caller;
  caller.accept();
  const std::uint64_t life = caller.world.life(caller.descriptor);
  REQUIRE(life != 0);
  CHECK(caller.world.peer_of(life) == caller.peer);
  caller.peer->send("0123456789");
  REQUIRE(caller.send("abc") == 3);
  caller.world.run_for(1ms);
  CHECK(caller.recv(4) == 4);
  caller.peer->reset();
  caller.world.run_for(1ms);
  REQUIRE(sys::close(caller.descriptor) == 0);
  CHECK(caller.world.life(caller.descriptor) == 0);
  const sim::Truth truth = caller.world.truth(life);
  CHECK(truth.is_closed);
  CHECK(truth.was_connected);
  CHECK(truth.arrived == 10);
  CHECK(truth.read == 4);
  CHECK(truth.unread() == 6);
  CHECK(truth.error == ECONNRESET);
  CHECK_FALSE(truth.error_was_taken);
  CHECK(truth.taken == 3);
  CHECK(truth.unacknowledged() == 0);
  CHECK(truth.peer_sent == 10);
  CHECK(truth.peer_received == 3);
  CHECK(truth.peer_was_reset);
  CHECK(truth.faults == 1);
}

TEST_SUITE_END();
