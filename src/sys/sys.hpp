// The seam: every system call vigil makes, and nothing else. All code above calls these and runs unchanged on each
// implementation.
//
// The build chooses one by include directory: `src/sys/linux` forwards to the kernel, inline and at no cost; `src/sys/simulated`
// forwards to the sys::Kernel a test installed (src/sys/simulated/kernel.hpp). Both define the same list of functions.
//
// Convention: a call returns what the kernel returns, or the negated errno; nothing here touches the errno variable's meaning for
// the caller. EINTR is reported as it comes: the loops above decide. Thread: as the kernel's own calls.
#pragma once

#include <netinet/in.h>

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdint>

#include "vigil/time.hpp"

#if defined(__linux__)
#include <sys/epoll.h>
#else
#error "vigil runs on Linux; the kqueue systems come next on this seam"
#endif

namespace vigil::sys {

/// Which implementation this program is linked with. Every core object refers to this one symbol and each library defines it
/// once, so that linking libvigil and libvigil_sim into one program is a duplicate definition instead of a silent mixture.
extern const char* const implementation;
[[maybe_unused, gnu::used]] static const char* const* const linked_implementation = &implementation;

/// What the kernel knows of a TCP connection's own sending side (TCP_INFO, tcp(7)). Zero where not `known`.
struct TcpSample {
  bool known = false;
  bool connected = false;           ///< not in SYN_SENT and not closed
  std::uint64_t bytes_acked = 0;    ///< payload the peer's kernel acknowledged (a FIN counts as one byte, SYN is not counted)
  std::uint32_t unacked = 0;        ///< segments in flight
  std::uint32_t notsent_bytes = 0;  ///< in the socket's queue, never transmitted
  std::uint32_t retransmits = 0;    ///< unanswered retransmissions in a row
  std::uint32_t total_retrans = 0;
  std::uint32_t probes = 0;  ///< unanswered window or keepalive probes in a row
  std::uint32_t backoff = 0;
  std::uint32_t rtt_us = 0;
  std::uint32_t rto_us = 0;
  std::uint32_t last_ack_recv_ms = 0;
  std::uint32_t last_data_recv_ms = 0;
  std::uint32_t snd_wnd = 0;  ///< the peer's advertised window in bytes; valid where `window_known`
  bool window_known = false;
};

/// A thread's work in three parts, so that a world of one thread can do it too: there nobody calls `body`, but `turn` again and
/// again.
struct Worker {
  void (*set_up)(void* argument) = nullptr;
  void (*body)(void* argument) = nullptr;  ///< all of the work, until it is over
  bool (*turn)(void* argument) = nullptr;  ///< one turn of it, which may wait once; false: it is over
  void* argument = nullptr;
  int cpu = -1;  ///< the only CPU it may use; -1: those its starter may
};

using WorkerHandle = std::uintptr_t;

// Clock and chance.
[[nodiscard]] Instant monotonic_now();
[[nodiscard]] std::uint64_t random_seed();

// Readiness. A negative timeout waits for ever; a positive one is never cut short by rounding.
[[nodiscard]] int epoll_create();
int epoll_control(int epoll, int operation, int descriptor, epoll_event* event);
[[nodiscard]] int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout);
[[nodiscard]] int poll(pollfd* entries, std::size_t count, Duration timeout);

// Wake-up from another thread: a descriptor that is readable once after each signal (edge-triggered; it is never read).
[[nodiscard]] int wake_open();
int wake_signal(int descriptor);

// Signals as readiness. Opening blocks the signal for the calling thread; closing restores what was blocked before.
[[nodiscard]] int signal_open(int signal_number, bool& was_blocked);
[[nodiscard]] int signal_take(int descriptor);  ///< the signal number, or -EAGAIN
void signal_restore(int signal_number, bool was_blocked);

// Sockets. New sockets and accepted ones are non-blocking and close-on-exec from birth; sends never raise SIGPIPE.
[[nodiscard]] int socket(int family, int type);
[[nodiscard]] int bind(int descriptor, const sockaddr* address, socklen_t length);
[[nodiscard]] int listen(int descriptor, int backlog);
[[nodiscard]] int accept(int descriptor, sockaddr* address, socklen_t* length);
[[nodiscard]] int connect(int descriptor, const sockaddr* address, socklen_t length);
[[nodiscard]] ssize_t recv(int descriptor, void* buffer, std::size_t size);
[[nodiscard]] ssize_t send(int descriptor, const void* bytes, std::size_t size);
[[nodiscard]] ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count);
int shutdown(int descriptor, int how);
int close(int descriptor);
[[nodiscard]] int get_option(int descriptor, int level, int name, void* value, socklen_t* length);
[[nodiscard]] int set_option(int descriptor, int level, int name, const void* value, socklen_t length);
[[nodiscard]] int local_name(int descriptor, sockaddr* address, socklen_t* length);
[[nodiscard]] int peer_name(int descriptor, sockaddr* address, socklen_t* length);
[[nodiscard]] int status_flags(int descriptor);  ///< fcntl F_GETFL
[[nodiscard]] int set_status_flags(int descriptor, int flags);
[[nodiscard]] int unread_bytes(int descriptor);  ///< FIONREAD: bytes a recv could still take
[[nodiscard]] int unsent_bytes(int descriptor);  ///< SIOCOUTQ: bytes (and our FIN, as one) the peer has not acknowledged or taken
[[nodiscard]] TcpSample tcp_sample(int descriptor);

// Files: the reserve descriptor, and the path of a Unix listener.
[[nodiscard]] int reserve_open();
[[nodiscard]] int path_status(const char* path, struct stat& status);
int unlink(const char* path);

// Threads.
/// Returns when set_up has returned, on the new thread: 0, or the negated errno and nothing was called. The thread inherits the
/// calling one's blocked signals. Each one started must be joined.
[[nodiscard]] int start_worker(const Worker& worker, WorkerHandle& started);
/// Returns when the worker is over. -EDEADLK: it is the one that asks, or (simulated) it would never be over.
int join_worker(WorkerHandle started);
/// Fills `cpus` with the numbers of the CPUs the calling thread may use, as far as they fit, in order; returns how many there
/// are.
[[nodiscard]] int usable_cpus(int* cpus, std::size_t capacity);

// Names.
[[nodiscard]] unsigned interface_index(const char* name);  ///< 0: no such interface
[[nodiscard]] const char* error_name(int code);            ///< "EPIPE"; null: no name

}  // namespace vigil::sys

#include <vigil_sys.hpp>  // the chosen implementation
