#include "vigil/socket.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "socket_calls.hpp"
#include "support/loopback.hpp"
#include "support/network_namespace.hpp"

#ifndef TCP_SYNCNT  // the seam may have brought linux/tcp.h, which netinet/tcp.h collides with
#include <netinet/tcp.h>
#endif

namespace {

using namespace std::chrono_literals;
using vigil::Accepted;
using vigil::AcceptOutcome;
using vigil::Address;
using vigil::Connected;
using vigil::ConnectOutcome;
using vigil::Deadline;
using vigil::Error;
using vigil::Origin;
using vigil::Received;
using vigil::ReceiveOutcome;
using vigil::SendOutcome;
using vigil::Sent;
using vigil::Socket;
using vigil::Timeout;
namespace test = vigil::test;

using Storage = std::array<std::byte, 4096>;
constexpr Timeout patience = std::chrono::milliseconds(test::patience_ms);

std::string text(const Storage& storage, std::size_t size) { return std::string(vigil::Bytes(storage).first(size).text()); }

class Stopwatch {
 public:
  [[nodiscard]] std::chrono::nanoseconds elapsed() const { return std::chrono::steady_clock::now() - start_; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// A bare descriptor somebody else opened, closed at the end.
struct Foreign {
  explicit Foreign(int opened) : descriptor(opened) { REQUIRE(descriptor >= 0); }
  ~Foreign() { ::close(descriptor); }
  Foreign(const Foreign&) = delete;
  Foreign& operator=(const Foreign&) = delete;
  int descriptor;
};

struct ForeignPair {
  explicit ForeignPair(int type) {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, type, 0, ends.data()) == 0);
    near = ends[0];
    far = ends[1];
  }
  ~ForeignPair() {
    ::close(near);
    if (far >= 0) ::close(far);
  }
  ForeignPair(const ForeignPair&) = delete;
  ForeignPair& operator=(const ForeignPair&) = delete;
  void close_far() { ::close(std::exchange(far, -1)); }
  int near = -1;
  int far = -1;
};

void write_text(int descriptor, std::string_view bytes) {
  REQUIRE(vigil::send_within(descriptor, bytes, patience).outcome == SendOutcome::sent);
}

/// Takes everything the kernel will take now.
void fill(int descriptor) {
  const std::vector<std::byte> plenty(1 << 20);
  while (vigil::send(descriptor, plenty).outcome == SendOutcome::sent) {
  }
}

std::string unique_name(const char* name) { return std::string("vigil-test-") + name + '-' + std::to_string(::getpid()); }

// Receiving ---------------------------------------------------------------------------------------------------------------

TEST_CASE("a receive that does not wait tells no data, data, and the peer's end apart") {
  auto [near, far] = test::tcp_pair();
  Storage storage;

  CHECK(vigil::receive(near, storage).outcome == ReceiveOutcome::no_data);
  write_text(far.descriptor(), "hello");
  REQUIRE(test::wait_for_unread(near.descriptor(), 5));
  const Received data = vigil::receive(near, storage);
  CHECK(data.outcome == ReceiveOutcome::data);
  CHECK(text(storage, data.bytes) == "hello");
  far.close();
  REQUIRE(test::wait_for(near.descriptor(), POLLIN));
  CHECK(vigil::receive(near, storage).outcome == ReceiveOutcome::finished);
}

TEST_CASE("a receive that waits tells data, its timeout, and the peer's end apart") {
  auto [near, far] = test::tcp_pair();
  Storage storage;

  write_text(far.descriptor(), "hello");
  const Received data = vigil::receive_within(near, storage, patience);
  CHECK(data.outcome == ReceiveOutcome::data);
  CHECK(text(storage, data.bytes) == "hello");
  const Received late = vigil::receive_within(near, storage, 5ms);
  CHECK(late.outcome == ReceiveOutcome::timed_out);
  CHECK(late.bytes == 0);
  CHECK(late.error.code == 0);
  far.close();
  CHECK(vigil::receive_within(near, storage, patience).outcome == ReceiveOutcome::finished);
}

TEST_CASE("a reset is told after the data before it, and for ever") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  write_text(far.descriptor(), "last words");
  REQUIRE(test::wait_for_unread(near.descriptor(), 10));
  test::reset(far);
  REQUIRE(test::wait_for(near.descriptor(), POLLHUP));

  const Received data = vigil::receive_within(near, storage, patience);
  const Received first = vigil::receive_within(near, storage, patience);
  const Received second = vigil::receive(near, storage);
  const Sent sent = vigil::send(near, "anybody?");

  CHECK(data.outcome == ReceiveOutcome::data);
  CHECK(text(storage, data.bytes) == "last words");
  CHECK(first.outcome == ReceiveOutcome::failed);
  CHECK(first.error == Error{"receive", ECONNRESET, ""});
  CHECK(second.outcome == ReceiveOutcome::failed);
  CHECK(second.error == Error{"receive", ECONNRESET, ""});
  CHECK(sent.outcome == SendOutcome::failed);
  CHECK(sent.error == Error{"send", ECONNRESET, ""});
}

TEST_CASE("a reset that a send was told of is no orderly end for the receive after it") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  write_text(far.descriptor(), "last words");
  REQUIRE(test::wait_for_unread(near.descriptor(), 10));
  test::reset(far);
  REQUIRE(test::wait_for(near.descriptor(), POLLHUP));

  const Sent sent = vigil::send(near, "anybody?");
  const Received data = vigil::receive(near, storage);
  const Received end = vigil::receive(near, storage);

  CHECK(sent.error == Error{"send", ECONNRESET, ""});
  CHECK(data.outcome == ReceiveOutcome::data);
  CHECK(data.bytes == 10);
  CHECK(end.outcome == ReceiveOutcome::failed);
  CHECK(end.error == Error{"receive", ECONNRESET, ""});
}

TEST_CASE("on a bare descriptor the kernel tells a reset once and then calls it an orderly end") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  test::reset(far);
  REQUIRE(test::wait_for(near.descriptor(), POLLHUP));

  const Received first = vigil::receive(near.descriptor(), storage);
  const Received second = vigil::receive(near.descriptor(), storage);

  CHECK(first.error == Error{"receive", ECONNRESET, ""});
  CHECK(second.outcome == ReceiveOutcome::finished);
}

TEST_CASE("a reset after the peer's end leaves an orderly end to receive and a broken pipe to send") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  far.close();
  REQUIRE(test::wait_for(near.descriptor(), POLLRDHUP));
  write_text(near.descriptor(), "too late");  // draws the reset
  REQUIRE(test::wait_for(near.descriptor(), POLLHUP));

  const Sent sent = vigil::send(near, "anybody?");
  const Received received = vigil::receive(near, storage);

  CHECK(sent.outcome == SendOutcome::failed);
  CHECK(sent.error == Error{"send", EPIPE, ""});
  CHECK(received.outcome == ReceiveOutcome::finished);
}

