// The loop: a turn is the list of its phases. What each kind of source does in them stands with the source.
#include "vigil/reactor.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <new>
#include <utility>

#include "reactor_core.hpp"
#include "user_sources.hpp"

namespace vigil {
namespace {

Error check_options(const ReactorOptions& options) {
  const auto outside = [](std::size_t value, std::size_t least, std::size_t most) { return value < least || value > most; };
  constexpr std::size_t kibibyte = 1024, mebibyte = 1024 * kibibyte;
  if (options.tick < std::chrono::microseconds(100) || options.tick > std::chrono::seconds(1)) return {"reactor", EINVAL, "tick"};
  if (outside(options.receive_buffer_bytes, kibibyte, 16 * mebibyte)) return {"reactor", EINVAL, "receive_buffer_bytes"};
  if (outside(options.gather_buffer_bytes, kibibyte, 16 * mebibyte)) return {"reactor", EINVAL, "gather_buffer_bytes"};
  if (outside(options.events_per_wait, 1, 65536)) return {"reactor", EINVAL, "events_per_wait"};
  if (outside(options.reads_per_turn, 1, 1024)) return {"reactor", EINVAL, "reads_per_turn"};
  if (auto valid = validate(options.timeouts, "reactor"); !valid) return valid.error();
  return {};
}

/// What the core was given, or the defaults where that is invalid: the error is latched and answered before anything is touched.
ReactorOptions usable_options(const ReactorOptions& given) { return check_options(given).code == 0 ? given : ReactorOptions{}; }

}  // namespace

// --- the core's life

ReactorCore::ReactorCore(const ReactorOptions& given)
    : options(usable_options(given)),
      latched(check_options(given)),
      poller(options.events_per_wait),
      wheel(sys::monotonic_now(), options.tick),
      now(sys::monotonic_now()),
      receive_storage(new std::byte[2 * options.receive_buffer_bytes]),
      receive_buffer(receive_storage.get() + options.receive_buffer_bytes),
      gather_buffer(new std::byte[options.gather_buffer_bytes]),
      reserve_descriptor(sys::reserve_open()),
      link(std::make_shared<Registration::Link>(Registration::Link{this})),
      mailbox(std::make_shared<Mailbox::Shared>()) {
  const auto latch = [this](Error error) {
    if (latched.code == 0) latched = error;
  };
  if (poller.error() != 0) {
    latch({"reactor", poller.error(), "poller"});
    return;
  }
  if (reserve_descriptor < 0) latch({"reactor", -reserve_descriptor, "reserve descriptor"});
  mailbox->wake_descriptor = sys::wake_open();
  if (mailbox->wake_descriptor < 0) {
    latch({"reactor", -mailbox->wake_descriptor, "mailbox"});
    return;
  }
  UserSource* wake = CoreSources::make(*this, CoreSources::wake);
  UserSource* timer = CoreSources::make(*this, CoreSources::timer);
  if (wake == nullptr || timer == nullptr) {
    latch({"reactor", ENOMEM});
    return;
  }
  shutdown_timer_ = timer;
  timer->on_due = [this] { stop_sources(true); };
  if (const int error = CoreSources::add(*this, *wake, mailbox->wake_descriptor, Poller::Interest::edge_readable); error != 0)
    latch({"reactor", error, "mailbox"});
}

void ReactorCore::close() {
  if (link->core == nullptr) return;
  in_turn = true;  // a callback told on the way out can't start another turn
  attend(shutting_down);
  stop_sources(true);
  // Every life that ends may end or cancel others from its on_close; nothing new can begin, so this comes to an end.
  while (flush_and_finish_once()) {
  }
  ending = true;  // what callbacks and tasks held may still call: it gets no source and posts nothing
  for (auto& slab : slabs_)
    slab->for_each_taken([this](Source& source) {
      if (source.operations_->cancel != nullptr) source.operations_->cancel(*this, source);  // connections have all ended
    });
  while (finish_round()) {
  }
  std::vector<Task> undone;
  {
    const std::lock_guard guard(mailbox->lock);
    if (mailbox->wake_descriptor >= 0) sys::close(mailbox->wake_descriptor);
    mailbox->wake_descriptor = -1;
    undone.swap(mailbox->tasks);
  }
  undone.clear();
  undone.swap(tasks_);
  undone.clear();
  while (finish_round()) {  // what the tasks held
  }
  link->core = nullptr;
  if (reserve_descriptor >= 0) sys::close(reserve_descriptor);
}

Result<void> ReactorCore::usable(const char* operation) const {
  if (latched.code != 0) return latched;
  if (attends(shutting_down)) return Error{operation, ESHUTDOWN};
  return {};
}

// --- slots

SourceSlab* ReactorCore::slab_for(std::size_t slot_bytes, std::size_t alignment, SourceSlab::Construct construct) {
  const std::size_t rounded = (slot_bytes + alignment - 1) / alignment * alignment;
  for (auto& slab : slabs_)
    if (slab->slot_bytes() == rounded && slab->alignment() == alignment && slab->construct() == construct) return slab.get();
  slabs_.push_back(std::make_unique<SourceSlab>(slot_bytes, alignment, construct));
  return slabs_.back().get();
}

Source* ReactorCore::take_source(SourceSlab& slab) {
  if (ending) return nullptr;
  // Room on every list for every source, beside what stands there already, of lives that are over perhaps: putting one there
  // later allocates nothing.
  const std::size_t most = slots_ + std::max({ready_list.size(), flush_list.size(), finish_list.size()});
  if (most >= listed_max_ && !make_room_on_lists(2 * most + 64)) return nullptr;
  Source* source = slab.take();
  if (source != nullptr) ++slots_;
  return source;
}

bool ReactorCore::make_room_on_lists(std::size_t entries) {
  for (auto* list : {&ready_list, &ready_now_, &flush_list, &flush_now_, &finish_list, &finish_now_})
    if (!list->reserve(entries)) return false;
  listed_max_ = entries;
  return true;
}

void ReactorCore::give_back(SourceSlab& slab, Source& source) {
  --slots_;
  slab.give_back(source);
}

// --- a turn

Result<void> ReactorCore::run() {
  if (in_turn || running) return Error{"run", EBUSY};
  if (latched.code != 0) return latched;
  take_thread();
  running = true;
  attend(clock_is_old);
  int error = 0;
  while (error == 0 && !((attention & (stop_requested | shutting_down)) != 0 && run_is_over())) error = one_turn(Duration::max());
  running = false;
  attention &= static_cast<std::uint8_t>(~stop_requested);
  if (error != 0) return Error{"wait", error};
  return {};
}

bool ReactorCore::run_is_over() const { return attends(stop_requested) || alive() == 0; }

Result<void> ReactorCore::turn(Duration at_most) {
  if (in_turn || running) return Error{"run", EBUSY};
  if (at_most < Duration::zero()) return Error{"run", EINVAL, "at_most is negative"};
  if (latched.code != 0) return latched;
  take_thread();
  attend(clock_is_old);  // what the caller did since the last turn is no delay of this one
  in_turn = true;
  const int error = one_turn(at_most);
  in_turn = false;
  if (error != 0) return Error{"wait", error};
  return {};
}

/// The phases of a turn. Each is entered only if there is something for it: a message costs the wait, its dispatch and one look
/// at the clock.
[[gnu::always_inline]] inline int ReactorCore::one_turn(Duration at_most) {
  ++counters.turns;
  Instant wanted_end = next_expiry_;
  if (attention != 0) [[unlikely]]
    wanted_end = wait_end();
  if (at_most < wanted_end - now) wanted_end = now + at_most;
  int count = poller.wait(wanted_end == never_due ? Duration(-1) : std::max(wanted_end - now, Duration::zero()));
  if (count < 0) [[unlikely]] {
    if (count != -EINTR) return -count;
    count = 0;
  }
  dispatch(count);
  // Who is late was kept from looking at the timers: by the wait itself, or by the callbacks in between.
  const Instant looked = read_clock();
  if (looked > wanted_end) [[unlikely]]
    count_delay(looked - wanted_end);
  if (looked >= next_expiry_ || attention != 0) [[unlikely]]
    other_phases();
  return 0;
}

void ReactorCore::other_phases() {
  const Instant began = now;
  if (now >= next_expiry_ || attends(wheel_changed)) advance_timers();
  if (attends(work_waits)) {
    direct_sends_left = direct_sends_per_dispatch;
    run_tasks();
    flush_and_finish();
    if (tasks_.empty() && ready_list.empty() && flush_list.empty() && finish_list.empty())
      attention &= static_cast<std::uint8_t>(~work_waits);
  }
  count_delay(read_clock() - began);
}

/// When the wait is to end if something wants attention: at once if work is left, else at the next deadline.
Instant ReactorCore::wait_end() {
  if (attends(clock_is_old)) read_clock();
  if (attends(wheel_changed)) {
    wheel.advance(now);  // lets the wheel see how near its nodes are; what is due stays for the timers' phase
    next_expiry_ = wheel.next_expiry();
  }
  const bool at_once = attends(work_waits | stop_requested);
  attention &= static_cast<std::uint8_t>(~(clock_is_old | wheel_changed));
  return at_once ? now : std::max(next_expiry_, now);
}

void ReactorCore::count_delay(Duration delay) {
  note_stall(delay);
  counters.loop_delay_ns_total += static_cast<std::uint64_t>(delay.count());
  counters.loop_delay_ns_max = std::max(counters.loop_delay_ns_max, static_cast<std::uint64_t>(delay.count()));
}

[[gnu::always_inline]] inline void ReactorCore::dispatch(int count) {
  const bool left_over = attention != 0 && !ready_list.empty();
  if (left_over) [[unlikely]]
    ready_now_.swap(ready_list);
  counters.events += static_cast<unsigned>(count);
  for (const auto& seen : poller.events(count)) {
    const auto [source, readiness] = Poller::event(seen);
    if (source == nullptr) [[unlikely]] {
      ++counters.stale_events;
      continue;
    }
    // Left over from the last turn, too: one dispatch answers both, so that it gets one budget.
    if (attention != 0 && ((source->lists_ & listed_ready) != 0 || attends(stop_requested))) [[unlikely]] {
      ready_later(*source, readiness);
      continue;
    }
    source->operations_->ready(*this, *source, readiness);
    dispatched();
  }
  if (left_over) dispatch_left_over();
}

void ReactorCore::dispatch_left_over() {
  for (std::size_t index = 0; index < ready_now_.size(); ++index) {  // by index: a callback may make the lists grow
    Source* source = unlist(ready_now_[index], listed_ready);
    if (source == nullptr) continue;
    const Readiness readiness = take_readiness(*source);
    if (attends(stop_requested)) {
      ready_later(*source, readiness);
      continue;
    }
    source->operations_->ready(*this, *source, readiness);
    dispatched();
  }
  ready_now_.clear();
}

void ReactorCore::advance_timers() {
  attend(wheel_changed);
  direct_sends_left = direct_sends_per_dispatch;
  wheel.advance(now);
  while (TimerNode* node = wheel.take_due()) {
    Source& source = source_of(*node);
    ++counters.timers_fired;
    source.operations_->due(*this, source);
    dispatched();
  }
}

void ReactorCore::run_tasks() {
  if (tasks_.empty()) return;
  tasks_now_.swap(tasks_);
  for (Task& task : tasks_now_) {
    ++counters.tasks_run;
    task();
  }
  tasks_now_.clear();
}

void ReactorCore::flush_and_finish() {
  // A callback told here may write to, and end, other connections. The bound keeps two that end each other's successors from
  // holding the turn for ever; what is left then makes the next turn not wait.
  for (int round = 0; round < 8; ++round)
    if (!flush_and_finish_once()) return;
}

bool ReactorCore::flush_and_finish_once() {
  const bool flushed = flush_round();
  return finish_round() || flushed;
}

bool ReactorCore::flush_round() {
  if (flush_list.empty()) return false;
  flush_now_.swap(flush_list);
  for (std::size_t index = 0; index < flush_now_.size(); ++index) {
    Source* source = unlist(flush_now_[index], listed_flush);
    if (source != nullptr) source->operations_->flush(*this, *source);
  }
  flush_now_.clear();
  return true;
}

bool ReactorCore::finish_round() {
  if (finish_list.empty()) return false;
  read_clock();  // no stamp may be owed to a slot that is given back
  finish_now_.swap(finish_list);
  for (std::size_t index = 0; index < finish_now_.size(); ++index) {
    Source* source = unlist(finish_now_[index], listed_finish);
    if (source != nullptr) source->operations_->finish(*this, *source);
  }
  finish_now_.clear();
  return true;
}

Result<void> ReactorCore::post(Task task) {
  if (!task) return Error{"post", EINVAL, "empty task"};
  if (latched.code != 0) return latched;
  if (ending) return Error{"post", ESHUTDOWN};
  tasks_.push_back(std::move(task));
  attend(work_waits);
  return {};
}

void ReactorCore::take_mail() {
  ++counters.wakeups;
  const std::lock_guard guard(mailbox->lock);
  for (Task& task : mailbox->tasks) tasks_.push_back(std::move(task));
  mailbox->tasks.clear();
  attend(work_waits);
  if (mailbox->stop_requested) stop();
  mailbox->stop_requested = false;
}

// --- ending

void ReactorCore::stop() {
  if (running) attend(stop_requested);
}

Result<void> ReactorCore::shutdown(Duration drain) {
  if (latched.code != 0) return latched;
  if (drain < Duration::zero() || drain > longest_timeout) return Error{"shutdown", EINVAL, "drain out of range"};
  attend(shutting_down);
  stop_sources(drain == Duration::zero());
  shutdown_ends_ = std::min(shutdown_ends_, read_clock() + drain);  // a later call with more time takes none back
  arm(*shutdown_timer_, shutdown_ends_);
  return {};
}

void ReactorCore::stop_sources(bool at_once) {
  for (auto& slab : slabs_)
    slab->for_each_taken([this, at_once](Source& source) {
      if (source.operations_->stop != nullptr) source.operations_->stop(*this, source, at_once);
    });
}

// --- counters

ReactorCounters& ReactorCounters::operator+=(const ReactorCounters& other) {
  // Every counter is such a word, so that one added later is added up too.
  using Words = std::array<std::uint64_t, sizeof(ReactorCounters) / sizeof(std::uint64_t)>;
  auto words = std::bit_cast<Words>(*this);
  const auto others = std::bit_cast<Words>(other);
  for (std::size_t index = 0; index < words.size(); ++index) words[index] += others[index];
  const std::uint64_t longest = std::max(loop_delay_ns_max, other.loop_delay_ns_max);
  *this = std::bit_cast<ReactorCounters>(words);
  loop_delay_ns_max = longest;
  return *this;
}

// --- the facade

Reactor::Reactor(const ReactorOptions& options) : core_(std::make_unique<ReactorCore>(options)) {}
// Not left to the member: handlers told on the way out may still call the reactor, and a unique_ptr being destroyed may be null.
Reactor::~Reactor() { core_->close(); }

Result<void> Reactor::run() { return core_->run(); }
Result<void> Reactor::turn(Duration at_most) { return core_->turn(at_most); }
void Reactor::stop() { core_->stop(); }
Result<void> Reactor::shutdown(Duration drain) { return core_->shutdown(drain); }
Instant Reactor::now() const { return sys::monotonic_now(); }
Mailbox Reactor::mailbox() const { return Mailbox(core_->mailbox); }
Result<void> Reactor::post(Task task) { return core_->post(std::move(task)); }
const ReactorCounters& Reactor::counters() const { return core_->counters; }

}  // namespace vigil
