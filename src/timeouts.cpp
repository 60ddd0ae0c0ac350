#include "vigil/timeouts.hpp"

#include <array>
#include <cerrno>
#include <mutex>

namespace vigil {
namespace {

struct Kind {
  const char* name;
  Timeout Timeouts::*member;
  const char* out_of_range;
  const char* inherits_nothing;
};

// In the order of the enumeration.
constexpr std::array<Kind, deadline_count> kinds{{
    {"connect", &Timeouts::connect, "connect timeout out of range", "connect timeout: the process has nothing to inherit"},
    {"accept", &Timeouts::accept, "accept timeout out of range", "accept timeout: the process has nothing to inherit"},
    {"first_byte", &Timeouts::first_byte, "first_byte timeout out of range",
     "first_byte timeout: the process has nothing to inherit"},
    {"receive", &Timeouts::receive, "receive timeout out of range", "receive timeout: the process has nothing to inherit"},
    {"send", &Timeouts::send, "send timeout out of range", "send timeout: the process has nothing to inherit"},
    {"drain", &Timeouts::drain, "drain timeout out of range", "drain timeout: the process has nothing to inherit"},
}};

const Kind& kind_of(Deadline kind) { return kinds[static_cast<std::size_t>(kind)]; }

// A lock and a copy: the process's timeouts are read when a socket is made, never per message.
std::mutex process_mutex;
constinit Timeouts process_timeouts{
    .connect = never, .accept = never, .first_byte = never, .receive = never, .send = never, .drain = std::chrono::seconds(5)};

}  // namespace

const char* to_string(Deadline kind) { return kind_of(kind).name; }

Timeout& Timeouts::of(Deadline kind) { return this->*kind_of(kind).member; }
const Timeout& Timeouts::of(Deadline kind) const { return this->*kind_of(kind).member; }

Timeouts over(const Timeouts& nearer, const Timeouts& farther) {
  Timeouts result = nearer;
  for (const Kind& kind : kinds) {
    if ((result.*kind.member).is_inherit()) result.*kind.member = farther.*kind.member;
  }
  return result;
}

Result<void> validate(const Timeouts& timeouts, const char* operation) {
  for (const Kind& kind : kinds) {
    const Timeout timeout = timeouts.*kind.member;
    if (timeout.is_inherit()) continue;
    if (timeout.is_never()) {
      // A graceful close that waits for ever for the peer's end is a leak.
      if (kind.member == &Timeouts::drain) return Error{operation, EINVAL, "drain timeout can't be never"};
      continue;
    }
    if (timeout.duration() < shortest_timeout || timeout.duration() > longest_timeout)
      return Error{operation, EINVAL, kind.out_of_range};
  }
  return {};
}

Result<void> set_default_timeouts(const Timeouts& timeouts) {
  constexpr const char* operation = "set_default_timeouts";
  if (auto valid = validate(timeouts, operation); !valid) return valid;
  for (const Kind& kind : kinds) {
    if ((timeouts.*kind.member).is_inherit()) return Error{operation, EINVAL, kind.inherits_nothing};
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
