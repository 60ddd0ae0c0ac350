// The tools' command line: values as people write them, and a whole argv, its arguments separated by NUL as in /proc/PID/cmdline.
// No argv ends the program, and a wrong one is told in one line.
//
// Nothing here asks a resolver: getaddrinfo is this file's own and answers from a table. What the command line prints goes into
// memory: glibc's stdout and stderr are variables.
#include "command_line.hpp"

#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "connection_options.hpp"
#include "expect.hpp"
#include "input.hpp"
#include "target.hpp"

namespace {

using namespace std::chrono_literals;
using namespace vigil;
using namespace vigil::tools;
using vigil::fuzz::expect;
using vigil::fuzz::Input;

// The resolver --------------------------------------------------------------------------------------------------------------

struct Answer {
  addrinfo entries[3];
  sockaddr_in ipv4;
  sockaddr_in6 ipv6;
  sockaddr other;
};

bool can_be_asked(std::string_view host) {
  const auto allowed = [](unsigned char character) {
    return character < 0x80 && (std::isalnum(character) || std::strchr("-._", character));
  };
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), allowed);
}

/// The length of the name decides what is known of it.
int answer(std::string_view host, std::string_view port, addrinfo** found) {
  expect(can_be_asked(host), "the resolver is asked for what can be a name");
  expect(!port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string_view::npos,
         "the resolver is asked for a port in plain decimal");
  if (host.size() % 5 == 4) return EAI_NONAME;
  auto* answer = new Answer{};
  const std::uint16_t network_port = htons(static_cast<std::uint16_t>(std::stoi(std::string(port))));
  answer->ipv4.sin_family = AF_INET;
  answer->ipv4.sin_port = network_port;
  answer->ipv6.sin6_family = AF_INET6;
  answer->ipv6.sin6_port = network_port;
  answer->ipv6.sin6_addr.s6_addr[0] = 0xfe;
  answer->ipv6.sin6_addr.s6_addr[1] = 0x80;
  answer->ipv6.sin6_scope_id = 7;
  answer->other.sa_family = AF_UNSPEC;
  sockaddr* const order[] = {&answer->other, reinterpret_cast<sockaddr*>(&answer->ipv6),
                             reinterpret_cast<sockaddr*>(&answer->ipv4)};
  const std::size_t count = std::min<std::size_t>(1 + host.size() % 5, std::size(order));
  for (std::size_t index = 0; index < count; ++index) {
    answer->entries[index].ai_family = order[index]->sa_family;
    answer->entries[index].ai_addr = order[index];
    if (index + 1 < count) answer->entries[index].ai_next = &answer->entries[index + 1];
  }
  *found = answer->entries;
  return 0;
}

}  // namespace

extern "C" int getaddrinfo(const char* host, const char* port, const addrinfo*, addrinfo** found) {
  return answer(host, port, found);
}

extern "C" void freeaddrinfo(addrinfo* first) noexcept { delete reinterpret_cast<Answer*>(first); }

namespace {

// What is printed -----------------------------------------------------------------------------------------------------------

/// One of the standard streams, in memory for as long as this lives.
class Captured {
 public:
  explicit Captured(std::FILE*& stream) : stream_(stream), original_(stream), memory_(::open_memstream(&text_, &size_)) {
    if (memory_ == nullptr) std::abort();
    stream_ = memory_;
  }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  ~Captured() {
    stream_ = original_;
    std::fclose(memory_);
    std::free(text_);
  }

  [[nodiscard]] std::string text() const {
    std::fflush(memory_);
    return std::string(text_, size_);
  }

