// Which close reasons real connections have ended with in this run of the test program. The recording handlers report every
// record they are given; a record made by hand never comes here. close_reason_test.cpp asks at the end whether one is missing.
#pragma once

#include <array>

#include "vigil/close_record.hpp"

namespace vigil::test {

struct ReasonsSeen {
  std::array<bool, close_reason_count> seen{};
  std::array<bool, close_reason_count> excused{};  ///< its test said why it can't run here
};

inline ReasonsSeen& reasons_seen() {
  static ReasonsSeen reasons;
  return reasons;
}

inline void report_reason(const CloseRecord& record) { reasons_seen().seen[static_cast<std::size_t>(record.reason)] = true; }

}  // namespace vigil::test
