#include "sim/universe.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sim/segment.hpp"

namespace vigil::sim {
namespace {

// In the order of the enumeration.
constexpr std::array<const char*, fault_count> fault_names{"interrupted",
                                                           "spurious_event",
                                                           "shuffled_events",
                                                           "late_wakeup",
                                                           "coarse_wakeup",
                                                           "stalled",
                                                           "no_descriptor",
                                                           "no_buffers",
                                                           "no_port",
                                                           "accept_error",
                                                           "partial_send",
                                                           "out_of_room",
                                                           "urgent_mark",
                                                           "lost",
                                                           "duplicated",
                                                           "delayed",
                                                           "cut",
                                                           "route_refused",
                                                           "path_rejected",
                                                           "descriptors_limited",
                                                           "queue_full",
                                                           "host_hung",
                                                           "host_vanished",
                                                           "host_rebooted",
                                                           "processes_killed",
                                                           "peer_reset",
                                                           "peer_stopped_reading",
                                                           "window_closed"};

}  // namespace

const char* to_string(Fault fault) { return fault_names.at(static_cast<std::size_t>(fault)); }

void misused(const char* what, std::string_view about) {
  std::fprintf(stderr, "vigil: a simulated world was asked for what can't be: %s (%.*s)\n", what, static_cast<int>(about.size()),
               about.data());
  std::abort();
}

/// Splitmix64 (Steele, Lea, Flood 2014): every seed is a good one.
std::uint64_t Random::next() {
  if (choices_.size() >= sizeof(std::uint64_t)) {
    std::uint64_t number = 0;
    std::memcpy(&number, choices_.data(), sizeof number);
    choices_ = choices_.without_first(sizeof number);
    return number;
  }
  std::uint64_t mixed = state_ += 0x9E3779B97F4A7C15U;
  mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9U;
  mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBU;
  return mixed ^ mixed >> 31;
}

std::uint64_t Random::below(std::uint64_t bound) { return bound == 0 ? 0 : next() % bound; }

Duration Random::between(Duration least, Duration most) {
  return least + Duration(static_cast<std::int64_t>(below(static_cast<std::uint64_t>((most - least).count()) + 1)));
}

bool Random::happens(double probability) {
  if (probability <= 0) return false;
  return static_cast<double>(next() >> 11) * 0x1p-53 < probability;
}

void Universe::trace_segment(const Segment& segment) {
  char line[240];
  std::snprintf(line, sizeof line, "%14.9f  %s > %s%s%s%s%s%s sequence %llu, acknowledged %llu, window %llu, %zu bytes",
                static_cast<double>(now.time_since_epoch().count()) * 1e-9, segment.from.text().c_str(),
                segment.to.text().c_str(), segment.syn ? " SYN" : "", segment.ack ? " ACK" : "", segment.fin ? " FIN" : "",
                segment.reset ? " RST" : "", segment.asks ? " probe" : "", static_cast<unsigned long long>(segment.sequence),
                static_cast<unsigned long long>(segment.acknowledged), static_cast<unsigned long long>(segment.window),
                segment.bytes.size());
  trace(line);
}

}  // namespace vigil::sim
