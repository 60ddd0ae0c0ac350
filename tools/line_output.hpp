// Lines for a reader that may be slow, stuck or gone: print() never waits, a thread of its own does the writing.
//
// Each line is handed to the kernel as soon as it can be. A reader that stalls costs memory up to a bound; then lines are dropped
// and counted, and lost() says how many. A reader that goes away (EPIPE) is told once.
//
// Thread: print() from any. Ownership: the descriptor stays the caller's. finish(), and so the destructor, gives the reader two
// more seconds.
//
//   LineOutput output(STDOUT_FILENO);
//   output.when_gone([mailbox] { (void)mailbox.stop(); });
//   output.print("listening on 127.0.0.1:7000");
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

namespace vigil::tools {

class LineOutput {
 public:
  explicit LineOutput(int descriptor);
  ~LineOutput() { finish(); }
  LineOutput(const LineOutput&) = delete;
  LineOutput& operator=(const LineOutput&) = delete;

  /// Adds the end of the line itself.
  void print(std::string_view line);

  /// Waits until everything is written, or failed, or two seconds have passed. Nothing may be printed afterwards.
  void finish();

  /// `task` runs once, on the writing thread, when a write fails; at once if one has failed already.
  void when_gone(std::function<void()> task);

  /// The errno of the write that failed; 0 while all is well.
  [[nodiscard]] int error() const;

  /// Lines dropped because the reader did not keep up.
  [[nodiscard]] std::uint64_t lost() const;

 private:
  struct Shared;
  static void write_all(Shared& shared);

  std::shared_ptr<Shared> shared_;  // outlives this object where a write is stuck for ever
  std::thread writer_;
};

}  // namespace vigil::tools