TEST_CASE("the peer's end is told again and again, and sending goes on") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  REQUIRE(::shutdown(far.descriptor(), SHUT_WR) == 0);

  CHECK(vigil::receive_within(near, storage, patience).outcome == ReceiveOutcome::finished);
  CHECK(vigil::receive_within(near, storage, patience).outcome == ReceiveOutcome::finished);
  CHECK(vigil::send(near, "still here").outcome == SendOutcome::sent);
  CHECK(vigil::receive_within(far, storage, patience).bytes == 10);
}

TEST_CASE("the kernel's own timeout is a failure with ETIMEDOUT, never timed_out") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace network;
  const auto inside = network.enter();
  auto [near, far] = test::tcp_pair();
  REQUIRE(vigil::apply(near.descriptor(), {.user_timeout = 20ms}, true));
  network.run("ip link set lo down");
  Storage storage;

  write_text(near.descriptor(), "nobody gets this");
  const Received received = vigil::receive_within(near, storage, patience);

  CHECK(received.outcome == ReceiveOutcome::failed);
  CHECK(received.error == Error{"receive", ETIMEDOUT, ""});
  CHECK(vigil::receive(near, storage).error == Error{"receive", ETIMEDOUT, ""});
}

TEST_CASE("a blocking socket that somebody else opened is waited on no longer than asked") {
  ForeignPair pair(SOCK_STREAM);
  Storage storage;

  CHECK(vigil::receive(pair.near, storage).outcome == ReceiveOutcome::no_data);
  CHECK(vigil::receive_within(pair.near, storage, 5ms).outcome == ReceiveOutcome::timed_out);
  write_text(pair.far, "hello");
  CHECK(vigil::receive_within(pair.near, storage, patience).bytes == 5);
  fill(pair.near);
  CHECK(vigil::send(pair.near, "more").outcome == SendOutcome::no_room);
  CHECK(vigil::send_within(pair.near, "more", 5ms).outcome == SendOutcome::timed_out);
  pair.close_far();
  // The far end left unread bytes behind, which a Unix socket tells as a reset; the peer's end follows.
  CHECK(vigil::receive_within(pair.near, storage, patience).error == Error{"receive", ECONNRESET, ""});
  CHECK((::fcntl(pair.near, F_GETFL) & O_NONBLOCK) == 0);
}

TEST_CASE("a foreign non-blocking socket works the same") {
  ForeignPair pair(SOCK_STREAM | SOCK_NONBLOCK);
  Storage storage;

  CHECK(vigil::receive(pair.near, storage).outcome == ReceiveOutcome::no_data);
  CHECK(vigil::receive_within(pair.near, storage, 5ms).outcome == ReceiveOutcome::timed_out);
  pair.close_far();
  CHECK(vigil::receive_within(pair.near, storage, patience).outcome == ReceiveOutcome::finished);
}

TEST_CASE("an adopted blocking socket is received from as any other") {
  ForeignPair pair(SOCK_STREAM);
  Socket adopted = Socket::adopt(std::exchange(pair.far, -1));
  Storage storage;

  CHECK(vigil::receive(adopted, storage).outcome == ReceiveOutcome::no_data);
  CHECK(vigil::receive_within(adopted, storage, 5ms).outcome == ReceiveOutcome::timed_out);
  write_text(pair.near, "hello");
  CHECK(vigil::receive_within(adopted, storage, patience).outcome == ReceiveOutcome::data);
}

TEST_CASE("an empty datagram is data, not an end") {
  ForeignPair pair(SOCK_DGRAM);
  Socket near = Socket::adopt(std::exchange(pair.far, -1));
  Storage storage;
  REQUIRE(::send(pair.near, "", 0, 0) == 0);
  REQUIRE(::send(pair.near, "abc", 3, 0) == 3);

  const Received empty = vigil::receive(near, storage);
  const Received next = vigil::receive(near, storage);

  CHECK(empty.outcome == ReceiveOutcome::data);
  CHECK(empty.bytes == 0);
  CHECK(next.bytes == 3);
  CHECK(vigil::receive(near, storage).outcome == ReceiveOutcome::no_data);
}

TEST_CASE("a datagram socket outlives an error") {
  const Foreign closed(::socket(AF_INET, SOCK_DGRAM, 0));
  const auto target = vigil::resolve(test::loopback(), "bind");
  REQUIRE(::bind(closed.descriptor, target->get(), target->length) == 0);
  const Address reader = *vigil::local_address(closed.descriptor);
  Socket socket = Socket::adopt(::socket(AF_INET, SOCK_DGRAM, 0));
  const auto peer = vigil::resolve(test::loopback(1), "connect");  // nobody's port
  REQUIRE(::connect(socket.descriptor(), peer->get(), peer->length) == 0);
  Storage storage;

  CHECK(vigil::send(socket, "knock").outcome == SendOutcome::sent);
  CHECK(vigil::receive_within(socket, storage, patience).error == Error{"receive", ECONNREFUSED, ""});
  CHECK(vigil::receive(socket, storage).outcome == ReceiveOutcome::no_data);
  const auto other = vigil::resolve(reader, "connect");
  REQUIRE(::connect(socket.descriptor(), other->get(), other->length) == 0);
  CHECK(vigil::send(socket, "hello").outcome == SendOutcome::sent);
  CHECK(vigil::receive_within(closed.descriptor, storage, patience).bytes == 5);
}

TEST_CASE("an urgent byte loses none of the data around it") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  write_text(far.descriptor(), "before");
  REQUIRE(::send(far.descriptor(), "!", 1, MSG_OOB) == 1);
  write_text(far.descriptor(), "behind");
  far.close();

  std::string all;
  Received received = vigil::receive_within(near, storage, patience);
  for (; received.outcome == ReceiveOutcome::data; received = vigil::receive_within(near, storage, patience))
    all += text(storage, received.bytes);

  CHECK(all == "beforebehind");
  CHECK(received.outcome == ReceiveOutcome::finished);
}

TEST_CASE("a receive after our own shutdown of the receiving side is finished") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  REQUIRE(::shutdown(near.descriptor(), SHUT_RD) == 0);

  CHECK(vigil::receive(near, storage).outcome == ReceiveOutcome::finished);
}

TEST_CASE("a timeout of 0 asks once, as the call that never waits") {
  auto [near, far] = test::tcp_pair();
  Storage storage;

  CHECK(vigil::receive_within(near, storage, 0s).outcome == ReceiveOutcome::no_data);
  write_text(far.descriptor(), "x");
  REQUIRE(test::wait_for_unread(near.descriptor(), 1));
  CHECK(vigil::receive_within(near, storage, 0s).outcome == ReceiveOutcome::data);
  fill(near.descriptor());
  CHECK(vigil::send_within(near, "x", 0s).outcome == SendOutcome::no_room);
}

