// Which reason wins where two causes are there in the same turn: each pair that a sentence of the rule in close_record.hpp
// orders, on virtual time. precedence_test.cpp has those that a real kernel can be made to show at once.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>

#include "support/simulation.hpp"

// A failing check prints reasons by name.
namespace doctest {

template <>
struct StringMaker<vigil::CloseReason> {
  static String convert(vigil::CloseReason reason) { return vigil::to_string(reason); }
};
template <>
struct StringMaker<vigil::CutShort> {
  static String convert(vigil::CutShort cut_short) { return vigil::to_string(cut_short); }
};

}  // namespace doctest

using namespace vigil;

namespace {

/// What is there for a connection when a turn begins, in the order in which it came.
enum class Arrives {
  nothing,
  bytes,
  end,
  reset,
  bytes_end,
  bytes_reset,
  end_reset,
  kernel_timeout,
  kernel_unreachable,
  acknowledgement,
};

/// What the reactor is told of, and what it would only find by asking.
enum class Known { told, to_be_asked };

constexpr std::string_view four_bytes = "data";

void arrive(sys::ScriptedKernel& kernel, int peer, Arrives what, Known known = Known::told) {
  const bool told = known == Known::told;
  const auto error = [&](int number) { told ? kernel.connection_fails(peer, number) : kernel.will_receive_error(peer, number); };
  if (what == Arrives::bytes || what == Arrives::bytes_end || what == Arrives::bytes_reset)
    told ? kernel.peer_sends(peer, four_bytes) : kernel.will_receive(peer, four_bytes);
  if (what == Arrives::end || what == Arrives::bytes_end || what == Arrives::end_reset)
    told ? kernel.peer_finishes(peer) : kernel.will_receive_end(peer);
  if (what == Arrives::reset || what == Arrives::bytes_reset || what == Arrives::end_reset) error(ECONNRESET);
  if (what == Arrives::kernel_timeout) error(ETIMEDOUT);
  if (what == Arrives::kernel_unreachable) error(EHOSTUNREACH);
  if (what == Arrives::acknowledgement) kernel.peer_acknowledges(peer, four_bytes.size());
}

bool brings_bytes(Arrives what) { return what == Arrives::bytes || what == Arrives::bytes_end || what == Arrives::bytes_reset; }

ListenerOptions with(Timeouts timeouts) {
  ListenerOptions options;
  options.timeouts = timeouts;
  options.backlog_bytes_max = 1000;
  return options;
}

/// The turn in which all of it is there.
template <class World>
void meet(World& world) {
  world.turn(0ns);
  world.settle();
}

template <class World>
void check_end(World& world, int peer, CloseReason reason, CutShort cut_short = CutShort::none) {
  REQUIRE(world.story.records.size() == 1);
  INFO(describe(world.story.record(peer)));
  CHECK(world.story.record(peer).reason == reason);
  CHECK(world.story.record(peer).cut_short == cut_short);
}

constexpr Duration timeout = 40ms;

/// Asks for more than any test here sends, in windows as long as the timeouts.
constexpr Rate rate_in(Duration window) { return {.bytes_per_second = 1'000'000, .window = window, .grace = 0ns}; }

// The stream against a deadline -----------------------------------------------------------------------------------------------

/// A connection one of whose deadlines has run out.
enum class Late {
  first_byte,
  receive,
  message,
  receive_rate,
  send_unacknowledged,
  send_queued,
  send_rate,
  drain_of_close,
  drain_of_shutdown,
  drain_of_peers_end
};

Timeouts timeouts_of(Late late) {
  switch (late) {
    case Late::first_byte:
      return {.first_byte = timeout};
    case Late::receive:
      return {.receive = timeout};
    case Late::message:
      return {.message = timeout};
    case Late::receive_rate:
      return {.receive_rate = rate_in(timeout)};
    case Late::send_rate:
      return {.send_rate = rate_in(timeout)};
    case Late::send_unacknowledged:
    case Late::send_queued:
      return {.send = timeout};
    default:
      return {.drain = timeout};
  }
}

template <class World>
void run_late(World& world, int peer, Late late) {
  Connection& connection = world.story.connection(peer);
  if (late == Late::send_queued) world.kernel.will_take(peer, 0);
  if (late == Late::send_unacknowledged || late == Late::send_rate) world.kernel.will_not_acknowledge(peer);
  if (late == Late::send_queued || late == Late::send_unacknowledged || late == Late::send_rate)
    connection.send(bytes_of(four_bytes));
  if (late == Late::drain_of_close) connection.close();
  if (late == Late::drain_of_shutdown) REQUIRE(world.reactor->shutdown(1h));
  if (late == Late::drain_of_peers_end) world.kernel.peer_finishes(peer);
  world.settle();
  REQUIRE(world.story.records.empty());
  world.kernel.advance(timeout + 5ms);
}

struct StreamMeetsDeadline {
  const char* name;
  Arrives arrives;
  Late late;
  CloseReason reason;
  CutShort cut_short = CutShort::none;
};

template <class Handler>
void check_stream_meets_deadline(const StreamMeetsDeadline& pair, Known known) {
  SimulationOf<Handler> world(with(timeouts_of(pair.late)));
  const int peer = world.accept();
  run_late(world, peer, pair.late);
  arrive(world.kernel, peer, pair.arrives, known);
  meet(world);
  check_end(world, peer, pair.reason, pair.cut_short);
  const CloseRecord& record = world.story.record(peer);
  CHECK(record.received == (brings_bytes(pair.arrives) ? four_bytes.size() : 0));
  CHECK(record.received == world.story.received[peer].size() + record.unconsumed);
  CHECK(record.left_unread == 0);
}

TEST_CASE("what the stream says comes first, before any deadline due in the same turn") {
  using enum CloseReason;
  using enum CutShort;
  static constexpr StreamMeetsDeadline pairs[] = {
      {"the peer's end beats a first_byte deadline", Arrives::end, Late::first_byte, peer_finished},
      {"bytes and the peer's end beat a first_byte deadline", Arrives::bytes_end, Late::first_byte, peer_finished},
      {"a reset beats a first_byte deadline", Arrives::reset, Late::first_byte, peer_reset},
      {"bytes and a reset beat a first_byte deadline", Arrives::bytes_reset, Late::first_byte, peer_reset},
      {"the kernel's timeout beats a first_byte deadline", Arrives::kernel_timeout, Late::first_byte, network_timed_out},
      {"the kernel's unreachable beats a first_byte deadline", Arrives::kernel_unreachable, Late::first_byte,
       network_unreachable},
      {"the peer's end beats a receive deadline", Arrives::end, Late::receive, peer_finished},
      {"bytes and the peer's end beat a receive deadline", Arrives::bytes_end, Late::receive, peer_finished},
      {"a reset beats a receive deadline", Arrives::reset, Late::receive, peer_reset},
      {"bytes and a reset beat a receive deadline", Arrives::bytes_reset, Late::receive, peer_reset},
      {"the kernel's timeout beats a receive deadline", Arrives::kernel_timeout, Late::receive, network_timed_out},
      {"the kernel's unreachable beats a receive deadline", Arrives::kernel_unreachable, Late::receive, network_unreachable},
      {"bytes are delivered before a message deadline, which they don't stop", Arrives::bytes, Late::message, message_timed_out},
      {"the peer's end beats a message deadline", Arrives::end, Late::message, peer_finished},
      {"bytes and the peer's end beat a message deadline", Arrives::bytes_end, Late::message, peer_finished},
      {"a reset beats a message deadline", Arrives::reset, Late::message, peer_reset},
      {"bytes and a reset beat a message deadline", Arrives::bytes_reset, Late::message, peer_reset},
      {"the kernel's timeout beats a message deadline", Arrives::kernel_timeout, Late::message, network_timed_out},
      {"bytes are delivered before a receive_rate deadline, for which they are too few", Arrives::bytes, Late::receive_rate,
       receive_too_slow},
      {"the peer's end beats a receive_rate deadline", Arrives::end, Late::receive_rate, peer_finished},
      {"bytes and the peer's end beat a receive_rate deadline", Arrives::bytes_end, Late::receive_rate, peer_finished},
      {"a reset beats a receive_rate deadline", Arrives::reset, Late::receive_rate, peer_reset},
      {"bytes and a reset beat a receive_rate deadline", Arrives::bytes_reset, Late::receive_rate, peer_reset},
      {"the kernel's timeout beats a receive_rate deadline", Arrives::kernel_timeout, Late::receive_rate, network_timed_out},
      {"bytes are delivered before a send_rate deadline, which they don't stop", Arrives::bytes, Late::send_rate, send_too_slow},
      {"the peer's end beats a send_rate deadline where nothing is queued", Arrives::end, Late::send_rate, peer_finished},
      {"a reset beats a send_rate deadline", Arrives::reset, Late::send_rate, peer_reset},
      {"bytes and a reset beat a send_rate deadline", Arrives::bytes_reset, Late::send_rate, peer_reset},
      {"the kernel's timeout beats a send_rate deadline", Arrives::kernel_timeout, Late::send_rate, network_timed_out},
      {"bytes are delivered before a send deadline, which they don't stop", Arrives::bytes, Late::send_unacknowledged,
       send_timed_out},
      {"the peer's end beats a send deadline where nothing is queued", Arrives::end, Late::send_unacknowledged, peer_finished},
      {"the peer's end does not stop the send deadline of what is queued for it", Arrives::end, Late::send_queued,
       send_timed_out},
      {"a reset beats a send deadline", Arrives::reset, Late::send_unacknowledged, peer_reset},
      {"a reset beats the send deadline of what is queued", Arrives::reset, Late::send_queued, peer_reset},
      {"bytes and a reset beat a send deadline", Arrives::bytes_reset, Late::send_unacknowledged, peer_reset},
      {"the kernel's timeout beats a send deadline", Arrives::kernel_timeout, Late::send_unacknowledged, network_timed_out},
      {"the kernel's unreachable beats a send deadline", Arrives::kernel_unreachable, Late::send_unacknowledged,
       network_unreachable},
      {"bytes are counted before the drain deadline of a close", Arrives::bytes, Late::drain_of_close, local_close, timed_out},
      {"the peer's end beats the drain deadline of a close", Arrives::end, Late::drain_of_close, local_close},
      {"bytes and the peer's end beat the drain deadline of a close", Arrives::bytes_end, Late::drain_of_close, local_close},
      {"a reset beats the drain deadline of a close", Arrives::reset, Late::drain_of_close, local_close, CutShort::reset},
      {"bytes and a reset beat the drain deadline of a close", Arrives::bytes_reset, Late::drain_of_close, local_close,
       CutShort::reset},
      {"the peer's end beats the drain deadline of a shutdown", Arrives::end, Late::drain_of_shutdown, server_stopping},
      {"a reset beats the drain deadline of a shutdown", Arrives::reset, Late::drain_of_shutdown, server_stopping,
       CutShort::reset},
  };
  for (const StreamMeetsDeadline& pair : pairs) {
    SUBCASE(pair.name) {
      SUBCASE("the reactor is told of it") { check_stream_meets_deadline<Actor>(pair, Known::told); }
      SUBCASE("the deadline asks for it") { check_stream_meets_deadline<Actor>(pair, Known::to_be_asked); }
    }
  }

  static constexpr StreamMeetsDeadline asked_pairs[] = {
      {"a reset behind the peer's end beats a drain deadline", Arrives::reset, Late::drain_of_peers_end, peer_finished},
      {"the kernel's timeout beats a drain deadline", Arrives::kernel_timeout, Late::drain_of_peers_end, network_timed_out},
      {"the peer's end, told to its handler, does not stop a send deadline", Arrives::end, Late::send_unacknowledged,
       send_timed_out},
      {"the peer's end and a reset beat a receive deadline where its handler is asked", Arrives::end_reset, Late::receive,
       peer_finished},
  };
  for (const StreamMeetsDeadline& pair : asked_pairs) SUBCASE(pair.name) {
      check_stream_meets_deadline<LingeringActor>(pair, Known::told);
    }
}

TEST_CASE("what the stream says can save a connection from a deadline due in the same turn") {
  struct Pair {
    const char* name;
    Arrives arrives;
    Late late;
  };
  static constexpr Pair pairs[] = {
      {"bytes beat a first_byte deadline", Arrives::bytes, Late::first_byte},
      {"bytes beat a receive deadline", Arrives::bytes, Late::receive},
      {"bytes that end it beat a message deadline", Arrives::bytes, Late::message},
      {"an acknowledgement beats a send deadline", Arrives::acknowledgement, Late::send_unacknowledged},
      {"an acknowledgement of all there was beats a send_rate deadline", Arrives::acknowledgement, Late::send_rate},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      Known known = Known::told;
      SUBCASE("the reactor is told of it") {}
      SUBCASE("the deadline asks for it") { known = Known::to_be_asked; }
      Simulation world(with(timeouts_of(pair.late)));
      const int peer = world.accept();
      world.story.on_receive = [](Connection& connection, std::string_view) { (void)connection.end_message(); };
      run_late(world, peer, pair.late);
      arrive(world.kernel, peer, pair.arrives, known);
      meet(world);
      CHECK(world.story.records.empty());
    }
  }
}

