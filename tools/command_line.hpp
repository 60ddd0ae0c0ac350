// The command line of a tool: options with values people write (`30s`, `localhost:7000`), and one clear line for a wrong one.
//
// Thread: one. Ownership: what an option is parsed into belongs to the caller and must live until parse() has returned.
//
//   CommandLine command_line("vigil-echo", "Sends back what it receives.");
//   command_line.timeout("--receive-timeout", timeouts.receive, "Close a connection after this long without a byte");
//   if (auto status = command_line.parse(argc, argv)) return *status;
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vigil/address.hpp"
#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"

namespace vigil::tools {

/// The exit status for a wrong option, value or address (EX_USAGE of sysexits.h).
inline constexpr int exit_usage = 64;

/// `250ms`, `30s`, `2m`, also with `ns`, `us` and `h`, and with a decimal point: `1.5s`. Nothing else; nothing above 10 years.
/// Decimals below a nanosecond are dropped, of an hour's up to 10 ns.
[[nodiscard]] std::optional<Duration> parse_duration(std::string_view text);

/// What Address::parse reads, and `name:port`, for which the system's resolver is asked (that may block). Of several addresses an
/// IPv4 one is preferred, because that is where vigil-echo listens unless told otherwise. Throws CLI::ValidationError with one
/// clear line.
[[nodiscard]] Address parse_address(const std::string& option, const std::string& text);

class CommandLine {
 public:
  CommandLine(std::string name, const std::string& purpose);

  /// The heading in --help above the options added from now on.
  void heading(const std::string& heading) { heading_ = heading; }

  CLI::Option* flag(const std::string& name, bool& into, const std::string& help);
  /// 1 ms to 10 years, or `never`.
  CLI::Option* timeout(const std::string& name, Timeout& into, const std::string& help);
  CLI::Option* duration(const std::string& name, Duration& into, Duration at_least, const std::string& help);
  CLI::Option* number(const std::string& name, const std::string& unit, std::uint64_t& into, std::uint64_t at_least,
                      std::uint64_t at_most, const std::string& help);
  /// `take` is given the value, and throws CLI::ValidationError with one clear line for a wrong one.
  CLI::Option* decimal(const std::string& name, const std::string& unit, double& into, double at_least, double at_most,
                       const std::string& help);
  CLI::Option* text(const std::string& name, const std::string& type, const std::string& help,
                    std::function<void(const std::string&)> take);
  /// One of some words; `into` is its index.
  CLI::Option* choice(const std::string& name, const std::vector<std::string>& words, std::size_t& into, const std::string& help);
  CLI::Option* address(const std::string& name, Address& into, const std::string& help);
  /// The mandatory HOST:PORT of a client.
  CLI::Option* target(Address& into, const std::string& help);

  /// Nothing if the program is to go on; else its exit status: 0 after --help, exit_usage after one line on stderr. That line
  /// names the options nobody knows before anything else that is wrong.
  [[nodiscard]] std::optional<int> parse(int argc, char** argv);

  /// For values that are wrong only together: says so as parse() would, and returns exit_usage.
  [[nodiscard]] int refuse(const std::string& problem) const;

  /// One line on stderr about values that are kept otherwise than they were given; the program goes on.
  void note(const std::string& what) const;

 private:
  [[nodiscard]] std::string unknown_options() const;

  std::string name_;
  CLI::App app_;
  std::string heading_ = "Options";
};

}  // namespace vigil::tools
