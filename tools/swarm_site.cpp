// A reactor and its listener in a swarm: how they begin, what the listener tells, how they stop and end.
#include <algorithm>

#include "readable.hpp"
#include "swarm_world.hpp"

namespace vigil::tools {

namespace {

bool is_shortage(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM || error == ENOSPC;
}

}  // namespace

// --- the listener's events

/// Nothing but the loop's delay explains that nobody was accepted, and the deadline not told, for so long.
void SwarmSite::judge_accept_deadline() {
  const Timeout timeout = plan->accepted.accept;
  const ListenerOptions& options = plan->listener;
  if (timeout.is_never() || !listens || was_held || stopping || options.connections_max != 0 || options.accept_rate != 0) return;
  if (swarm->shortages() != 0) return;
  const Instant due = accept_from + timeout.duration();
  const Instant now = swarm->now();
  if (now > due + plan->reactor.tick && now - due > plan->reactor.tick + swarm->delays.since(due))
    swarm->problem(nullptr, "no accept deadline is late", readable(now - due));
}

void SwarmSite::on_accept_timed_out(Duration after) {
  swarm->enter();
  const Timeout timeout = plan->accepted.accept;
  const Instant now = swarm->now();
  judge_accept_deadline();
  if (timeout.is_never() || now - accept_from < timeout.duration() || after < timeout.duration() || after > now - accept_from)
    swarm->problem(nullptr, "no accept deadline is told early", readable(now - accept_from) + ", told " + readable(after));
  accept_from = now;
  swarm->spend();
}

void SwarmSite::on_accept_paused(const Error& error, Duration retry) {
  swarm->enter();
  was_held = true;
  if (swarm->shortages() == 0 || !is_shortage(error.code))
    swarm->problem(nullptr, "accepting pauses for want of something", describe(error));
  if (retry <= Duration{} || retry > std::chrono::milliseconds(100))
    swarm->problem(nullptr, "accepting is tried again soon", readable(retry));
  swarm->spend();
}

void SwarmSite::on_accept_resumed(Duration) {
  swarm->enter();
  swarm->spend();
}

void SwarmSite::on_shed(const CloseRecord& record) {
  swarm->enter();
  ++opened;
  ++records;
  ++swarm->counts.lives;
  ++swarm->counts.reasons[static_cast<std::size_t>(record.reason)];
  const bool is_true =
      record.reason == CloseReason::accept_shed && record.origin == Origin::policy && is_shortage(record.error_number);
  if (!is_true || swarm->shortages() == 0)
    swarm->problem(nullptr, "a connection is shed for want of something", describe(record));
  swarm->spend();
}

/// One more was accepted: within the bounds.
void SwarmSite::count_accepted() {
  const Instant now = swarm->now();
  judge_accept_deadline();
  accept_from = now;
  const ListenerOptions& options = plan->listener;
  if (options.connections_max != 0 && door->listener().connections() > options.connections_max)
    swarm->problem(nullptr, "no more than connections_max are open", std::to_string(door->listener().connections()));
  if (options.accept_rate == 0) return;
  const double burst = std::max(options.accept_rate / 10, 1U);
  const double passed = std::chrono::duration<double>(now - tokens_at).count();
  accept_tokens = std::min(burst, accept_tokens + passed * options.accept_rate) - 1;
  tokens_at = now;
  if (accept_tokens < -0.01)
    swarm->problem(nullptr, "no more than accept_rate are accepted", std::to_string(-accept_tokens) + " too many");
}

// --- beginning and end

SwarmSite& Swarm::add_site(const SitePlan& site_plan, const std::string& port) {
  SwarmSite& site = sites_.emplace_back();
  site.swarm = this;
  site.plan = &site_plan;
  for (const std::string& own : own_addresses_) site.addresses.push_back(own + port);
  const std::string anywhere = plan.family == Family::v4 ? "0.0.0.0" : "[::]";
  site.address = site.addresses.size() == 1 && one_in(random, 2) ? site.addresses.front() : anywhere + port;
  return site;
}

void Swarm::open_site(const SitePlan& site_plan) {
  SwarmSite& site = add_site(site_plan, ':' + std::to_string(7001 + sites_.size()));
  site.own_reactor = std::make_unique<Reactor>(site_plan.reactor);
  site.reactor = site.own_reactor.get();
  note_baseline(site);
  site.own_door = open_door(site);
  site.door = site.own_door.get();
  begin_listening(site);
  listen(site);
  world.attach(*site.reactor);
  if (site_plan.ends_after != Duration::max()) world.after(site_plan.ends_after, [this, &site] { destroy_site(site); });
}

void Swarm::note_baseline(SwarmSite& site) {
  site.timers_before = sim::World::pending_timers(*site.reactor);
  site.sources_before = sim::World::sources_in_use(*site.reactor);
  site.blocks_before = sim::World::blocks_in_use(*site.reactor);
}

void Swarm::begin_listening(SwarmSite& site) {
  site.accept_tokens = std::max(site.plan->listener.accept_rate / 10, 1U);
  site.accept_from = site.tokens_at = now();
}

void Swarm::close_site(SwarmSite& site) {
  site.door = nullptr;
  site.own_door.reset();
  site.reactor = nullptr;
  site.own_reactor.reset();
}

void Swarm::listen(SwarmSite& site) {
  const std::uint64_t shortages_before = shortages();
  const auto bound = site.door->listener().listen(site.address);
  site.listens = static_cast<bool>(bound);
  site.accept_from = now();
  if (!bound && shortages() == shortages_before) problem(nullptr, "listen() fails for a reason", describe(bound.error()));
  if (!bound && !stopped_ && !site.stopping)
    world.after(std::chrono::milliseconds(5), [this, &site] {
      if (site.door != nullptr && !site.stopping && !site.listens) listen(site);
    });
}

/// Everything that is open is settled by this, unless it was before.
void Swarm::note_stop(SwarmSite& site, Duration drain) {
  for (SwarmLife& life : lives_) {
    LifeNotes& notes = life.notes;
    if (life.site != &site || notes.made_at == Instant{} || notes.closed) continue;
    if (in_turn_) notes.touched_from_outside_at = now();  // of this very turn, in which it may have ended already
    const sim::Truth facts = truth(life);
    // One that flushes because its peer finished is left alone. In doubt whether it does (see settle), either is right.
    const bool flushes = drain != Duration{} && notes.clocks.closes_with_peer(facts);
    const bool settled = notes.settled != Settled::by_nothing || flushes;
    if (!settled) settle(life, Settled::by_stopping, true);
    if (drain == Duration{} && !notes.stopped_at_once) {
      notes.stopped_at_once = true;
      notes.stopped_at = now();
    }
    notes.stops_at = std::min(notes.stops_at, now() + drain);
    if (drain == Duration{} || !notes.opened || settled) continue;
    notes.graceful = true;
    notes.clocks.closing(now());
    touch(life);
  }
}

void Swarm::stop_site(SwarmSite& site, Duration drain) {
  if (site.reactor == nullptr) return;
  site.stopping = true;
  site.listens = false;
  site.stops_at = std::min(site.stops_at, now() + drain);
  note_stop(site, drain);
  if (const auto stopped = site.reactor->shutdown(drain); !stopped)
    problem(nullptr, "shutdown() succeeds", describe(stopped.error()));
}

void Swarm::destroy_site(SwarmSite& site) {
  if (site.reactor == nullptr) return;
  site.stopping = true;
  site.listens = false;
  site.stops_at = now();
  note_stop(site, {});
  world.detach(*site.reactor);
  site.door = nullptr;
  site.own_door.reset();
  site.ending = true;
  const auto turns = site.reactor->counters();
  if (turns.opened - turns.closed != site.handlers)
    problem(nullptr, "opened and closed agree with what is alive", std::to_string(turns.opened - turns.closed));
  close_site(site);
  if (site.handlers != 0) problem(nullptr, "a reactor's end tells every life", std::to_string(site.handlers) + " are left");
}

/// Nothing is left of all that stood on it.
void Swarm::judge_site(SwarmSite& site) {
  if (site.opened != site.records)
    problem(nullptr, "one record for each life",
            std::to_string(site.opened) + " began, " + std::to_string(site.records) + " were told");
  if (site.reactor == nullptr) return;
  const ReactorCounters& counters = site.reactor->counters();
  const auto same = [this](const char* rule, std::uint64_t is, std::uint64_t should) {
    if (is != should) problem(nullptr, rule, std::to_string(is) + " instead of " + std::to_string(should));
  };
  same("every life opened is counted", counters.opened, site.opened);
  same("every life closed is counted", counters.closed, site.records);
  std::uint64_t sum = 0;
  for (const std::uint64_t count : counters.closed_for) sum += count;
  same("every life closed has its reason counted", sum, site.records);
  // A server's reactor ends with its last record, before the timer of its shutdown has fired.
  const std::size_t timers = sim::World::pending_timers(*site.reactor);
  const bool has_the_shutdowns = plan.server_reactors != 0 && timers == site.timers_before + 1;
  if (!has_the_shutdowns) same("no timer is left", timers, site.timers_before);
  same("no slot is left", sim::World::sources_in_use(*site.reactor), site.sources_before);
  same("no buffer is left", sim::World::blocks_in_use(*site.reactor), site.blocks_before);
}

}  // namespace vigil::tools
