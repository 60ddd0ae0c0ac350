// The test programs' main: doctest's, with two rules that hold for every test. A test leaves as many descriptors open as it
// found, and it ends: one that hangs is named and ends the program instead of keeping everybody waiting. When every test has run,
// the last checks are made (support/last_check.hpp); a run that leaves tests out makes none.
//
// VIGIL_TEST_SECONDS sets how long one test may take (120; more under valgrind).
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <dirent.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "support/last_check.hpp"

namespace {

int leaking_tests = 0;
int failed_last_checks = 0;
const char* running_test = "";  // read by the signal handler; names are string literals
unsigned seconds_per_test = 120;

int count_descriptors() {
  DIR* directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return -1;
  int count = 0;
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

void say_from_signal(const char* text) {
  [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, text, std::strlen(text));
}

extern "C" void name_the_hanging_test(int) {
  say_from_signal("\nHANGS: \"");
  say_from_signal(running_test);
  say_from_signal("\" has not ended in time; the program ends here\n");
  ::_exit(3);
}

/// Runs beside doctest's own reporter.
struct HouseRules : doctest::IReporter {
  explicit HouseRules(const doctest::ContextOptions&) {}

  void test_case_start(const doctest::TestCaseData& test) override {
    running_test = test.m_name;
    descriptors_before = count_descriptors();
    ::alarm(seconds_per_test);
  }

  void test_case_end(const doctest::CurrentTestCaseStats&) override {
    ::alarm(0);
    const int descriptors_after = count_descriptors();
    if (descriptors_after == descriptors_before) return;
    ++leaking_tests;
    std::printf("LEAKS: \"%s\" found %d descriptors open and left %d\n", running_test, descriptors_before, descriptors_after);
  }

  void test_run_end(const doctest::TestRunStats& run) override {
    if (run.numTestCasesPassingFilters != run.numTestCases) return;
    for (const auto check : vigil::test::last_checks()) failed_last_checks += check();
  }

  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}

  int descriptors_before = 0;
};

REGISTER_LISTENER("house_rules", 1, HouseRules);

}  // namespace

int main(int argc, char** argv) {
  if (const char* seconds = std::getenv("VIGIL_TEST_SECONDS")) seconds_per_test = static_cast<unsigned>(std::atoi(seconds));
  std::signal(SIGALRM, name_the_hanging_test);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what a test said before it died is in the log

  doctest::Context context(argc, argv);
  const int failed = context.run();
  if (context.shouldExit()) return failed;
  return failed != 0 || leaking_tests > 0 || failed_last_checks > 0 ? 1 : 0;
}
