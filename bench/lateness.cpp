// How late a deadline is told, and how late a peer's end is: on the real kernel, over loopback.
//
//   bench-lateness [--count N] [--seed N] [--only NAME] [--json]     NAME: the beginning of the names in the first column
//
// For each kind of deadline one reactor holds N connections (1,200), N attempts or N listeners at once, with timeouts drawn from
// 50 to 450 ms, a heartbeat's budgets from 2 to 4 s. The peers are plain sockets on a thread of their own (lateness_peers.hpp).
//
// When a deadline was due is known from the bench's own clock alone, as its timeout after what it runs from. That happened
// between two stamps: for a byte received, say, just before the peer's send and on entry to on_receive. Lateness is counted from
// the earlier stamp, so that all doubt is on vigil's account, and what lies between the stamps is shown as "doubt". A deadline
// told before the earlier stamp and its timeout was early beyond doubt; one told within the doubt is counted as "in doubt", one
// that nobody can say the due time of (the bench's own threads were late) is left out and counted.
// `send` and the rates of sending may take an eighth of the timeout (or window) more, by their rule: their lateness begins there,
// and is negative for most.
//
// Exit status: 1 if one deadline was early, or ended for another reason than its own; else 0. Targets that were missed are named.
#include <sys/epoll.h>
#include <sys/resource.h>

#include <cinttypes>
#include <string_view>

#include "lateness_peers.hpp"
#include "lateness_row.hpp"
#include "lateness_run.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace lateness;

// --- deadlines of connections that were accepted

Span opening(const Life& life, const Peer& peer) { return {peer.connected.before, life.opened}; }

/// The last of the bytes that were received, sent one by one. One that was with our kernel before that deadline was due, and
/// was not read, should have been: then it is the last.
Span last_byte(const Life& life, const Peer& peer) {
  const std::size_t received = life.record.received;
  const Span last = received == 0 ? opening(life, peer) : Span{peer.acts[received - 1].before, life.heard};
  if (received < peer.acts.size() && peer.acts[received].after < last.before + life.timeout) return peer.acts[received];
  return last;
}

/// The acknowledgement, if it came before the deadline was told.
Span acknowledgement(const Life& life, const Peer& peer) {
  if (peer.acts.empty() || peer.acts.back().after > life.told) return opening(life, peer);
  return peer.acts.back();
}

// More than the smallest window takes; large enough to be handed to the kernel inside send().
const std::vector<std::byte> much(64 * 1024);

void answer_much(Connection& connection, Life& life) {
  life.acted.before = clock_now();
  connection.send(Bytes(much.data(), much.size()));
  life.acted.after = clock_now();
}

void cue_and_go_deaf(Peer& peer) {
  go_deaf(peer);
  send_byte(peer);
}

void send_enough(Peer& peer) { (void)send(peer.descriptor, much.data(), 4096, MSG_NOSIGNAL | MSG_DONTWAIT); }

constexpr double window_share = 2.0 / 3;

vigil::Rate rate_within(Duration timeout) {
  const Duration window = scaled(timeout, window_share);
  return {.bytes_per_second = 1000, .window = window, .grace = timeout - window};
}

/// What made the first window a good one happened in `good`: the next is the one with too little, and what was late of the first
/// is late of it too. Nothing, if the first may not have begun then, or have ended.
std::optional<Span> a_window_later(const Life& life, Span start, Span good) {
  const Duration window = scaled(life.timeout, window_share);
  const Instant begun_by = start.after + life.timeout - window + life.loop_delay + 2ms;
  if (good.before < begun_by || good.after > start.before + life.timeout) return std::nullopt;
  return Span{start.before + window, start.after + window};
}

const std::vector<std::pair<double, double>> three_bytes{{0.1, 0.4}, {0.4, 0.7}, {0.7, 1.0}};

