#include "connection_options.hpp"

#include <algorithm>

namespace vigil::tools {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t fastest = 1'000'000'000'000;  // bytes a second: beyond any machine, and far from where sums overflow

std::string drain_that_ends(const std::string& value) {
  return value == "never" ? "a drain must end: never is not possible" : "";
}

}  // namespace

ConnectionOptions::ConnectionOptions(CommandLine& command_line, Timeouts& into)
    : command_line_(command_line), timeouts_(into), grace_(Rate{}.grace), window_(Rate{}.window) {
  command_line.heading("Deadlines and rates (each closes the connection for a reason of its own)");
  const auto timeout = [&](const char* name, Timeout& each, const char* help) {
    options_.push_back(command_line.timeout(name, each, help));
  };
  const auto rate = [&](const char* name, std::uint64_t& each, const char* help) {
    options_.push_back(command_line.number(name, "BYTES", each, 1, fastest, help));
  };
  timeout("--first-byte-timeout", into.first_byte, "Not a single byte came within this, from the beginning");
  timeout("--receive-timeout", into.receive, "Nothing came for this long");
  timeout("--message-timeout", into.message, "A message took longer to come: a line; the first begins at once");
  rate("--min-receive-rate", least_received_, "Fewer bytes a second came, in the middle of a message");
  timeout("--send-timeout", into.send, "Nothing was acknowledged for this long, of what was sent");
  rate("--min-send-rate", least_sent_, "Fewer bytes a second were acknowledged, of what was sent");
  grace_option_ = command_line.duration("--rate-grace", grace_, 0ms, "A rate is measured only after this long (5s)");
  window_option_ =
      command_line.duration("--rate-window", window_, 1ms, "A rate is measured over this long, again and again (1s)");
  options_.insert(options_.end(), {grace_option_, window_option_});
  timeout("--drain-timeout", into.drain, "The other side's end did not come within this, after our own (5s)");
  options_.back()->check(drain_that_ends, "");
}

std::optional<int> ConnectionOptions::settle() {
  const bool has_rate = least_received_ != Rate::inherited || least_sent_ != Rate::inherited;
  for (const CLI::Option* each : {grace_option_, window_option_}) {
    if (each->count() > 0 && !has_rate) {
      return command_line_.refuse(each->get_name() + " is about a rate: give --min-receive-rate or --min-send-rate too");
    }
  }
  if (least_received_ != Rate::inherited) timeouts_.receive_rate = {least_received_, window_, grace_};
  if (least_sent_ != Rate::inherited) timeouts_.send_rate = {least_sent_, window_, grace_};
  return std::nullopt;
}

bool ConnectionOptions::given() const {
  return std::any_of(options_.begin(), options_.end(), [](const CLI::Option* each) { return each->count() > 0; });
}

}  // namespace vigil::tools
