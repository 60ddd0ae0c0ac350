// The simulated seam: every call goes to the kernel installed on this thread.
#include "sys/sys.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sys/simulated/kernel.hpp"

namespace vigil::sys {

// Defined here, in the object that install() is in: a program that installs a kernel and takes any other object of the library
// from the real one does not link.
extern const char* const implementation;
const char* const implementation = "simulated";

namespace {

thread_local Kernel* installed = nullptr;

Kernel& kernel() {
  if (installed == nullptr) {
    std::fputs(
        "vigil: a system call was made on simulated system calls, and no kernel is installed on this thread. Make a "
        "vigil::sim::World before the first reactor or socket, keep it until after the last, and use no other thread.\n",
        stderr);
    std::abort();
  }
  return *installed;
}

}  // namespace

Kernel* install(Kernel* next) {
  Kernel* before = installed;
  installed = next;
  return before;
}

Instant monotonic_now() { return kernel().monotonic_now(); }
std::uint64_t random_seed() { return kernel().random_seed(); }

int epoll_create() { return kernel().epoll_create(); }
int epoll_control(int epoll, int operation, int descriptor, epoll_event* event) {
  return kernel().epoll_control(epoll, operation, descriptor, event);
}
int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) {
  return kernel().epoll_wait(epoll, events, capacity, timeout);
}

int poll(pollfd* entries, std::size_t count, Duration timeout) { return kernel().poll(entries, count, timeout); }
int wake_open() { return kernel().wake_open(); }
int wake_signal(int descriptor) { return kernel().wake_signal(descriptor); }
int signal_open(int signal_number, bool& was_blocked) { return kernel().signal_open(signal_number, was_blocked); }
int signal_take(int descriptor) { return kernel().signal_take(descriptor); }
void signal_restore(int signal_number, bool was_blocked) { kernel().signal_restore(signal_number, was_blocked); }

int socket(int family, int type) { return kernel().socket(family, type); }
int bind(int descriptor, const sockaddr* address, socklen_t length) { return kernel().bind(descriptor, address, length); }
int listen(int descriptor, int backlog) { return kernel().listen(descriptor, backlog); }
int accept(int descriptor, sockaddr* address, socklen_t* length) { return kernel().accept(descriptor, address, length); }
int connect(int descriptor, const sockaddr* address, socklen_t length) { return kernel().connect(descriptor, address, length); }
ssize_t recv(int descriptor, void* buffer, std::size_t size) { return kernel().recv(descriptor, buffer, size); }
ssize_t send(int descriptor, const void* bytes, std::size_t size) { return kernel().send(descriptor, bytes, size); }
ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count) {
  return kernel().send_vector(descriptor, pieces, count);
}
int shutdown(int descriptor, int how) { return kernel().shutdown(descriptor, how); }
int close(int descriptor) { return kernel().close(descriptor); }
int get_option(int descriptor, int level, int name, void* value, socklen_t* length) {
  return kernel().get_option(descriptor, level, name, value, length);
}
int set_option(int descriptor, int level, int name, const void* value, socklen_t length) {
  return kernel().set_option(descriptor, level, name, value, length);
}
int local_name(int descriptor, sockaddr* address, socklen_t* length) { return kernel().local_name(descriptor, address, length); }
int peer_name(int descriptor, sockaddr* address, socklen_t* length) { return kernel().peer_name(descriptor, address, length); }
int status_flags(int descriptor) { return kernel().status_flags(descriptor); }
int set_status_flags(int descriptor, int flags) { return kernel().set_status_flags(descriptor, flags); }
int unread_bytes(int descriptor) { return kernel().unread_bytes(descriptor); }
int unsent_bytes(int descriptor) { return kernel().unsent_bytes(descriptor); }
TcpSample tcp_sample(int descriptor) { return kernel().tcp_sample(descriptor); }

int reserve_open() { return kernel().reserve_open(); }
int path_status(const char* path, struct stat& status) { return kernel().path_status(path, status); }
int unlink(const char* path) { return kernel().unlink(path); }
unsigned interface_index(const char* name) { return kernel().interface_index(name); }

int start_worker(const Worker& worker, WorkerHandle& started) { return kernel().start_worker(worker, started); }
int join_worker(WorkerHandle started) { return kernel().join_worker(started); }
int usable_cpus(int* cpus, std::size_t capacity) { return kernel().usable_cpus(cpus, capacity); }

// Neither changes nor observes the world.
const char* error_name(int code) { return ::strerrorname_np(code); }

}  // namespace vigil::sys
