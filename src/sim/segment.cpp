#include "sim/segment.hpp"

#include <algorithm>
#include <cstring>

#include "sim/network.hpp"

namespace vigil::sim {
namespace {

std::uint64_t read_word(const std::uint8_t* bytes) {
  std::uint64_t word = 0;
  for (int index = 0; index < 8; ++index) word = word << 8 | bytes[index];
  return word;
}

void write_word(std::uint64_t word, std::uint8_t* bytes) {
  for (int index = 7; index >= 0; --index, word >>= 8) bytes[index] = static_cast<std::uint8_t>(word);
}

constexpr std::uint64_t v4_mapped = 0xFFFF00000000;

}  // namespace

Ip Ip::of(const Address& address) {
  const Address::IpBytes& bytes = address.ip();
  if (address.family() == Address::Family::ipv4) return {0, v4_mapped | read_word(bytes.data()) >> 32};
  return {read_word(bytes.data()), read_word(bytes.data() + 8)};
}

Endpoint Endpoint::of(const sockaddr_storage& name) {
  if (name.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(name);
    return {{0, v4_mapped | ntohl(v4.sin_addr.s_addr)}, ntohs(v4.sin_port)};
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(name);
  return {{read_word(v6.sin6_addr.s6_addr), read_word(v6.sin6_addr.s6_addr + 8)}, ntohs(v6.sin6_port)};
}

void Endpoint::write(int family, sockaddr* name, socklen_t* length) const {
  if (name == nullptr || length == nullptr) return;
  sockaddr_storage whole{};
  socklen_t whole_length = sizeof(sockaddr_in6);
  whole.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(whole);
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = htonl(static_cast<std::uint32_t>(ip.low));
    whole_length = sizeof v4;
  } else {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(whole);
    v6.sin6_port = htons(port);
    write_word(ip.high, v6.sin6_addr.s6_addr);
    write_word(ip.low, v6.sin6_addr.s6_addr + 8);
  }
  std::memcpy(name, &whole, std::min(*length, whole_length));
  *length = whole_length;
}

std::string Endpoint::text() const {
  Address::IpBytes bytes{};
  if (ip.is_v4()) {
    const auto word = static_cast<std::uint32_t>(ip.low);
    return Address::from_ipv4({static_cast<std::uint8_t>(word >> 24), static_cast<std::uint8_t>(word >> 16),
                               static_cast<std::uint8_t>(word >> 8), static_cast<std::uint8_t>(word)},
                              port)
        .to_string();
  }
  write_word(ip.high, bytes.data());
  write_word(ip.low, bytes.data() + 8);
  return Address::from_ipv6(bytes, port).to_string();
}

Endpoint parse_endpoint(std::string_view text) {
  const auto address = Address::parse(text);
  if (!address || !address->is_ip()) misused("no IP address with a port", text);
  return {Ip::of(*address), address->port()};
}

Ip parse_ip(std::string_view text) {
  std::string with_port(text);
  with_port = text.find(':') == std::string_view::npos ? with_port + ":0" : "[" + with_port + "]:0";
  const auto address = Address::parse(with_port);
  if (!address || !address->is_ip()) misused("no IP address", text);
  return Ip::of(*address);
}

}  // namespace vigil::sim
