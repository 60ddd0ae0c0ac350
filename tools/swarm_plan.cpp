#include "swarm_plan.hpp"

#include <algorithm>
#include <bit>

namespace vigil::tools {

using namespace std::chrono_literals;

std::uint64_t any_magnitude(sim::Random& random, std::uint64_t least, std::uint64_t most) {
  const auto doublings = static_cast<std::uint64_t>(std::bit_width(most / (least == 0 ? 1 : least)));
  const std::uint64_t low = (least == 0 ? 1 : least) << random.below(doublings);
  const std::uint64_t drawn = random.between(low, 2 * low);
  return drawn < least ? least : drawn > most ? most : drawn;
}

Duration any_magnitude(sim::Random& random, Duration least, Duration most) {
  return Duration(any_magnitude(random, static_cast<std::uint64_t>(least.count()), static_cast<std::uint64_t>(most.count())));
}

Timeout draw_timeout(sim::Random& random) {
  if (one_in(random, 6)) return never;
  // Mostly what people write, sometimes odd numbers of nanoseconds.
  const Duration drawn = any_magnitude(random, Duration(2ms), Duration(8s));
  return one_in(random, 3) ? drawn : Duration(std::chrono::ceil<std::chrono::milliseconds>(drawn));
}

Rate draw_rate(sim::Random& random) {
  if (one_in(random, 8)) return Rate::never();
  const Duration window = any_magnitude(random, Duration(5ms), Duration(1s));
  const Duration graces[] = {Duration{}, Duration(1ns), window / 16, window / 8, window, 3 * window};
  return {.bytes_per_second = any_magnitude(random, 10, 200'000), .window = window, .grace = graces[random.below(6)]};
}

Timeouts draw_timeouts(sim::Random& random, unsigned percent) {
  Timeouts timeouts;
  const auto wanted = [&](unsigned weight) { return random.below(10'000) < percent * weight; };
  if (wanted(100)) timeouts.first_byte = draw_timeout(random);
  if (wanted(140)) timeouts.receive = draw_timeout(random);
  if (wanted(80)) timeouts.message = draw_timeout(random);
  if (wanted(60)) timeouts.receive_rate = draw_rate(random);
  if (wanted(100)) timeouts.send = draw_timeout(random);
  if (wanted(50)) timeouts.send_rate = draw_rate(random);
  if (wanted(150)) timeouts.drain = any_magnitude(random, Duration(2ms), Duration(3s));
  if (wanted(150)) timeouts.connect = any_magnitude(random, Duration(5ms), Duration(4s));
  if (wanted(80)) timeouts.accept = any_magnitude(random, Duration(20ms), Duration(2s));
  return timeouts;
}

Timeouts resolve(const Timeouts& nearer, const Timeouts& farther) {
  const auto timeout = [](Timeout near, Timeout far, Timeout built_in) {
    return !near.is_inherit() ? near : !far.is_inherit() ? far : built_in;
  };
  const auto rate = [](const Rate& near, const Rate& far) {
    return !near.is_inherit() ? near : !far.is_inherit() ? far : Rate::never();
  };
  return {.connect = timeout(nearer.connect, farther.connect, never),
          .accept = timeout(nearer.accept, farther.accept, never),
          .first_byte = timeout(nearer.first_byte, farther.first_byte, never),
          .receive = timeout(nearer.receive, farther.receive, never),
          .message = timeout(nearer.message, farther.message, never),
          .receive_rate = rate(nearer.receive_rate, farther.receive_rate),
          .send = timeout(nearer.send, farther.send, never),
          .send_rate = rate(nearer.send_rate, farther.send_rate),
          .drain = timeout(nearer.drain, farther.drain, 5s)};
}

namespace {

template <class Options>
void draw_bounds(sim::Random& random, Options& options, std::size_t receive_buffer_bytes) {
  if (one_in(random, 2)) {
    options.backlog_bytes_max = any_magnitude(random, 2 * 1024, 512 * 1024);
    options.backlog_high_mark_bytes = any_magnitude(random, 1024, 128 * 1024);
    options.backlog_low_mark_bytes = random.below(options.backlog_high_mark_bytes + 1);
  }
  if (one_in(random, 3)) options.when_backlogged = WhenBacklogged::pause_reading;
  // The kernel gives up by itself on who is cut off for long.
  if (one_in(random, 3)) options.socket.user_timeout = any_magnitude(random, Duration(30ms), Duration(2s));
  if (one_in(random, 4)) options.socket.keep_alive = {1s, 1s, static_cast<int>(random.between(1, 2))};
  if (one_in(random, 6)) options.socket.no_delay = false;
  if (one_in(random, 6)) options.socket.send_buffer_bytes = static_cast<int>(any_magnitude(random, 2 * 1024, 64 * 1024));
  if (one_in(random, 6)) options.socket.receive_buffer_bytes = static_cast<int>(any_magnitude(random, 2 * 1024, 64 * 1024));
  if (one_in(random, 2)) options.message_bytes_max = random.between(1, receive_buffer_bytes);
}

/// Of every sort that options can have, each valid; what they promise is worked out here and not by the library.
HeartbeatTerms draw_heartbeat(sim::Random& random, HeartbeatOptions& options, Duration tick) {
  HeartbeatTerms terms{.tick = tick};
  if (one_in(random, 10)) {
    options.budget = any_magnitude(random, Duration(1s), Duration(6s));
    options.keepalive_only = true;
    return terms;
  }
  constexpr Duration verdict_needs = 1500ms;
  terms.wants_verdict = options.wants_verdict = !one_in(random, 4);
  terms.interval = any_magnitude(random, Duration(terms.wants_verdict ? 50ms : 10ms), Duration(900ms));
  terms.budget = std::max<Duration>(3 * terms.interval, terms.wants_verdict ? terms.interval + verdict_needs : Duration{});
  terms.budget += one_in(random, 3) ? Duration{} : any_magnitude(random, Duration(1ms), Duration(2s));
  const bool has_phi = one_in(random, 3);
  const Duration phi_needs = terms.wants_verdict ? verdict_needs : Duration{};  // and two intervals
  if (has_phi) terms.budget = std::max<Duration>(terms.budget, 4 * terms.interval) + phi_needs;
  options.budget = terms.budget;
  if (one_in(random, 3)) {  // all of it is derived
    terms.interval = terms.budget / 4;
    if (terms.wants_verdict) terms.interval = std::min(terms.interval, terms.budget - verdict_needs);
  } else if (one_in(random, 3) && terms.budget >= verdict_needs + terms.budget / 4) {
    options.misses = static_cast<std::uint32_t>(random.between(3, 8));
    terms.interval = terms.budget / (*options.misses + 1);
  } else {
    options.interval = terms.interval;
    if (one_in(random, 2)) options.misses = 2;
  }
  if (one_in(random, 3)) options.grace = one_in(random, 2) ? Duration{} : any_magnitude(random, Duration(1ms), Duration(1s));
  if (terms.wants_verdict) terms.grace = options.grace;
  if (one_in(random, 3)) options.ping = std::string(random.between(1, 40), '?');
  terms.ping_bytes = options.ping.value_or("").size();
  if (has_phi && 2 * terms.interval + phi_needs <= terms.budget) {
    const PhiAccrual phi{.threshold = static_cast<double>(random.between(10, one_in(random, 10) ? 1000 : 80)) / 10,
                         .least_answers = static_cast<std::uint32_t>(random.between(2, 4)),
                         .least_deviation = any_magnitude(random, Duration(1ms), Duration(100ms))};
    options.phi = phi;
    terms.phi_from = terms.interval + phi_needs;
    terms.phi_threshold = phi.threshold;
  }
  return terms;
}

/// Its own probes are to be the only thing that tells of a peer that is gone, more often than not.
void make_room_for_heartbeat(sim::Random& random, Timeouts& timeouts, SocketOptions& socket, const HeartbeatTerms& terms) {
  if (terms.ping_bytes != 0) {  // when a probe of the library's own left is not known to the nanosecond
    timeouts.send = never;
    timeouts.send_rate = Rate::never();
  }
  if (one_in(random, 3)) return;
  timeouts.receive = timeouts.message = never;
  timeouts.receive_rate = Rate::never();
  if (one_in(random, 2)) timeouts.send = never;
  if (one_in(random, 2)) socket.user_timeout = {};
}

SitePlan draw_site(sim::Random& random) {
  SitePlan site;
  constexpr Duration ticks[] = {100us, 1ms, 1ms, 1ms, 1ms, 3ms, 10ms, 37ms};
  site.reactor.tick = ticks[random.below(8)];
  site.reactor.receive_buffer_bytes = any_magnitude(random, 1024, 32 * 1024);
  site.reactor.gather_buffer_bytes = any_magnitude(random, 1024, 16 * 1024);
  constexpr std::size_t events[] = {1, 2, 8, 64, 512, 512};
  site.reactor.events_per_wait = events[random.below(6)];
  constexpr std::size_t reads[] = {1, 2, 8, 8};
  site.reactor.reads_per_turn = reads[random.below(4)];
  site.reactor.timeouts = draw_timeouts(random, 12);
  const auto percent = static_cast<unsigned>(random.between(30, 80));
  site.listener.timeouts = draw_timeouts(random, percent);
  site.connector.timeouts = draw_timeouts(random, percent);
  draw_bounds(random, site.listener, site.reactor.receive_buffer_bytes);
  draw_bounds(random, site.connector, site.reactor.receive_buffer_bytes);
  const auto heartbeat = [&](auto& options, HeartbeatTerms& terms) {
    if (!one_in(random, 2)) return;
    terms = draw_heartbeat(random, options.heartbeat, site.reactor.tick);
    make_room_for_heartbeat(random, options.timeouts, options.socket, terms);
    if (options.heartbeat.keepalive_only) {  // it sets these itself
      options.socket.keep_alive = {};
      options.socket.user_timeout = {};
    }
  };
  heartbeat(site.listener, site.accepted_heartbeat);
  heartbeat(site.connector, site.attempted_heartbeat);
  site.accepted = resolve(site.listener.timeouts, site.reactor.timeouts);
  site.attempted = resolve(site.connector.timeouts, site.reactor.timeouts);
  if (one_in(random, 4)) site.listener.connections_max = random.between(1, 40);
  if (one_in(random, 5)) site.listener.accept_rate = static_cast<std::uint32_t>(any_magnitude(random, 5, 2000));
  if (one_in(random, 4)) site.listener.accept_queue = static_cast<int>(random.between(1, 16));
  site.handler_kind = random.below(handler_kind_count);
  return site;
}

void draw_chances(sim::Random& random, WorldPlan& plan) {
  // Some worlds have few faults and rarely, some have most of them and often.
  const std::uint64_t wanted = random.between(30, 95);
  const std::uint64_t most = any_magnitude(random, 100, 2500);  // of 10,000
  for (std::size_t index = 0; index <= static_cast<std::size_t>(sim::Fault::delayed); ++index) {
    if (random.below(100) >= wanted) continue;
    double chance = static_cast<double>(random.between(1, most)) / 10'000;
    switch (static_cast<sim::Fault>(index)) {
      case sim::Fault::stalled:
      case sim::Fault::no_descriptor:
      case sim::Fault::no_buffers:
        chance /= 40;
        break;
      case sim::Fault::lost:
        chance /= 2;
        break;
      default:
        break;
    }
    plan.chances[index] = chance;
  }
}

}  // namespace

WorldPlan draw_world(sim::Random& random) {
  WorldPlan plan;
  plan.server_reactors = one_in(random, 4) ? static_cast<unsigned>(random.between(1, 4)) : 0;
  plan.server_is_signalled = one_in(random, 3);
  plan.sites.resize(plan.server_reactors == 0 && one_in(random, 3) ? 2 : 1);
  plan.lives = static_cast<unsigned>(random.between(150, 350));
  plan.spread = any_magnitude(random, Duration(200ms), Duration(20s));
  for (SitePlan& site : plan.sites) {
    site = draw_site(random);
    if (one_in(random, 10)) site.ends_after = random.between(plan.spread / 4, plan.spread);
  }
  constexpr Family families[] = {Family::v4, Family::v4, Family::v4, Family::v6, Family::both};
  plan.family = families[random.below(std::size(families))];
  for (SitePlan& site : plan.sites) site.listener.v6_only = plan.family != Family::both;
  plan.peers = static_cast<unsigned>(random.between(1, 6));
  const bool has_heartbeats = std::any_of(plan.sites.begin(), plan.sites.end(), [](const SitePlan& site) {
    return site.listener.heartbeat.budget || site.connector.heartbeat.budget;
  });
  plan.stops_early = one_in(random, 8);
  plan.lasts = plan.stops_early ? random.between(plan.spread / 4, plan.spread)
                                : plan.spread + random.between(Duration(50ms), Duration(8s));
  // Some silences may take their time there.
  if (has_heartbeats) plan.lasts += random.between(Duration(1s), Duration(8s));
  plan.weather_longest = has_heartbeats && !one_in(random, 3) ? 8s : 3s;
  plan.drain = one_in(random, 6) ? Duration{} : any_magnitude(random, Duration(1ms), Duration(3s));
  draw_chances(random, plan);
  plan.path.latency = any_magnitude(random, Duration(5us), Duration(30ms));
  if (one_in(random, 2)) plan.path.jitter = any_magnitude(random, Duration(1us), Duration(20ms));
  if (one_in(random, 5)) plan.path.bytes_per_second = any_magnitude(random, 20'000, 20'000'000);
  const auto buffer = [&random] { return static_cast<std::size_t>(any_magnitude(random, 2 * 1024, 128 * 1024)); };
  // In some the kernel takes all that one callback may hand it at once, and more.
  plan.own_send_buffer = one_in(random, 4) ? random.between(160 * 1024, 400 * 1024) : buffer();
  plan.own_receive_buffer = buffer();
  plan.peer_send_buffer = buffer();
  plan.peer_receive_buffer = buffer();
  if (!one_in(random, 4)) {
    const std::uint64_t wanted = random.between(10, 60);
    for (std::size_t index = 0; index < weather_count; ++index)
      if (random.below(100) < wanted) plan.weather.push_back(static_cast<Weather>(index));
    plan.weather_gap = std::max<Duration>(plan.lasts / static_cast<int>(random.between(3, 25)), 20ms);
  }
  plan.spends_most = any_magnitude(random, Duration(1us), Duration(200us));
  plan.dawdles_one_in = one_in(random, 2) ? 0 : random.between(50, 2000);
  plan.dawdles_most = any_magnitude(random, Duration(1ms), Duration(400ms));
  plan.outgoing_percent = random.between(5, 45);
  return plan;
}

}  // namespace vigil::tools
