// A simulated world's epoll, wake-ups and signals: who is told that a state has changed.
#include <algorithm>
#include <cerrno>

#include "sim/world_kernel.hpp"

namespace vigil::sim {

int WorldKernel::epoll_create() {
  const int number = open(Kind::epoll);
  if (number < 0) return told("epoll_create", -1, number);
  find(number)->registrations = std::make_unique<sys::EpollRegistrations>();
  pollers_.push_back(number);
  return told("epoll_create", -1, number);
}

int WorldKernel::epoll_control(int epoll, int operation, int descriptor, epoll_event* event) {
  Descriptor* poller = find(epoll);
  const Descriptor* about = find(descriptor);
  if (poller == nullptr || poller->registrations == nullptr || about == nullptr) {
    if (operation != EPOLL_CTL_DEL) ++calls_on_closed;
    return told("epoll_ctl", descriptor, -EBADF);
  }
  if (about->kind == Kind::reserve) return told("epoll_ctl", descriptor, -EPERM);  // as of a regular file
  if (epoll == descriptor) return told("epoll_ctl", descriptor, -EINVAL);
  if (operation == EPOLL_CTL_ADD && universe_.strikes(Fault::no_buffers)) {
    const int error = universe_.random.below(2) == 0 ? ENOMEM : ENOSPC;  // epoll_ctl(2)
    if (about->life != 0) lives_.at(about->life - 1).truth.watch_error = error;
    return told("epoll_ctl", descriptor, -error);
  }
  return told("epoll_ctl", descriptor, poller->registrations->control(operation, descriptor, event, about->state()));
}

void WorldKernel::report(int descriptor, std::uint32_t bits) {
  for (const int poller : pollers_) find(poller)->registrations->wake(descriptor, bits);
}

int WorldKernel::wake_open() { return told("eventfd", -1, open(Kind::wake)); }

int WorldKernel::wake_signal(int number) {
  Descriptor* wake = find(number);
  if (wake == nullptr || wake->kind != Kind::wake) {
    ++calls_on_closed;
    return -EBADF;
  }
  ++wake->signalled;
  report(number, wake->state());
  return told("write", number, 8);  // as write(2) of eight bytes
}

int WorldKernel::signal_open(int signal_number, bool& was_blocked) {
  if (signal_number < 1 || signal_number > 64 || signal_number == SIGKILL || signal_number == SIGSTOP) return -EINVAL;
  const int number = open(Kind::signal);
  if (number < 0) return told("signalfd", signal_number, number);
  find(number)->signal_number = signal_number;
  was_blocked = std::find(blocked_signals_.begin(), blocked_signals_.end(), signal_number) != blocked_signals_.end();
  if (!was_blocked) blocked_signals_.push_back(signal_number);
  return told("signalfd", signal_number, number);
}

int WorldKernel::signal_take(int number) {
  Descriptor* signal = find(number);
  if (signal == nullptr || signal->kind != Kind::signal) {
    ++calls_on_closed;
    return -EBADF;
  }
  if (signal->signalled == 0) return told("read", number, -EAGAIN);
  --signal->signalled;
  return told("read", number, signal->signal_number);
}

void WorldKernel::signal_restore(int signal_number, bool was_blocked) {
  if (!was_blocked) std::erase(blocked_signals_, signal_number);
}

void WorldKernel::raise(int signal_number) {
  for (const auto& descriptor : descriptors_) {
    if (descriptor == nullptr || descriptor->kind != Kind::signal || descriptor->signal_number != signal_number) continue;
    descriptor->signalled = 1;  // one that is pending already is not counted twice
    report(descriptor->number, descriptor->state());
  }
}

}  // namespace vigil::sim
