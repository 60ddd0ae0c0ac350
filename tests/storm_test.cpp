// Twenty thousand lives, most of them cut off, in random order, against one reactor and against two that share the address.
#include <doctest/doctest.h>

#include <dirent.h>

#include <chrono>
#include <cstdint>
#include <list>
#include <thread>

#include "reactor_core.hpp"
#include "support/seed.hpp"
#include "support/storm.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::CloseReason;
using vigil::Connection;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::ReactorCore;
namespace test = vigil::test;

std::size_t slots_taken(Reactor& reactor) {
  std::size_t taken = 0;
  for (const auto& slab : ReactorCore::of(reactor).slabs_) taken += slab->taken();
  return taken;
}

std::size_t open_descriptors() {
  DIR* directory = ::opendir("/proc/self/fd");
  REQUIRE(directory != nullptr);
  std::size_t count = 0;
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

/// One that is asked at the peer's end, and closes.
struct AskedStormHandler : test::StormHandler {
  using test::StormHandler::StormHandler;
  void on_peer_finished(Connection& connection) { connection.close(); }
};

/// A reactor that runs on a thread of its own until it is told to stop.
template <class Handler>
struct StormReactor {
  StormReactor(test::Storm& storm, const vigil::Address& address)
      : listener(reactor, options(),
                 [&storm](Connection& connection) { return Handler(storm, test::Storm::number_of(connection.peer())); }) {
    REQUIRE(listener.listen(address));
    slots_before = slots_taken(reactor);
  }

  // Deadlines that never come due: what is measured is that they are armed, moved and taken back.
  static ListenerOptions options() {
    return {.timeouts = {.first_byte = 10min, .receive = 10min, .send = 10min, .drain = 10min}, .reuse_port = true};
  }

  Reactor reactor;
  Listener<Handler> listener;
  std::size_t slots_before = 0;
  std::thread thread;
};

template <class Handler>
void check_storm(std::size_t reactor_count) {
  const std::uint64_t seed = test::seed_of("the storm");
  CAPTURE(seed);
  test::Storm storm(seed);
  std::list<StormReactor<Handler>> servers;
  vigil::Address address = test::loopback();
  while (servers.size() < reactor_count) {
    servers.emplace_back(storm, address);
    address = *servers.back().listener.address();
  }
  const std::size_t descriptors_before = open_descriptors();
  for (auto& server : servers)
    server.thread = std::thread([&server] {
      if (!server.reactor.run()) std::abort();
    });

  storm.blow(address);

  for (auto& server : servers) {
    CHECK(server.reactor.mailbox().stop());
    server.thread.join();
  }
  CHECK(storm.problems() == "");
  CHECK(storm.told == test::Storm::lives_count);
  CHECK(storm.handlers == 0);
  CHECK(open_descriptors() == descriptors_before);
  std::uint64_t opened = 0, closed = 0, finished = 0, was_reset = 0;
  for (auto& server : servers) {
    const vigil::ReactorCounters& counters = server.reactor.counters();
    CHECK(counters.opened > test::Storm::lives_count / 10);  // each had its share
    CHECK(counters.opened == counters.closed);
    CHECK(slots_taken(server.reactor) == server.slots_before);
    opened += counters.opened;
    closed += counters.closed;
    finished += counters.closed_for[static_cast<std::size_t>(CloseReason::peer_finished)];
    was_reset += counters.closed_for[static_cast<std::size_t>(CloseReason::peer_reset)];
  }
  CHECK(opened == test::Storm::lives_count);
  CHECK(closed == test::Storm::lives_count);
  CHECK(finished + was_reset == closed);
}

TEST_SUITE("threads") {
  TEST_CASE("a storm of 20,000 lives leaves one reactor with a true record of each, and nothing else") {
    check_storm<test::StormHandler>(1);
  }

  TEST_CASE("a storm of 20,000 lives leaves two reactors at one address with a true record of each, and nothing else") {
    check_storm<AskedStormHandler>(2);
  }
}

}  // namespace
