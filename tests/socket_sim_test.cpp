// The calls of level 0 in a simulated world: IPv6, what a socket is asked, and what misuse is answered.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "sys/simulated/scripted_kernel.hpp"
#include "sys/sys.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::World;

namespace {

Address address_of(const char* text) {
  const auto address = Address::parse(text);
  REQUIRE(address);
  return *address;
}

Socket listening_on(const char* text, const ListenSocketOptions& options = {}) {
  auto listener = listen_on(address_of(text), options);
  if (!listener) FAIL(describe(listener.error()));
  return std::move(*listener);
}

Bytes bytes_of(std::string_view text) { return Bytes(reinterpret_cast<const std::byte*>(text.data()), text.size()); }

int option_of(int descriptor, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  CHECK(sys::get_option(descriptor, SOL_SOCKET, name, &value, &length) == 0);
  return value;
}

}  // namespace

TEST_SUITE_BEGIN("world");

TEST_CASE("every outcome of a socket's call has its name") {
  CHECK(std::string(to_string(ReceiveOutcome::failed)) == "failed");
  CHECK(std::string(to_string(ReceiveOutcome::data)) == "data");
  CHECK(std::string(to_string(SendOutcome::no_room)) == "no_room");
  CHECK(std::string(to_string(AcceptOutcome::none_waiting)) == "none_waiting");
  CHECK(std::string(to_string(ConnectOutcome::unreachable)) == "unreachable");
  CHECK(connect_origin(EINPROGRESS) == Origin::local);
}

TEST_CASE("a world's hosts have IPv6 too: both ends see each other's address") {
  World world({.address = "fd00::1"});
  bool traced = false;
  world.trace([&](std::string_view line) { traced = traced || line.find("[fd00::2]:4000") != line.npos; });
  Socket listener = listening_on("[fd00::1]:7000");
  Peer& peer = world.host("fd00::2").connect("[fd00::1]:7000", 4000);
  Accepted accepted = accept_within(listener, 1s);
  REQUIRE(accepted.outcome == AcceptOutcome::accepted);
  CHECK(accepted.peer.to_string() == "[fd00::2]:4000");
  CHECK(peer_address(accepted.socket.descriptor())->to_string() == "[fd00::2]:4000");
  CHECK(local_address(accepted.socket.descriptor())->to_string() == "[fd00::1]:7000");
  CHECK(send_within(accepted.socket, bytes_of("hello"), 1s).outcome == SendOutcome::sent);
  world.run_for(1s);
  CHECK(peer.received() == "hello");
  CHECK(traced);
  world.trace({});

  auto nowhere = open_socket(Address::Family::ipv4);  // this host has no such address to come from
  REQUIRE(nowhere);
  CHECK(connect_within(*nowhere, address_of("10.0.0.9:80"), 1s).error.code == ENETUNREACH);
}

TEST_CASE("a world's listeners share a port where their addresses differ, and refuse it where they don't") {
  World world;
  world.local().add_address("fd00::1");
  Socket one = listening_on("10.0.0.1:7000");
  CHECK(listen_on(address_of("10.0.0.1:7000")).error().code == EADDRINUSE);
  CHECK(listen_on(address_of("0.0.0.0:7000")).error().code == EADDRINUSE);
  CHECK(listen_on(address_of("[fd00::1]:7000")));
  CHECK(listen_on(address_of("[::]:7000"), {.v6_only = false}).error().code == EADDRINUSE);
  CHECK(listen(one, 1));  // once more: another queue's length
}

TEST_CASE("a world's socket is asked what it is, and tells") {
  World world;
  Socket listener = listening_on("10.0.0.1:7000", {.socket = {.send_buffer_bytes = 4096, .receive_buffer_bytes = 8192}});
  const int descriptor = listener.descriptor();
  CHECK(option_of(descriptor, SO_TYPE) == SOCK_STREAM);
  CHECK(option_of(descriptor, SO_DOMAIN) == AF_INET);
  CHECK(option_of(descriptor, SO_ACCEPTCONN) == 1);
  CHECK(option_of(descriptor, SO_SNDBUF) >= 4096);
  CHECK(option_of(descriptor, SO_RCVBUF) >= 8192);
  CHECK(option_of(descriptor, SO_REUSEADDR) == 1);
  CHECK(set_nonblocking(descriptor));
  CHECK(sys::set_status_flags(descriptor, O_NONBLOCK) == 0);
  CHECK((sys::status_flags(descriptor) & O_NONBLOCK) != 0);
}

