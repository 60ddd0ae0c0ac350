// What a fuzz target expects to hold. A broken expectation ends the run of that input: a fuzzer's program says which one in one
// line and aborts (expect_or_abort.cpp), which is how libFuzzer learns of it; the program that runs the corpus fails the file and
// goes on (corpus_test.cpp). Which of the two is decided by what is linked.
#pragma once

namespace vigil::fuzz {

/// `expectation` is a sentence that did not hold.
[[noreturn]] void broken(const char* expectation);

inline void expect(bool holds, const char* expectation) {
  if (!holds) broken(expectation);
}

}  // namespace vigil::fuzz