TEST_CASE("the answer to an attempt comes before its deadline due in the same turn") {
  struct Pair {
    const char* name;
    int error;
    CloseReason reason;
  };
  static constexpr Pair pairs[] = {
      {"a refusal beats a connect deadline", ECONNREFUSED, CloseReason::connect_refused},
      {"no way there beats a connect deadline", EHOSTUNREACH, CloseReason::connect_unreachable},
      {"the kernel's timeout beats a connect deadline", ETIMEDOUT, CloseReason::connect_timed_out},
  };
  Simulation world(with({.connect = timeout}));
  const int attempt = world.connect();
  world.kernel.advance(timeout + 5ms);
  SUBCASE("an acceptance beats a connect deadline") {
    world.kernel.peer_accepts(attempt);
    meet(world);
    CHECK(world.story.opened.size() == 1);
    CHECK(world.story.records.empty());
  }
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      world.kernel.peer_refuses(attempt, pair.error);
      meet(world);
      check_end(world, attempt, pair.reason);
      CHECK(world.story.record(attempt).error_number == pair.error);
    }
  }
}

// A reset behind the peer's end -----------------------------------------------------------------------------------------------

enum class Owes { nothing, acknowledged, unacknowledged, queued, a_reply };

struct ResetBehindEnd {
  const char* name;
  Owes owes;
  CloseReason reason;
};

