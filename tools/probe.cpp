// vigil-probe: says whether somebody answers at an address; with --hold stays, and tells how the connection ends.
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "command_line.hpp"
#include "connection_options.hpp"
#include "event_report.hpp"
#include "flood.hpp"
#include "interruption.hpp"
#include "line_output.hpp"
#include "message_marks.hpp"
#include "readable.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

enum ExitStatus { accepted_or_ended_orderly = 0, rejected = 1, timed_out = 2, unreachable = 3, ended_otherwise = 4 };

struct Settings {
  Address target;
  ReactorOptions reactor;
  ConnectorOptions connector;
  std::uint64_t read_rate = 0;  // bytes a second; 0: as they come
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

/// When to receive again, for a reader that is to take no more than some bytes a second.
class Pace {
 public:
  explicit Pace(std::uint64_t bytes_per_second) : bytes_per_second_(static_cast<double>(bytes_per_second)) {}

  /// So many bytes were received now. The time they take begins where the last ones' ended; what was late by a timer's tick is
  /// made up for, an idle time is not.
  Instant after(std::size_t bytes, Instant now) {
    constexpr Duration made_up = 100ms;
    const double nanoseconds = static_cast<double>(bytes) * 1e9 / bytes_per_second_;
    free_at_ = std::max(free_at_, now - made_up) + Duration(static_cast<std::int64_t>(nanoseconds));
    return free_at_;
  }
  void begin(Instant now) { free_at_ = now; }

  /// A tenth of a second's bytes, as far as a reactor can receive so little at once.
  static std::size_t piece(std::uint64_t bytes_per_second, std::size_t at_most) {
    constexpr std::uint64_t least = 1024;
    return static_cast<std::size_t>(std::clamp<std::uint64_t>(bytes_per_second / 10, least, at_most));
  }

 private:
  double bytes_per_second_;
  Instant free_at_{};
};

/// The reactor comes last: its destructor still tells the handler the end of its connection.
struct Probe {
  Probe(const Settings& given, LineOutput& output)
      : settings(given), report(output, reactor, given.json ? Format::json : Format::people), reactor(given.reactor) {}

  const Settings& settings;
  EventReport report;
  Instant began{};
  std::optional<ExitStatus> status;
  Reactor reactor;
};

struct ProbeHandler {
  explicit ProbeHandler(Probe& shared)
      : probe(&shared), marks(shared.settings.connector.timeouts, 0), pace(shared.settings.read_rate) {}

  void on_open(Connection& peer) {
    if (probe->report.is_json()) probe->report.opened(1, probe->settings.target);
    probe->report.remark(probe->settings.target.to_string() + " accepted after " + readable(probe->reactor.now() - probe->began));
    if (!probe->settings.hold) {
      probe->status = accepted_or_ended_orderly;
      peer.close();
      probe->reactor.stop();  // the answer is known; nobody needs to wait for the peer's end
      return;
    }
    if (probe->settings.read_rate > 0) {
      pace.begin(probe->reactor.now());
      read_again = Timer(probe->reactor, [handle = peer.handle()] { handle->resume_reading(); });
    }
    if (probe->settings.flood) fill(peer);
    if (probe->settings.finish) peer.finish();
  }

  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    if (probe->settings.read_rate == 0) return;
    const Instant now = probe->reactor.now();
    const Instant again = pace.after(bytes.size(), now);
    if (again > now && !has_broken(peer) && peer.pause_reading()) (void)read_again.arm_at(again);
  }
  void on_peer_gone_while_paused(Connection& peer) {
    if (has_broken(peer)) (void)peer.resume_reading();
  }

  /// Nobody minds any more how slowly the rest is read, and how the connection ended is told behind it.
  static bool has_broken(const Connection& peer) {
    pollfd state{peer.descriptor(), 0, 0};  // POLLERR and POLLHUP are told unasked, and not for a stream that only ended
    return ::poll(&state, 1, 0) > 0;
  }

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

  Probe* probe;
  MessageMarks marks;
  Pace pace;
  Timer read_again;
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
    Connector<ProbeHandler> connector(reactor, settings.connector, [&probe](Connection&) { return ProbeHandler(probe); });
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
  command_line.timeout("--connect-timeout", connector.timeouts.connect, "Give up an attempt without an answer after this long");
  auto* const from = command_line.address("--source", source, "Connect from this address; port 0: any");
  command_line.flag("--json", settings.json, "One JSON object a line");

  command_line.heading("Once accepted (each of these, and of those below, holds the connection)");
  command_line.flag("--hold", settings.hold, "Stay, and tell how the connection ends");
  command_line.flag("--finish", settings.finish, "Send our end, then read until the peer's");
  command_line.flag("--flood", settings.flood, "Keep the send queue full");
  command_line.number("--read-rate", "BYTES", settings.read_rate, 1, 1'000'000'000'000, "Read at most this many bytes a second");
  ConnectionOptions common(command_line, connector.timeouts, connector.heartbeat);
  if (const auto status = command_line.parse(argc, argv)) return *status;
  if (const auto status = common.settle(settings.target)) return *status;
  if (settings.flood && settings.finish) return command_line.refuse("--finish ends what --flood would send: give one of them");

  if (*from) {
    if (source.family() != settings.target.family()) return command_line.refuse("--source: not of the same kind as the address");
    connector.source = source;
  }
  if (settings.read_rate > 0) {
    std::size_t& buffer = settings.reactor.receive_buffer_bytes;
    buffer = Pace::piece(settings.read_rate, buffer);
  }
  settings.hold = settings.hold || settings.flood || settings.finish || settings.read_rate > 0 || common.given();
  return run(settings);
}
