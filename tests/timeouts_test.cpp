#include "vigil/timeouts.hpp"

#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string_view>
#include <thread>

#include "support/loopback.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Deadline;
using vigil::Duration;
using vigil::Timeout;
using vigil::Timeouts;

constexpr Deadline all_kinds[] = {Deadline::connect, Deadline::accept, Deadline::first_byte, Deadline::receive,
                                  Deadline::message, Deadline::send,   Deadline::drain};
constexpr Deadline all_rates[] = {Deadline::receive_rate, Deadline::send_rate};

static_assert(sizeof(Timeout) == 8);
static_assert(Timeout().is_inherit() && vigil::inherit.is_inherit() && !vigil::inherit.is_never());
static_assert(vigil::never.is_never() && !vigil::never.is_inherit());
static_assert(Timeout(30s).duration() == 30s && !Timeout(30s).is_never());

Timeouts with(Deadline kind, Timeout timeout) {
  Timeouts timeouts;
  timeouts.of(kind) = timeout;
  return timeouts;
}

TEST_CASE("a timeout takes durations of every kind") {
  CHECK(Timeout(2min).duration() == 120s);
  CHECK(Timeout(std::chrono::duration<double>(0.25)).duration() == 250ms);
  for (const auto seconds : {std::uint8_t{0}, std::uint8_t{200}, std::uint8_t{255}})
    CHECK(Timeout(std::chrono::duration<unsigned char>(seconds)).duration() == seconds * 1s);
  CHECK(Timeout(std::chrono::duration<std::int64_t, std::ratio<1, 3>>(3)).duration() == 1s);
}

TEST_CASE("a duration finer than a nanosecond is rounded up") {
  using Picoseconds = std::chrono::duration<std::int64_t, std::pico>;

  CHECK(Timeout(Picoseconds(1)).duration() == 1ns);
  CHECK(Timeout(Picoseconds(1000)).duration() == 1ns);
  CHECK(Timeout(std::chrono::duration<double, std::nano>(0.25)).duration() == 1ns);
}

TEST_CASE("a duration that does not fit is out of range instead of wrapping round") {
  using std::chrono::duration;
  std::uint64_t most = std::numeric_limits<std::uint64_t>::max();  // not known to the compiler
  const Timeout absurd[] = {std::chrono::hours::max(),
                            std::chrono::hours::min(),
                            Duration::max(),
                            Duration::min(),
                            duration<std::uint64_t>(most),
                            duration<double>(1e300),
                            duration<double>(-1e300),
                            duration<double>(std::numeric_limits<double>::infinity()),
                            duration<double>(std::numeric_limits<double>::quiet_NaN())};

  for (const Timeout timeout : absurd) {
    CHECK_FALSE(timeout.is_inherit());
    CHECK_FALSE(timeout.is_never());
    CHECK_FALSE(vigil::validate(with(Deadline::receive, timeout), "listen"));
  }
}

TEST_CASE("a timeout of 1 ms to 10 years is valid, and one just outside is not") {
  for (const Deadline kind : all_kinds) {
    INFO(std::string(vigil::to_string(kind)));
    CHECK(vigil::validate(with(kind, 1ms), "listen"));
    CHECK(vigil::validate(with(kind, vigil::longest_timeout), "listen"));
    CHECK_FALSE(vigil::validate(with(kind, 1ms - 1ns), "listen"));
    CHECK_FALSE(vigil::validate(with(kind, vigil::longest_timeout + 1ns), "listen"));
    CHECK_FALSE(vigil::validate(with(kind, 0s), "listen"));
    CHECK_FALSE(vigil::validate(with(kind, -1s), "listen"));
  }
}

TEST_CASE("every kind but drain may be never") {
  for (const Deadline kind : all_kinds) {
    INFO(std::string(vigil::to_string(kind)));
    CHECK(bool(vigil::validate(with(kind, vigil::never), "listen")) == (kind != Deadline::drain));
  }
}

TEST_CASE("an invalid timeout is told with the operation and the kind") {
  const auto result = vigil::validate({.send = 0s}, "connect");

  REQUIRE_FALSE(result);
  CHECK(result.error() == vigil::Error{"connect", EINVAL, ""});
  CHECK(vigil::describe(result.error()) == "connect: send timeout out of range: Invalid argument (EINVAL)");
}

TEST_CASE("the nearest layer that has a value wins") {
  const Timeouts near{.receive = 1s, .send = vigil::never};
  const Timeouts far{.connect = 2s, .receive = 3s, .send = 4s};

  const Timeouts result = vigil::over(near, far);

  CHECK(result.connect == Timeout(2s));
  CHECK(result.receive == Timeout(1s));
  CHECK(result.send.is_never());
  CHECK(result.accept.is_inherit());
}

TEST_CASE("each kind of deadline has its own member and name") {
  Timeouts timeouts;
  Duration duration = 1s;
  for (const Deadline kind : all_kinds) timeouts.of(kind) = duration++;

  timeouts.rate_of(Deadline::receive_rate).bytes_per_second = 1;
  timeouts.rate_of(Deadline::send_rate).bytes_per_second = 2;

  CHECK(timeouts == Timeouts{.connect = 1s,
                             .accept = 1s + 1ns,
                             .first_byte = 1s + 2ns,
                             .receive = 1s + 3ns,
                             .message = 1s + 4ns,
                             .receive_rate = {.bytes_per_second = 1},
                             .send = 1s + 5ns,
                             .send_rate = {.bytes_per_second = 2},
                             .drain = 1s + 6ns});
  CHECK(vigil::to_string(Deadline::first_byte) == std::string_view("first_byte"));
  CHECK(vigil::to_string(Deadline::receive_rate) == std::string_view("receive_rate"));
  CHECK(vigil::to_string(Deadline::drain) == std::string_view("drain"));
}

