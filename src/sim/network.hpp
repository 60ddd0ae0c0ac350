// The hosts of a world and the paths between them: what becomes of a segment on its way.
//
// Thread: the world's.
#pragma once

#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "sim/scripted_peer.hpp"
#include "sim/simulated_host.hpp"

namespace vigil::sim {

/// Of a text the script gives; one that is no IP address is its fault.
[[nodiscard]] Ip parse_ip(std::string_view text);
[[nodiscard]] Endpoint parse_endpoint(std::string_view text);

class Network {
 public:
  explicit Network(Universe& universe);
  ~Network();

  /// Made when it is first named.
  SimulatedHost& host(std::string_view ip);
  [[nodiscard]] SimulatedHost* host_of(const Ip& ip, SimulatedHost& asking) const;
  void name(SimulatedHost& host, const Ip& ip);
  [[nodiscard]] Path& path(const SimulatedHost& from, const SimulatedHost& to);
  /// 0, or the errno with which the sender's own routes refuse it.
  /// `struck` notes what becomes of it.
  int send(SimulatedHost& from, Segment&& segment, Struck& struck);
  /// What connect(2) answers at once.
  [[nodiscard]] int route_error(SimulatedHost& from, const Ip& to);
  ScriptedPeer& make_peer(SimulatedHost& host);

 private:
  struct Line {
    Path path;
    Instant busy_until{};    // while a segment before this one is put on the wire
    Instant last_arrival{};  // nothing overtakes
  };
  Line& line(const SimulatedHost& from, const SimulatedHost& to);
  void carry(SimulatedHost& to, Line& line, Segment&& segment, bool can_fail, Struck& struck);
  void deliver(SimulatedHost& to, Instant at, Segment&& segment);
  void reject(SimulatedHost& from, Line& line, const Segment& segment);

  void happened(Fault fault, Struck& struck);
  void lose(Struck& struck);

  Universe& universe_;
  std::vector<std::unique_ptr<SimulatedHost>> hosts_;
  std::map<Ip, SimulatedHost*> by_ip_;
  std::map<std::pair<std::size_t, std::size_t>, std::unique_ptr<Line>> lines_;
  std::vector<std::unique_ptr<ScriptedPeer>> peers_;
};

}  // namespace vigil::sim
