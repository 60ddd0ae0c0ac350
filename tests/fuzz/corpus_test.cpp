// Every file of the corpus goes through its fuzz target, with any compiler and without a fuzzer.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "expect.hpp"

using Target = int(const std::uint8_t* data, std::size_t size);

// The entries of tests/fuzz/X_fuzz.cpp, as the build renames them for this program.
extern "C" {
Target fuzz_address;
Target fuzz_command_line;
Target fuzz_send_queue;
Target fuzz_timer_wheel;
Target fuzz_world;
}

namespace {

struct BrokenExpectation {
  const char* sentence;
};

namespace file = std::filesystem;

std::vector<file::path> corpus_of(const std::string& target) {
  std::vector<file::path> files;
  for (const auto& entry : file::directory_iterator(file::path(VIGIL_CORPUS) / target)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::uint8_t> contents_of(const file::path& path) {
  std::ifstream stream(path, std::ios::binary);
  REQUIRE(stream.is_open());
  return {std::istreambuf_iterator<char>(stream), {}};
}

void run_corpus(const std::string& name, Target target) {
  const std::vector<file::path> files = corpus_of(name);
  REQUIRE_MESSAGE(!files.empty(), "there is no corpus of " << name);
  for (const file::path& path : files) {
    const std::string shown = name + "/" + path.filename().string();
    INFO("tests/fuzz/corpus/" << shown);  // told also where the program dies
    const std::vector<std::uint8_t> bytes = contents_of(path);
    std::string broken;
    try {
      target(bytes.data(), bytes.size());
    } catch (const BrokenExpectation& expectation) {
      broken = expectation.sentence;
    }
    CHECK_MESSAGE(broken.empty(), shown << ": BROKEN: " << broken);
  }
}

}  // namespace

void vigil::fuzz::broken(const char* expectation) { throw BrokenExpectation{expectation}; }

TEST_CASE("corpus: texts that may be addresses") { run_corpus("address", fuzz_address); }

TEST_CASE("corpus: appending to a send queue and consuming from it") { run_corpus("send_queue", fuzz_send_queue); }

TEST_CASE("corpus: arming and cancelling nodes of a timer wheel while time goes on") {
  run_corpus("timer_wheel", fuzz_timer_wheel);
}

TEST_CASE("corpus: the tools' command lines") {
#if VIGIL_HAS_TOOLS
  run_corpus("command_line", fuzz_command_line);
#else
  std::puts("SKIPPED: corpus of the command line: the tools' packages are not installed");
#endif
}

TEST_CASE("corpus: what may happen in a simulated world") { run_corpus("world", fuzz_world); }
