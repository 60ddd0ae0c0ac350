// The system calls of a simulated world: descriptors and how readiness is told, on top of what the hosts and their TCP know.
//
// Thread: the world's. world_kernel.cpp: time, waiting and who is turned. world_sockets.cpp: descriptors and sockets.
// world_readiness.cpp: epoll, poll, wake-ups and signals. What a socket's state is stands in TcpEnd and ListeningSocket; how it
// is told has no part in it.
#pragma once

#include <fcntl.h>
#include <poll.h>

#include <csignal>

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sim/network.hpp"
#include "sim/universe.hpp"
#include "sys/simulated/epoll_registrations.hpp"
#include "sys/simulated/kernel.hpp"
#include "vigil/sim.hpp"

namespace vigil::sim {

class WorldKernel final : public sys::Kernel {
 public:
  WorldKernel(Universe& universe, Network& network);
  ~WorldKernel();

  // --- what a World does
  /// The next thing, if it happens by `limit`.
  bool step(Instant limit);
  /// Nothing happens up to then; but who should be awake and is not is late.
  void pass_time(Instant until);
  /// Time goes on and the network works, but nobody is turned.
  void spend(Duration duration);
  /// What a script does at an instant, as opposed to what the network does: never while somebody is in a turn.
  void script(Instant at, Task task) { script_.add(at, std::move(task)); }
  /// `lives` answers whether the reactor is still there, `is_called` whether its next turn is to do what was asked of it.
  void attach(Reactor& reactor, Callback<bool()> lives, Callback<bool()> is_called);
  void detach(Reactor& reactor);
  void raise(int signal_number);
  [[nodiscard]] std::uint64_t life(int descriptor) const;
  [[nodiscard]] Truth truth(std::uint64_t life) const;
  [[nodiscard]] Peer* peer_of(std::uint64_t life) const;
  [[nodiscard]] std::size_t open_descriptors() const;

  SimulatedHost* host;  // on which sockets are made
  Duration delays{};
  std::uint64_t steps = 0;
  std::size_t calls_on_closed = 0;

