// One thread's event loop: a poller, a timer wheel, the sources it wakes, and the tasks posted to it.
//
// A reactor and everything made from it belong to the thread that runs it; debug builds assert this. Only its Mailbox may be
// touched from elsewhere. Constructors answer no error: what went wrong (no descriptor left, invalid options) is answered by the
// first listen, connect, watch or run. Where memory is short, connections, timers and watches are refused or ended with ENOMEM;
// but where there is none for a reactor, listener, connector or server itself, or for a task, std::bad_alloc is thrown, which the
// library does not handle: count on the program's end. Callbacks (but for make_handler) are never entered from inside one of the
// user's own calls, and one that throws terminates the program.
//
// One turn: wait; dispatch what is ready, then what was left over; advance timers; run posted tasks; flush connections written to
// from elsewhere; finish what ended (on_close, then its memory is reused).
//
// Portability: readiness is a hint. A callback may be called for a descriptor that turns out to have nothing to say, and an end
// or an error is only what recv then reports.
//
//   vigil::Reactor reactor;
//   vigil::Timer tick(reactor, [&] { reactor.stop(); });
//   (void)tick.arm_after(10ms);
//   return vigil::report(reactor.run());
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "vigil/callback.hpp"
#include "vigil/close_record.hpp"
#include "vigil/mailbox.hpp"
#include "vigil/result.hpp"
#include "vigil/source.hpp"
#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

struct ReactorCore;
class Reactor;

struct ReactorOptions {
  Timeouts timeouts{};                           ///< the reactor's layer of defaults: nearer than the process's
  Duration tick = std::chrono::milliseconds(1);  ///< grid of the timer wheel: 100 µs to 1 s. A timer is late by up to one tick
  /// One buffer for all connections (as much again lies before it, for bytes left by on_receive): the most a single recv takes;
  /// 1 KiB to 16 MiB.
  std::size_t receive_buffer_bytes = 64 * 1024;
  std::size_t gather_buffer_bytes = 64 * 1024;  ///< small sends of one dispatch leave together; 1 KiB to 16 MiB
  std::size_t events_per_wait = 512;            ///< 1 to 65,536
  std::size_t reads_per_turn = 8;  ///< recv calls one connection may make before the others have their turn; 1 to 1,024
};

/// Everything a reactor counts, since it was made. Copy it; it changes as the reactor runs.
struct ReactorCounters {
  std::uint64_t turns = 0;
  std::uint64_t events = 0;        ///< reported by the poller
  std::uint64_t stale_events = 0;  ///< of those, for a life that was over
  std::uint64_t timers_fired = 0;
  std::uint64_t tasks_run = 0;
  std::uint64_t wakeups = 0;  ///< by the mailbox
  std::uint64_t opened = 0;   ///< connections accepted (shed ones too) and attempted
  std::uint64_t closed = 0;   ///< records told; opened - closed connections are alive
  std::uint64_t receive_calls = 0;
  std::uint64_t empty_receives = 0;  ///< receive calls answered EAGAIN
  std::uint64_t send_calls = 0;
  std::uint64_t stalled_sends = 0;  ///< sends the kernel did not take whole
  std::uint64_t received_bytes = 0;
  std::uint64_t sent_bytes = 0;
  std::uint64_t shed = 0;  ///< connections closed for want of a descriptor or memory
  std::uint64_t accept_pauses = 0;
  /// How long after the end that a wait had asked for timers were looked at (because the wait came late, or callbacks kept the
  /// loop from it), and the time that timers, tasks and on_close took.
  std::uint64_t loop_delay_ns_total = 0;
  std::uint64_t loop_delay_ns_max = 0;                         ///< the worst single delay of the above
  std::array<std::uint64_t, close_reason_count> closed_for{};  ///< by close reason

  /// Another reactor's, added up; of what ends in `_max`, the larger.
  ReactorCounters& operator+=(const ReactorCounters& other);
};

/// Owns a reactor's attention to one thing: destroying it (also inside its own callback) cancels. Inert once the reactor is gone.
class Registration {
 public:
  Registration() = default;
  Registration(Registration&& other) noexcept;
  Registration& operator=(Registration&& other) noexcept;
  ~Registration() { cancel(); }

