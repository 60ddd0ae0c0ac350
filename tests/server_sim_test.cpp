// Servers on virtual time, in a world of one thread: how their reactors start, share the work and end, and what is left when one
// of the steps fails.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;

namespace {

/// What happened on all reactors of one server, with the number of the one it happened on.
struct Diary {
  std::vector<std::string> lines;
  std::vector<CloseRecord> records;
  int shards = 0;  ///< alive

  void note(const std::string& what, unsigned index) { lines.push_back(what + " " + std::to_string(index)); }
  [[nodiscard]] bool has(const std::string& line) const { return std::find(lines.begin(), lines.end(), line) != lines.end(); }
};

struct DiaryShard;

/// Echoes, and notes.
struct DiaryHandler {
  explicit DiaryHandler(DiaryShard& its_shard);
  DiaryHandler(const DiaryHandler&) = delete;
  ~DiaryHandler();

  void on_receive(Connection& peer, Bytes bytes);
  void on_close(Connection&, const CloseRecord& record);

  DiaryShard& shard;
};

struct DiaryShard {
  DiaryShard(Diary& given, Worker& given_worker) : diary(given), worker(given_worker) {
    ++diary.shards;
    CHECK(worker.listener().address().error() == Error{"address", ENOTCONN});
    CHECK(worker.index() < worker.reactors());
    diary.note("shard", worker.index());
  }
  DiaryShard(const DiaryShard&) = delete;
  ~DiaryShard() {
    CHECK(handlers == 0);
    CHECK(worker.reactor().counters().opened == worker.reactor().counters().closed);
    CHECK(worker.listener().address().error() == Error{"address", ENOTCONN});
    --diary.shards;
    diary.note("shard over", worker.index());
  }

  DiaryHandler make_handler(Connection&) { return DiaryHandler(*this); }
  void on_accept_timed_out(Duration) { diary.note("nobody came", worker.index()); }
  void on_accept_paused(const Error&, Duration) { diary.note("paused", worker.index()); }

  Diary& diary;
  Worker& worker;
  int handlers = 0;  ///< alive
};

DiaryHandler::DiaryHandler(DiaryShard& its_shard) : shard(its_shard) {
  ++shard.handlers;
  shard.diary.note("handler", shard.worker.index());
}
DiaryHandler::~DiaryHandler() { --shard.handlers; }

void DiaryHandler::on_receive(Connection& peer, Bytes bytes) {
  if (text_of(bytes) == "stop") shard.worker.reactor().stop();
  if (text_of(bytes) == "shut down") REQUIRE(shard.worker.reactor().shutdown(0ns));
  peer.send(bytes);
}

void DiaryHandler::on_close(Connection&, const CloseRecord& record) {
  shard.diary.records.push_back(record);
  shard.diary.note("closed", shard.worker.index());
}

/// A server in a scripted world. At the end no worker, signal, descriptor, shard or handler is left.
struct World {
  explicit World(const ServerOptions& options = {.reactors = 2})
      : server(std::in_place, options, [this](Worker& worker) { return DiaryShard(diary, worker); }) {}

  ~World() {
    server.reset();
    CHECK(kernel.workers() == 0);
    CHECK(kernel.blocked_signals().empty());
    CHECK(diary.shards == 0);
  }

  /// Starts it; from then on `listeners` are its reactors' listening descriptors.
  void start(std::string_view address = "127.0.0.1:7000") {
    const auto started = server->start(address);
    if (!started) FAIL(describe(started.error()));
    listeners = kernel.listeners();
  }

  /// Every reactor does what there is to do now.
  void settle() {
    for (int rounds = 0; kernel.turn_workers(); ++rounds) REQUIRE(rounds < 1000);
  }

  int connect(std::size_t reactor) {
    const int peer = kernel.peer_connects(listeners.at(reactor));
    settle();
    return peer;
  }

  void run() {
    const auto ran = server->run();
    if (!ran) FAIL(describe(ran.error()));
  }

  /// That it could not be started leaves nothing, and it can be started when the cause is gone.
  void check_nothing_is_left() {
    CHECK(server->reactors() == 0);
    CHECK(kernel.workers() == 0);
    CHECK(kernel.blocked_signals().empty());
    CHECK(kernel.listeners().empty());
    CHECK(diary.shards == 0);
    CHECK(server->address().error() == Error{"address", ENOTCONN});
    CHECK(server->run().error() == Error{"run", EINVAL});
    CHECK(kernel.open_descriptors() == descriptors_before);
    start();
    REQUIRE(server->shutdown(0ns));
    run();
  }

