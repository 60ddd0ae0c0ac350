// What a script says: each function prepares or causes one thing in the world.
#include "scripted_kernel.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "scripted_world.hpp"

namespace vigil::sys {

namespace {

constexpr std::array<const char*, call_count> call_names = {"monotonic_now",
                                                            "random_seed",
                                                            "epoll_create",
                                                            "epoll_control",
                                                            "epoll_wait",
                                                            "poll",
                                                            "wake_open",
                                                            "wake_signal",
                                                            "signal_open",
                                                            "signal_take",
                                                            "signal_restore",
                                                            "socket",
                                                            "bind",
                                                            "listen",
                                                            "accept",
                                                            "connect",
                                                            "recv",
                                                            "send",
                                                            "send_vector",
                                                            "shutdown",
                                                            "close",
                                                            "get_option",
                                                            "set_option",
                                                            "local_name",
                                                            "peer_name",
                                                            "status_flags",
                                                            "set_status_flags",
                                                            "unread_bytes",
                                                            "unsent_bytes",
                                                            "tcp_sample",
                                                            "reserve_open",
                                                            "path_status",
                                                            "unlink",
                                                            "interface_index",
                                                            "start_worker",
                                                            "join_worker",
                                                            "usable_cpus"};

}  // namespace

const char* to_string(Call call) { return call_names[static_cast<std::size_t>(call)]; }

void misused(const char* what, int number) {
  std::fprintf(stderr, "vigil: the script of a simulated kernel is wrong: %s (%d)\n", what, number);
  std::abort();
}

int ScriptedKernel::World::scripted_failure(const RecordedCall& call) {
  if (error_for_any_ && calls_before_any_-- == 0) {
    const auto error_for = std::exchange(error_for_any_, nullptr);
    if (const int error = error_for(call); error != 0) return error;
  }
  auto& failures = failures_[static_cast<std::size_t>(call.call)];
  if (failures.empty() || failures.front().calls_before-- > 0) return 0;
  const int error = failures.front().error;
  failures.pop_front();
  return error;
}

ScriptedKernel::ScriptedKernel() : world_(std::make_unique<World>()) {}
ScriptedKernel::~ScriptedKernel() = default;

// Time -----------------------------------------------------------------------------------------------------------------------

Instant ScriptedKernel::now() const { return world_->now_; }
void ScriptedKernel::advance(Duration duration) { world_->pass_time(world_->now_ + duration); }
void ScriptedKernel::at(Instant instant, std::function<void()> action) { world_->actions_.emplace(instant, std::move(action)); }
void ScriptedKernel::will_oversleep(Duration duration) { world_->oversleep_ += duration; }

// Readiness ------------------------------------------------------------------------------------------------------------------

void ScriptedKernel::report(int descriptor, std::uint32_t events) {
  world_->scripted(descriptor);
  world_->report(descriptor, events);
}

void ScriptedKernel::is_duplicated(int descriptor) {
  world_->scripted(descriptor);
  world_->duplicated_.push_back(descriptor);
}

void ScriptedKernel::report_orphan(int descriptor, std::uint32_t events) {
  for (auto& [number, poller] : world_->pollers_) poller.report_orphan(descriptor, events);
}

std::uint32_t ScriptedKernel::registered_for(int descriptor) const {
  for (const auto& [number, poller] : world_->pollers_)
    if (poller.contains(descriptor)) return poller.wanted(descriptor).events;
  return 0;
}

// A listener and who comes to it ---------------------------------------------------------------------------------------------

int ScriptedKernel::listener() const { return world_->listener_; }

std::vector<int> ScriptedKernel::listeners() const {
  std::vector<int> numbers;
  for (const auto& [number, descriptor] : world_->descriptors_)
    if (descriptor.stage == World::Stage::listening) numbers.push_back(number);
  return numbers;
}

int ScriptedKernel::peer_connects(int listener) {
  const int descriptor = world_->make_peer(listener);
  world_->tell(listener);
  return descriptor;
}

int ScriptedKernel::will_accept(int listener) { return world_->make_peer(listener); }

void ScriptedKernel::will_fail_to_accept(int listener, int error) { world_->scripted(listener).waiting.push_back(-error); }

void ScriptedKernel::limit_descriptors(std::size_t open_at_most) { world_->open_at_most_ = open_at_most; }

// Connecting -----------------------------------------------------------------------------------------------------------------

bool ScriptedKernel::is_connecting(int descriptor) const {
  const SimulatedDescriptor* socket = world_->find(descriptor);
  return socket != nullptr && socket->stage == World::Stage::connecting;
}

void ScriptedKernel::peer_accepts(int descriptor) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (socket->stage != World::Stage::connecting) misused("not connecting", descriptor);
  socket->stage = World::Stage::connected;
  world_->tell(descriptor);
}

