// The scripted kernel itself: what the other tests on simulated system calls rely on.
#include <doctest/doctest.h>

#include <netinet/tcp.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "sys/simulated/scripted_kernel.hpp"

using namespace std::chrono_literals;
using namespace vigil;
using sys::Call;
using sys::Ending;
using sys::RecordedCall;
using sys::ScriptedKernel;

namespace {

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int listen_on(std::uint16_t port) {
  const int descriptor = sys::socket(AF_INET, SOCK_STREAM);
  const sockaddr_in address = loopback(port);
  REQUIRE(sys::bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(sys::listen(descriptor, 16) == 0);
  return descriptor;
}

/// A connection as accept hands it out.
int accepted(ScriptedKernel& kernel) {
  const int listener = kernel.listener() >= 0 ? kernel.listener() : listen_on(7000);
  const int promised = kernel.will_accept(listener);
  REQUIRE(sys::accept(listener, nullptr, nullptr) == promised);
  return promised;
}

std::string receive(int descriptor, std::size_t size = 100) {
  std::string buffer(size, '?');
  const ssize_t taken = sys::recv(descriptor, buffer.data(), buffer.size());
  if (taken < 0) return sys::error_name(static_cast<int>(-taken));
  buffer.resize(static_cast<std::size_t>(taken));
  return buffer;
}

ssize_t send(int descriptor, std::string_view bytes) { return sys::send(descriptor, bytes.data(), bytes.size()); }

int socket_error(int descriptor) {
  int error = -1;
  socklen_t length = sizeof error;
  REQUIRE(sys::get_option(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0);
  return error;
}

struct Event {
  std::uint64_t tag;
  std::uint32_t events;
};

struct Waited {
  int count;
  std::array<Event, 8> events{};
};

Waited wait(int epoll, Duration timeout = Duration::zero(), int capacity = 8) {
  std::array<epoll_event, 8> seen{};
  Waited waited{.count = sys::epoll_wait(epoll, seen.data(), capacity, timeout)};
  // epoll_event is packed, which doctest can't take references into.
  for (std::size_t index = 0; index < seen.size(); ++index) waited.events[index] = {seen[index].data.u64, seen[index].events};
  return waited;
}

int add(int epoll, int descriptor, std::uint32_t events, std::uint64_t tag = 0) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  return sys::epoll_control(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

constexpr std::uint32_t edge = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;

}  // namespace

TEST_CASE("this program is linked with the simulated calls") { CHECK(std::string_view(sys::implementation) == "simulated"); }

TEST_CASE("a scripted kernel stands in for the one before as long as it lives") {
  ScriptedKernel outer;
  outer.advance(1s);
  const Instant outer_time = sys::monotonic_now();
  {
    ScriptedKernel inner;
    CHECK(sys::monotonic_now() == outer_time - 1s);
  }
  CHECK(sys::monotonic_now() == outer_time);
}

TEST_CASE("time stands still until it is moved") {
  ScriptedKernel kernel;
  const Instant start = sys::monotonic_now();
  CHECK(start > Instant{});
  CHECK(sys::monotonic_now() == start);
  kernel.advance(3ms);
  CHECK(sys::monotonic_now() == start + 3ms);
  CHECK(kernel.now() == start + 3ms);
}

TEST_CASE("what is scheduled happens at its instant, in order, also while the caller works") {
  ScriptedKernel kernel;
  const Instant start = kernel.now();
  std::vector<Duration> seen;
  kernel.after(20ms, [&] { seen.push_back(kernel.now() - start); });
  kernel.after(10ms, [&] {
    seen.push_back(kernel.now() - start);
    kernel.after(5ms, [&] { seen.push_back(kernel.now() - start); });
  });
  kernel.advance(18ms);
  CHECK(seen == std::vector<Duration>{10ms, 15ms});
  kernel.advance(2ms);
  CHECK(seen == std::vector<Duration>{10ms, 15ms, 20ms});
  CHECK(kernel.now() == start + 20ms);
}

TEST_CASE("a wait with nothing to tell moves the clock on by its timeout") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const Instant start = kernel.now();
  CHECK(wait(epoll, 250ms).count == 0);
  CHECK(kernel.now() == start + 250ms);
  CHECK(kernel.last_timeout() == 250ms);
  CHECK(wait(epoll).count == 0);
  CHECK(kernel.now() == start + 250ms);
}

TEST_CASE("a wait that would never end is told apart") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  CHECK(wait(epoll, -1ns).count == -EDEADLK);
  CHECK(wait(epoll, Duration::max()).count == -EDEADLK);
}

TEST_CASE("a wait ends when something happens, and not before") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  REQUIRE(add(epoll, peer, edge, 77) == 0);
  REQUIRE(wait(epoll).count == 1);  // room to send
  const Instant start = kernel.now();
  kernel.after(40ms, [&] { kernel.advance(0ms); });  // nobody is told
  kernel.after(90ms, [&] { kernel.peer_sends(peer, "hello"); });

