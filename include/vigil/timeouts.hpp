// Timeouts: how long each kind of waiting may take, how slow a stream may be, and the layers these come from.
//
// A Timeout is a duration, `never`, or `inherit` (ask the next layer); a Rate is a bound, none, or inherits likewise. The layers,
// the nearest wins: connection or socket, listener or connector, reactor, process. Built in at the process: drain 5 s, every
// other kind never.
//
// Thread: Timeout and Timeouts are plain values; the process's own are read and replaced from any thread.
//
//   vigil::Timeouts timeouts{.receive = 30s, .receive_rate = {.bytes_per_second = 100}, .send = vigil::never};
//
//   auto process = vigil::default_timeouts();                          // a copy with every kind valued
//   process.receive = 60s;
//   if (auto set = vigil::set_default_timeouts(process); !set) return vigil::report(set.error());
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <ratio>

#include "vigil/result.hpp"
#include "vigil/time.hpp"

namespace vigil {

/// A duration, never, or inherit (the default). Made from any std::chrono duration, rounded up to a nanosecond; one that does not
/// fit is kept as the longest or a negative value, and NaN as a negative one, so that validate() refuses it: nothing wraps round.
class Timeout {
 public:
  constexpr Timeout() = default;

  template <class Representation, class Period>
  constexpr Timeout(std::chrono::duration<Representation, Period> duration) : nanoseconds_(saturated(duration)) {}

  static constexpr Timeout never() {
    Timeout timeout;
    timeout.nanoseconds_ = never_value;
    return timeout;
  }

  [[nodiscard]] constexpr bool is_inherit() const { return nanoseconds_ == inherit_value; }
  [[nodiscard]] constexpr bool is_never() const { return nanoseconds_ == never_value; }

  /// The duration; meaningless where is_inherit() or is_never().
  [[nodiscard]] constexpr Duration duration() const { return Duration(nanoseconds_); }

  friend constexpr bool operator==(Timeout left, Timeout right) { return left.nanoseconds_ == right.nanoseconds_; }

 private:
  static constexpr std::int64_t inherit_value = std::numeric_limits<std::int64_t>::min();
  static constexpr std::int64_t never_value = std::numeric_limits<std::int64_t>::max();
  static constexpr std::int64_t longest = never_value - 1;
  static constexpr std::int64_t invalid = inherit_value + 1;

  template <class Representation, class Period>
  static constexpr std::int64_t saturated(std::chrono::duration<Representation, Period> duration) {
    using PerTick = std::ratio_divide<Period, std::nano>;
    if constexpr (std::numeric_limits<Representation>::is_integer && PerTick::den == 1) {
      if constexpr (std::numeric_limits<Representation>::is_signed) {
        const std::intmax_t count = duration.count();
        if (count > longest / PerTick::num) return longest;
        if (count < invalid / PerTick::num) return invalid;
      } else if (static_cast<std::uintmax_t>(duration.count()) > static_cast<std::uintmax_t>(longest / PerTick::num)) {
        return longest;
      }
      return static_cast<std::int64_t>(duration.count()) * PerTick::num;
    } else {
      // Finer than a nanosecond, an odd period, or floating point: long double is wide enough, and what it rounds off lies far
      // below the clock's resolution.
      const long double exact = static_cast<long double>(duration.count()) * PerTick::num / PerTick::den;
      if (!(exact > static_cast<long double>(invalid))) return invalid;  // NaN compares false
      if (exact >= static_cast<long double>(longest)) return longest;
      const auto whole = static_cast<std::int64_t>(exact);
      return static_cast<long double>(whole) < exact ? whole + 1 : whole;
    }
  }

  std::int64_t nanoseconds_ = inherit_value;
};

inline constexpr Timeout inherit{};                 ///< take it from the next layer
inline constexpr Timeout never = Timeout::never();  ///< wait for as long as it takes

inline constexpr Duration shortest_timeout = std::chrono::milliseconds(1);
inline constexpr Duration longest_timeout = std::chrono::years(10);

/// The least that a stream must move: fewer bytes in a full window are too slow. The first window begins after the grace, each
/// other where the one before it ended. But where bytes came between a window's end and the moment it was judged, where the loop
/// stood still, and always for send_rate, the next one begins at that moment: a tick later at most, beyond the loop's own delay.
struct Rate {
  static constexpr std::uint64_t inherited = std::numeric_limits<std::uint64_t>::max();

