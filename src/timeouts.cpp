#include "vigil/timeouts.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <mutex>

namespace vigil {
namespace {

/// A kind has either a timeout or a rate.
struct Kind {
  const char* name;
  Timeout Timeouts::*timeout;
  Rate Timeouts::*rate;
  const char* out_of_range;
  const char* inherits_nothing;
};

// In the order of the enumeration.
constexpr std::array<Kind, deadline_count> kinds{{
    {"connect", &Timeouts::connect, nullptr, "connect timeout out of range",
     "connect timeout: the process has nothing to inherit"},
    {"accept", &Timeouts::accept, nullptr, "accept timeout out of range", "accept timeout: the process has nothing to inherit"},
    {"first_byte", &Timeouts::first_byte, nullptr, "first_byte timeout out of range",
     "first_byte timeout: the process has nothing to inherit"},
    {"receive", &Timeouts::receive, nullptr, "receive timeout out of range",
     "receive timeout: the process has nothing to inherit"},
    {"message", &Timeouts::message, nullptr, "message timeout out of range",
     "message timeout: the process has nothing to inherit"},
    {"receive_rate", nullptr, &Timeouts::receive_rate, "receive_rate: window or grace out of range",
     "receive_rate: the process has nothing to inherit"},
    {"send", &Timeouts::send, nullptr, "send timeout out of range", "send timeout: the process has nothing to inherit"},
    {"send_rate", nullptr, &Timeouts::send_rate, "send_rate: window or grace out of range",
     "send_rate: the process has nothing to inherit"},
    {"drain", &Timeouts::drain, nullptr, "drain timeout out of range", "drain timeout: the process has nothing to inherit"},
}};

const Kind& kind_of(Deadline kind) { return kinds[static_cast<std::size_t>(kind)]; }

// A lock and a copy: the process's timeouts are read when a socket is made, never per message.
std::mutex process_mutex;
constinit Timeouts process_timeouts{.connect = never,
                                    .accept = never,
                                    .first_byte = never,
                                    .receive = never,
                                    .message = never,
                                    .receive_rate = Rate::never(),
                                    .send = never,
                                    .send_rate = Rate::never(),
                                    .drain = std::chrono::seconds(5)};

bool in_range(Duration duration, Duration shortest) { return duration >= shortest && duration <= longest_timeout; }

}  // namespace

const char* to_string(Deadline kind) { return kind_of(kind).name; }

Timeout& Timeouts::of(Deadline kind) { return this->*kind_of(kind).timeout; }
const Timeout& Timeouts::of(Deadline kind) const { return this->*kind_of(kind).timeout; }
Rate& Timeouts::rate_of(Deadline kind) { return this->*kind_of(kind).rate; }
const Rate& Timeouts::rate_of(Deadline kind) const { return this->*kind_of(kind).rate; }

std::uint64_t Rate::bytes_per_window() const {
  // long double has 64 bits of mantissa: exact as far as a window's bytes fit into the answer.
  constexpr long double nanoseconds_per_second = 1e9L;
  const long double bytes =
      std::ceil(static_cast<long double>(bytes_per_second) * static_cast<long double>(window.count()) / nanoseconds_per_second);
  if (bytes >= static_cast<long double>(inherited)) return inherited;
  return std::max<std::uint64_t>(static_cast<std::uint64_t>(bytes), 1);
}

Timeouts over(const Timeouts& nearer, const Timeouts& farther) {
  Timeouts result = nearer;
  for (const Kind& kind : kinds) {
    if (kind.rate != nullptr) {
      if ((result.*kind.rate).is_inherit()) result.*kind.rate = farther.*kind.rate;
    } else if ((result.*kind.timeout).is_inherit()) {
      result.*kind.timeout = farther.*kind.timeout;
    }
  }
  return result;
}

Result<void> validate(const Timeouts& timeouts, const char* operation) {
  for (const Kind& kind : kinds) {
    if (kind.rate != nullptr) {
      const Rate& rate = timeouts.*kind.rate;
      if (rate.is_inherit() || rate.is_never()) continue;
      if (!in_range(rate.window, shortest_timeout) || !in_range(rate.grace, Duration::zero()))
        return Error{operation, EINVAL, kind.out_of_range};
      continue;
    }
    const Timeout timeout = timeouts.*kind.timeout;
    if (timeout.is_inherit()) continue;
    if (timeout.is_never()) {
      // A graceful close that waits for ever for the peer's end is a leak.
      if (kind.timeout == &Timeouts::drain) return Error{operation, EINVAL, "drain timeout can't be never"};
      continue;
    }
    if (!in_range(timeout.duration(), shortest_timeout)) return Error{operation, EINVAL, kind.out_of_range};
  }
  return {};
}

Result<void> set_default_timeouts(const Timeouts& timeouts) {
  constexpr const char* operation = "set_default_timeouts";
  if (auto valid = validate(timeouts, operation); !valid) return valid;
  for (const Kind& kind : kinds) {
    const bool inherits = kind.rate != nullptr ? (timeouts.*kind.rate).is_inherit() : (timeouts.*kind.timeout).is_inherit();
    if (inherits) return Error{operation, EINVAL, kind.inherits_nothing};
  }
  const std::lock_guard lock(process_mutex);
  process_timeouts = timeouts;
  return {};
}

Timeouts default_timeouts() {
  const std::lock_guard lock(process_mutex);
  return process_timeouts;
}

}  // namespace vigil
