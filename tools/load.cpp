// vigil-load: keeps an echo server busy, compares every byte that comes back, and tells throughput and latency.
//
// Closed loop (default): each connection keeps --pipeline messages on their way. Open loop (--rate): messages are due at a steady
// rate whatever the server does, and a message's latency is counted from when it was due, so that a server that stalls can't hide
// the messages it kept from being sent. A rate that nobody could keep is said: how many messages were due and never sent.
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "echo_pattern.hpp"
#include "event_report.hpp"
#include "interruption.hpp"
#include "latencies.hpp"
#include "line_output.hpp"
#include "progress_bar.hpp"
#include "readable.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

constexpr std::uint64_t attempts_at_once = 256;  // more would only overflow the server's accept queue
constexpr Duration progress_interval = 100ms;
constexpr Duration answers_awaited_at_least = 1s;
constexpr Duration answers_awaited_at_most = 10s;
constexpr Duration goodbye = 2s;
constexpr std::uint64_t releases_per_turn = 10'000;  // then the loop looks at its other timers, signals and answers again
constexpr std::uint64_t bytes_on_their_way_max = 1024 * 1024 * 1024;

struct Settings {
  Address target;
  std::uint64_t connections = 1;
  std::uint64_t message_bytes = 64;
  std::uint64_t pipeline = 1;
  Duration duration = 10s;
  Duration warmup = 1s;
  std::uint64_t rate = 0;  // messages a second over all connections; 0: closed loop
  bool json = false;
};

class Load;

/// One connection. Messages are counted from 0; answered <= sent <= released.
class Client {
 public:
  Client(Load& load, std::uint64_t index);

  void on_open(Connection& peer);
  void on_receive(Connection& peer, Bytes bytes);
  void on_close(Connection& peer, const CloseRecord& why);

  /// Open loop: this many messages have become due so far.
  void release(Connection& peer, std::uint64_t messages, Instant now) {
    released_ = messages;
    send_some(peer, now);
  }

  [[nodiscard]] std::uint64_t sent() const { return sent_; }
  [[nodiscard]] std::uint64_t answered() const { return answered_; }
  [[nodiscard]] std::uint64_t on_their_way() const { return sent_ - answered_; }
  [[nodiscard]] Instant began(std::uint64_t message) const;

 private:
  void send_some(Connection& peer, Instant now);
  void refuse_echo(Connection& peer, const std::string& what);

  Load& load_;
  std::uint64_t index_;
  std::uint64_t released_ = 0;  // open loop only
  std::uint64_t sent_ = 0;
  std::uint64_t answered_ = 0;
  std::uint64_t bytes_of_next_answer_ = 0;  // received of the message numbered answered_
  std::size_t send_position_;
  std::size_t receive_position_;
  std::unique_ptr<Instant[]> sent_at_;  // closed loop only: a ring of --pipeline instants
  bool opened_ = false;
  bool told_wrong_ = false;
};

/// The whole run: connecting, warm-up, the measured window, waiting for the last answers, goodbye.
class Load {
 public:
  explicit Load(const Settings& settings);

  [[nodiscard]] Result<void> run();
  [[nodiscard]] Reactor& reactor() { return reactor_; }
  void interrupt(bool again);

