#include "connection_options.hpp"

#include <algorithm>
#include <charconv>

#include "readable.hpp"

namespace vigil::tools {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t fastest = 1'000'000'000'000;  // bytes a second: beyond any machine, and far from where sums overflow

std::string drain_that_ends(const std::string& value) {
  return value == "never" ? "a drain must end: never is not possible" : "";
}

constexpr const char* ping_unless_told = "ping\n";

/// What a shell can hardly say: \n, \r, \t, \0, \\ and \xHH as in C. Nothing: another one stands there.
std::optional<std::string> without_escapes(std::string_view text) {
  std::string plain;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\') {
      plain += text[at];
      continue;
    }
    if (++at == text.size()) return std::nullopt;
    if (text[at] == 'x') {
      unsigned value = 0;
      const char* const digits = text.data() + at + 1;
      const char* const end = text.data() + std::min(at + 3, text.size());
      const auto [rest, problem] = std::from_chars(digits, end, value, 16);
      if (problem != std::errc{} || rest != digits + 2) return std::nullopt;
      plain += static_cast<char>(value);
      at += 2;
      continue;
    }
    constexpr std::string_view names = "nrt0\\";
    constexpr std::string_view characters("\n\r\t\0\\", 5);
    const std::size_t which = names.find(text[at]);
    if (which == std::string_view::npos) return std::nullopt;
    plain += characters[which];
  }
  return plain;
}

}  // namespace

ConnectionOptions::ConnectionOptions(CommandLine& command_line, Timeouts& into, HeartbeatOptions& heartbeat)
    : command_line_(command_line), timeouts_(into), heartbeat_(heartbeat), grace_(Rate{}.grace), window_(Rate{}.window) {
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
  add_heartbeat();
}

void ConnectionOptions::add_heartbeat() {
  command_line_.heading("Heartbeat (finds a peer that is silently gone, and says whether it hangs or can't be reached)");
  budget_option_ = command_line_.duration("--heartbeat-timeout", heartbeat_budget_, 1ms,
                                          "Its budget: a peer that gives no sign of life for this long is lost");
  interval_option_ = command_line_.duration("--heartbeat-interval", heartbeat_interval_, 1ms,
                                            "A silent peer is pinged this often (a quarter of the budget)");
  ping_option_ = command_line_.text("--ping", "TEXT", "What to send it; it must answer something, whatever that is (ping\\n)",
                                    [this](const std::string& value) {
                                      const auto plain = without_escapes(value);
                                      if (!plain) {
                                        throw CLI::ValidationError(
                                            "--ping", "'" + value + "': after a backslash comes n, r, t, 0, \\ or xHH");
                                      }
                                      ping_ = *plain;
                                    });
  CLI::Option* const keepalive =
      command_line_.flag("--keepalive-only", heartbeat_.keepalive_only,
                         "No pings: the kernel asks the peer's kernel, which answers for a process that hangs too");
  phi_option_ = command_line_.decimal("--phi", "THRESHOLD", phi_.threshold, 1, 100,
                                      "Lose a peer that used to answer fast before its budget ends: 8 is wrong once in 10^8");
  heartbeat_options_ = {budget_option_, interval_option_, ping_option_, keepalive, phi_option_};
  options_.insert(options_.end(), heartbeat_options_.begin(), heartbeat_options_.end());
}

std::optional<int> ConnectionOptions::settle(const Address& address) {
  if (const auto status = settle_rates()) return status;
  return settle_heartbeat(address);
}

std::optional<int> ConnectionOptions::settle_heartbeat(const Address& address) {
  if (heartbeat_.keepalive_only && !address.is_ip()) {
    return command_line_.refuse("--keepalive-only is for TCP, a Unix address has no keepalive");
  }
  if (budget_option_->count() > 0) heartbeat_.budget = heartbeat_budget_;
  if (interval_option_->count() > 0) heartbeat_.interval = heartbeat_interval_;
  if (ping_option_->count() > 0) {
    heartbeat_.ping = ping_;
  } else if (heartbeat_.budget && !heartbeat_.keepalive_only) {
    heartbeat_.ping = ping_unless_told;
  }
  if (phi_option_->count() > 0) heartbeat_.phi = phi_;
  const Result<HeartbeatPlan> plan = plan_heartbeat(heartbeat_);
  if (plan) {
    if (heartbeat_.keepalive_only && plan->told_within != plan->budget) {
      command_line_.note("--keepalive-only counts whole seconds, at least 4: a loss is told within " +
                         readable(plan->told_within) + " instead of " + readable(plan->budget));
    }
    return std::nullopt;
  }
  std::string given;
  for (const CLI::Option* each : heartbeat_options_) {
    if (each->count() > 0) given += (given.empty() ? "" : ", ") + each->get_name();
  }
  const char* const hint = heartbeat_.budget ? "" : ": give --heartbeat-timeout too";
  return command_line_.refuse(given + ": " + plan.error().detail + hint);
}

std::optional<int> ConnectionOptions::settle_rates() {
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