  CheckedKernel kernel;
  Diary diary;
  std::optional<Server<DiaryHandler, DiaryShard>> server;
  std::vector<int> listeners;
  std::vector<int> descriptors_before = kernel.open_descriptors();  // of the control reactor
};

bool is_reuse_port(int descriptor) {
  int value = 0;
  socklen_t length = sizeof value;
  REQUIRE(sys::get_option(descriptor, SOL_SOCKET, SO_REUSEPORT, &value, &length) == 0);
  return value != 0;
}

}  // namespace

TEST_CASE("each reactor of a server listens on the same port and serves what it accepts") {
  World world({.reactors = 3});
  world.start("127.0.0.1:0");
  CHECK(world.server->reactors() == 3);
  const Address address = *world.server->address();
  CHECK(address.port() != 0);
  REQUIRE(world.listeners.size() == 3);
  for (const int listener : world.listeners) {
    CHECK(*local_address(listener) == address);
    CHECK(is_reuse_port(listener));
  }
  CHECK(world.diary.lines == std::vector<std::string>{"shard 0", "shard 1", "shard 2"});

  std::vector<int> peers;
  for (std::size_t reactor = 0; reactor < 3; ++reactor) {
    peers.push_back(world.connect(reactor));
    CHECK(world.diary.has("handler " + std::to_string(reactor)));
    world.kernel.peer_sends(peers.back(), "hello");
    world.settle();
    CHECK(world.kernel.sent(peers.back()) == "hello");
  }
  for (const int peer : peers) world.kernel.peer_finishes(peer);
  world.settle();
  CHECK(world.diary.records.size() == 3);
  REQUIRE(world.server->shutdown(0ns));
  world.run();
}

TEST_CASE("a server of one reactor does not share its port") {
  World world({.reactors = 1});
  world.start();
  CHECK_FALSE(is_reuse_port(world.listeners.at(0)));
}

TEST_CASE("a shutdown drains every reactor, and run returns when the last record was told and each shard is gone") {
  World world;
  world.start();
  const int first = world.connect(0), second = world.connect(1);
  const Instant began = world.kernel.now();
  world.kernel.after(1s, [&] { REQUIRE(world.server->shutdown(3s)); });
  world.kernel.after(2s, [&] { world.kernel.peer_finishes(first); });
  world.run();

  CHECK(world.kernel.sent_end(first));
  CHECK(world.kernel.sent_end(second));
  REQUIRE(world.diary.records.size() == 2);
  for (const CloseRecord& record : world.diary.records) CHECK(record.reason == CloseReason::server_stopping);
  CHECK(world.diary.records[0].cut_short == CutShort::none);
  CHECK(world.diary.records[1].cut_short == CutShort::timed_out);
  CHECK(world.diary.lines == std::vector<std::string>{"shard 0", "shard 1", "handler 0", "handler 1", "closed 0", "shard over 0",
                                                      "closed 1", "shard over 1"});
  CHECK(world.kernel.now() - began >= 4s);
  CHECK(world.kernel.now() - began <= 4s + 2ms);
  CHECK(world.server->address().error() == Error{"address", ENOTCONN});
}

TEST_CASE("counters of all reactors are added up") {
  World world;
  world.start();
  for (std::size_t reactor = 0; reactor < 2; ++reactor) {
    const int peer = world.connect(reactor);
    world.kernel.peer_sends(peer, std::string(reactor + 1, 'x'));
    world.settle();
  }
  CHECK(world.server->counters().opened == 0);
  ReactorCounters sampled;
  int samples = 0;
  REQUIRE(world.server->sample([&](const ReactorCounters& counters) {
    sampled = counters;
    ++samples;
  }));
  CHECK(samples == 0);
  REQUIRE(world.server->control().post([&] { REQUIRE(world.server->shutdown(0ns)); }));
  world.run();

  CHECK(samples == 1);
  CHECK(sampled.opened == 2);
  CHECK(sampled.closed == 0);
  CHECK(sampled.received_bytes == 3);
  const ReactorCounters& total = world.server->counters();
  CHECK(total.opened == 2);
  CHECK(total.closed == 2);
  CHECK(total.closed_for[static_cast<std::size_t>(CloseReason::server_stopping)] == 2);
  CHECK(total.received_bytes == 3);
  CHECK(total.sent_bytes == 3);
  CHECK(world.server->sample([](const ReactorCounters&) {}).error() == Error{"sample", ESHUTDOWN});
}

