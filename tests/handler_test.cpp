// Which structs are handlers: whatever can be called as documented, stored in the connection's slot as it is.
#include "vigil/handler.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/hooks.hpp"

namespace {

using vigil::Bytes;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Connector;
using vigil::handler_thunks;
using vigil::Listener;
using vigil::Reactor;
namespace test = vigil::test;

/// Serves one peer with `Handler`: it says "hello" and ends; returns when the record was told.
template <class Handler, class... Make>
void serve_one(Make&&... make) {
  Reactor reactor;
  Listener<Handler> listener(reactor, {}, std::forward<Make>(make)...);
  REQUIRE(listener.listen(test::loopback()));
  test::Peer peer(*listener.address());
  peer.send("hello");
  peer.finish();
  CHECK(test::turn_until(reactor, [&] { return reactor.counters().closed == 1; }));
  test::check_all_told(reactor);
}

std::string told;  // by the handlers below

struct Least {
  void on_receive(Connection&, Bytes bytes) { told += bytes.text(); }
  void on_close(Connection&, const CloseRecord&) { told += " closed"; }
};

TEST_CASE("a handler with the two mandatory callbacks and no state is enough") {
  told.clear();
  serve_one<Least>();
  CHECK(told == "hello closed");
  static_assert(handler_thunks<Least>.on_open == nullptr);
  static_assert(handler_thunks<Least>.on_send_drained == nullptr);
  static_assert(handler_thunks<Least>.on_peer_finished == nullptr);
}

struct Last final {
  void on_open(Connection&) { told += "open "; }
  void on_receive(Connection&, Bytes bytes) { told += bytes.text(); }
  void on_close(Connection&, const CloseRecord&) { told += " closed"; }
};

TEST_CASE("a final handler keeps its optional callbacks") {
  told.clear();
  serve_one<Last>();
  CHECK(told == "open hello closed");
  static_assert(handler_thunks<Last>.on_send_drained == nullptr);
}

struct LastOfMany final {
  void on_open(auto& connection) { told += connection.is_open() ? "open " : "not open "; }
  void on_peer_finished(Connection& connection) {
    told += " finished";
    connection.close();
  }
  void on_peer_finished(int) { told += " wrong"; }
  template <class Any, int = 0>
  vigil::Duration on_deadline(Any&, vigil::Deadline) {
    return {};
  }
  void on_receive(Connection&, Bytes bytes) { told += bytes.text(); }
  void on_close(Connection&, const CloseRecord&) { told += " closed"; }
};

TEST_CASE("a final handler keeps its optional callbacks, templated and overloaded as they may be") {
  told.clear();
  serve_one<LastOfMany>();
  CHECK(told == "open hello finished closed");
  const vigil::HandlerThunks thunks = handler_thunks<LastOfMany>;
  CHECK(bool(thunks.on_deadline));
  static_assert(handler_thunks<LastOfMany>.on_send_drained == nullptr);
  static_assert(handler_thunks<LastOfMany>.on_ping_due == nullptr);
}

struct Overloaded {
  void on_open(Connection&) { told += "open "; }
  void on_open(int) { told += "wrong "; }
  template <class Any>
  void on_peer_finished(Any& connection) {
    told += " finished";
    connection.close();
  }
  void on_receive(Connection&, Bytes bytes) { told += bytes.text(); }
  void on_receive(int) {}
  void on_close(Connection&, const CloseRecord&) const { told += " closed"; }
  void on_close() {}
};

TEST_CASE("overloaded, templated and const callbacks are found") {
  told.clear();
  serve_one<Overloaded>();
  CHECK(told == "open hello finished closed");
}

struct Base {
  void on_open(Connection&) { told += "open "; }
  virtual void on_close(Connection&, const CloseRecord&) { told += " base"; }
  virtual ~Base() { told += " destroyed"; }
};
struct Derived : Base {
  static void on_receive(Connection&, const Bytes& bytes) { told += bytes.text(); }
  void on_close(Connection&, const CloseRecord&) override { told += " derived"; }
};

TEST_CASE("inherited, virtual and static callbacks are found, and the handler is destroyed") {
  told.clear();
  serve_one<Derived>();
  CHECK(told == "open hello derived destroyed");
}

class Pinned {
 public:
  Pinned(std::unique_ptr<std::string> its_greeting, Connection& connection) : greeting_(std::move(its_greeting)), self_(this) {
    CHECK(connection.peer().port() != 0);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  void on_receive(Connection& connection, Bytes bytes) {
    CHECK(self_ == this);
    CHECK(&connection.handler<Pinned>() == this);
    told += *greeting_ + std::string(bytes.text());
  }
  void on_close(Connection&, const CloseRecord&) { CHECK(self_ == this); }

 private:
  std::unique_ptr<std::string> greeting_;
  Pinned* self_;
};

TEST_CASE("make_handler builds a handler that can't be moved in its slot, from state it holds") {
  told.clear();
  serve_one<Pinned>([prefix = std::make_unique<std::string>("say ")](Connection& connection) {
    return Pinned(std::make_unique<std::string>(*prefix), connection);
  });
  CHECK(told == "say hello");
}

template <std::size_t alignment, std::size_t size>
struct alignas(alignment) Aligned {
  std::array<std::byte, size> bytes{};
  void on_open(Connection&) { CHECK(reinterpret_cast<std::uintptr_t>(this) % alignment == 0); }
  void on_receive(Connection&, Bytes) {
    CHECK(reinterpret_cast<std::uintptr_t>(this) % alignment == 0);
    bytes.fill(std::byte{0xAB});
  }
  void on_close(Connection& connection, const CloseRecord& record) {
    for (const std::byte byte : bytes) CHECK(byte == std::byte{0xAB});
    CHECK(connection.peer().port() != 0);
    CHECK(record.received == 5);
    told += "x";
  }
};

TEST_CASE("handlers of any alignment up to 64 and of any size stand where they should") {
  told.clear();
  serve_one<Aligned<1, 1>>();
  serve_one<Aligned<8, 24>>();
  serve_one<Aligned<16, 48>>();
  serve_one<Aligned<32, 32>>();
  serve_one<Aligned<64, 64>>();
  serve_one<Aligned<64, 128>>();
  serve_one<Aligned<1, 100'000>>();
  CHECK(told == "xxxxxxx");
}

TEST_CASE("handlers of different types live in one reactor side by side") {
  told.clear();
  Reactor reactor;
  Listener<Least> least(reactor);
  Listener<Aligned<64, 64>> aligned(reactor);
  REQUIRE(least.listen(test::loopback()));
  REQUIRE(aligned.listen(test::loopback()));
  std::vector<test::Peer> peers;
  for (int count = 0; count < 100; ++count) {
    peers.emplace_back(count % 2 == 0 ? *least.address() : *aligned.address());
    peers.back().send("hello");
    peers.back().finish();
  }
  CHECK(test::turn_until(reactor, [&] { return reactor.counters().closed == 100; }));
  CHECK(std::count(told.begin(), told.end(), 'x') == 50);
}

struct Caller {
  explicit Caller(std::string its_name) : name(std::move(its_name)) {}
  void on_open(Connection& connection) { connection.send(name); }
  void on_receive(Connection&, Bytes) {}
  void on_close(Connection&, const CloseRecord& record) { told += vigil::to_string(record.reason); }
  std::string name;
};

TEST_CASE("a connector builds its handlers by make_handler too") {
  told.clear();
  Reactor reactor;
  const test::PeerListener server;
  int made = 0;
  Connector<Caller> connector(reactor, {}, [&made](Connection&) { return Caller("caller " + std::to_string(++made)); });
  REQUIRE(connector.connect(server.address()));
  REQUIRE(test::wait_for(server.descriptor(), POLLIN));
  test::Peer accepted = server.accept();
  CHECK(test::turn_until(reactor, [&] { return accepted.read().received == "caller 1"; }));
  accepted.close();
  CHECK(test::turn_until(reactor, [&] { return reactor.counters().closed == 1; }));
  CHECK(told == "peer_finished");
}

struct SaysAtBirth {
  explicit SaysAtBirth(Connection& connection) {
    connection.send("welcome");
    CHECK(connection.set_timeout(vigil::Deadline::receive, std::chrono::hours(1)));
  }
  void on_receive(Connection& connection, Bytes bytes) { connection.send(bytes); }
  void on_close(Connection&, const CloseRecord&) {}
};

TEST_CASE("what a handler's constructor sends is sent when the connection is open, and first") {
  Reactor reactor;
  Listener<SaysAtBirth> listener(reactor, {}, [](Connection& connection) { return SaysAtBirth(connection); });
  REQUIRE(listener.listen(test::loopback()));
  test::Peer peer(*listener.address());
  peer.send(" back");
  CHECK(test::turn_until(reactor, [&] { return peer.read().received.size() == 12; }));
  CHECK(peer.received == "welcome back");
}

}  // namespace