  const Waited waited = wait(epoll, -1ns);

  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].tag == 77);
  CHECK(waited.events[0].events == (EPOLLIN | EPOLLOUT));
  CHECK(kernel.now() == start + 90ms);
  CHECK(receive(peer) == "hello");
}

TEST_CASE("a wait that oversleeps tells what happened meanwhile") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  REQUIRE(add(epoll, peer, edge) == 0);
  REQUIRE(wait(epoll).count == 1);
  const Instant start = kernel.now();
  kernel.will_oversleep(4s);
  kernel.after(1s, [&] { kernel.peer_sends(peer, "late"); });
  CHECK(wait(epoll, 10ms).count == 1);
  CHECK(kernel.now() == start + 4010ms);
  CHECK(wait(epoll, 10ms).count == 0);
  CHECK(kernel.now() == start + 4020ms);
}

TEST_CASE("edge-triggered readiness is told once, level-triggered as long as it lasts") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int by_edge = accepted(kernel);
  const int by_level = accepted(kernel);
  REQUIRE(add(epoll, by_edge, edge, 1) == 0);
  REQUIRE(add(epoll, by_level, EPOLLIN, 2) == 0);
  kernel.peer_sends(by_edge, "x");
  kernel.peer_sends(by_level, "x");
  CHECK(wait(epoll).count == 2);
  const Waited again = wait(epoll);
  REQUIRE(again.count == 1);
  CHECK(again.events[0].tag == 2);
  CHECK(receive(by_level) == "x");
  CHECK(wait(epoll).count == 0);
}

TEST_CASE("an entry that is added or changed is told what there is at once") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  kernel.will_receive(peer, "early");
  REQUIRE(add(epoll, peer, edge) == 0);
  Waited waited = wait(epoll);
  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].events == (EPOLLIN | EPOLLOUT));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  REQUIRE(sys::epoll_control(epoll, EPOLL_CTL_MOD, peer, &event) == 0);
  waited = wait(epoll);
  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].events == EPOLLIN);
  CHECK(kernel.registered_for(peer) == (EPOLLIN | EPOLLET));
}

TEST_CASE("registrations answer as epoll_ctl does") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  epoll_event event{};
  CHECK(sys::epoll_control(epoll, EPOLL_CTL_MOD, peer, &event) == -ENOENT);
  CHECK(sys::epoll_control(epoll, EPOLL_CTL_DEL, peer, &event) == -ENOENT);
  CHECK(add(epoll, peer, EPOLLIN) == 0);
  CHECK(add(epoll, peer, EPOLLIN) == -EEXIST);
  CHECK(add(epoll, 999, EPOLLIN) == -EBADF);
  CHECK(add(epoll, epoll, EPOLLIN) == -EINVAL);
  CHECK(add(epoll, sys::reserve_open(), EPOLLIN) == -EPERM);
  CHECK(kernel.registered_for(peer) == EPOLLIN);
  CHECK(sys::epoll_control(epoll, EPOLL_CTL_DEL, peer, &event) == 0);
  CHECK(kernel.registered_for(peer) == 0);
  kernel.report(peer, EPOLLIN);
  CHECK(wait(epoll).count == 0);
}

TEST_CASE("a registration hears what it asked for, and errors and hang-ups always") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  REQUIRE(add(epoll, peer, EPOLLIN | EPOLLET) == 0);
  kernel.report(peer, EPOLLOUT);
  CHECK(wait(epoll).count == 0);
  kernel.report(peer, EPOLLOUT | EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
  const Waited waited = wait(epoll);
  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].events == (EPOLLIN | EPOLLHUP | EPOLLERR));
}

