// No memory left, for as long as an OutOfMemory lives, or after as many allocations as it spares: of all only those that may
// answer null are made to. What does it are an operator new in regressions_sim_test.cpp and, for slots, one in
// out_of_memory_sim_test.cpp.
#pragma once

// The thread sanitizer brings an operator new of its own, which can't be replaced: there, memory does not run out.
#if defined(__SANITIZE_THREAD__)
#define VIGIL_MEMORY_RUNS_OUT 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VIGIL_MEMORY_RUNS_OUT 0
#endif
#endif
#ifndef VIGIL_MEMORY_RUNS_OUT
#define VIGIL_MEMORY_RUNS_OUT 1
#endif

#if VIGIL_MEMORY_RUNS_OUT
namespace vigil {

inline bool out_of_memory = false;
inline unsigned allocations_spared = 0;

/// Whether the allocation that asks fails.
inline bool memory_runs_out() {
  if (!out_of_memory || allocations_spared == 0) return out_of_memory;
  --allocations_spared;
  return false;
}

struct OutOfMemory {
  explicit OutOfMemory(unsigned spared = 0) {
    allocations_spared = spared;
    out_of_memory = true;
  }
  ~OutOfMemory() { out_of_memory = false; }
  OutOfMemory(const OutOfMemory&) = delete;
  OutOfMemory& operator=(const OutOfMemory&) = delete;
};

}  // namespace vigil
#endif