TEST_CASE("a sum asked for while reactors end counts each of them once") {
  World world;
  world.start();
  const int peer = world.connect(0);
  (void)world.connect(1);
  world.kernel.peer_sends(peer, "shut down");  // reactor 0 alone
  world.settle();
  std::vector<ReactorCounters> sampled;
  const auto sample = [&] {
    REQUIRE(world.server->sample([&](const ReactorCounters& counters) { sampled.push_back(counters); }));
  };
  sample();  // one has ended and its news has not been read
  REQUIRE(world.server->control().turn(0ns));
  sample();  // now it has
  world.settle();
  REQUIRE(world.server->control().turn(0ns));
  REQUIRE(sampled.size() == 2);
  for (const ReactorCounters& counters : sampled) {
    CHECK(counters.opened == 2);
    CHECK(counters.closed == 1);
  }
  REQUIRE(world.server->shutdown(0ns));
  REQUIRE(world.server->control().turn(0ns));
  sample();  // the other one will end before it has looked
  world.run();
  REQUIRE(sampled.size() == 3);
  CHECK(sampled.back().opened == 2);
}

TEST_CASE("counters are summed, and of a maximum the larger is kept") {
  ReactorCounters left, right;
  left.turns = 1;
  left.opened = 2;
  left.loop_delay_ns_total = 10;
  left.loop_delay_ns_max = 7;
  left.closed_for.back() = 5;
  right.turns = 10;
  right.loop_delay_ns_total = 20;
  right.loop_delay_ns_max = 6;
  right.closed_for.back() = 50;
  right.closed_for.front() = 1;
  left += right;
  CHECK(left.turns == 11);
  CHECK(left.opened == 2);
  CHECK(left.loop_delay_ns_total == 30);
  CHECK(left.loop_delay_ns_max == 7);
  CHECK(left.closed_for.back() == 55);
  CHECK(left.closed_for.front() == 1);
}

TEST_CASE("a signal shuts every reactor down within the drain of the options, and a second one at once") {
  for (const int signal_number : {SIGTERM, SIGINT}) {
    CAPTURE(signal_number);
    for (const bool twice : {false, true}) {
      World world({.reactors = 2, .drain = 3s});
      world.start();
      CHECK(world.kernel.blocked_signals().size() == 2);
      (void)world.connect(0);
      (void)world.connect(1);
      const Instant began = world.kernel.now();
      world.kernel.after(1s, [&] { world.kernel.raise(signal_number); });
      if (twice) world.kernel.after(2s, [&] { world.kernel.raise(SIGTERM); });
      world.run();
      CHECK(world.diary.records.size() == 2);
      const Duration wanted = twice ? 2s : 4s;
      CHECK(world.kernel.now() - began >= wanted);
      CHECK(world.kernel.now() - began <= wanted + 2ms);
      CHECK(world.kernel.blocked_signals().empty());
    }
  }
}

TEST_CASE("the first signal of each run drains") {
  World world({.reactors = 2, .drain = 3s});
  for (int run = 0; run < 2; ++run) {
    world.start();
    (void)world.connect(0);
    const Instant began = world.kernel.now();
    world.kernel.after(1s, [&] { world.kernel.raise(SIGTERM); });
    world.run();
    CHECK(world.kernel.now() - began >= 4s);
  }
}

TEST_CASE("a server that is told not to leaves the signals alone") {
  World world({.reactors = 2, .stop_on_signals = false});
  world.start();
  CHECK(world.kernel.blocked_signals().empty());
  CHECK(world.kernel.count(Call::signal_open) == 0);
}

TEST_CASE("the signals are blocked before the first thread starts") {
  World world;
  world.start();
  const auto& calls = world.kernel.calls();
  const auto first = [&](Call call) {
    return std::find_if(calls.begin(), calls.end(), [=](const sys::RecordedCall& made) { return made.call == call; });
  };
  CHECK(first(Call::signal_open) < first(Call::start_worker));
}

TEST_CASE("a handler's stop does not end its reactor") {
  World world;
  world.start();
  const int peer = world.connect(0);
  world.kernel.peer_sends(peer, "stop");
  world.settle();
  world.kernel.peer_sends(peer, "still there");
  world.settle();
  CHECK(world.kernel.sent(peer) == "stopstill there");
}

