// A kernel that a test writes as it goes: time stands still until somebody waits or the test moves it, calls answer what they
// were told to, and every one is recorded.
//
// Thread: the one it was made on. Making it installs it for that thread; destroying it installs the one before again, so it
// stands before the first reactor in a test and falls after the last.
//
//   sys::ScriptedKernel kernel;
//   Reactor reactor;
//   Listener<Echo> listener(reactor);
//   REQUIRE(listener.listen("127.0.0.1:7000"));
//   const int peer = kernel.peer_connects(kernel.listener());      // the descriptor that accept will hand out
//   kernel.peer_sends(peer, "hello");
//   REQUIRE(reactor.turn());
//   CHECK(kernel.sent(peer) == "hello");
//
// Two tenses: `peer_sends` and its like happen now, and wake whoever is registered, as it happens on a real host. `will_receive`
// and its like only prepare what calls will answer: nobody is told, unless the test also says `report`.
//
// Where the script says nothing the world is friendly: sends are taken whole and acknowledged at once, a receive finds nothing
// (EAGAIN), a Unix connect succeeds, a TCP one is in progress until the peer answers. A wait with nothing to tell lets the other
// workers turn, then moves the clock on by its timeout, at no cost; one that would never end is the test's mistake and answers
// EDEADLK. Descriptors are numbered
// from 100 up, the lowest free one first, so that numbers are reused as on a real host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernel.hpp"

namespace vigil::sys {

/// The calls of the seam.
enum class Call : std::uint8_t {
  monotonic_now,
  random_seed,
  epoll_create,
  epoll_control,
  epoll_wait,
  poll,
  wake_open,
  wake_signal,
  signal_open,
  signal_take,
  signal_restore,
  socket,
  bind,
  listen,
  accept,
  connect,
  recv,
  send,
  send_vector,
  shutdown,
  close,
  get_option,
  set_option,
  local_name,
  peer_name,
  status_flags,
  set_status_flags,
  unread_bytes,
  unsent_bytes,
  tcp_sample,
  reserve_open,
  path_status,
  unlink,
  interface_index,
  start_worker,
  join_worker,
  usable_cpus,
};

inline constexpr std::size_t call_count = static_cast<std::size_t>(Call::usable_cpus) + 1;

[[nodiscard]] const char* to_string(Call call);

struct RecordedCall {
  Call call;
  int descriptor = -1;      ///< the one it was about; of an epoll_control, the one registered
  int operation = 0;        ///< of an epoll_control
  std::int64_t result = 0;  ///< as returned
  Instant at{};             ///< when it was made
  Duration timeout{};       ///< of a wait or a poll
  std::size_t size = 0;     ///< bytes offered or asked for; of a wait, the capacity
};

/// How a descriptor's life ended.
enum class Ending : std::uint8_t {
  open,     ///< it has not
  orderly,  ///< closed; the peer saw a FIN at the latest then
  reset,    ///< closed so that the peer saw an RST: SO_LINGER 0, or bytes were left unread
};

class ScriptedKernel {
 public:
  ScriptedKernel();
  ~ScriptedKernel();
  ScriptedKernel(const ScriptedKernel&) = delete;
  ScriptedKernel& operator=(const ScriptedKernel&) = delete;

  // Time. It starts an hour after zero.
  [[nodiscard]] Instant now() const;
  /// Time passes, as if the caller had worked for so long: what was scheduled meanwhile happens at its instants.
  void advance(Duration duration);
  /// Something happens in the world at an instant: when a wait passes it (which ends if somebody is told), or advance() does.
  void at(Instant instant, std::function<void()> action);
  void after(Duration delay, std::function<void()> action) { at(now() + delay, std::move(action)); }
  /// The next wait returns so much later than it would: the process was stopped, or the machine had no time for it.
  void will_oversleep(Duration duration);

  // Readiness.
  /// The next wait tells it, once, in epoll's words (EPOLLIN | EPOLLRDHUP), as far as the descriptor's registration cares.
  void report(int descriptor, std::uint32_t events);
  /// A duplicate of this descriptor lives elsewhere, so that closing it does not end its registrations.
  void is_duplicated(int descriptor);
  /// ... of which this tells, when the descriptor is long closed.
  void report_orphan(int descriptor, std::uint32_t events);
  /// Every epoll registration of it, as last set; 0: none.
  [[nodiscard]] std::uint32_t registered_for(int descriptor) const;

  // A listener and who comes to it.
  /// The last descriptor that began to listen and is still open; -1: none.
  [[nodiscard]] int listener() const;
  [[nodiscard]] std::vector<int> listeners() const;  ///< all of them
  /// Somebody connects. Returns the descriptor that accept will hand out, which can be scripted at once.
  int peer_connects(int listener);
  int will_accept(int listener);  ///< the same, but nobody is told
  void will_fail_to_accept(int listener, int error);
  /// accept, socket and their like answer EMFILE when so many descriptors are open.
  void limit_descriptors(std::size_t open_at_most);

