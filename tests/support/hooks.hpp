// A handler whose callbacks a test fills in, and which checks at each of them what holds for every life: on_open at most once,
// on_close exactly once and last, nothing after it, no callback from inside the test's own calls. For tests of the order of
// things and of lifetimes; recorder.hpp has scenes for what one connection is told.
//
//   test::Hooks hooks;                     // before the reactor, which tells the last records when it ends
//   hooks.on_receive = [](Connection& peer, Bytes bytes) { peer.send(bytes); };
//   Listener<test::HookedHandler> listener(reactor, {}, hooks.make());
//   ...
//   CHECK(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "recorder.hpp"

namespace vigil::test {

class HookedHandler;

struct Hooks {
  Hooks() = default;
  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  std::function<void(Connection&)> on_open;
  std::function<void(Connection&, Bytes)> on_receive;
  std::function<void(Connection&)> on_send_drained;
  std::function<void(Connection&)> on_peer_finished;  ///< empty: it sends its own end, as a handler without the callback would
  std::function<void(Connection&, const CloseRecord&)> on_close;

  // What was seen.
  int handlers = 0;                      ///< alive now
  std::vector<ConnectionHandle> opened;  ///< in the order of their on_open
  std::vector<CloseRecord> records;      ///< in the order of their on_close
  std::string received;                  ///< by all of them
  int own_calls = 0;                     ///< the test is inside one of its own calls: no callback may be entered

  /// Makes the test's own call; whatever it ends must be told after it has returned.
  template <class Call>
  auto calling(const Call& call) {
    struct Inside {
      explicit Inside(int& given) : count(given) { ++count; }
      ~Inside() { --count; }
      int& count;
    } inside(own_calls);
    return call();
  }

  /// The make_handler of a listener or connector whose connections all use these hooks.
  [[nodiscard]] auto make();
};

class HookedHandler {
 public:
  explicit HookedHandler(Hooks& hooks) : hooks_(hooks) { ++hooks_.handlers; }
  ~HookedHandler() {
    CHECK(closed_);
    --hooks_.handlers;
  }
  HookedHandler(const HookedHandler&) = delete;
  HookedHandler& operator=(const HookedHandler&) = delete;

  void on_open(Connection& connection) {
    enter();
    CHECK(!opened_);
    opened_ = true;
    hooks_.opened.push_back(connection.handle());
    if (hooks_.on_open) hooks_.on_open(connection);
  }

  void on_receive(Connection& connection, Bytes bytes) {
    enter();
    CHECK(opened_);
    CHECK(!bytes.empty());
    hooks_.received += bytes.text();
    if (hooks_.on_receive) hooks_.on_receive(connection, bytes);
  }

  void on_send_drained(Connection& connection) {
    enter();
    CHECK(opened_);
    if (hooks_.on_send_drained) hooks_.on_send_drained(connection);
  }

  void on_peer_finished(Connection& connection) {
    enter();
    CHECK(opened_);
    if (hooks_.on_peer_finished) {
      hooks_.on_peer_finished(connection);
    } else {
      connection.close();
    }
  }

  void on_close(Connection& connection, const CloseRecord& record) {
    enter();
    closed_ = true;
    report_reason(record);
    hooks_.records.push_back(record);
    if (hooks_.on_close) hooks_.on_close(connection, record);
  }

 private:
  void enter() const {
    CHECK(!closed_);
    CHECK(hooks_.own_calls == 0);
  }

  Hooks& hooks_;
  bool opened_ = false;
  bool closed_ = false;
};

inline auto Hooks::make() {
  return [this](Connection&) { return HookedHandler(*this); };
}

/// Turns until `condition()` holds; false when patience ends.
template <class Condition>
bool turn_until(Reactor& reactor, Condition condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= give_up) return false;
    REQUIRE(reactor.turn(std::chrono::milliseconds(10)));
  }
  return true;
}

/// One turn that does not wait.
inline void turn_at_once(Reactor& reactor) { REQUIRE(reactor.turn(Duration::zero())); }

/// Every life begun so far has been told.
inline void check_all_told(const Reactor& reactor) {
  CHECK(reactor.counters().opened == reactor.counters().closed);
  std::uint64_t by_reason = 0;
  for (const std::uint64_t count : reactor.counters().closed_for) by_reason += count;
  CHECK(by_reason == reactor.counters().closed);
}

/// A listener on any free port of 127.0.0.1 whose connections use `hooks`.
class HookedListener {
 public:
  HookedListener(Reactor& reactor, Hooks& hooks, const ListenerOptions& options = {}) : listener(reactor, options, hooks.make()) {
    const auto bound = listener.listen(loopback());
    REQUIRE(bound);
    address = *listener.address();
  }

  Listener<HookedHandler> listener;
  Address address;
};

/// A peer, and the connection it became in the reactor.
struct Client {
  Peer peer;
  ConnectionHandle connection;
};

inline Client connect_client(Reactor& reactor, Hooks& hooks, const Address& address) {
  const std::size_t before = hooks.opened.size();
  Peer peer(address);
  REQUIRE(turn_until(reactor, [&] { return hooks.opened.size() > before; }));
  return {std::move(peer), hooks.opened.back()};
}

}  // namespace vigil::test
