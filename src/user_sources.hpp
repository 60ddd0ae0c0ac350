// Timers, watches and signals: the user's own sources, and the core's (the mailbox's wake-up, the end of a shutdown's drain).
//
// Thread: the reactor's. Ownership: the reactor's slab; a Registration (vigil/reactor.hpp) is the user's hold on one.
#pragma once

#include <new>

#include "reactor_core.hpp"

namespace vigil {

struct UserSource final : Source {
  Task on_due;
  Callback<void(Readiness)> on_ready;
  Callback<void(int)> on_signal;
  int signal_number = 0;
  bool signal_was_blocked = false;
  bool registered = false;
  bool over = false;

  static Source* construct(void* slot) { return ::new (slot) UserSource; }
};

struct CoreSources {
  static UserSource& of(Source& source) { return static_cast<UserSource&>(source); }

  /// Null: no memory, or the reactor has ended.
  [[nodiscard]] static UserSource* make(ReactorCore& core, const SourceOperations& operations);
  [[nodiscard]] static int add(ReactorCore& core, UserSource& source, int descriptor, Poller::Interest interest);
  [[nodiscard]] static bool watches_signal(ReactorCore& core, int signal_number);

  static const SourceOperations timer, watch, signal, wake;

 private:
  static SourceSlab& slab(ReactorCore& core) {
    return *core.slab_for(sizeof(UserSource), alignof(UserSource), &UserSource::construct);
  }
  static void timer_due(ReactorCore& core, Source& source) noexcept;
  static void watch_ready(ReactorCore& core, Source& source, Readiness readiness) noexcept;
  static void signal_ready(ReactorCore& core, Source& source, Readiness readiness) noexcept;
  static void wake_ready(ReactorCore& core, Source& source, Readiness readiness) noexcept;
  static void cancel(ReactorCore& core, Source& source) noexcept;
  static void finish(ReactorCore& core, Source& source) noexcept;
};

}  // namespace vigil