template <class Handler>
void check_reset_behind_end(const ResetBehindEnd& pair, bool end_told_before) {
  SimulationOf<Handler> world(with({}));
  const int peer = world.accept();
  if (end_told_before) world.kernel.peer_finishes(peer);
  world.settle();
  if (pair.owes == Owes::queued) world.kernel.will_take(peer, 0);
  if (pair.owes == Owes::unacknowledged || pair.owes == Owes::acknowledged) world.kernel.will_not_acknowledge(peer);
  if (pair.owes == Owes::a_reply)
    world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
  if (pair.owes != Owes::nothing && pair.owes != Owes::a_reply) world.story.connection(peer).send(bytes_of(four_bytes));
  world.settle();
  if (pair.owes == Owes::acknowledged) world.kernel.peer_acknowledges(peer, four_bytes.size());
  if (pair.owes == Owes::a_reply) world.kernel.peer_sends(peer, four_bytes);
  arrive(world.kernel, peer, end_told_before ? Arrives::reset : Arrives::end_reset);
  meet(world);
  check_end(world, peer, pair.reason);
  const CloseRecord& record = world.story.record(peer);
  const bool owed = pair.owes != Owes::nothing && pair.owes != Owes::acknowledged;
  CHECK(record.unsent + record.unacknowledged.value_or(0) == (owed ? four_bytes.size() : 0));
}