TEST_CASE("events come in the order of what happened, and those without room wait") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int first = accepted(kernel);
  const int second = accepted(kernel);
  const int third = accepted(kernel);
  for (const int peer : {first, second, third})
    REQUIRE(add(epoll, peer, EPOLLIN | EPOLLET, static_cast<std::uint64_t>(peer)) == 0);
  for (const int peer : {third, first, second}) kernel.peer_sends(peer, "x");
  Waited waited = wait(epoll, 0ns, 2);
  REQUIRE(waited.count == 2);
  CHECK(waited.events[0].tag == static_cast<std::uint64_t>(third));
  CHECK(waited.events[1].tag == static_cast<std::uint64_t>(first));
  waited = wait(epoll, 0ns, 2);
  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].tag == static_cast<std::uint64_t>(second));
}

TEST_CASE("closing ends a registration, unless a duplicate keeps it") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int gone = accepted(kernel);
  const int kept = accepted(kernel);
  REQUIRE(add(epoll, gone, EPOLLIN | EPOLLET, 1) == 0);
  REQUIRE(add(epoll, kept, EPOLLIN | EPOLLET, 2) == 0);
  kernel.peer_sends(gone, "x");
  kernel.is_duplicated(kept);
  REQUIRE(sys::close(gone) == 0);
  REQUIRE(sys::close(kept) == 0);
  CHECK(wait(epoll).count == 0);
  kernel.report_orphan(kept, EPOLLIN);
  const Waited waited = wait(epoll);
  REQUIRE(waited.count == 1);
  CHECK(waited.events[0].tag == 2);
}

TEST_CASE("a signalled wake-up descriptor is readable, by edge once for each signal") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int wake = sys::wake_open();
  REQUIRE(add(epoll, wake, EPOLLIN | EPOLLET) == 0);
  CHECK(wait(epoll).count == 0);
  CHECK(sys::wake_signal(wake) > 0);
  CHECK(sys::wake_signal(wake) > 0);
  CHECK(wait(epoll).count == 1);
  CHECK(wait(epoll).count == 0);
  CHECK(sys::wake_signal(wake) > 0);
  CHECK(wait(epoll).count == 1);
}

TEST_CASE("signals become readiness, and what was blocked is restored") {
  ScriptedKernel kernel;
  bool was_blocked = true;
  const int signal = sys::signal_open(15, was_blocked);
  CHECK_FALSE(was_blocked);
  CHECK(kernel.blocked_signals() == std::vector<int>{15});
  CHECK(sys::signal_take(signal) == -EAGAIN);
  kernel.raise(15);
  kernel.raise(15);
  CHECK(sys::signal_take(signal) == 15);
  CHECK(sys::signal_take(signal) == -EAGAIN);
  sys::signal_restore(15, was_blocked);
  CHECK(kernel.blocked_signals().empty());
  CHECK(sys::signal_open(65, was_blocked) == -EINVAL);
}

TEST_CASE("poll tells the state and waits in virtual time") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  pollfd entry{peer, POLLIN, 0};
  const Instant start = kernel.now();
  CHECK(sys::poll(&entry, 1, 30ms) == 0);
  CHECK(kernel.now() == start + 30ms);
  kernel.after(5ms, [&] { kernel.peer_finishes(peer); });
  CHECK(sys::poll(&entry, 1, 30ms) == 1);
  CHECK(kernel.now() == start + 35ms);
  CHECK(entry.revents == POLLIN);
  entry = {4711, POLLIN, 0};
  CHECK(sys::poll(&entry, 1, 30ms) == 1);
  CHECK(entry.revents == POLLNVAL);
}

TEST_CASE("descriptors are numbered from 100 up, the lowest free one first") {
  ScriptedKernel kernel;
  CHECK(sys::socket(AF_INET, SOCK_STREAM) == 100);
  CHECK(sys::wake_open() == 101);
  CHECK(sys::reserve_open() == 102);
  CHECK(sys::close(101) == 0);
  CHECK(kernel.open_descriptors() == std::vector<int>{100, 102});
  CHECK(sys::epoll_create() == 101);
}

TEST_CASE("what was closed twice is told and counted") {
  ScriptedKernel kernel;
  const int descriptor = sys::socket(AF_INET, SOCK_STREAM);
  CHECK(sys::close(descriptor) == 0);
  CHECK(kernel.calls_on_closed() == 0);
  CHECK(sys::close(descriptor) == -EBADF);
  CHECK(receive(descriptor) == "EBADF");
  CHECK(kernel.calls_on_closed() == 2);
}

