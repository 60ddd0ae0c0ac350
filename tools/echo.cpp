// vigil-echo: sends back what it receives, and tells how every connection ended.
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "command_line.hpp"
#include "connection_options.hpp"
#include "echo_server.hpp"
#include "event_report.hpp"
#include "interruption.hpp"
#include "line_output.hpp"
#include "readable.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

struct Settings {
  Address address;
  EchoOptions echo;
  bool json = false;

  [[nodiscard]] Format format() const { return json ? Format::json : Format::people; }
};

/// What the server tells goes to the output.
class Teller final : public EchoObserver {
 public:
  Teller(const Settings& settings, LineOutput& output, Worker& worker)
      : report_(output, worker.reactor(), settings.format(), static_cast<int>(worker.index()), worker.reactors() > 1) {}

  void opened(std::uint64_t id, const Address& peer) override { report_.opened(id, peer); }
  void closed(std::uint64_t id, const Address& peer, const CloseRecord& record) override { report_.closed(id, peer, record); }
  void accept_timed_out(Duration after) override { report_.accept_timed_out(after); }
  void accept_paused(const Error& error, Duration retry) override { report_.accept_paused(error, retry); }
  void accept_resumed(Duration after) override { report_.accept_resumed(after); }
  void shed(const CloseRecord& record) override { report_.shed(record); }
  void stats(const ReactorCounters& counters) override { report_.stats(counters); }

 private:
  EventReport report_;
};

int fail(const std::string& what) {
  std::fprintf(stderr, "vigil-echo: %s\n", what.c_str());
  return 1;
}

int serve(const Settings& settings, LineOutput& output) {
  const auto server =
      make_echo_server(settings.echo, [&](Worker& worker) { return std::make_unique<Teller>(settings, output, worker); });
  EventReport report(output, server->control(), settings.format(), 0);

  const Duration drain = over(settings.echo.server.listener.timeouts, default_timeouts()).drain.duration();
  Interruption interruption;
  const auto stop = [&](bool again) {
    if (!again) {
      (void)server->sample([&](const ReactorCounters& counters) {
        const std::uint64_t open = counters.opened - counters.closed;
        if (open == 0) return;
        report.remark("stopping: " + grouped(open) + " open connections have " + readable(drain) +
                      " to end; once more ends them at once");
      });
    }
    (void)server->shutdown(again ? Duration::zero() : drain);
  };
  if (auto armed = interruption.arm(server->control(), output, stop); !armed) return fail(describe(armed.error()));

  if (auto started = server->start(settings.address); !started) {
    return fail(settings.address.to_string() + ": " + describe(started.error()));
  }
  report.listening(*server->address());
  if (auto ran = server->run(); !ran) return fail(describe(ran.error()));
  report.remark("stopped: " + grouped(server->counters().opened) + " connections opened, " + grouped(server->counters().closed) +
                " closed");
  return 0;
}

int run(const Settings& settings) {
  LineOutput output(STDOUT_FILENO);
  const int status = serve(settings, output);
  return finish_output("vigil-echo", output, status);
}

