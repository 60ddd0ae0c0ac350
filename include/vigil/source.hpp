// What the reactor wakes: a descriptor, a deadline, or both. Connections, listeners, watches and timers are built on it; users of
// the library meet only those.
//
// Sources live in slabs that stay mapped as long as their reactor, so that a late event or an old handle can always look at the
// generation and see that the life it meant is over. Thread: the reactor's.
#pragma once

#include <cstdint>

#include "vigil/timer_wheel.hpp"

namespace vigil {

struct ReactorCore;
class Source;

/// What the poller saw. Only `readable` and `writable` promise anything; the rest mean "go and ask recv".
struct Readiness {
  static constexpr std::uint8_t readable = 1, urgent = 2, writable = 4, error = 8, ended = 16;
  std::uint8_t bits = 0;

  [[nodiscard]] bool any_of(unsigned mask) const { return (bits & mask) != 0; }
};

/// How one kind of source answers the phases of a turn. Entries that a kind never uses are null.
struct SourceOperations {
  void (*ready)(ReactorCore&, Source&, Readiness) noexcept;    ///< dispatch: the poller or the ready list named it
  void (*due)(ReactorCore&, Source&) noexcept;                 ///< its timer node was handed out
  void (*flush)(ReactorCore&, Source&) noexcept;               ///< it asked for the flush phase
  void (*finish)(ReactorCore&, Source&) noexcept;              ///< it asked for the finish phase: the end of its life
  void (*stop)(ReactorCore&, Source&, bool at_once) noexcept;  ///< the reactor's shutdown, or (at once) its end
  void (*cancel)(ReactorCore&, Source&) noexcept;              ///< its Registration let go of it
};

class alignas(64) Source : public TimerNode {
 public:
  [[nodiscard]] std::uint32_t generation() const { return generation_; }

 protected:
  friend struct ReactorCore;
  friend struct CoreSources;
  friend struct ConnectionLife;
  friend struct ListenerLife;
  friend class EpollPoller;
  friend class SourceSlab;
  friend class Registration;

  Source() = default;
  ~Source() = default;

  const SourceOperations* operations_ = nullptr;
  int descriptor_ = -1;
  std::uint32_t generation_ = 0;  ///< grows by one whenever a life in this slot ends
  std::uint8_t lists_ = 0;        ///< which of the reactor's lists hold it, and with what readiness
};

}  // namespace vigil
