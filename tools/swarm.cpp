#include "swarm.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "readable.hpp"
#include "swarm_world.hpp"

namespace vigil::tools {

using namespace std::chrono_literals;

namespace {

constexpr std::size_t violations_kept = 8;
constexpr std::uint64_t steps_most = 3'000'000;  // of one world: what takes longer never ends

std::uint64_t mixed(std::uint64_t seed, std::uint64_t number) {
  std::uint64_t word = seed * 0x9E3779B97F4A7C15U + number + 1;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9U;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBU;
  return word ^ (word >> 31);
}

sim::WorldOptions options_of(const WorldChoice& choice, sim::Random& setting) {
  sim::WorldOptions options;
  options.seed = mixed(choice.seed, choice.number);
  options.choices = choice.choices.without_first(64);
  options.latest_wakeup = any_magnitude(setting, Duration(10us), Duration(30ms));
  options.longest_stall = any_magnitude(setting, Duration(10ms), Duration(3s));
  options.longest_delay = any_magnitude(setting, Duration(100us), Duration(100ms));
  return options;
}

void count_in(Spread& spread, std::uint64_t value) { ++spread[std::min<std::uint64_t>(value, spread.size() - 1)]; }

}  // namespace

WorldReport& WorldReport::operator+=(const WorldReport& other) {
  const auto add = [](auto& sums, const auto& more) {
    for (std::size_t index = 0; index < sums.size(); ++index) sums[index] += more[index];
  };
  lives += other.lives;
  opened += other.opened;
  counted += other.counted;
  messages += other.messages;
  bytes += other.bytes;
  steps += other.steps;
  digest = mixed(digest, other.digest);
  simulated += other.simulated;
  add(faults, other.faults);
  add(reasons, other.reasons);
  add(verdicts, other.verdicts);
  add(excused, other.excused);
  add(extended, other.extended);
  add(deadlines_each, other.deadlines_each);
  add(messages_each, other.messages_each);
  add(faults_each, other.faults_each);
  violations.insert(violations.end(), other.violations.begin(), other.violations.end());
  return *this;
}

WorldReport run_world(WorldChoice choice) {
  Swarm swarm(std::move(choice));
  swarm.run();
  return swarm.report();
}

// --- beginning

Swarm::Swarm(WorldChoice choice)
    : setting(mixed(choice.seed, choice.number) ^ 0x5EEDU, choice.choices.first(64)),
      plan(draw_world(setting)),
      world(options_of(choice, setting)),
      random(world.random()),
      trace_(std::move(choice.trace)),
      began_(world.now()) {
  if (trace_) world.trace([this](std::string_view line) { trace_(line); });
  set_up();
}

Swarm::~Swarm() {
  end_server();
  for (SwarmSite& site : sites_) {
    if (site.reactor != nullptr) world.detach(*site.reactor);
    close_site(site);
  }
}

/// How it is spoken to: what it is called in an address with a port.
std::vector<std::string> Swarm::name(sim::Host& host, std::string_view ip6) const {
  std::vector<std::string> names;
  if (plan.family != Family::v6) names.emplace_back(host.address());
  if (plan.family == Family::v4) return names;
  host.add_address(ip6);
  names.push_back('[' + std::string(ip6) + ']');
  return names;
}

void Swarm::set_up() {
  world.local().set_buffers(plan.own_send_buffer, plan.own_receive_buffer);
  own_addresses_ = name(world.local(), "fd00::1");
  for (unsigned index = 0; index < plan.peers; ++index) {
    sim::Host& host = world.host("10.0.1." + std::to_string(index + 1));
    host.set_buffers(plan.peer_send_buffer, plan.peer_receive_buffer);
    world.path(host, world.local()) = world.path(world.local(), host) = plan.path;
    listen_for_nobody(peers_.emplace_back(PeerHost{&host, name(host, "fd00:1::" + std::to_string(index + 1))}));
  }
  descriptors_before_ = world.open_descriptors();
  if (plan.server_reactors != 0) {
    start_server();
  } else {
    for (const SitePlan& site_plan : plan.sites) open_site(site_plan);
  }
  // From here on: what exists does so without a fault.
  for (std::size_t index = 0; index <= static_cast<std::size_t>(sim::Fault::delayed); ++index)
    world.set_chance(static_cast<sim::Fault>(index), plan.chances[index]);
  for (unsigned life = 0; life < plan.lives; ++life)
    world.after(random.between(Duration{}, plan.spread), [this] { begin_next_life(); });
  world.after(random.between(Duration{}, plan.weather_gap), [this] { weather(); });
  world.after(plan.lasts, [this] { shut_down(); });
}

void Swarm::begin_next_life() {
  if (judged_) return;
  SwarmSite& site = sites_[random.below(sites_.size())];
  SwarmLife& life = lives_.emplace_back();
  life.swarm = this;
  life.site = &site;
  life.number = lives_.size();
  life.outgoing = random.below(100) < plan.outgoing_percent;
  life.script = draw_handler_script(random, *site.plan);
  life.peer_script = draw_peer_script(random, terms_of(life).budget != Duration{});
  if (life.outgoing && site.reactor == nullptr) return;
  begin_peer(life);
}

// --- callbacks

void Swarm::enter() {
  delays.note(now(), world.delays());
  if (in_turn_ && turn_step_ == world.steps()) return;
  if (in_turn_) step_over();  // the world went on in a wait of our own
  in_turn_ = true;
  turn_step_ = world.steps();
  turn_began = now();
}

void Swarm::spend() {
  const bool dawdles = plan.dawdles_one_in != 0 && one_in(random, plan.dawdles_one_in);
  world.spend(dawdles ? any_magnitude(random, Duration(100us), plan.dawdles_most) : random.between(Duration{}, plan.spends_most));
  delays.note(now(), world.delays());
}

void Swarm::touch(SwarmLife& life) {
  if (std::exchange(life.touched, true)) return;
  touched_.push_back(&life);
}

SwarmLife& Swarm::begin_life(SwarmSite& site, Connection& connection) {
  enter();
  SwarmLife* found = connecting_ != nullptr ? connecting_ : life_at(connection.peer().port());
  if (found == nullptr) {
    problem(nullptr, "the peer's address is true", std::to_string(connection.peer().port()));
    found = &lives_.emplace_back();
    found->swarm = this;
    found->number = lives_.size();
  }
  SwarmLife& life = *found;
  if (life.notes.made_at != Instant{}) problem(&life, "one handler for each life", "another");
  LifeNotes& notes = life.notes;
  life.site = &site;
  life.connection = connection.handle();
  life.socket = world.life(connection.descriptor());
  notes.attempted = connecting_ != nullptr;
  notes.made_at = now();
  notes.clocks = LifeClocks(notes.attempted ? site.plan->attempted : site.plan->accepted, site.plan->reactor.tick);
  notes.heartbeat = HeartbeatClock(terms_of(life));
  if (notes.attempted) notes.clocks.attempted(now());
  if (!notes.attempted) site.count_accepted();
  ++site.opened;
  ++alive_;
  tell(life, "begins on socket", life.socket);
  if (life.script.timed_deed != Deed::nothing) {
    life.timer = Timer(*site.reactor, [this, &life] { timer_fired(life); });
    life.timer_due = now() + life.script.timed_after;
    if (const auto armed = life.timer.arm_after(life.script.timed_after); !armed)
      problem(&life, "a timer can be armed", describe(armed.error()));
  }
  if (one_in(random, 4)) spend();
  return life;
}

void Swarm::timer_fired(SwarmLife& life) {
  enter();
  const Instant due = life.timer_due;
  const Duration tick = life.site->plan->reactor.tick;
  if (now() < due) problem(&life, "no timer fires early", readable(due - now()));
  if (now() > due + tick && now() - due > tick + delays.since(due)) problem(&life, "no timer is late", readable(now() - due));
  act(life, life.script.timed_deed, true);
  spend();
}

void Swarm::end_life(SwarmLife& life) {
  life.timer = Timer();
  --alive_;
  ++life.site->records;
  ++counts.lives;
  ++counts.reasons[static_cast<std::size_t>(life.record.reason)];
  if (life.record.verdict) ++counts.verdicts[static_cast<std::size_t>(*life.record.verdict)];
}

// --- going on

void Swarm::run() {
  while (!is_over()) {
    if (!world.step()) break;
    step_over();
    if (world.steps() < steps_most) continue;
    problem(nullptr, "a world comes to its end",
            std::to_string(alive_) + " lives are left after " + std::to_string(steps_most) + " steps");
    break;
  }
  judge_world();
}

void Swarm::step_over() {
  delays.note(now(), world.delays());
  in_turn_ = false;
  for (SwarmLife* life : touched_) {
    life->touched = false;
    life->notes.clocks.turn_ended(now());
  }
  touched_.clear();
  watch_next();
}

/// Some time after the last record, so that what is on its way arrives and what was armed for the shutdown fires.
/// Reactors may be late one after the other.
bool Swarm::is_over() const { return stopped_ && now() >= ends_at_ + (alive_ != 0 ? Duration(10s) : Duration{}); }

void Swarm::shut_down() {
  stopped_ = true;
  ends_at_ = now() + plan.drain + 2s;
  if (plan.server_reactors == 0) {
    for (SwarmSite& site : sites_) stop_site(site, plan.drain);
  } else if (server_ != nullptr) {
    stop_server(plan.server_is_signalled);
    ends_at_ += 10s;  // its reactors have to tell that they ended, too
  }
}

std::uint64_t Swarm::shortages() const {
  return world.count(sim::Fault::no_descriptor) + world.count(sim::Fault::no_buffers) +
         world.count(sim::Fault::descriptors_limited);
}

// --- judging

void Swarm::tell_always(const SwarmLife& life, const char* what, std::uint64_t number) {
  char line[160];
  std::snprintf(line, sizeof line, "%.9f    life %llu: %s %llu", std::chrono::duration<double>(now().time_since_epoch()).count(),
                static_cast<unsigned long long>(life.number), what, static_cast<unsigned long long>(number));
  trace_(line);
}

void Swarm::problem(const SwarmLife* life, const char* rule, std::string told) {
  if (counts.violations.size() == violations_kept) return;
  counts.violations.push_back({rule, std::move(told), life == nullptr ? 0 : life->number, world.steps(), now() - began_});
}

void Swarm::take(const SwarmLife* life, Problems& problems) {
  for (Problem& one : problems) problem(life, one.rule, std::move(one.told));
  problems.clear();
}

void Swarm::judge_world() {
  // The wait may be over late once more.
  if (alive_ != 0) problem(nullptr, "every life ends", std::to_string(alive_) + " go on");
  judged_ = true;
  for (SwarmSite& site : sites_) {
    if (site.own_door == nullptr) continue;
    site.door = nullptr;
    site.own_door.reset();
  }
  const Instant end = now() + 1s;
  while (now() < end && world.step()) step_over();
  if (server_ != nullptr) judge_server();
  end_server();
  for (SwarmSite& site : sites_) judge_site(site);
  for (SwarmSite& site : sites_) {
    if (site.reactor != nullptr) world.detach(*site.reactor);
    close_site(site);
  }
  if (world.open_descriptors() != descriptors_before_)
    problem(nullptr, "no descriptor is left",
            std::to_string(world.open_descriptors()) + " instead of " + std::to_string(descriptors_before_));
  if (world.calls_on_closed() != 0)
    problem(nullptr, "no call with a descriptor that was closed", std::to_string(world.calls_on_closed()));
  for (SwarmLife& life : lives_) judge_life(life);
}

void Swarm::judge_life(SwarmLife& life) {
  const LifeNotes& notes = life.notes;
  if (!notes.closed) return;
  const sim::Truth facts = truth(life);
  if (life.peer != nullptr) {
    Problems problems;
    const bool hangs =
        std::any_of(peers_.begin(), peers_.end(), [&](const PeerHost& on) { return on.hangs && on.host == &life.peer->host(); });
    judge_peer(notes, life.record, *life.peer, !life.peer_went && !life.peer_stopped && !hangs, problems);
    take(&life, problems);
  }
  if (!notes.opened) return;
  const std::uint64_t messages = life.messages_in + life.messages_out;
  const std::uint64_t faults = facts.faults + life.own_faults;
  count_in(counts.deadlines_each, life.deadlines);
  count_in(counts.messages_each, messages);
  count_in(counts.faults_each, faults);
  if (life.deadlines >= 1 && messages >= 3 && faults >= 1) ++counts.counted;
}

WorldReport Swarm::report() {
  counts.steps = world.steps();
  counts.digest = world.digest();
  counts.simulated = now() - began_;
  for (std::size_t index = 0; index < sim::fault_count; ++index)
    counts.faults[index] = world.count(static_cast<sim::Fault>(index));
  return std::move(counts);
}

}  // namespace vigil::tools
