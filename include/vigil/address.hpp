// Address: where to listen or connect, as people write it. PeerAddress: the same for one end of a connection, in 24 bytes.
//
//   127.0.0.1:7000   [::1]:7000   [fe80::1%eth0]:7000   unix:/run/vigil.socket   unix:@abstract
//
// Only numbers: no name is looked up and nothing here asks the kernel. A scope (`%eth0`) stays text until bind or connect.
//
// Thread: plain values.
//
//   auto address = vigil::Address::parse("[::1]:7000");
//   if (!address) return vigil::report(address.error());
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "vigil/result.hpp"

namespace vigil {

class Address {
 public:
  enum class Family : std::uint8_t { ipv4, ipv6, unix_path, unix_abstract };
  using IpBytes = std::array<std::uint8_t, 16>;

  /// 0.0.0.0:0.
  Address() = default;

  /// Exactly the forms above. The port is 0 to 65535 in plain decimal; an IPv4 address has four numbers without leading zeros; a
  /// scope belongs to a link-local IPv6 address; a Unix path or name has 1 to 107 bytes and no NUL. Anything else is
  /// Error{"parse address", EINVAL, what is wrong}.
  [[nodiscard]] static Result<Address> parse(std::string_view text);

  // From parts, for what came from the kernel. Nothing is checked.
  [[nodiscard]] static Address from_ipv4(const std::array<std::uint8_t, 4>& ip, std::uint16_t port);
  [[nodiscard]] static Address from_ipv6(const IpBytes& ip, std::uint16_t port, std::string scope = {});
  /// An empty path is the unnamed end of a Unix connection.
  [[nodiscard]] static Address from_unix_path(std::string path);
  [[nodiscard]] static Address from_unix_abstract(std::string name);

  /// What parse() reads. Control bytes in a Unix path or name are shown as `\x00`, so that one line stays one line.
  [[nodiscard]] std::string to_string() const;

  [[nodiscard]] Family family() const { return family_; }
  [[nodiscard]] bool is_ip() const { return family_ == Family::ipv4 || family_ == Family::ipv6; }
  /// 0 for a Unix address.
  [[nodiscard]] std::uint16_t port() const { return port_; }
  /// The same address with another port; a Unix address stays as it is.
  [[nodiscard]] Address with_port(std::uint16_t port) const;
  /// In network order: 4 bytes (the rest zero) for IPv4, 16 for IPv6, zeros for Unix.
  [[nodiscard]] const IpBytes& ip() const { return ip_; }
  /// The scope of a link-local IPv6 address, a name or a number; else empty.
  [[nodiscard]] std::string_view scope() const { return is_ip() ? std::string_view(text_) : std::string_view(); }
  /// The path or the abstract name (without `@`) of a Unix address; else empty.
  [[nodiscard]] std::string_view path() const { return is_ip() ? std::string_view() : std::string_view(text_); }
  /// IPv6 link-local (unicast or multicast): means something only together with a scope.
  [[nodiscard]] bool is_link_local() const;

  friend bool operator==(const Address&, const Address&) = default;

 private:
  Family family_ = Family::ipv4;
  std::uint16_t port_ = 0;
  IpBytes ip_{};
  std::string text_;  // scope, path or name
};

/// Small enough to keep for every connection. A Unix peer keeps only its family: `unix:`; a scope keeps only its number.
class PeerAddress {
 public:
  PeerAddress() = default;
  PeerAddress(Address::Family family, const Address::IpBytes& ip, std::uint16_t port, std::uint32_t scope = 0)
      : ip_(ip), scope_(scope), port_(port), family_(family) {}

  [[nodiscard]] Address to_address() const;
  [[nodiscard]] std::string to_string() const { return to_address().to_string(); }

  [[nodiscard]] Address::Family family() const { return family_; }
  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] const Address::IpBytes& ip() const { return ip_; }
  [[nodiscard]] std::uint32_t scope() const { return scope_; }

  friend bool operator==(const PeerAddress&, const PeerAddress&) = default;

 private:
  Address::IpBytes ip_{};
  std::uint32_t scope_ = 0;
  std::uint16_t port_ = 0;
  Address::Family family_ = Address::Family::ipv4;
};

static_assert(sizeof(PeerAddress) <= 32 && std::is_trivially_copyable_v<PeerAddress>);

}  // namespace vigil