TEST_CASE("a reactor that a handler shuts down ends alone, and run returns when the others have ended too") {
  World world;
  world.start();
  const int first = world.connect(0), second = world.connect(1);
  world.kernel.peer_sends(first, "shut down");
  world.kernel.after(1s, [&] {
    CHECK(world.diary.has("shard over 0"));
    world.kernel.peer_sends(second, "still there");
  });
  world.kernel.after(2s, [&] {
    CHECK(world.kernel.sent(second) == "still there");
    REQUIRE(world.server->shutdown(0ns));
  });
  world.run();
  CHECK(world.server->counters().closed == 2);
}

TEST_CASE("the control reactor's timers run beside the workers', and neither its stop nor its shutdown ends the server") {
  World world({.reactors = 2, .listener = {.timeouts = {.accept = 300ms}}});
  world.start();
  int ticks = 0;
  Timer timer(world.server->control(), [&] {
    if (++ticks == 5) REQUIRE(world.server->shutdown(0ns));
    if (ticks == 1) world.server->control().stop();
    if (ticks == 2) REQUIRE(world.server->control().shutdown(0ns));
    REQUIRE(timer.arm_after(100ms));
  });
  REQUIRE(timer.arm_after(100ms));
  world.run();
  CHECK(ticks == 5);
  CHECK(world.diary.has("nobody came 0"));
  CHECK(world.diary.has("nobody came 1"));
}

TEST_CASE("run from inside a callback is refused and changes nothing") {
  World world;
  world.start();
  Result<void> answer;
  REQUIRE(world.server->control().post([&] {
    answer = world.server->run();
    REQUIRE(world.server->shutdown(0ns));
  }));
  world.run();
  CHECK(answer.error() == Error{"run", EBUSY});
}

TEST_CASE("run from inside a callback of the control reactor's own run is refused and changes nothing") {
  World world;
  world.start();
  const unsigned reactors = world.server->reactors();
  Result<void> answer;
  REQUIRE(world.server->control().post([&] {
    answer = world.server->run();
    world.server->control().stop();
  }));
  REQUIRE(world.server->control().run());
  CHECK(answer.error() == Error{"run", EBUSY});
  CHECK(world.server->reactors() == reactors);
  CHECK(world.server->address());
  REQUIRE(world.server->shutdown(0ns));
  world.run();
}

TEST_CASE("a shutdown counts for the run it was asked in") {
  World world;
  REQUIRE(world.server->shutdown(0ns));  // not started: changes nothing
  world.start();
  CHECK(world.server->start("127.0.0.1:7001").error() == Error{"start", EBUSY});
  REQUIRE(world.server->shutdown(0ns));
  REQUIRE(world.server->shutdown(0ns));
  world.run();
  REQUIRE(world.server->shutdown(0ns));  // over: changes nothing
  world.start();
  bool served = false;
  world.kernel.after(1s, [&] {
    served = true;
    REQUIRE(world.server->shutdown(0ns));
  });
  world.run();
  CHECK(served);
  CHECK(world.server->shutdown(-1ns).error() == Error{"shutdown", EINVAL});
  CHECK(world.server->shutdown(std::chrono::years(11)).error() == Error{"shutdown", EINVAL});
}

TEST_CASE("destroying a server that runs ends every connection and tells it") {
  World world;
  world.start();
  (void)world.connect(0);
  (void)world.connect(1);
  world.server.reset();
  CHECK(world.diary.records.size() == 2);
  CHECK(world.diary.lines.back() == "shard over 1");
}

TEST_CASE("a reactor whose wait fails takes the others down in order, and run tells its error") {
  World world({.reactors = 2, .drain = 2s});
  world.start();
  (void)world.connect(0);
  const int second = world.connect(1);
  const Instant began = world.kernel.now();
  world.kernel.after(1s, [&] {
    world.kernel.peer_sends(second, "x");
    world.kernel.will_fail(Call::epoll_wait, EBADF, 0);
  });
  const auto ran = world.server->run();
  REQUIRE_FALSE(ran);
  CHECK(ran.error() == Error{"wait", EBADF});
  CHECK(world.diary.records.size() == 2);
  for (const CloseRecord& record : world.diary.records) CHECK(record.reason == CloseReason::server_stopping);
  CHECK(world.server->counters().opened == 2);
  CHECK(world.server->counters().closed == 2);
  CHECK(world.kernel.now() - began <= 3s + 2ms);
}