TEST_CASE("a timeout is never early") {
  auto [near, far] = test::tcp_pair();
  Storage storage;

  for (const auto timeout : {1ns, 999'999ns, 1'000'001ns, 12'345'678ns}) {
    const Stopwatch stopwatch;
    CHECK(vigil::receive_within(near, storage, timeout).outcome == ReceiveOutcome::timed_out);
    CHECK(stopwatch.elapsed() >= timeout);
  }
}

std::atomic<int> interruptions = 0;

TEST_CASE("a storm of signals neither ends a wait early nor makes it fail") {
  struct sigaction counting {};
  counting.sa_handler = [](int) { ++interruptions; };  // without SA_RESTART
  struct sigaction before {};
  REQUIRE(::sigaction(SIGUSR1, &counting, &before) == 0);
  sigevent to_this_process{};
  to_this_process.sigev_notify = SIGEV_SIGNAL;
  to_this_process.sigev_signo = SIGUSR1;
  timer_t timer{};
  REQUIRE(::timer_create(CLOCK_MONOTONIC, &to_this_process, &timer) == 0);
  const itimerspec every_millisecond{{0, 1'000'000}, {0, 1'000'000}};
  REQUIRE(::timer_settime(timer, 0, &every_millisecond, nullptr) == 0);
  auto [near, far] = test::tcp_pair();
  Storage storage;
  interruptions = 0;

  const Stopwatch stopwatch;
  const Received received = vigil::receive_within(near, storage, 50ms);
  const auto elapsed = stopwatch.elapsed();

  ::timer_delete(timer);
  ::sigaction(SIGUSR1, &before, nullptr);
  CHECK(received.outcome == ReceiveOutcome::timed_out);
  CHECK(elapsed >= 50ms);
  CHECK(interruptions > 0);
}

// Timeouts ----------------------------------------------------------------------------------------------------------------

TEST_CASE("a socket takes the process's timeouts when it is made and keeps them") {
  const test::ProcessTimeouts process;
  auto [near, far] = test::tcp_pair();

  process.set(Deadline::receive, 3s);
  const Socket later;

  CHECK(near.timeouts().receive.is_never());
  CHECK(later.timeouts().receive == Timeout(3s));
  CHECK(later.timeouts().drain == Timeout(5s));
}

TEST_CASE("a kind a socket's timeouts leave out is the process's of when it was made") {
  const test::ProcessTimeouts process;
  process.set(Deadline::receive, 3s);
  process.set(Deadline::send, 4s);
  Socket socket;
  process.set(Deadline::receive, 5s);

  REQUIRE(socket.set_timeouts({.send = 1s}));
  CHECK(socket.timeouts().receive == Timeout(3s));
  CHECK(socket.timeouts().send == Timeout(1s));
  REQUIRE(socket.set_timeouts({}));
  CHECK(socket.timeouts().send == Timeout(4s));
}

TEST_CASE("a socket's timeouts out of range are refused and change nothing") {
  Socket socket;
  REQUIRE(socket.set_timeouts({.receive = 1s}));

  const auto refused = socket.set_timeouts({.connect = 2s, .receive = -1s});

  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"set_timeouts", EINVAL, ""});
  CHECK(socket.timeouts().receive == Timeout(1s));
  CHECK(socket.timeouts().connect.is_never());
}

TEST_CASE("without an argument a wait uses the socket's own timeout") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  REQUIRE(near.set_timeouts({.accept = 3ms, .receive = 4ms, .send = 5ms}));
  Socket listener = test::listening();
  REQUIRE(listener.set_timeouts({.accept = 3ms}));

  CHECK(vigil::receive_within(near, storage).outcome == ReceiveOutcome::timed_out);
  fill(near.descriptor());
  CHECK(vigil::send_within(near, "x").outcome == SendOutcome::timed_out);
  CHECK(vigil::accept_within(listener).outcome == AcceptOutcome::timed_out);
}

TEST_CASE("a bare descriptor reads the process's timeout at the call") {
  const test::ProcessTimeouts process;
  auto [near, far] = test::tcp_pair();
  Storage storage;
  const Socket listener = test::listening();
  process.set(Deadline::receive, 4ms);
  process.set(Deadline::send, 5ms);
  process.set(Deadline::accept, 3ms);

  CHECK(vigil::receive_within(near.descriptor(), storage).outcome == ReceiveOutcome::timed_out);
  fill(near.descriptor());
  CHECK(vigil::send_within(near.descriptor(), "x").outcome == SendOutcome::timed_out);
  CHECK(vigil::accept_within(listener.descriptor()).outcome == AcceptOutcome::timed_out);
}

TEST_CASE("an absurd timeout is the caller's error in every call that waits") {
  auto [near, far] = test::tcp_pair();
  Socket listener = test::listening();
  Storage storage;
  write_text(far.descriptor(), "not taken");

  for (const Timeout timeout : {Timeout(-1ns), Timeout(std::chrono::hours::max()), Timeout(vigil::longest_timeout + 1ns),
                                Timeout(std::chrono::duration<double>(-1e300))}) {
    CHECK(vigil::receive_within(near, storage, timeout).error == Error{"receive", EINVAL, ""});
    CHECK(vigil::send_within(near, "x", timeout).error == Error{"send", EINVAL, ""});
    CHECK(vigil::accept_within(listener, timeout).error == Error{"accept", EINVAL, ""});
    CHECK(vigil::connect_within(near, test::loopback(1), timeout).error == Error{"connect", EINVAL, ""});
  }
  CHECK(vigil::receive_within(near, storage, patience).bytes == 9);
}

// Sending -----------------------------------------------------------------------------------------------------------------

TEST_CASE("a send that does not wait takes what fits and then has no room") {
  auto [near, far] = test::tcp_pair();
  const std::vector<std::byte> plenty(64 << 20);

  const Sent first = vigil::send(near, plenty);
  fill(near.descriptor());

  CHECK(first.outcome == SendOutcome::sent);
  CHECK(first.bytes > 0);
  CHECK(first.bytes < plenty.size());
  CHECK(vigil::send(near, "x").outcome == SendOutcome::no_room);
}

TEST_CASE("a send that waits says at its timeout how much was taken") {
  auto [near, far] = test::tcp_pair();
  const std::vector<std::byte> plenty(64 << 20);

  const Sent sent = vigil::send_within(near, plenty, 20ms);

  CHECK(sent.outcome == SendOutcome::timed_out);
  CHECK(sent.error.code == 0);
  CHECK(sent.bytes > 0);
  CHECK(sent.bytes < plenty.size());
}

