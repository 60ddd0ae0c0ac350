// What must hold when every test has run: a check made once, at the end of a run that left no test out.
//
//   const test::LastCheck every_door_was_opened([] { return doors_left_closed(); });   // at namespace scope; 0: it holds
//
// The function prints what is wrong and returns how many failures that makes.
#pragma once

#include <vector>

namespace vigil::test {

using LastCheckFunction = int (*)();

inline std::vector<LastCheckFunction>& last_checks() {
  static std::vector<LastCheckFunction> checks;
  return checks;
}

struct LastCheck {
  explicit LastCheck(LastCheckFunction check) { last_checks().push_back(check); }
};

}  // namespace vigil::test
