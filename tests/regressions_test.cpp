// What once went wrong, on the kernel: one test for each mistake, with its cause.
#include <doctest/doctest.h>

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::Connection;
using vigil::Duration;
using vigil::Error;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::Socket;
using vigil::Watch;
namespace test = vigil::test;

/// The number the next descriptor that is opened will have.
int next_descriptor() {
  const int lowest_free = ::dup(0);
  REQUIRE(lowest_free >= 0);
  ::close(lowest_free);
  return lowest_free;
}

bool is_blocked(int signal_number) {
  sigset_t mask;
  REQUIRE(::pthread_sigmask(SIG_BLOCK, nullptr, &mask) == 0);
  return ::sigismember(&mask, signal_number) == 1;
}

// A dispatch gathered what its handler sent in on_send_drained, and had sent what was gathered before that: the bytes stayed in
// the buffer, and whoever was dispatched next sent them to its own peer.
TEST_CASE("of two connections, one that goes on when its queue has drained and one that replies, each peer gets its own bytes") {
  ListenerOptions options;
  options.socket.send_buffer_bytes = 16 * 1024;
  options.backlog_high_mark_bytes = 64 * 1024;
  options.backlog_low_mark_bytes = 0;
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener served(reactor, hooks, options);
  test::Client a = test::connect_client(reactor, hooks, served.address);
  test::Client b = test::connect_client(reactor, hooks, served.address);
  const std::string bulk = test::pattern(2 * 1024 * 1024);
  int drained = 0;
  hooks.on_send_drained = [&](Connection& connection) {
    ++drained;
    CHECK(connection.send("after"));
  };
  hooks.on_receive = [](Connection& connection, Bytes bytes) { CHECK(connection.send(bytes)); };
  REQUIRE(a.connection->send(bulk));
  test::turn_at_once(reactor);

  // The other one speaks all the time, so that it is dispatched behind whatever dispatch drains the queue.
  std::string said;
  REQUIRE(test::turn_until(reactor, [&] {
    b.peer.read();
    if (b.peer.received.size() == said.size()) {
      b.peer.send("word;");
      said += "word;";
    }
    return a.peer.read(64 * 1024).received.size() >= bulk.size() + 5;
  }));
  REQUIRE(test::turn_until(reactor, [&] { return b.peer.read().received.size() >= said.size(); }));
  CHECK(drained == 1);
  CHECK(test::same(a.peer.received, bulk + "after"));
  CHECK(test::same(b.peer.received, said));
}

// Closing a descriptor does not end its registration while a duplicate lives (a fork, a dup), and a listener's is
// level-triggered: whoever waited there ended every wait at once, for ever.
TEST_CASE("a listener that is closed while a duplicate of its socket lives hears no more of who comes there") {
  test::Hooks hooks;
  Reactor reactor;
  std::optional<Listener<test::HookedHandler>> listener(std::in_place, reactor, ListenerOptions{}, hooks.make());
  const int descriptor = next_descriptor();
  REQUIRE(listener->listen(test::loopback()));
  const vigil::Address address = *listener->address();
  REQUIRE(*vigil::local_address(descriptor) == address);
  const test::Peer duplicate(::dup(descriptor));
  REQUIRE(duplicate.descriptor() >= 0);
  SUBCASE("closed") { listener->close(); }
  SUBCASE("destroyed") { listener.reset(); }
  SUBCASE("closed by a shutdown") { REQUIRE(reactor.shutdown(10s)); }
  const test::Peer waiting(address);
  REQUIRE(test::wait_for(duplicate.descriptor(), POLLIN));

  test::turn_at_once(reactor);
  const std::uint64_t events = reactor.counters().events;
  for (int turn = 0; turn < 10; ++turn) test::turn_at_once(reactor);
  CHECK(reactor.counters().events == events);
  CHECK(reactor.counters().opened == 0);
}