TEST_CASE("a control reactor whose wait fails ends the server") {
  World world;
  world.start();
  (void)world.connect(0);
  // Nothing is scheduled: nobody would ever wake up again.
  CHECK(world.server->run().error() == Error{"wait", EDEADLK});
  CHECK(world.diary.records.size() == 1);
  CHECK(world.server->reactors() == 0);
}

// --- what start refuses, and what fails in it

TEST_CASE("options that are out of range are named at start") {
  const auto refused = [](const ServerOptions& options, std::string_view address, const Error& wanted) {
    World world(options);
    const auto started = world.server->start(address);
    REQUIRE_FALSE(started);
    CHECK(started.error() == wanted);
    CHECK(std::string(started.error().detail) == std::string(wanted.detail));
    CHECK(world.kernel.open_descriptors() == world.descriptors_before);
  };
  refused({.reactors = 1025}, "127.0.0.1:7000", {"start", EINVAL, "reactors above 1,024"});
  refused({.drain = -1ns}, "127.0.0.1:7000", {"start", EINVAL, "drain out of range"});
  refused({.reactors = 2}, "unix:/run/x", {"start", EINVAL, "several reactors can't share a Unix address"});
  refused({.reactor = {.events_per_wait = 0}}, "127.0.0.1:7000", {"reactor", EINVAL, "events_per_wait"});
  refused({.listener = {.accept_queue = 0}}, "127.0.0.1:7000", {"listen", EINVAL, "accept_queue below 1"});
  World world;
  CHECK(world.server->start("nonsense").error() == Error{"parse address", EINVAL});
}

TEST_CASE("one reactor serves a Unix address") {
  World world({.reactors = 1});
  world.start("unix:/run/vigil");
  const int peer = world.connect(0);
  world.kernel.peer_sends(peer, "hello");
  world.settle();
  CHECK(world.kernel.sent(peer) == "hello");
}

TEST_CASE("a thread that can't be had ends those that were started") {
  World world({.reactors = 3});
  world.kernel.will_fail(Call::start_worker, EAGAIN, 2);
  CHECK(world.server->start("127.0.0.1:7000").error() == Error{"start worker", EAGAIN});
  CHECK(world.diary.has("shard over 1"));
  world.check_nothing_is_left();
}

TEST_CASE("a worker that can't be set up ends those that were started") {
  const struct {
    Call call;
    std::size_t calls_before;
    int error;
    Error wanted;
  } cases[] = {
      {Call::epoll_create, 1, EMFILE, {"reactor", EMFILE}},
      {Call::wake_open, 1, EMFILE, {"reactor", EMFILE}},
      {Call::bind, 2, EACCES, {"listen", EACCES}},  // after the probe and the first
      {Call::listen, 1, EADDRINUSE, {"listen", EADDRINUSE}},
  };
  for (const auto& failing : cases) {
    CAPTURE(std::string(to_string(failing.call)));
    World world;
    world.kernel.will_fail(failing.call, failing.error, failing.calls_before);
    CHECK(world.server->start("127.0.0.1:7000").error() == failing.wanted);
    CHECK(world.kernel.count(Call::start_worker) == 2);
    world.check_nothing_is_left();
  }
}

TEST_CASE("every system call of a start may fail: it answers an error or starts, and leaves nothing behind") {
  std::size_t failures = 0;
  for (std::size_t calls_before = 0; calls_before < 200; ++calls_before) {
    World world;
    bool failed = false;
    world.kernel.will_fail_any(calls_before, [&](const sys::RecordedCall& made) {
      failed = made.call != Call::close && made.call != Call::join_worker;
      return failed ? EMFILE : 0;
    });
    const std::size_t calls_at_first = world.kernel.calls().size();
    const auto started = world.server->start("127.0.0.1:7000");
    const std::size_t calls_of_start = world.kernel.calls().size() - calls_at_first;
    failures += started ? 0 : 1;
    if (started) {
      REQUIRE(world.server->shutdown(0ns));
      (void)world.server->run();  // the failure may come only now
    } else {
      world.kernel.will_fail_any(0, nullptr);
      world.check_nothing_is_left();
    }
    if (started && calls_of_start < calls_before) break;
  }
  CHECK(failures > 20);
}

