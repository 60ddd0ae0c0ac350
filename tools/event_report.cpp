#include "event_report.hpp"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "readable.hpp"

namespace vigil::tools {
namespace {

struct Counter {
  const char* name;
  std::uint64_t ReactorCounters::*value;
};

constexpr std::array counters_by_name{
    Counter{"turns", &ReactorCounters::turns},
    Counter{"events", &ReactorCounters::events},
    Counter{"stale_events", &ReactorCounters::stale_events},
    Counter{"timers_fired", &ReactorCounters::timers_fired},
    Counter{"tasks_run", &ReactorCounters::tasks_run},
    Counter{"wakeups", &ReactorCounters::wakeups},
    Counter{"opened", &ReactorCounters::opened},
    Counter{"closed", &ReactorCounters::closed},
    Counter{"receive_calls", &ReactorCounters::receive_calls},
    Counter{"empty_receives", &ReactorCounters::empty_receives},
    Counter{"send_calls", &ReactorCounters::send_calls},
    Counter{"stalled_sends", &ReactorCounters::stalled_sends},
    Counter{"received_bytes", &ReactorCounters::received_bytes},
    Counter{"sent_bytes", &ReactorCounters::sent_bytes},
    Counter{"shed", &ReactorCounters::shed},
    Counter{"accept_pauses", &ReactorCounters::accept_pauses},
    Counter{"loop_delay_ns_total", &ReactorCounters::loop_delay_ns_total},
    Counter{"loop_delay_ns_max", &ReactorCounters::loop_delay_ns_max},
};
static_assert(sizeof(ReactorCounters) == (counters_by_name.size() + close_reason_count) * sizeof(std::uint64_t),
              "a counter is missing from the list above");

/// To the microsecond, as the close record has it.
double milliseconds(Duration duration) { return std::round(static_cast<double>(duration.count()) * 1e-3) * 1e-3; }

}  // namespace

EventReport::EventReport(LineOutput& output, const Reactor& reactor, Format format, std::optional<int> reactor_number,
                         bool one_of_several)
    : output_(output),
      reactor_(reactor),
      format_(format),
      reactor_number_(reactor_number),
      said_by_(one_of_several ? "reactor " + std::to_string(reactor_number.value_or(0)) + ": " : std::string()),
      last_stats_at_(reactor.now()) {}

nlohmann::ordered_json EventReport::begin(const char* event) const {
  nlohmann::ordered_json object{{"event", event}, {"time_ns", reactor_.now().time_since_epoch().count()}};
  if (reactor_number_) object["reactor"] = *reactor_number_;
  return object;
}

void EventReport::print(const nlohmann::ordered_json& object) {
  // A path need not be UTF-8; JSON must.
  output_.print(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

void EventReport::say(const std::string& line) { output_.print(said_by_ + line); }

void EventReport::listening(const Address& address) {
  if (!is_json()) return say("listening on " + address.to_string());
  auto object = begin("listening");
  object["address"] = address.to_string();
  print(object);
}

void EventReport::opened(std::uint64_t id, const Address& peer) {
  if (!is_json()) return say(std::string("#") + std::to_string(id) + " " + peer.to_string() + " opened");
  auto object = begin("opened");
  object["id"] = id;
  object["peer"] = peer.to_string();
  print(object);
}

void EventReport::closed(std::uint64_t id, const Address& peer, const CloseRecord& record) {
  if (!is_json()) return say(std::string("#") + std::to_string(id) + " " + peer.to_string() + " closed: " + describe(record));
  auto object = begin("closed");
  object["id"] = id;
  object["peer"] = peer.to_string();
  // to_json() gives a whole object: its members follow ours.
  std::string line = object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  line.back() = ',';
  output_.print(line.append(to_json(record), 1));
}

void EventReport::accept_timed_out(Duration after) {
  if (!is_json()) return say("nobody came for " + readable(after));
  auto object = begin("accept_timed_out");
  object["after_ms"] = milliseconds(after);
  print(object);
}

void EventReport::accept_paused(const Error& error, Duration retry) {
  if (!is_json()) return say("accepting is paused: " + describe(error) + "; next try in " + readable(retry));
  auto object = begin("accept_paused");
  object["errno"] = error.code;
  object["retry_ms"] = milliseconds(retry);
  print(object);
}

void EventReport::accept_resumed(Duration after) {
  if (!is_json()) return say("accepting again, after " + readable(after));
  auto object = begin("accept_resumed");
  object["after_ms"] = milliseconds(after);
  print(object);
}

void EventReport::shed(const CloseRecord& record) {
  if (!is_json()) return say("a connection was shed: " + describe(record));
  auto object = begin("shed");
  object["errno"] = record.error_number;
  print(object);
}

void EventReport::stats(const ReactorCounters& counters) {
  if (is_json()) {
    auto object = begin("stats");
    for (const Counter& counter : counters_by_name) object[counter.name] = counters.*counter.value;
    auto& closed_for = object["closed_for"];
    for (std::size_t reason = 0; reason < close_reason_count; ++reason) {
      closed_for[to_string(static_cast<CloseReason>(reason))] = counters.closed_for[reason];
    }
    return print(object);
  }
  const Instant now = reactor_.now();
  const double seconds = std::max(static_cast<double>((now - last_stats_at_).count()) * 1e-9, 1e-9);
  const auto rate = [seconds](std::uint64_t before, std::uint64_t after) {
    return readable_bytes(static_cast<double>(after - before) / seconds) + "/s";
  };
  std::string line = "stats: " + grouped(counters.opened - counters.closed) + " open, " + grouped(counters.opened) + " opened, " +
                     grouped(counters.closed) + " closed";
  line += "; received " + rate(last_stats_.received_bytes, counters.received_bytes);
  line += ", sent " + rate(last_stats_.sent_bytes, counters.sent_bytes);
  line += "; turns " + grouped(counters.turns - last_stats_.turns);
  line += "; worst loop delay " + readable(Duration(counters.loop_delay_ns_max));
  if (counters.shed > 0) line += "; shed " + grouped(counters.shed);
  for (std::size_t reason = 0; reason < close_reason_count; ++reason) {
    const std::uint64_t closed = counters.closed_for[reason] - last_stats_.closed_for[reason];
    if (closed > 0) line += "; " + grouped(closed) + " " + to_string(static_cast<CloseReason>(reason));
  }
  say(line);
  last_stats_at_ = now;
  last_stats_ = counters;
}

void EventReport::remark(const std::string& line) {
  if (!is_json()) say(line);
}

void EventReport::json(nlohmann::ordered_json object) {
  auto whole = begin("");
  whole.update(object);
  print(whole);
}

}  // namespace vigil::tools