 private:
  std::FILE*& stream_;
  std::FILE* original_;
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* memory_;
};

bool is_control(char character) { return static_cast<unsigned char>(character) < 0x20 || character == 0x7f; }

void check_one_line(const std::string& line, std::string_view program) {
  const std::string begin = std::string(program) + ": ";
  const std::string end = " (see " + std::string(program) + " --help)\n";
  expect(line.size() > begin.size() + end.size(), "a wrong command line is told");
  expect(line.compare(0, begin.size(), begin) == 0, "the line begins with the program's name");
  expect(line.compare(line.size() - end.size(), end.size(), end) == 0, "the line ends with where to read on");
  expect(std::none_of(line.begin(), line.end() - 1, is_control),
         "a wrong command line is told in one line without control bytes");
}

// Durations -----------------------------------------------------------------------------------------------------------------

constexpr Duration ten_years = 24h * 3652;

/// Digits, perhaps a point and digits, and a unit, read by other means: nanoseconds, or nothing if it is written in another way.
std::optional<long double> nanoseconds_in(std::string_view text) {
  struct Unit {
    std::string_view name;
    long double nanoseconds;
  };
  static constexpr Unit units[] = {{"ns", 1}, {"us", 1e3L}, {"ms", 1e6L}, {"s", 1e9L}, {"m", 60e9L}, {"h", 3600e9L}};
  const std::size_t after = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string number(text.substr(0, after));
  const auto* unit =
      std::find_if(std::begin(units), std::end(units), [&](const Unit& each) { return each.name == text.substr(after); });
  const std::size_t point = number.find('.');
  const bool written_well = point == std::string::npos || (point == number.rfind('.') && point > 0 && point + 1 < number.size());
  if (unit == std::end(units) || number.empty() || !written_well) return std::nullopt;
  return std::strtold(number.c_str(), nullptr) * unit->nanoseconds;
}

void check_duration(std::string_view text) {
  const auto parsed = parse_duration(text);
  const auto exact = nanoseconds_in(text);
  const auto longest = static_cast<long double>(ten_years.count());
  // What the header says is dropped, and what valgrind rounds off, to which a long double is a double.
  const long double lost_max = 10 + exact.value_or(0) * 1e-15L;
  expect(exact || !parsed, "what is not written as a duration is refused");
  if (exact && *exact + lost_max <= longest) expect(parsed.has_value(), "every duration up to 10 years is read");
  if (exact && *exact > longest + lost_max) expect(!parsed, "a duration above 10 years is refused");
  if (!parsed) return;
  expect(*parsed >= Duration::zero() && *parsed <= ten_years, "a duration is 0 to 10 years");
  const auto read = static_cast<long double>(parsed->count());
  expect(read <= *exact + lost_max && read >= *exact - lost_max, "a duration is what was written, to some nanoseconds");
  expect(parse_duration(std::to_string(parsed->count()) + "ns") == parsed, "a duration in nanoseconds is read exactly");
}

// Addresses -----------------------------------------------------------------------------------------------------------------

void check_address(const std::string& text) {
  const Result<Address> plain = Address::parse(text);
  try {
    const Address read = parse_address("--listen", text);
    if (plain) {
      expect(read == *plain, "an address in numbers is read as Address::parse reads it");
    } else {
      expect(read.is_ip(), "a name stands for an internet address");
      const Result<Address> again = Address::parse(read.to_string());
      expect(again && *again == read, "the address of a name is printed as it is read");
    }
  } catch (const CLI::ValidationError& problem) {
    expect(!plain, "what Address::parse reads is read");
    const std::string_view said = problem.what();
    expect(said.substr(0, 10) == "--listen: " && said.size() > 10, "a refusal names the option and what is wrong");
  }
}

// A whole command line ------------------------------------------------------------------------------------------------------

/// What vigil-echo takes.
struct Echo {
  Echo() {
    command_line.address("--listen", address, "");
    command_line.number("--reactors", "N", reactors, 1, 1024, "");
    command_line.number("--max-connections", "N", connections_max, 1, 1'000'000'000, "");
    command_line.timeout("--accept-timeout", timeouts.accept, "");
    command_line.duration("--stats", stats, 1ms, "");
    command_line.flag("--json", json, "");
    command_line.heading("Replies");
    command_line.number("--reply-per-message", "BYTES", message_bytes, 1, 64 * 1024 * 1024, "");
    command_line.duration("--reply-delay", reply_delay, 0ms, "");
    command_line.flag("--flood", flood, "");
    command_line.number("--backlog-max", "BYTES", backlog_max, 1, std::numeric_limits<std::uint32_t>::max(), "");
    command_line.choice("--when-backlogged", {"close", "pause"}, when_backlogged, "");
  }

  std::optional<int> parse(std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (const auto status = command_line.parse(static_cast<int>(arguments.size()), argv.data())) return status;
    return common.settle(address);
  }

  void check_values() const {
    expect(reactors >= 1 && reactors <= 1024, "--reactors is 1 to 1024");
    expect(connections_max <= 1'000'000'000, "--max-connections is at most a thousand million");
    expect(message_bytes <= 64 * 1024 * 1024, "--reply-per-message is at most 64 MiB");
    expect(backlog_max >= 1 && backlog_max <= std::numeric_limits<std::uint32_t>::max(), "--backlog-max has 32 bits");
    expect(when_backlogged < 2, "--when-backlogged is one of its words");
    expect(stats == 0ms || (stats >= 1ms && stats <= ten_years), "--stats is 1 ms to 10 years");
    expect(reply_delay >= 0ms && reply_delay <= ten_years, "--reply-delay is 0 to 10 years");
    expect(static_cast<bool>(validate(timeouts, "listen")), "the timeouts of an accepted command line are valid");
    expect(static_cast<bool>(plan_heartbeat(heartbeat)), "the heartbeat of an accepted command line holds together");
  }

  Address address = Address::from_ipv4({127, 0, 0, 1}, 7000);
  std::uint64_t reactors = 1;
  std::uint64_t connections_max = 0;
  Timeouts timeouts;
  Duration stats{};
  bool json = false;
  std::uint64_t message_bytes = 0;
  Duration reply_delay{};
  bool flood = false;
  std::uint64_t backlog_max = 16 * 1024 * 1024;
  std::size_t when_backlogged = 0;
  CommandLine command_line{"vigil-echo", "Sends back what it receives."};
  HeartbeatOptions heartbeat;
  ConnectionOptions common{command_line, timeouts, heartbeat};
};

void check_command_line(std::vector<std::string> arguments) {
  Echo echo;
  std::optional<int> status;
  std::string printed;
  std::string told;
  {
    const Captured out(stdout);
    const Captured error(stderr);
    status = echo.parse(arguments);
    printed = out.text();
    told = error.text();
  }
  if (!status) {
    expect(printed.empty() && told.empty(), "a good command line prints nothing");
    echo.check_values();
  } else if (*status == 0) {
    expect(printed.find("Usage: ") != std::string::npos && told.empty(), "--help is printed on stdout");
  } else {
    expect(*status == exit_usage, "a wrong command line ends with status 64");
    expect(printed.empty(), "a wrong command line prints nothing on stdout");
    check_one_line(told, "vigil-echo");
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  std::vector<std::string> arguments = {"vigil-echo"};
  while (!input.empty()) {
    const std::string argument(input.text_until('\0'));
    check_duration(argument);
    check_address(argument);
    arguments.push_back(argument);
  }
  check_command_line(std::move(arguments));
  return 0;
}