TEST_CASE("a send to a peer that went away raises no signal") {
  auto [near, far] = test::tcp_pair();
  test::reset(far);
  REQUIRE(test::wait_for(near.descriptor(), POLLHUP));
  Storage storage;
  CHECK(vigil::receive(near.descriptor(), storage).error.code == ECONNRESET);

  const Sent sent = vigil::send(near.descriptor(), "anybody?");

  CHECK(sent.outcome == SendOutcome::failed);
  CHECK(sent.error == Error{"send", EPIPE, ""});
}

// Accepting ---------------------------------------------------------------------------------------------------------------

TEST_CASE("an accept tells nobody, its timeout, and a connection apart") {
  Socket listener = test::listening();

  CHECK(vigil::accept(listener).outcome == AcceptOutcome::none_waiting);
  CHECK(vigil::accept_within(listener, 0s).outcome == AcceptOutcome::none_waiting);
  CHECK(vigil::accept_within(listener, 5ms).outcome == AcceptOutcome::timed_out);
  const Socket client = test::connected_to(test::address_of(listener));
  const Accepted accepted = vigil::accept_within(listener, patience);

  REQUIRE(accepted.outcome == AcceptOutcome::accepted);
  CHECK(accepted.peer == test::address_of(client));
  CHECK((::fcntl(accepted.socket.descriptor(), F_GETFL) & O_NONBLOCK) != 0);
  CHECK((::fcntl(accepted.socket.descriptor(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("a connection that was reset before the accept is accepted, and its end told by receive") {
  Socket listener = test::listening();
  Socket client = test::connected_to(test::address_of(listener));
  const Address address = test::address_of(client);
  write_text(client.descriptor(), "bye");
  test::reset(client);
  Storage storage;

  Accepted accepted = vigil::accept_within(listener, patience);
  REQUIRE(accepted.outcome == AcceptOutcome::accepted);
  REQUIRE(test::wait_for(accepted.socket.descriptor(), POLLHUP));

  CHECK(accepted.peer == address);
  CHECK(vigil::peer_address(accepted.socket.descriptor()).error() == Error{"peer_address", ENOTCONN, ""});
  CHECK(vigil::receive(accepted.socket, storage).bytes == 3);
  CHECK(vigil::receive(accepted.socket, storage).error == Error{"receive", ECONNRESET, ""});
}

TEST_CASE("without a descriptor left an accept fails and the connection keeps waiting") {
  Socket listener = test::listening();
  const Socket client = test::connected_to(test::address_of(listener));
  REQUIRE(test::wait_for(listener.descriptor(), POLLIN));

  Accepted starved;
  {
    const test::NoDescriptorsLeft limit;
    starved = vigil::accept_within(listener, patience);
  }
  const Accepted fed = vigil::accept_within(listener, patience);

  CHECK(starved.outcome == AcceptOutcome::failed);
  CHECK(starved.error == Error{"accept", EMFILE, ""});
  CHECK(fed.outcome == AcceptOutcome::accepted);
}

TEST_CASE("accept and connect refuse a blocking descriptor and name the way out") {
  const Foreign blocking(::socket(AF_INET, SOCK_STREAM, 0));
  Socket listener = test::listening();

  const Accepted accepted = vigil::accept_within(blocking.descriptor, 1s);
  const Connected connected = vigil::connect(blocking.descriptor, test::address_of(listener));

  CHECK(accepted.error == Error{"accept", EINVAL, ""});
  CHECK(std::string_view(accepted.error.detail).find("set_nonblocking(fd)") != std::string_view::npos);
  CHECK(connected.outcome == ConnectOutcome::failed);
  CHECK(connected.error == Error{"connect", EINVAL, ""});
  CHECK(std::string_view(connected.error.detail).find("set_nonblocking(fd)") != std::string_view::npos);
  REQUIRE(vigil::set_nonblocking(blocking.descriptor));
  CHECK(vigil::connect_within(blocking.descriptor, test::address_of(listener), patience).outcome == ConnectOutcome::accepted);
}

TEST_CASE("a socket that does not listen accepts nobody") {
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  const Foreign datagrams(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));

  CHECK(vigil::accept(*socket).error == Error{"accept", EINVAL, ""});
  CHECK(vigil::accept_within(datagrams.descriptor, patience).error == Error{"accept", EOPNOTSUPP, ""});
}

TEST_CASE("the errors an accept hands out for a dead connection are skipped, shortages are not") {
  for (const int code :
       {ECONNABORTED, ENETDOWN, EPROTO, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, EPERM})
    CHECK(vigil::classify_accept(-code) == vigil::AcceptAnswer::skip);
  for (const int code : {EMFILE, ENFILE, ENOBUFS, ENOMEM})
    CHECK(vigil::classify_accept(-code) == vigil::AcceptAnswer::out_of_resources);
  CHECK(vigil::classify_accept(-EAGAIN) == vigil::AcceptAnswer::none_waiting);
  CHECK(vigil::classify_accept(-EBADF) == vigil::AcceptAnswer::failed);
  CHECK(vigil::classify_accept(0) == vigil::AcceptAnswer::accepted);
}

// Connecting: the three scenarios, each with every way to say how long ----------------------------------------------------

/// How long an attempt may take is said in one of four ways; `wait` starts it.
struct Way {
  const char* name;
  std::function<void(Socket&)> prepare;
  bool ends_by_itself;  ///< our own deadline; else the kernel must be the one that gives up
};

void in_another_thread(const std::function<void()>& body) { std::thread(body).join(); }

/// The process's timeout stands for `scenario`, which opens its socket afterwards.
void in_each_way(Timeout timeout, const std::function<void(const Way&)>& scenario) {
  scenario({"no timeout", [](Socket&) {}, false});
  scenario({"one on the socket", [=](Socket& socket) { REQUIRE(socket.set_timeouts({.connect = timeout})); }, true});
  const test::ProcessTimeouts process;
  in_another_thread([&] { process.set(Deadline::connect, timeout); });
  scenario({"a process default set from another thread", [](Socket&) {}, true});
  scenario({"a process default overridden and set back to never",
            [](Socket& socket) {
              REQUIRE(socket.set_timeouts({.connect = 1s}));
              REQUIRE(socket.set_timeouts({.connect = vigil::never}));
            },
            false});
}

}  // namespace

TEST_SUITE("threads") {
  TEST_CASE("a connect is accepted, whichever way its timeout is said") {
    const Socket listener = test::listening();
    in_each_way(patience, [&](const Way& way) {
      INFO(std::string(way.name));
      auto socket = vigil::open_socket(Address::Family::ipv4);
      REQUIRE(socket);
      way.prepare(*socket);

      const Connected connected = vigil::connect_within(*socket, test::address_of(listener));

      CHECK(connected.outcome == ConnectOutcome::accepted);
      CHECK(connected.error.code == 0);
      CHECK(connected.origin == Origin::peer);
      CHECK(vigil::peer_address(socket->descriptor()).value() == test::address_of(listener));
    });
  }

  TEST_CASE("a connect is rejected, whichever way its timeout is said") {
    const test::ClosedPort closed;
    in_each_way(patience, [&](const Way& way) {
      INFO(std::string(way.name));
      auto socket = vigil::open_socket(Address::Family::ipv4);
      REQUIRE(socket);
      way.prepare(*socket);
      Storage storage;

      const Connected connected = vigil::connect_within(*socket, closed.address());

      CHECK(connected.outcome == ConnectOutcome::rejected);
      CHECK(connected.error == Error{"connect", ECONNREFUSED, ""});
      CHECK(connected.origin == Origin::peer);
      CHECK(vigil::connect_within(*socket, closed.address()).outcome == ConnectOutcome::rejected);
      CHECK(vigil::receive(*socket, storage).error == Error{"receive", ECONNREFUSED, ""});
    });
  }

  TEST_CASE("a connect that gets no answer times out by us or by the kernel, whichever way its timeout is said") {
    const test::FullBacklog full;
    in_each_way(50ms, [&](const Way& way) {
      INFO(std::string(way.name));
      auto socket = vigil::open_socket(Address::Family::ipv4);
      REQUIRE(socket);
      way.prepare(*socket);
      // Lets the kernel give up after one repetition, 3 s, instead of after two minutes.
      const int once = 1;
      REQUIRE(::setsockopt(socket->descriptor(), IPPROTO_TCP, TCP_SYNCNT, &once, sizeof once) == 0);

      const Stopwatch stopwatch;
      const Connected connected = vigil::connect_within(*socket, full.address());

      CHECK(connected.outcome == ConnectOutcome::timed_out);
      CHECK(stopwatch.elapsed() >= 50ms);
      if (way.ends_by_itself) {
        CHECK(connected.error.code == 0);
        CHECK(connected.origin == Origin::policy);
      } else {
        CHECK(connected.error == Error{"connect", ETIMEDOUT, ""});
        CHECK(connected.origin == Origin::network);
        CHECK(vigil::connect(*socket, full.address()).outcome == ConnectOutcome::timed_out);
      }
    });
  }

  TEST_CASE("a Unix connect whose listener's backlog is full is tried again until there is room") {
    const Address address = Address::from_unix_abstract(unique_name("room"));
    Socket listener = test::listening(address, {.backlog = 0});
    const Socket first = test::connected_to(address);
    auto second = vigil::open_socket(address.family());
    REQUIRE(second);
    CHECK(vigil::connect_within(*second, address, 5ms).outcome == ConnectOutcome::timed_out);

    std::thread server([&] { CHECK(vigil::accept_within(listener, patience).outcome == AcceptOutcome::accepted); });
    const Connected connected = vigil::connect_within(*second, address, patience);
    server.join();

    CHECK(connected.outcome == ConnectOutcome::accepted);
  }

  TEST_CASE("a receive that waits for ever is woken by data from another thread") {
    auto pair = test::tcp_pair();
    std::thread writer([&] { write_text(pair.far.descriptor(), "hello"); });
    Storage storage;

    const Received received = vigil::receive_within(pair.near, storage, vigil::never);
    writer.join();

    CHECK(received.bytes == 5);
  }

  TEST_CASE("a send that waits hands over everything while the peer reads") {
    auto pair = test::tcp_pair();
    std::vector<std::byte> megabytes(8 << 20);
    for (std::size_t index = 0; index < megabytes.size(); ++index) megabytes[index] = std::byte(index * 7 % 251);
    std::vector<std::byte> all;
    std::thread reader([&] {
      Storage storage;
      for (;;) {
        const Received received = vigil::receive_within(pair.far, storage, patience);
        if (received.outcome != ReceiveOutcome::data) return;
        all.insert(all.end(), storage.begin(), storage.begin() + static_cast<std::ptrdiff_t>(received.bytes));
      }
    });

    const Sent sent = vigil::send_within(pair.near, megabytes, patience);
    pair.near.close();
    reader.join();

    CHECK(sent.outcome == SendOutcome::sent);
    CHECK(sent.bytes == megabytes.size());
    CHECK(all == megabytes);
  }
}

namespace {

TEST_CASE("a connect that does not wait is in progress, and asking again finds the answer") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace network;
  network.run(
      "nft 'add table inet t; add chain inet t out { type filter hook output priority 0; };"
      " add rule inet t out tcp flags syn / syn,ack drop'");
  const auto inside = network.enter();
  const Socket listener = test::listening();
  const test::ClosedPort closed;
  auto accepted = vigil::open_socket(Address::Family::ipv4);
  auto rejected = vigil::open_socket(Address::Family::ipv4);
  auto told_by_receive = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(accepted);
  REQUIRE(rejected);
  REQUIRE(told_by_receive);
  Storage storage;

  CHECK(vigil::connect(*told_by_receive, closed.address()).outcome == ConnectOutcome::in_progress);
  CHECK(vigil::connect(*accepted, test::address_of(listener)).outcome == ConnectOutcome::in_progress);
  CHECK(vigil::connect(*accepted, test::address_of(listener)).outcome == ConnectOutcome::in_progress);
  CHECK(vigil::connect(*rejected, closed.address()).outcome == ConnectOutcome::in_progress);
  network.run("nft delete table inet t");  // the kernel asks again after a second
  REQUIRE(test::wait_for(accepted->descriptor(), POLLOUT));
  REQUIRE(test::wait_for(rejected->descriptor(), POLLOUT));
  CHECK(vigil::connect(*accepted, test::address_of(listener)).outcome == ConnectOutcome::accepted);
  CHECK(vigil::connect(*rejected, closed.address()).outcome == ConnectOutcome::rejected);
  CHECK(vigil::connect(*accepted, test::address_of(listener)).outcome == ConnectOutcome::accepted);
  CHECK(vigil::connect(*rejected, closed.address()).outcome == ConnectOutcome::rejected);
  // The kernel hands the answer out once, here to the receive; the socket keeps it.
  CHECK(vigil::receive_within(*told_by_receive, storage, patience).error == Error{"receive", ECONNREFUSED, ""});
  CHECK(vigil::connect(*told_by_receive, closed.address()).outcome == ConnectOutcome::rejected);
}

TEST_CASE("after our own timeout an attempt goes on, and asking again waits on") {
  test::FullBacklog full;
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);

  CHECK(vigil::connect_within(*socket, full.address(), 1ms).outcome == ConnectOutcome::timed_out);
  CHECK(vigil::connect(*socket, full.address()).outcome == ConnectOutcome::in_progress);
  REQUIRE(vigil::accept(full.listener).outcome == AcceptOutcome::accepted);  // there is room for the repeated SYN
  CHECK(vigil::connect_within(*socket, full.address(), patience).outcome == ConnectOutcome::accepted);
}

TEST_CASE("a bare descriptor is connected as well") {
  const Socket listener = test::listening();
  const test::ClosedPort closed;
  const Foreign first(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
  const Foreign second(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));

  CHECK(vigil::connect_within(first.descriptor, test::address_of(listener), patience).outcome == ConnectOutcome::accepted);
  CHECK(vigil::connect_within(first.descriptor, test::address_of(listener), patience).outcome == ConnectOutcome::accepted);
  CHECK(vigil::connect_within(second.descriptor, closed.address(), patience).outcome == ConnectOutcome::rejected);
}

TEST_CASE("a socket connected elsewhere is not connected to another address") {
  const Socket listener = test::listening();
  const Socket other = test::listening();
  const Socket socket = test::connected_to(test::address_of(listener));

  const Connected connected = vigil::connect_within(socket.descriptor(), test::address_of(other), patience);

  CHECK(connected.outcome == ConnectOutcome::failed);
  CHECK(connected.error == Error{"connect", EISCONN, ""});
}

TEST_CASE("a socket that reached itself is no connection") {
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  REQUIRE(vigil::bind(*socket, test::loopback()));

  const Connected connected = vigil::connect_within(*socket, test::address_of(*socket), patience);

  CHECK(connected.outcome == ConnectOutcome::failed);
  CHECK(connected.error == Error{"connect", EADDRNOTAVAIL, ""});
  CHECK(vigil::is_self_connected(socket->descriptor()));
}

TEST_CASE("the two ends of a connection are not the same socket") {
  const auto pair = test::tcp_pair();

  CHECK_FALSE(vigil::is_self_connected(pair.near.descriptor()));
  CHECK_FALSE(vigil::is_self_connected(pair.far.descriptor()));
}

TEST_CASE("0.0.0.0 reaches this host") {
  const Socket listener = test::listening(Address::parse("0.0.0.0:0").value());
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);

  CHECK(vigil::connect_within(*socket, test::address_of(listener), patience).outcome == ConnectOutcome::accepted);
}

TEST_CASE("no route, and routes that forbid it, make a connect unreachable") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace network;
  network.run("ip route add unreachable 10.1.0.0/16");
  network.run("ip route add prohibit 10.2.0.0/16");
  network.run("ip route add blackhole 10.3.0.0/16");
  const auto inside = network.enter();
  const std::pair<const char*, int> cases[] = {
      {"10.1.0.1:7000", EHOSTUNREACH}, {"10.2.0.1:7000", EACCES}, {"10.3.0.1:7000", EINVAL}, {"10.4.0.1:7000", ENETUNREACH}};

  for (const auto& [address, code] : cases) {
    INFO(std::string(address));
    auto socket = vigil::open_socket(Address::Family::ipv4);
    REQUIRE(socket);
    const Connected connected = vigil::connect_within(*socket, Address::parse(address).value(), patience);
    CHECK(connected.outcome == ConnectOutcome::unreachable);
    CHECK(connected.error == Error{"connect", code, ""});
    CHECK(connected.origin == Origin::network);
  }
}

