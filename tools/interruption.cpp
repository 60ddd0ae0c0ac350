#include "interruption.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "readable.hpp"

namespace vigil::tools {

Result<void> Interruption::arm(Reactor& reactor, LineOutput& output, std::function<void(bool again)> ask) {
  state_ = std::make_shared<State>(State{std::move(ask), false});
  const auto on_signal = [state = state_](int) { tell(*state); };
  auto terminated = reactor.on_signal(SIGTERM, on_signal);
  if (!terminated) return terminated.error();
  terminated_ = std::move(*terminated);
  auto interrupted = reactor.on_signal(SIGINT, on_signal);
  if (!interrupted) return interrupted.error();
  interrupted_ = std::move(*interrupted);
  output.when_gone([mailbox = reactor.mailbox(), state = state_] { (void)mailbox.post([state] { tell(*state); }); });
  return {};
}

void Interruption::tell(State& state) { state.ask(std::exchange(state.came, true)); }

int finish_output(const char* tool, LineOutput& output, int status) {
  output.finish();
  const int error = output.error();
  if (error != 0 && error != EPIPE) {
    std::fprintf(stderr, "%s: the output can't be written: %s\n", tool, std::strerror(error));
    return status != 0 ? status : 1;
  }
  if (output.lost() == 0) return status;
  std::fprintf(stderr, "%s: %s lines are missing: the reader of the output did not keep up\n", tool,
               grouped(output.lost()).c_str());
  return status != 0 ? status : 1;
}

}  // namespace vigil::tools
