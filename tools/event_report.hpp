// What a tool tells of its connections: a line for people, or with `--json` one JSON object a line.
//
// Every JSON line has `event` and `time_ns` (CLOCK_MONOTONIC), and from a server the number of its reactor.
//
// Thread: the reactor's. Ownership: borrows the output and the reactor; made before the reactor, it can still tell what the
// reactor's destructor closes.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "line_output.hpp"
#include "vigil/address.hpp"
#include "vigil/close_record.hpp"
#include "vigil/reactor.hpp"
#include "vigil/result.hpp"

namespace vigil::tools {

enum class Format { people, json };

class EventReport {
 public:
  /// Stats are counted from here. With `one_of_several` the reactor's number stands in lines for people too.
  EventReport(LineOutput& output, const Reactor& reactor, Format format, std::optional<int> reactor_number = std::nullopt,
              bool one_of_several = false);

  void listening(const Address& address);
  void opened(std::uint64_t id, const Address& peer);
  void closed(std::uint64_t id, const Address& peer, const CloseRecord& record);
  void accept_timed_out(Duration after);
  void accept_paused(const Error& error, Duration retry);
  void accept_resumed(Duration after);
  void shed(const CloseRecord& record);
  /// JSON has every counter; people are told what moved since the last time.
  void stats(const ReactorCounters& counters);

  /// A line for people only.
  void remark(const std::string& line);
  /// A JSON object of the tool's own: `event` must be in it, the time is added.
  void json(nlohmann::ordered_json object);

  [[nodiscard]] bool is_json() const { return format_ == Format::json; }

 private:
  [[nodiscard]] nlohmann::ordered_json begin(const char* event) const;
  void print(const nlohmann::ordered_json& object);
  void say(const std::string& line);

  LineOutput& output_;
  const Reactor& reactor_;
  Format format_;
  std::optional<int> reactor_number_;
  std::string said_by_;  // in front of each line for people
  Instant last_stats_at_;
  ReactorCounters last_stats_;
};

}  // namespace vigil::tools
