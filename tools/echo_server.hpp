// The server of vigil-echo: sends back what it receives, in one of several ways.
//
// It knows neither the command line nor the output, and not which library it is linked with: vigil-echo serves the kernel's
// sockets with it, tests/echo_server_sim_test.cpp those of a simulated world. What happens is told to an observer.
//
// Thread and ownership: as vigil::Server (server.hpp); what `make_observer` refers to must outlive the server. An observer is
// made, told and destroyed on the thread of its reactor.
//
//   const auto server = make_echo_server({.server = {.reactors = 4}}, [&](Worker&) { return std::make_unique<Diary>(lines); });
//   if (auto started = server->start("127.0.0.1:7000"); !started) return report(started.error());
//   return report(server->run());
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "vigil/vigil.hpp"

namespace vigil::tools {

struct EchoOptions {
  ServerOptions server{};
  std::size_t message_bytes = 0;  ///< messages have this size and each gets a send of its own; 0: as the bytes come
  Duration reply_delay{};         ///< each reply waits this long before it is sent
  bool flood = false;             ///< keeps the send queue full instead of replying
  Duration stats{};               ///< the counters are told this often, and at the end; 0: never
};

/// What the server of one reactor tells. Each connection has an id, which no other connection of any reactor has.
class EchoObserver {
 public:
  virtual ~EchoObserver() = default;
  virtual void opened(std::uint64_t id, const Address& peer) = 0;
  virtual void closed(std::uint64_t id, const Address& peer, const CloseRecord& record) = 0;
  virtual void accept_timed_out(Duration after) = 0;
  virtual void accept_paused(const Error& error, Duration retry) = 0;
  virtual void accept_resumed(Duration after) = 0;
  virtual void shed(const CloseRecord& record) = 0;
  virtual void stats(const ReactorCounters& counters) = 0;
};

using MakeEchoObserver = std::function<std::unique_ptr<EchoObserver>(Worker&)>;

/// Not yet started.
[[nodiscard]] std::shared_ptr<ServerBase> make_echo_server(const EchoOptions& options, MakeEchoObserver make_observer);

}  // namespace vigil::tools