  // Connecting.
  [[nodiscard]] bool is_connecting(int descriptor) const;  ///< an attempt that has no answer yet
  void peer_accepts(int descriptor);                       ///< the attempt succeeds now
  void peer_refuses(int descriptor, int error);            ///< the attempt fails now; SO_ERROR hands it out
  void will_connect_at_once();                             ///< the next connect answers 0
  void reaches_itself(int descriptor);                     ///< the attempt's two ends are this very socket

  // What the peer sends.
  void peer_sends(int descriptor, std::string_view bytes);
  void peer_sends_urgent_mark(int descriptor);
  void peer_finishes(int descriptor);                ///< its FIN
  void peer_resets(int descriptor);                  ///< its RST
  void connection_fails(int descriptor, int error);  ///< ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ...
  void peer_floods(int descriptor);                  ///< every recv from now on fills its buffer
  void will_receive(int descriptor, std::string_view bytes);
  void will_stop_short(int descriptor);                 ///< a recv that took something stops here, though more follows
  void will_receive_hiccup(int descriptor, int error);  ///< one recv fails: EINTR, EAGAIN
  void will_receive_end(int descriptor);
  void will_receive_error(int descriptor, int error);

  // What the peer takes.
  [[nodiscard]] const std::string& sent(int descriptor) const;  ///< also after it was closed, until its number is used again
  [[nodiscard]] bool sent_end(int descriptor) const;            ///< our FIN, by shutdown
  [[nodiscard]] Ending ending(int descriptor) const;
  void will_take(int descriptor, std::size_t bytes);   ///< so many bytes more (the first time: in all), then EAGAIN
  void peer_reads(int descriptor, std::size_t bytes);  ///< the same, and the reactor is told that there is room
  void peer_reads_all(int descriptor);                 ///< room without end
  void will_fail_to_send(int descriptor, int error);   ///< the next send fails; on EPIPE and its like, the connection is dead
  void will_not_acknowledge(int descriptor);           ///< from now on, until peer_acknowledges
  void peer_acknowledges(int descriptor, std::size_t bytes);  ///< our end counts as one
  void will_sample(int descriptor, const TcpSample& sample);  ///< what tcp_sample answers from now on

  // Descriptors that are no sockets.
  /// One of the test's own, to be watched; close it with sys::close.
  [[nodiscard]] int open_descriptor();
  /// What such a descriptor has to say (EPOLLIN, EPOLLOUT), until told otherwise.
  void set_state(int descriptor, std::uint32_t events);
  /// The process is sent a signal: whoever opened it is told; nobody: ends the program.
  void raise(int signal_number);

  // Workers: they are set up when they are started, and their turns come while somebody else's wait would sleep, in the order of
  // their start, before time passes. No reactor is entered that is in a turn already, the sleeping one least of all. So a turn
  // never sleeps itself: its first wait returns at once, and the world notes until when it would have slept.
  /// One turn of each; false: all of them would sleep, until something happens or time passes.
  bool turn_workers();
  [[nodiscard]] std::size_t workers() const;               ///< started and not joined
  [[nodiscard]] std::vector<int> cpus_of_workers() const;  ///< of each of them, in the order of their start; -1: any
  void has_cpus(std::vector<int> numbers);                 ///< the process may use these; 0 and 1 unless told otherwise

  // Failures.
  /// The next call of this name, or the one after `calls_before` others, fails.
  void will_fail(Call call, int error, std::size_t calls_before = 0);
  /// The call made after `calls_before` others fails, whichever it is, if `error_for` names an errno for it (0: it does not
  /// fail).
  void will_fail_any(std::size_t calls_before, std::function<int(const RecordedCall&)> error_for);
  /// An interface of this host, for scopes.
  void has_interface(std::string name, unsigned index);

  // The record. Reading the clock is not in it: that would bury the rest (clock_reads() counts it).
  [[nodiscard]] const std::vector<RecordedCall>& calls() const;
  [[nodiscard]] std::size_t count(Call call) const;
  [[nodiscard]] std::size_t count(Call call, int descriptor) const;
  [[nodiscard]] std::string names() const;      ///< of all calls, with spaces between
  [[nodiscard]] Duration last_timeout() const;  ///< of the last wait
  [[nodiscard]] std::size_t clock_reads() const;
  void forget_calls();

  // What is left.
  [[nodiscard]] std::vector<int> open_descriptors() const;
  [[nodiscard]] std::size_t calls_on_closed()
      const;  ///< that answered EBADF; removing a registration is no mistake and not counted
  [[nodiscard]] std::vector<int> blocked_signals() const;
  [[nodiscard]] std::vector<std::string> paths() const;  ///< of Unix sockets that were bound and not unlinked

 private:
  class World;
  std::unique_ptr<World> world_;
};

}  // namespace vigil::sys
