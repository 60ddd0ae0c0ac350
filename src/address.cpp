#include "vigil/address.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

namespace vigil {
namespace {

constexpr std::size_t unix_name_bytes_max =
    107;                                     // sockaddr_un holds 108, one of them the NUL (or, of an abstract name, the mark)
constexpr std::size_t scope_bytes_max = 15;  // IF_NAMESIZE less its NUL

Error wrong(const char* detail) { return {"parse address", EINVAL, detail}; }

bool is_digit(char character) { return character >= '0' && character <= '9'; }

/// Plain decimal without signs, spaces or leading zeros, at most `limit`; nothing else.
std::optional<unsigned> parse_number(std::string_view digits, unsigned limit) {
  if (digits.empty() || digits.size() > 5 || !std::all_of(digits.begin(), digits.end(), is_digit)) return std::nullopt;
  if (digits.size() > 1 && digits.front() == '0') return std::nullopt;  // octal for some, decimal for others
  unsigned number = 0;
  for (const char digit : digits) number = number * 10 + static_cast<unsigned>(digit - '0');
  if (number > limit) return std::nullopt;
  return number;
}

std::optional<std::array<std::uint8_t, 4>> parse_ipv4(std::string_view text) {
  std::array<std::uint8_t, 4> ip{};
  for (std::size_t index = 0; index < ip.size(); ++index) {
    const std::size_t end = index + 1 < ip.size() ? text.find('.') : text.size();
    if (end == std::string_view::npos) return std::nullopt;
    const auto number = parse_number(text.substr(0, end), 255);
    if (!number) return std::nullopt;
    ip[index] = static_cast<std::uint8_t>(*number);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return ip;
}

std::optional<Address::IpBytes> parse_ipv6(std::string_view text) {
  if (text.empty() || text.size() >= INET6_ADDRSTRLEN || text.find('\0') != std::string_view::npos) return std::nullopt;
  char terminated[INET6_ADDRSTRLEN] = {};
  std::copy(text.begin(), text.end(), terminated);
  Address::IpBytes ip{};
  if (::inet_pton(AF_INET6, terminated, ip.data()) != 1) return std::nullopt;
  return ip;
}

bool is_scope(std::string_view scope) {
  const auto is_allowed = [](char character) {
    return character > ' ' && character < 0x7f && character != '/' && character != '%';
  };
  return !scope.empty() && scope.size() <= scope_bytes_max && std::all_of(scope.begin(), scope.end(), is_allowed);
}

Result<Address> parse_unix(std::string_view name) {
  const bool is_abstract = !name.empty() && name.front() == '@';
  if (is_abstract) name.remove_prefix(1);
  if (name.empty()) return wrong("no path after unix:");
  if (name.size() > unix_name_bytes_max) return wrong("Unix path longer than 107 bytes");
  if (name.find('\0') != std::string_view::npos) return wrong("NUL in a Unix path");
  return is_abstract ? Address::from_unix_abstract(std::string(name)) : Address::from_unix_path(std::string(name));
}

Result<Address> parse_ipv6_address(std::string_view inside, std::uint16_t port) {
  const std::size_t percent = inside.find('%');
  const auto ip = parse_ipv6(inside.substr(0, percent));
  if (!ip) return wrong("not an IPv6 address");
  if (percent == std::string_view::npos) return Address::from_ipv6(*ip, port);
  const std::string_view scope = inside.substr(percent + 1);
  if (!is_scope(scope)) return wrong("not an interface name after %");
  Address address = Address::from_ipv6(*ip, port, std::string(scope));
  if (!address.is_link_local()) return wrong("scope on an address that is not link-local");
  return address;
}

/// Control bytes as \x00, so that a name from a stranger can't forge a line of output.
void append_printable(std::string& line, std::string_view text) {
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte >= 0x20 && byte != 0x7f) {
      line += character;
      continue;
    }
    char escape[5];
    std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(byte));
    line += escape;
  }
}

}  // namespace

