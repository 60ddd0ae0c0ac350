// vigil-echo: sends back what it receives, and tells how every connection ended.
#include <cstdio>
#include <deque>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

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

struct Settings {
  Address address;
  std::uint64_t reactors = 1;
  ReactorOptions reactor;
  ListenerOptions listener;
  std::size_t message_bytes = 0;  // 0: as the bytes come
  Duration reply_delay{};
  bool flood = false;
  Duration stats{};
  bool json = false;
};

/// What the connections of one reactor share, and what it tells that belongs to no connection.
class Service {
 public:
  Service(const Settings& given, LineOutput& output, Worker& worker)
      : settings(given),
        reactor(worker.reactor()),
        report(output, reactor, given.json ? Format::json : Format::people, static_cast<int>(worker.index()),
               worker.reactors() > 1),
        next_id_(worker.index() + 1),
        reactors_(worker.reactors()),
        stats_due_(reactor.now()),
        stats_(reactor, [this] { tell_stats(); }) {
    if (settings.stats > Duration::zero()) arm_stats();
  }
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service() {
    if (settings.stats > Duration::zero()) report.stats(reactor.counters());
  }

  /// No other connection of any reactor has it.
  [[nodiscard]] std::uint64_t take_id() { return std::exchange(next_id_, next_id_ + reactors_); }

  void on_accept_timed_out(Duration after) { report.accept_timed_out(after); }
  void on_accept_paused(const Error& error, Duration retry) { report.accept_paused(error, retry); }
  void on_accept_resumed(Duration after) { report.accept_resumed(after); }
  void on_shed(const CloseRecord& record) { report.shed(record); }

  const Settings& settings;
  Reactor& reactor;
  EventReport report;

 private:
  void arm_stats() {
    stats_due_ = std::max(stats_due_ + settings.stats, reactor.now());
    (void)stats_.arm_at(stats_due_);
  }
  void tell_stats() {
    report.stats(reactor.counters());
    arm_stats();
  }

  std::uint64_t next_id_;
  std::uint64_t reactors_;
  Instant stats_due_;
  Timer stats_;
};

/// A reactor's service, and the kind of connection it is for.
template <class Handler>
struct ServiceOf : Service {
  using Service::Service;
  Handler make_handler(Connection&) { return Handler(*this); }
};

/// What every kind of connection does: it has an id, its beginning and end are told, and its messages are marked.
struct Told {
  explicit Told(Service& shared)
      : service(&shared), id(shared.take_id()), marks(shared.settings.listener.timeouts, shared.settings.message_bytes) {}

  void on_open(Connection& peer) { service->report.opened(id, peer.peer()); }
  void on_close(Connection& peer, const CloseRecord& why) { service->report.closed(id, peer.peer(), why); }

  Service* service;
  std::uint64_t id;
  MessageMarks marks;
};

struct Echo : Told {
  using Told::Told;
  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    peer.send(bytes);
  }
};

/// Cuts a stream into messages of one size; with size 0 each piece that comes is one.
class Splitter {
 public:
  explicit Splitter(std::size_t size) : size_(size) {}

  template <class Take>
  void split(Bytes bytes, Take take) {
    if (size_ == 0) return take(bytes);
    if (!begun_.empty()) {
      const Bytes missing = bytes.first(size_ - begun_.size());
      begun_.insert(begun_.end(), missing.begin(), missing.end());
      bytes = bytes.without_first(missing.size());
      if (begun_.size() < size_) return;
      take(Bytes(begun_));
      begun_.clear();
    }
    for (; bytes.size() >= size_; bytes = bytes.without_first(size_)) take(bytes.first(size_));
    begun_.assign(bytes.begin(), bytes.end());
  }

  /// The message that the peer's end has cut off, if there is one.
  template <class Take>
  void finish(Take take) {
    if (!begun_.empty()) take(Bytes(begun_));
    begun_.clear();
  }

 private:
  std::size_t size_;
  std::vector<std::byte> begun_;
};

/// One send call for each message.
struct MessageEcho : Told {
  explicit MessageEcho(Service& shared) : Told(shared), messages(shared.settings.message_bytes) {}

  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    messages.split(bytes, [&peer](Bytes message) { peer.send(message); });
  }
  void on_peer_finished(Connection& peer) {
    messages.finish([&peer](Bytes rest) { peer.send(rest); });
    peer.close();
  }

  Splitter messages;
};

/// Each reply waits before it is sent. A peer that finishes meanwhile still gets what it is owed, unless its drain deadline
/// passes.
struct DelayedEcho : Told {
  explicit DelayedEcho(Service& shared) : Told(shared), messages(shared.settings.message_bytes) {}

