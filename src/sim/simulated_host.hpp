// One machine: which connections and listeners its kernel knows, and what it answers to a segment.
//
// Thread: the world's. Ownership: the network's.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "sim/segment.hpp"
#include "sim/tcp_end.hpp"
#include "sim/universe.hpp"

namespace vigil::sim {

class Network;
class ScriptedPeer;

/// A socket that listens: its queue, and who is told.
struct ListeningSocket {
  Endpoint at;
  bool takes_v4_too = false;
  int backlog = 0;
  TcpSettings settings{};
  TcpOwner* owner = nullptr;
  std::deque<std::shared_ptr<TcpEnd>> queue{};  // established, not yet accepted
  int half_open = 0;
};

class SimulatedHost final : public Host {
 public:
  SimulatedHost(Universe& universe, Network& network, std::string address, std::size_t index);
  ~SimulatedHost();

  // --- the script's
  [[nodiscard]] std::string_view address() const override { return address_; }
  void add_address(std::string_view ip) override;
  Peer& connect(std::string_view address, std::uint16_t source_port) override;
  void listen(std::uint16_t port, Callback<void(Peer&)> on_accept, int backlog) override;
  void pause_accepting(std::uint16_t port) override;
  void resume_accepting(std::uint16_t port) override;
  void stop_listening(std::uint16_t port) override;
  void hang() override;
  void resume() override;
  void kill() override;
  void vanish() override;
  void reboot() override;
  void limit_descriptors(std::size_t open_at_most) override { descriptors_max = open_at_most; }
  void set_buffers(std::size_t send_bytes, std::size_t receive_bytes) override;

  // --- its kernel's
  [[nodiscard]] std::shared_ptr<TcpEnd> open_flow(const Flow& flow, const TcpSettings& own, std::shared_ptr<Conversation> about,
                                                  bool is_client);
  [[nodiscard]] bool has_flow(const Flow& flow) const { return flows_.contains(flow); }
  void forget(const Flow& flow) { flows_.erase(flow); }
  void arrive(const Segment& segment);
  void refuse(const Segment& segment);  ///< with an RST
  /// The path's answer to a segment of ours.
  void path_error(const Flow& flow, int error);
  /// A handshake that a listener had begun is over.
  void handshake_done(TcpEnd& end, bool established);
  [[nodiscard]] std::uint16_t free_port();
  /// For a connection from `source` to `remote`; 0: all are in use for it.
  [[nodiscard]] std::uint16_t free_port(const Ip& source, const Endpoint& remote);
  [[nodiscard]] bool is_free(const Endpoint& wanted, bool takes_v4_too, bool may_share) const;
  void add_listener(ListeningSocket& socket, bool may_share);
  /// Who waits in its queue is reset.
  void remove_listener(ListeningSocket& socket);
  /// The address that segments to `remote` come from; nothing: it has none of that family.
  [[nodiscard]] std::optional<Ip> source_for(const Ip& remote) const;
  [[nodiscard]] bool owns(const Ip& ip) const;

  Universe& universe;
  Network& network;
  TcpSettings defaults;
  bool is_hung = false;
  bool is_there = true;
  bool runs_vigil = false;
  std::size_t descriptors_max = SIZE_MAX;
  std::size_t descriptors = 0;
  const std::size_t index;

 private:
  struct PeerListener;

  void answer_syn(const Segment& segment);
  void forget_everything();
  [[nodiscard]] PeerListener& peer_listener(std::uint16_t port) const;
  [[nodiscard]] ListeningSocket* listener_for(const Segment& syn) const;

  std::string address_;
  std::vector<Ip> ips_;
  std::unordered_map<Flow, std::shared_ptr<TcpEnd>, FlowHash> flows_;
  struct Listening {
    ListeningSocket* socket;
    bool may_share;
  };
  std::multimap<std::uint16_t, Listening> listeners_;
  std::map<std::uint16_t, std::shared_ptr<PeerListener>> peer_listeners_;
  std::vector<ScriptedPeer*> peers_;
  std::uint16_t next_port_;
};

}  // namespace vigil::sim