TEST_CASE("with as many descriptors open as allowed, the next one is EMFILE, for accept even with nobody waiting") {
  ScriptedKernel kernel;
  const int listener = listen_on(7000);
  kernel.limit_descriptors(1);
  CHECK(sys::socket(AF_INET, SOCK_STREAM) == -EMFILE);
  CHECK(sys::wake_open() == -EMFILE);
  CHECK(sys::accept(listener, nullptr, nullptr) == -EMFILE);
  kernel.limit_descriptors(2);
  CHECK(sys::accept(listener, nullptr, nullptr) == -EAGAIN);
}

TEST_CASE("who connects is accepted in order, errors in between") {
  ScriptedKernel kernel;
  const int listener = listen_on(7000);
  CHECK(kernel.listener() == listener);
  const int first = kernel.peer_connects(listener);
  kernel.will_fail_to_accept(listener, ENETDOWN);
  const int second = kernel.peer_connects(listener);
  sockaddr_in peer{};
  socklen_t length = sizeof peer;
  CHECK(sys::accept(listener, reinterpret_cast<sockaddr*>(&peer), &length) == first);
  CHECK(length == sizeof peer);
  CHECK(ntohs(peer.sin_port) == 50000);
  CHECK(sys::accept(listener, nullptr, nullptr) == -ENETDOWN);
  CHECK(sys::accept(listener, nullptr, nullptr) == second);
  CHECK(sys::accept(listener, nullptr, nullptr) == -EAGAIN);
}