  void on_open(Connection& peer) {
    Told::on_open(peer);
    timer = Timer(service->reactor, [handle = peer.handle()] { handle->handler<DelayedEcho>().send_due(*handle); });
  }
  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    messages.split(bytes, [&](Bytes message) { hold(peer, message); });
    const ListenerOptions& options = service->settings.listener;
    if (options.when_backlogged == WhenBacklogged::pause_reading &&
        held_bytes + peer.backlog_bytes() > options.backlog_high_mark_bytes)
      (void)peer.pause_reading();
  }
  void on_peer_finished(Connection& peer) {
    messages.finish([&](Bytes rest) { hold(peer, rest); });
    finished = true;
    if (held.empty()) peer.close();
  }

  struct Reply {
    Instant due;
    std::vector<std::byte> bytes;
  };

  void hold(Connection& peer, Bytes message) {
    if (outrun) return;
    held_bytes += message.size();
    held.push_back({service->reactor.now() + service->settings.reply_delay, {message.begin(), message.end()}});
    if (held_bytes > service->settings.listener.backlog_bytes_max) {
      send_too_much(peer);
    } else if (held.size() == 1) {
      (void)timer.arm_at(held.front().due);
    }
  }

  /// What waits here is bounded as the send queue is. A peer that outruns it meets the same end as one that leaves its replies
  /// unread: all that waits goes into one send, which passes the bound and so ends the connection with backlog_full.
  void send_too_much(Connection& peer) {
    outrun = true;
    std::vector<std::byte> all;
    all.reserve(held_bytes);
    for (const Reply& reply : held) all.insert(all.end(), reply.bytes.begin(), reply.bytes.end());
    held.clear();
    timer.disarm();
    peer.send(Bytes(all));
  }

  void send_due(Connection& peer) {
    const Instant now = service->reactor.now();
    while (!held.empty() && held.front().due <= now) {
      held_bytes -= held.front().bytes.size();
      peer.send(Bytes(held.front().bytes));
      held.pop_front();
    }
    if (held_bytes <= service->settings.listener.backlog_low_mark_bytes) (void)peer.resume_reading();
    if (!held.empty()) {
      (void)timer.arm_at(held.front().due);
    } else if (finished) {
      peer.close();
    }
  }

  Splitter messages;
  Timer timer;
  std::deque<Reply> held;
  std::size_t held_bytes = 0;
  bool finished = false;
  bool outrun = false;
};

/// Sends as much as the peer takes and ignores what it says.
struct FloodingEcho : Told {
  using Told::Told;
  void on_open(Connection& peer) {
    Told::on_open(peer);
    fill(peer);
  }
  void on_receive(Connection& peer, Bytes bytes) { marks.mark(peer, bytes); }
  void on_send_drained(Connection& peer) { fill(peer); }
  void fill(Connection& peer) { Flood(service->reactor, service->settings.listener.backlog_high_mark_bytes).fill(peer); }
};

int fail(const std::string& what) {
  std::fprintf(stderr, "vigil-echo: %s\n", what.c_str());
  return 1;
}

template <class Handler>
int serve(const Settings& settings, LineOutput& output) {
  const ServerOptions options{.reactors = static_cast<unsigned>(settings.reactors),
                              .stop_on_signals = false,  // the interruption watches them
                              .reactor = settings.reactor,
                              .listener = settings.listener};
  Server<Handler, ServiceOf<Handler>> server(options,
                                             [&](Worker& worker) { return ServiceOf<Handler>(settings, output, worker); });
  EventReport report(output, server.control(), settings.json ? Format::json : Format::people, 0);

  const Duration drain = over(settings.listener.timeouts, default_timeouts()).drain.duration();
  Interruption interruption;
  const auto stop = [&](bool again) {
    if (!again) {
      (void)server.sample([&](const ReactorCounters& counters) {
        const std::uint64_t open = counters.opened - counters.closed;
        if (open == 0) return;
        report.remark("stopping: " + grouped(open) + " open connections have " + readable(drain) +
                      " to end; once more ends them at once");
      });
    }
    (void)server.shutdown(again ? Duration::zero() : drain);
  };
  if (auto armed = interruption.arm(server.control(), output, stop); !armed) return fail(describe(armed.error()));

  if (auto started = server.start(settings.address); !started) {
    return fail(settings.address.to_string() + ": " + describe(started.error()));
  }
  report.listening(*server.address());
  if (auto ran = server.run(); !ran) return fail(describe(ran.error()));
  report.remark("stopped: " + grouped(server.counters().opened) + " connections opened, " + grouped(server.counters().closed) +
                " closed");
  return 0;
}