std::vector<Scenario> scenarios() {
  std::vector<Scenario> all;
  all.push_back({.name = "first_byte",
                 .reason = CloseReason::first_byte_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.first_byte = timeout}; },
                 .from = opening});
  all.push_back({.name = "receive, from open",
                 .reason = CloseReason::receive_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.receive = timeout}; },
                 .from = opening});
  all.push_back({.name = "receive, from the third byte",
                 .reason = CloseReason::receive_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.receive = timeout}; },
                 .moments = three_bytes,
                 .act = send_byte,
                 .from = last_byte});
  all.push_back({.name = "message, from open",
                 .reason = CloseReason::message_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.message = timeout}; },
                 .moments = three_bytes,
                 .act = send_byte,
                 .from = opening});
  all.push_back({.name = "message, from its first byte",
                 .reason = CloseReason::message_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.message = timeout}; },
                 .on_open = [](vigil::Reactor&, Connection& connection, Life&) { connection.end_message(); },
                 .on_receive =
                     [](Connection&, Life& life) {
                       if (life.acted.after == Instant{}) life.acted.after = life.heard;
                     },
                 .moments = {{0.1, 1.0}, {1.0, 1.3}, {1.3, 1.6}},
                 .act = send_byte,
                 .from =
                     [](const Life& life, const Peer& peer) {
                       return Span{peer.acts.at(0).before, life.acted.after};
                     }});
  // A third of the timeout is grace, the rest the window.
  all.push_back({.name = "receive_rate, in the first window",
                 .reason = CloseReason::receive_too_slow,
                 .timeouts = [](Duration timeout) { return Timeouts{.receive_rate = rate_within(timeout)}; },
                 .moments = three_bytes,
                 .act = send_byte,
                 .from = opening});
  all.push_back({.name = "receive_rate, after a good window",
                 .reason = CloseReason::receive_too_slow,
                 .timeouts = [](Duration timeout) { return Timeouts{.receive_rate = rate_within(timeout)}; },
                 .moments = {{0.5, 0.7}},
                 .act = send_enough,
                 .from = [](const Life& life, const Peer& peer) -> std::optional<Span> {
                   if (life.record.received == 0) return opening(life, peer);
                   return a_window_later(life, opening(life, peer), {peer.acts.front().before, life.heard});
                 }});
  // The peer is deaf when its cue comes: nothing of the answer is ever acknowledged.
  all.push_back({.name = "send, nothing acknowledged",
                 .reason = CloseReason::send_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.send = timeout}; },
                 .on_receive = answer_much,
                 .moments = {{0, 0}},
                 .act = cue_and_go_deaf,
                 .from = [](const Life& life, const Peer&) { return life.acted; },
                 .allowance = 1.0 / 8});
  all.push_back({.name = "send, from an acknowledgement",
                 .reason = CloseReason::send_timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.send = timeout}; },
                 .on_open = [](vigil::Reactor&, Connection& connection, Life& life) { answer_much(connection, life); },
                 .moments = {{0.3, 0.8}},
                 .act = acknowledge_once_more,
                 .from = [](const Life& life, const Peer& peer) -> std::optional<Span> {
                   if (!peer.acknowledged) return std::nullopt;
                   return acknowledgement(life, peer);
                 },
                 .allowance = 1.0 / 8,
                 .peer_receive_buffer_bytes = 8192});
  all.push_back({.name = "send_rate, in the first window",
                 .reason = CloseReason::send_too_slow,
                 .timeouts = [](Duration timeout) { return Timeouts{.send_rate = rate_within(timeout)}; },
                 .on_receive = answer_much,
                 .moments = {{0, 0}},
                 .act = cue_and_go_deaf,
                 .from = [](const Life& life, const Peer&) { return life.acted; },
                 .allowance = window_share / 8});
  all.push_back({.name = "send_rate, after a good window",
                 .reason = CloseReason::send_too_slow,
                 .timeouts = [](Duration timeout) { return Timeouts{.send_rate = rate_within(timeout)}; },
                 .on_open = [](vigil::Reactor&, Connection& connection, Life& life) { answer_much(connection, life); },
                 .moments = {{0.5, 0.7}},
                 .act = acknowledge_once_more,
                 .from = [](const Life& life, const Peer& peer) -> std::optional<Span> {
                   if (peer.acts.empty() || peer.acts.back().after > life.told) return life.acted;
                   if (!peer.acknowledged) return std::nullopt;
                   return a_window_later(life, life.acted, peer.acts.back());
                 },
                 .allowance = window_share / 8,
                 .peer_receive_buffer_bytes = 8192});
  // Closed in a task, whose turn sends our end; the next turn's task comes after it.
  all.push_back({.name = "drain",
                 .reason = CloseReason::local_close,
                 .cut_short = CutShort::timed_out,
                 .timeouts = [](Duration timeout) { return Timeouts{.drain = timeout}; },
                 .on_open =
                     [](vigil::Reactor& reactor, Connection& connection, Life& life) {
                       must(reactor.post([&reactor, &life, handle = connection.handle()] {
                         life.acted.before = clock_now();
                         handle->close();
                         must(reactor.post([&life] { life.acted.after = clock_now(); }));
                       }));
                     },
                 .from = [](const Life& life, const Peer&) { return life.acted; }});
  // Who takes every probe and answers none hangs, by its kernel's acknowledgements.
  for (const bool after_a_byte : {false, true}) {
    all.push_back({.name = after_a_byte ? "heartbeat, from the third byte" : "heartbeat, from open",
                   .reason = CloseReason::heartbeat_lost,
                   .verdict = vigil::Verdict::hung,
                   .timeouts = [](Duration) { return Timeouts{.receive = never_ends}; },
                   .heartbeat = [](Duration budget) { return vigil::HeartbeatOptions{.budget = budget, .ping = "ping"}; },
                   .range = {2s, 4s},
                   .moments = after_a_byte ? three_bytes : decltype(three_bytes){},
                   .act = send_byte,
                   .from = last_byte});
  }
  for (const bool reset : {false, true}) {
    all.push_back({.name = reset ? "a peer's RST, told" : "a peer's FIN, told",
                   .reason = reset ? CloseReason::peer_reset : CloseReason::peer_finished,
                   .timeouts = [](Duration) { return Timeouts{.receive = never_ends}; },
                   .moments = {{0, 2}},
                   .act = reset ? reset_peer : close_peer,
                   .from = [](const Life&, const Peer& peer) -> std::optional<Span> {
                     if (peer.acts.empty()) return std::nullopt;
                     return peer.acts.back();
                   },
                   .is_deadline = false});
  }
  return all;
}