TEST_CASE("an address somebody listens on is taken, unless both share it") {
  ScriptedKernel kernel;
  const int first = sys::socket(AF_INET, SOCK_STREAM);
  const int second = sys::socket(AF_INET, SOCK_STREAM);
  const sockaddr_in address = loopback(7000);
  const int yes = 1;
  bool shared = false;
  SUBCASE("not shared") {}
  SUBCASE("shared") {
    shared = true;
    REQUIRE(sys::set_option(first, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes) == 0);
    REQUIRE(sys::set_option(second, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes) == 0);
  }
  REQUIRE(sys::bind(first, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(sys::listen(first, 16) == 0);
  CHECK(sys::bind(second, reinterpret_cast<const sockaddr*>(&address), sizeof address) == (shared ? 0 : -EADDRINUSE));
  REQUIRE(sys::close(first) == 0);
  if (!shared) CHECK(sys::bind(second, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
}

TEST_CASE("port 0 becomes a port") {
  ScriptedKernel kernel;
  listen_on(0);
  sockaddr_in bound{};
  socklen_t length = sizeof bound;
  CHECK(sys::local_name(kernel.listener(), reinterpret_cast<sockaddr*>(&bound), &length) == 0);
  CHECK(bound.sin_port != 0);
}

TEST_CASE("a Unix listener leaves a path behind until it is unlinked") {
  ScriptedKernel kernel;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string_view("/tmp/x").copy(address.sun_path, sizeof address.sun_path);
  struct stat status {};
  CHECK(sys::path_status("/tmp/x", status) == -ENOENT);
  const int listener = sys::socket(AF_UNIX, SOCK_STREAM);
  REQUIRE(sys::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  CHECK(sys::path_status("/tmp/x", status) == 0);
  CHECK(status.st_ino != 0);
  sys::close(listener);
  CHECK(sys::bind(sys::socket(AF_UNIX, SOCK_STREAM), reinterpret_cast<const sockaddr*>(&address), sizeof address) == -EADDRINUSE);
  CHECK(kernel.paths() == std::vector<std::string>{"/tmp/x"});
  CHECK(sys::unlink("/tmp/x") == 0);
  CHECK(sys::unlink("/tmp/x") == -ENOENT);
}

TEST_CASE("a connect is in progress until the peer answers") {
  ScriptedKernel kernel;
  const int socket = sys::socket(AF_INET, SOCK_STREAM);
  const sockaddr_in address = loopback(7000);
  const auto connect = [&] { return sys::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address); };
  REQUIRE(connect() == -EINPROGRESS);
  CHECK(connect() == -EALREADY);
  CHECK(send(socket, "x") == -EAGAIN);
  sockaddr_in name{};
  socklen_t length = sizeof name;
  CHECK(sys::peer_name(socket, reinterpret_cast<sockaddr*>(&name), &length) == -ENOTCONN);
  SUBCASE("accepted") {
    kernel.peer_accepts(socket);
    CHECK(socket_error(socket) == 0);
    CHECK(sys::peer_name(socket, reinterpret_cast<sockaddr*>(&name), &length) == 0);
    CHECK(name.sin_port == htons(7000));
    CHECK(send(socket, "x") == 1);
    CHECK(connect() == -EISCONN);
  }
  SUBCASE("refused, told once") {
    kernel.peer_refuses(socket, ECONNREFUSED);
    CHECK(socket_error(socket) == ECONNREFUSED);
    CHECK(socket_error(socket) == 0);
    CHECK(receive(socket).empty());
  }
  SUBCASE("to itself") {
    kernel.reaches_itself(socket);
    sockaddr_in own{};
    CHECK(sys::local_name(socket, reinterpret_cast<sockaddr*>(&own), &length) == 0);
    CHECK(sys::peer_name(socket, reinterpret_cast<sockaddr*>(&name), &length) == 0);
    CHECK(own.sin_port == name.sin_port);
  }
}

TEST_CASE("a connect may succeed at once") {
  ScriptedKernel kernel;
  const sockaddr_in address = loopback(7000);
  kernel.will_connect_at_once();
  CHECK(sys::connect(sys::socket(AF_INET, SOCK_STREAM), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
}

TEST_CASE("a stream is handed out as the reader asks, then there is nothing") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  CHECK(receive(peer) == "EAGAIN");
  kernel.will_receive(peer, "hello ");
  kernel.will_receive(peer, "world");
  CHECK(sys::unread_bytes(peer) == 11);
  CHECK(receive(peer, 8) == "hello wo");
  CHECK(sys::unread_bytes(peer) == 3);
  CHECK(receive(peer, 8) == "rld");
  CHECK(receive(peer) == "EAGAIN");
}

TEST_CASE("an end comes behind the bytes, and stays") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  kernel.will_receive(peer, "bye");
  kernel.will_receive_end(peer);
  CHECK(receive(peer) == "bye");
  CHECK(receive(peer).empty());
  CHECK(receive(peer).empty());
}

TEST_CASE("an error is handed out once, to whoever asks first, and then looks like an orderly end") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  kernel.will_receive(peer, "data");
  kernel.peer_resets(peer);
  SUBCASE("recv, behind the bytes") {
    CHECK(receive(peer) == "data");
    CHECK(receive(peer) == "ECONNRESET");
    CHECK(socket_error(peer) == 0);
    CHECK(send(peer, "x") == -EPIPE);
  }
  SUBCASE("send, before the bytes are read") {
    CHECK(send(peer, "x") == -ECONNRESET);
    CHECK(receive(peer) == "data");
  }
  SUBCASE("SO_ERROR") {
    CHECK(socket_error(peer) == ECONNRESET);
    CHECK(receive(peer) == "data");
  }
  CHECK(receive(peer).empty());
}

TEST_CASE("hiccups, short stops and floods are served as scripted") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  kernel.will_receive_hiccup(peer, EINTR);
  kernel.will_receive(peer, "one");
  kernel.will_stop_short(peer);
  kernel.will_receive(peer, "two");
  CHECK(receive(peer) == "EINTR");
  CHECK(receive(peer) == "one");
  CHECK(receive(peer) == "two");
  CHECK(receive(peer) == "EAGAIN");
  kernel.peer_floods(peer);
  CHECK(receive(peer, 3) == "~~~");
  CHECK(receive(peer, 2) == "~~");
}

TEST_CASE("sends are taken whole, and kept for the test, also after the close") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  CHECK(send(peer, "hello ") == 6);
  std::array<char, 3> wor{'w', 'o', 'r'};
  std::array<char, 2> ld{'l', 'd'};
  const std::array<iovec, 2> pieces{iovec{wor.data(), wor.size()}, iovec{ld.data(), ld.size()}};
  CHECK(sys::send_vector(peer, pieces.data(), pieces.size()) == 5);
  CHECK(kernel.sent(peer) == "hello world");
  CHECK_FALSE(kernel.sent_end(peer));
  CHECK(sys::shutdown(peer, SHUT_WR) == 0);
  CHECK(send(peer, "x") == -EPIPE);
  sys::close(peer);
  CHECK(kernel.sent(peer) == "hello world");
  CHECK(kernel.sent_end(peer));
  CHECK(kernel.ending(peer) == Ending::orderly);
}

TEST_CASE("a peer may take little, and tells when it takes more") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int peer = accepted(kernel);
  kernel.will_take(peer, 4);
  REQUIRE(add(epoll, peer, edge) == 0);
  REQUIRE(wait(epoll).count == 1);
  CHECK(send(peer, "hello") == 4);
  CHECK(send(peer, "o") == -EAGAIN);
  CHECK(wait(epoll).count == 0);
  kernel.peer_reads(peer, 2);
  CHECK(wait(epoll).events[0].events == EPOLLOUT);
  CHECK(send(peer, "o you") == 2);
  kernel.peer_reads_all(peer);
  CHECK(send(peer, "you") == 3);
  CHECK(kernel.sent(peer) == "hello you");
}