  [[nodiscard]] std::uint64_t messages() const { return messages_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::uint64_t errors() const { return errors_; }
  [[nodiscard]] const std::map<std::string, std::uint64_t>& causes() const { return causes_; }
  [[nodiscard]] const std::string& first_error() const { return first_error_; }
  [[nodiscard]] const Latencies& latencies() const { return latencies_; }
  /// Open loop: due in the measured part on connections that stayed open, and how many of these were never sent.
  [[nodiscard]] std::uint64_t due_messages() const { return due_messages_; }
  [[nodiscard]] std::uint64_t never_sent() const { return never_sent_; }
  /// The measured part; zero if it never began.
  [[nodiscard]] Duration measured() const { return window_begin_ < window_end_ ? window_end_ - window_begin_ : Duration::zero(); }

 private:
  friend class Client;
  enum class Stage { connecting, running, awaiting_answers, ended };

  void connect_more();
  void attempt_ended(bool opened);
  void begin();
  void stop_sending();
  void end();
  void release_due();
  void count_due(std::uint64_t index, const Client& client);
  void record_unanswered(std::uint64_t index, const Client& client, Instant now);
  void draw_progress();
  void failed(const std::string& cause, const std::string& what);
  void answered(Instant began, Instant now);
  [[nodiscard]] Instant due(std::uint64_t message) const {
    return first_due_ +
           Duration(static_cast<std::int64_t>(static_cast<double>(message) * 1e9 / static_cast<double>(settings_.rate)));
  }
  /// How many messages are due before an instant; the second: how many of one connection.
  [[nodiscard]] std::uint64_t due_before(Instant instant) const {
    const auto past = static_cast<double>((instant - first_due_).count());
    return static_cast<std::uint64_t>(std::ceil(std::max(past, 0.0) * static_cast<double>(settings_.rate) / 1e9));
  }
  [[nodiscard]] std::uint64_t due_before(Instant instant, std::uint64_t index) const {
    const std::uint64_t all = due_before(instant);
    return all > index ? (all - index - 1) / settings_.connections + 1 : 0;
  }

  const Settings& settings_;
  EchoPattern pattern_;
  std::vector<ConnectionHandle> clients_;
  ProgressBar bar_;

  Stage stage_ = Stage::connecting;
  std::uint64_t attempts_under_way_ = 0;
  std::uint64_t open_ = 0;
  std::uint64_t on_their_way_ = 0;

  Instant first_due_{};
  std::uint64_t released_ = 0;  // open loop: the number of the next message to release
  Instant window_begin_ = never_due;
  Instant window_end_ = never_due;

  std::uint64_t messages_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t errors_ = 0;
  std::map<std::string, std::uint64_t> causes_;
  std::string first_error_;
  Latencies latencies_;
  std::uint64_t due_messages_ = 0;
  std::uint64_t never_sent_ = 0;
  Instant progress_at_{};
  std::uint64_t progress_bytes_ = 0;

  // The reactor comes after all that its handlers use: its destructor still tells them the end of their connections.
  Reactor reactor_{{.tick = 100us}};  // the finest: how late a message leaves counts in an open loop
  Connector<Client> connector_;
  Timer next_due_;
  Timer stage_end_;
  Timer progress_;
};

Client::Client(Load& load, std::uint64_t index)
    : load_(load),
      index_(index),
      // Each connection begins elsewhere in the pattern, so that another one's bytes are wrong bytes.
      send_position_(load.pattern_.advance(0, index * 7'919)),
      receive_position_(send_position_),
      sent_at_(load.settings_.rate == 0 ? std::make_unique<Instant[]>(load.settings_.pipeline) : nullptr) {}

void Client::on_open(Connection& peer) {
  opened_ = true;
  if (load_.settings_.rate == 0) send_some(peer, load_.reactor_.now());
  load_.attempt_ended(true);
}

void Client::on_receive(Connection& peer, Bytes bytes) {
  if (told_wrong_) return;
  const std::uint64_t size = load_.settings_.message_bytes;
  const Instant now = load_.reactor_.now();
  if (bytes.size() > on_their_way() * size - bytes_of_next_answer_) return refuse_echo(peer, "more came back than was sent");
  if (const std::size_t right = load_.pattern_.right_bytes(receive_position_, bytes); right < bytes.size()) {
    const std::uint64_t place = answered_ * size + bytes_of_next_answer_ + right;
    return refuse_echo(peer, "byte " + std::to_string(place) + " of the echo is not what was sent");
  }
  receive_position_ = load_.pattern_.advance(receive_position_, bytes.size());
  if (now >= load_.window_begin_ && now < load_.window_end_) load_.bytes_ += bytes.size();
  bytes_of_next_answer_ += bytes.size();
  for (; bytes_of_next_answer_ >= size; bytes_of_next_answer_ -= size) {
    const Instant message_began = began(answered_);
    ++answered_;
    load_.answered(message_began, now);
  }
  send_some(peer, now);
}

void Client::on_close(Connection&, const CloseRecord& why) {
  load_.on_their_way_ -= on_their_way();
  if (opened_) --load_.open_;
  if (load_.stage_ != Load::Stage::ended && !told_wrong_) {
    // Of an attempt only the cause is of interest: nothing was sent or received yet.
    const std::string what = opened_                 ? describe(why)
                             : why.error_number != 0 ? describe(Error{why.operation, why.error_number})
                                                     : meaning(why.reason);
    load_.failed(to_string(why.reason), "connection " + std::to_string(index_) + ": " + what);
  }
  if (!opened_) {
    load_.attempt_ended(false);
  } else if (load_.open_ == 0 && load_.attempts_under_way_ == 0) {
    load_.end();  // nobody is left to wait for
  } else if (load_.stage_ == Load::Stage::awaiting_answers && load_.on_their_way_ == 0) {
    load_.end();
  }
}

void Client::refuse_echo(Connection& peer, const std::string& what) {
  told_wrong_ = true;
  load_.failed("wrong_echo", "connection " + std::to_string(index_) + ": " + what);
  peer.abort();
}

Instant Client::began(std::uint64_t message) const {
  if (sent_at_ != nullptr) return sent_at_[message % load_.settings_.pipeline];
  return load_.due(message * load_.settings_.connections + index_);
}

void Client::send_some(Connection& peer, Instant now) {
  if (load_.stage_ > Load::Stage::running) return;
  std::uint64_t count = load_.settings_.pipeline - on_their_way();
  if (load_.settings_.rate != 0) count = std::min(count, released_ - sent_);
  if (count == 0) return;
  for (std::uint64_t message = 0; message < count && sent_at_ != nullptr; ++message) {
    sent_at_[(sent_ + message) % load_.settings_.pipeline] = now;
  }
  sent_ += count;
  load_.on_their_way_ += count;
  for (std::uint64_t left = count * load_.settings_.message_bytes; left > 0;) {
    const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(left, EchoPattern::longest_piece));
    if (!peer.send(load_.pattern_.at(send_position_, piece))) return;  // on_close tells why
    send_position_ = load_.pattern_.advance(send_position_, piece);
    left -= piece;
  }
}

ConnectorOptions connector_options(const Settings& settings) {
  ConnectorOptions options;
  options.timeouts.connect = 10s;
  options.timeouts.drain = goodbye;
  options.backlog_bytes_max = std::max<std::size_t>(options.backlog_bytes_max, settings.pipeline * settings.message_bytes);
  return options;
}

Load::Load(const Settings& settings)
    : settings_(settings),
      pattern_(settings.message_bytes),
      connector_(reactor_, connector_options(settings), [this](Connection&) { return Client(*this, clients_.size()); }),
      next_due_(reactor_, [this] { release_due(); }),
      stage_end_(reactor_, [this] { stage_ == Stage::running ? stop_sending() : end(); }),
      progress_(reactor_, [this] { draw_progress(); }) {
  clients_.reserve(settings.connections);
}

Result<void> Load::run() {
  progress_at_ = reactor_.now();
  if (bar_.shown()) draw_progress();
  connect_more();
  auto ran = reactor_.run();
  bar_.clear();
  return ran;
}

void Load::connect_more() {
  while (stage_ == Stage::connecting && clients_.size() < settings_.connections && attempts_under_way_ < attempts_at_once) {
    auto attempt = connector_.connect(settings_.target);
    if (!attempt) {
      failed(attempt.error().operation, describe(attempt.error()));
      clients_.emplace_back();
      continue;
    }
    clients_.push_back(*attempt);
    ++attempts_under_way_;
  }
  if (stage_ == Stage::connecting && attempts_under_way_ == 0 && clients_.size() == settings_.connections) begin();
}

void Load::attempt_ended(bool opened) {
  --attempts_under_way_;
  if (opened) ++open_;
  connect_more();
}

void Load::begin() {
  if (open_ == 0) return end();
  stage_ = Stage::running;
  const Instant now = reactor_.now();
  window_begin_ = now + settings_.warmup;
  window_end_ = window_begin_ + settings_.duration;
  (void)stage_end_.arm_at(window_end_);
  if (settings_.rate == 0) return;
  first_due_ = now;
  (void)next_due_.arm_at(first_due_);
}

void Load::release_due() {
  if (stage_ != Stage::running) return;
  const Instant now = reactor_.now();
  const std::uint64_t connections = settings_.connections;
  const std::uint64_t all = due_before(now + 1ns);
  // Who is far behind visits each connection once: a visit releases whatever has become due for it, so whole rounds are skipped.
  if (all > released_) released_ += (all - released_ - 1) / connections * connections;
  for (const std::uint64_t end = std::min(all, released_ + releases_per_turn); released_ < end; ++released_) {
    const ConnectionHandle& client = clients_[released_ % connections];
    if (client->is_open()) client->handler<Client>().release(*client, released_ / connections + 1, now);
  }
  (void)next_due_.arm_at(due(released_));  // what is left, if that has passed: in the next turn
}

void Load::count_due(std::uint64_t index, const Client& client) {
  const std::uint64_t first = due_before(window_begin_, index);
  const std::uint64_t end = due_before(window_end_, index);
  due_messages_ += end - first;
  never_sent_ += end - std::clamp(client.sent(), first, end);
}

/// What was never answered, or never sent though it was due, counts with its age: a stall that lasts to the end must show in the
/// latencies.
void Load::record_unanswered(std::uint64_t index, const Client& client, Instant now) {
  if (settings_.rate == 0) {
    for (std::uint64_t message = client.answered(); message < client.sent(); ++message) {
      const Instant began = client.began(message);
      if (began >= window_begin_ && began < window_end_) latencies_.record(now - began);
    }
    return;
  }
  // There may be millions: those whose ages differ by less than half a percent are recorded together.
  const std::uint64_t end = due_before(window_end_, index);
  const double messages_a_nanosecond = static_cast<double>(settings_.rate) / 1e9 / static_cast<double>(settings_.connections);
  for (std::uint64_t message = std::max(client.answered(), due_before(window_begin_, index)); message < end;) {
    const Duration age = now - client.began(message);
    const double alike = static_cast<double>(age.count()) / 200 * messages_a_nanosecond;
    const std::uint64_t times = std::min(1 + static_cast<std::uint64_t>(alike), end - message);
    latencies_.record(age, times);
    message += times;
  }
}

void Load::answered(Instant began, Instant now) {
  --on_their_way_;
  if (now >= window_begin_ && now < window_end_) ++messages_;
  if (began >= window_begin_ && began < window_end_) latencies_.record(now - began);
  if (stage_ == Stage::awaiting_answers && on_their_way_ == 0) end();
}

void Load::stop_sending() {
  if (settings_.rate != 0) release_due();  // what has become due since the last tick
  stage_ = Stage::awaiting_answers;
  next_due_.disarm();
  if (on_their_way_ == 0) return end();
  const Duration patience = std::clamp(2 * latencies_.longest(), answers_awaited_at_least, answers_awaited_at_most);
  (void)stage_end_.arm_after(patience);
}

void Load::end() {
  if (stage_ == Stage::ended) return;
  const bool answers_are_overdue = stage_ == Stage::awaiting_answers;
  stage_ = Stage::ended;
  const Instant now = reactor_.now();
  window_end_ = std::min(window_end_, now);
  for (std::uint64_t index = 0; index < clients_.size(); ++index) {
    if (!clients_[index]->is_open()) continue;
    const Client& client = clients_[index]->handler<Client>();
    if (settings_.rate != 0 && measured() > Duration::zero()) count_due(index, client);
    if (!answers_are_overdue) continue;
    record_unanswered(index, client, now);
    if (client.on_their_way() == 0) continue;
    failed("unanswered",
           "connection " + std::to_string(index) + ": " + grouped(client.on_their_way()) + " messages were not answered");
  }
  next_due_.disarm();
  stage_end_.disarm();
  progress_.disarm();
  (void)reactor_.shutdown(goodbye);
}

void Load::interrupt(bool again) {
  if (again) {
    (void)reactor_.shutdown(Duration::zero());
  } else {
    if (settings_.rate != 0) release_due();  // what has become due since the last tick was not missed
    window_end_ = std::min(window_end_, reactor_.now());
    if (stage_ == Stage::awaiting_answers) stage_ = Stage::running;  // nobody waited long enough to call an answer overdue
    end();
  }
}

void Load::failed(const std::string& cause, const std::string& what) {
  ++errors_;
  ++causes_[cause];
  if (first_error_.empty()) first_error_ = what;
}

void Load::draw_progress() {
  const Instant now = reactor_.now();
  const auto seconds = [](Duration duration) { return static_cast<double>(duration.count()) * 1e-9; };
  if (stage_ == Stage::connecting) {
    bar_.draw("connecting", static_cast<double>(open_) / static_cast<double>(settings_.connections),
              grouped(open_) + " of " + grouped(settings_.connections));
  } else if (stage_ == Stage::running && now < window_begin_) {
    bar_.draw("warming up", 1 - seconds(window_begin_ - now) / seconds(settings_.warmup),
              readable(window_begin_ - now) + " left");
  } else if (stage_ == Stage::running) {
    const std::uint64_t bytes = reactor_.counters().received_bytes;
    const double rate = static_cast<double>(bytes - progress_bytes_) / std::max(seconds(now - progress_at_), 1e-3);
    bar_.draw("measuring", seconds(now - window_begin_) / seconds(settings_.duration),
              grouped(static_cast<std::uint64_t>(rate / static_cast<double>(settings_.message_bytes))) + "/s");
  } else {
    bar_.draw("last answers", 1, grouped(on_their_way_) + " to come");
  }
  progress_bytes_ = reactor_.counters().received_bytes;
  progress_at_ = now;
  (void)progress_.arm_after(progress_interval);
}

struct Quantile {
  const char* key;
  const char* name;
  double fraction;
};

constexpr std::array quantiles{
    Quantile{"p50_ns", "p50", 0.5},      Quantile{"p90_ns", "p90", 0.9}, Quantile{"p99_ns", "p99", 0.99},
    Quantile{"p999_ns", "p99.9", 0.999}, Quantile{"max_ns", "max", 1},
};

double measured_seconds(const Load& load) { return static_cast<double>(load.measured().count()) * 1e-9; }

void report_json(EventReport& report, const Load& load, const Settings& settings) {
  nlohmann::ordered_json result{{"event", "result"},
                                {"messages", load.messages()},
                                {"bytes", load.bytes()},
                                {"errors", load.errors()},
                                {"seconds", measured_seconds(load)}};
  for (const Quantile& quantile : quantiles) {
    auto& value = result[quantile.key];  // null where nothing was measured
    if (load.latencies().count() > 0) value = load.latencies().quantile(quantile.fraction).count();
  }
  if (settings.rate != 0) {
    result["due"] = load.due_messages();
    result["never_sent"] = load.never_sent();
  }
  report.json(std::move(result));
}

void report_to_people(EventReport& report, const Load& load, const Settings& settings) {
  report.remark(grouped(settings.connections) + (settings.connections == 1 ? " connection to " : " connections to ") +
                settings.target.to_string() + ", messages of " + grouped(settings.message_bytes) + " bytes, pipeline " +
                grouped(settings.pipeline) + (settings.rate > 0 ? ", due at " + grouped(settings.rate) + " a second" : ""));
  if (load.measured() > Duration::zero()) {
    const double seconds = measured_seconds(load);
    char exact_seconds[32];
    std::snprintf(exact_seconds, sizeof exact_seconds, "%.3f s", seconds);
    report.remark("throughput  " + grouped(static_cast<std::uint64_t>(static_cast<double>(load.messages()) / seconds)) +
                  " messages/s, " + readable_bytes(static_cast<double>(load.bytes()) / seconds) + "/s (" +
                  grouped(load.messages()) + " messages in " + exact_seconds + ")");
  } else {
    report.remark("throughput  nothing was measured: the run ended before its warm-up did");
  }
  if (load.latencies().count() > 0) {
    std::string line = "latency    ";
    for (const Quantile& quantile : quantiles) {
      line += std::string(" ") + quantile.name + " " + readable(load.latencies().quantile(quantile.fraction)) + "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    report.remark(line);
  }
  if (load.never_sent() > 0) {
    const bool still_behind = load.due_messages() - load.never_sent() < load.messages();
    report.remark("rate        not kept: of " + grouped(load.due_messages()) + " messages due " + grouped(load.never_sent()) +
                  " were never sent" + (still_behind ? "; some of those answered had been due in the warm-up" : ""));
  }
  if (load.errors() == 0) return report.remark("errors      none; every byte that came back was compared");
  std::string line = "errors      " + grouped(load.errors()) + ":";
  for (const auto& [cause, count] : load.causes()) line += " " + grouped(count) + " " + cause;
  report.remark(line);
}

int fail(const std::string& what) {
  std::fprintf(stderr, "vigil-load: %s\n", what.c_str());
  return 1;
}

int run(const Settings& settings) {
  LineOutput output(STDOUT_FILENO);
  int status = 0;
  {
    Load load(settings);
    EventReport report(output, load.reactor(), settings.json ? Format::json : Format::people);
    Interruption interruption;
    if (auto armed = interruption.arm(load.reactor(), output, [&](bool again) { load.interrupt(again); }); !armed) {
      return fail(describe(armed.error()));
    }
    if (auto ran = load.run(); !ran) return fail(describe(ran.error()));

    if (!load.first_error().empty()) (void)fail(settings.target.to_string() + ": " + load.first_error());
    if (settings.json) {
      report_json(report, load, settings);
    } else {
      report_to_people(report, load, settings);
    }
    if (!interruption.came() && (load.errors() > 0 || load.messages() == 0)) status = 1;
  }
  return finish_output("vigil-load", output, status);
}

/// Nothing, or what is wrong: the limit can't be raised to what the connections need.
std::optional<std::string> make_room_for(std::uint64_t connections) {
  constexpr std::uint64_t others = 32;  // poller, wake-up, signals, output, what we were started with
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= connections + others) return std::nullopt;
  if (limit.rlim_max < connections + others) {
    return "--connections: " + std::to_string(connections) + " need " + std::to_string(connections + others) +
           " descriptors, and the limit is " + std::to_string(limit.rlim_max) + " (ulimit -Hn)";
  }
  limit.rlim_cur = connections + others;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
  return std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CommandLine command_line("vigil-load",
                           "Keeps an echo server busy, compares every byte of the echo, and tells throughput and latency.\n"
                           "Exit status: 0 all well, 1 something was not echoed as it should.");
  command_line.target(settings.target, "Connect here");
  command_line.number("--connections", "N", settings.connections, 1, 1'000'000, "This many connections (1)");
  command_line.number("--size", "BYTES", settings.message_bytes, 1, 64 * 1024 * 1024, "Messages have this size (64)");
  command_line.number("--pipeline", "P", settings.pipeline, 1, 65'536,
                      "At most this many messages of a connection on their way (1)");
  command_line.duration("--duration", settings.duration, 1ms, "Measure for this long (10s)");
  command_line.duration("--warmup", settings.warmup, 0ms, "Run this long before measuring (1s)");
  command_line.number("--rate", "R", settings.rate, 1, 100'000'000,
                      "Open loop: this many messages a second in all; latency counts from when a message was due");
  command_line.flag("--json", settings.json, "One JSON object a line");
  if (const auto status = command_line.parse(argc, argv)) return *status;

  if (settings.pipeline * settings.message_bytes > bytes_on_their_way_max) {
    return command_line.refuse("--pipeline times --size is more than 1 GiB");
  }
  if (const auto problem = make_room_for(settings.connections)) return command_line.refuse(*problem);
  return run(settings);
}