TEST_CASE("a reset behind the peer's end is a reset if anything of ours was unsent or unacknowledged, else the end") {
  using enum CloseReason;
  static constexpr ResetBehindEnd pairs[] = {
      {"a peer that was sent nothing finished", Owes::nothing, peer_finished},
      {"a peer that acknowledged all finished", Owes::acknowledged, peer_finished},
      {"a peer that had not acknowledged all reset", Owes::unacknowledged, peer_reset},
      {"a peer for whom something was queued reset", Owes::queued, peer_reset},
      {"a peer whose last bytes are answered in the same turn reset", Owes::a_reply, peer_reset},
  };
  for (const ResetBehindEnd& pair : pairs) {
    SUBCASE(pair.name) {
      SUBCASE("with both in one turn") { check_reset_behind_end<Actor>(pair, false); }
      SUBCASE("with both in one turn, where its handler would be asked") { check_reset_behind_end<LingeringActor>(pair, false); }
      SUBCASE("with the end told before") {
        if (pair.owes != Owes::a_reply) check_reset_behind_end<LingeringActor>(pair, true);
      }
    }
  }
}

// Our own end against what comes later ----------------------------------------------------------------------------------------

/// What this side does to a connection.
enum class Does { close, abort, shut_down, shut_down_at_once, overflow, close_and_abort, close_and_overflow, overflow_and_close };

template <class World>
void act(World& world, Connection& connection, Does what) {
  const auto overflow = [&connection] { return connection.send(bytes_of(std::string(1001, 'x'))).error(); };
  if (what == Does::overflow || what == Does::overflow_and_close) CHECK(overflow() == Error{"send", ENOBUFS});
  if (what == Does::close || what == Does::close_and_abort || what == Does::close_and_overflow ||
      what == Does::overflow_and_close)
    CHECK(connection.close());
  if (what == Does::close_and_overflow) CHECK(overflow() == Error{"send", EPIPE});
  if (what == Does::abort || what == Does::close_and_abort) CHECK(connection.abort());
  if (what == Does::shut_down) CHECK(world.reactor->shutdown(1h));
  if (what == Does::shut_down_at_once) CHECK(world.reactor->shutdown(0ns));
}

