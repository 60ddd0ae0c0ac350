// The real site: loopback delivers within the call that sends, or as soon as this CPU's interrupts have been worked off.
#include <linux/tcp.h>

#include <chrono>
#include <utility>

#include "kernel_agreement_site.hpp"
#include "sys/sys.hpp"

using namespace vigil;

namespace {

constexpr int tcp_delack_max_us = 46;  // TCP_DELACK_MAX_US since Linux 6.15, which <linux/tcp.h> may not have yet

Duration patience_of_site{};

/// What can be seen of the sockets without changing it.
struct Look {
  std::vector<int> states;
  bool is_in_flight = false;
  friend bool operator==(const Look&, const Look&) = default;
};

Look look(const std::vector<int>& sockets) {
  Look now;
  for (const int descriptor : sockets) {
    // An acknowledgement that the kernel holds back leaves now, or soon: also of who will be accepted.
    const int on = 1, microseconds = 8'000;  // two jiffies, the least there is, of 4 ms
    (void)sys::set_option(descriptor, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    (void)sys::set_option(descriptor, IPPROTO_TCP, tcp_delack_max_us, &microseconds, sizeof microseconds);
    pollfd entry{descriptor, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    (void)sys::poll(&entry, 1, Duration::zero());
    const int unsent = sys::unsent_bytes(descriptor);
    now.states.insert(now.states.end(), {entry.revents, sys::unread_bytes(descriptor), unsent});
    const sys::TcpSample sample = sys::tcp_sample(descriptor);  // of a listener: how many wait to be accepted
    now.is_in_flight = now.is_in_flight || (sample.connected && sample.unacked > 0 && unsent > 0);
  }
  return now;
}

}  // namespace

void run_on_site(std::uint64_t seed, Duration patience, void (*script)(std::uint64_t seed)) {
  patience_of_site = patience;
  script(seed);
}

/// What is in flight is waited for, up to the longest time an acknowledgement is held back; then two looks alike are enough.
void settle(const std::vector<int>& sockets) {
  constexpr Duration longest_delayed_acknowledgement = std::chrono::milliseconds(60);
  const Instant began = sys::monotonic_now();
  Instant changed = began;
  Look last = look(sockets);
  while (true) {
    Look next = look(sockets);
    const Instant now = sys::monotonic_now();
    if (next != last) changed = now;
    const Duration quiet = next.is_in_flight ? longest_delayed_acknowledgement : patience_of_site;
    if ((next == last && now - changed >= quiet) || now - began > std::chrono::seconds(2)) return;
    last = std::move(next);
    (void)sys::poll(nullptr, 0, quiet / 64);
  }
}
