// A scripted kernel's time and who is told of what: waits, workers, wake-ups and signals.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "scripted_world.hpp"

namespace vigil::sys {

// Time ----------------------------------------------------------------------------------------------------------------------

Instant ScriptedKernel::World::monotonic_now() {
  ++clock_reads_;
  return now_;
}

std::uint64_t ScriptedKernel::World::random_seed() {
  seed_ = seed_ * 6364136223846793005U + 1442695040888963407U;
  record({.call = Call::random_seed, .at = now_});
  return seed_;
}

void ScriptedKernel::World::pass_time(Instant until) {
  while (!actions_.empty() && actions_.begin()->first <= until) {
    now_ = std::max(now_, actions_.begin()->first);
    const std::function<void()> action = std::move(actions_.begin()->second);
    actions_.erase(actions_.begin());
    action();
  }
  now_ = std::max(now_, until);
}

// Waiting -------------------------------------------------------------------------------------------------------------------

Instant ScriptedKernel::World::end_of(Duration timeout) const {
  const bool for_ever = timeout < Duration::zero() || now_ > Instant::max() - timeout;
  return for_ever ? Instant::max() : now_ + timeout;
}

Instant ScriptedKernel::World::next_event() const {
  Instant next = actions_.empty() ? Instant::max() : actions_.begin()->first;
  for (const auto& [handle, worker] : workers_)
    if (!worker.over && !worker.in_turn) next = std::min(next, worker.wakes_at);
  return next;
}

template <class Take>
int ScriptedKernel::World::wait(Duration timeout, Take take) {
  pass_time(now_);
  const Instant end = end_of(timeout);
  int count = take();
  for (int busy_rounds = 0; count == 0 && now_ < end; count = take()) {
    if (turn_workers()) {
      // Work costs no time here; but where nobody ever sleeps it must, or time would stand still for ever.
      if (++busy_rounds > 1000) pass_time(now_ + std::chrono::microseconds(1));
      continue;
    }
    busy_rounds = 0;
    const Instant next = next_event();
    if (next > end || next == Instant::max()) break;
    pass_time(next);
  }
  if (count == 0 && end == Instant::max()) return -EDEADLK;
  const Duration late = std::exchange(oversleep_, Duration::zero());
  pass_time((count == 0 ? end : now_) + late);
  return count == 0 ? take() : count;  // what happened while it overslept is told, as by a real kernel
}

template <class Take>
int ScriptedKernel::World::wait_in_turn(TurnedWorker& worker, Duration timeout, Take take) {
  worker.has_waited = true;
  pass_time(now_);
  const int count = take();
  worker.would_sleep = count == 0 && timeout != Duration::zero();
  worker.wakes_at = end_of(timeout);
  return count;
}

// Readiness -----------------------------------------------------------------------------------------------------------------

int ScriptedKernel::World::epoll_create() {
  return made({.call = Call::epoll_create}, [&] {
    const int descriptor = open(Kind::epoll);
    if (descriptor >= 0) pollers_[descriptor];
    return descriptor;
  });
}

int ScriptedKernel::World::epoll_control(int epoll, int operation, int descriptor, epoll_event* event) {
  return made({.call = Call::epoll_control, .descriptor = descriptor, .operation = operation}, [&] {
    const auto poller = pollers_.find(epoll);
    const SimulatedDescriptor* about = find(descriptor);
    if (poller == pollers_.end() || about == nullptr) {
      if (operation != EPOLL_CTL_DEL) ++calls_on_closed_;
      return -EBADF;
    }
    if (about->kind == Kind::reserve) return -EPERM;  // as of a regular file
    if (epoll == descriptor) return -EINVAL;
    return poller->second.control(operation, descriptor, event, about->state());
  });
}

int ScriptedKernel::World::epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) {
  return made(
      {.call = Call::epoll_wait, .descriptor = epoll, .timeout = timeout, .size = static_cast<std::size_t>(capacity)}, [&] {
        const auto poller = pollers_.find(epoll);
        if (poller == pollers_.end()) return on_closed();
        if (capacity <= 0) return -EINVAL;
        const auto take = [&, &registrations = poller->second] {
          return registrations.take(events, capacity, [&](int descriptor) { return descriptors_.at(descriptor).state(); });
        };
        return turning_ != nullptr && !turning_->has_waited ? wait_in_turn(*turning_, timeout, take) : wait(timeout, take);
      });
}