TEST_CASE("built in, a drain takes 5 s and everything else waits for ever") {
  const Timeouts timeouts = vigil::default_timeouts();

  for (const Deadline kind : all_kinds) {
    INFO(std::string(vigil::to_string(kind)));
    if (kind == Deadline::drain) {
      CHECK(timeouts.of(kind) == Timeout(5s));
    } else {
      CHECK(timeouts.of(kind).is_never());
    }
  }
  for (const Deadline kind : all_rates) CHECK(timeouts.rate_of(kind).is_never());
}

TEST_CASE("a rate is layered as a whole: bytes, window and grace of the nearest that has one") {
  const vigil::Rate slow{.bytes_per_second = 10, .window = 2s, .grace = 1s};

  CHECK(vigil::over({}, {.receive_rate = slow}).receive_rate == slow);
  CHECK(vigil::over({.receive_rate = vigil::Rate::never()}, {.receive_rate = slow}).receive_rate.is_never());
  CHECK(vigil::over({.receive_rate = {.bytes_per_second = 20}}, {.receive_rate = slow}).receive_rate.window == 1s);
}

TEST_CASE("the bytes of a window are rounded up, at least one, and never wrap round") {
  CHECK(vigil::Rate{.bytes_per_second = 100}.bytes_per_window() == 100);
  CHECK(vigil::Rate{.bytes_per_second = 100, .window = 25ms}.bytes_per_window() == 3);
  CHECK(vigil::Rate{.bytes_per_second = 1, .window = 1ms}.bytes_per_window() == 1);
  CHECK(vigil::Rate{.bytes_per_second = UINT64_MAX - 1, .window = vigil::longest_timeout}.bytes_per_window() == UINT64_MAX);
}

TEST_CASE("a rate's window and grace have a range, whatever the rate") {
  for (const Deadline kind : all_rates) {
    const auto accepted = [kind](const vigil::Rate& rate) {
      Timeouts timeouts;
      timeouts.rate_of(kind) = rate;
      return bool(vigil::validate(timeouts, "test"));
    };
    CHECK(accepted({.bytes_per_second = 1, .window = 1ms, .grace = 0ms}));
    CHECK_FALSE(accepted({.bytes_per_second = 1, .window = 999us}));
    CHECK_FALSE(accepted({.bytes_per_second = 1, .window = vigil::longest_timeout + 1ns}));
    CHECK_FALSE(accepted({.bytes_per_second = 1, .grace = -1ns}));
    CHECK_FALSE(accepted({.bytes_per_second = 1, .grace = vigil::longest_timeout + 1ns}));
  }
}

TEST_CASE("the process's timeouts are replaced as a whole or not at all") {
  const vigil::test::ProcessTimeouts restored;
  Timeouts timeouts = vigil::default_timeouts();
  timeouts.receive = 7s;
  REQUIRE(vigil::set_default_timeouts(timeouts));

  timeouts.connect = 8s;
  timeouts.drain = vigil::never;
  const auto refused = vigil::set_default_timeouts(timeouts);

  REQUIRE_FALSE(refused);
  CHECK(refused.error() == vigil::Error{"set_default_timeouts", EINVAL, ""});
  CHECK(vigil::default_timeouts().receive == Timeout(7s));
  CHECK(vigil::default_timeouts().connect.is_never());
}

TEST_CASE("the process's timeouts can't inherit: there is no layer above") {
  const auto refused = vigil::set_default_timeouts({.receive = 5s});

  REQUIRE_FALSE(refused);
  CHECK(refused.error() == vigil::Error{"set_default_timeouts", EINVAL, ""});
  CHECK(vigil::default_timeouts().receive.is_never());
}

TEST_CASE("an instant beyond the clock's range is never due") {
  const vigil::Instant start(Duration(1'000));

  CHECK(vigil::due_at(start, 5ns) == vigil::Instant(Duration(1'005)));
  CHECK(vigil::due_at(start, vigil::never) == vigil::never_due);
  CHECK(vigil::due_at(start, vigil::inherit) == vigil::never_due);
  CHECK(vigil::due_at(vigil::never_due - 1s, 2s) == vigil::never_due);
  CHECK(vigil::due_at(vigil::never_due, 1ms) == vigil::never_due);
}

}  // namespace

TEST_SUITE("threads") {
  TEST_CASE("a process timeout set by one thread is what another reads, whole") {
    const vigil::test::ProcessTimeouts restored;
    constexpr int rounds = 2'000;
    std::thread writer([] {
      for (int round = 1; round <= rounds; ++round) {
        const Timeout timeout = std::chrono::milliseconds(round);
        Timeouts timeouts = vigil::default_timeouts();
        for (const Deadline kind : all_kinds) timeouts.of(kind) = timeout;
        (void)vigil::set_default_timeouts(timeouts);
      }
    });

    int torn = 0;
    Timeouts read = vigil::default_timeouts();
    while (read.connect != Timeout(std::chrono::milliseconds(rounds))) {
      if (!read.connect.is_never() && !(read.connect == read.drain && read.connect == read.receive)) ++torn;
      read = vigil::default_timeouts();
    }
    writer.join();

    CHECK(torn == 0);
  }
}