TEST_CASE("a firewall of this host makes a connect unreachable or lets it time out") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace network;
  network.run(
      "nft 'add table inet t; add chain inet t out { type filter hook output priority 0; };"
      " add rule inet t out tcp dport 1 reject with icmpx admin-prohibited;"
      " add rule inet t out tcp dport 2 drop; add rule inet t out tcp dport 3 reject with tcp reset'");
  const auto inside = network.enter();
  const auto connect_to = [](std::uint16_t port, Timeout timeout) {
    auto socket = vigil::open_socket(Address::Family::ipv4);
    REQUIRE(socket);
    return vigil::connect_within(*socket, test::loopback(port), timeout);
  };

  const Connected prohibited = connect_to(1, patience);
  const Connected dropped = connect_to(2, 20ms);
  const Connected rejected = connect_to(3, patience);

  CHECK(prohibited.outcome == ConnectOutcome::unreachable);
  CHECK(prohibited.origin == Origin::network);
  CHECK(dropped.outcome == ConnectOutcome::timed_out);
  CHECK(dropped.origin == Origin::policy);
  CHECK(rejected.outcome == ConnectOutcome::rejected);
}

TEST_CASE("a host that is not on the link is unreachable") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace here;
  const test::NetworkNamespace there;
  test::connect_by_cable(here, "10.77.0.1/24", there, "10.77.0.2/24");
  // One question about its hardware address instead of three, a second each.
  here.run("echo 1 > /proc/sys/net/ipv4/neigh/veth0/mcast_solicit");
  here.run("echo 100 > /proc/sys/net/ipv4/neigh/veth0/retrans_time_ms");
  const auto inside = here.enter();
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);

  const Connected connected = vigil::connect_within(*socket, Address::parse("10.77.0.9:7000").value(), patience);

  CHECK(connected.outcome == ConnectOutcome::unreachable);
  CHECK(connected.error == Error{"connect", EHOSTUNREACH, ""});
}

