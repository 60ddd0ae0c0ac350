#include "command_line.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>

namespace vigil::tools {
namespace {

using namespace std::chrono_literals;

constexpr Duration longest = std::chrono::hours(24) * 3652;  // 10 years, the longest timeout there is

bool is_digit(char character) { return character >= '0' && character <= '9'; }
bool is_letter(char character) { return (character | 0x20) >= 'a' && (character | 0x20) <= 'z'; }

/// Whether the resolver should be asked: a last label of digits alone is a mistyped number, not a name.
bool could_be_a_name(std::string_view host) {
  const auto allowed = [](char character) {
    return is_letter(character) || is_digit(character) || character == '-' || character == '.' || character == '_';
  };
  if (host.empty() || host.size() > 253 || !std::all_of(host.begin(), host.end(), allowed)) return false;
  if (host.back() == '.') host.remove_suffix(1);
  const std::string_view last_label = host.substr(host.rfind('.') + 1);
  return std::any_of(last_label.begin(), last_label.end(), is_letter);
}

std::string detail_of(const Error& error) { return error.detail[0] != '\0' ? error.detail : describe(error); }

Address from_system(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in ipv4{};
    std::memcpy(&ipv4, &address, sizeof ipv4);
    std::array<std::uint8_t, 4> bytes{};
    std::memcpy(bytes.data(), &ipv4.sin_addr, bytes.size());
    return Address::from_ipv4(bytes, ntohs(ipv4.sin_port));
  }
  sockaddr_in6 ipv6{};
  std::memcpy(&ipv6, &address, sizeof ipv6);
  Address::IpBytes bytes{};
  std::memcpy(bytes.data(), &ipv6.sin6_addr, bytes.size());
  return Address::from_ipv6(bytes, ntohs(ipv6.sin6_port), ipv6.sin6_scope_id != 0 ? std::to_string(ipv6.sin6_scope_id) : "");
}

Address resolve(const std::string& option, const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  // RFC 6761 section 6.3: this name is the loopback address, whatever the resolver of a bare system knows.
  const std::string asked = host == "localhost" ? "127.0.0.1" : host;
  if (const int problem = getaddrinfo(asked.c_str(), port.c_str(), &hints, &found); problem != 0) {
    throw CLI::ValidationError(option, "no address is known for '" + host + "': " + gai_strerror(problem));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  const addrinfo* best = nullptr;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (each->ai_family != AF_INET && each->ai_family != AF_INET6) continue;
    if (best == nullptr || (best->ai_family != AF_INET && each->ai_family == AF_INET)) best = each;
  }
  if (best == nullptr) throw CLI::ValidationError(option, "no internet address is known for '" + host + "'");
  return from_system(*best->ai_addr);
}

/// What the parser says of the number of arguments is of its own inside.
std::string in_plain_words(const CLI::ParseError& problem) {
  if (problem.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError)) return "the address is missing: HOST:PORT";
  const std::string said = problem.what();
  if (problem.get_exit_code() != static_cast<int>(CLI::ExitCodes::ArgumentMismatch)) return said;  // may quote a value
  const auto before = [&said](const char* words) -> std::optional<std::string> {
    const std::size_t place = said.find(words);
    return place == std::string::npos ? std::nullopt : std::optional(said.substr(0, place));
  };
  if (const auto option = before(": At Most 1 required")) return *option + " is given more than once";
  if (const auto option = before(" was given a disallowed flag override")) return "--" + *option + " takes no value";
  if (const auto option = before(": 1 required ")) return *option + ": its value is missing";
  return said;
}

/// The usage line as manual pages have it, what must be given before what may be.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string name) const override {
    std::string line = "\nUsage: " + name;
    for (const CLI::Option* each : app->get_options([](const CLI::Option* option) { return option->get_positional(); })) {
      line += " " + each->get_type_name();
    }
    return line + " [OPTIONS]\n";
  }
  std::string make_positionals(const CLI::App*) const override { return ""; }  // the usage line has said it
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    return CLI::detail::find_and_replace(CLI::Formatter::make_help(app, name, mode), "\n\n\n", "\n\n");
  }
};

}  // namespace

