// Slots: none is ever moved, unmapped or handed out under a generation it had before.
#include "source_slab.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace {

using vigil::Source;
using vigil::SourceOperations;
using vigil::SourceSlab;

/// A source as the core makes them: it is taken once its operations are set.
struct Probe final : Source {
  static Source* construct(void* slot) {
    ++constructed;
    return ::new (slot) Probe;
  }
  void begin() { operations_ = &operations; }
  static constexpr SourceOperations operations{};
  static inline int constructed = 0;
  std::uint64_t content = 0;
};

Probe& take(SourceSlab& slab) {
  Source* source = slab.take();
  REQUIRE(source != nullptr);
  auto& probe = static_cast<Probe&>(*source);
  probe.begin();
  return probe;
}

std::vector<Source*> taken(SourceSlab& slab) {
  std::vector<Source*> sources;
  slab.for_each_taken([&](Source& source) { sources.push_back(&source); });
  return sources;
}

TEST_CASE("slots are aligned, apart from each other, and stay where they are") {
  for (const std::size_t bytes : {sizeof(Probe), sizeof(Probe) + 1, std::size_t{1000}}) {
    SourceSlab slab(bytes, alignof(Probe), &Probe::construct);
    CHECK(slab.slot_bytes() >= bytes);
    CHECK(slab.slot_bytes() % slab.alignment() == 0);
    std::vector<Probe*> probes;
    for (std::uint64_t count = 0; count < 5000; ++count) {
      probes.push_back(&take(slab));
      probes.back()->content = count;
    }
    CHECK(slab.taken() == 5000);
    std::set<std::uintptr_t> places;
    for (std::size_t index = 0; index < probes.size(); ++index) {
      CHECK(probes[index]->content == index);
      const auto place = reinterpret_cast<std::uintptr_t>(probes[index]);
      CHECK(place % alignof(Probe) == 0);
      const auto after = places.lower_bound(place);
      CHECK((after == places.end() || *after - place >= slab.slot_bytes()));
      places.insert(place);
    }
    CHECK(taken(slab).size() == 5000);
    for (Probe* probe : probes) slab.give_back(*probe);
    CHECK(taken(slab).empty());
  }
}

TEST_CASE("a slot is constructed once and reused under a new generation") {
  SourceSlab slab(sizeof(Probe), alignof(Probe), &Probe::construct);
  Probe& first = take(slab);
  const int constructed = Probe::constructed;
  for (std::uint32_t life = 0; life < 1000; ++life) {
    CHECK(first.generation() == life);
    slab.give_back(first);
    CHECK(first.generation() == life + 1);  // still mapped: whoever kept a pointer sees that the life is over
    CHECK(&take(slab) == &first);
  }
  CHECK(Probe::constructed == constructed);
  slab.give_back(first);
}

TEST_CASE("a slot whose generations are used up retires, and others take its place") {
  for (const std::uint32_t generation_max : {0U, 1U, 3U}) {
    CAPTURE(generation_max);
    SourceSlab slab(sizeof(Probe), alignof(Probe), &Probe::construct, generation_max);
    std::set<std::pair<Source*, std::uint32_t>> lives;
    for (int count = 0; count < 1000; ++count) {
      Probe& probe = take(slab);
      CHECK(probe.generation() <= generation_max);
      CHECK(lives.insert({&probe, probe.generation()}).second);  // a handle to an old life never matches
      slab.give_back(probe);
    }
    CHECK(slab.taken() == 0);
    CHECK(taken(slab).empty());
  }
}

TEST_CASE("any order of taking and giving back keeps lives apart") {
  std::mt19937_64 random(7);
  SourceSlab slab(sizeof(Probe), alignof(Probe), &Probe::construct, 5);
  std::vector<std::pair<Probe*, std::uint32_t>> alive;
  std::set<std::pair<Source*, std::uint32_t>> lives;
  for (int step = 0; step < 20'000; ++step) {
    if (alive.empty() || random() % 2 == 0) {
      Probe& probe = take(slab);
      CHECK(lives.insert({&probe, probe.generation()}).second);
      alive.push_back({&probe, probe.generation()});
    } else {
      std::swap(alive[random() % alive.size()], alive.back());
      CHECK(alive.back().first->generation() == alive.back().second);
      slab.give_back(*alive.back().first);
      alive.pop_back();
    }
    CHECK(slab.taken() == alive.size());
  }
  std::vector<Source*> expected;
  for (const auto& [probe, generation] : alive) expected.push_back(probe);
  std::vector<Source*> seen = taken(slab);
  std::sort(expected.begin(), expected.end());
  std::sort(seen.begin(), seen.end());
  CHECK(seen == expected);
  for (const auto& [probe, generation] : alive) slab.give_back(*probe);
}

TEST_CASE("a visit of the taken slots may take more and give back what it visits") {
  SourceSlab slab(sizeof(Probe), alignof(Probe), &Probe::construct);
  for (int count = 0; count < 8; ++count) take(slab);
  int visits = 0;
  slab.for_each_taken([&](Source& source) {
    if (++visits <= 8) {
      take(slab);
      slab.give_back(source);
    }
  });
  CHECK(visits >= 8);
  CHECK(slab.taken() == 8);
}

}  // namespace
