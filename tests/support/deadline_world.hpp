// A scripted world for tests of deadlines: a handler that may mark messages, leave bytes and be asked for more time, and the
// instants at which its connections ended.
//
//   DeadlineWorld world({.message = 2s});
//   const int peer = world.accept();
//   const Instant opened = world.kernel.now();
//   world.run_for(5s);
//   world.check_end(peer, CloseReason::message_timed_out, opened + 2s);
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "simulation.hpp"

namespace vigil {

/// What the handlers of the test that runs do beyond their story, and what they were asked.
struct Script {
  std::function<Duration(Connection&, Deadline)> on_deadline;         // empty: no more time
  std::function<std::size_t(Connection&, std::string_view)> consume;  // empty: all
  std::vector<Deadline> asked;

  static Script*& current() {
    static Script* script = nullptr;
    return script;
  }
};

class DeadlineActor : public Actor {
 public:
  using Actor::Actor;

  std::size_t on_receive(Connection& connection, Bytes bytes) {
    Actor::on_receive(connection, bytes);
    const Script& script = *Script::current();
    return script.consume ? script.consume(connection, text_of(bytes)) : bytes.size();
  }

  void on_peer_finished(Connection& connection) {
    if (story_->on_peer_finished) story_->on_peer_finished(connection);
  }

  Duration on_deadline(Connection& connection, Deadline kind) {
    CHECK_FALSE(closed_);
    Script& script = *Script::current();
    script.asked.push_back(kind);
    return script.on_deadline ? script.on_deadline(connection, kind) : Duration::zero();
  }
};

struct DeadlineWorld : Script, SimulationOf<DeadlineActor> {
  static constexpr Duration tick = std::chrono::milliseconds(1);

  explicit DeadlineWorld(const Timeouts& timeouts, const ReactorOptions& reactor_options = {})
      : SimulationOf<DeadlineActor>(with(timeouts), reactor_options) {
    Script::current() = this;
    story.on_close = [this](Connection&, const CloseRecord&) { ended_at[story.closed.back()] = kernel.now(); };
  }
  ~DeadlineWorld() {
    on_deadline = nullptr;  // they may refer to what the test had declared
    consume = nullptr;
  }

  static ListenerOptions with(const Timeouts& timeouts) {
    ListenerOptions options;
    options.timeouts = timeouts;
    return options;
  }

  Connection& connection(int descriptor) { return story.connection(descriptor); }
  [[nodiscard]] bool is_over(int descriptor) const { return ended_at.contains(descriptor); }

  /// Every line is a message.
  void mark_lines() {
    story.on_receive = [](Connection& connection, std::string_view text) {
      if (text.ends_with('\n')) connection.end_message();
    };
  }

  /// It ended for this reason, never early, and at most so much late.
  void check_end(int descriptor, CloseReason reason, Instant due, Duration late_at_most = tick) {
    REQUIRE(is_over(descriptor));
    CHECK(std::string(to_string(story.record(descriptor).reason)) == to_string(reason));
    check_instant(ended_at.at(descriptor), due, late_at_most);
  }
  static void check_instant(Instant happened, Instant due, Duration late_at_most = tick) {
    const auto late_ns = (happened - due).count();
    CHECK(late_ns >= 0);
    CHECK(late_ns <= late_at_most.count());
  }

  std::map<int, Instant> ended_at;
};

}  // namespace vigil