TEST_CASE("each errno of an attempt has one outcome") {
  CHECK(vigil::classify_connect(0) == ConnectOutcome::accepted);
  CHECK(vigil::classify_connect(EINPROGRESS) == ConnectOutcome::in_progress);
  CHECK(vigil::classify_connect(ECONNREFUSED) == ConnectOutcome::rejected);
  CHECK(vigil::classify_connect(ETIMEDOUT) == ConnectOutcome::timed_out);
  for (const int code : {EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, EACCES, EPERM, EINVAL})
    CHECK(vigil::classify_connect(code) == ConnectOutcome::unreachable);
  for (const int code : {ECONNRESET, EADDRNOTAVAIL, EMFILE, ENOENT})
    CHECK(vigil::classify_connect(code) == ConnectOutcome::failed);
}

// IPv6 and Unix -----------------------------------------------------------------------------------------------------------

TEST_CASE("IPv6 connects, and takes no IPv4 unless told to") {
  const Socket only = test::listening(Address::parse("[::]:0").value());
  const Socket both = test::listening(Address::parse("[::]:0").value(), {.v6_only = false});
  const auto outcome = [](const Address& address) {
    auto socket = vigil::open_socket(address.family());
    REQUIRE(socket);
    return vigil::connect_within(*socket, address, patience).outcome;
  };

  CHECK(outcome(Address::parse("[::1]:0").value().with_port(test::address_of(only).port())) == ConnectOutcome::accepted);
  CHECK(outcome(test::loopback(test::address_of(only).port())) == ConnectOutcome::rejected);
  CHECK(outcome(test::loopback(test::address_of(both).port())) == ConnectOutcome::accepted);
}

