// The options that every tool with connections has: how long each may wait, how slow it may be, and its heartbeat.
//
// Thread: one. Ownership: the timeouts and the heartbeat belong to the caller and must live until settle() has returned.
//
//   ConnectionOptions common(command_line, timeouts, heartbeat);
//   if (const auto status = command_line.parse(argc, argv)) return *status;
//   if (const auto status = common.settle(address)) return *status;
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "vigil/address.hpp"
#include "vigil/heartbeat_options.hpp"
#include "vigil/timeouts.hpp"

namespace vigil::tools {

class ConnectionOptions {
 public:
  ConnectionOptions(CommandLine& command_line, Timeouts& timeouts, HeartbeatOptions& heartbeat);

  /// After parse(): fills in the rates and the heartbeat, for connections of this address. Nothing if the program is to go on,
  /// else its exit status.
  [[nodiscard]] std::optional<int> settle(const Address& address);

  /// Whether any of them was given.
  [[nodiscard]] bool given() const;

 private:
  void add_heartbeat();
  [[nodiscard]] std::optional<int> settle_rates();
  [[nodiscard]] std::optional<int> settle_heartbeat(const Address& address);

  CommandLine& command_line_;
  Timeouts& timeouts_;
  HeartbeatOptions& heartbeat_;
  std::uint64_t least_received_ = Rate::inherited;
  std::uint64_t least_sent_ = Rate::inherited;
  Duration grace_;
  Duration window_;
  CLI::Option* grace_option_ = nullptr;
  CLI::Option* window_option_ = nullptr;
  Duration heartbeat_interval_{};
  Duration heartbeat_budget_{};
  std::string ping_;
  PhiAccrual phi_;
  CLI::Option* interval_option_ = nullptr;
  CLI::Option* budget_option_ = nullptr;
  CLI::Option* ping_option_ = nullptr;
  CLI::Option* phi_option_ = nullptr;
  std::vector<CLI::Option*> heartbeat_options_;
  std::vector<CLI::Option*> options_;  // every one of them, these too
};

}  // namespace vigil::tools
