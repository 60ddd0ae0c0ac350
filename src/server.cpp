// How a server's threads begin and end. The control reactor's thread decides; a worker tells it by mail that it is over, and is
// told by mail to shut down. Nothing is shared while they run but those mailboxes.
#include "vigil/server.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "reactor_core.hpp"
#include "sys/sys.hpp"
#include "vigil/socket.hpp"

namespace vigil {
namespace {

constexpr unsigned most_reactors = 1024;

/// The control reactor has no connections of the server's: it needs little.
constexpr ReactorOptions control_options() {
  ReactorOptions options;
  options.receive_buffer_bytes = options.gather_buffer_bytes = 1024;
  options.events_per_wait = 16;
  return options;
}

bool is_drain(Duration drain) { return drain >= Duration::zero() && drain <= longest_timeout; }

/// With SO_REUSEPORT the kernel would let a second server of the same user in beside a first, and each would get half of the
/// connections. A bind that does not share finds who listens already.
Result<void> check_nobody_listens(const Address& address, bool v6_only) {
  auto socket = open_socket(address.family(), v6_only);
  if (!socket) return socket.error();
  const int yes = 1;  // as the listeners: connections that linger do not count
  if (const int error = sys::set_option(socket->descriptor(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes); error < 0)
    return Error{"socket options", -error, "reuse_address"};
  if (auto bound = bind(*socket, address); !bound) return Error{"listen", bound.error().code, bound.error().detail};
  return {};
}

}  // namespace

/// One reactor and its thread.
struct ServerWorker {
  ServerWorker(ServerState& given_server, unsigned given_index) : server(given_server), index(given_index) {}

  // On its own thread.
  void set_up();
  void body();
  bool turn();
  [[nodiscard]] Result<void> listen();
  [[nodiscard]] bool is_over();
  void end();

  ServerState& server;
  const unsigned index;
  std::optional<Reactor> reactor;
  std::optional<Worker> worker;
  std::unique_ptr<server_detail::Site> site;

  // Written by its own thread, read by the control thread: once set_up() has returned, or once it is told to be over.
  std::optional<Mailbox> mailbox;
  Error error;  // code 0: none
  Address bound;
  ReactorCounters counters;

  // The control thread's.
  sys::WorkerHandle handle = 0;
  bool over = false;
};

struct ServerState {
  /// One sum that was asked for. It stays with the control thread: the others know its number.
  struct Sample {
    std::uint64_t number;
    Callback<void(const ReactorCounters&)> callback;
    ReactorCounters sum;
    std::vector<bool> awaited;  // from the workers, by their index
  };

  ServerState(const ServerOptions& given, server_detail::MakeSite given_make)
      : options(given), make_site(std::move(given_make)), control(control_options()), control_mailbox(control.mailbox()) {}

  [[nodiscard]] Result<void> start(const Address& wanted);
  [[nodiscard]] Result<void> prepare(std::vector<int>& cpus);
  [[nodiscard]] Result<void> watch_signals();
  [[nodiscard]] Result<void> start_worker(int cpu);
  [[nodiscard]] Result<void> run();
  void ask_to_shut_down(Duration drain);
  void signalled();
  void worker_over(unsigned index);
  [[nodiscard]] Result<void> sample(Callback<void(const ReactorCounters&)> callback);
  void answer_sample(std::uint64_t number, unsigned index, const ReactorCounters& counters);
  void join_all();
  void forget_run();

  /// A task for the control thread. It does nothing once the run that it is about has ended.
  template <class Do>
  Result<void> tell_control(Do task) const {
    return control_mailbox.post([this, of_start = starts.load(), task = std::move(task)]() mutable {
      if (of_start == starts.load()) task();
    });
  }

  ServerOptions options;
  server_detail::MakeSite make_site;
  Reactor control;
  const Mailbox control_mailbox;
  std::atomic<std::uint64_t> starts = 0;  // and ends

  // Of one run.
  Address address;  // asked for; from the second worker on with the real port
  std::optional<Address> bound;
  unsigned reactors = 0;
  std::vector<std::unique_ptr<ServerWorker>> workers;
  std::size_t living = 0;
  Error error;  // the first of a worker's
  std::vector<Watch> signals;
  bool was_signalled = false;
  std::vector<Sample> samples;
  std::uint64_t samples_asked = 0;