  std::uint64_t bytes_per_second = inherited;  ///< 0: no bound
  Duration window = std::chrono::seconds(1);   ///< 1 ms to 10 years
  Duration grace = std::chrono::seconds(5);  ///< 0 to 10 years; below an eighth of the window, but not 0, it may last that eighth

  static constexpr Rate never() { return {.bytes_per_second = 0}; }

  [[nodiscard]] constexpr bool is_inherit() const { return bytes_per_second == inherited; }
  [[nodiscard]] constexpr bool is_never() const { return bytes_per_second == 0; }
  /// Rounded up, at least one; saturates.
  [[nodiscard]] std::uint64_t bytes_per_window() const;

  friend bool operator==(const Rate&, const Rate&) = default;
};

/// The kinds of deadline; each is a close reason of its own. Those of receiving (first_byte to receive_rate) stand still while
/// reading is paused, and end with the peer's stream or our close; those of sending run on.
enum class Deadline : std::uint8_t {
  connect,     ///< from connect() until the peer answered
  accept,      ///< of a listener: from listen(), then from each connection accepted, until the next; not while that is paused
  first_byte,  ///< from open until the first byte came
  receive,     ///< from open, then from each byte received, until the next. Waits while first_byte runs
  message,     ///< from the beginning of a message until its end (Connection::begin_message, end_message); never marked, all that
               ///< is received is one message, begun at open
  receive_rate,  ///< a Rate of bytes received, while a message has begun
  send,       ///< while bytes of ours are outstanding: from the last one acknowledged until the next. Sampled within every eighth
              ///< of the timeout: never early, at most an eighth (or a tick, if that is more) and a tick late. While a close
              ///< flushes what is queued, also the one that answers the peer's end, `never` counts as `drain`: every close ends
  send_rate,  ///< a Rate of bytes acknowledged, while some are outstanding. A window in which all was acknowledged that was
              ///< outstanding at its beginning is not too slow, however few bytes that were. Sampled as `send`
  drain,      ///< of a graceful close: from our end until the peer's
};

inline constexpr std::size_t deadline_count = static_cast<std::size_t>(Deadline::drain) + 1;

[[nodiscard]] const char* to_string(Deadline kind);
[[nodiscard]] constexpr bool is_rate(Deadline kind) { return kind == Deadline::receive_rate || kind == Deadline::send_rate; }

/// One Timeout, or Rate, for each kind of deadline. A Timeout is valid from 1 ms to 10 years, `never` (except for drain), or
/// `inherit`.
struct Timeouts {
  Timeout connect{};
  Timeout accept{};
  Timeout first_byte{};
  Timeout receive{};
  Timeout message{};
  Rate receive_rate{};
  Timeout send{};
  Rate send_rate{};
  Timeout drain{};

  /// The member of a kind that has a Timeout; for a kind that has a Rate, rate_of().
  [[nodiscard]] Timeout& of(Deadline kind);
  [[nodiscard]] const Timeout& of(Deadline kind) const;
  [[nodiscard]] Rate& rate_of(Deadline kind);
  [[nodiscard]] const Rate& rate_of(Deadline kind) const;

  friend bool operator==(const Timeouts&, const Timeouts&) = default;
};

/// Each kind from `nearer`, or where that inherits, from `farther`.
[[nodiscard]] Timeouts over(const Timeouts& nearer, const Timeouts& farther);

/// Success, or Error{operation, EINVAL, ...} naming the first kind that is out of range.
[[nodiscard]] Result<void> validate(const Timeouts& timeouts, const char* operation);

/// Replaces the process's timeouts, from any thread. Sockets and connections made afterwards use them; open ones never change.
/// Every kind must be valued, `inherit` is refused (start from default_timeouts(), as above); a refused call changes nothing.
[[nodiscard]] Result<void> set_default_timeouts(const Timeouts& timeouts);

/// A copy of the process's timeouts as last set, every kind valued. From any thread.
[[nodiscard]] Timeouts default_timeouts();

/// The instant `timeout` after `start`; never_due for never and inherit, and for sums beyond the clock's range.
[[nodiscard]] constexpr Instant due_at(Instant start, Timeout timeout) {
  if (timeout.is_never() || timeout.is_inherit()) return never_due;
  if (timeout.duration() > Duration::zero() && start > never_due - timeout.duration()) return never_due;
  return start + timeout.duration();
}

}  // namespace vigil
