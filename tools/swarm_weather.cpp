// What goes wrong with hosts, paths and listeners from time to time, and how it passes.
#include "swarm_world.hpp"

namespace vigil::tools {

using namespace std::chrono_literals;

/// Whoever speaks from this host is cut off.
void Swarm::end_processes(PeerHost& on) {
  ++on.deaths;
  on.hangs = false;
  for (SwarmLife& life : lives_) {
    if (life.peer == nullptr || &life.peer->host() != on.host) continue;
    life.peer_went = true;
    ++life.own_faults;
  }
}

void Swarm::weather() {
  if (plan.weather.empty() || stopped_) return;
  world.after(random.between(plan.weather_gap / 4, plan.weather_gap * 2), [this] { weather(); });
  PeerHost& on = peers_[random.below(peers_.size())];
  sim::Host& host = *on.host;
  sim::Host& own = world.local();
  const Duration lasting = any_magnitude(random, Duration(1ms), plan.weather_longest);
  // So long that a kernel may give up meanwhile.
  const Duration lasting_long = one_in(random, 4) ? lasting : random.between(Duration(500ms), Duration(5s));
  switch (plan.weather[random.below(plan.weather.size())]) {
    case Weather::hang:
      host.hang();
      on.hangs = true;
      for (SwarmLife& life : lives_)
        if (life.peer != nullptr && &life.peer->host() == &host) ++life.own_faults;
      world.after(lasting, [&on] {
        on.hangs = false;
        on.host->resume();
      });
      return;
    case Weather::vanish:
      end_processes(on);
      host.vanish();
      world.after(lasting, [this, &on] {
        end_processes(on);
        on.host->reboot();
        listen_for_nobody(on);
      });
      return;
    case Weather::reboot:
      end_processes(on);
      host.reboot();
      listen_for_nobody(on);
      return;
    case Weather::kill:
      end_processes(on);
      host.kill();
      listen_for_nobody(on);
      return;
    case Weather::cut:
      world.set_way(host, own, sim::Way::cut);
      break;
    case Weather::cut_one_way:
      (one_in(random, 2) ? world.path(host, own) : world.path(own, host)).way = sim::Way::cut;
      break;
    case Weather::refuse_route: {
      constexpr sim::Way ways[] = {sim::Way::no_route, sim::Way::unreachable_route, sim::Way::prohibited_route,
                                   sim::Way::blackhole_route};
      world.path(own, host).way = ways[random.below(std::size(ways))];
      return heal_after(lasting_long, host);
    }
    case Weather::reject: {
      constexpr sim::Way ways[] = {sim::Way::port_unreachable, sim::Way::host_unreachable, sim::Way::net_unreachable,
                                   sim::Way::prohibited, sim::Way::reset};
      world.path(own, host).way = ways[random.below(std::size(ways))];
      return heal_after(lasting_long, host);
    }
    case Weather::lose:
      world.path(own, host).loss = world.path(host, own).loss = 0.3;
      break;
    case Weather::slow_down:
      world.path(own, host).bytes_per_second = any_magnitude(random, 2'000, 1'000'000);
      world.path(host, own).latency = any_magnitude(random, Duration(1ms), Duration(300ms));
      break;
    case Weather::few_descriptors:
      own.limit_descriptors(world.open_descriptors() + random.below(4));
      world.after(lasting / 4, [&own] { own.limit_descriptors(1'000'000); });
      return;
    case Weather::shake_listener:
      return shake_listener(sites_[random.below(sites_.size())], lasting / 4);
  }
  heal_after(lasting, host);
}

void Swarm::heal_after(Duration delay, sim::Host& host) {
  world.after(delay, [this, &host] { world.path(world.local(), host) = world.path(host, world.local()) = plan.path; });
}

void Swarm::shake_listener(SwarmSite& site, Duration lasting) {
  if (site.reactor == nullptr || site.door == nullptr || site.stopping || site.is_shaken) return;
  site.was_held = site.is_shaken = true;
  const bool closes = one_in(random, 2);
  ListenerBase& listener = site.door->listener();
  if (closes) site.listens = false;
  closes ? listener.close() : listener.pause_accepting();
  world.after(lasting, [this, &site, closes] {
    site.is_shaken = false;
    if (site.door == nullptr || site.stopping) return;
    if (!closes) return site.door->listener().resume_accepting();
    if (!site.listens) listen(site);
  });
}

}  // namespace vigil::tools
