#include "socket_wait.hpp"

#include <algorithm>
#include <cerrno>

#include "sys/sys.hpp"
#include "vigil/socket.hpp"

namespace vigil {
int wait_ready(int descriptor, short events, Instant due) {
  for (;;) {
    const Duration remaining = due == never_due ? Duration(-1) : std::max(due - sys::monotonic_now(), Duration::zero());
    pollfd entry{descriptor, events, 0};
    const int count = sys::poll(&entry, 1, remaining);
    if (count > 0) return (entry.revents & POLLNVAL) != 0 ? -EBADF : entry.revents;
    if (count < 0 && count != -EINTR) return count;
    if (due != never_due && sys::monotonic_now() >= due) return 0;
  }
}

bool pass_time(Duration length, Instant due) {
  if (due != never_due) length = std::min(length, due - sys::monotonic_now());
  if (length <= Duration::zero()) return false;
  (void)sys::poll(nullptr, 0, length);  // an interrupted pause is a shorter pause
  return true;
}

}  // namespace vigil