  ReactorCounters total;  // of the last run
};

// --- a worker, on its own thread

void ServerWorker::set_up() {
  reactor.emplace(server.options.reactor);
  mailbox = reactor->mailbox();
  if (auto listening = listen(); !listening) {
    error = listening.error();
    end();
  }
}

Result<void> ServerWorker::listen() {
  if (auto usable = ReactorCore::of(*reactor).usable("start"); !usable) return usable;
  ListenerOptions options = server.options.listener;
  options.reuse_port = options.reuse_port || server.reactors > 1;
  site = server.make_site(*reactor, options);
  worker = Worker(index, server.reactors, *reactor, site->listener());
  site->make_shard(*worker);
  if (auto listening = site->listener().listen(server.address); !listening) return listening;
  auto address = site->listener().address();
  if (!address) return address.error();
  bound = std::move(*address);
  return {};
}

void ServerWorker::body() {
  if (!reactor) return;  // it could not be set up
  while (!is_over()) {   // a handler's stop() ends run() and nothing else
    if (auto ran = reactor->run(); !ran) {
      error = ran.error();
      break;
    }
  }
  end();
}

/// The body in slices, for a world of one thread.
bool ServerWorker::turn() {
  if (!reactor) return false;
  if (auto turned = reactor->turn(); !turned) {
    error = turned.error();
  } else if (!is_over()) {
    return true;
  }
  end();
  return false;
}

bool ServerWorker::is_over() {
  const ReactorCore& core = ReactorCore::of(*reactor);
  return core.attends(ReactorCore::shutting_down) && core.alive() == 0;
}

void ServerWorker::end() {
  // What a failure left open is closed and told while the shard is there; then the shard goes, which may hold what must not
  // outlive the reactor.
  if (!is_over()) ReactorCore::of(*reactor).close();
  site.reset();
  counters = reactor->counters();
  reactor.reset();
  (void)server.tell_control([&state = server, number = index] { state.worker_over(number); });
}

// --- starting, on the control thread

Result<void> ServerState::start(const Address& wanted) {
  if (!workers.empty()) return Error{"start", EBUSY, "already started"};
  std::vector<int> cpus;
  if (auto prepared = prepare(cpus); !prepared) return prepared;
  reactors = options.reactors == 0 ? static_cast<unsigned>(cpus.size()) : options.reactors;
  if (reactors > 1 && !wanted.is_ip()) return Error{"start", EINVAL, "several reactors can't share a Unix address"};

  address = wanted;
  error = {};
  ++starts;
  // The signals first: threads inherit what is blocked.
  Result<void> started = watch_signals();
  if (started && reactors > 1 && !options.listener.reuse_port && wanted.port() != 0)
    started = check_nobody_listens(wanted, options.listener.v6_only);
  for (unsigned index = 0; started && index < reactors; ++index)
    started = start_worker(options.pin_cpus ? cpus[index % cpus.size()] : -1);
  if (!started) {
    ask_to_shut_down(Duration::zero());
    join_all();
    forget_run();
  }
  return started;
}

Result<void> ServerState::prepare(std::vector<int>& cpus) {
  if (auto usable = ReactorCore::of(control).usable("start"); !usable) return usable;
  if (options.reactors > most_reactors) return Error{"start", EINVAL, "reactors above 1,024"};
  if (!is_drain(options.drain)) return Error{"start", EINVAL, "drain out of range"};
  if (options.reactors != 0 && !options.pin_cpus) return {};
  cpus.resize(most_reactors);
  const int count = sys::usable_cpus(cpus.data(), cpus.size());
  if (count <= 0) return Error{"start", count == 0 ? ENODEV : -count, "usable CPUs"};
  cpus.resize(std::min(cpus.size(), static_cast<std::size_t>(count)));
  return {};
}

Result<void> ServerState::watch_signals() {
  if (!options.stop_on_signals) return {};
  was_signalled = false;
  for (const int signal_number : {SIGTERM, SIGINT}) {
    auto watched = control.on_signal(signal_number, [this](int) { signalled(); });
    if (!watched) return watched.error();
    signals.push_back(std::move(*watched));
  }
  return {};
}

Result<void> ServerState::start_worker(int cpu) {
  workers.push_back(std::make_unique<ServerWorker>(*this, static_cast<unsigned>(workers.size())));
  ServerWorker& worker = *workers.back();
  const sys::Worker start{.set_up = [](void* argument) { static_cast<ServerWorker*>(argument)->set_up(); },
                          .body = [](void* argument) { static_cast<ServerWorker*>(argument)->body(); },
                          .turn = [](void* argument) { return static_cast<ServerWorker*>(argument)->turn(); },
                          .argument = &worker,
                          .cpu = cpu};
  if (const int failed = sys::start_worker(start, worker.handle); failed < 0) {
    workers.pop_back();
    return Error{"start worker", -failed, cpu < 0 ? "" : "with pin_cpus"};
  }
  ++living;
  if (worker.error.code != 0) return worker.error;
  if (!bound) {
    bound = worker.bound;
    address = address.with_port(worker.bound.port());
  }
  return {};
}

// --- running and ending, on the control thread

Result<void> ServerState::run() {
  if (workers.empty()) return Error{"run", EINVAL, "not started"};
  const ReactorCore& core = ReactorCore::of(control);
  if (core.in_turn || core.running) return Error{"run", EBUSY};  // run() or the control reactor's own
  Result<void> ran;
  while (ran && living > 0) ran = control.turn();
  if (!ran) ask_to_shut_down(Duration::zero());
  join_all();
  // A signal that came too late to matter must not meet its default action when it is unblocked.
  if (ran && !signals.empty()) (void)control.turn(Duration::zero());
  forget_run();
  if (ran && error.code != 0) return error;
  return ran;
}

void ServerState::ask_to_shut_down(Duration drain) {
  for (const auto& worker : workers)
    if (worker->mailbox) {
      // Refused where the reactor is gone: then it is over.
      (void)worker->mailbox->post([&reactor = worker->reactor, drain] { (void)reactor->shutdown(drain); });
    }
}

void ServerState::signalled() { ask_to_shut_down(std::exchange(was_signalled, true) ? Duration::zero() : options.drain); }

void ServerState::worker_over(unsigned index) {
  ServerWorker& worker = *workers[index];
  worker.over = true;
  --living;
  if (worker.error.code != 0 && error.code == 0) {
    error = worker.error;
    ask_to_shut_down(options.drain);
  }
  std::vector<std::uint64_t> asked;
  for (const Sample& sample : samples) asked.push_back(sample.number);
  for (const std::uint64_t number : asked) answer_sample(number, index, worker.counters);
}

/// Waits for every thread.
void ServerState::join_all() {
  total = {};
  for (const auto& worker : workers) {
    (void)sys::join_worker(worker->handle);
    total += worker->counters;
  }
}

/// As before the start.
void ServerState::forget_run() {
  signals.clear();
  samples.clear();
  workers.clear();
  living = 0;
  bound.reset();
  ++starts;
}

// --- counters

Result<void> ServerState::sample(Callback<void(const ReactorCounters&)> callback) {
  if (living == 0) return Error{"sample", ESHUTDOWN};
  if (!callback) return Error{"sample", EINVAL, "empty callback"};
  const std::uint64_t number = ++samples_asked;
  samples.push_back({number, std::move(callback), {}, std::vector<bool>(workers.size(), true)});
  for (const auto& worker : workers) {
    if (worker->over) {
      answer_sample(number, worker->index, worker->counters);
      continue;
    }
    // One that ends without having answered has answered when it is over.
    (void)worker->mailbox->post([this, &worker = *worker, number] {
      (void)tell_control([this, index = worker.index, number, counters = worker.reactor->counters()] {
        answer_sample(number, index, counters);
      });
    });
  }
  return {};
}

void ServerState::answer_sample(std::uint64_t number, unsigned index, const ReactorCounters& counters) {
  const auto asked = std::find_if(samples.begin(), samples.end(), [&](const Sample& each) { return each.number == number; });
  if (asked == samples.end() || !asked->awaited[index]) return;
  asked->awaited[index] = false;
  asked->sum += counters;
  if (std::find(asked->awaited.begin(), asked->awaited.end(), true) != asked->awaited.end()) return;
  Sample ready = std::move(*asked);
  samples.erase(asked);
  ready.callback(ready.sum);
}

// --- the facade

ServerBase::ServerBase(const ServerOptions& options, server_detail::MakeSite make_site)
    : state_(std::make_unique<ServerState>(options, std::move(make_site))) {}

ServerBase::~ServerBase() {
  if (state_->workers.empty()) return;
  state_->ask_to_shut_down(Duration::zero());
  state_->join_all();
  state_->forget_run();
}

Result<void> ServerBase::start(std::string_view address) {
  auto parsed = Address::parse(address);
  if (!parsed) return parsed.error();
  return start(*parsed);
}

Result<void> ServerBase::start(const Address& address) { return state_->start(address); }

Result<Address> ServerBase::address() const {
  if (!state_->bound) return Error{"address", ENOTCONN};
  return *state_->bound;
}

Result<void> ServerBase::run() { return state_->run(); }

Result<void> ServerBase::shutdown(Duration drain) const {
  if (!is_drain(drain)) return Error{"shutdown", EINVAL, "drain out of range"};
  return state_->tell_control([state = state_.get(), drain] { state->ask_to_shut_down(drain); });
}

Reactor& ServerBase::control() { return state_->control; }

Result<void> ServerBase::sample(Callback<void(const ReactorCounters&)> callback) { return state_->sample(std::move(callback)); }

const ReactorCounters& ServerBase::counters() const { return state_->total; }

unsigned ServerBase::reactors() const { return static_cast<unsigned>(state_->workers.size()); }

}  // namespace vigil