TEST_CASE("what the peer has not acknowledged is counted, our end as one byte") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  CHECK(send(peer, "abc") == 3);
  CHECK(sys::unsent_bytes(peer) == 0);
  kernel.will_not_acknowledge(peer);
  CHECK(send(peer, "defg") == 4);
  CHECK(sys::shutdown(peer, SHUT_WR) == 0);
  CHECK(sys::unsent_bytes(peer) == 5);
  CHECK(sys::tcp_sample(peer).bytes_acked == 3);
  kernel.peer_acknowledges(peer, 5);
  CHECK(sys::unsent_bytes(peer) == 0);
  CHECK(sys::tcp_sample(peer).known);
  sys::TcpSample sample;
  sample.known = true;
  sample.retransmits = 7;
  kernel.will_sample(peer, sample);
  CHECK(sys::tcp_sample(peer).retransmits == 7);
}

TEST_CASE("closing resets if bytes are left unread, or if asked to") {
  ScriptedKernel kernel;
  const int unread = accepted(kernel);
  const int asked = accepted(kernel);
  const int orderly = accepted(kernel);
  kernel.will_receive(unread, "x");
  const linger now{1, 0};
  REQUIRE(sys::set_option(asked, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
  CHECK(kernel.ending(asked) == Ending::open);
  for (const int peer : {unread, asked, orderly}) sys::close(peer);
  CHECK(kernel.ending(unread) == Ending::reset);
  CHECK(kernel.ending(asked) == Ending::reset);
  CHECK(kernel.ending(orderly) == Ending::orderly);
}

TEST_CASE("options are remembered, and accepted connections inherit them") {
  ScriptedKernel kernel;
  const int listener = listen_on(7000);
  const int yes = 1;
  REQUIRE(sys::set_option(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0);
  const int peer = accepted(kernel);
  int value = 0;
  socklen_t length = sizeof value;
  CHECK(sys::get_option(peer, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0);
  CHECK(value == 1);
  CHECK(sys::get_option(peer, SOL_SOCKET, SO_TYPE, &value, &length) == 0);
  CHECK(value == SOCK_STREAM);
  CHECK(sys::get_option(sys::wake_open(), SOL_SOCKET, SO_TYPE, &value, &length) == -ENOTSOCK);
}

TEST_CASE("any call can be made to fail, at once or after others of its kind") {
  ScriptedKernel kernel;
  kernel.will_fail(Call::epoll_create, EMFILE);
  CHECK(sys::epoll_create() == -EMFILE);
  CHECK(sys::epoll_create() >= 0);
  kernel.will_fail(Call::wake_open, ENFILE, 1);
  CHECK(sys::wake_open() >= 0);
  CHECK(sys::wake_open() == -ENFILE);
  kernel.will_fail_any(1, [](const RecordedCall& made) { return made.call == Call::socket ? ENOBUFS : 0; });
  CHECK(sys::reserve_open() >= 0);
  CHECK(sys::socket(AF_INET, SOCK_STREAM) == -ENOBUFS);
  CHECK(sys::socket(AF_INET, SOCK_STREAM) >= 0);
}

TEST_CASE("every call is recorded with its descriptor, its answer and its instant") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  kernel.forget_calls();
  kernel.advance(2ms);
  CHECK(send(peer, "hello") == 5);
  CHECK(receive(peer) == "EAGAIN");
  REQUIRE(kernel.calls().size() == 2);
  CHECK(kernel.calls()[0].call == Call::send);
  CHECK(kernel.calls()[0].descriptor == peer);
  CHECK(kernel.calls()[0].result == 5);
  CHECK(kernel.calls()[0].size == 5);
  CHECK(kernel.calls()[0].at == kernel.now());
  CHECK(kernel.calls()[1].result == -EAGAIN);
  CHECK(kernel.names() == "send recv");
  CHECK(kernel.count(Call::recv) == 1);
  CHECK(kernel.count(Call::recv, peer + 1) == 0);
  CHECK(kernel.clock_reads() == 0);
  CHECK(sys::monotonic_now() == kernel.now());
  CHECK(kernel.clock_reads() == 1);
}

TEST_CASE("a descriptor of the test's own says what the test sets") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int own = kernel.open_descriptor();
  REQUIRE(add(epoll, own, EPOLLIN) == 0);
  CHECK(wait(epoll).count == 0);
  kernel.set_state(own, EPOLLIN);
  CHECK(wait(epoll).count == 1);
  CHECK(wait(epoll).count == 1);
  kernel.set_state(own, 0);
  CHECK(wait(epoll).count == 0);
}

TEST_CASE("what happens to a closed connection goes nowhere") {
  ScriptedKernel kernel;
  const int peer = accepted(kernel);
  kernel.after(1s, [&] {
    kernel.peer_sends(peer, "too late");
    kernel.peer_acknowledges(peer, 1);
    kernel.peer_reads(peer, 1);
    kernel.peer_resets(peer);
  });
  sys::close(peer);
  kernel.advance(2s);
  CHECK(kernel.sent(peer).empty());
}

TEST_CASE("names of interfaces and errors") {
  ScriptedKernel kernel;
  kernel.has_interface("eth0", 3);
  CHECK(sys::interface_index("eth0") == 3);
  CHECK(sys::interface_index("eth1") == 0);
  CHECK(std::string_view(sys::error_name(EPIPE)) == "EPIPE");
  CHECK(sys::random_seed() != sys::random_seed());
}

namespace {

/// A worker that waits once a turn, on a poller of its own, and tells what it saw.
struct ScriptedWorker {
  int turns_left = 1'000;
  Duration timeout{-1};
  int turns = 0;
  bool set_up = false;
  int seen = 0;          ///< events, of all turns
  bool in_turn = false;  ///< never entered twice
  std::function<void()> in_each_turn{};
  std::vector<Instant> turned_at{};
  int epoll = -1;
  int wake = -1;
  sys::WorkerHandle handle = 0;

  int start(int cpu = -1) {
    sys::Worker worker;
    worker.set_up = [](void* argument) { static_cast<ScriptedWorker*>(argument)->begin(); };
    worker.body = [](void*) { FAIL("there is no thread that could run it"); };
    worker.turn = [](void* argument) { return static_cast<ScriptedWorker*>(argument)->turn(); };
    worker.argument = this;
    worker.cpu = cpu;
    return sys::start_worker(worker, handle);
  }

  void begin() {
    set_up = true;
    epoll = sys::epoll_create();
    wake = sys::wake_open();
    REQUIRE(add(epoll, wake, EPOLLIN | EPOLLET) == 0);
  }

  bool turn() {
    CHECK_FALSE(in_turn);
    in_turn = true;
    ++turns;
    turned_at.push_back(sys::monotonic_now());
    seen += wait_on(epoll, timeout);
    if (in_each_turn) in_each_turn();
    in_turn = false;
    return --turns_left > 0;
  }

  static int wait_on(int epoll, Duration timeout) {
    std::array<epoll_event, 4> events{};
    return sys::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), timeout);
  }
};

}  // namespace

