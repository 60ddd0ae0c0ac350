// The options that every tool with connections has: how long each may wait, and how slow it may be.
//
// Thread: one. Ownership: the timeouts belong to the caller and must live until settle() has returned.
//
//   ConnectionOptions common(command_line, timeouts);
//   if (const auto status = command_line.parse(argc, argv)) return *status;
//   if (const auto status = common.settle()) return *status;
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "command_line.hpp"
#include "vigil/timeouts.hpp"

namespace vigil::tools {

class ConnectionOptions {
 public:
  ConnectionOptions(CommandLine& command_line, Timeouts& into);

  /// After parse(): fills in the rates. Nothing if the program is to go on, else its exit status.
  [[nodiscard]] std::optional<int> settle();

  /// Whether any of them was given.
  [[nodiscard]] bool given() const;

 private:
  CommandLine& command_line_;
  Timeouts& timeouts_;
  std::uint64_t least_received_ = Rate::inherited;
  std::uint64_t least_sent_ = Rate::inherited;
  Duration grace_;
  Duration window_;
  CLI::Option* grace_option_ = nullptr;
  CLI::Option* window_option_ = nullptr;
  std::vector<CLI::Option*> options_;
};

}  // namespace vigil::tools