/// What the options say of the backlog, which must hold together. Nothing, or what is wrong.
std::optional<std::string> settle_backlog(Settings& settings) {
  constexpr std::size_t least_piece = 1024;  // no reactor receives less at once
  ListenerOptions& listener = settings.echo.server.listener;
  if (settings.echo.message_bytes > listener.backlog_bytes_max) return "--reply-per-message: a reply would pass --backlog-max";
  if (listener.heartbeat.ping && listener.heartbeat.ping->size() > listener.backlog_bytes_max)
    return "--ping: it would pass --backlog-max";
  // A bound smaller than the built-in marks moves them below it.
  const std::size_t room = listener.backlog_bytes_max - settings.echo.message_bytes;
  listener.backlog_high_mark_bytes = std::min(listener.backlog_high_mark_bytes, room / 2);
  listener.backlog_low_mark_bytes = std::min(listener.backlog_low_mark_bytes, listener.backlog_high_mark_bytes / 2);
  if (listener.when_backlogged == WhenBacklogged::close) return std::nullopt;
  if (room < 4 * least_piece) {
    return "--when-backlogged pause needs a --backlog-max of at least " +
           std::to_string(settings.echo.message_bytes + 4 * least_piece);
  }
  // A pause begins after the piece that passed the mark, so there must be room for one more; delayed replies resume at the low
  // mark while the send queue may stand at the high one.
  const std::size_t piece = room - listener.backlog_high_mark_bytes - listener.backlog_low_mark_bytes;
  settings.echo.server.reactor.receive_buffer_bytes = std::min(settings.echo.server.reactor.receive_buffer_bytes, piece);
  return std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  settings.address = Address::from_ipv4({127, 0, 0, 1}, 7000);
  ListenerOptions& listener = settings.echo.server.listener;
  std::uint64_t reactors = 1;
  std::uint64_t backlog_bytes_max = listener.backlog_bytes_max;
  std::uint64_t message_bytes = 0;
  std::size_t when_backlogged = 0;
  std::uint64_t connections_max = 0;

  CommandLine command_line("vigil-echo", "Sends back what it receives, and tells how every connection ended.");
  command_line.address("--listen", settings.address, "Listen here (127.0.0.1:7000); port 0: any, told in the first line");
  command_line.number("--reactors", "N", reactors, 1, 1024, "This many threads serve, each with a loop of its own (1)");
  command_line.number("--max-connections", "N", connections_max, 1, 1'000'000'000,
                      "This many are open at once at most, an equal share with each reactor; more wait in the kernel's queue");
  command_line.timeout("--accept-timeout", listener.timeouts.accept, "Tell whenever nobody has come for this long");
  command_line.duration("--stats", settings.echo.stats, 1ms, "Tell the counters this often");
  command_line.flag("--json", settings.json, "One JSON object a line");

  command_line.heading("Replies");
  command_line.number("--reply-per-message", "BYTES", message_bytes, 1, 64 * 1024 * 1024,
                      "Messages have this size and are no lines; each gets a send of its own");
  command_line.duration("--reply-delay", settings.echo.reply_delay, 0ms, "Each reply waits this long before it is sent");
  command_line.flag("--flood", settings.echo.flood, "Keep the send queue full instead of replying");
  command_line.number("--backlog-max", "BYTES", backlog_bytes_max, 1, std::numeric_limits<std::uint32_t>::max(),
                      "The most that may wait to be sent on a connection (16777216)");
  command_line.choice("--when-backlogged", {"close", "pause"}, when_backlogged,
                      "Before more waits: close the connection, or pause reading (close)");
  ConnectionOptions common(command_line, listener.timeouts, listener.heartbeat);
  if (const auto status = command_line.parse(argc, argv)) return *status;
  if (const auto status = common.settle(settings.address)) return *status;
  if (settings.echo.flood && (message_bytes > 0 || settings.echo.reply_delay > Duration::zero())) {
    return command_line.refuse("--flood sends no replies: it does not go with --reply-per-message or --reply-delay");
  }
  if (reactors > 1 && !settings.address.is_ip()) {
    return command_line.refuse("--reactors: several can't share a Unix address");
  }
  if (connections_max > 0 && connections_max < reactors) {
    return command_line.refuse("--max-connections: fewer than --reactors");
  }

  settings.echo.server.reactors = static_cast<unsigned>(reactors);
  settings.echo.server.stop_on_signals = false;  // the interruption watches them
  listener.connections_max = connections_max / reactors;
  listener.backlog_bytes_max = backlog_bytes_max;
  listener.when_backlogged = when_backlogged == 0 ? WhenBacklogged::close : WhenBacklogged::pause_reading;
  settings.echo.message_bytes = message_bytes;
  if (const auto problem = settle_backlog(settings)) return command_line.refuse(*problem);
  return run(settings);
}
