// A Server in a swarm: each of its reactors is a site, and all of them stop together, by a call, a signal or its destructor.
#include <algorithm>
#include <csignal>
#include <string>
#include <utility>

#include "swarm_world.hpp"

namespace vigil::tools {

/// Nothing goes wrong yet.
void Swarm::start_server() {
  const SitePlan& site_plan = plan.sites.front();
  server_ = make_server(*this,
                        {.reactors = plan.server_reactors,
                         .stop_on_signals = plan.server_is_signalled,
                         .drain = plan.drain,
                         .reactor = site_plan.reactor,
                         .listener = site_plan.listener},
                        site_plan.handler_kind);
  for (unsigned index = 0; index < plan.server_reactors; ++index) add_site(site_plan, ":7001").address = sites_.front().address;
  if (const auto started = server_->start(sites_.front().address); !started)
    problem(nullptr, "a server starts", describe(started.error()));
  for (SwarmSite& site : sites_) {
    site.listens = true;
    begin_listening(site);
  }
  world.attach(server_->control());
  if (site_plan.ends_after != Duration::max()) world.after(site_plan.ends_after, [this] { end_server(); });
}

SwarmSite& Swarm::site_begins(Worker& worker) {
  SwarmSite& site = sites_.at(worker.index());
  site.reactor = &worker.reactor();
  note_baseline(site);
  return site;
}

/// All its records were told; what its reactor was made with is still there.
void Swarm::site_ends(SwarmSite& site) {
  site.stopping = true;
  site.listens = false;
  judge_site(site);
  if (site.handlers != 0) problem(nullptr, "a reactor's end tells every life", std::to_string(site.handlers) + " are left");
  site.ending = true;
  site.door = nullptr;
  site.reactor = nullptr;
}

/// To the workers, in front of what stops them or right behind it: it is noted when it happens.
void Swarm::mail_stop(Duration drain) {
  for (SwarmSite& site : sites_) {
    if (site.reactor == nullptr) continue;
    const auto posted = site.reactor->mailbox().post([this, &site, drain] {
      enter();
      site.stops_at = std::min(site.stops_at, now() + drain);
      note_stop(site, drain);
    });
    if (!posted) problem(nullptr, "a post is taken while the reactor lives", describe(posted.error()));
  }
}

void Swarm::stop_server(bool by_signal) {
  for (SwarmSite& site : sites_) {
    site.stopping = true;
    site.listens = false;
  }
  // The control reactor mails the stop in one turn with this.
  if (const auto posted = server_->control().mailbox().post([this] { mail_stop(plan.drain); }); !posted)
    problem(nullptr, "a post is taken while the reactor lives", describe(posted.error()));
  if (by_signal) return world.raise(one_in(random, 2) ? SIGTERM : SIGINT);
  if (const auto stopped = server_->shutdown(plan.drain); !stopped)
    problem(nullptr, "shutdown() succeeds", describe(stopped.error()));
}

/// As its destructor does, with all that it has open.
void Swarm::end_server() {
  if (server_ == nullptr) return;
  for (SwarmSite& site : sites_) {
    site.stopping = true;
    site.listens = false;
  }
  mail_stop({});
  world.detach(server_->control());
  std::exchange(server_, nullptr).reset();
  for (const SwarmSite& site : sites_)
    if (site.reactor != nullptr) problem(nullptr, "a server's end is its reactors' end", site.address);
}

/// It has stopped by itself.
void Swarm::judge_server() {
  world.detach(server_->control());
  if (const auto ran = server_->run(); !ran) problem(nullptr, "a server's run ends well", describe(ran.error()));
  std::uint64_t opened = 0;
  for (const SwarmSite& site : sites_) opened += site.opened;
  const ReactorCounters& counters = server_->counters();
  if (counters.opened != opened || counters.closed != opened)
    problem(nullptr, "a server's counters are the sum of its reactors'",
            std::to_string(counters.opened) + " opened, " + std::to_string(counters.closed) + " closed instead of " +
                std::to_string(opened));
}

}  // namespace vigil::tools