// --- deadlines of attempts and of listeners

/// The listener's queue is full: the kernel drops every SYN, so that an attempt gets no answer at all.
Row run_connect() {
  Row row{.name = "connect"};
  Random random = random_for(row.name);
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || listen(listener, 0) != 0) die("listen");
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  Peer fills_it{.server_port = ntohs(address.sin_port)};
  connect_peer(fills_it);

  struct Attempt {
    Run* run;
    Told* told;
    std::size_t* wrong_reason;
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord& record) {
      told->at = clock_now();
      if (record.reason != CloseReason::connect_timed_out || record.error_number != 0) ++*wrong_reason;
      run->one_told();
    }
  };
  Run run;
  std::vector<Told> told(options.count);
  std::size_t current = 0;
  std::vector<std::unique_ptr<vigil::Connector<Attempt>>> connectors;
  for (std::size_t group = 0; group < group_count; ++group) {
    const Duration timeout = between(random, shortest, longest);
    for (std::size_t index = group; index < options.count; index += group_count) told[index].timeout = timeout;
    connectors.push_back(std::make_unique<vigil::Connector<Attempt>>(
        run.reactor, vigil::ConnectorOptions{.timeouts = {.connect = timeout}}, [&](Connection&) {
          return Attempt{&run, &told[current], &row.wrong_reason};
        }));
  }
  const auto target = vigil::Address::from_ipv4({127, 0, 0, 1}, fills_it.server_port);
  Pacer pacer(run.reactor, [&](std::size_t index) {
    current = index;
    told[index].from.before = clock_now();
    (void)must(connectors[index % group_count]->connect(target));
    told[index].from.after = clock_now();
  });
  run.until_all_told("connect");
  row.told = std::move(told);
  row.loop_delay = run.loop_delay();
  reset_peer(fills_it);
  close(listener);
  return row;
}

const char* accept_name(bool visited) { return visited ? "accept, from an accept" : "accept, from listen"; }