Result<Address> Address::parse(std::string_view text) {
  constexpr std::string_view unix_prefix = "unix:";
  if (text.empty()) return wrong("empty");
  if (text.substr(0, unix_prefix.size()) == unix_prefix) return parse_unix(text.substr(unix_prefix.size()));

  const bool bracketed = text.front() == '[';
  const std::size_t bracket = bracketed ? text.find(']') : 0;
  if (bracket == std::string_view::npos) return wrong("no closing bracket");
  const std::size_t colon = text.find(':', bracket);
  if (colon == std::string_view::npos) return wrong("no port");
  if (bracketed && colon != bracket + 1) return wrong("no port after the closing bracket");
  if (!bracketed && text.find(':', colon + 1) != std::string_view::npos) return wrong("an IPv6 address needs brackets");

  const auto port = parse_number(text.substr(colon + 1), 65535);
  if (bracketed) {
    const auto address = parse_ipv6_address(text.substr(1, bracket - 1), static_cast<std::uint16_t>(port.value_or(0)));
    return address && !port ? wrong("port is not 0 to 65535") : address;
  }
  const auto ip = parse_ipv4(text.substr(0, colon));
  if (!ip) return wrong("not an IPv4 address");
  if (!port) return wrong("port is not 0 to 65535");
  return from_ipv4(*ip, static_cast<std::uint16_t>(*port));
}

Address Address::from_ipv4(const std::array<std::uint8_t, 4>& ip, std::uint16_t port) {
  Address address;
  address.port_ = port;
  std::copy(ip.begin(), ip.end(), address.ip_.begin());
  return address;
}

Address Address::from_ipv6(const IpBytes& ip, std::uint16_t port, std::string scope) {
  Address address;
  address.family_ = Family::ipv6;
  address.port_ = port;
  address.ip_ = ip;
  address.text_ = std::move(scope);
  return address;
}

Address Address::from_unix_path(std::string path) {
  Address address;
  address.family_ = Family::unix_path;
  address.text_ = std::move(path);
  return address;
}

Address Address::from_unix_abstract(std::string name) {
  Address address = from_unix_path(std::move(name));
  address.family_ = Family::unix_abstract;
  return address;
}

std::string Address::to_string() const {
  char ip[INET6_ADDRSTRLEN] = {};
  std::string line;
  switch (family_) {
    case Family::ipv4:
      ::inet_ntop(AF_INET, ip_.data(), ip, sizeof ip);
      return std::string(ip) + ':' + std::to_string(port_);
    case Family::ipv6:
      ::inet_ntop(AF_INET6, ip_.data(), ip, sizeof ip);
      line = std::string("[") + ip;
      if (!text_.empty()) line += '%' + text_;
      return line + "]:" + std::to_string(port_);
    case Family::unix_path:
      line = "unix:";
      break;
    case Family::unix_abstract:
      line = "unix:@";
      break;
  }
  append_printable(line, text_);
  return line;
}

Address Address::with_port(std::uint16_t port) const {
  Address address = *this;
  if (is_ip()) address.port_ = port;
  return address;
}

bool Address::is_link_local() const {
  if (family_ != Family::ipv6) return false;
  const bool unicast = ip_[0] == 0xfe && (ip_[1] & 0xc0) == 0x80;
  const unsigned multicast_scope = ip_[1] & 0x0fU;  // RFC 4291: 1 interface-local, 2 link-local
  return unicast || (ip_[0] == 0xff && (multicast_scope == 1 || multicast_scope == 2));
}

Address PeerAddress::to_address() const {
  switch (family_) {
    case Address::Family::ipv4:
      return Address::from_ipv4({ip_[0], ip_[1], ip_[2], ip_[3]}, port_);
    case Address::Family::ipv6:
      return Address::from_ipv6(ip_, port_, scope_ == 0 ? std::string() : std::to_string(scope_));
    case Address::Family::unix_path:
      return Address::from_unix_path({});
    case Address::Family::unix_abstract:
      return Address::from_unix_abstract({});
  }
  return {};
}

}  // namespace vigil
