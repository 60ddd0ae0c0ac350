// A reactor in a scripted world, and handlers whose behaviour a test writes as it goes.
//
//   Simulation world;
//   const int peer = world.accept();
//   world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
//   world.kernel.peer_sends(peer, "hello");
//   world.turn();
//   CHECK(world.kernel.sent(peer) == "hello");
//
// At the end of each test no descriptor is open, none was used after it was closed, and every life had exactly one record.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sys/simulated/scripted_kernel.hpp"
#include "vigil/vigil.hpp"

namespace vigil {

using namespace std::chrono_literals;

inline Bytes bytes_of(std::string_view text) { return Bytes(reinterpret_cast<const std::byte*>(text.data()), text.size()); }

inline std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

/// What happened to the connections of one test, by descriptor, and what their handlers do about it.
struct Story {
  std::function<void(Connection&)> on_open, on_send_drained, on_peer_finished, on_peer_gone_while_paused;
  std::function<void(Connection&, std::string_view)> on_receive;
  std::function<std::size_t(Connection&, std::string_view)> consume;  // of handlers that answer how much of it
  std::function<void(Connection&, const CloseRecord&)> on_close;

  std::vector<int> opened;                  // in order
  std::map<int, std::string> received;      // so far, of the last life of each descriptor
  std::vector<CloseRecord> records;         // in order
  std::vector<int> closed;                  // likewise
  std::map<int, ConnectionHandle> handles;  // of the last life of each descriptor
  int living = 0;                           // handlers built and not destroyed

  [[nodiscard]] Connection& connection(int descriptor) { return *handles.at(descriptor); }

  /// The record of the last life of this descriptor.
  [[nodiscard]] const CloseRecord& record(int descriptor) const {
    for (std::size_t index = closed.size(); index-- > 0;)
      if (closed[index] == descriptor) return records[index];
    FAIL("descriptor " << descriptor << " was not closed");
    return records.front();
  }
};

/// A handler that does what its story says.
class Actor {
 public:
  Actor(Story& story, Connection& connection) : story_(&story), descriptor_(connection.descriptor()) {
    ++story_->living;
    story_->handles[descriptor_] = connection.handle();
    story_->received[descriptor_].clear();
  }
  Actor(Actor&& other) noexcept : story_(other.story_), descriptor_(other.descriptor_) { ++story_->living; }
  Actor& operator=(Actor&&) = delete;
  ~Actor() { --story_->living; }

  void on_open(Connection& connection) {
    story_->opened.push_back(descriptor_);
    if (story_->on_open) story_->on_open(connection);
  }
  void on_receive(Connection& connection, Bytes bytes) {
    CHECK_FALSE(closed_);
    story_->received[descriptor_] += text_of(bytes);
    if (story_->on_receive) story_->on_receive(connection, text_of(bytes));
  }
  void on_send_drained(Connection& connection) {
    CHECK_FALSE(closed_);
    if (story_->on_send_drained) story_->on_send_drained(connection);
  }
  void on_close(Connection& connection, const CloseRecord& record) {
    CHECK_FALSE(closed_);
    closed_ = true;
    story_->closed.push_back(descriptor_);
    story_->records.push_back(record);
    if (story_->on_close) story_->on_close(connection, record);
  }

 protected:
  Story* story_;
  int descriptor_;
  bool closed_ = false;
};

/// One that keeps its own end open after the peer's.
class LingeringActor : public Actor {
 public:
  using Actor::Actor;
  void on_peer_finished(Connection& connection) {
    CHECK_FALSE(closed_);
    if (story_->on_peer_finished) story_->on_peer_finished(connection);
  }
};

/// The kernel, checked at the end for what a test left behind.
struct CheckedKernel : sys::ScriptedKernel {
  ~CheckedKernel() {
    CHECK(open_descriptors().empty());
    CHECK(calls_on_closed() == 0);
  }
};

template <class Handler = Actor>
struct SimulationOf {
  explicit SimulationOf(const ListenerOptions& options = {}, const ReactorOptions& reactor_options = {})
      : reactor(std::in_place, reactor_options),
        listener(std::in_place, *reactor, options, [this](Connection& connection) { return Handler(story, connection); }),
        connector(std::in_place, *reactor, ConnectorOptions{.timeouts = options.timeouts},
                  [this](Connection& connection) { return Handler(story, connection); }) {
    REQUIRE(listener->listen("127.0.0.1:7000"));
    listening = kernel.listener();
    settle();
  }

  ~SimulationOf() {
    // They may refer to what the test had declared.
    story.on_open = story.on_send_drained = story.on_peer_finished = story.on_peer_gone_while_paused = nullptr;
    story.on_receive = nullptr;
    story.consume = nullptr;
    story.on_close = nullptr;
    if (reactor) CHECK(reactor->counters().opened - reactor->counters().closed == alive());
    connector.reset();
    listener.reset();
    reactor.reset();
    CHECK(story.living == 0);
    CHECK(story.opened.size() <= story.records.size());
  }

  [[nodiscard]] std::uint64_t alive() const { return static_cast<std::uint64_t>(story.living); }

  void turn(Duration at_most = Duration::max()) {
    const auto turned = reactor->turn(at_most);
    if (!turned) FAIL("turn: " << describe(turned.error()));
  }

  /// Turns that do not wait, until nothing is left to do now.
  void settle() {
    for (int turns = 0; turns < 1000; ++turns) {
      const std::size_t calls_before = kernel.calls().size();
      turn(0ns);
      const auto& calls = kernel.calls();
      if (calls.size() == calls_before + 1 && calls.back().result == 0) return;
    }
    FAIL("there is always something left to do");
  }

  /// Turns until this instant.
  void run_until(Instant end) {
    while (kernel.now() < end) turn(end - kernel.now());
    settle();
  }
  void run_for(Duration duration) { run_until(kernel.now() + duration); }

  /// A peer connects, and its connection is open. Returns its descriptor.
  int accept() {
    const int descriptor = kernel.peer_connects(listening);
    settle();
    REQUIRE(!story.opened.empty());
    REQUIRE(story.opened.back() == descriptor);
    return descriptor;
  }

  /// An attempt is under way. Returns its descriptor.
  int connect() {
    const auto attempt = connector->connect("192.0.2.1:80");
    REQUIRE(attempt);
    const int descriptor = (*attempt)->descriptor();
    settle();
    return descriptor;
  }

  CheckedKernel kernel;
  Story story;
  std::optional<Reactor> reactor;
  std::optional<Listener<Handler>> listener;
  std::optional<Connector<Handler>> connector;
  int listening = -1;
};

using Simulation = SimulationOf<>;

/// A reactor alone.
struct LoneReactor {
  explicit LoneReactor(const ReactorOptions& options = {}) : reactor(options) {}

  void turn(Duration at_most = Duration::max()) {
    const auto turned = reactor.turn(at_most);
    if (!turned) FAIL("turn: " << describe(turned.error()));
  }
  void run_for(Duration duration) {
    const Instant end = kernel.now() + duration;
    while (kernel.now() < end) turn(end - kernel.now());
  }

  CheckedKernel kernel;
  Reactor reactor;
};

}  // namespace vigil