struct OwnEnd {
  const char* name;
  Does does;
  Arrives behind;  ///< the bytes during whose on_receive it is done
  CloseReason reason;
  CutShort cut_short = CutShort::none;
};

TEST_CASE("our own end stays what it is, whatever stands behind it in the stream; how a close was cut short is told") {
  using enum CloseReason;
  using enum CutShort;
  static constexpr OwnEnd pairs[] = {
      {"close() stays, and the peer's end completes it", Does::close, Arrives::end, local_close},
      {"close() stays, and bytes in front of the peer's end are discarded", Does::close, Arrives::bytes_end, local_close},
      {"close() stays, and a reset cuts it short", Does::close, Arrives::reset, local_close, CutShort::reset},
      {"close() stays, and a reset behind more bytes cuts it short", Does::close, Arrives::bytes_reset, local_close,
       CutShort::reset},
      {"close() stays, and the kernel's timeout cuts it short", Does::close, Arrives::kernel_timeout, local_close, timed_out},
      {"abort() stays before the peer's end", Does::abort, Arrives::end, local_close},
      {"abort() stays before a reset", Does::abort, Arrives::reset, local_close},
      {"abort() stays before the kernel's timeout", Does::abort, Arrives::kernel_timeout, local_close},
      {"close() stays, and abort() cuts it short", Does::close_and_abort, Arrives::nothing, local_close, CutShort::reset},
      {"close() stays, and abort() cuts it short before a reset", Does::close_and_abort, Arrives::reset, local_close,
       CutShort::reset},
      {"close() stays when a send beyond the bound follows", Does::close_and_overflow, Arrives::end, local_close},
      {"shutdown() stays, and the peer's end completes it", Does::shut_down, Arrives::end, server_stopping},
      {"shutdown() stays, and a reset cuts it short", Does::shut_down, Arrives::reset, server_stopping, CutShort::reset},
      {"shutdown() stays, and the kernel's timeout cuts it short", Does::shut_down, Arrives::kernel_timeout, server_stopping,
       timed_out},
      {"shutdown() at once stays before the peer's end", Does::shut_down_at_once, Arrives::end, server_stopping},
      {"shutdown() at once stays before a reset", Does::shut_down_at_once, Arrives::reset, server_stopping},
      {"backlog_full stays before the peer's end", Does::overflow, Arrives::end, backlog_full},
      {"backlog_full stays before a reset", Does::overflow, Arrives::reset, backlog_full},
      {"backlog_full stays before the kernel's timeout", Does::overflow, Arrives::kernel_timeout, backlog_full},
      {"backlog_full stays when close() follows", Does::overflow_and_close, Arrives::nothing, backlog_full},
  };
  for (const OwnEnd& pair : pairs) {
    SUBCASE(pair.name) {
      Simulation world(with({}), {.receive_buffer_bytes = 1024});
      const int peer = world.accept();
      bool done = false;
      world.story.on_receive = [&](Connection& connection, std::string_view) {
        CHECK_FALSE(std::exchange(done, true));
        act(world, connection, pair.does);
      };
      world.kernel.peer_sends(peer, std::string(1024, 'x'));  // as much as one recv takes, so that what follows is another's
      arrive(world.kernel, peer, pair.behind);
      meet(world);
      check_end(world, peer, pair.reason, pair.cut_short);
      const bool closes = pair.does == Does::close || pair.does == Does::shut_down;
      CHECK(world.story.record(peer).unconsumed == (closes && brings_bytes(pair.behind) ? four_bytes.size() : 0));
    }
  }
}

struct OwnEndMeetsDeadline {
  const char* name;
  Does does;
  Late late;
  CloseReason reason;
  CutShort cut_short;
};

