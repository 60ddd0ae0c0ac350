// The state behind a ScriptedKernel: its descriptors, its clock, its workers, what its script holds ready, and its record.
//
// Its calls of the seam stand in two files: scripted_readiness.cpp has time, waits, workers, wake-ups and signals;
// scripted_sockets.cpp has sockets, files and names. What scripts say is in scripted_kernel.cpp.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "epoll_registrations.hpp"
#include "scripted_kernel.hpp"
#include "simulated_descriptor.hpp"

namespace vigil::sys {

/// Ends the program: no test can mean this.
[[noreturn]] void misused(const char* what, int number);

class ScriptedKernel::World final : public Kernel {
 public:
  using Kind = SimulatedDescriptor::Kind;
  using Stage = SimulatedDescriptor::Stage;

  World() : before_(install(this)) {}
  ~World() { install(before_); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // The calls of the seam.
  Instant monotonic_now() override;
  std::uint64_t random_seed() override;
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
  TcpSample tcp_sample(int descriptor) override;
  int reserve_open() override;
  int path_status(const char* path, struct stat& status) override;
  int unlink(const char* path) override;
  unsigned interface_index(const char* name) override;
  int start_worker(const Worker& worker, WorkerHandle& started) override;
  int join_worker(WorkerHandle started) override;
  int usable_cpus(int* cpus, std::size_t capacity) override;

  // What scripts do.
  /// Time reaches `until`; what was scheduled up to then happens at its own instant, in order.
  void pass_time(Instant until);
  SimulatedDescriptor* find(int descriptor);
  /// A descriptor of a script: open, or promised to accept.
  SimulatedDescriptor& scripted(int descriptor);
  /// The same, of something that the world does: nothing happens to what was closed meanwhile.
  SimulatedDescriptor* still_there(int descriptor);
  /// A life that may be over.
  const SimulatedDescriptor& life(int descriptor);
  void report(int descriptor, std::uint32_t events);
  /// Its state has changed.
  void tell(int descriptor);
  void arrives(int descriptor, Arrival arrival);
  int make_peer(int listener_descriptor);
  int open(Kind kind);
  /// One turn of every worker that is in none; false: each of them would sleep.
  bool turn_workers();

  struct TurnedWorker {
    Worker worker;
    bool over = false;
    bool in_turn = false;
    bool has_waited = false;            // in this turn: a second wait would be a callback's own, which sleeps like any other
    bool would_sleep = false;           // the turn's wait had nothing to tell,
    Instant wakes_at = Instant::max();  // and would have slept until then
  };

  Instant now_{std::chrono::hours(1)};
  std::multimap<Instant, std::function<void()>> actions_;
  Duration oversleep_{};
  std::map<int, SimulatedDescriptor> descriptors_;
  std::map<int, SimulatedDescriptor> arriving_;  // promised to accept, by the number they will have
  std::map<int, SimulatedDescriptor> closed_;    // the last life of each number
  std::map<int, EpollRegistrations> pollers_;
  std::vector<int> duplicated_;
  int listener_ = -1;
  bool connect_at_once_ = false;
  std::size_t open_at_most_ = SIZE_MAX;
  std::map<std::string, ino_t> paths_;
  std::map<std::string, unsigned, std::less<>> interfaces_;
  std::vector<int> blocked_signals_;
  std::map<WorkerHandle, TurnedWorker> workers_;  // in the order of their start
  std::vector<int> cpus_{0, 1};
  std::vector<RecordedCall> calls_;
  std::size_t times_forgotten_ = 0;
  std::size_t clock_reads_ = 0;
  std::size_t calls_on_closed_ = 0;

  struct Failure {
    std::size_t calls_before;
    int error;
  };
  std::array<std::deque<Failure>, call_count> failures_;
  std::size_t calls_before_any_ = 0;
  std::function<int(const RecordedCall&)> error_for_any_;

 private:
  std::size_t record(const RecordedCall& call) {
    calls_.push_back(call);
    return calls_.size() - 1;
  }

  int on_closed() {
    ++calls_on_closed_;
    return -EBADF;
  }

  /// Every call goes through here: it fails as scripted, or does what it does, and is recorded either way.
  template <class Body>
  auto made(RecordedCall call, Body body) -> decltype(body()) {
    call.at = now_;
    const std::size_t index = record(call);
    const std::size_t forgotten_before = times_forgotten_;
    const int failure = scripted_failure(call);
    const auto answer = failure != 0 ? static_cast<decltype(body())>(-failure) : body();
    if (forgotten_before == times_forgotten_) calls_[index].result = answer;  // an action inside a wait may clear the record
    return answer;
  }
  int scripted_failure(const RecordedCall& call);
  /// `take` tells how many are ready; until some are, or until the timeout, workers have their turns and time passes.
  template <class Take>
  int wait(Duration timeout, Take take);
  /// The wait a turn is made of: it never sleeps, but notes until when it would.
  template <class Take>
  int wait_in_turn(TurnedWorker& worker, Duration timeout, Take take);
  [[nodiscard]] Instant end_of(Duration timeout) const;
  /// When something happens next although nobody does anything now; Instant::max(): never.
  [[nodiscard]] Instant next_event() const;

  ssize_t sent_by(Call call, int descriptor, const iovec* pieces, std::size_t count);

  [[nodiscard]] bool is_full() const { return descriptors_.size() >= open_at_most_; }
  [[nodiscard]] int lowest_free();
  /// Somebody listens on the name, and they do not agree to share it.
  [[nodiscard]] bool is_taken(const sockaddr_storage& name, socklen_t length, const SimulatedDescriptor& by) const;

  Kernel* before_;
  TurnedWorker* turning_ = nullptr;  // whose turn it is
  WorkerHandle last_worker_ = 0;
  std::uint64_t seed_ = 1;
  int lowest_free_ = 100;  // every number from there up to it is taken
  std::uint16_t next_peer_port_ = 50'000;
  std::uint16_t next_own_port_ = 40'000;
  ino_t next_inode_ = 1000;
};

}  // namespace vigil::sys