// Two watches of one signal shared what is pending, so that each missed some, and cancelling the first unblocked the signal under
// the second, whose next one ended the process.
TEST_CASE("a signal is watched once at a time, and can be watched again after it was cancelled") {
  Reactor reactor;
  std::vector<int> told;
  const auto tell = [&](int number) { told.push_back(number); };
  Watch first = *reactor.on_signal(SIGUSR1, tell);
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto second = reactor.on_signal(SIGUSR1, tell);
    REQUIRE_FALSE(second);
    CHECK(second.error() == Error{"on_signal", EEXIST});
  }
  CHECK(is_blocked(SIGUSR1));
  Watch other = *reactor.on_signal(SIGUSR2, tell);
  REQUIRE(::raise(SIGUSR1) == 0);
  test::turn_at_once(reactor);
  CHECK(told == std::vector<int>{SIGUSR1});

  first.cancel();
  CHECK_FALSE(is_blocked(SIGUSR1));
  auto again = reactor.on_signal(SIGUSR1, tell);  // in the same turn, before the first one's slot is given back
  REQUIRE(again);
  REQUIRE(::raise(SIGUSR1) == 0);
  test::turn_at_once(reactor);
  CHECK(told == std::vector<int>{SIGUSR1, SIGUSR1});
  CHECK(reactor.on_signal(SIGUSR1, tell).error() == Error{"on_signal", EEXIST});
}

// Every source that is no signal has the number 0: that one was taken for watched already.
TEST_CASE("signal 0 is no signal, whatever else is watched") {
  Reactor reactor;
  const vigil::Timer timer(reactor, [] {});
  const auto watch = reactor.on_signal(0, [](int) {});
  REQUIRE_FALSE(watch);
  CHECK(watch.error() == Error{"on_signal", EINVAL});
}

// Only bytes that were queued made an end a reset: where the first piece alone was too large nothing was, and the peer took what
// it had for the whole stream.
TEST_CASE("a connection that ends because one piece was beyond its bound ends with a reset") {
  ListenerOptions options;
  options.backlog_bytes_max = 1000;
  test::Hooks hooks;
  Reactor reactor;
  test::HookedListener served(reactor, hooks, options);
  test::Client client = test::connect_client(reactor, hooks, served.address);
  std::string before;
  SUBCASE("with nothing before it") {}
  SUBCASE("with something sent before it") { before = "head;"; }
  hooks.on_receive = [&](Connection& connection, Bytes) {
    CHECK(connection.send(std::string(2000, 'x')).error() == Error{"send", ENOBUFS});
  };
  if (!before.empty()) {
    REQUIRE(client.connection->send(before));
    REQUIRE(test::turn_until(reactor, [&] { return client.peer.read().received == before; }));
  }
  client.peer.send("go");
  REQUIRE(test::turn_until(reactor, [&] { return client.peer.read().finished || client.peer.error != 0; }));
  CHECK(client.peer.error == ECONNRESET);
  CHECK(client.peer.received == before);
  REQUIRE(hooks.records.size() == 1);
  CHECK(hooks.records[0].reason == CloseReason::backlog_full);
  CHECK(hooks.records[0].unsent == 0);
}

/// Connects again wherever it has ended, and ends that attempt at once.
struct Restless {
  void on_receive(Connection&, Bytes) {}
  void on_close(Connection&, const vigil::CloseRecord&) {
    if (*tries_left == 0) return;
    --*tries_left;
    if (const auto again = (*connector)->connect(address)) CHECK((*again)->abort());
  }
  std::optional<vigil::Connector<Restless>>* connector;
  std::string address;
  int* tries_left;
};

// A life that ends while it waits for its turn leaves an entry on the ready list, and the next one in its slot brings another:
// room for as many as there are slots was too little.
TEST_CASE("lives that end and begin again in one turn, each of them ready, have room on the lists") {
  const std::string address = "unix:@vigil-restless-" + std::to_string(::getpid());
  test::Hooks hooks;
  Reactor reactor;
  Listener<test::HookedHandler> listener(reactor, {}, hooks.make());
  REQUIRE(listener.listen(address));
  int tries_left = 1000;
  std::optional<vigil::Connector<Restless>> connector;
  connector.emplace(reactor, vigil::ConnectorOptions{}, [&](Connection&) { return Restless{&connector, address, &tries_left}; });
  std::vector<vigil::ConnectionHandle> first;
  for (int count = 0; count < 40; ++count) {
    auto connecting = connector->connect(address);  // a Unix socket's is over at once: it waits on the ready list
    REQUIRE(connecting);
    first.push_back(*connecting);
  }
  for (const vigil::ConnectionHandle& each : first) REQUIRE(each->abort());
  REQUIRE(test::turn_until(reactor, [&] { return tries_left == 0; }));
}

}  // namespace