TEST_CASE("a link-local address is reached through its interface") {
  if (test::skip_without_root()) return;
  const test::NetworkNamespace here;
  const test::NetworkNamespace there;
  test::connect_by_cable(here, "fe80::a/64", there, "fe80::b/64");
  Socket listener;
  {
    const auto inside = there.enter();
    listener = test::listening(Address::parse("[fe80::b%veth0]:7000").value());
  }
  const auto inside = here.enter();
  auto socket = vigil::open_socket(Address::Family::ipv6);
  REQUIRE(socket);

  const Connected connected = vigil::connect_within(*socket, Address::parse("[fe80::b%veth0]:7000").value(), patience);
  const Address peer = vigil::peer_address(socket->descriptor()).value();

  CHECK(connected.outcome == ConnectOutcome::accepted);
  CHECK(peer.to_string() == "[fe80::b%" + std::to_string(vigil::sys::interface_index("veth0")) + "]:7000");
  auto again = vigil::open_socket(Address::Family::ipv6);
  REQUIRE(again);
  CHECK(vigil::connect_within(*again, peer, patience).outcome == ConnectOutcome::accepted);
}

TEST_CASE("a Unix path connects, is in use while it exists, and is refused when nobody listens on it") {
  const std::string path = "/tmp/" + unique_name("path");
  const Address address = Address::from_unix_path(path);
  const auto outcome = [&] {
    auto socket = vigil::open_socket(address.family());
    REQUIRE(socket);
    return vigil::connect_within(*socket, address, patience);
  };

  CHECK(outcome().error == Error{"connect", ENOENT, ""});
  Socket listener = test::listening(address);
  CHECK(outcome().outcome == ConnectOutcome::accepted);
  CHECK(vigil::accept(listener).peer.to_string() == "unix:");
  CHECK(test::address_of(listener) == address);
  CHECK(vigil::listen_on(address).error() == Error{"listen", EADDRINUSE, ""});
  listener.close();
  CHECK(outcome().outcome == ConnectOutcome::rejected);
  ::unlink(path.c_str());
}

TEST_CASE("a Unix connect to a full backlog is in progress, and times out by us") {
  const Address address = Address::from_unix_abstract(unique_name("full"));
  const Socket listener = test::listening(address, {.backlog = 0});
  const Socket first = test::connected_to(address);
  auto second = vigil::open_socket(address.family());
  REQUIRE(second);

  const Connected asked = vigil::connect(*second, address);
  const Stopwatch stopwatch;
  const Connected waited = vigil::connect_within(*second, address, 10ms);

  CHECK(asked.outcome == ConnectOutcome::in_progress);
  CHECK(asked.error == Error{"connect", EAGAIN, ""});
  CHECK(waited.outcome == ConnectOutcome::timed_out);
  CHECK(waited.error.code == 0);
  CHECK(waited.origin == Origin::policy);
  CHECK(stopwatch.elapsed() >= 10ms);
}

// Bad input ---------------------------------------------------------------------------------------------------------------

TEST_CASE("every call on a closed descriptor answers EBADF") {
  Storage storage;
  const int closed = ::dup(0);
  ::close(closed);
  Socket empty;

  for (const int descriptor : {closed, -1}) {
    CHECK(vigil::receive(descriptor, storage).error == Error{"receive", EBADF, ""});
    CHECK(vigil::receive_within(descriptor, storage, 1s).error == Error{"receive", EBADF, ""});
    CHECK(vigil::send(descriptor, "x").error == Error{"send", EBADF, ""});
    CHECK(vigil::send_within(descriptor, "x", 1s).error == Error{"send", EBADF, ""});
    CHECK(vigil::accept(descriptor).error == Error{"accept", EBADF, ""});
    CHECK(vigil::accept_within(descriptor, 1s).error == Error{"accept", EBADF, ""});
    CHECK(vigil::connect(descriptor, test::loopback(1)).error == Error{"connect", EBADF, ""});
    CHECK(vigil::connect_within(descriptor, test::loopback(1), 1s).error == Error{"connect", EBADF, ""});
    CHECK(vigil::bind(descriptor, test::loopback()).error() == Error{"bind", EBADF, ""});
    CHECK(vigil::listen(descriptor, 1).error() == Error{"listen", EBADF, ""});
    CHECK(vigil::local_address(descriptor).error() == Error{"local_address", EBADF, ""});
    CHECK(vigil::peer_address(descriptor).error() == Error{"peer_address", EBADF, ""});
    CHECK(vigil::set_nonblocking(descriptor).error() == Error{"set_nonblocking", EBADF, ""});
    CHECK(vigil::apply(descriptor, {}, true).error() == Error{"socket options", EBADF, ""});
  }
  CHECK(vigil::receive_within(empty, storage, 1s).error == Error{"receive", EBADF, ""});
  CHECK(vigil::send_within(empty, "x", 1s).error == Error{"send", EBADF, ""});
}

TEST_CASE("every call on what is no socket answers ENOTSOCK") {
  Storage storage;
  const Foreign file(::open("/dev/null", O_RDWR | O_CLOEXEC));
  Socket adopted = Socket::adopt(::open("/dev/null", O_RDWR | O_CLOEXEC | O_NONBLOCK));

  CHECK(vigil::receive(file.descriptor, storage).error == Error{"receive", ENOTSOCK, ""});
  CHECK(vigil::receive_within(file.descriptor, storage, 1s).error == Error{"receive", ENOTSOCK, ""});
  CHECK(vigil::send_within(file.descriptor, "x", 1s).error == Error{"send", ENOTSOCK, ""});
  CHECK(vigil::accept_within(file.descriptor, 1s).error == Error{"accept", ENOTSOCK, ""});
  CHECK(vigil::connect_within(file.descriptor, test::loopback(1), 1s).error == Error{"connect", ENOTSOCK, ""});
  CHECK(vigil::receive_within(adopted, storage, 1s).error == Error{"receive", ENOTSOCK, ""});
  CHECK(vigil::accept_within(adopted, 1s).error == Error{"accept", ENOTSOCK, ""});
  CHECK(vigil::connect_within(adopted, test::loopback(1), 1s).error == Error{"connect", ENOTSOCK, ""});
}

TEST_CASE("a zero-length buffer is the caller's error and loses nothing") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  write_text(far.descriptor(), "hello");
  REQUIRE(test::wait_for_unread(near.descriptor(), 5));

  CHECK(vigil::receive(near, vigil::Buffer()).error == Error{"receive", EINVAL, ""});
  CHECK(vigil::receive_within(near, vigil::Buffer(), 1s).error == Error{"receive", EINVAL, ""});
  CHECK(vigil::send(near, "").error == Error{"send", EINVAL, ""});
  CHECK(vigil::receive(near, storage).bytes == 5);
  CHECK(vigil::send(near, "still works").outcome == SendOutcome::sent);
}

