// Compiled once for all test files, which still include what they use: it only saves time.
#ifndef VIGIL_TESTS_PRECOMPILED  // not #pragma once, which a main file may not say
#define VIGIL_TESTS_PRECOMPILED

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#endif