TEST_CASE("our own end stays before a deadline due in the same turn") {
  using enum CloseReason;
  using enum CutShort;
  static constexpr OwnEndMeetsDeadline pairs[] = {
      {"close() beats a first_byte deadline", Does::close, Late::first_byte, local_close, none},
      {"close() beats a receive deadline", Does::close, Late::receive, local_close, none},
      {"close() stays, and a send deadline cuts it short", Does::close, Late::send_queued, local_close, timed_out},
      {"close() beats a message deadline", Does::close, Late::message, local_close, none},
      {"close() beats a receive_rate deadline", Does::close, Late::receive_rate, local_close, none},
      {"shutdown() beats a message deadline", Does::shut_down, Late::message, server_stopping, none},
      {"shutdown() beats a receive_rate deadline", Does::shut_down, Late::receive_rate, server_stopping, none},
      {"abort() beats a message deadline", Does::abort, Late::message, local_close, none},
      {"abort() beats a receive_rate deadline", Does::abort, Late::receive_rate, local_close, none},
      {"abort() beats a send_rate deadline", Does::abort, Late::send_rate, local_close, none},
      {"backlog_full beats a message deadline", Does::overflow, Late::message, backlog_full, none},
      {"backlog_full beats a send_rate deadline", Does::overflow, Late::send_rate, backlog_full, none},
      {"abort() beats a first_byte deadline", Does::abort, Late::first_byte, local_close, none},
      {"abort() beats a receive deadline", Does::abort, Late::receive, local_close, none},
      {"abort() beats a send deadline", Does::abort, Late::send_queued, local_close, none},
      {"abort() beats a drain deadline", Does::abort, Late::drain_of_close, local_close, CutShort::reset},
      {"shutdown() beats a first_byte deadline", Does::shut_down, Late::first_byte, server_stopping, none},
      {"shutdown() beats a receive deadline", Does::shut_down, Late::receive, server_stopping, none},
      {"shutdown() stays, and a send deadline cuts it short", Does::shut_down, Late::send_queued, server_stopping, timed_out},
      {"shutdown() at once beats a receive deadline", Does::shut_down_at_once, Late::receive, server_stopping, none},
      {"backlog_full beats a receive deadline", Does::overflow, Late::receive, backlog_full, none},
      {"backlog_full beats a send deadline", Does::overflow, Late::send_queued, backlog_full, none},
  };
  for (const OwnEndMeetsDeadline& pair : pairs) {
    SUBCASE(pair.name) {
      Simulation world(with(timeouts_of(pair.late)));
      const int peer = world.accept();
      run_late(world, peer, pair.late);
      const int descriptor = world.kernel.open_descriptor();
      Watch watch = *world.reactor->watch(descriptor, WatchFor::readable, [&](Readiness) {
        act(world, world.story.connection(peer), pair.does);
        watch.cancel();
      });
      world.kernel.set_state(descriptor, EPOLLIN);
      meet(world);
      if (world.story.records.empty()) world.kernel.peer_finishes(peer);  // what a graceful close still awaits
      world.settle();
      check_end(world, peer, pair.reason, pair.cut_short);
      sys::close(descriptor);
    }
  }
}

struct LaterDeed {
  const char* name;
  Arrives arrives;
  Late late;
  Does does;
  CloseReason reason;
};

TEST_CASE("what ended a connection stays when our own end follows in the same turn") {
  using enum CloseReason;
  static constexpr LaterDeed pairs[] = {
      {"a receive deadline stays when close() follows", Arrives::nothing, Late::receive, Does::close, receive_timed_out},
      {"a receive deadline stays when abort() follows", Arrives::nothing, Late::receive, Does::abort, receive_timed_out},
      {"a receive deadline stays when shutdown() follows", Arrives::nothing, Late::receive, Does::shut_down, receive_timed_out},
      {"a first_byte deadline stays when shutdown() follows", Arrives::nothing, Late::first_byte, Does::shut_down_at_once,
       first_byte_timed_out},
      {"a message deadline stays when close() follows", Arrives::nothing, Late::message, Does::close, message_timed_out},
      {"a receive_rate deadline stays when close() follows", Arrives::nothing, Late::receive_rate, Does::close, receive_too_slow},
      {"a send_rate deadline stays when close() follows", Arrives::nothing, Late::send_rate, Does::close, send_too_slow},
      {"a send deadline stays when close() follows", Arrives::nothing, Late::send_queued, Does::close, send_timed_out},
      {"the peer's end stays when close() follows", Arrives::end, Late::receive, Does::close, peer_finished},
      {"the peer's end stays when abort() follows", Arrives::end, Late::receive, Does::abort, peer_finished},
      {"the peer's end stays when shutdown() follows", Arrives::end, Late::receive, Does::shut_down, peer_finished},
      {"a reset stays when close() follows", Arrives::reset, Late::receive, Does::close, peer_reset},
      {"a reset stays when abort() follows", Arrives::reset, Late::receive, Does::abort, peer_reset},
      {"a reset stays when shutdown() follows", Arrives::reset, Late::receive, Does::shut_down, peer_reset},
      {"the kernel's timeout stays when shutdown() follows", Arrives::kernel_timeout, Late::receive, Does::shut_down,
       network_timed_out},
  };
  for (const LaterDeed& pair : pairs) {
    SUBCASE(pair.name) {
      Simulation world(with(timeouts_of(pair.late)));
      const int peer = world.accept();
      run_late(world, peer, pair.late);
      arrive(world.kernel, peer, pair.arrives);
      REQUIRE(world.reactor->post([&] { act(world, world.story.connection(peer), pair.does); }));  // runs behind the timers
      meet(world);
      check_end(world, peer, pair.reason);
    }
  }
}

