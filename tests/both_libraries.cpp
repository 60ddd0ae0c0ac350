// A program that was linked with vigil and vigil_sim: it must not exist, or be simulated throughout. Exit status 0: it is.
#include <chrono>

#include "vigil/sim.hpp"
#include "vigil/vigil.hpp"

using namespace std::chrono_literals;

namespace {

struct Echo {
  void on_receive(vigil::Connection& peer, vigil::Bytes bytes) { peer.send(bytes); }
  void on_close(vigil::Connection&, const vigil::CloseRecord&) {}
};

}  // namespace

int main() {
  vigil::sim::World world;
  vigil::Reactor reactor;
  vigil::Listener<Echo> listener(reactor);
  if (auto bound = listener.listen("10.0.0.1:7000"); !bound) return vigil::report(bound.error());
  world.attach(reactor);
  vigil::sim::Peer& client = world.host("10.0.0.2").connect("10.0.0.1:7000");
  client.send("hello");
  world.run_for(1s);
  return client.received() == "hello" ? 0 : 2;
}
