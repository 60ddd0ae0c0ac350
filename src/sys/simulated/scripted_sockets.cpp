// A scripted kernel's calls that sockets, files and names answer, and its table of descriptors.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "scripted_world.hpp"

namespace vigil::sys {

namespace {

/// The kernel's habit: no more than fits, and the true length.
void copy_name(const sockaddr_storage& from, socklen_t from_length, sockaddr* to, socklen_t* to_length) {
  if (to == nullptr || to_length == nullptr) return;
  std::memcpy(to, &from, std::min(from_length, *to_length));
  *to_length = from_length;
}

socklen_t make_name(int family, std::uint32_t host, std::uint16_t port, sockaddr_storage& name) {
  name = {};
  name.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(name);
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = htonl(0xC0000200U | host);  // 192.0.2.host, which is for examples
    return sizeof v4;
  }
  if (family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(name);
    v6.sin6_port = htons(port);
    v6.sin6_addr.s6_addr[0] = 0x20;  // 2001:db8::host, likewise
    v6.sin6_addr.s6_addr[1] = 0x01;
    v6.sin6_addr.s6_addr[2] = 0x0d;
    v6.sin6_addr.s6_addr[3] = 0xb8;
    v6.sin6_addr.s6_addr[15] = static_cast<std::uint8_t>(host);
    return sizeof v6;
  }
  return sizeof(sa_family_t);  // a Unix socket's peer has no name
}

std::uint16_t* port_of(sockaddr_storage& name) {
  if (name.ss_family == AF_INET) return &reinterpret_cast<sockaddr_in&>(name).sin_port;
  if (name.ss_family == AF_INET6) return &reinterpret_cast<sockaddr_in6&>(name).sin6_port;
  return nullptr;
}

/// The path of a Unix address that stands in the file system; empty for any other.
std::string path_in(const sockaddr_storage& name, socklen_t length) {
  if (name.ss_family != AF_UNIX || length <= offsetof(sockaddr_un, sun_path)) return {};
  const char* path = reinterpret_cast<const sockaddr_un&>(name).sun_path;
  return std::string(path, ::strnlen(path, length - offsetof(sockaddr_un, sun_path)));
}

}  // namespace

// The table of descriptors --------------------------------------------------------------------------------------------------

SimulatedDescriptor* ScriptedKernel::World::find(int descriptor) {
  const auto found = descriptors_.find(descriptor);
  return found == descriptors_.end() ? nullptr : &found->second;
}

SimulatedDescriptor& ScriptedKernel::World::scripted(int descriptor) {
  if (SimulatedDescriptor* open_one = find(descriptor)) return *open_one;
  const auto promised = arriving_.find(descriptor);
  if (promised == arriving_.end()) misused("no such descriptor is open", descriptor);
  return promised->second;
}

SimulatedDescriptor* ScriptedKernel::World::still_there(int descriptor) {
  if (closed_.contains(descriptor) && find(descriptor) == nullptr && !arriving_.contains(descriptor)) return nullptr;
  return &scripted(descriptor);
}

const SimulatedDescriptor& ScriptedKernel::World::life(int descriptor) {
  const auto over = closed_.find(descriptor);
  if (find(descriptor) == nullptr && over != closed_.end()) return over->second;
  return scripted(descriptor);
}

int ScriptedKernel::World::open(Kind kind) {
  if (is_full()) return -EMFILE;
  const int descriptor = lowest_free();
  closed_.erase(descriptor);
  descriptors_[descriptor].kind = kind;
  return descriptor;
}

int ScriptedKernel::World::lowest_free() {
  while (descriptors_.contains(lowest_free_) || arriving_.contains(lowest_free_)) ++lowest_free_;
  return lowest_free_;
}

// Sockets -------------------------------------------------------------------------------------------------------------------

