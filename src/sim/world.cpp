// A simulated world, as its user sees it.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "reactor_core.hpp"
#include "sim/network.hpp"
#include "sim/universe.hpp"
#include "sim/world_kernel.hpp"
#include "vigil/sim.hpp"

namespace vigil::sim {

struct World::State {
  explicit State(const WorldOptions& options) : universe(options), network(universe), kernel(universe, network) {
    kernel.host = &network.host(options.address);
    kernel.host->runs_vigil = true;
    local = kernel.host;
  }

  Universe universe;
  Network network;
  WorldKernel kernel;
  SimulatedHost* local = nullptr;
};

World::World(const WorldOptions& options) : state_(std::make_unique<State>(options)) {}
World::~World() = default;

Instant World::now() const { return state_->universe.now; }

void World::run_until(Instant until) {
  ++state_->universe.script_calls;  // of whoever called since
  while (state_->kernel.step(until)) {
  }
  if (until != never_due && until > now()) state_->kernel.pass_time(until);
}

void World::run_for(Duration duration) { run_until(state_->universe.in(duration)); }

bool World::run_until(Callback<bool()> done, Duration at_most) {
  const Instant end = state_->universe.in(at_most);
  ++state_->universe.script_calls;
  while (!done()) {
    if (state_->kernel.step(end)) continue;
    if (end != never_due && end > now()) state_->kernel.pass_time(end);
    return done();
  }
  return true;
}

bool World::step() { return state_->kernel.step(never_due); }
std::uint64_t World::steps() const { return state_->kernel.steps; }
void World::at(Instant instant, Task task) { state_->kernel.script(instant, std::move(task)); }
void World::after(Duration delay, Task task) { at(state_->universe.in(delay), std::move(task)); }
void World::spend(Duration duration) { state_->kernel.spend(duration); }
Duration World::delays() const { return state_->kernel.delays; }

void World::attach(Reactor& reactor) {
  const auto& link = ReactorCore::of(reactor).link;
  state_->kernel.attach(
      reactor, [link] { return link->core != nullptr; },
      [link] { return link->core != nullptr && link->core->attends(ReactorCore::work_waits | ReactorCore::wheel_changed); });
}
void World::detach(Reactor& reactor) { state_->kernel.detach(reactor); }
void World::enter(Host& host) { state_->kernel.host = static_cast<SimulatedHost*>(&host); }
void World::raise(int signal_number) { state_->kernel.raise(signal_number); }

Host& World::host(std::string_view ip) { return state_->network.host(ip); }
Host& World::local() { return *state_->local; }

Path& World::path(Host& from, Host& to) {
  return state_->network.path(static_cast<SimulatedHost&>(from), static_cast<SimulatedHost&>(to));
}

void World::set_way(Host& one, Host& other, Way way) {
  path(one, other).way = way;
  path(other, one).way = way;
}

void World::set_chance(Fault fault, double probability) {
  if (fault > Fault::delayed) misused("this fault does not come by chance", to_string(fault));
  state_->universe.chances[static_cast<std::size_t>(fault)] = probability;
}

std::uint64_t World::count(Fault fault) const { return state_->universe.counts[static_cast<std::size_t>(fault)]; }
Random& World::random() { return state_->universe.random; }

std::uint64_t World::life(int descriptor) const { return state_->kernel.life(descriptor); }
Truth World::truth(std::uint64_t life) const { return state_->kernel.truth(life); }
Peer* World::peer_of(std::uint64_t life) const { return state_->kernel.peer_of(life); }
std::size_t World::open_descriptors() const { return state_->kernel.open_descriptors(); }
std::size_t World::calls_on_closed() const { return state_->kernel.calls_on_closed; }
std::size_t World::pending_timers(Reactor& reactor) { return ReactorCore::of(reactor).wheel.size(); }
std::size_t World::sources_in_use(Reactor& reactor) { return ReactorCore::of(reactor).sources(); }

std::size_t World::blocks_in_use(Reactor& reactor) {
  const ReactorCore& core = ReactorCore::of(reactor);
  return core.chunks.in_use() + core.sides.in_use() + core.heartbeats.in_use() + core.doubts.in_use() + core.answers.in_use();
}

std::uint64_t World::digest() const { return state_->universe.digest; }
void World::trace(Callback<void(std::string_view)> write) { state_->universe.trace = std::move(write); }

}  // namespace vigil::sim
