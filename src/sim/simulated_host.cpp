#include "sim/simulated_host.hpp"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "sim/network.hpp"
#include "sim/tcp_constants.hpp"

namespace vigil::sim {
namespace {

constexpr std::uint16_t first_ephemeral_port = 32768, last_ephemeral_port = 60999;  // net.ipv4.ip_local_port_range
constexpr int ephemeral_ports = last_ephemeral_port - first_ephemeral_port + 1;
constexpr std::size_t default_buffer = 128 * 1024;

}  // namespace

/// A script's server: who comes gets a peer. Shared, since on_accept may end it.
struct SimulatedHost::PeerListener final : TcpOwner, std::enable_shared_from_this<PeerListener> {
  PeerListener(SimulatedHost& its_host, Callback<void(Peer&)> callback) : host(its_host), on_accept(std::move(callback)) {}

  void tcp_changed(std::uint32_t) override {
    if (std::exchange(is_accepting, true)) return;
    const auto self = shared_from_this();
    while (!is_over && !is_paused && !host.is_hung && !socket.queue.empty()) {
      if (!on_accept) misused("nobody accepts: the callback is empty", host.address_ + ':' + std::to_string(socket.at.port));
      const std::shared_ptr<TcpEnd> end = std::move(socket.queue.front());
      socket.queue.pop_front();
      ScriptedPeer& peer = host.network.make_peer(host);
      host.peers_.push_back(&peer);
      peer.take(end);
      ++host.universe.script_calls;
      on_accept(peer);
      peer.look();
    }
    is_accepting = false;
  }