/// Listeners to which nobody comes, or somebody once.
Row run_accept(bool visited) {
  Row row{.name = accept_name(visited)};
  Random random = random_for(row.name);
  struct Visitor {
    Instant* opened;
    void on_open(Connection&) { *opened = clock_now(); }
    void on_receive(Connection&, Bytes) {}
    void on_close(Connection&, const CloseRecord&) {}
  };
  struct Door {
    Run* run = nullptr;
    Told told{};
    Peer peer{};
    Instant opened{};
    std::unique_ptr<vigil::Listener<Visitor>> listener{};
    vigil::Timer visit{};

    void on_accept_timed_out(Duration) {
      told.at = clock_now();
      if (peer.port != 0) told.from = {peer.connected.before, opened};
      listener->close();
      run->one_told();
    }
  };
  std::vector<Door> doors(options.count);  // before the reactor, which ends the visitors
  Run run;
  Pacer pacer(run.reactor, [&](std::size_t index) {
    Door& door = doors[index];
    door.run = &run;
    door.told.timeout = between(random, shortest, longest);
    door.listener = std::make_unique<vigil::Listener<Visitor>>(
        run.reactor, vigil::ListenerOptions{.timeouts = {.accept = door.told.timeout}},
        [&door](Connection&) { return Visitor{&door.opened}; }, door);
    door.told.from.before = clock_now();
    must(door.listener->listen("127.0.0.1:0"));
    door.told.from.after = clock_now();
    if (!visited) return;
    door.peer.server_port = must(door.listener->address()).port();
    door.visit = vigil::Timer(run.reactor, [&door] { connect_peer(door.peer); });
    must(door.visit.arm_after(scaled(door.told.timeout, std::uniform_real_distribution<>(0.2, 0.8)(random))));
  });
  run.until_all_told(row.name.c_str());
  for (Door& door : doors) {
    row.told.push_back(door.told);
    if (door.peer.port != 0) reset_peer(door.peer);
    door.visit = {};
    door.listener.reset();
  }
  row.loop_delay = run.loop_delay();
  return row;
}

/// How late this machine ends a bare wait now: what no program can do better.
Row run_bare_wait() {
  Row row{.name = "(a bare epoll_pwait2)"};
  Random random = random_for(row.name);
  const int poller = epoll_create1(EPOLL_CLOEXEC);
  for (std::size_t index = 0; index < options.count; ++index) {
    Told& told = row.told.emplace_back();
    told.timeout = between(random, 100us, 1ms);
    const timespec timeout{0, static_cast<long>(told.timeout.count())};
    epoll_event event{};
    told.from = {clock_now(), {}};
    told.from.after = told.from.before;
    (void)epoll_pwait2(poller, &event, 1, &timeout, nullptr);
    told.at = clock_now();
  }
  close(poller);
  row.targets = {Duration::max(), Duration::max()};
  return row;
}

std::optional<std::uint64_t> number(const char* text) {
  char* end = nullptr;
  errno = 0;
  const std::uint64_t value = std::strtoull(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || *text == '-') return std::nullopt;
  return value;
}

[[noreturn]] void usage() {
  std::fputs("usage: bench-lateness [--count N (48 to 5000)] [--seed N] [--only NAME] [--json]\n", stderr);
  std::exit(64);
}

}  // namespace

int main(int count, char** arguments) {
  std::string_view only;
  options.seed = std::random_device()();
  for (int index = 1; index < count; ++index) {
    const std::string_view option = arguments[index];
    if (option == "--json") {
      options.json = true;
      continue;
    }
    if (option == "--only" && index + 1 < count) {
      only = arguments[++index];
      continue;
    }
    const auto value = index + 1 < count ? number(arguments[++index]) : std::nullopt;
    if (!value) usage();
    if (option == "--seed") {
      options.seed = *value;
    } else if (option == "--count" && *value >= group_count && *value <= 5000) {
      options.count = *value;
    } else {
      usage();
    }
  }
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  descriptors.rlim_cur = descriptors.rlim_max;
  setrlimit(RLIMIT_NOFILE, &descriptors);

  double load = 0;
  getloadavg(&load, 1);
  if (options.json) {
    std::printf("{\"event\":\"run\",\"seed\":%" PRIu64 ",\"load_average\":%.2f,\"processors\":%ld}\n", options.seed, load,
                sysconf(_SC_NPROCESSORS_ONLN));
  } else {
    std::printf("seed %" PRIu64 ", load average %.2f, %ld processors\n", options.seed, load, sysconf(_SC_NPROCESSORS_ONLN));
  }
  print_heading();
  const auto asked_for = [&](std::string_view name) { return name.starts_with(only); };
  if (asked_for("(")) print(run_bare_wait());
  if (asked_for("connect")) print(run_connect());
  for (const bool visited : {false, true})
    if (asked_for(accept_name(visited))) print(run_accept(visited));
  for (const Scenario& scenario : scenarios())
    if (asked_for(scenario.name)) print(run_scenario(scenario));
  for (const std::string& miss : misses) std::fprintf(stderr, "missed: %s\n", miss.c_str());
  if (misses.empty() && !options.json) std::puts("every target met");
  return failed ? 1 : 0;
}