TEST_CASE("abort() while it flushes behind the peer's end leaves peer_finished, and is told as what cut that short") {
  Simulation world(with({}));  // without on_peer_finished
  const int peer = world.accept();
  world.kernel.will_take(peer, 0);
  world.story.connection(peer).send(bytes_of(four_bytes));
  arrive(world.kernel, peer, Arrives::end);
  world.settle();
  REQUIRE(world.story.records.empty());
  CHECK(world.story.connection(peer).abort());
  world.settle();
  check_end(world, peer, CloseReason::peer_finished, CutShort::reset);
}

TEST_CASE("abort() after on_peer_finished is local_close, and behind a close() cuts peer_finished short") {
  for (const bool closes : {false, true}) {
    CAPTURE(closes);
    SimulationOf<LingeringActor> world(with({}));
    const int peer = world.accept();
    if (closes) world.kernel.will_take(peer, 0);
    if (closes) world.story.connection(peer).send(bytes_of(four_bytes));
    arrive(world.kernel, peer, Arrives::end);
    world.settle();
    REQUIRE(world.story.records.empty());
    if (closes) CHECK(world.story.connection(peer).close());
    CHECK(world.story.connection(peer).abort());
    world.settle();
    check_end(world, peer, closes ? CloseReason::peer_finished : CloseReason::local_close,
              closes ? CutShort::reset : CutShort::none);
  }
}

TEST_CASE("shutdown() after the peer's end was told leaves peer_finished: the stream said so first") {
  SimulationOf<LingeringActor> world(with({.send = timeout}));
  const int peer = world.accept();
  arrive(world.kernel, peer, Arrives::end);
  bool told = false;
  world.story.on_peer_finished = [&](Connection&) { told = true; };
  world.settle();
  REQUIRE(told);
  SUBCASE("with time to drain") { REQUIRE(world.reactor->shutdown(1s)); }
  SUBCASE("at once") { REQUIRE(world.reactor->shutdown(0s)); }
  meet(world);
  check_end(world, peer, CloseReason::peer_finished);
}

TEST_CASE("close() after the peer's end was told leaves peer_finished, or peer_reset if something was owed") {
  SimulationOf<LingeringActor> world(with({.send = timeout}));
  const int peer = world.accept();
  world.story.on_peer_finished = [](Connection& connection) { connection.close(); };
  SUBCASE("the peer's end, then close() in the same turn") {
    arrive(world.kernel, peer, Arrives::end);
    meet(world);
    check_end(world, peer, CloseReason::peer_finished);
  }
  SUBCASE("the peer's end, close(), and a send deadline that cuts it short, in the same turn") {
    run_late(world, peer, Late::send_queued);
    arrive(world.kernel, peer, Arrives::end);
    meet(world);
    check_end(world, peer, CloseReason::peer_finished, CutShort::timed_out);
  }
  SUBCASE("the peer's end and close(), then a reset of what was owed") {
    world.kernel.will_take(peer, 0);
    world.story.connection(peer).send(bytes_of(four_bytes));
    arrive(world.kernel, peer, Arrives::end);
    world.settle();
    REQUIRE(world.story.records.empty());
    arrive(world.kernel, peer, Arrives::reset);
    meet(world);
    check_end(world, peer, CloseReason::peer_reset);
  }
}

// The server's end against the user's -----------------------------------------------------------------------------------------