  void cancel();  ///< nothing is called afterwards; a no-op on an empty or cancelled one
  [[nodiscard]] bool active() const { return source() != nullptr; }

 protected:
  friend class Reactor;
  friend class ListenerBase;
  friend struct ReactorCore;
  struct Link {
    ReactorCore* core;  ///< null once the reactor is gone
  };
  Registration(std::shared_ptr<Link> link, Source* source);
  [[nodiscard]] Source* source() const;
  [[nodiscard]] ReactorCore* core() const { return link_ ? link_->core : nullptr; }

 private:
  std::shared_ptr<Link> link_;
  Source* source_ = nullptr;
  std::uint32_t generation_ = 0;
};

/// A one-shot timer. It never fires early, and at most one tick late beyond the loop's own delay.
class Timer : public Registration {
 public:
  Timer() = default;
  Timer(Reactor& reactor, Task callback);

  /// (Re)arms it. From 0 (the next turn's timers) to 10 years, else Error{arm timer, EINVAL}; ECANCELED when cancelled or the
  /// reactor is gone.
  [[nodiscard]] Result<void> arm_after(Duration delay);
  /// As arm_after, for an instant of Reactor::now()'s clock; one that has passed fires with the next timers.
  [[nodiscard]] Result<void> arm_at(Instant due);
  void disarm();
  [[nodiscard]] bool armed() const;
};

enum class WatchFor : std::uint8_t { readable, writable, both };

/// A descriptor of the user's, watched level-triggered: the callback comes again each turn as long as it is ready.
class Watch : public Registration {
 public:
  Watch() = default;

  [[nodiscard]] Result<void> change(WatchFor wanted);

 private:
  friend class Reactor;
  using Registration::Registration;
};

class Reactor {
 public:
  explicit Reactor(const ReactorOptions& options = {});
  /// Closes what is still open with server_stopping, telling each on_close while its handler lives: what handlers refer to must
  /// outlive the reactor.
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  /// Turns until stop(), or until shutdown() has told its last record. From inside a callback: Error{run, EBUSY}.
  [[nodiscard]] Result<void> run();
  /// One turn, which waits at most `at_most` (negative: EINVAL). From inside a callback: Error{run, EBUSY}.
  [[nodiscard]] Result<void> turn(Duration at_most = Duration::max());
  /// Lets the turn finish; run() then returns and may be called again. Ready sources not yet dispatched stay ready. A no-op while
  /// not running.
  void stop();
  /// Closes everything gracefully with server_stopping, at most `drain` long (0: at once; up to 10 years), and returns at once.
  /// Of several calls the one that ends earliest holds. Listeners close, later listens and connects answer ESHUTDOWN. run()
  /// returns when the last record is told.
  [[nodiscard]] Result<void> shutdown(Duration drain);

  /// Reads the clock.
  [[nodiscard]] Instant now() const;
  /// The door for other threads; from this thread it works too.
  [[nodiscard]] Mailbox mailbox() const;
  /// Runs `task` on this thread after this turn's timers (from a task: in the next turn).
  [[nodiscard]] Result<void> post(Task task);

  /// Watches any pollable descriptor, which stays the user's: cancel before closing it. EEXIST: watched already; EPERM: not
  /// pollable.
  [[nodiscard]] Result<Watch> watch(int descriptor, WatchFor wanted, Callback<void(Readiness)> callback);
  /// Calls back with the signal's number on this thread. Blocks the signal for the calling thread until cancelled: call it before
  /// other threads start, so that they inherit the block. EEXIST: this reactor watches it already; EINVAL: no such signal, or
  /// SIGKILL or SIGSTOP.
  [[nodiscard]] Result<Watch> on_signal(int signal_number, Callback<void(int)> callback);

  [[nodiscard]] const ReactorCounters& counters() const;

 private:
  friend struct ReactorCore;
  friend class Timer;
  friend class ListenerBase;
  friend class ConnectorBase;
  std::unique_ptr<ReactorCore> core_;
};

}  // namespace vigil
