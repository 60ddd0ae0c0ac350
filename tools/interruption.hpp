// What asks a tool to end: SIGTERM, SIGINT, or that the reader of its output has gone away.
//
// Thread: the reactor's. It must be destroyed before its reactor and may be destroyed before its output.
//
//   Interruption interruption;
//   if (auto armed = interruption.arm(reactor, output, [&](bool again) { ... }); !armed) return report(armed.error());
#pragma once

#include <functional>
#include <memory>

#include "line_output.hpp"
#include "vigil/reactor.hpp"
#include "vigil/result.hpp"

namespace vigil::tools {

class Interruption {
 public:
  /// `ask` runs on the reactor's thread: with false the first time, with true when asked once more.
  [[nodiscard]] Result<void> arm(Reactor& reactor, LineOutput& output, std::function<void(bool again)> ask);

  [[nodiscard]] bool came() const { return state_ != nullptr && state_->came; }

 private:
  struct State {
    std::function<void(bool)> ask;
    bool came = false;
  };
  static void tell(State& state);

  std::shared_ptr<State> state_;
  Watch terminated_;
  Watch interrupted_;
};

/// The end of a tool's main: finishes its output and says on stderr what went wrong with its output, if anything did. A reader
/// that has gone away is no error. Returns `status`, or 1 where that was 0 and lines are missing.
[[nodiscard]] int finish_output(const char* tool, LineOutput& output, int status);

}  // namespace vigil::tools
