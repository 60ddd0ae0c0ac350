// Handlers that write down what they are told and do what the test says, and the scenes they play in: a reactor turned by the
// test's own thread until something has happened.
//
//   test::Served<test::Recorder> scene({.timeouts = {.receive = 50ms}});
//   test::Peer peer = scene.connect();
//   peer.send("hello");
//   const vigil::CloseRecord& record = scene.end();              // turns until on_close
//   CHECK(record.reason == vigil::CloseReason::receive_timed_out);
//
// A scene ends what is still open, and checks that as many connections were closed as opened and that each was told once.
#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "loopback.hpp"
#include "peer.hpp"
#include "reasons.hpp"
#include "vigil/vigil.hpp"

namespace doctest {

template <>
struct StringMaker<vigil::CloseReason> : OutcomeMaker<vigil::CloseReason> {};
template <>
struct StringMaker<vigil::Phase> : OutcomeMaker<vigil::Phase> {};
template <>
struct StringMaker<vigil::CutShort> : OutcomeMaker<vigil::CutShort> {};
template <>
struct StringMaker<vigil::Duration> {
  static String convert(vigil::Duration duration) { return (std::to_string(duration.count()) + " ns").c_str(); }
};

}  // namespace doctest

namespace vigil::test {

/// What a test tells a scene's connections to do, and what they were told. Callbacks are noexcept: use CHECK in them, not
/// REQUIRE.
struct Log {
  std::function<void(Connection&)> at_open, at_drained, at_peer_finish;
  std::function<void(Connection&, Bytes)> at_receive;
  std::function<void(Connection&, const CloseRecord&)> at_close;

  int opened = 0;
  int drained = 0;
  int peer_finishes = 0;
  std::string received;
  std::vector<CloseRecord> closed;
  Instant closed_at{};
  ConnectionHandle connection;  ///< of the last one made
};

inline Instant now() { return Instant(std::chrono::steady_clock::now().time_since_epoch()); }

struct Recorder {
  explicit Recorder(Log& its_log, Connection& connection) : log(&its_log) { log->connection = connection.handle(); }

  void on_open(Connection& connection) {
    ++log->opened;
    if (log->at_open) log->at_open(connection);
  }
  void on_receive(Connection& connection, Bytes bytes) {
    log->received += bytes.text();
    if (log->at_receive) log->at_receive(connection, bytes);
  }
  void on_send_drained(Connection& connection) {
    ++log->drained;
    if (log->at_drained) log->at_drained(connection);
  }
  void on_close(Connection& connection, const CloseRecord& record) {
    report_reason(record);
    log->closed.push_back(record);
    log->closed_at = now();
    if (log->at_close) log->at_close(connection, record);
  }

  Log* log;
};

/// One that wants to know of the peer's end, and so may go on sending.
struct PatientRecorder : Recorder {
  using Recorder::Recorder;

  void on_peer_finished(Connection& connection) {
    ++log->peer_finishes;
    if (log->at_peer_finish) log->at_peer_finish(connection);
  }
};

class Scene {
 public:
  Log log;
  Reactor reactor;

  explicit Scene(const ReactorOptions& options = {}) : reactor(options) {}
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;
  ~Scene() {
    log.at_receive = nullptr;  // what a test's script refers to may be gone already
    log.at_open = log.at_drained = log.at_peer_finish = nullptr;
    log.at_close = nullptr;
    CHECK(reactor.shutdown(Duration::zero()));
    CHECK(turn_until([this] { return reactor.counters().opened == reactor.counters().closed; }));
    CHECK(log.closed.size() + shed == reactor.counters().closed);
  }

  /// False when patience ends. The condition may also wait for what is no business of the reactor's.
  template <class Condition>
  [[nodiscard]] bool turn_until(Condition condition) {
    const Instant give_up = now() + std::chrono::milliseconds(patience_ms);
    while (!condition()) {
      if (now() >= give_up) return false;
      if (!reactor.turn(std::chrono::milliseconds(5))) return false;
    }
    return true;
  }

  /// Turns until the first connection is over: its record.
  const CloseRecord& end() {
    REQUIRE(turn_until([this] { return !log.closed.empty(); }));
    return log.closed.front();
  }

  /// Turns until `peer` has read `size` bytes in all, or its end.
  [[nodiscard]] bool peer_reads(Peer& peer, std::size_t size) {
    return turn_until([&] {
      peer.read(size - peer.received.size());
      return peer.received.size() == size || peer.finished || peer.error != 0;
    });
  }

  Connection& connection() { return *log.connection; }

  std::size_t shed = 0;  ///< connections told to an events object instead of to a handler
};

/// A listener's connections, all with the same log.
template <class Handler = Recorder>
class Served : public Scene {
 public:
  Listener<Handler> listener;

  explicit Served(const ListenerOptions& options = {}, const ReactorOptions& reactor_options = {},
                  const Address& address = loopback())
      : Scene(reactor_options), listener(reactor, options, [this](Connection& connection) { return Handler(log, connection); }) {
    const auto listening = listener.listen(address);
    if (!listening) FAIL(describe(listening.error()));
  }

  /// A peer whose connection is open.
  [[nodiscard]] Peer connect(int receive_buffer_bytes = 0) {
    const int opened_before = log.opened;
    Peer peer(*listener.address(), receive_buffer_bytes);
    REQUIRE(turn_until([&] { return log.opened > opened_before; }));
    return peer;
  }
};

/// A connector's attempts, all with the same log.
template <class Handler = Recorder>
class Attempted : public Scene {
 public:
  Connector<Handler> connector;

  explicit Attempted(const ConnectorOptions& options = {}, const ReactorOptions& reactor_options = {})
      : Scene(reactor_options),
        connector(reactor, options, [this](Connection& connection) { return Handler(log, connection); }) {}

  ConnectionHandle connect(const Address& address) {
    auto attempt = connector.connect(address);
    if (!attempt) FAIL(describe(attempt.error()));
    return *attempt;
  }
};

/// Keeps the thread busy: what a slow callback does.
inline void work_for(Duration duration) {
  const Instant end = now() + duration;
  while (now() < end) {
  }
}

}  // namespace vigil::test