TEST_CASE("a port that somebody listens on is refused, although they would share it") {
  World other({.reactors = 2});
  other.start();
  const auto start = [](const ServerOptions& options) {
    Diary diary;
    Server<DiaryHandler, DiaryShard> server(options, [&](Worker& worker) { return DiaryShard(diary, worker); });
    const auto started = server.start("127.0.0.1:7000");
    return started ? 0 : started.error().code;
  };
  CHECK(start({.reactors = 2, .stop_on_signals = false}) == EADDRINUSE);
  CHECK(start({.reactors = 1, .stop_on_signals = false}) == EADDRINUSE);
  CHECK(start({.reactors = 2, .stop_on_signals = false, .listener = {.reuse_port = true}}) == 0);
}

TEST_CASE("reactors are as many as there are CPUs, and pinned to one each") {
  World world({.reactors = 0, .pin_cpus = true});
  world.kernel.has_cpus({2, 3, 7});
  world.start();
  CHECK(world.kernel.cpus_of_workers() == std::vector<int>{2, 3, 7});
}

TEST_CASE("more reactors than CPUs begin again at the first, and unpinned ones are left where they run") {
  World pinned({.reactors = 3, .pin_cpus = true});
  pinned.kernel.has_cpus({4, 5});
  pinned.start();
  CHECK(pinned.kernel.cpus_of_workers() == std::vector<int>{4, 5, 4});
}

TEST_CASE("reactors that are not pinned may use any CPU") {
  World world({.reactors = 2});
  world.start();
  CHECK(world.kernel.cpus_of_workers() == std::vector<int>{-1, -1});
  CHECK(world.kernel.count(Call::usable_cpus) == 0);
}

TEST_CASE("CPUs that can't be asked for are an error of the start") {
  World world({.reactors = 0});
  world.kernel.will_fail(Call::usable_cpus, EPERM);
  CHECK(world.server->start("127.0.0.1:7000").error() == Error{"start", EPERM});
}

// --- shards

namespace {

struct Counted {
  int connections = 0;
};

struct CountedHandler {
  explicit CountedHandler(Counted& given) : shared(given) { ++shared.connections; }
  void on_receive(Connection& peer, Bytes) { peer.send(bytes_of(std::to_string(shared.connections))); }
  void on_close(Connection&, const CloseRecord&) {}
  Counted& shared;
};

struct PlainShard : Counted {
  CountedHandler make_handler(Connection&) { return CountedHandler(*this); }
};

struct WorkerShard : Counted {
  explicit WorkerShard(Worker& worker) { connections = 100 * (1 + static_cast<int>(worker.index())); }
  CountedHandler make_handler(Connection&) { return CountedHandler(*this); }
};

struct PlainHandler {
  void on_receive(Connection& peer, Bytes bytes) { peer.send(bytes); }
  void on_close(Connection&, const CloseRecord&) {}
};

/// What the first connection on each of two reactors is answered.
template <class Server>
std::vector<std::string> answers() {
  CheckedKernel kernel;
  std::vector<std::string> answers;
  Server server({.reactors = 2});
  REQUIRE(server.start("127.0.0.1:7000"));
  for (const int listener : kernel.listeners()) {
    const int peer = kernel.peer_connects(listener);
    kernel.peer_sends(peer, "x");
    while (kernel.turn_workers()) {
    }
    answers.push_back(kernel.sent(peer));
  }
  return answers;
}

}  // namespace

TEST_CASE("a shard is made from its worker or from nothing, one for each reactor, or there is none") {
  CHECK(answers<Server<CountedHandler, PlainShard>>() == std::vector<std::string>{"1", "1"});
  CHECK(answers<Server<CountedHandler, WorkerShard>>() == std::vector<std::string>{"101", "201"});
  CHECK(answers<Server<PlainHandler>>() == std::vector<std::string>{"x", "x"});
}

TEST_CASE("a shard may hold what must not outlive the reactor") {
  struct Upstream {
    Upstream(Story& story, Worker& worker)
        : timer(worker.reactor(), [] {}),
          connector(worker.reactor(), {}, [&story](Connection& connection) { return Actor(story, connection); }) {
      REQUIRE(connector.connect("192.0.2.1:80"));
      REQUIRE(timer.arm_after(1h));
    }
    Timer timer;
    Connector<Actor> connector;
  };
  CheckedKernel kernel;
  Story story;
  Server<PlainHandler, Upstream> server({.reactors = 2}, [&](Worker& worker) { return Upstream(story, worker); });
  REQUIRE(server.start("127.0.0.1:7000"));
  REQUIRE(server.shutdown(0ns));
  REQUIRE(server.run());
  CHECK(story.records.size() == 2);
  for (const CloseRecord& record : story.records) CHECK(record.reason == CloseReason::server_stopping);
}