TEST_CASE("a socket that is not connected yet is not taken for ended") {
  const Socket listener = test::listening();
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  Storage storage;

  CHECK(vigil::receive(*socket, storage).error == Error{"receive", ENOTCONN, ""});
  CHECK(vigil::connect_within(*socket, test::address_of(listener), patience).outcome == ConnectOutcome::accepted);
  CHECK(vigil::receive(*socket, storage).outcome == ReceiveOutcome::no_data);
}

TEST_CASE("a port in use is told as such") {
  const Socket listener = test::listening();
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);

  CHECK(vigil::listen_on(test::address_of(listener)).error() == Error{"listen", EADDRINUSE, ""});
  CHECK(vigil::bind(*socket, test::address_of(listener)).error() == Error{"bind", EADDRINUSE, ""});
}

TEST_CASE("two listeners share a port only if both say so") {
  const Socket first = test::listening(test::loopback(), {.reuse_port = true});

  CHECK(vigil::listen_on(test::address_of(first), {.reuse_port = true}));
  CHECK_FALSE(vigil::listen_on(test::address_of(first)));
}

TEST_CASE("a listener can't have an address that is not here, nor a negative backlog") {
  CHECK(vigil::listen_on(Address::parse("192.0.2.1:0").value()).error() == Error{"listen", EADDRNOTAVAIL, ""});
  CHECK(vigil::listen_on(Address::parse("[fe80::1]:0").value()).error() == Error{"listen", EINVAL, ""});
  CHECK(vigil::listen_on(Address::parse("unix:/nowhere/at/all").value()).error() == Error{"listen", ENOENT, ""});
  CHECK(vigil::listen_on(test::loopback(), {.backlog = -1}).error() == Error{"listen", EINVAL, ""});
}

TEST_CASE("without a descriptor left no socket is opened") {
  const test::NoDescriptorsLeft limit;

  CHECK(vigil::open_socket(Address::Family::ipv4).error() == Error{"open_socket", EMFILE, ""});
  CHECK(vigil::listen_on(test::loopback()).error() == Error{"listen", EMFILE, ""});
}

// Owning ------------------------------------------------------------------------------------------------------------------

TEST_CASE("a socket closes its descriptor once, and never one it gave away") {
  int given_away = -1;
  int moved = -1;
  {
    auto first = vigil::open_socket(Address::Family::ipv4);
    auto second = vigil::open_socket(Address::Family::ipv4);
    REQUIRE(first);
    REQUIRE(second);
    moved = first->descriptor();
    Socket owner = std::move(*first);
    CHECK_FALSE(*first);
    CHECK(first->descriptor() == -1);
    CHECK(owner.descriptor() == moved);
    given_away = second->release();
    CHECK_FALSE(*second);
  }

  CHECK(::fcntl(moved, F_GETFD) == -1);
  CHECK(::fcntl(given_away, F_GETFD) != -1);
  ::close(given_away);
}

TEST_CASE("a socket that is assigned to closes what it had, and its latched end goes with it") {
  auto [near, far] = test::tcp_pair();
  Storage storage;
  far.close();
  REQUIRE(vigil::receive_within(near, storage, patience).outcome == ReceiveOutcome::finished);
  const int before = near.descriptor();
  auto [other, peer] = test::tcp_pair();

  near = std::move(other);

  CHECK(::fcntl(before, F_GETFD) == -1);
  CHECK(vigil::receive(near, storage).outcome == ReceiveOutcome::no_data);
}

// Options -----------------------------------------------------------------------------------------------------------------

int option(const Socket& socket, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(socket.descriptor(), level, name, &value, &length) == 0);
  return value;
}

TEST_CASE("socket options reach the kernel, rounded up") {
  auto socket = vigil::open_socket(Address::Family::ipv4);
  REQUIRE(socket);
  const int kernels_own_buffer = option(*socket, SOL_SOCKET, SO_SNDBUF);

  REQUIRE(vigil::apply(socket->descriptor(),
                       {.keep_alive = vigil::KeepAlive{.idle = 1500ms, .interval = 3s, .count = 4},
                        .user_timeout = 1'500'001us,
                        .receive_buffer_bytes = 65536},
                       true));

  CHECK(option(*socket, IPPROTO_TCP, TCP_NODELAY) != 0);
  CHECK(option(*socket, SOL_SOCKET, SO_KEEPALIVE) != 0);
  CHECK(option(*socket, IPPROTO_TCP, TCP_KEEPIDLE) == 2);
  CHECK(option(*socket, IPPROTO_TCP, TCP_KEEPINTVL) == 3);
  CHECK(option(*socket, IPPROTO_TCP, TCP_KEEPCNT) == 4);
  CHECK(option(*socket, IPPROTO_TCP, TCP_USER_TIMEOUT) == 1501);
  CHECK(option(*socket, SOL_SOCKET, SO_RCVBUF) == 2 * 65536);  // Linux keeps as much again for its own use
  CHECK(option(*socket, SOL_SOCKET, SO_SNDBUF) == kernels_own_buffer);
}

TEST_CASE("a Unix socket has no delay to switch off, and can't keep alive") {
  const ForeignPair pair(SOCK_STREAM);

  CHECK(vigil::apply(pair.near, {}, false));
  const auto refused = vigil::apply(pair.near, {.keep_alive = vigil::KeepAlive{1s, 1s, 1}}, false);
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"socket options", EINVAL, ""});
  CHECK_FALSE(vigil::apply(pair.near, {.user_timeout = 1s}, false));
}

TEST_CASE("socket options out of range are refused by name") {
  using vigil::KeepAlive;
  using vigil::SocketOptions;
  const std::pair<SocketOptions, std::string_view> cases[] = {{{.keep_alive = KeepAlive{}}, "keep_alive.idle"},
                                                              {{.keep_alive = KeepAlive{999ms, 1s, 1}}, "keep_alive.idle"},
                                                              {{.keep_alive = KeepAlive{32768s, 1s, 1}}, "keep_alive.idle"},
                                                              {{.keep_alive = KeepAlive{1s, -1s, 1}}, "keep_alive.interval"},
                                                              {{.keep_alive = KeepAlive{1s, 1s, 0}}, "keep_alive.count"},
                                                              {{.keep_alive = KeepAlive{1s, 1s, 128}}, "keep_alive.count"},
                                                              {{.user_timeout = -1ms}, "user_timeout"},
                                                              {{.user_timeout = 999us}, "user_timeout"},
                                                              {{.user_timeout = std::chrono::days(25)}, "user_timeout"},
                                                              {{.send_buffer_bytes = -1}, "send_buffer_bytes"},
                                                              {{.receive_buffer_bytes = (1 << 30) + 1}, "receive_buffer_bytes"}};

  for (const auto& [options, name] : cases) {
    INFO(std::string(name));
    const auto refused = vigil::validate(options, true, "connect");
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == Error{"connect", EINVAL, ""});
    CHECK(std::string_view(refused.error().detail).substr(0, name.size()) == name);
  }
}

}  // namespace
