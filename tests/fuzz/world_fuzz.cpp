// A small simulated world that the input drives: what peers, hosts and the path do, what the handlers do, and when. Expected of
// the library: one record for each life and none early, payload in order and before the verdict, nothing left at the end.
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "expect.hpp"
#include "input.hpp"
#include "target.hpp"
#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Duration;
using vigil::fuzz::expect;
using vigil::fuzz::Input;
namespace sim = vigil::sim;

constexpr std::size_t peers_max = 12;
constexpr std::size_t text_max = 20'000;

/// What every stream says, from its first byte on.
char byte_at(std::uint64_t place) { return static_cast<char>(place * 0x9e3779b97f4a7c15U >> 56); }

struct Life {
  std::uint64_t socket = 0;
  std::uint64_t received = 0;
  int records = 0;
};

/// What is shared by all handlers, and outlives them.
struct Scene {
  Scene(Input& its_input, const sim::WorldOptions& options) : input(its_input), world(options) {}

  Input& input;
  sim::World world;
  std::vector<Life> lives;
  Duration receive_timeout{};
  int handlers = 0;
};

class Handler {
 public:
  Handler(Scene& scene, Connection& connection) : scene_(&scene), life_(scene.lives.size()) {
    scene.lives.push_back({scene.world.life(connection.descriptor())});
    ++scene.handlers;
  }
  Handler(Handler&& other) noexcept : scene_(other.scene_), life_(other.life_) { ++scene_->handlers; }
  ~Handler() { --scene_->handlers; }

  std::size_t on_receive(Connection& connection, Bytes bytes) {
    Life& life = scene_->lives[life_];
    expect(life.records == 0, "nothing is received after the record");
    const std::string_view text = bytes.text();
    for (std::size_t index = 0; index < text.size(); ++index)
      expect(text[index] == byte_at(life.received + index), "bytes come in order, none twice and none lost");
    const std::size_t consumed = scene_->input.one_in(8) ? text.size() / 2 : text.size();
    life.received += consumed;
    act(connection, consumed);
    return consumed;
  }
  void on_peer_finished(Connection& connection) {
    if (scene_->input.flag()) connection.close();
  }
  void on_close(Connection& connection, const CloseRecord& record) {
    Life& life = scene_->lives[life_];
    expect(++life.records == 1, "a life has one record");
    const sim::Truth truth = scene_->world.truth(life.socket);
    expect(truth.is_closed, "a life is told when its socket is closed");
    expect(record.received == truth.read, "the record counts what was read");
    expect(record.handed_to_kernel == truth.taken, "the record counts what the kernel took");
    expect(record.left_unread == truth.unread(), "the record counts what was left unread");
    if (record.reason == CloseReason::peer_finished)
      expect(truth.end_arrived_at.has_value(), "the peer has finished if that is the reason");
    if (record.reason == CloseReason::peer_reset) expect(truth.error != 0, "the peer has reset it if that is the reason");
    if (record.reason == CloseReason::receive_timed_out)
      expect(connection.silence() >= scene_->receive_timeout, "no receive deadline is told early");
  }

 private:
  void act(Connection& connection, std::size_t size) {
    switch (scene_->input.below(8)) {
      case 0:
        connection.close();
        break;
      case 1:
        connection.abort();
        break;
      case 2:
        connection.pause_reading();
        break;
      case 3:
        connection.finish();
        break;
      case 4:
        scene_->world.spend(Duration(scene_->input.below(2'000'000'000)));
        break;
      default:
        connection.send(std::string(size, 'e'));
        break;
    }
  }

  Scene* scene_;
  std::size_t life_;
};

void act(Scene& scene, vigil::Reactor& reactor, std::vector<sim::Peer*>& peers) {
  Input& input = scene.input;
  sim::World& world = scene.world;
  sim::Host& there = world.host("10.0.0.2");
  const auto some_peer = [&]() -> sim::Peer* { return peers.empty() ? nullptr : peers[input.below(peers.size())]; };
  switch (input.below(14)) {
    case 0:
    case 1:
      if (peers.size() < peers_max) peers.push_back(&there.connect("10.0.0.1:7000"));
      break;
    case 2:
    case 3:
    case 4:
      if (sim::Peer* peer = some_peer(); peer != nullptr && peer->sent_bytes() < text_max) {
        std::string text(1 + input.of_any_size(12), '\0');
        for (std::size_t index = 0; index < text.size(); ++index) text[index] = byte_at(peer->sent_bytes() + index);
        peer->send(text);
      }
      break;
    case 5:
      if (sim::Peer* peer = some_peer()) input.flag() ? peer->finish() : peer->close();
      break;
    case 6:
      if (sim::Peer* peer = some_peer()) peer->reset();
      break;
    case 7:
      if (sim::Peer* peer = some_peer()) input.flag() ? peer->stop_reading() : peer->read_on();
      break;
    case 8:
      world.path(world.local(), there).way = static_cast<sim::Way>(input.below(10));
      break;
    case 9:
      world.path(there, world.local()).way = static_cast<sim::Way>(input.below(10));
      break;
    case 10:
      input.flag() ? there.hang() : there.resume();
      break;
    case 11:
      if (input.one_in(4)) {
        peers.clear();
        there.reboot();
      }
      break;
    case 12:
      world.set_chance(static_cast<sim::Fault>(input.below(15)), static_cast<double>(input.below(256)) / 512);
      break;
    default:
      world.run_for(Duration(input.of_any_size(36)));
      break;
  }
  expect(reactor.counters().opened >= reactor.counters().closed, "no more lives end than began");
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Scene scene(input, {.seed = input.bits(16)});
  vigil::ListenerOptions options;
  scene.receive_timeout = Duration(1'000'000 + input.of_any_size(33));
  options.timeouts.receive = scene.receive_timeout;
  options.timeouts.send = Duration(1'000'000 + input.of_any_size(33));
  options.backlog_bytes_max = 1 + input.of_any_size(16);
  {
    vigil::Reactor reactor({.receive_buffer_bytes = 1024 + input.of_any_size(14), .reads_per_turn = 1 + input.below(8)});
    vigil::Listener<Handler> listener(reactor, options, [&](Connection& connection) { return Handler(scene, connection); });
    expect(static_cast<bool>(listener.listen("10.0.0.1:7000")), "a listener listens");
    scene.world.attach(reactor);
    std::vector<sim::Peer*> peers;
    while (!input.empty()) act(scene, reactor, peers);
    scene.world.run_for(1min);
    listener.close();
    expect(static_cast<bool>(reactor.shutdown(1s)), "a reactor shuts down");
    scene.world.run_for(1h);
    expect(reactor.counters().opened == reactor.counters().closed, "every life ends");
    expect(sim::World::pending_timers(reactor) == 0, "no timer is left");
    expect(sim::World::blocks_in_use(reactor) == 0, "no block of memory is left");
  }
  for (const Life& life : scene.lives) expect(life.records == 1, "every life has its record");
  expect(scene.handlers == 0, "every handler is gone");
  expect(scene.world.open_descriptors() == 0, "every descriptor is closed");
  expect(scene.world.calls_on_closed() == 0, "no closed descriptor is used");
  return 0;
}