TEST_CASE("server_stopping beats local_close only where the user had not closed") {
  using enum CloseReason;
  struct Pair {
    const char* name;
    Does first, second;
    CloseReason reason;
    CutShort cut_short;
  };
  static constexpr Pair pairs[] = {
      {"close() before shutdown()", Does::close, Does::shut_down, local_close, CutShort::none},
      {"close() before shutdown() at once", Does::close, Does::shut_down_at_once, local_close, CutShort::timed_out},
      {"abort() before shutdown()", Does::abort, Does::shut_down, local_close, CutShort::none},
      {"abort() before shutdown() at once", Does::abort, Does::shut_down_at_once, local_close, CutShort::none},
      {"shutdown() before close()", Does::shut_down, Does::close, server_stopping, CutShort::none},
      {"shutdown() before abort()", Does::shut_down, Does::abort, server_stopping, CutShort::reset},
      {"shutdown() at once before close()", Does::shut_down_at_once, Does::close, server_stopping, CutShort::none},
      {"shutdown() at once before abort()", Does::shut_down_at_once, Does::abort, server_stopping, CutShort::none},
      {"backlog_full before shutdown()", Does::overflow, Does::shut_down, backlog_full, CutShort::none},
      {"backlog_full before shutdown() at once", Does::overflow, Does::shut_down_at_once, backlog_full, CutShort::none},
  };
  for (const Pair& pair : pairs) {
    SUBCASE(pair.name) {
      Simulation world;
      const int peer = world.accept();
      if (pair.first == Does::overflow) world.kernel.will_take(peer, 0);
      world.story.on_receive = [&](Connection& connection, std::string_view) {
        const auto act_on = [&](Does what) {
          if (what == Does::overflow) {
            CHECK(connection.send(bytes_of(std::string(17 * 1024 * 1024, 'x'))).error() == Error{"send", ENOBUFS});
          } else {
            act(world, connection, what);
          }
        };
        act_on(pair.first);
        act_on(pair.second);
      };
      world.kernel.peer_sends(peer, four_bytes);
      meet(world);
      if (world.story.records.empty()) world.kernel.peer_finishes(peer);
      world.settle();
      check_end(world, peer, pair.reason, pair.cut_short);
    }
  }
}

// Two deadlines ---------------------------------------------------------------------------------------------------------------

void set_due(Timeouts& timeouts, Deadline kind, Duration after) {
  if (is_rate(kind)) {
    timeouts.rate_of(kind) = rate_in(after);
  } else {
    timeouts.of(kind) = after;
  }
}

TEST_CASE("of deadlines due together the one due earliest wins") {
  struct Kind {
    Deadline kind;
    CloseReason reason;
  };
  static constexpr Kind open_kinds[] = {
      {Deadline::first_byte, CloseReason::first_byte_timed_out},  //
      {Deadline::receive, CloseReason::receive_timed_out},        //
      {Deadline::message, CloseReason::message_timed_out},        //
      {Deadline::receive_rate, CloseReason::receive_too_slow},    //
      {Deadline::send, CloseReason::send_timed_out},              //
      {Deadline::send_rate, CloseReason::send_too_slow},
  };
  // What a peer that finished is sent and does not acknowledge is no reason for its handler's time not to run.
  static constexpr Kind kinds_after_the_peers_end[] = {
      {Deadline::drain, CloseReason::drain_timed_out},  //
      {Deadline::send, CloseReason::send_timed_out},    //
      {Deadline::send_rate, CloseReason::send_too_slow},
  };
  const auto check = [](const Kind& first, const Kind& second, bool peer_finished) {
    if (first.kind == second.kind) return;
    // One that waits for the other never runs beside it.
    if (first.kind == Deadline::first_byte && second.kind == Deadline::receive) return;
    if (first.kind == Deadline::receive && second.kind == Deadline::first_byte) return;
    SUBCASE((std::string(to_string(first.kind)) + " before " + to_string(second.kind) + (peer_finished ? ", behind the end" : ""))
                .c_str()) {
      Timeouts timeouts;
      set_due(timeouts, first.kind, timeout);
      set_due(timeouts, second.kind, timeout + 3ms);
      SimulationOf<LingeringActor> world(with(timeouts));
      const int peer = world.accept();
      world.kernel.will_not_acknowledge(peer);
      world.story.connection(peer).send(bytes_of(four_bytes));
      run_late(world, peer, peer_finished ? Late::drain_of_peers_end : Late::receive);
      meet(world);
      check_end(world, peer, first.reason);
    }
  };
  for (const Kind& first : open_kinds)
    for (const Kind& second : open_kinds) check(first, second, false);
  for (const Kind& first : kinds_after_the_peers_end)
    for (const Kind& second : kinds_after_the_peers_end) check(first, second, true);
}

}  // namespace
