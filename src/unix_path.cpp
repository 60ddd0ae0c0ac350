#include "unix_path.hpp"

#include <cerrno>
#include <utility>

#include "socket_calls.hpp"

namespace vigil {
namespace {

constexpr const char* operation = "listen";

/// Whether anybody has a socket at this path, 0 or an errno. Asked as a datagram socket: a stream socket there answers
/// EPROTOTYPE, is not disturbed by a connection, and answers so from its bind on, before it listens.
int ask_for_owner(const SocketAddress& path) {
  const int descriptor = sys::socket(AF_UNIX, SOCK_DGRAM);
  if (descriptor < 0) return -descriptor;
  const int status = uninterrupted([&] { return sys::connect(descriptor, path.get(), path.length); });
  sys::close(descriptor);
  return -status;
}

/// Makes way for a bind that found the path taken, if what stands there is stale.
Result<void> remove_stale(const Address& address) {
  const std::string path(address.path());
  const auto resolved = resolve(address, operation);
  if (!resolved) return resolved.error();
  struct stat before {};
  if (sys::path_status(path.c_str(), before) == -ENOENT) return {};  // gone meanwhile
  if (!S_ISSOCK(before.st_mode)) return Error{operation, EADDRINUSE, "the path exists and is no socket"};
  const int answer = ask_for_owner(*resolved);
  if (answer == EMFILE || answer == ENFILE) return Error{operation, answer, "socket"};
  if (answer != ECONNREFUSED && answer != ENOENT) return Error{operation, EADDRINUSE, "the path's owner lives"};
  // Two that start at once both find it stale: the slower one must not remove what the faster one has bound since.
  struct stat now {};
  const bool same = sys::path_status(path.c_str(), now) == 0 && now.st_dev == before.st_dev && now.st_ino == before.st_ino;
  if (same && ask_for_owner(*resolved) == ECONNREFUSED) {
    if (const int status = sys::unlink(path.c_str()); status < 0 && status != -ENOENT)
      return Error{operation, -status, "a stale path can't be removed"};
  }
  return {};
}

}  // namespace

UnixPath::UnixPath(std::string path) : path_(std::move(path)) {
  struct stat status {};
  found_ = sys::path_status(path_.c_str(), status) == 0;
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

bool UnixPath::is_own() const {
  struct stat status {};
  return found_ && sys::path_status(path_.c_str(), status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
}

void UnixPath::remove() const {
  if (is_own()) sys::unlink(path_.c_str());  // who has no right to any more leaves it, stale, to the next listener
}

Result<Socket> listen_on_path(const Address& address, const ListenSocketOptions& options, std::optional<UnixPath>& own) {
  auto socket = bound_socket(address, options);
  if (!socket && socket.error().code == EADDRINUSE) {
    if (auto removed = remove_stale(address); !removed) return removed.error();
    socket = bound_socket(address, options);
  }
  if (!socket) return socket;
  own.emplace(std::string(address.path()));
  Error error;
  if (auto listening = listen(*socket, options.backlog); !listening) error = listening.error();
  if (error.code == 0 && !own->is_own()) error = {operation, EADDRINUSE, "somebody else took the path meanwhile"};
  if (error.code == 0) return socket;
  own->remove();
  own.reset();
  return error;
}

}  // namespace vigil