std::optional<Duration> parse_duration(std::string_view text) {
  struct Unit {
    std::string_view name;
    std::int64_t nanoseconds;
  };
  constexpr std::array<Unit, 6> units{
      {{"ns", 1}, {"us", 1'000}, {"ms", 1'000'000}, {"s", 1'000'000'000}, {"m", 60'000'000'000}, {"h", 3'600'000'000'000}}};

  const char* const end = text.data() + text.size();
  std::int64_t whole = 0;
  if (text.empty() || !is_digit(text.front())) return std::nullopt;
  auto [rest, problem] = std::from_chars(text.data(), end, whole);
  if (problem != std::errc{}) return std::nullopt;

  std::string_view decimals;
  if (rest != end && *rest == '.') {
    const char* const first = ++rest;
    while (rest != end && is_digit(*rest)) ++rest;
    decimals = std::string_view(first, static_cast<std::size_t>(rest - first));
    if (decimals.empty()) return std::nullopt;
  }

  const std::string_view name(rest, static_cast<std::size_t>(end - rest));
  const auto unit = std::find_if(units.begin(), units.end(), [name](const Unit& each) { return each.name == name; });
  if (unit == units.end() || whole > longest.count() / unit->nanoseconds) return std::nullopt;
  std::int64_t nanoseconds = whole * unit->nanoseconds;
  std::int64_t digit_worth = unit->nanoseconds / 10;
  for (const char digit : decimals) {
    nanoseconds += (digit - '0') * digit_worth;
    digit_worth /= 10;
  }
  return nanoseconds <= longest.count() ? std::optional(Duration(nanoseconds)) : std::nullopt;
}

Address parse_address(const std::string& option, const std::string& text) {
  Result<Address> parsed = Address::parse(text);
  if (parsed) return *parsed;
  const std::size_t colon = text.rfind(':');
  const std::string host = text.substr(0, colon);
  if (host == "unix" || !could_be_a_name(host))
    throw CLI::ValidationError(option, "'" + text + "': " + detail_of(parsed.error()));
  if (colon == std::string::npos) throw CLI::ValidationError(option, "'" + text + "' has no port: write HOST:PORT");
  const std::string port = text.substr(colon + 1);
  const Result<Address> port_alone = Address::parse("0.0.0.0:" + port);
  if (!port_alone) throw CLI::ValidationError(option, "'" + text + "': " + detail_of(port_alone.error()));
  return resolve(option, host, port);
}

CommandLine::CommandLine(std::string name, const std::string& purpose) : name_(std::move(name)), app_(purpose, name_) {
  app_.set_help_flag("-h,--help", "Print this and exit")->group(heading_);
  app_.formatter(std::make_shared<HelpFormatter>());
  app_.get_formatter()->column_width(34);
  app_.footer(
      "Durations read 250ms, 30s, 2m; a deadline may be never. Addresses read 127.0.0.1:7000, [::1]:7000,\n"
      "[fe80::1%eth0]:7000, localhost:7000, unix:/path, unix:@abstract. A wrong option or value ends with status 64.");
}

CLI::Option* CommandLine::text(const std::string& name, const std::string& type, const std::string& help,
                               std::function<void(const std::string&)> take) {
  return app_.add_option_function<std::string>(name, std::move(take), help)->type_name(type)->group(heading_);
}

CLI::Option* CommandLine::flag(const std::string& name, bool& into, const std::string& help) {
  return app_.add_flag(name, into, help)->disable_flag_override()->group(heading_);
}

CLI::Option* CommandLine::timeout(const std::string& name, Timeout& into, const std::string& help) {
  return text(name, "DURATION", help, [name, &into](const std::string& value) {
    if (value == "never") {
      into = Timeout::never();
      return;
    }
    const auto parsed = parse_duration(value);
    if (!parsed || *parsed < 1ms) {
      throw CLI::ValidationError(name, "'" + value + "' is not a timeout: 1ms to 10 years, as in 250ms, 30s, 2m, or never");
    }
    into = *parsed;
  });
}

CLI::Option* CommandLine::duration(const std::string& name, Duration& into, Duration at_least, const std::string& help) {
  return text(name, "DURATION", help, [name, &into, at_least](const std::string& value) {
    const auto parsed = parse_duration(value);
    if (!parsed || *parsed < at_least) {
      const std::string limit = at_least > Duration::zero() ? " of at least " + std::to_string(at_least / 1ms) + "ms" : "";
      throw CLI::ValidationError(name, "'" + value + "' is not a duration" + limit + ", as in 250ms, 30s, 2m");
    }
    into = *parsed;
  });
}

CLI::Option* CommandLine::number(const std::string& name, const std::string& unit, std::uint64_t& into, std::uint64_t at_least,
                                 std::uint64_t at_most, const std::string& help) {
  return text(name, unit, help, [name, &into, at_least, at_most](const std::string& value) {
    std::uint64_t parsed = 0;
    const char* const end = value.data() + value.size();
    const auto [rest, problem] = std::from_chars(value.data(), end, parsed);
    if (problem != std::errc{} || rest != end || parsed < at_least || parsed > at_most) {
      throw CLI::ValidationError(
          name, "'" + value + "' is not a whole number from " + std::to_string(at_least) + " to " + std::to_string(at_most));
    }
    into = parsed;
  });
}

CLI::Option* CommandLine::decimal(const std::string& name, const std::string& unit, double& into, double at_least, double at_most,
                                  const std::string& help) {
  return text(name, unit, help, [name, &into, at_least, at_most](const std::string& value) {
    double parsed = 0;
    const char* const end = value.data() + value.size();
    const auto [rest, problem] = std::from_chars(value.data(), end, parsed, std::chars_format::fixed);
    if (problem != std::errc{} || rest != end || !(parsed >= at_least && parsed <= at_most)) {
      std::ostringstream why;
      why << "'" << value << "' is not a number from " << at_least << " to " << at_most;
      throw CLI::ValidationError(name, why.str());
    }
    into = parsed;
  });
}

CLI::Option* CommandLine::choice(const std::string& name, const std::vector<std::string>& words, std::size_t& into,
                                 const std::string& help) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : "|") + word;
  return text(name, all, help, [name, words, all, &into](const std::string& value) {
    const auto found = std::find(words.begin(), words.end(), value);
    if (found == words.end()) throw CLI::ValidationError(name, "'" + value + "' is not one of " + all);
    into = static_cast<std::size_t>(found - words.begin());
  });
}

CLI::Option* CommandLine::address(const std::string& name, Address& into, const std::string& help) {
  return text(name, "ADDRESS", help, [name, &into](const std::string& value) { into = parse_address(name, value); });
}

CLI::Option* CommandLine::target(Address& into, const std::string& help) {
  const std::string name = "address";
  return text(name, "HOST:PORT", help,
              [name, &into](const std::string& value) {
                into = parse_address(name, value);
                if (into.is_ip() && into.port() == 0)
                  throw CLI::ValidationError(name, "'" + value + "': nobody can be reached at port 0");
              })
      ->required();
}

std::optional<int> CommandLine::parse(int argc, char** argv) {
  try {
    app_.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app_.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& problem) {
    // An unknown option is often why the rest looks wrong: its value is taken for the address, or the address for its value.
    const std::string unknown = unknown_options();
    return refuse(unknown.empty() ? in_plain_words(problem) : unknown);
  }
}

std::string CommandLine::unknown_options() const {
  std::string names;
  std::size_t count = 0;
  for (const std::string& rest : app_.remaining()) {
    if (rest == "--") break;  // no option comes after it
    if (rest.size() < 2 || rest.front() != '-') continue;
    names += " " + rest.substr(0, rest.find('='));
    ++count;
  }
  return count == 0 ? names : (count == 1 ? "unknown option" : "unknown options") + names;
}

int CommandLine::refuse(const std::string& problem) const {
  note(problem + " (see " + name_ + " --help)");
  return exit_usage;
}

void CommandLine::note(const std::string& what) const {
  std::string line = name_ + ": " + what;
  for (char& character : line) {
    if (static_cast<unsigned char>(character) < 0x20 || character == 0x7f) character = ' ';  // one line stays one line
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace vigil::tools
