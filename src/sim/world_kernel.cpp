// Time in a simulated world: who is turned, what a wait is, and how late it is.
#include "sim/world_kernel.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

namespace vigil::sim {

WorldKernel::WorldKernel(Universe& universe, Network& network)
    : host(nullptr), universe_(universe), network_(network), before_(sys::install(this)) {}

WorldKernel::~WorldKernel() { sys::install(before_); }

// Who is turned ---------------------------------------------------------------------------------------------------------------

void WorldKernel::attach(Reactor& reactor, Callback<bool()> lives, Callback<bool()> is_called) {
  runners_.push_back(std::make_unique<Runner>());
  runners_.back()->reactor = &reactor;
  runners_.back()->lives = std::move(lives);
  runners_.back()->is_called = std::move(is_called);
  runners_.back()->host = host;
}

void WorldKernel::detach(Reactor& reactor) {
  for (const auto& runner : runners_)
    if (runner->reactor == &reactor) runner->over = true;
  std::erase_if(runners_, [](const auto& runner) { return runner->over && !runner->in_turn && runner->reactor != nullptr; });
}

/// Reactors that ended while they were attached.
void WorldKernel::forget_the_dead() {
  std::erase_if(runners_, [](const auto& runner) { return runner->reactor != nullptr && !runner->in_turn && !runner->lives(); });
}

int WorldKernel::start_worker(const sys::Worker& worker, sys::WorkerHandle& started) {
  // Set up first: a wait in its set-up must not turn it.
  worker.set_up(worker.argument);
  runners_.push_back(std::make_unique<Runner>());
  Runner& runner = *runners_.back();
  runner.worker = worker;
  runner.host = host;
  runner.handle = started = ++last_worker_;
  return told("start_worker", -1, 0);
}

int WorldKernel::join_worker(sys::WorkerHandle started) {
  const auto found =
      std::find_if(runners_.begin(), runners_.end(), [&](const auto& runner) { return runner->handle == started; });
  if (started == 0 || found == runners_.end()) return -ESRCH;
  Runner& runner = **found;
  if (runner.in_turn) return -EDEADLK;
  if (const int waited = wait(Duration(-1), [&] { return runner.over ? 1 : 0; }); waited < 0) return waited;
  std::erase_if(runners_, [&](const auto& one) { return one.get() == &runner; });
  return told("join_worker", -1, 0);
}

int WorldKernel::usable_cpus(int* cpus, std::size_t capacity) {
  constexpr int count = 2;
  for (int cpu = 0; cpu < count && static_cast<std::size_t>(cpu) < capacity; ++cpu) cpus[cpu] = cpu;
  return count;
}

bool WorldKernel::has_something_ready(const Runner& runner) const {
  const Descriptor* epoll = find(runner.epoll);
  if (epoll == nullptr || epoll->registrations == nullptr) return false;
  return epoll->registrations->has_something([this](int number) { return find(number)->state(); });
}

/// From outside its turns: on a thread of its own it could not have slept meanwhile. A reactor knows whether something was asked
/// of it; of a worker, whose reactor is its own affair, that is assumed after each call of a script.
bool WorldKernel::was_called(Runner& runner) const {
  return runner.reactor != nullptr ? runner.is_called() : runner.script_calls != universe_.script_calls;
}

bool WorldKernel::is_runnable(Runner& runner) const {
  if (runner.over || runner.in_turn || runner.host->is_hung) return false;
  return !runner.sleeps || universe_.now >= runner.wakes_at || was_called(runner) || has_something_ready(runner);
}

void WorldKernel::turn(Runner& runner) {
  runner.in_turn = true;
  runner.has_waited = false;
  if (was_called(runner)) runner.sleeps = false;
  Runner* const before = std::exchange(turning_, &runner);
  SimulatedHost* const host_before = std::exchange(host, runner.host);
  const bool goes_on =
      runner.reactor != nullptr ? static_cast<bool>(runner.reactor->turn()) : runner.worker.turn(runner.worker.argument);
  host = host_before;
  turning_ = before;
  runner.in_turn = false;
  if (!goes_on) runner.over = true;
  if (runner.over && runner.reactor != nullptr) std::erase_if(runners_, [&](const auto& one) { return one.get() == &runner; });
}

bool WorldKernel::step(Instant limit) {
  ++steps;
  if (universe_.agenda.next() <= universe_.now) {
    universe_.agenda.take()();
    return true;
  }
  if (universe_.now > limit) return false;  // a reactor that always has something to do is not to take longer than was asked for
  if (turning_ == nullptr && script_.next() <= universe_.now) {
    ++universe_.script_calls;
    script_.take()();
    return true;
  }
  forget_the_dead();
  std::vector<Runner*>& runnable = runnable_;
  runnable.clear();
  for (const auto& runner : runners_)
    if (is_runnable(*runner)) runnable.push_back(runner.get());
  if (!runnable.empty()) {
    turn(*runnable[runnable.size() == 1 ? 0 : universe_.random.below(runnable.size())]);
    return true;
  }
  Instant next = universe_.agenda.next();
  if (turning_ == nullptr) next = std::min(next, script_.next());
  for (const auto& runner : runners_) {
    if (runner->over || runner->in_turn || runner->host->is_hung) continue;
    next = std::min(next, runner->wakes_at);
  }
  if (next == never_due || next > limit) return false;
  pass_time(next);
  return true;
}

void WorldKernel::pass_time(Instant until) {
  Instant late_from = until;
  for (const auto& runner : runners_) {
    if (runner->over || runner->in_turn) continue;
    const bool should_run = !runner->sleeps || was_called(*runner) || has_something_ready(*runner);  // and can't: its host hangs
    late_from = std::min(late_from, should_run ? universe_.now : runner->asked_until);
  }
  delays += until - std::max(late_from, universe_.now);
  universe_.now = until;
}

void WorldKernel::spend(Duration duration) {
  const Instant end = universe_.in(duration);
  if (end == never_due) misused("nobody can spend more time than there is", std::to_string(duration.count()));
  delays += duration;
  while (universe_.agenda.next() <= end) {
    universe_.now = std::max(universe_.now, universe_.agenda.next());
    universe_.agenda.take()();
  }
  // An event may have spent time of its own.
  universe_.now = std::max(universe_.now, end);
}

// Waiting ---------------------------------------------------------------------------------------------------------------------

Instant WorldKernel::end_of(Duration timeout) const { return timeout < Duration::zero() ? never_due : universe_.in(timeout); }

/// A wait that sleeps: the world goes on meanwhile. `take` answers how many are ready.
template <class Take>
int WorldKernel::wait(Duration timeout, Take take) {
  const Instant end = end_of(timeout);
  int count = take();
  for (; count == 0 && universe_.now < end; count = take()) {
    if (step(end)) continue;
    if (end == never_due) return -EDEADLK;  // nothing will ever happen
    pass_time(end);
  }
  return count;
}

int WorldKernel::poll(pollfd* entries, std::size_t count, Duration timeout) {
  return told("poll", count == 1 ? entries[0].fd : -1, wait(timeout, [&] {
                int ready = 0;
                for (std::size_t index = 0; index < count; ++index) {
                  pollfd& entry = entries[index];
                  const Descriptor* about = find(entry.fd);
                  const std::uint32_t state = about == nullptr ? POLLNVAL : about->state();
                  const std::uint32_t heard = state & (static_cast<std::uint32_t>(entry.events) | POLLERR | POLLHUP | POLLNVAL);
                  entry.revents = entry.fd < 0 ? 0 : static_cast<short>(heard);
                  if (entry.revents != 0) ++ready;
                }
                return ready;
              }));
}

int WorldKernel::epoll_wait(int number, epoll_event* events, int capacity, Duration timeout) {
  Descriptor* epoll = find(number);
  if (epoll == nullptr || epoll->registrations == nullptr) {
    ++calls_on_closed;
    return -EBADF;
  }
  if (capacity <= 0) return -EINVAL;
  if (turning_ != nullptr && !turning_->has_waited)
    return told("epoll_wait", number, wait_in_turn(*turning_, *epoll, events, capacity, timeout));
  if (is_interrupted(*epoll)) return told("epoll_wait", number, -EINTR);
  const Instant began = universe_.now;
  // Who waits by itself is woken by a script that may have spoken to it.
  constexpr int woken = -1;
  const std::uint64_t calls = universe_.script_calls;
  int count = wait(timeout, [&] {
    const int ready = take_events(*epoll, events, capacity);
    return ready == 0 && calls != universe_.script_calls ? woken : ready;
  });
  if (count == woken) return told("epoll_wait", number, 0);
  if (universe_.now > began) oversleep();
  if (count == 0) count = take_events(*epoll, events, capacity);
  return told("epoll_wait", number, count);
}

void WorldKernel::oversleep() {
  if (universe_.strikes(Fault::late_wakeup)) spend(universe_.random.between(Duration(1), universe_.options.latest_wakeup));
  if (universe_.strikes(Fault::stalled)) spend(universe_.random.between(Duration(1), universe_.options.longest_stall));
}

/// The wait a turn is made of: it never sleeps, but notes until when it would.
int WorldKernel::wait_in_turn(Runner& runner, Descriptor& epoll, epoll_event* events, int capacity, Duration timeout) {
  runner.has_waited = true;
  runner.epoll = epoll.number;
  runner.script_calls = universe_.script_calls;
  const Instant end = end_of(timeout);  // as it was asked, before anything made it late
  if (is_interrupted(epoll)) {
    runner.sleeps = false;
    return -EINTR;
  }
  if (std::exchange(runner.sleeps, false)) oversleep();
  const int count = take_events(epoll, events, capacity);
  if (count != 0 || universe_.now >= end) return count;
  runner.sleeps = true;
  runner.asked_until = runner.wakes_at = end;
  if (runner.asked_until != never_due && universe_.strikes(Fault::coarse_wakeup)) {
    constexpr Duration jiffy = std::chrono::milliseconds(4);
    const Duration past = runner.asked_until.time_since_epoch() % jiffy;
    if (past != Duration::zero()) runner.wakes_at += jiffy - past;
  }
  return 0;
}

int WorldKernel::take_events(Descriptor& epoll, epoll_event* events, int capacity) {
  int count = epoll.registrations->take(events, capacity, [this](int number) { return find(number)->state(); });
  if (count < capacity && universe_.strikes_in_a_row(Fault::spurious_event, epoll.spurious_events)) {
    if (const epoll_event* other = epoll.registrations->any(universe_.random.next())) {
      events[count] = *other;
      events[count].events = other->events & (EPOLLIN | EPOLLOUT);
      ++count;
    }
  }
  if (count > 1 && universe_.strikes(Fault::shuffled_events))
    for (int last = count - 1; last > 0; --last)
      std::swap(events[last], events[universe_.random.below(static_cast<std::uint64_t>(last) + 1)]);
  return count;
}

}  // namespace vigil::sim
