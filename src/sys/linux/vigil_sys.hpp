// The real seam on Linux: each function is one system call, inline. See sys/sys.hpp for the list and the convention.
#pragma once

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>

namespace vigil::sys {

template <class Number>
[[nodiscard]] inline Number or_errno(Number returned) {
  return returned >= 0 ? returned : static_cast<Number>(-errno);
}

inline timespec to_timespec(Duration duration) {
  return {static_cast<time_t>(duration.count() / 1'000'000'000), static_cast<long>(duration.count() % 1'000'000'000)};
}

inline Instant monotonic_now() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return Instant(Duration(static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec));
}

inline std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  // getrandom(2) of up to 256 bytes is never interrupted and never short once the pool is ready; an old kernel leaves the clock.
  if (::getrandom(&seed, sizeof seed, 0) != sizeof seed)
    seed = static_cast<std::uint64_t>(monotonic_now().time_since_epoch().count());
  return seed;
}

inline int epoll_create() { return or_errno(::epoll_create1(EPOLL_CLOEXEC)); }

inline int epoll_control(int epoll, int operation, int descriptor, epoll_event* event) {
  return or_errno(::epoll_ctl(epoll, operation, descriptor, event));
}

/// epoll_pwait2 (Linux 5.11) takes nanoseconds; where the kernel lacks it (or valgrind does) milliseconds are rounded up.
extern std::atomic<bool> epoll_pwait2_missing;

inline int epoll_wait_milliseconds(int epoll, epoll_event* events, int capacity, Duration timeout) {
  constexpr std::int64_t limit = 0x7fffffff;
  const std::int64_t milliseconds = timeout.count() < 0 ? -1 : (timeout.count() + 999'999) / 1'000'000;
  return or_errno(::epoll_wait(epoll, events, capacity, static_cast<int>(milliseconds < limit ? milliseconds : limit)));
}

inline int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) {
  // A wait for ever or for nothing needs no nanoseconds.
  if (timeout <= Duration::zero() || epoll_pwait2_missing.load(std::memory_order_relaxed))
    return epoll_wait_milliseconds(epoll, events, capacity, timeout);
  const timespec limit = to_timespec(timeout);
  const int count = or_errno(::epoll_pwait2(epoll, events, capacity, &limit, nullptr));
  if (count == -ENOSYS) [[unlikely]] {
    epoll_pwait2_missing.store(true, std::memory_order_relaxed);
    return epoll_wait_milliseconds(epoll, events, capacity, timeout);
  }
  return count;
}

inline int poll(pollfd* entries, std::size_t count, Duration timeout) {
  const timespec limit = to_timespec(timeout);
  return or_errno(::ppoll(entries, count, timeout < Duration::zero() ? nullptr : &limit, nullptr));
}

inline int wake_open() { return or_errno(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

inline int wake_signal(int descriptor) {
  const std::uint64_t one = 1;
  return static_cast<int>(or_errno(::write(descriptor, &one, sizeof one)));
}

int signal_open(int signal_number, bool& was_blocked);
int signal_take(int descriptor);
void signal_restore(int signal_number, bool was_blocked);

inline int socket(int family, int type) { return or_errno(::socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }
inline int bind(int descriptor, const sockaddr* address, socklen_t length) {
  return or_errno(::bind(descriptor, address, length));
}
inline int listen(int descriptor, int backlog) { return or_errno(::listen(descriptor, backlog)); }

inline int accept(int descriptor, sockaddr* address, socklen_t* length) {
  return or_errno(::accept4(descriptor, address, length, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

inline int connect(int descriptor, const sockaddr* address, socklen_t length) {
  return or_errno(::connect(descriptor, address, length));
}

// MSG_DONTWAIT makes the calls safe on a blocking socket that somebody else opened.
inline ssize_t recv(int descriptor, void* buffer, std::size_t size) {
  return or_errno(::recv(descriptor, buffer, size, MSG_DONTWAIT));
}

inline ssize_t send(int descriptor, const void* bytes, std::size_t size) {
  return or_errno(::send(descriptor, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL));
}

inline ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);  // sendmsg(2) does not write through it
  message.msg_iovlen = count;
  return or_errno(::sendmsg(descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

inline int shutdown(int descriptor, int how) { return or_errno(::shutdown(descriptor, how)); }
inline int close(int descriptor) { return or_errno(::close(descriptor)); }

inline int get_option(int descriptor, int level, int name, void* value, socklen_t* length) {
  return or_errno(::getsockopt(descriptor, level, name, value, length));
}

inline int set_option(int descriptor, int level, int name, const void* value, socklen_t length) {
  return or_errno(::setsockopt(descriptor, level, name, value, length));
}

inline int local_name(int descriptor, sockaddr* address, socklen_t* length) {
  return or_errno(::getsockname(descriptor, address, length));
}

inline int peer_name(int descriptor, sockaddr* address, socklen_t* length) {
  return or_errno(::getpeername(descriptor, address, length));
}

inline int status_flags(int descriptor) { return or_errno(::fcntl(descriptor, F_GETFL)); }
inline int set_status_flags(int descriptor, int flags) { return or_errno(::fcntl(descriptor, F_SETFL, flags)); }

inline int unread_bytes(int descriptor) {
  int bytes = 0;
  const int status = or_errno(::ioctl(descriptor, FIONREAD, &bytes));
  return status < 0 ? status : bytes;
}

inline int unsent_bytes(int descriptor) {
  int bytes = 0;
  const int status = or_errno(::ioctl(descriptor, SIOCOUTQ, &bytes));
  return status < 0 ? status : bytes;
}

TcpSample tcp_sample(int descriptor);

inline int reserve_open() { return or_errno(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
inline int path_status(const char* path, struct stat& status) { return or_errno(::lstat(path, &status)); }
inline int unlink(const char* path) { return or_errno(::unlink(path)); }

int start_worker(const Worker& worker, WorkerHandle& started);
int join_worker(WorkerHandle started);
int usable_cpus(int* cpus, std::size_t capacity);

inline unsigned interface_index(const char* name) { return ::if_nametoindex(name); }
inline const char* error_name(int code) { return ::strerrorname_np(code); }

}  // namespace vigil::sys
