// When probes go out on a server with very many connections: spread over time, whatever made all of them silent at once.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

#include "support/seed.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace vigil;
using namespace std::chrono_literals;
using sim::Peer;
using sim::World;

namespace {

constexpr std::size_t lives = 10'000;
constexpr Duration interval = 20s;
constexpr Duration bucket = 100ms;

struct Idle {
  void on_receive(Connection&, Bytes bytes) {
    if (bytes.text() == "all") ++heard_in_turn->at(reactor->counters().turns % heard_in_turn->size());
  }
  void on_close(Connection&, const CloseRecord&) { ++*ended; }
  Reactor* reactor;
  std::vector<std::size_t>* heard_in_turn;
  std::size_t* ended;
};

ListenerOptions probing() {
  ListenerOptions options;
  options.heartbeat = {.budget = 4 * interval, .interval = interval, .ping = "ping"};
  return options;
}

/// Ten thousand peers that answer every probe and say nothing else.
struct Crowd {
  explicit Crowd(std::uint64_t seed)
      : world({.seed = seed}), listener(reactor, probing(), [this](Connection&) {
          return Idle{&reactor, &heard_in_turn, &ended};
        }) {
    REQUIRE(listener.listen("10.0.0.1:7000"));
    world.attach(reactor);
    peers.reserve(lives);
    last_probe.resize(lives);
    for (std::size_t index = 0; index < lives; ++index) {
      Peer& peer = world.host("10.0.0.2").connect("10.0.0.1:7000");
      peer.on_receive = [this, index](Peer& self, std::string_view probe) {
        CHECK(probe == "ping");
        probed(index);
        self.send("pong");
      };
      peers.push_back(&peer);
      if (index % 1000 == 999) world.run_for(1ms);  // the listener's queue has an end
    }
    world.run_for(100ms);
    REQUIRE(reactor.counters().opened == lives);
  }

  void probed(std::size_t index) {
    const auto at = static_cast<std::size_t>((world.now() - began) / bucket);
    if (at < buckets.size()) ++buckets[at];
    if (last_probe[index] != Instant{}) gaps.push_back(world.now() - last_probe[index]);
    last_probe[index] = world.now();
  }

  /// Counts from now on.
  void run_for_intervals(int count) {
    began = world.now();
    buckets.assign(static_cast<std::size_t>(count * interval / bucket), 0);
    gaps.clear();
    world.run_until(began + count * interval);
  }

  /// Every 100 ms of them, those in which nobody was asked too.
  [[nodiscard]] double mean() const {
    return static_cast<double>(std::accumulate(buckets.begin(), buckets.end(), std::size_t{0})) /
           static_cast<double>(buckets.size());
  }
  [[nodiscard]] double largest() const { return static_cast<double>(*std::max_element(buckets.begin(), buckets.end())); }

  World world;
  std::vector<std::size_t> heard_in_turn = std::vector<std::size_t>(64);
  std::size_t ended = 0;
  std::vector<Peer*> peers;
  std::vector<Instant> last_probe;
  std::vector<std::size_t> buckets;
  std::vector<Duration> gaps;
  Instant began{};
  Reactor reactor{{.events_per_wait = 65'536}};
  Listener<Idle> listener;
};

}  // namespace

TEST_SUITE_BEGIN("heartbeat");

// The mean is that of all the buckets of three intervals, those of the first half interval too, in which nobody is asked by
// rule: a phase is half an interval to a whole one. A crowd that falls silent together is therefore asked at 1.7 times the mean,
// or at 1.9 times where a timer stood later than the new phase already. The rest, up to three times, is room for chance; one run
// in several hundred thousand may need it all.
TEST_CASE(
    "ten thousand that were opened together, or that heard one word in one turn, are asked at no time three times as much") {
  Crowd crowd(test::seed_of("ten thousand idle connections"));
  crowd.run_for_intervals(3);
  CHECK(crowd.largest() <= 3 * crowd.mean());
  for (Peer* peer : crowd.peers) peer->send("all");
  crowd.run_for_intervals(3);
  CHECK(*std::max_element(crowd.heard_in_turn.begin(), crowd.heard_in_turn.end()) == lives);
  CHECK(crowd.largest() <= 3 * crowd.mean());

  // Each silence draws its own phase: soon nothing is left of that beginning, and no two probes are an interval apart by rule.
  crowd.run_for_intervals(3);
  crowd.run_for_intervals(2);
  CHECK(crowd.largest() <= 2 * crowd.mean());
  const auto [shortest, longest] = std::minmax_element(crowd.gaps.begin(), crowd.gaps.end());
  CHECK(*shortest >= interval / 2);
  CHECK(*shortest <= interval * 51 / 100);
  CHECK(*longest >= interval * 99 / 100);
  CHECK(*longest <= interval + 10ms);
  const Duration mean = std::accumulate(crowd.gaps.begin(), crowd.gaps.end(), Duration()) / static_cast<int>(crowd.gaps.size());
  CHECK(mean >= interval * 74 / 100);
  CHECK(mean <= interval * 76 / 100);
  CHECK(crowd.ended == 0);
}

TEST_SUITE_END();