int ScriptedKernel::World::socket(int family, int type) {
  return made({.call = Call::socket}, [&] {
    if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) return -EAFNOSUPPORT;
    const int descriptor = open(Kind::socket);
    if (descriptor < 0) return descriptor;
    descriptors_.at(descriptor).family = family;
    descriptors_.at(descriptor).type = type;
    return descriptor;
  });
}

int ScriptedKernel::World::bind(int descriptor, const sockaddr* address, socklen_t length) {
  return made({.call = Call::bind, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    if (socket->local_length != 0 || length > sizeof(sockaddr_storage) || address->sa_family != socket->family) return -EINVAL;
    sockaddr_storage name{};
    std::memcpy(&name, address, length);
    if (std::uint16_t* port = port_of(name); port != nullptr && *port == 0) *port = htons(next_own_port_++);
    if (is_taken(name, length, *socket)) return -EADDRINUSE;
    if (const std::string path = path_in(name, length); !path.empty()) {
      if (paths_.contains(path)) return -EADDRINUSE;
      paths_[path] = next_inode_++;
    }
    socket->local = name;
    socket->local_length = length;
    return 0;
  });
}

int ScriptedKernel::World::listen(int descriptor, int backlog) {
  return made({.call = Call::listen, .descriptor = descriptor, .size = static_cast<std::size_t>(backlog)}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    if (is_taken(socket->local, socket->local_length, *socket)) return -EADDRINUSE;
    if (socket->stage != Stage::fresh && socket->stage != Stage::listening) return -EINVAL;
    socket->stage = Stage::listening;
    listener_ = descriptor;
    return 0;
  });
}

int ScriptedKernel::World::accept(int descriptor, sockaddr* address, socklen_t* length) {
  return made({.call = Call::accept, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* listener = find(descriptor);
    if (listener == nullptr) return on_closed();
    if (listener->kind != Kind::socket) return -ENOTSOCK;
    if (listener->stage != Stage::listening) return -EINVAL;
    if (is_full()) return -EMFILE;  // the kernel takes a number first, and looks for a connection then
    if (listener->waiting.empty()) return -EAGAIN;
    const int next = listener->waiting.front();
    listener->waiting.pop_front();
    if (next < 0) return next;
    descriptors_[next] = std::move(arriving_.at(next));
    arriving_.erase(next);
    closed_.erase(next);
    const SimulatedDescriptor& accepted = descriptors_.at(next);
    copy_name(accepted.remote, accepted.remote_length, address, length);
    return next;
  });
}

int ScriptedKernel::World::connect(int descriptor, const sockaddr* address, socklen_t length) {
  return made({.call = Call::connect, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    if (socket->stage == Stage::connecting) return -EALREADY;
    if (socket->stage == Stage::connected) return -EISCONN;
    if (socket->stage == Stage::listening) return -EISCONN;
    if (socket->connect_error != 0) return -std::exchange(socket->connect_error, 0);
    if (address->sa_family != socket->family) return -EAFNOSUPPORT;
    std::memcpy(&socket->remote, address, std::min<std::size_t>(length, sizeof socket->remote));
    socket->remote_length = length;
    if (socket->local_length == 0) socket->local_length = make_name(socket->family, 2, next_own_port_++, socket->local);
    const bool at_once = std::exchange(connect_at_once_, false) || socket->family == AF_UNIX;
    socket->stage = at_once ? Stage::connected : Stage::connecting;
    return at_once ? 0 : -EINPROGRESS;
  });
}

ssize_t ScriptedKernel::World::recv(int descriptor, void* buffer, std::size_t size) {
  return made({.call = Call::recv, .descriptor = descriptor, .size = size}, [&]() -> ssize_t {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    return socket->kind == Kind::socket ? socket->receive(buffer, size) : -ENOTSOCK;
  });
}

ssize_t ScriptedKernel::World::send(int descriptor, const void* bytes, std::size_t size) {
  const iovec piece{const_cast<void*>(bytes), size};
  return sent_by(Call::send, descriptor, &piece, 1);
}

