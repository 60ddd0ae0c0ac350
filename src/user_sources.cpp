#include "user_sources.hpp"

#include <cerrno>
#include <utility>

#include "vigil/reactor.hpp"

namespace vigil {
namespace {

Poller::Interest interest_of(WatchFor wanted) {
  constexpr Poller::Interest interests[] = {Poller::Interest::readable, Poller::Interest::writable, Poller::Interest::both};
  return interests[static_cast<std::size_t>(wanted)];
}

}  // namespace

constinit const SourceOperations CoreSources::timer{
    .ready = nullptr, .due = timer_due, .flush = nullptr, .finish = finish, .stop = nullptr, .cancel = cancel};
constinit const SourceOperations CoreSources::watch{
    .ready = watch_ready, .due = nullptr, .flush = nullptr, .finish = finish, .stop = nullptr, .cancel = cancel};
constinit const SourceOperations CoreSources::signal{
    .ready = signal_ready, .due = nullptr, .flush = nullptr, .finish = finish, .stop = nullptr, .cancel = cancel};
constinit const SourceOperations CoreSources::wake{
    .ready = wake_ready, .due = nullptr, .flush = nullptr, .finish = finish, .stop = nullptr, .cancel = cancel};

UserSource* CoreSources::make(ReactorCore& core, const SourceOperations& operations) {
  Source* source = core.take_source(slab(core));
  if (source == nullptr) return nullptr;
  source->operations_ = &operations;
  of(*source).over = false;
  return &of(*source);
}

/// A second watch would be told nothing reliably, and cancelling the first would unblock the signal under it.
bool CoreSources::watches_signal(ReactorCore& core, int signal_number) {
  bool found = false;
  slab(core).for_each_taken(
      [&](Source& source) { found = found || (!of(source).over && of(source).signal_number == signal_number); });
  return found;
}

int CoreSources::add(ReactorCore& core, UserSource& source, int descriptor, Poller::Interest interest) {
  source.descriptor_ = descriptor;
  const int error = core.poller.add(source, interest);
  source.registered = error == 0;
  return error;
}

void CoreSources::timer_due(ReactorCore&, Source& source) noexcept { of(source).on_due(); }

void CoreSources::watch_ready(ReactorCore&, Source& source, Readiness readiness) noexcept {
  if (!of(source).over) of(source).on_ready(readiness);
}

void CoreSources::signal_ready(ReactorCore&, Source& source, Readiness) noexcept {
  // The descriptor is level-triggered: whatever is pending beyond this one comes in the next turn.
  if (of(source).over || sys::signal_take(source.descriptor_) < 0) return;
  of(source).on_signal(of(source).signal_number);
}

void CoreSources::wake_ready(ReactorCore& core, Source&, Readiness) noexcept { core.take_mail(); }

void CoreSources::cancel(ReactorCore& core, Source& source) noexcept {
  UserSource& user = of(source);
  user.over = true;
  core.cancel(user);
  if (user.registered) core.poller.remove(user);
  user.registered = false;
  core.finish_later(user);  // not now: it may be its own callback that cancels
  if (user.signal_number == 0) return;
  sys::close(user.descriptor_);
  sys::signal_restore(user.signal_number, user.signal_was_blocked);
  user.signal_number = 0;
}

void CoreSources::finish(ReactorCore& core, Source& source) noexcept {
  UserSource& user = of(source);
  // Destroying a callback may destroy what it holds, and that may cancel and create sources: the slot is vacant before.
  const Task on_due = std::move(user.on_due);
  const Callback<void(Readiness)> on_ready = std::move(user.on_ready);
  const Callback<void(int)> on_signal = std::move(user.on_signal);
  core.give_back(slab(core), source);
}

// --- what users call

Result<Watch> Reactor::watch(int descriptor, WatchFor wanted, Callback<void(Readiness)> callback) {
  if (core_->latched.code != 0) return core_->latched;
  if (!callback) return Error{"watch", EINVAL, "empty callback"};
  UserSource* source = CoreSources::make(*core_, CoreSources::watch);
  if (source == nullptr) return Error{"watch", ENOMEM};
  source->on_ready = std::move(callback);
  Watch watch(core_->link, source);
  const int error = CoreSources::add(*core_, *source, descriptor, interest_of(wanted));
  if (error != 0) return Error{"watch", error};
  return watch;
}

Result<void> Watch::change(WatchFor wanted) {
  if (source() == nullptr) return Error{"watch", ECANCELED};
  const int error = core()->poller.modify(*source(), interest_of(wanted));
  if (error != 0) return Error{"watch", error};
  return {};
}

Result<Watch> Reactor::on_signal(int signal_number, Callback<void(int)> callback) {
  if (core_->latched.code != 0) return core_->latched;
  if (!callback) return Error{"on_signal", EINVAL, "empty callback"};
  if (signal_number > 0 && CoreSources::watches_signal(*core_, signal_number)) return Error{"on_signal", EEXIST};
  bool was_blocked = false;
  const int descriptor = sys::signal_open(signal_number, was_blocked);
  if (descriptor < 0) return Error{"on_signal", -descriptor};
  UserSource* source = CoreSources::make(*core_, CoreSources::signal);
  if (source == nullptr) {
    sys::close(descriptor);
    sys::signal_restore(signal_number, was_blocked);
    return Error{"on_signal", ENOMEM};
  }
  source->on_signal = std::move(callback);
  source->signal_number = signal_number;
  source->signal_was_blocked = was_blocked;
  Watch watch(core_->link, source);
  if (const int error = CoreSources::add(*core_, *source, descriptor, Poller::Interest::readable); error != 0)
    return Error{"on_signal", error};
  return watch;
}

// --- registrations

Registration::Registration(std::shared_ptr<Link> link, Source* source)
    : link_(std::move(link)), source_(source), generation_(source == nullptr ? 0 : source->generation()) {}

Registration::Registration(Registration&& other) noexcept
    : link_(std::move(other.link_)), source_(std::exchange(other.source_, nullptr)), generation_(other.generation_) {}

Registration& Registration::operator=(Registration&& other) noexcept {
  if (this == &other) return *this;
  cancel();
  link_ = std::move(other.link_);
  source_ = std::exchange(other.source_, nullptr);
  generation_ = other.generation_;
  return *this;
}

Source* Registration::source() const {
  if (core() == nullptr || source_ == nullptr || source_->generation() != generation_) return nullptr;
  return source_;
}

void Registration::cancel() {
  Source* live = source();
  source_ = nullptr;
  if (live != nullptr) live->operations_->cancel(*core(), *live);
}

Timer::Timer(Reactor& reactor, Task callback)
    : Registration(reactor.core_->link, callback ? CoreSources::make(*reactor.core_, CoreSources::timer) : nullptr) {
  if (source() != nullptr) CoreSources::of(*source()).on_due = std::move(callback);
}

Result<void> Timer::arm_after(Duration delay) {
  if (source() == nullptr) return Error{"arm timer", ECANCELED};
  if (delay < Duration::zero() || delay > longest_timeout) return Error{"arm timer", EINVAL, "delay out of range"};
  return arm_at(sys::monotonic_now() + delay);
}

Result<void> Timer::arm_at(Instant due) {
  if (source() == nullptr || CoreSources::of(*source()).over) return Error{"arm timer", ECANCELED};
  // The wheel rounds up to its next tick, and a turn that finds work does not wait for that: what has passed is due at once.
  core()->arm(*source(), due <= sys::monotonic_now() ? Instant{} : due);
  return {};
}

void Timer::disarm() {
  if (source() != nullptr) core()->cancel(*source());
}

bool Timer::armed() const { return source() != nullptr && source()->armed(); }

}  // namespace vigil
