// What becomes of connections, listeners and reactors where no memory is left, on virtual time; of the queue's:
// regressions_sim_test.cpp.
#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <new>
#include <string_view>
#include <vector>

#include "support/out_of_memory.hpp"
#include "support/simulation.hpp"

using namespace vigil;

#if VIGIL_MEMORY_RUNS_OUT

/// Of slots; the rest: regressions_sim_test.cpp.
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  if (vigil::memory_runs_out()) return nullptr;
  try {
    return ::operator new(size, alignment);
  } catch (...) {
    return nullptr;
  }
}

namespace {

void check_without_memory(const CloseRecord& record, std::string_view operation, Phase phase) {
  CHECK(record.reason == CloseReason::system_error);
  CHECK(record.error_number == ENOMEM);
  CHECK(std::string_view(record.operation) == operation);
  CHECK(record.phase == phase);
}

/// The options of a listener whose connections need memory beside their slot.
ListenerOptions needing(bool a_rate) {
  ListenerOptions options;
  if (a_rate) options.timeouts.receive_rate = {.bytes_per_second = 100};
  if (!a_rate) options.heartbeat = {.budget = 10s, .ping = "ping"};
  return options;
}

}  // namespace

TEST_CASE("a message that can't be marked for want of memory ends its connection with the cause") {
  for (const bool begins : {true, false}) {
    CAPTURE(begins);
    Simulation world;
    const int peer = world.accept();
    {
      const OutOfMemory shortage;
      begins ? world.story.connection(peer).begin_message() : world.story.connection(peer).end_message();
    }
    world.settle();
    check_without_memory(world.story.record(peer), begins ? "begin_message" : "end_message", Phase::open);
  }
}

TEST_CASE("a connection without memory for its rates or its heartbeat never opens, and the next one does") {
  for (const bool a_rate : {true, false}) {
    CAPTURE(a_rate);
    Simulation world;
    (void)world.accept();  // so that there are slots
    Listener<Actor> needy(*world.reactor, needing(a_rate),
                          [&](Connection& connection) { return Actor(world.story, connection); });
    REQUIRE(needy.listen("127.0.0.1:7001"));
    const int listening = world.kernel.listener();
    REQUIRE(listening != world.listening);
    int peer = -1;
    {
      const OutOfMemory shortage;
      peer = world.kernel.peer_connects(listening);
      world.settle();
    }
    check_without_memory(world.story.record(peer), "open", Phase::connecting);
    const std::size_t opened = world.story.opened.size();
    (void)world.kernel.peer_connects(listening);
    world.settle();
    CHECK(world.story.opened.size() == opened + 1);
  }
}

TEST_CASE(
    "a listener without memory for its policy or its ping does not listen, whichever is missing, and does when there is some") {
  Simulation world;
  Listener<Actor> listener(*world.reactor, needing(false),
                           [&](Connection& connection) { return Actor(world.story, connection); });
  const auto listens_with = [&](unsigned allocations) {
    const OutOfMemory shortage(allocations);
    const Result<void> bound = listener.listen("127.0.0.1:7001");
    if (!bound) CHECK(bound.error().code == ENOMEM);
    return bool(bound);
  };
  unsigned enough = 0;
  while (enough < 100 && !listens_with(enough)) ++enough;
  CHECK(enough >= 2);  // the policy, the ping
  CHECK(enough < 100);
}

TEST_CASE("without memory for a slot an accepted connection is shed, accepting pauses, and goes on by itself") {
  Simulation world;
  {
    const OutOfMemory shortage;
    (void)world.kernel.peer_connects(world.listening);
    world.settle();
  }
  CHECK(world.story.opened.empty());
  CHECK(world.reactor->counters().closed_for[static_cast<std::size_t>(CloseReason::accept_shed)] == 1);
  (void)world.kernel.peer_connects(world.listening);
  world.run_for(1min);
  CHECK(world.story.opened.size() == 1);
}

TEST_CASE("whichever allocation of taking a connection fails, it is shed, and the next one is taken") {
  unsigned spared = 0;
  for (bool taken = false; !taken; ++spared) {
    CAPTURE(spared);
    REQUIRE(spared < 100);
    Simulation world;
    for (int slots = 0; slots < 120; ++slots) (void)world.accept();  // more need a chunk, and longer lists
    const std::size_t before = world.story.opened.size();
    const auto shed = [&] { return world.reactor->counters().closed_for[static_cast<std::size_t>(CloseReason::accept_shed)]; };
    {
      const OutOfMemory shortage(spared);
      for (int more = 0; more < 80 && shed() == 0; ++more) {
        (void)world.kernel.peer_connects(world.listening);
        world.settle();
      }
    }
    taken = shed() == 0;
    if (taken) CHECK(world.story.opened.size() == before + 80);
    const std::size_t taken_so_far = world.story.opened.size();
    (void)world.kernel.peer_connects(world.listening);
    world.run_for(1min);
    CHECK(world.story.opened.size() == taken_so_far + 1);
  }
  CHECK(spared > 10);  // three arrays and the chunk of a slab, six lists
}

TEST_CASE("a reactor made without memory says so, and a signal that can't be watched for want of it stays as it was") {
  CheckedKernel kernel;
  {
    const OutOfMemory shortage;
    Reactor reactor;
    const auto ran = reactor.turn(0ns);
    REQUIRE_FALSE(ran);
    CHECK(ran.error().code == ENOMEM);
  }
  Reactor reactor;
  std::vector<Timer> timers;  // they take the slots that there are
  int refused = 0;
  while (refused == 0 && timers.size() < 100'000) {
    const OutOfMemory shortage;
    timers.emplace_back(reactor, [] {});
    auto watch = reactor.on_signal(SIGUSR1, [](int) {});
    if (!watch) refused = watch.error().code;
  }
  CHECK(refused == ENOMEM);
  CHECK(reactor.on_signal(SIGUSR1, [](int) {}));
}

#endif