void ScriptedKernel::peer_refuses(int descriptor, int error) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (socket->stage != World::Stage::connecting) misused("not connecting", descriptor);
  socket->stage = World::Stage::refused;
  socket->connect_error = error;
  world_->tell(descriptor);
}

void ScriptedKernel::will_connect_at_once() { world_->connect_at_once_ = true; }

void ScriptedKernel::reaches_itself(int descriptor) {
  SimulatedDescriptor& socket = world_->scripted(descriptor);
  socket.local = socket.remote;
  socket.local_length = socket.remote_length;
  peer_accepts(descriptor);
}

// What the peer sends --------------------------------------------------------------------------------------------------------

void ScriptedKernel::peer_sends(int descriptor, std::string_view bytes) {
  world_->arrives(descriptor, {.kind = Arrival::Kind::bytes, .bytes = std::string(bytes)});
}

void ScriptedKernel::peer_sends_urgent_mark(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::mark}); }
void ScriptedKernel::peer_finishes(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::end}); }
void ScriptedKernel::peer_resets(int descriptor) { connection_fails(descriptor, ECONNRESET); }

void ScriptedKernel::connection_fails(int descriptor, int error) {
  world_->arrives(descriptor, {.kind = Arrival::Kind::error, .error = error});
}

void ScriptedKernel::peer_floods(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::endless_bytes}); }

void ScriptedKernel::will_receive(int descriptor, std::string_view bytes) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::bytes, .bytes = std::string(bytes)});
}

void ScriptedKernel::will_stop_short(int descriptor) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::mark});
}

void ScriptedKernel::will_receive_hiccup(int descriptor, int error) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::hiccup, .error = error});
}

void ScriptedKernel::will_receive_end(int descriptor) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::end});
}

void ScriptedKernel::will_receive_error(int descriptor, int error) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::error, .error = error});
}

// What the peer takes --------------------------------------------------------------------------------------------------------

const std::string& ScriptedKernel::sent(int descriptor) const { return world_->life(descriptor).sent; }
bool ScriptedKernel::sent_end(int descriptor) const { return world_->life(descriptor).send_shut; }

Ending ScriptedKernel::ending(int descriptor) const {
  if (world_->find(descriptor) != nullptr) return Ending::open;
  return world_->life(descriptor).ended_by_reset ? Ending::reset : Ending::orderly;
}

void ScriptedKernel::will_take(int descriptor, std::size_t bytes) {
  std::size_t& room = world_->scripted(descriptor).room;
  room = room == SimulatedDescriptor::unlimited ? bytes : room + bytes;
}

void ScriptedKernel::peer_reads(int descriptor, std::size_t bytes) {
  if (world_->still_there(descriptor) == nullptr) return;
  will_take(descriptor, bytes);
  world_->tell(descriptor);
}

void ScriptedKernel::peer_reads_all(int descriptor) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  socket->room = SimulatedDescriptor::unlimited;
  world_->tell(descriptor);
}

void ScriptedKernel::will_fail_to_send(int descriptor, int error) { world_->scripted(descriptor).send_errors.push_back(error); }

void ScriptedKernel::will_not_acknowledge(int descriptor) { world_->scripted(descriptor).acknowledges_at_once = false; }

void ScriptedKernel::peer_acknowledges(int descriptor, std::size_t bytes) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (bytes > static_cast<std::size_t>(socket->unsent())) misused("more is acknowledged than was sent", descriptor);
  socket->acknowledged += bytes;
}

void ScriptedKernel::will_sample(int descriptor, const TcpSample& sample) {
  world_->scripted(descriptor).scripted_sample = sample;
}