TEST_CASE("a worker is set up at once, on the thread of its starter, and turned only when somebody would sleep") {
  ScriptedKernel kernel;
  ScriptedWorker worker;
  const int epoll = sys::epoll_create();
  REQUIRE(worker.start() == 0);
  CHECK(worker.set_up);
  CHECK(worker.turns == 0);
  CHECK(ScriptedWorker::wait_on(epoll, 0ns) == 0);
  CHECK(worker.turns == 0);
  CHECK(ScriptedWorker::wait_on(epoll, 5ms) == 0);
  CHECK(worker.turns == 1);
  CHECK(kernel.workers() == 1);
}

TEST_CASE("a started worker that fails was never set up") {
  ScriptedKernel kernel;
  ScriptedWorker worker;
  kernel.will_fail(Call::start_worker, EAGAIN);
  CHECK(worker.start() == -EAGAIN);
  CHECK_FALSE(worker.set_up);
  CHECK(kernel.workers() == 0);
}

TEST_CASE("workers that wake each other have their turns before time passes") {
  ScriptedKernel kernel;
  const int epoll = sys::epoll_create();
  const int own_wake = sys::wake_open();
  REQUIRE(add(epoll, own_wake, EPOLLIN | EPOLLET) == 0);
  ScriptedWorker first, second;
  REQUIRE(first.start() == 0);
  REQUIRE(second.start() == 0);
  first.in_each_turn = [&] {
    if (first.seen == 1 && second.seen == 0) sys::wake_signal(second.wake);
  };
  second.in_each_turn = [&] {
    if (second.seen == 1) sys::wake_signal(own_wake);
  };
  const Instant began = kernel.now();
  sys::wake_signal(first.wake);
  CHECK(ScriptedWorker::wait_on(epoll, 1s) == 1);
  CHECK(first.seen == 1);
  CHECK(second.seen == 1);
  CHECK(kernel.now() == began);
}

