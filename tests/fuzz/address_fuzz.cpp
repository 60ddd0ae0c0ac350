// Address::parse: no text crashes it, and what it reads is printed as it reads it.
#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>

#include "expect.hpp"
#include "input.hpp"
#include "target.hpp"
#include "vigil/address.hpp"

namespace {

using vigil::Address;
using vigil::fuzz::expect;
using vigil::fuzz::Input;

bool is_control(char character) { return static_cast<unsigned char>(character) < 0x20 || character == 0x7f; }

bool has_control_bytes(std::string_view text) { return std::any_of(text.begin(), text.end(), is_control); }

void check_parts(const Address& address) {
  if (address.is_ip()) {
    expect(address.path().empty(), "an IP address has no path");
    expect(address.scope().empty() || address.is_link_local(), "a scope belongs to a link-local address");
    expect(address.scope().size() <= 15, "a scope fits into an interface's name");
    expect(address.family() == Address::Family::ipv6 || address.scope().empty(), "an IPv4 address has no scope");
  } else {
    expect(!address.path().empty() && address.path().size() <= 107, "a Unix path or name has 1 to 107 bytes");
    expect(address.path().find('\0') == std::string_view::npos, "a Unix path or name has no NUL");
    expect(address.port() == 0 && address.scope().empty(), "a Unix address has neither port nor scope");
  }
}

/// That nothing was read over: what was written is what is printed, except that an IPv6 address may be written in many ways.
void check_written(std::string_view text, const Address& address, const std::string& printed) {
  if (address.family() != Address::Family::ipv6) {
    expect(has_control_bytes(text) || text == printed, "an address is printed as it was written");
    return;
  }
  const std::size_t end = text.find(']');
  const std::string_view host = text.substr(1, std::min(end, text.find('%')) - 1);
  expect(host.find_first_not_of("0123456789abcdefABCDEF:.") == std::string_view::npos,
         "an IPv6 address is digits, colons and points");
  expect(text.substr(end) == std::string_view(printed).substr(printed.find(']')), "a port is printed as it was written");
  const std::size_t percent = text.find('%');
  expect(address.scope() == (percent == std::string_view::npos ? "" : text.substr(percent + 1, end - percent - 1)),
         "the scope is what stands between % and the bracket");
  expect(address.scope().find_first_of("%/ ") == std::string_view::npos, "a scope can be an interface's name");
}

void check_printed(const Address& address) {
  const std::string printed = address.to_string();
  expect(!has_control_bytes(printed), "a printed address is one line without control bytes");
  if (has_control_bytes(address.path())) return;  // shown with escapes, which are text of their own when read
  const auto again = Address::parse(printed);
  expect(static_cast<bool>(again), "a printed address is read again");
  expect(*again == address, "a printed address is read as the same address");
  expect(again->to_string() == printed, "an address is printed the same way each time");
}

void check_with_port(const Address& address, std::uint16_t port) {
  const Address other = address.with_port(port);
  expect(other.port() == (address.is_ip() ? port : 0), "with_port() gives an IP address that port");
  expect(other.with_port(address.port()) == address, "with_port() changes nothing else");
  check_printed(other);
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = Input(data, size).rest();
  const auto address = Address::parse(text);
  if (!address) {
    expect(address.error().code == EINVAL, "what is no address is refused with EINVAL");
    expect(address.error().detail != nullptr && address.error().detail[0] != '\0', "a refusal says what is wrong");
    return 0;
  }
  check_parts(*address);
  check_written(text, *address, address->to_string());
  check_printed(*address);
  check_with_port(*address, static_cast<std::uint16_t>(size * 257));
  return 0;
}
