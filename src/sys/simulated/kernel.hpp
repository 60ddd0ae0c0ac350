// A kernel made of C++: one function for every call of the seam. Who implements it decides what the library sees of the world.
//
// Thread: one. The kernel is installed for the calling thread, on which everything that uses it runs; there are no other threads
// in a simulated world. Ownership: the installer's; it must outlive every reactor and socket that was made while it was
// installed.
//
// The calls, their answers and their errors are those of sys/sys.hpp, word for word. How readiness is told (the epoll calls) is
// kept in a group of its own, so that another way of telling it can stand beside: what a socket's state is has no part in it.
//
//   sys::Kernel* before = sys::install(&my_kernel);
//   ...
//   sys::install(before);
#pragma once

#include "sys/sys.hpp"

namespace vigil::sys {

class Kernel {
 public:
  // Clock and chance.
  virtual Instant monotonic_now() = 0;
  virtual std::uint64_t random_seed() = 0;

  // Readiness, as epoll(7) tells it.
  virtual int epoll_create() = 0;
  virtual int epoll_control(int epoll, int operation, int descriptor, epoll_event* event) = 0;
  virtual int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) = 0;

  // Readiness, asked once; wake-ups; signals.
  virtual int poll(pollfd* entries, std::size_t count, Duration timeout) = 0;
  virtual int wake_open() = 0;
  virtual int wake_signal(int descriptor) = 0;
  virtual int signal_open(int signal_number, bool& was_blocked) = 0;
  virtual int signal_take(int descriptor) = 0;
  virtual void signal_restore(int signal_number, bool was_blocked) = 0;

  // Sockets.
  virtual int socket(int family, int type) = 0;
  virtual int bind(int descriptor, const sockaddr* address, socklen_t length) = 0;
  virtual int listen(int descriptor, int backlog) = 0;
  virtual int accept(int descriptor, sockaddr* address, socklen_t* length) = 0;
  virtual int connect(int descriptor, const sockaddr* address, socklen_t length) = 0;
  virtual ssize_t recv(int descriptor, void* buffer, std::size_t size) = 0;
  virtual ssize_t send(int descriptor, const void* bytes, std::size_t size) = 0;
  virtual ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count) = 0;
  virtual int shutdown(int descriptor, int how) = 0;
  virtual int close(int descriptor) = 0;
  virtual int get_option(int descriptor, int level, int name, void* value, socklen_t* length) = 0;
  virtual int set_option(int descriptor, int level, int name, const void* value, socklen_t length) = 0;
  virtual int local_name(int descriptor, sockaddr* address, socklen_t* length) = 0;
  virtual int peer_name(int descriptor, sockaddr* address, socklen_t* length) = 0;
  virtual int status_flags(int descriptor) = 0;
  virtual int set_status_flags(int descriptor, int flags) = 0;
  virtual int unread_bytes(int descriptor) = 0;
  virtual int unsent_bytes(int descriptor) = 0;
  virtual TcpSample tcp_sample(int descriptor) = 0;

  // Files and names. What an errno is called is no business of a kernel's: the real names are always used.
  virtual int reserve_open() = 0;
  virtual int path_status(const char* path, struct stat& status) = 0;
  virtual int unlink(const char* path) = 0;
  virtual unsigned interface_index(const char* name) = 0;

  // Workers. There are no threads: a worker is set up at once, and it is the kernel's to turn it.
  virtual int start_worker(const Worker& worker, WorkerHandle& started) = 0;
  virtual int join_worker(WorkerHandle started) = 0;
  virtual int usable_cpus(int* cpus, std::size_t capacity) = 0;

 protected:
  Kernel() = default;
  Kernel(const Kernel&) = default;
  Kernel& operator=(const Kernel&) = default;
  ~Kernel() = default;  // nobody owns one through this interface
};

/// Makes it the kernel of the calling thread; null: none, and every call of the seam ends the program. Returns the one before.
Kernel* install(Kernel* kernel);

}  // namespace vigil::sys