TEST_CASE("a world's connect asked again answers as the kernel does, also after it was refused") {
  World world;
  world.host("10.0.0.2").listen(80, [](Peer&) {});
  auto socket = open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  CHECK(connect(*socket, address_of("10.0.0.2:81")).outcome == ConnectOutcome::in_progress);
  CHECK(connect(*socket, address_of("10.0.0.2:81")).outcome == ConnectOutcome::in_progress);
  world.run_for(1s);
  CHECK(connect(socket->descriptor(), address_of("10.0.0.2:81")).outcome == ConnectOutcome::rejected);
  auto another = open_socket(Address::Family::ipv4);
  REQUIRE(another);
  CHECK(connect(*another, address_of("10.0.0.2:80")).outcome == ConnectOutcome::in_progress);
  world.run_for(1s);
  CHECK(connect(*another, address_of("10.0.0.2:80")).outcome == ConnectOutcome::accepted);
  sockaddr name{};
  name.sa_family = AF_INET6;
  auto third = open_socket(Address::Family::ipv4);
  REQUIRE(third);
  CHECK(sys::connect(third->descriptor(), &name, sizeof name) == -EAFNOSUPPORT);
}

TEST_CASE("accept skips what the network did to those that waited, and gives up after many for this once") {
  World world;
  Socket listener = listening_on("10.0.0.1:7000");
  world.host("10.0.0.2").connect("10.0.0.1:7000");
  world.run_for(1s);
  world.set_chance(sim::Fault::accept_error, 1);  // it stays in the queue
  CHECK(accept(listener).outcome == AcceptOutcome::none_waiting);
  CHECK(world.count(sim::Fault::accept_error) > 1);
  world.set_chance(sim::Fault::accept_error, 0);
  CHECK(accept(listener).outcome == AcceptOutcome::accepted);
}

TEST_CASE("a world's new connection takes the place of one that waits for old segments to die out") {
  World world;
  Socket listener = listening_on("10.0.0.1:7000");
  for (int round = 0; round < 3; ++round) {
    Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000", 4000);
    Accepted accepted = accept_within(listener, 1s);
    REQUIRE(accepted.outcome == AcceptOutcome::accepted);
    const std::uint64_t life = world.life(accepted.socket.descriptor());
    accepted.socket.close();  // this side is first, and so waits
    world.run_for(1s);
    CHECK(peer.finished());
    peer.close();
    world.run_for(1s);
    CHECK(world.peer_of(life) == &peer);
    CHECK(peer.error() == 0);
  }
}

TEST_CASE("a world resets what comes for a socket of which both halves are shut") {
  World world;
  Socket listener = listening_on("10.0.0.1:7000");
  Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
  Accepted accepted = accept_within(listener, 1s);
  REQUIRE(accepted.outcome == AcceptOutcome::accepted);
  CHECK(sys::shutdown(accepted.socket.descriptor(), SHUT_RDWR) == 0);
  world.run_for(1s);
  peer.send("nobody reads this");
  world.run_for(1s);
  CHECK(peer.error() == EPIPE);  // the end came first
}

TEST_CASE("a world in which nothing will ever happen passes the time all the same") {
  World world;
  const Instant began = world.now();
  CHECK_FALSE(world.run_until([] { return false; }, 3s));
  CHECK(world.now() - began == 3s);
}

TEST_CASE("a world has no files, one interface and two processors") {
  World world;
  struct stat status {};
  CHECK(sys::path_status("/tmp", status) == -ENOENT);
  CHECK(sys::unlink("/tmp") == -ENOENT);
  CHECK(sys::interface_index("lo") == 1);
  CHECK(sys::interface_index("eth7") == 0);
  int cpus[4] = {-1, -1, -1, -1};
  CHECK(sys::usable_cpus(cpus, 4) == 2);
  CHECK(cpus[1] == 1);
  CHECK(cpus[2] == -1);
}

