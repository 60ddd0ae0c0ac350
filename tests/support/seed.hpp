// The seed of a test whose order is random. It is printed, and VIGIL_SEED in the environment replays it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace vigil::test {

inline std::uint64_t seed_of(const char* what) {
  const char* given = std::getenv("VIGIL_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("seed of %s: VIGIL_SEED=%llu\n", what, static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace vigil::test
