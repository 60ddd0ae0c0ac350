// The entry of a fuzz target, tests/fuzz/X_fuzz.cpp, by the name that libFuzzer calls. The program that runs the corpus holds all
// targets: for it the build renames each one's entry to fuzz_X.
#pragma once

#include <cstddef>
#include <cstdint>

/// Runs one input; returns 0. What it expects is said with expect().
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