ssize_t ScriptedKernel::World::send_vector(int descriptor, const iovec* pieces, std::size_t count) {
  return sent_by(Call::send_vector, descriptor, pieces, count);
}

int ScriptedKernel::World::shutdown(int descriptor, int how) {
  return made({.call = Call::shutdown, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    return socket->kind == Kind::socket ? socket->shutdown(how) : -ENOTSOCK;
  });
}

int ScriptedKernel::World::close(int descriptor) {
  return made({.call = Call::close, .descriptor = descriptor}, [&] {
    const auto found = descriptors_.find(descriptor);
    if (found == descriptors_.end()) return on_closed();
    for (int number : found->second.waiting) {
      arriving_.erase(number);
      if (number >= 0) lowest_free_ = std::min(lowest_free_, number);
    }
    lowest_free_ = std::min(lowest_free_, descriptor);
    const bool lives_on = std::erase(duplicated_, descriptor) > 0;
    for (auto& [number, poller] : pollers_) lives_on ? poller.orphan(descriptor) : poller.forget(descriptor);
    pollers_.erase(descriptor);
    found->second.ended_by_reset = found->second.would_reset();
    closed_[descriptor] = std::move(found->second);
    descriptors_.erase(found);
    if (listener_ == descriptor) listener_ = -1;
    return 0;
  });
}

int ScriptedKernel::World::get_option(int descriptor, int level, int name, void* value, socklen_t* length) {
  return made({.call = Call::get_option, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    int number = 0;
    if (level == SOL_SOCKET && name == SO_ERROR) {
      number = socket->take_error();
    } else if (level == SOL_SOCKET && name == SO_TYPE) {
      number = socket->type;
    } else if (level == SOL_SOCKET && name == SO_DOMAIN) {
      number = socket->family;
    } else if (level == SOL_SOCKET && name == SO_ACCEPTCONN) {
      number = socket->stage == Stage::listening ? 1 : 0;
    } else if (const auto option = socket->options.find({level, name}); option != socket->options.end()) {
      *length = std::min(*length, static_cast<socklen_t>(option->second.size()));
      std::memcpy(value, option->second.data(), *length);
      return 0;
    }
    *length = std::min(*length, static_cast<socklen_t>(sizeof number));
    std::memcpy(value, &number, *length);
    return 0;
  });
}

int ScriptedKernel::World::set_option(int descriptor, int level, int name, const void* value, socklen_t length) {
  return made({.call = Call::set_option, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    const auto* bytes = static_cast<const std::byte*>(value);
    socket->options[{level, name}].assign(bytes, bytes + length);
    return 0;
  });
}

int ScriptedKernel::World::local_name(int descriptor, sockaddr* address, socklen_t* length) {
  return made({.call = Call::local_name, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    sockaddr_storage unbound{};
    unbound.ss_family = static_cast<sa_family_t>(socket->family);
    if (socket->local_length == 0)
      copy_name(unbound, socket->family == AF_INET ? sizeof(sockaddr_in) : sizeof(sa_family_t), address, length);
    else
      copy_name(socket->local, socket->local_length, address, length);
    return 0;
  });
}

int ScriptedKernel::World::peer_name(int descriptor, sockaddr* address, socklen_t* length) {
  return made({.call = Call::peer_name, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    if (socket->kind != Kind::socket) return -ENOTSOCK;
    // A connection that was reset has no peer any more, even before accept.
    if (socket->stage != Stage::connected || (socket->state() & (POLLERR | POLLHUP)) != 0) return -ENOTCONN;
    copy_name(socket->remote, socket->remote_length, address, length);
    return 0;
  });
}

int ScriptedKernel::World::status_flags(int descriptor) {
  return made({.call = Call::status_flags, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* about = find(descriptor);
    return about == nullptr ? on_closed() : about->flags;
  });
}

int ScriptedKernel::World::set_status_flags(int descriptor, int flags) {
  return made({.call = Call::set_status_flags, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* about = find(descriptor);
    if (about == nullptr) return on_closed();
    about->flags = flags;
    return 0;
  });
}

