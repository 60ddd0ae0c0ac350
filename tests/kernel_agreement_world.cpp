// The simulated site.
#include <chrono>

#include "kernel_agreement_site.hpp"
#include "vigil/sim.hpp"

namespace {

vigil::sim::World* world_of_site = nullptr;

}  // namespace

void run_on_site(std::uint64_t seed, vigil::Duration, void (*script)(std::uint64_t seed)) {
  vigil::sim::World world({.seed = seed});
  world_of_site = &world;
  script(seed);
  world_of_site = nullptr;
}

/// Several round trips, and yet so little that no timer of TCP's comes due in a whole script: none does on loopback either.
void settle(const std::vector<int>&) { world_of_site->run_for(std::chrono::milliseconds(1)); }
