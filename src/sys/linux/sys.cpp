// The real seam's rarer calls, which are more than one line each. See sys/sys.hpp.
#include "sys/sys.hpp"

#include <cstddef>

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

}  // namespace vigil::sys