int ScriptedKernel::World::poll(pollfd* entries, std::size_t count, Duration timeout) {
  return made({.call = Call::poll, .descriptor = count == 1 ? entries[0].fd : -1, .timeout = timeout, .size = count}, [&] {
    return wait(timeout, [&] {
      int ready = 0;
      for (std::size_t index = 0; index < count; ++index) {
        pollfd& entry = entries[index];
        const SimulatedDescriptor* about = find(entry.fd);
        const std::uint32_t state = about == nullptr ? POLLNVAL : about->state();
        const std::uint32_t heard = state & (static_cast<std::uint32_t>(entry.events) | POLLERR | POLLHUP | POLLNVAL);
        entry.revents = entry.fd < 0 ? 0 : static_cast<short>(heard);
        if (entry.revents != 0) ++ready;
      }
      return ready;
    });
  });
}

void ScriptedKernel::World::report(int descriptor, std::uint32_t events) {
  for (auto& [number, poller] : pollers_) poller.report(descriptor, events);
}

void ScriptedKernel::World::tell(int descriptor) {
  if (const SimulatedDescriptor* about = find(descriptor)) report(descriptor, about->state());
}

// Workers -------------------------------------------------------------------------------------------------------------------

bool ScriptedKernel::World::turn_workers() {
  bool worked = false;
  for (auto& [handle, worker] : workers_) {
    if (worker.over || worker.in_turn) continue;
    worker.in_turn = true;
    worker.has_waited = worker.would_sleep = false;
    TurnedWorker* const before = std::exchange(turning_, &worker);
    worker.over = !worker.worker.turn(worker.worker.argument);
    turning_ = before;
    worker.in_turn = false;
    worked = worked || worker.over || !worker.would_sleep;
  }
  return worked;
}

int ScriptedKernel::World::start_worker(const Worker& worker, WorkerHandle& started) {
  return made({.call = Call::start_worker, .operation = worker.cpu}, [&] {
    // Set up first: a wait in its set-up must not turn it.
    worker.set_up(worker.argument);
    started = ++last_worker_;
    workers_[started].worker = worker;
    return 0;
  });
}

int ScriptedKernel::World::join_worker(WorkerHandle started) {
  return made({.call = Call::join_worker}, [&] {
    const auto found = workers_.find(started);
    if (found == workers_.end()) return -ESRCH;
    const TurnedWorker& worker = found->second;
    if (worker.in_turn) return -EDEADLK;
    if (const int waited = wait(Duration(-1), [&] { return worker.over ? 1 : 0; }); waited < 0) return waited;
    workers_.erase(started);
    return 0;
  });
}

int ScriptedKernel::World::usable_cpus(int* cpus, std::size_t capacity) {
  return made({.call = Call::usable_cpus, .size = capacity}, [&] {
    std::copy_n(cpus_.begin(), std::min(capacity, cpus_.size()), cpus);
    return static_cast<int>(cpus_.size());
  });
}

// Wake-ups and signals ------------------------------------------------------------------------------------------------------

int ScriptedKernel::World::wake_open() {
  return made({.call = Call::wake_open}, [&] { return open(Kind::wake); });
}

int ScriptedKernel::World::wake_signal(int descriptor) {
  return made({.call = Call::wake_signal, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* wake = find(descriptor);
    if (wake == nullptr || wake->kind != Kind::wake) return on_closed();
    ++wake->signalled;
    tell(descriptor);
    return 8;  // as write(2) of eight bytes
  });
}

int ScriptedKernel::World::signal_open(int signal_number, bool& was_blocked) {
  return made({.call = Call::signal_open}, [&] {
    if (signal_number < 1 || signal_number > 64) return -EINVAL;
    const int descriptor = open(Kind::signal);
    if (descriptor < 0) return descriptor;
    descriptors_.at(descriptor).signal_number = signal_number;
    was_blocked = std::find(blocked_signals_.begin(), blocked_signals_.end(), signal_number) != blocked_signals_.end();
    if (!was_blocked) blocked_signals_.push_back(signal_number);
    return descriptor;
  });
}

int ScriptedKernel::World::signal_take(int descriptor) {
  return made({.call = Call::signal_take, .descriptor = descriptor}, [&] {
    SimulatedDescriptor* signal = find(descriptor);
    if (signal == nullptr || signal->kind != Kind::signal) return on_closed();
    if (signal->signalled == 0) return -EAGAIN;
    --signal->signalled;
    return signal->signal_number;
  });
}

void ScriptedKernel::World::signal_restore(int signal_number, bool was_blocked) {
  record({.call = Call::signal_restore, .at = now_});
  if (!was_blocked) std::erase(blocked_signals_, signal_number);
}

}  // namespace vigil::sys
