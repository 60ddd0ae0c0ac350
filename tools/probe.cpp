// vigil-probe: says whether somebody answers at an address; with --hold stays, and tells how the connection ends.
#include <cstdio>
#include <optional>

#include "command_line.hpp"
#include "event_report.hpp"
#include "flood.hpp"
#include "interruption.hpp"
#include "line_output.hpp"
#include "readable.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

enum ExitStatus { accepted_or_ended_orderly = 0, rejected = 1, timed_out = 2, unreachable = 3, ended_otherwise = 4 };

struct Settings {
  Address target;
  ConnectorOptions connector;
  bool hold = false;
  bool flood = false;
  bool finish = false;
  bool json = false;
};

struct Answer {
  const char* text;
  ExitStatus status;
};

Answer answer_of(const CloseRecord& why) {
  switch (why.reason) {
    case CloseReason::connect_refused:
      return {"rejected", rejected};
    case CloseReason::connect_timed_out:
      return {"timed out", timed_out};
    case CloseReason::connect_unreachable:
      return {"unreachable", unreachable};
    case CloseReason::self_connect:
      return {"reached itself: nobody listens there", ended_otherwise};
    case CloseReason::local_close:
    case CloseReason::server_stopping:
      return {"given up", ended_otherwise};
    default:
      return {"failed", ended_otherwise};
  }
}

/// Orderly: the peer finished, or we closed and nothing cut that short.
ExitStatus status_of(const CloseRecord& why) {
  const bool orderly = why.reason == CloseReason::peer_finished || why.reason == CloseReason::local_close;
  return orderly && why.cut_short == CutShort::none ? accepted_or_ended_orderly : ended_otherwise;
}

/// The reactor comes last: its destructor still tells the handler the end of its connection.
struct Probe {
  Probe(const Settings& given, LineOutput& output)
      : settings(given), report(output, reactor, given.json ? Format::json : Format::people) {}

  const Settings& settings;
  EventReport report;
  Instant began{};
  std::optional<ExitStatus> status;
  Reactor reactor;
};

struct ProbeHandler {
  Probe* probe;

  void on_open(Connection& peer) {
    if (probe->report.is_json()) probe->report.opened(1, probe->settings.target);
    probe->report.remark(probe->settings.target.to_string() + " accepted after " + readable(probe->reactor.now() - probe->began));
    if (!probe->settings.hold) {
      probe->status = accepted_or_ended_orderly;
      peer.close();
      probe->reactor.stop();  // the answer is known; nobody needs to wait for the peer's end
      return;
    }
    if (probe->settings.flood) fill(peer);
    if (probe->settings.finish) peer.finish();
  }

  void on_receive(Connection&, Bytes) {}
  void on_send_drained(Connection& peer) {
    if (probe->settings.flood) fill(peer);
  }

  void on_close(Connection&, const CloseRecord& why) {
    if (probe->report.is_json()) probe->report.closed(1, probe->settings.target, why);
    if (why.phase == Phase::connecting) {
      const Answer answer = answer_of(why);
      std::string line = probe->settings.target.to_string() + " " + answer.text + " after " + readable(why.age);
      if (why.error_number != 0) line += ": " + describe(Error{why.operation, why.error_number});
      probe->report.remark(line);
      probe->status = answer.status;
    } else if (probe->settings.hold) {
      probe->report.remark(probe->settings.target.to_string() + " closed: " + describe(why));
      probe->status = status_of(why);
    }
    probe->reactor.stop();
  }

  void fill(Connection& peer) { Flood(probe->reactor, probe->settings.connector.backlog_high_mark_bytes).fill(peer); }
};

int fail(const std::string& what) {
  std::fprintf(stderr, "vigil-probe: %s\n", what.c_str());
  return ended_otherwise;
}

int run(const Settings& settings) {
  LineOutput output(STDOUT_FILENO);
  int status = 0;
  {
    Probe probe(settings, output);
    Reactor& reactor = probe.reactor;
    Connector<ProbeHandler> connector(reactor, settings.connector, [&probe](Connection&) { return ProbeHandler{&probe}; });
    ConnectionHandle connection;

    Interruption interruption;
    const auto stop = [&](bool again) { again ? connection->abort() : connection->close(); };
    if (auto armed = interruption.arm(reactor, output, stop); !armed) return fail(describe(armed.error()));

    probe.began = reactor.now();
    auto attempt = connector.connect(settings.target);
    if (!attempt) return fail(settings.target.to_string() + ": " + describe(attempt.error()));
    connection = *attempt;
    if (auto ran = reactor.run(); !ran) return fail(describe(ran.error()));
    status = probe.status.value_or(ended_otherwise);
  }
  return finish_output("vigil-probe", output, status);
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  ConnectorOptions& connector = settings.connector;
  Address source;

  CommandLine command_line(
      "vigil-probe",
      "Says whether somebody answers at an address: accepted, rejected, timed out, unreachable.\n"
      "Exit status: 0 accepted (and, held, ended orderly), 1 rejected, 2 timed out, 3 unreachable, 4 ended otherwise.");
  command_line.target(settings.target, "Connect here");
  command_line.flag("--hold", settings.hold, "Stay, and tell how the connection ends");
  command_line.timeout("--connect-timeout", connector.timeouts.connect, "Give up an attempt without an answer after this long");
  add_connection_timeouts(command_line, connector.timeouts);
  command_line.flag("--finish", settings.finish, "Send our end, then read until the peer's (holds)");
  command_line.flag("--flood", settings.flood, "Keep the send queue full (holds)");
  auto* const from = command_line.address("--source", source, "Connect from this address; port 0: any");
  command_line.flag("--json", settings.json, "One JSON object a line");
  if (const auto status = command_line.parse(argc, argv)) return *status;
  if (settings.flood && settings.finish) return command_line.refuse("--finish ends what --flood would send: give one of them");

  if (*from) {
    if (source.family() != settings.target.family()) return command_line.refuse("--source: not of the same kind as the address");
    connector.source = source;
  }
  settings.hold = settings.hold || settings.flood || settings.finish;
  return run(settings);
}
