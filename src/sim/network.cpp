#include "sim/network.hpp"

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "sim/tcp_constants.hpp"
#include "vigil/address.hpp"

namespace vigil::sim {
namespace {

/// What the sender's own routes say; 0: nothing.
int refusal(Way way) {
  switch (way) {
    case Way::no_route:
      return ENETUNREACH;
    case Way::unreachable_route:
      return EHOSTUNREACH;
    case Way::prohibited_route:
      return EACCES;
    case Way::blackhole_route:
      return EINVAL;
    default:
      return 0;
  }
}

/// What somebody on the way answers by ICMP (icmp(7); tcp_v4_err); 0: nothing.
int rejection(Way way) {
  switch (way) {
    case Way::port_unreachable:
      return ECONNREFUSED;
    case Way::host_unreachable:
    case Way::prohibited:
      return EHOSTUNREACH;
    case Way::net_unreachable:
      return ENETUNREACH;
    default:
      return 0;
  }
}

}  // namespace

Network::Network(Universe& universe) : universe_(universe) {}
Network::~Network() = default;

SimulatedHost& Network::host(std::string_view ip) {
  const Ip wanted = parse_ip(ip);
  if (const auto found = by_ip_.find(wanted); found != by_ip_.end()) return *found->second;
  hosts_.push_back(std::make_unique<SimulatedHost>(universe_, *this, std::string(ip), hosts_.size()));
  SimulatedHost& made = *hosts_.back();
  made.add_address(ip);
  return made;
}

SimulatedHost* Network::host_of(const Ip& ip, SimulatedHost& asking) const {
  if (ip.is_loopback()) return &asking;
  const auto found = by_ip_.find(ip);
  return found == by_ip_.end() ? nullptr : found->second;
}

void Network::name(SimulatedHost& host, const Ip& ip) {
  if (!by_ip_.emplace(ip, &host).second) misused("the address belongs to another host", Endpoint{ip, 0}.text());
}

Path& Network::path(const SimulatedHost& from, const SimulatedHost& to) { return line(from, to).path; }

Network::Line& Network::line(const SimulatedHost& from, const SimulatedHost& to) {
  std::unique_ptr<Line>& found = lines_[{from.index, to.index}];
  if (found == nullptr) found = std::make_unique<Line>();
  return *found;
}

int Network::route_error(SimulatedHost& from, const Ip& to) {
  const SimulatedHost* there = host_of(to, from);
  const int error = there == nullptr ? 0 : refusal(path(from, *there).way);
  if (error != 0) universe_.happened(Fault::route_refused);
  return error;
}

/// Of a segment that never comes.
void Network::happened(Fault fault, Struck& struck) {
  universe_.happened(fault);
  ++struck.faults;
  lose(struck);
}

void Network::lose(Struck& struck) {
  ++struck.lost;
  struck.lost_at = universe_.now;
}

int Network::send(SimulatedHost& from, Segment&& segment, Struck& struck) {
  if (!from.is_there) return 0;
  SimulatedHost* to = host_of(segment.to.ip, from);
  Line* way = to == nullptr ? nullptr : &line(from, *to);
  if (way != nullptr && way->path.way != Way::open) {
    if (const int error = refusal(way->path.way); error != 0) {
      happened(Fault::route_refused, struck);
      return error;
    }
    if (way->path.way == Way::cut) {
      happened(Fault::cut, struck);
    } else {
      happened(Fault::path_rejected, struck);
      reject(from, *way, segment);
    }
    return 0;
  }
  if (to == nullptr || !to->is_there) {
    // The link looks for it in vain, and says so to the sender alone.
    lose(struck);
    universe_.after(no_such_neighbour, [&from, flow = Flow{segment.from, segment.to}] { from.path_error(flow, EHOSTUNREACH); });
    return 0;
  }
  carry(*to, *way, std::move(segment), &from != to, struck);
  return 0;
}

void Network::carry(SimulatedHost& to, Line& line, Segment&& segment, bool can_fail, Struck& struck) {
  const Path& path = line.path;
  if (can_fail && path.loss > 0 && universe_.random.happens(path.loss)) return happened(Fault::lost, struck);
  if (can_fail && universe_.strikes(Fault::lost, struck.faults)) return lose(struck);
  Instant leaves = universe_.now;
  if (path.bytes_per_second > 0) {
    constexpr std::uint64_t headers = 40;
    const auto nanoseconds = (segment.bytes.size() + headers) * 1'000'000'000 / path.bytes_per_second;
    leaves = line.busy_until = std::max(line.busy_until, leaves) + Duration(nanoseconds);
  }
  Instant arrives = leaves + path.latency;
  if (path.jitter > Duration::zero()) arrives += universe_.random.between(Duration::zero(), path.jitter);
  if (can_fail && universe_.strikes(Fault::delayed, struck.faults)) {
    arrives += universe_.random.between(Duration(1), universe_.options.longest_delay);
    struck.slow_until = std::max(struck.slow_until, arrives);
  } else {
    arrives = line.last_arrival = std::max(arrives, line.last_arrival);
  }
  if (arrives - universe_.now > slow_trip) struck.slow_until = std::max(struck.slow_until, arrives);
  if (can_fail && universe_.strikes(Fault::duplicated, struck.faults)) deliver(to, arrives + path.latency, Segment(segment));
  deliver(to, arrives, std::move(segment));
}

void Network::deliver(SimulatedHost& to, Instant at, Segment&& segment) {
  universe_.agenda.add(at, [&to, segment = std::move(segment)] { to.arrive(segment); });
}

void Network::reject(SimulatedHost& from, Line& line, const Segment& segment) {
  if (const int error = rejection(line.path.way); error != 0)
    return universe_.after(line.path.latency,
                           [&from, error, flow = Flow{segment.from, segment.to}] { from.path_error(flow, error); });
  if (segment.reset) return;
  universe_.after(line.path.latency, [&from, answer = segment.refusal()] { from.arrive(answer); });
}

ScriptedPeer& Network::make_peer(SimulatedHost& host) {
  peers_.push_back(std::make_unique<ScriptedPeer>(host));
  return *peers_.back();
}

}  // namespace vigil::sim
