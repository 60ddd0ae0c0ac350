#include <cstdio>
#include <cstdlib>

#include "expect.hpp"

void vigil::fuzz::broken(const char* expectation) {
  std::fprintf(stderr, "BROKEN: %s\n", expectation);
  std::abort();
}
