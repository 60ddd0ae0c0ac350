// Where a script of system calls runs: on this machine's kernel (kernel_agreement_kernel.cpp) or in a simulated world
// (kernel_agreement_world.cpp). Linked with one of the two.
#pragma once

#include <cstdint>
#include <vector>

#include "vigil/time.hpp"

/// Runs `script` on a kernel of its own. `patience`: how long nothing must have changed to be settled, where time is real.
void run_on_site(std::uint64_t seed, vigil::Duration patience, void (*script)(std::uint64_t seed));

/// Returns when what the calls so far have set off has arrived at these sockets.
void settle(const std::vector<int>& sockets);