TEST_CASE("a world counts the calls on descriptors that are not open, or are something else") {
  World world;
  constexpr int none = 4711;
  epoll_event event{};
  CHECK(sys::epoll_wait(none, &event, 1, Duration{}) == -EBADF);
  CHECK(sys::epoll_control(none, EPOLL_CTL_ADD, none, &event) == -EBADF);
  CHECK(sys::wake_signal(none) == -EBADF);
  CHECK(sys::signal_take(none) == -EBADF);
  CHECK(sys::status_flags(none) == -EBADF);
  CHECK(sys::set_status_flags(none, 0) == -EBADF);
  CHECK(world.calls_on_closed() >= 3);

  const int epoll = sys::epoll_create();
  auto socket = open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  event.events = EPOLLIN;
  constexpr int no_operation = 99;
  CHECK(sys::epoll_control(epoll, EPOLL_CTL_ADD, socket->descriptor(), &event) == 0);
  CHECK(sys::epoll_control(epoll, no_operation, socket->descriptor(), &event) == -EINVAL);
  CHECK(sys::epoll_control(epoll, EPOLL_CTL_ADD, epoll, &event) == -EINVAL);
  pollfd entry{socket->descriptor(), POLLIN, 0};
  CHECK(sys::poll(&entry, 1, Duration{}) == 1);
  CHECK(entry.revents == POLLHUP);  // neither connected nor listening
  world.set_chance(sim::Fault::no_buffers, 1);
  const int refused = sys::epoll_control(epoll, EPOLL_CTL_ADD, socket->descriptor(), &event);
  CHECK((refused == -ENOMEM || refused == -ENOSPC));
  world.set_chance(sim::Fault::no_buffers, 0);
  pollfd nothing{epoll, POLLIN, 0};
  CHECK(sys::poll(&nothing, 1, Duration{}) == 0);
  CHECK(sys::close(epoll) == 0);
}

TEST_CASE("a scripted kernel's socket is asked what it is, and tells") {
  sys::ScriptedKernel kernel;
  {
    Socket listener = listening_on("[::1]:7000");
    const int descriptor = listener.descriptor();
    CHECK(option_of(descriptor, SO_DOMAIN) == AF_INET6);
    CHECK(option_of(descriptor, SO_ACCEPTCONN) == 1);
    CHECK((sys::status_flags(descriptor) & O_NONBLOCK) != 0);
    CHECK(sys::set_status_flags(descriptor, O_NONBLOCK) == 0);
    (void)kernel.peer_connects(kernel.listener());
    const Accepted accepted = accept(listener);
    REQUIRE(accepted.outcome == AcceptOutcome::accepted);
    CHECK(accepted.peer.family() == Address::Family::ipv6);
    CHECK(peer_address(accepted.socket.descriptor())->to_string() == accepted.peer.to_string());
    kernel.peer_sends_urgent_mark(accepted.socket.descriptor());
    kernel.peer_sends(accepted.socket.descriptor(), "x");
    char byte = 0;
    CHECK(sys::recv(accepted.socket.descriptor(), &byte, 1) == 1);
    CHECK(byte == 'x');
    const int epoll = sys::epoll_create();
    pollfd nothing{epoll, POLLIN, 0};
    CHECK(sys::poll(&nothing, 1, Duration{}) == 0);
    CHECK(sys::close(epoll) == 0);
    auto fresh = open_socket(Address::Family::ipv4);
    REQUIRE(fresh);
    CHECK(local_address(fresh->descriptor())->port() == 0);
    CHECK(peer_address(fresh->descriptor()).error().code == ENOTCONN);
    pollfd entry{fresh->descriptor(), POLLIN, 0};
    CHECK(sys::poll(&entry, 1, Duration{}) == 1);
    CHECK(entry.revents == POLLHUP);
  }
  CHECK(kernel.open_descriptors().empty());
}

TEST_SUITE_END();