TEST_CASE("a worker is turned again at the instant its wait would have ended") {
  ScriptedKernel kernel;
  const Instant began = kernel.now();
  ScriptedWorker worker{.timeout = 3ms};
  REQUIRE(worker.start() == 0);
  CHECK(ScriptedWorker::wait_on(sys::epoll_create(), 10ms) == 0);
  CHECK(worker.turned_at == std::vector<Instant>{began, began + 3ms, began + 6ms, began + 9ms});
  CHECK(kernel.now() == began + 10ms);
}

TEST_CASE("a callback of a worker that sleeps itself lets the others turn and is not entered again") {
  ScriptedKernel kernel;
  ScriptedWorker sleeper{.turns_left = 1}, other{.timeout = 1ms};
  const int silent = kernel.open_descriptor();
  sleeper.in_each_turn = [&] {
    pollfd entry{silent, POLLIN, 0};
    CHECK(sys::poll(&entry, 1, 5ms) == 0);
  };
  REQUIRE(sleeper.start() == 0);
  REQUIRE(other.start() == 0);
  const Instant began = kernel.now();
  CHECK(kernel.turn_workers());
  CHECK(kernel.now() == began + 5ms);
  CHECK(sleeper.turns == 1);
  CHECK(other.turns >= 5);
}

TEST_CASE("joining a worker turns it until it is over, and one that can never be over is a mistake that is told") {
  ScriptedKernel kernel;
  ScriptedWorker ends{.turns_left = 3, .timeout = 1ms}, sleeps_for_ever;
  REQUIRE(ends.start() == 0);
  REQUIRE(sleeps_for_ever.start() == 0);
  CHECK(sys::join_worker(ends.handle) == 0);
  CHECK(ends.turns == 3);
  CHECK(sys::join_worker(ends.handle) == -ESRCH);
  CHECK(sys::join_worker(sleeps_for_ever.handle) == -EDEADLK);
  sleeps_for_ever.in_each_turn = [&] { CHECK(sys::join_worker(sleeps_for_ever.handle) == -EDEADLK); };
  sleeps_for_ever.turns_left = 1;
  CHECK(sys::join_worker(sleeps_for_ever.handle) == 0);
  CHECK(kernel.workers() == 0);
}

TEST_CASE("time passes although a worker never sleeps") {
  ScriptedKernel kernel;
  const Instant began = kernel.now();
  ScriptedWorker busy{.turns_left = 1'000'000, .timeout = 0ns};
  REQUIRE(busy.start() == 0);
  CHECK(ScriptedWorker::wait_on(sys::epoll_create(), 1ms) == 0);
  CHECK(kernel.now() == began + 1ms);
}

TEST_CASE("a process may use the CPUs the script says") {
  ScriptedKernel kernel;
  std::array<int, 4> cpus{};
  CHECK(sys::usable_cpus(cpus.data(), cpus.size()) == 2);
  kernel.has_cpus({3, 5, 7});
  CHECK(sys::usable_cpus(cpus.data(), 2) == 3);
  CHECK(cpus == std::array<int, 4>{3, 5, 0, 0});
  ScriptedWorker pinned;
  REQUIRE(pinned.start(5) == 0);
  CHECK(kernel.cpus_of_workers() == std::vector<int>{5});
}
