// The bridge between our addresses and the kernel's.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "socket_calls.hpp"

namespace vigil {
namespace {

Result<Address> name_of(int descriptor, int (*ask)(int, sockaddr*, socklen_t*), const char* operation) {
  SocketAddress name;
  name.length = sizeof name.storage;
  if (const int status = ask(descriptor, name.get(), &name.length); status < 0) return Error{operation, -status, ""};
  return from_socket_address(name.get(), name.length);
}

}  // namespace

int protocol_family(Address::Family family) {
  switch (family) {
    case Address::Family::ipv4:
      return AF_INET;
    case Address::Family::ipv6:
      return AF_INET6;
    default:
      return AF_UNIX;
  }
}

Result<SocketAddress> resolve(const Address& address, const char* operation) {
  SocketAddress result;
  if (address.family() == Address::Family::ipv4) {
    sockaddr_in target{};
    target.sin_family = AF_INET;
    target.sin_port = htons(address.port());
    std::memcpy(&target.sin_addr, address.ip().data(), sizeof target.sin_addr);
    std::memcpy(&result.storage, &target, sizeof target);
    result.length = sizeof target;
    return result;
  }
  if (address.family() == Address::Family::ipv6) {
    sockaddr_in6 target{};
    target.sin6_family = AF_INET6;
    target.sin6_port = htons(address.port());
    std::memcpy(&target.sin6_addr, address.ip().data(), sizeof target.sin6_addr);
    if (!address.scope().empty()) {
      const std::string scope(address.scope());
      target.sin6_scope_id = sys::interface_index(scope.c_str());
      if (target.sin6_scope_id == 0) {
        // No interface has that name: a number is an index, as from_socket_address writes it.
        for (const char digit : scope) {
          if (digit < '0' || digit > '9' || scope.size() > 9) return Error{operation, ENODEV, "no such interface"};
          target.sin6_scope_id = target.sin6_scope_id * 10 + static_cast<std::uint32_t>(digit - '0');
        }
      }
    } else if (address.is_link_local()) {
      return Error{operation, EINVAL, "a link-local address needs its interface, as in [fe80::1%eth0]:7000"};
    }
    std::memcpy(&result.storage, &target, sizeof target);
    result.length = sizeof target;
    return result;
  }
  const std::string_view name = address.path();
  const bool is_abstract = address.family() == Address::Family::unix_abstract;
  sockaddr_un target{};
  target.sun_family = AF_UNIX;
  // Either the NUL behind a path or the NUL in front of an abstract name.
  if (name.empty() || name.size() >= sizeof target.sun_path) return Error{operation, EINVAL, "Unix path empty or too long"};
  std::memcpy(target.sun_path + (is_abstract ? 1 : 0), name.data(), name.size());
  std::memcpy(&result.storage, &target, sizeof target);
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return result;
}

Address from_socket_address(const sockaddr* address, socklen_t length) {
  if (length >= sizeof(sockaddr_in) && address->sa_family == AF_INET) return peer_from(address, length).to_address();
  if (length >= sizeof(sockaddr_in6) && address->sa_family == AF_INET6) return peer_from(address, length).to_address();
  if (length < sizeof address->sa_family || address->sa_family != AF_UNIX) return {};
  const std::size_t offset = offsetof(sockaddr_un, sun_path);
  const std::size_t size = std::min<std::size_t>(length > offset ? length - offset : 0, sizeof(sockaddr_un::sun_path));
  const char* name = reinterpret_cast<const char*>(address) + offset;
  if (size == 0) return Address::from_unix_path({});  // unnamed, as a client's end is
  if (name[0] == '\0') return Address::from_unix_abstract(std::string(name + 1, size - 1));
  return Address::from_unix_path(std::string(name, ::strnlen(name, size)));
}

PeerAddress peer_from(const sockaddr* address, socklen_t length) {
  Address::IpBytes ip{};
  if (length >= sizeof(sockaddr_in) && address->sa_family == AF_INET) {
    sockaddr_in from;
    std::memcpy(&from, address, sizeof from);
    std::memcpy(ip.data(), &from.sin_addr, sizeof from.sin_addr);
    return {Address::Family::ipv4, ip, ntohs(from.sin_port)};
  }
  if (length >= sizeof(sockaddr_in6) && address->sa_family == AF_INET6) {
    sockaddr_in6 from;
    std::memcpy(&from, address, sizeof from);
    std::memcpy(ip.data(), &from.sin6_addr, sizeof from.sin6_addr);
    return {Address::Family::ipv6, ip, ntohs(from.sin6_port), from.sin6_scope_id};
  }
  if (length >= sizeof address->sa_family && address->sa_family == AF_UNIX) return {Address::Family::unix_path, ip, 0};
  return {};
}

Result<Address> local_address(int descriptor) { return name_of(descriptor, &sys::local_name, "local_address"); }
Result<Address> peer_address(int descriptor) { return name_of(descriptor, &sys::peer_name, "peer_address"); }

}  // namespace vigil