int ScriptedKernel::World::unread_bytes(int descriptor) {
  return made({.call = Call::unread_bytes, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* socket = find(descriptor);
    return socket == nullptr ? on_closed() : socket->unread();
  });
}

int ScriptedKernel::World::unsent_bytes(int descriptor) {
  return made({.call = Call::unsent_bytes, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* socket = find(descriptor);
    return socket == nullptr ? on_closed() : socket->unsent();
  });
}

TcpSample ScriptedKernel::World::tcp_sample(int descriptor) {
  TcpSample sample;
  made({.call = Call::tcp_sample, .descriptor = descriptor}, [&] {
    const SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    sample = socket->sample();
    return 0;
  });
  return sample;
}

ssize_t ScriptedKernel::World::sent_by(Call call, int descriptor, const iovec* pieces, std::size_t count) {
  std::size_t size = 0;
  for (std::size_t index = 0; index < count; ++index) size += pieces[index].iov_len;
  return made({.call = call, .descriptor = descriptor, .size = size}, [&]() -> ssize_t {
    SimulatedDescriptor* socket = find(descriptor);
    if (socket == nullptr) return on_closed();
    return socket->kind == Kind::socket ? socket->send(pieces, count) : -ENOTSOCK;
  });
}

bool ScriptedKernel::World::is_taken(const sockaddr_storage& name, socklen_t length, const SimulatedDescriptor& by) const {
  const std::pair<int, int> reuse_port{SOL_SOCKET, SO_REUSEPORT};
  for (const auto& [number, other] : descriptors_) {
    if (&other == &by || other.stage != Stage::listening || other.local_length != length) continue;
    if (std::memcmp(&other.local, &name, length) != 0) continue;
    if (!other.options.contains(reuse_port) || !by.options.contains(reuse_port)) return true;
  }
  return false;
}

void ScriptedKernel::World::arrives(int descriptor, Arrival arrival) {
  SimulatedDescriptor* socket = still_there(descriptor);
  if (socket == nullptr) return;
  socket->arrivals.push_back(std::move(arrival));
  tell(descriptor);
}

int ScriptedKernel::World::make_peer(int listener_descriptor) {
  SimulatedDescriptor& listening = scripted(listener_descriptor);
  if (listening.stage != Stage::listening) misused("not listening", listener_descriptor);
  SimulatedDescriptor connection;
  connection.kind = Kind::socket;
  connection.stage = Stage::connected;
  connection.family = listening.family;
  connection.type = listening.type;
  connection.options = listening.options;
  connection.local = listening.local;
  connection.local_length = listening.local_length;
  connection.remote_length = make_name(listening.family, 1, next_peer_port_++, connection.remote);
  const int descriptor = lowest_free();
  arriving_[descriptor] = std::move(connection);
  listening.waiting.push_back(descriptor);
  return descriptor;
}

// Files and names -----------------------------------------------------------------------------------------------------------

int ScriptedKernel::World::reserve_open() {
  return made({.call = Call::reserve_open}, [&] { return open(Kind::reserve); });
}

int ScriptedKernel::World::path_status(const char* path, struct stat& status) {
  return made({.call = Call::path_status}, [&] {
    const auto found = paths_.find(path);
    if (found == paths_.end()) return -ENOENT;
    status = {};
    status.st_dev = 1;
    status.st_ino = found->second;
    status.st_mode = S_IFSOCK | 0755;
    return 0;
  });
}

int ScriptedKernel::World::unlink(const char* path) {
  return made({.call = Call::unlink}, [&] { return paths_.erase(path) > 0 ? 0 : -ENOENT; });
}

unsigned ScriptedKernel::World::interface_index(const char* name) {
  record({.call = Call::interface_index, .at = now_});
  const auto found = interfaces_.find(name);
  return found == interfaces_.end() ? 0 : found->second;
}

}  // namespace vigil::sys