  SimulatedHost& host;
  ListeningSocket socket;
  Callback<void(Peer&)> on_accept;
  bool is_paused = false;
  bool is_accepting = false;
  bool is_over = false;
};

SimulatedHost::SimulatedHost(Universe& its_universe, Network& its_network, std::string address, std::size_t its_index)
    : universe(its_universe),
      network(its_network),
      defaults{.send_capacity = default_buffer, .receive_capacity = default_buffer},
      index(its_index),
      address_(std::move(address)),
      next_port_(static_cast<std::uint16_t>(universe.random.between(first_ephemeral_port, last_ephemeral_port))) {}

SimulatedHost::~SimulatedHost() = default;

// Addresses and ports ---------------------------------------------------------------------------------------------------------

void SimulatedHost::add_address(std::string_view ip) {
  ips_.push_back(parse_ip(ip));
  network.name(*this, ips_.back());
}

void SimulatedHost::set_buffers(std::size_t send_bytes, std::size_t receive_bytes) {
  defaults.send_capacity = send_bytes;
  defaults.receive_capacity = receive_bytes;
}

bool SimulatedHost::owns(const Ip& ip) const {
  return ip.is_any() || ip.is_loopback() || std::find(ips_.begin(), ips_.end(), ip) != ips_.end();
}

std::optional<Ip> SimulatedHost::source_for(const Ip& remote) const {
  if (remote.is_loopback()) return remote;
  for (const Ip& ip : ips_)
    if (ip.is_v4() == remote.is_v4()) return ip;
  return std::nullopt;
}

std::uint16_t SimulatedHost::free_port() {
  for (int tries = ephemeral_ports; tries > 0; --tries) {
    next_port_ = next_port_ >= last_ephemeral_port ? first_ephemeral_port : static_cast<std::uint16_t>(next_port_ + 1);
    if (!listeners_.contains(next_port_)) break;
  }
  return next_port_;
}

std::uint16_t SimulatedHost::free_port(const Ip& source, const Endpoint& remote) {
  for (int tries = ephemeral_ports; tries > 0; --tries)
    if (const std::uint16_t port = free_port(); !has_flow({{source, port}, remote})) return port;
  return 0;
}

bool SimulatedHost::is_free(const Endpoint& wanted, bool takes_v4_too, bool may_share) const {
  const auto [begin, end] = listeners_.equal_range(wanted.port);
  return std::none_of(begin, end, [&](const auto& entry) {
    const ListeningSocket& other = *entry.second.socket;
    if (may_share && entry.second.may_share) return false;
    if (wanted.ip.is_v4() != other.at.ip.is_v4() && !takes_v4_too && !other.takes_v4_too) return false;
    return wanted.ip == other.at.ip || wanted.ip.is_any() || other.at.ip.is_any();
  });
}

// Listeners -------------------------------------------------------------------------------------------------------------------

void SimulatedHost::add_listener(ListeningSocket& socket, bool may_share) {
  listeners_.emplace(socket.at.port, Listening{&socket, may_share});
}

void SimulatedHost::remove_listener(ListeningSocket& socket) {
  std::erase_if(listeners_, [&](const auto& entry) { return entry.second.socket == &socket; });
  std::vector<std::shared_ptr<TcpEnd>> orphans(socket.queue.begin(), socket.queue.end());
  socket.queue.clear();
  for (const auto& [flow, end] : flows_)
    if (end->listener == &socket) orphans.push_back(end);
  for (const auto& end : orphans) {
    end->listener = nullptr;
    end->reset();
  }
}

ListeningSocket* SimulatedHost::listener_for(const Segment& syn) const {
  std::vector<ListeningSocket*> fitting;
  const auto [begin, end] = listeners_.equal_range(syn.to.port);
  for (auto entry = begin; entry != end; ++entry) {
    ListeningSocket& socket = *entry->second.socket;
    const bool family_fits = socket.at.ip.is_v4() == syn.to.ip.is_v4() || socket.takes_v4_too;
    if (family_fits && (socket.at.ip.is_any() || socket.at.ip == syn.to.ip)) fitting.push_back(&socket);
  }
  // SO_REUSEPORT: by the connection, so that a handshake stays with one of them.
  return fitting.empty() ? nullptr : fitting[FlowHash{}({syn.to, syn.from}) % fitting.size()];
}

void SimulatedHost::answer_syn(const Segment& segment) {
  ListeningSocket* listener = listener_for(segment);
  if (listener == nullptr) return refuse(segment);
  if (static_cast<int>(listener->queue.size()) + listener->half_open > listener->backlog)
    return universe.happened(Fault::queue_full);  // it will knock again
  const auto end = open_flow({segment.to, segment.from}, listener->settings, segment.conversation, false);
  end->listener = listener;
  ++listener->half_open;
  end->accept_syn(segment);
}

void SimulatedHost::handshake_done(TcpEnd& end, bool established) {
  ListeningSocket* listener = std::exchange(end.listener, nullptr);
  if (listener == nullptr) return;
  --listener->half_open;
  if (!established) return;
  listener->queue.push_back(end.shared_from_this());
  if (listener->owner != nullptr) listener->owner->tcp_changed(POLLIN);
}

// Segments --------------------------------------------------------------------------------------------------------------------

std::shared_ptr<TcpEnd> SimulatedHost::open_flow(const Flow& flow, const TcpSettings& settings,
                                                 std::shared_ptr<Conversation> about, bool is_client) {
  auto end = std::make_shared<TcpEnd>(*this, flow, settings, std::move(about), is_client);
  flows_[flow] = end;
  return end;
}

void SimulatedHost::arrive(const Segment& segment) {
  if (!is_there) return;
  universe.mix(segment.sequence ^ segment.acknowledged << 20 ^ segment.bytes.size() << 40);
  if (universe.trace) universe.trace_segment(segment);
  const auto found = flows_.find({segment.to, segment.from});
  if (found != flows_.end()) {
    const std::shared_ptr<TcpEnd> end = found->second;
    if (!end->gives_way_to(segment)) return end->arrive(segment);
    end->give_way();
  }
  if (segment.reset) return;
  if (segment.syn && !segment.ack && owns(segment.to.ip)) return answer_syn(segment);
  refuse(segment);
}

void SimulatedHost::refuse(const Segment& segment) {
  Struck nobodys;
  network.send(*this, segment.refusal(), nobodys);
}

void SimulatedHost::path_error(const Flow& flow, int error) {
  const auto found = flows_.find(flow);
  if (found == flows_.end()) return;
  const std::shared_ptr<TcpEnd> end = found->second;
  end->path_error(error);
}

// Peers -----------------------------------------------------------------------------------------------------------------------

Peer& SimulatedHost::connect(std::string_view address, std::uint16_t source_port) {
  const Endpoint remote = parse_endpoint(address);
  const std::optional<Ip> source = source_for(remote.ip);
  if (!source) misused("the host has no address of that family", address);
  Endpoint local{*source, source_port};
  if (source_port != 0 && has_flow({local, remote})) misused("that source port is in use", address);
  ScriptedPeer& peer = network.make_peer(*this);
  peers_.push_back(&peer);
  if (source_port == 0) local.port = free_port(local.ip, remote);
  if (local.port == 0) {
    peer.fail(EADDRNOTAVAIL);
    return peer;
  }
  const auto about = std::make_shared<Conversation>();
  about->client.peer = &peer;
  const auto end = open_flow({local, remote}, defaults, about, true);
  peer.take(end);
  if (const int error = network.route_error(*this, remote.ip); error != 0) {
    end->path_error(error);
  } else {
    end->connect();
  }
  return peer;
}

void SimulatedHost::listen(std::uint16_t port, Callback<void(Peer&)> on_accept, int backlog) {
  const Endpoint everywhere{.ip = {}, .port = port};
  if (!is_free(everywhere, true, false)) misused("somebody listens on that port", address_);
  auto listener = std::make_shared<PeerListener>(*this, std::move(on_accept));
  listener->socket = {.at = everywhere, .takes_v4_too = true, .backlog = backlog, .settings = defaults, .owner = listener.get()};
  add_listener(listener->socket, false);
  peer_listeners_[port] = std::move(listener);
}

SimulatedHost::PeerListener& SimulatedHost::peer_listener(std::uint16_t port) const {
  const auto found = peer_listeners_.find(port);
  if (found == peer_listeners_.end()) misused("nobody listens on that port", address_ + ':' + std::to_string(port));
  return *found->second;
}

void SimulatedHost::pause_accepting(std::uint16_t port) { peer_listener(port).is_paused = true; }

void SimulatedHost::resume_accepting(std::uint16_t port) {
  PeerListener& listener = peer_listener(port);
  listener.is_paused = false;
  listener.tcp_changed(POLLIN);
}

void SimulatedHost::stop_listening(std::uint16_t port) {
  const auto found = peer_listeners_.find(port);
  if (found == peer_listeners_.end()) return;
  const std::shared_ptr<PeerListener> listener = std::move(found->second);
  peer_listeners_.erase(found);
  listener->is_over = true;
  remove_listener(listener->socket);
}

// Faults ----------------------------------------------------------------------------------------------------------------------

void SimulatedHost::hang() {
  if (is_hung) return;
  is_hung = true;
  universe.happened(Fault::host_hung);
}

void SimulatedHost::resume() {
  if (!std::exchange(is_hung, false)) return;
  for (std::size_t at = 0; at < peers_.size(); ++at) peers_[at]->look();  // by index: a callback may connect
  std::vector<std::uint16_t> ports;
  for (const auto& [port, listener] : peer_listeners_) ports.push_back(port);
  for (const std::uint16_t port : ports)
    if (const auto found = peer_listeners_.find(port); found != peer_listeners_.end()) found->second->tcp_changed(POLLIN);
}

void SimulatedHost::kill() {
  universe.happened(Fault::processes_killed);
  while (!peer_listeners_.empty()) stop_listening(peer_listeners_.begin()->first);
  for (ScriptedPeer* peer : std::exchange(peers_, {})) peer->die();
  if (!runs_vigil) is_hung = false;  // who comes now is none of those that hung
}

void SimulatedHost::forget_everything() {
  if (runs_vigil) misused("vigil itself runs on this host", address_);
  for (ScriptedPeer* peer : std::exchange(peers_, {})) peer->vanish();
  for (auto& [flow, end] : flows_) end->vanish();
  flows_.clear();
  listeners_.clear();
  for (const auto& [port, listener] : peer_listeners_) listener->is_over = true;
  peer_listeners_.clear();
}

void SimulatedHost::vanish() {
  universe.happened(Fault::host_vanished);
  forget_everything();
  is_there = is_hung = false;
}

void SimulatedHost::reboot() {
  universe.happened(Fault::host_rebooted);
  forget_everything();
  is_there = true;
  is_hung = false;
}

}  // namespace vigil::sim