// Descriptors that are no sockets --------------------------------------------------------------------------------------------

int ScriptedKernel::open_descriptor() { return world_->open(World::Kind::other); }

void ScriptedKernel::set_state(int descriptor, std::uint32_t events) {
  world_->scripted(descriptor).scripted_state = events;
  world_->tell(descriptor);
}

void ScriptedKernel::raise(int signal_number) {
  bool somebody = false;
  for (auto& [number, descriptor] : world_->descriptors_) {
    if (descriptor.kind != World::Kind::signal || descriptor.signal_number != signal_number) continue;
    descriptor.signalled = 1;  // a signal that is pending already is not counted twice
    world_->tell(number);
    somebody = true;
  }
  if (!somebody) misused("nobody expects this signal", signal_number);
}

// Workers --------------------------------------------------------------------------------------------------------------------

bool ScriptedKernel::turn_workers() { return world_->turn_workers(); }
std::size_t ScriptedKernel::workers() const { return world_->workers_.size(); }

std::vector<int> ScriptedKernel::cpus_of_workers() const {
  std::vector<int> cpus;
  for (const auto& [handle, worker] : world_->workers_) cpus.push_back(worker.worker.cpu);
  return cpus;
}

void ScriptedKernel::has_cpus(std::vector<int> numbers) { world_->cpus_ = std::move(numbers); }

// Failures -------------------------------------------------------------------------------------------------------------------

void ScriptedKernel::will_fail(Call call, int error, std::size_t calls_before) {
  world_->failures_[static_cast<std::size_t>(call)].push_back({calls_before, error});
}

void ScriptedKernel::will_fail_any(std::size_t calls_before, std::function<int(const RecordedCall&)> error_for) {
  world_->calls_before_any_ = calls_before;
  world_->error_for_any_ = std::move(error_for);
}

void ScriptedKernel::has_interface(std::string name, unsigned index) { world_->interfaces_[std::move(name)] = index; }

// The record -----------------------------------------------------------------------------------------------------------------

const std::vector<RecordedCall>& ScriptedKernel::calls() const { return world_->calls_; }

std::size_t ScriptedKernel::count(Call call) const {
  return static_cast<std::size_t>(
      std::count_if(world_->calls_.begin(), world_->calls_.end(), [=](const RecordedCall& made) { return made.call == call; }));
}

std::size_t ScriptedKernel::count(Call call, int descriptor) const {
  return static_cast<std::size_t>(std::count_if(world_->calls_.begin(), world_->calls_.end(), [=](const RecordedCall& made) {
    return made.call == call && made.descriptor == descriptor;
  }));
}

std::string ScriptedKernel::names() const {
  std::string names;
  for (const RecordedCall& made : world_->calls_) {
    if (!names.empty()) names += ' ';
    names += to_string(made.call);
  }
  return names;
}

Duration ScriptedKernel::last_timeout() const {
  const auto last = std::find_if(world_->calls_.rbegin(), world_->calls_.rend(), [](const RecordedCall& made) {
    return made.call == Call::epoll_wait || made.call == Call::poll;
  });
  if (last == world_->calls_.rend()) misused("nobody has waited yet", 0);
  return last->timeout;
}

std::size_t ScriptedKernel::clock_reads() const { return world_->clock_reads_; }

void ScriptedKernel::forget_calls() {
  world_->calls_.clear();
  world_->clock_reads_ = 0;
  ++world_->times_forgotten_;
}

// What is left ---------------------------------------------------------------------------------------------------------------

std::vector<int> ScriptedKernel::open_descriptors() const {
  std::vector<int> numbers;
  for (const auto& [number, descriptor] : world_->descriptors_) numbers.push_back(number);
  return numbers;
}

std::size_t ScriptedKernel::calls_on_closed() const { return world_->calls_on_closed_; }
std::vector<int> ScriptedKernel::blocked_signals() const { return world_->blocked_signals_; }

std::vector<std::string> ScriptedKernel::paths() const {
  std::vector<std::string> names;
  for (const auto& [path, inode] : world_->paths_) names.push_back(path);
  return names;
}

}  // namespace vigil::sys
