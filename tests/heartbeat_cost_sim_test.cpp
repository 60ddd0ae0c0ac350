// What a heartbeat costs a connection on which messages come: nothing each, and a look now and then.
#include <doctest/doctest.h>

#include <chrono>
#include <string>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr Duration interval = 5s;

ListenerOptions with_heartbeat(bool wanted) {
  ListenerOptions options;
  options.timeouts.receive = 30s;
  if (wanted) options.heartbeat = {.budget = 4 * interval, .interval = interval, .ping = "ping"};
  return options;
}

struct Cost {
  std::size_t waits, receives, sends, calls, clock_reads;
};

/// Of so many echoed messages, one every 100 ms.
Cost cost_of(int messages, bool heartbeat) {
  Simulation world(with_heartbeat(heartbeat));
  const int peer = world.accept();
  world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
  world.kernel.forget_calls();
  const std::size_t read_before = world.kernel.clock_reads();
  for (int message = 0; message < messages; ++message) {
    world.kernel.after(100ms, [&] { world.kernel.peer_sends(peer, "hello"); });
    const std::size_t received = world.story.received[peer].size();
    while (world.story.received[peer].size() == received) world.turn();
  }
  CHECK(world.story.records.empty());
  return {world.kernel.count(Call::epoll_wait), world.kernel.count(Call::recv), world.kernel.count(Call::send),
          world.kernel.calls().size(), world.kernel.clock_reads() - read_before};
}

}  // namespace

TEST_SUITE_BEGIN("heartbeat");

TEST_CASE("with a heartbeat an echoed message makes no system call more") {
  constexpr int messages = 3000;
  const Cost without = cost_of(messages, false);
  const Cost with = cost_of(messages, true);
  CHECK(with.receives == messages);
  CHECK(with.sends == messages);
  // The kernel is not asked about a peer from whom something came: looks are waits that end, at most one per half interval.
  CHECK(with.calls == with.waits + with.receives + with.sends);
  constexpr std::size_t looks = messages * 100ms / (interval / 2) + 1;
  CHECK(with.waits >= messages);
  CHECK(with.waits <= without.waits + looks);
  CHECK(with.clock_reads <= without.clock_reads + 4 * looks);
}

TEST_CASE("a probe and its answer cost a wait, a send and two recvs, and a look at what the kernel knows") {
  Simulation world(with_heartbeat(true));
  const int peer = world.accept();
  world.kernel.forget_calls();
  constexpr int probes = 100;
  for (int probe = 0; probe < probes; ++probe) {
    const std::size_t sent = world.kernel.sent(peer).size();
    while (world.kernel.sent(peer).size() == sent) world.turn();
    world.kernel.peer_sends(peer, "pong");
    world.turn();
  }
  CHECK(world.kernel.count(Call::send) + world.kernel.count(Call::send_vector) == probes);
  CHECK(world.kernel.count(Call::tcp_sample) == probes);
  CHECK(world.kernel.calls().size() <= 10 * probes);
}

TEST_SUITE_END();
