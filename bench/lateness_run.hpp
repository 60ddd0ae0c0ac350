// How bench/lateness.cpp holds many deadlines of one kind on one reactor, and when each was due by the bench's own clock.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lateness_peers.hpp"
#include "lateness_row.hpp"
#include "vigil/vigil.hpp"

namespace lateness {

using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::CutShort;
using vigil::Timeouts;

inline constexpr Duration shortest = 50ms;
inline constexpr Duration longest = 450ms;
inline constexpr Duration spacing = 350us;      // between two connects
inline constexpr std::size_t group_count = 48;  // of connections with the same timeout
inline constexpr Duration never_ends = 60s;

inline Duration between(Random& random, Duration low, Duration high) {
  return Duration(std::uniform_int_distribution<std::int64_t>(low.count(), high.count())(random));
}

template <class Value>
Value must(vigil::Result<Value> result) {
  if (!result) std::exit(vigil::report(result.error()));
  return std::move(*result);
}

inline void must(const vigil::Result<void>& result) {
  if (!result) std::exit(vigil::report(result.error()));
}

struct Run {
  vigil::Reactor reactor;
  std::size_t left = options.count;

  void one_told() {
    if (--left == 0) reactor.stop();
  }

  void until_all_told(const char* name) {
    vigil::Timer guard(reactor, [&] {
      std::fprintf(stderr, "%s: %zu of %zu were not told within %.0f s\n", name, left, options.count,
                   milliseconds(never_ends) / 1000);
      std::exit(1);
    });
    must(guard.arm_after(never_ends));
    must(reactor.run());
  }

  [[nodiscard]] Duration loop_delay() const { return Duration(static_cast<std::int64_t>(reactor.counters().loop_delay_ns_max)); }
};

struct Life {
  std::size_t group = 0;
  Duration timeout{};
  std::uint16_t port = 0;  // the peer's; another group's may have the same
  Instant opened{};
  Instant heard{};  // the last on_receive
  Span acted{};     // what its scenario does to it
  Instant told{};
  CloseRecord record{};
  Duration loop_delay{};  // its reactor's worst
};

struct Scenario {
  const char* name;
  CloseReason reason;
  CutShort cut_short = CutShort::none;
  std::optional<vigil::Verdict> verdict{};
  std::function<Timeouts(Duration)> timeouts;
  std::function<vigil::HeartbeatOptions(Duration)> heartbeat{};
  std::pair<Duration, Duration> range{shortest, longest};  // of the timeouts
  std::function<void(vigil::Reactor&, Connection&, Life&)> on_open{};
  std::function<void(Connection&, Life&)> on_receive{};
  std::vector<std::pair<double, double>> moments{};  // when the peer acts: drawn from these shares of the timeout
  std::function<void(Peer&)> act{};
  /// What the deadline ran from; nothing: nobody can say.
  std::function<std::optional<Span>(const Life&, const Peer&)> from;
  double allowance = 0;     // as a share of the timeout
  bool is_deadline = true;  // else what was told is what the peer did
  int peer_receive_buffer_bytes = 0;
};

struct Probe {
  Run* run;
  const Scenario* scenario;
  Life* life;

  void on_open(Connection& connection) {
    life->opened = clock_now();
    if (scenario->on_open) scenario->on_open(run->reactor, connection, *life);
  }
  void on_receive(Connection& connection, Bytes) {
    life->heard = clock_now();
    if (scenario->on_receive) scenario->on_receive(connection, *life);
  }
  void on_close(Connection&, const CloseRecord& record) {
    life->told = clock_now();
    life->record = record;
    run->one_told();
  }
};

inline Row run_scenario(const Scenario& scenario) {
  Random random = random_for(scenario.name);
  Run run;
  std::vector<Life> lives;
  lives.reserve(options.count);
  std::vector<std::unique_ptr<vigil::Listener<Probe>>> listeners;
  std::vector<std::pair<std::uint16_t, Duration>> groups;
  for (std::size_t group = 0; group < group_count; ++group) {
    const Duration timeout = between(random, scenario.range.first, scenario.range.second);
    vigil::ListenerOptions listener_options{.timeouts = scenario.timeouts(timeout)};
    if (scenario.heartbeat) listener_options.heartbeat = scenario.heartbeat(timeout);
    listeners.push_back(
        std::make_unique<vigil::Listener<Probe>>(run.reactor, listener_options, [&, group, timeout](Connection& connection) {
          lives.push_back({.group = group, .timeout = timeout, .port = connection.peer().port()});
          return Probe{&run, &scenario, &lives.back()};
        }));
    must(listeners.back()->listen("127.0.0.1:0"));
    groups.emplace_back(must(listeners.back()->address()).port(), timeout);
  }

  std::vector<Peer> peers(options.count);
  const Instant begin = clock_now() + 10ms;
  for (std::size_t index = 0; index < options.count; ++index) {
    const auto& [port, timeout] = groups[index % group_count];
    Peer& peer = peers[index];
    peer.server_port = port;
    peer.timeout = timeout;
    peer.connect_at = begin + spacing * static_cast<int>(index);
    peer.receive_buffer_bytes = scenario.peer_receive_buffer_bytes;
    for (const auto& [low, high] : scenario.moments)
      peer.moments.push_back(scaled(timeout, std::uniform_real_distribution<>(low, high)(random)));
  }
  PeerThread thread(peers, scenario.act);
  run.until_all_told(scenario.name);
  thread.join();

  std::map<std::pair<std::size_t, std::uint16_t>, const Peer*> peer_of;
  for (std::size_t index = 0; index < options.count; ++index) peer_of[{index % group_count, peers[index].port}] = &peers[index];
  Row row{.name = scenario.name, .loop_delay = run.loop_delay()};
  for (Life& life : lives) {
    life.loop_delay = run.loop_delay();
    const auto from = scenario.from(life, *peer_of.at({life.group, life.port}));
    const bool as_expected = life.record.reason == scenario.reason && life.record.cut_short == scenario.cut_short &&
                             life.record.verdict == scenario.verdict;
    if (!as_expected) ++row.wrong_reason;
    if (from && as_expected) {
      row.told.push_back({.from = *from,
                          .timeout = scenario.is_deadline ? life.timeout : Duration::zero(),
                          .at = life.told,
                          .allowance = scaled(life.timeout, scenario.allowance)});
    }
    if (!from) ++row.left_out;
  }
  for (Peer& peer : peers)
    if (peer.descriptor >= 0) reset_peer(peer);
  if (!scenario.is_deadline) row.targets = {.median = Duration::max(), .p99 = 5ms};
  return row;
}

/// Calls `begin(index)` for each of them, a few per tick, so that beginning them keeps the loop from nothing.
class Pacer {
 public:
  Pacer(vigil::Reactor& reactor, std::function<void(std::size_t)> begin)
      : begin_(std::move(begin)), timer_(reactor, [this] { some(); }) {
    must(timer_.arm_after(1ms));
  }

 private:
  void some() {
    for (int count = 0; count < 3 && next_ < options.count; ++count) begin_(next_++);
    if (next_ < options.count) must(timer_.arm_after(1ms));
  }

  std::function<void(std::size_t)> begin_;
  std::size_t next_ = 0;
  vigil::Timer timer_;
};

}  // namespace lateness