  // --- what vigil asks: see sys/sys.hpp
  Instant monotonic_now() override { return universe_.now; }
  std::uint64_t random_seed() override { return universe_.random.next(); }
  int epoll_create() override;
  int epoll_control(int epoll, int operation, int descriptor, epoll_event* event) override;
  int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) override;
  int poll(pollfd* entries, std::size_t count, Duration timeout) override;
  int wake_open() override;
  int wake_signal(int descriptor) override;
  int signal_open(int signal_number, bool& was_blocked) override;
  int signal_take(int descriptor) override;
  void signal_restore(int signal_number, bool was_blocked) override;
  int socket(int family, int type) override;
  int bind(int descriptor, const sockaddr* address, socklen_t length) override;
  int listen(int descriptor, int backlog) override;
  int accept(int descriptor, sockaddr* address, socklen_t* length) override;
  int connect(int descriptor, const sockaddr* address, socklen_t length) override;
  ssize_t recv(int descriptor, void* buffer, std::size_t size) override;
  ssize_t send(int descriptor, const void* bytes, std::size_t size) override;
  ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count) override;
  int shutdown(int descriptor, int how) override;
  int close(int descriptor) override;
  int get_option(int descriptor, int level, int name, void* value, socklen_t* length) override;
  int set_option(int descriptor, int level, int name, const void* value, socklen_t length) override;
  int local_name(int descriptor, sockaddr* address, socklen_t* length) override;
  int peer_name(int descriptor, sockaddr* address, socklen_t* length) override;
  int status_flags(int descriptor) override;
  int set_status_flags(int descriptor, int flags) override;
  int unread_bytes(int descriptor) override;
  int unsent_bytes(int descriptor) override;
  sys::TcpSample tcp_sample(int descriptor) override;
  int reserve_open() override;
  int path_status(const char* path, struct stat& status) override;
  int unlink(const char* path) override;
  unsigned interface_index(const char* name) override;
  int start_worker(const sys::Worker& worker, sys::WorkerHandle& started) override;
  int join_worker(sys::WorkerHandle started) override;
  int usable_cpus(int* cpus, std::size_t capacity) override;

 private:
  struct Descriptor final : TcpOwner {
    enum class Kind : std::uint8_t { socket, epoll, wake, signal, reserve };
    Descriptor(WorldKernel& its_kernel, int its_number, Kind its_kind);
    void tcp_changed(std::uint32_t bits) override { kernel.report(number, bits); }
    [[nodiscard]] std::uint32_t state() const;
    [[nodiscard]] TcpSettings& settings_now();

    WorldKernel& kernel;
    SimulatedHost& host;
    const int number;
    const Kind kind;
    int flags = O_RDWR | O_NONBLOCK;

    // Of a socket.
    int family = 0, type = 0;
    std::uint64_t life = 0;
    std::map<std::pair<int, int>, int> options{};
    TcpSettings settings{};  // until an end or a listening socket has its own
    std::optional<Endpoint> bound{};
    std::shared_ptr<TcpEnd> end{};
    std::unique_ptr<ListeningSocket> listening{};
    bool connect_is_unanswered = false;  // of the first that says in progress
    int accept_errors = 0;               // in a row

    std::unique_ptr<sys::EpollRegistrations> registrations{};
    std::uint64_t signalled = 0;
    int signal_number = 0;
    int interruptions = 0, spurious_events = 0;  // in a row
  };
  using Kind = Descriptor::Kind;

  /// Who is turned by the world: a reactor, or a server's worker.
  struct Runner {
    Reactor* reactor = nullptr;
    Callback<bool()> lives{}, is_called{};  // of a reactor
    sys::Worker worker{};
    sys::WorkerHandle handle = 0;
    SimulatedHost* host = nullptr;
    int epoll = -1;  // that its turns wait for
    bool in_turn = false, over = false;
    bool has_waited = false;  // in this turn: a second wait would be a callback's own, which sleeps like any other
    bool sleeps = false;
    Instant asked_until{};           // when its wait was to end,
    Instant wakes_at{};              // and when it does
    std::uint64_t script_calls = 0;  // so many there had been when it began
  };
  struct Life {
    int descriptor;  // -1: over
    Truth truth;     // then
    Peer* peer;
  };

  // Time.
  void forget_the_dead();
  [[nodiscard]] bool is_runnable(Runner& runner) const;
  [[nodiscard]] bool has_something_ready(const Runner& runner) const;
  [[nodiscard]] bool was_called(Runner& runner) const;
  void turn(Runner& runner);
  [[nodiscard]] Instant end_of(Duration timeout) const;
  template <class Take>
  int wait(Duration timeout, Take take);
  int wait_in_turn(Runner& runner, Descriptor& epoll, epoll_event* events, int capacity, Duration timeout);
  void oversleep();
  int take_events(Descriptor& epoll, epoll_event* events, int capacity);

  // Descriptors.
  [[nodiscard]] Descriptor* find(int descriptor) const;
  [[nodiscard]] Descriptor* find_socket(int descriptor, int& error);
  [[nodiscard]] int open(Kind kind);
  [[nodiscard]] int shortage();
  [[nodiscard]] bool is_interrupted(Descriptor& descriptor);
  [[nodiscard]] bool is_free(const Descriptor& socket, const Endpoint& wanted) const;
  void begin_life(Descriptor& socket);
  void report(int descriptor, std::uint32_t bits);
  [[nodiscard]] Truth truth_of(const Descriptor& descriptor, Truth known) const;
  template <class Number>
  Number told(const char* call, int descriptor, Number answer) {
    universe_.mix(static_cast<std::uint64_t>(descriptor) << 32 ^ static_cast<std::uint64_t>(static_cast<std::int64_t>(answer)) ^
                  static_cast<std::uint64_t>(universe_.now.time_since_epoch().count()) << 20);
    if (universe_.trace) trace_call(call, descriptor, static_cast<std::int64_t>(answer));
    return answer;
  }
  void trace_call(const char* call, int descriptor, std::int64_t answer);

  Universe& universe_;
  Network& network_;
  Agenda script_;
  std::vector<std::unique_ptr<Descriptor>> descriptors_;  // by number, from first_number on
  std::size_t lowest_free_ = 0;                           // every place before it is taken
  std::vector<int> pollers_;
  std::vector<std::unique_ptr<Runner>> runners_;
  std::vector<Runner*> runnable_;  // of one step
  Runner* turning_ = nullptr;
  std::vector<Life> lives_;  // by number, from 1 on
  std::vector<int> blocked_signals_;
  sys::WorkerHandle last_worker_ = 0;
  sys::Kernel* before_;
};

}  // namespace vigil::sim
