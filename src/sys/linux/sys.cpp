// The real seam's rarer calls, which are more than one line each. See sys/sys.hpp.
#include "sys/sys.hpp"

#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>

namespace vigil::sys {

extern const char* const implementation;
const char* const implementation = "kernel";

std::atomic<bool> epoll_pwait2_missing = false;

int signal_open(int signal_number, bool& was_blocked) {
  // The kernel takes these two in a mask and leaves them out in silence (signalfd(2)): nothing would ever be told.
  if (signal_number == SIGKILL || signal_number == SIGSTOP) return -EINVAL;
  sigset_t wanted;
  sigset_t before;
  sigemptyset(&wanted);
  if (::sigaddset(&wanted, signal_number) != 0) return -errno;
  const int descriptor = or_errno(::signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC));
  if (descriptor < 0) return descriptor;
  if (const int failed = ::pthread_sigmask(SIG_BLOCK, &wanted, &before); failed != 0) {
    ::close(descriptor);
    return -failed;
  }
  was_blocked = ::sigismember(&before, signal_number) == 1;
  return descriptor;
}

int signal_take(int descriptor) {
  signalfd_siginfo info;
  const ssize_t size = or_errno(::read(descriptor, &info, sizeof info));
  return size < 0 ? static_cast<int>(size) : static_cast<int>(info.ssi_signo);
}

void signal_restore(int signal_number, bool was_blocked) {
  if (was_blocked) return;
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, signal_number);
  ::pthread_sigmask(SIG_UNBLOCK, &wanted, nullptr);
}

TcpSample tcp_sample(int descriptor) {
  // linux/tcp.h's tcp_info, not glibc's, which ends before tcpi_bytes_acked. An older kernel fills less: the length tells.
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return {};
  if (length < offsetof(tcp_info, tcpi_bytes_acked) + sizeof info.tcpi_bytes_acked) return {};
  constexpr std::uint8_t syn_sent = 2, closed = 7;  // tcp_states.h; the enum is not in linux/tcp.h
  TcpSample sample;
  sample.known = true;
  sample.connected = info.tcpi_state != syn_sent && info.tcpi_state != closed;
  sample.bytes_acked = info.tcpi_bytes_acked;
  sample.unacked = info.tcpi_unacked;
  sample.notsent_bytes = info.tcpi_notsent_bytes;
  sample.retransmits = info.tcpi_retransmits;
  sample.total_retrans = info.tcpi_total_retrans;
  sample.probes = info.tcpi_probes;
  sample.backoff = info.tcpi_backoff;
  sample.rtt_us = info.tcpi_rtt;
  sample.rto_us = info.tcpi_rto;
  sample.last_ack_recv_ms = info.tcpi_last_ack_recv;
  sample.last_data_recv_ms = info.tcpi_last_data_recv;
  if (length >= offsetof(tcp_info, tcpi_snd_wnd) + sizeof info.tcpi_snd_wnd) {
    sample.window_known = true;
    sample.snd_wnd = info.tcpi_snd_wnd;
  }
  return sample;
}

namespace {

struct CpuSetFree {
  void operator()(cpu_set_t* cpus) const { CPU_FREE(cpus); }
};
using CpuSet = std::unique_ptr<cpu_set_t, CpuSetFree>;

/// On the starter's stack until set_up has returned.
struct Start {
  const Worker& worker;
  std::mutex lock{};
  std::condition_variable changed{};
  bool is_set_up = false;
};

void* run_worker(void* given) {
  Start& start = *static_cast<Start*>(given);
  const Worker worker = start.worker;
  worker.set_up(worker.argument);
  {
    const std::lock_guard guard(start.lock);
    start.is_set_up = true;
    start.changed.notify_one();  // with the lock held: the starter can't be gone before this is done
  }
  worker.body(worker.argument);
  return nullptr;
}

/// A thread that would start with the wrong CPU is not started at all.
int allow_only(pthread_attr_t& attributes, int cpu) {
  const CpuSet allowed(CPU_ALLOC(static_cast<std::size_t>(cpu) + 1));
  if (allowed == nullptr) return -ENOMEM;
  const std::size_t size = CPU_ALLOC_SIZE(static_cast<std::size_t>(cpu) + 1);
  CPU_ZERO_S(size, allowed.get());
  CPU_SET_S(static_cast<std::size_t>(cpu), size, allowed.get());
  return -::pthread_attr_setaffinity_np(&attributes, size, allowed.get());
}

}  // namespace

int start_worker(const Worker& worker, WorkerHandle& started) {
  static_assert(sizeof(pthread_t) <= sizeof started);
  pthread_attr_t attributes;
  if (const int failed = ::pthread_attr_init(&attributes); failed != 0) return -failed;
  Start start{.worker = worker};
  pthread_t thread{};
  int error = worker.cpu < 0 ? 0 : allow_only(attributes, worker.cpu);
  if (error == 0) error = -::pthread_create(&thread, &attributes, &run_worker, &start);
  ::pthread_attr_destroy(&attributes);
  if (error != 0) return error;
  std::unique_lock guard(start.lock);
  start.changed.wait(guard, [&] { return start.is_set_up; });
  started = static_cast<WorkerHandle>(thread);
  return 0;
}

int join_worker(WorkerHandle started) { return -::pthread_join(static_cast<pthread_t>(started), nullptr); }

int usable_cpus(int* cpus, std::size_t capacity) {
  // The kernel refuses a set smaller than its own; no kernel's has more than this.
  constexpr std::size_t most = 1 << 16;
  const CpuSet usable(CPU_ALLOC(most));
  if (usable == nullptr) return -ENOMEM;
  const std::size_t size = CPU_ALLOC_SIZE(most);
  CPU_ZERO_S(size, usable.get());
  if (::sched_getaffinity(0, size, usable.get()) != 0) return -errno;
  std::size_t count = 0;
  for (std::size_t cpu = 0; cpu < most; ++cpu) {
    if (!CPU_ISSET_S(cpu, size, usable.get())) continue;
    if (count < capacity) cpus[count] = static_cast<int>(cpu);
    ++count;
  }
  return static_cast<int>(count);
}

}  // namespace vigil::sys