int serve_as_told(const Settings& settings, LineOutput& output) {
  if (settings.flood) return serve<FloodingEcho>(settings, output);
  if (settings.reply_delay > Duration::zero()) return serve<DelayedEcho>(settings, output);
  if (settings.message_bytes > 0) return serve<MessageEcho>(settings, output);
  return serve<Echo>(settings, output);
}

int run(const Settings& settings) {
  LineOutput output(STDOUT_FILENO);
  const int status = serve_as_told(settings, output);
  return finish_output("vigil-echo", output, status);
}

/// What the options say of the backlog, which must hold together. Nothing, or what is wrong.
std::optional<std::string> settle_backlog(Settings& settings) {
  constexpr std::size_t least_piece = 1024;  // no reactor receives less at once
  ListenerOptions& listener = settings.listener;
  if (settings.message_bytes > listener.backlog_bytes_max) return "--reply-per-message: a reply would pass --backlog-max";
  // A bound smaller than the built-in marks moves them below it.
  const std::size_t room = listener.backlog_bytes_max - settings.message_bytes;
  listener.backlog_high_mark_bytes = std::min(listener.backlog_high_mark_bytes, room / 2);
  listener.backlog_low_mark_bytes = std::min(listener.backlog_low_mark_bytes, listener.backlog_high_mark_bytes / 2);
  if (listener.when_backlogged == WhenBacklogged::close) return std::nullopt;
  if (room < 4 * least_piece) {
    return "--when-backlogged pause needs a --backlog-max of at least " +
           std::to_string(settings.message_bytes + 4 * least_piece);
  }
  // A pause begins after the piece that passed the mark, so there must be room for one more; delayed replies resume at the low
  // mark while the send queue may stand at the high one.
  const std::size_t piece = room - listener.backlog_high_mark_bytes - listener.backlog_low_mark_bytes;
  settings.reactor.receive_buffer_bytes = std::min(settings.reactor.receive_buffer_bytes, piece);
  return std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  settings.address = Address::from_ipv4({127, 0, 0, 1}, 7000);
  ListenerOptions& listener = settings.listener;
  std::uint64_t backlog_bytes_max = listener.backlog_bytes_max;
  std::uint64_t message_bytes = 0;
  std::size_t when_backlogged = 0;
  std::uint64_t connections_max = 0;

  CommandLine command_line("vigil-echo", "Sends back what it receives, and tells how every connection ended.");
  command_line.address("--listen", settings.address, "Listen here (127.0.0.1:7000); port 0: any, told in the first line");
  command_line.number("--reactors", "N", settings.reactors, 1, 1024, "This many threads serve, each with a loop of its own (1)");
  command_line.number("--max-connections", "N", connections_max, 1, 1'000'000'000,
                      "This many are open at once at most, an equal share with each reactor; more wait in the kernel's queue");
  command_line.timeout("--accept-timeout", listener.timeouts.accept, "Tell whenever nobody has come for this long");
  command_line.duration("--stats", settings.stats, 1ms, "Tell the counters this often");
  command_line.flag("--json", settings.json, "One JSON object a line");

  command_line.heading("Replies");
  command_line.number("--reply-per-message", "BYTES", message_bytes, 1, 64 * 1024 * 1024,
                      "Messages have this size and are no lines; each gets a send of its own");
  command_line.duration("--reply-delay", settings.reply_delay, 0ms, "Each reply waits this long before it is sent");
  command_line.flag("--flood", settings.flood, "Keep the send queue full instead of replying");
  command_line.number("--backlog-max", "BYTES", backlog_bytes_max, 1, std::numeric_limits<std::uint32_t>::max(),
                      "The most that may wait to be sent on a connection (16777216)");
  command_line.choice("--when-backlogged", {"close", "pause"}, when_backlogged,
                      "Before more waits: close the connection, or pause reading (close)");
  ConnectionOptions common(command_line, listener.timeouts);
  if (const auto status = command_line.parse(argc, argv)) return *status;
  if (const auto status = common.settle()) return *status;
  if (settings.flood && (message_bytes > 0 || settings.reply_delay > Duration::zero())) {
    return command_line.refuse("--flood sends no replies: it does not go with --reply-per-message or --reply-delay");
  }
  if (settings.reactors > 1 && !settings.address.is_ip()) {
    return command_line.refuse("--reactors: several can't share a Unix address");
  }
  if (connections_max > 0 && connections_max < settings.reactors) {
    return command_line.refuse("--max-connections: fewer than --reactors");
  }

  listener.connections_max = connections_max / settings.reactors;
  listener.backlog_bytes_max = backlog_bytes_max;
  listener.when_backlogged = when_backlogged == 0 ? WhenBacklogged::close : WhenBacklogged::pause_reading;
  settings.message_bytes = message_bytes;
  if (const auto problem = settle_backlog(settings)) return command_line.refuse(*problem);
  return run(settings);
}
