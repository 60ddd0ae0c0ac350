// Whether the oracle can speak: each of its rules is shown an ending that breaks it, and one that does not.
#include "oracle.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>

using namespace vigil;
using namespace vigil::tools;
using namespace std::chrono_literals;

namespace {

constexpr Instant start{1h};
constexpr Duration tick = 1ms;

/// An ending with all that is known of it, true unless a test alters it.
struct Known {
  LifeNotes notes;
  CloseRecord record;
  sim::Truth truth;
  DelayLog delays;
  Instant now = start;
  Instant turn_began = start;

  [[nodiscard]] Problems judged() const {
    Problems problems;
    judge_end({notes, record, truth, now, turn_began}, delays, problems);
    return problems;
  }
  /// Judged, `rule` is broken.
  [[nodiscard]] bool breaks(std::string_view rule) const {
    const Problems problems = judged();
    return std::any_of(problems.begin(), problems.end(), [&](const Problem& one) { return one.rule == rule; });
  }
  void end(Instant at, CloseReason reason, Origin origin) {
    now = turn_began = at;
    record.reason = reason;
    record.origin = origin;
    record.age = at - notes.made_at;
    record.silence = at - notes.clocks.last_received().earliest;
    truth.is_closed = true;
    truth.closed_at = at;
  }
};

/// Accepted and opened at `start`; 100 bytes came after 1 ms, 50 were sent and acknowledged.
Known opened(const Timeouts& timeouts = {}) {
  Timeouts valued = over(timeouts, default_timeouts());
  Known known;
  known.notes.clocks = LifeClocks(valued, tick);
  known.notes.clocks.ends_with_peer(true);
  known.notes.made_at = known.notes.opened_at = start;
  known.notes.opened = true;
  known.notes.clocks.opened(start);
  known.notes.clocks.received(start + 1ms, 100);
  known.notes.clocks.sent(start + 1ms, 50, 0);
  known.notes.clocks.turn_ended(start + 1ms);
  known.notes.consumed = 100;
  known.notes.given = 50;
  known.truth.life = 1;
  known.truth.made_at = known.truth.connected_at = start;
  known.truth.was_connected = true;
  known.truth.arrived = known.truth.read = 100;
  known.truth.last_arrival = start + 1ms;
  known.truth.taken = known.truth.acknowledged = 50;
  known.truth.last_taken_at = start + 1ms;
  known.truth.last_acknowledged = start + 2ms;
  known.record.phase = Phase::open;
  known.record.received = 100;
  known.record.handed_to_kernel = 50;
  known.record.unacknowledged = 0;
  return known;
}

/// The peer finished after 3 ms, and that was told at once.
Known finished() {
  Known known = opened();
  known.truth.end_arrived_at = known.truth.last_recv_at = start + 3ms;
  known.truth.last_recv = 0;
  known.end(start + 3ms, CloseReason::peer_finished, Origin::peer);
  return known;
}

/// It failed with `error` after 3 ms.
Known failed(int error, CloseReason reason, Origin origin) {
  Known known = opened();
  known.truth.error_at = known.truth.last_recv_at = start + 3ms;
  known.truth.error = error;
  known.truth.last_recv = -error;
  known.record.error_number = error;
  known.record.operation = "recv";
  known.end(start + 3ms, reason, origin);
  return known;
}

/// An attempt that failed with this errno.
Known failed_attempt(int error, CloseReason reason, Origin origin) {
  Known known = failed(error, reason, origin);
  known.notes.attempted = true;
  known.notes.opened = known.truth.was_connected = false;
  known.notes.clocks = LifeClocks(default_timeouts(), tick);
  known.notes.clocks.attempted(start);
  known.record.phase = Phase::connecting;
  known.record.silence = known.record.age;
  return known;
}

/// A deadline of receiving, told at `at` after a recv that found nothing.
Known timed_out(const Timeouts& timeouts, CloseReason reason, Instant at) {
  Known known = opened(timeouts);
  known.truth.last_recv_at = at;
  known.truth.last_recv = -EAGAIN;
  known.end(at, reason, Origin::policy);
  return known;
}

/// 10 bytes were outstanding since 1 ms after `start`, and none acknowledged.
Known stuck(const Timeouts& timeouts, CloseReason reason, Instant at) {
  Known known = timed_out(timeouts, reason, at);
  known.notes.clocks.sent(start + 2ms, 10, 50);
  known.notes.given = 60;
  known.truth.taken = 60;
  known.record.handed_to_kernel = 60;
  known.record.unacknowledged = 10;
  return known;
}

Known settled(Settled by, CloseReason reason, Origin origin, Instant at) {
  Known known = opened();
  known.notes.settled = by;
  known.notes.settled_at = at;
  known.truth.last_recv = -EAGAIN;
  known.truth.last_recv_at = at;
  known.end(at, reason, origin);
  return known;
}

/// closed() after 2 ms, our end sent, the peer's came after 3 ms.
Known closed_gracefully() {
  Known known = settled(Settled::by_close, CloseReason::local_close, Origin::local, start + 2ms);
  known.notes.graceful = true;
  known.notes.clocks.closing(start + 2ms);
  known.notes.clocks.turn_ended(start + 2ms);
  known.truth.end_was_sent = true;
  known.truth.end_sent_at = start + 2ms;
  known.truth.end_arrived_at = start + 3ms;
  known.end(start + 3ms, CloseReason::local_close, Origin::local);
  known.record.phase = Phase::draining;
  return known;
}

class SilentPeer final : public sim::Peer {
 public:
  void send(std::string_view) override {}
  void finish() override {}
  void close() override {}
  void reset() override {}
  void stop_reading() override {}
  void read_on() override {}
  bool connected() const override { return false; }
  bool finished() const override { return is_finished; }
  int error() const override { return 0; }
  std::uint64_t received_bytes() const override { return bytes; }
  std::uint64_t sent_bytes() const override { return 0; }
  std::string_view received() const override { return {}; }
  sim::Host& host() const override { std::abort(); }

  std::uint64_t bytes = 0;
  bool is_finished = false;
};

std::string told(const Problems& problems) {
  std::string text;
  for (const Problem& one : problems) text += std::string(one.rule) + ": " + one.told + "\n";
  return text;
}

}  // namespace

TEST_CASE("records that are true break no promise") {
  CHECK(told(finished().judged()) == "");
  CHECK(told(failed(ECONNRESET, CloseReason::peer_reset, Origin::peer).judged()) == "");
  CHECK(told(failed(ETIMEDOUT, CloseReason::network_timed_out, Origin::network).judged()) == "");
  CHECK(told(failed(EHOSTUNREACH, CloseReason::network_unreachable, Origin::network).judged()) == "");
  CHECK(told(timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms).judged()) == "");
  CHECK(told(stuck({.send = 10ms}, CloseReason::send_timed_out, start + 12ms).judged()) == "");
  CHECK(told(closed_gracefully().judged()) == "");
  CHECK(told(settled(Settled::by_abort, CloseReason::local_close, Origin::local, start + 2ms).judged()) == "");
  CHECK(told(settled(Settled::by_backlog, CloseReason::backlog_full, Origin::policy, start + 2ms).judged()) == "");
}

TEST_CASE("each count of a record is compared with the truth") {
  Known known = finished();
  const auto altered = [&](auto alter, const char* rule) {
    Known other = known;
    alter(other.record);
    CAPTURE(rule);
    CHECK(other.breaks(rule));
  };
  altered([](CloseRecord& record) { ++record.received; }, "received is what recv handed out");
  altered([](CloseRecord& record) { --record.handed_to_kernel; }, "handed_to_kernel is what the kernel took");
  altered([](CloseRecord& record) { ++record.unsent; }, "unsent is what was given and the kernel never took");
  altered([](CloseRecord& record) { ++record.unconsumed; }, "unconsumed is what was received and on_receive did not take");
  altered([](CloseRecord& record) { ++*record.unacknowledged; }, "unacknowledged is what the peer's kernel owes");
  altered([](CloseRecord& record) { record.unacknowledged.reset(); }, "unacknowledged is known of a TCP connection");
  altered([](CloseRecord& record) { ++record.left_unread; }, "left_unread is what the kernel still held");
  altered([](CloseRecord& record) { record.age += 1ns; }, "age runs from the beginning to the end");
  altered([](CloseRecord& record) { record.silence = -1ns; }, "silence runs from the last byte");
  Known idle = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms);
  idle.record.silence += 1ns;
  CHECK(idle.breaks("silence runs from the last byte"));
  known.notes.given = 49;
  CHECK(known.breaks("no more is handed to the kernel than was given"));
}

TEST_CASE("every reason but the true one is found out, whatever ended the life") {
  const Known endings[] = {finished(),
                           failed(ECONNRESET, CloseReason::peer_reset, Origin::peer),
                           failed(ETIMEDOUT, CloseReason::network_timed_out, Origin::network),
                           failed(EHOSTUNREACH, CloseReason::network_unreachable, Origin::network),
                           timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms),
                           stuck({.send = 10ms}, CloseReason::send_timed_out, start + 12ms),
                           closed_gracefully(),
                           settled(Settled::by_abort, CloseReason::local_close, Origin::local, start + 2ms),
                           settled(Settled::by_stopping, CloseReason::server_stopping, Origin::local, start + 2ms),
                           settled(Settled::by_backlog, CloseReason::backlog_full, Origin::policy, start + 2ms),
                           settled(Settled::by_leaving, CloseReason::message_too_large, Origin::policy, start + 2ms)};
  for (const Known& ending : endings) {
    for (std::size_t index = 0; index < close_reason_count; ++index) {
      Known other = ending;
      other.record.reason = static_cast<CloseReason>(index);
      if (other.record.reason == ending.record.reason) continue;
      CAPTURE(to_string(ending.record.reason));
      CAPTURE(to_string(other.record.reason));
      CHECK((other.breaks("the reason is true") || other.breaks("no deadline is told early")));
    }
  }
}

TEST_CASE("a reset behind the peer's end is a reset only if something was owed") {
  Known known = finished();
  known.truth.error_at = start + 3ms;
  known.truth.error = EPIPE;
  CHECK(told(known.judged()) == "");
  known.record.reason = CloseReason::peer_reset;
  known.record.error_number = EPIPE;
  known.record.operation = "recv";
  CHECK(known.breaks("the reason is true"));
  known.truth.acknowledged = 49;
  known.record.unacknowledged = 1;
  CHECK(told(known.judged()) == "");
}

TEST_CASE("bytes unread before a peer's end that is told are found") {
  Known known = finished();
  known.truth.arrived = 101;
  known.record.left_unread = 1;
  CHECK(known.breaks("the reason is true"));
}

TEST_CASE("a close after the peer's end was told leaves that reason") {
  Known known = closed_gracefully();
  known.notes.end_was_read = true;
  known.notes.hears_finish = known.notes.heard_finish = true;
  CHECK(known.breaks("the reason is true"));
  known.record.reason = CloseReason::peer_finished;
  known.record.origin = Origin::peer;
  CHECK_FALSE(known.breaks("the reason is true"));
}

TEST_CASE("a system error needs a call of this life that was refused like that") {
  Known known = opened();
  known.truth.last_recv = -EAGAIN;
  known.truth.last_recv_at = start + 2ms;
  known.record.error_number = ENOMEM;
  known.record.operation = "watch";
  known.end(start + 2ms, CloseReason::system_error, Origin::local);
  CHECK(known.breaks("the reason is true"));
  known.truth.watch_error = ENOSPC;
  CHECK(known.breaks("the reason is true"));
  known.truth.watch_error = ENOMEM;
  CHECK(told(known.judged()) == "");
  known.record.operation = "send";
  CHECK(known.breaks("the reason is true"));
}

TEST_CASE("an attempt fails with what its connect answered, a shortage too") {
  Known known = failed_attempt(ENOBUFS, CloseReason::connect_failed, Origin::local);
  CHECK(told(known.judged()) == "");
  known.truth.error = ENOMEM;
  CHECK(known.breaks("the reason is true"));
}

TEST_CASE("origin, phase, errno and what cut a close short are judged") {
  Known known = finished();
  known.record.origin = Origin::network;
  CHECK(known.breaks("the origin is true"));

  known = finished();
  known.record.phase = Phase::connecting;
  CHECK(known.breaks("the phase is true"));
  known = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms);
  known.record.phase = Phase::draining;
  CHECK(known.breaks("the phase is true"));
  known = closed_gracefully();
  known.truth.end_was_sent = false;
  CHECK(known.breaks("the phase is true"));

  known = finished();
  known.record.operation = "recv";
  CHECK(known.breaks("an errno has its operation"));
  known = failed(ECONNRESET, CloseReason::peer_reset, Origin::peer);
  known.record.operation = "";
  CHECK(known.breaks("an errno has its operation"));

  known = closed_gracefully();
  known.record.cut_short = CutShort::reset;
  CHECK(known.breaks("cut_short is true"));
  known.record.cut_short = CutShort::timed_out;
  CHECK(known.breaks("cut_short is true"));
  known = closed_gracefully();
  known.truth.end_arrived_at.reset();
  CHECK(known.breaks("cut_short is true"));
  known.notes.aborted = true;  // which cut it short itself
  CHECK(known.breaks("cut_short is true"));
  known.record.cut_short = CutShort::reset;
  CHECK_FALSE(known.breaks("cut_short is true"));
  known.record.error_number = ECONNRESET;  // the peer had not
  CHECK(known.breaks("cut_short is true"));
  known = finished();
  known.record.cut_short = CutShort::reset;
  CHECK(known.breaks("cut_short is true"));
}

TEST_CASE("no deadline of receiving is told a nanosecond early or more than a tick late") {
  struct Kind {
    Timeouts timeouts;
    CloseReason reason;
    Instant due;
  };
  // The byte came after 1 ms; the message began when the connection opened.
  const Kind kinds[] = {{{.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms},
                        {{.message = 10ms}, CloseReason::message_timed_out, start + 10ms}};
  for (const Kind& kind : kinds) {
    CAPTURE(to_string(kind.reason));
    CHECK(told(timed_out(kind.timeouts, kind.reason, kind.due).judged()) == "");
    CHECK(timed_out(kind.timeouts, kind.reason, kind.due - 1ns).breaks("no deadline is told early"));
    CHECK(told(timed_out(kind.timeouts, kind.reason, kind.due + tick).judged()) == "");
    Known late = timed_out(kind.timeouts, kind.reason, kind.due + 2 * tick + 1ns);
    CHECK(late.breaks("no deadline is late"));
    late.delays.note(kind.due, 0ms);
    late.delays.note(kind.due + 2 * tick, 2 * tick);  // the loop could not
    CHECK(told(late.judged()) == "");
  }
}

TEST_CASE("a deadline is not told where another of receiving was due before it") {
  constexpr const char* rule = "of deadlines due together the earliest comes first";
  // The message began when the connection opened, the byte came after 1 ms.
  const Timeouts timeouts{.receive = 10ms, .message = 10ms};
  const Instant at = start + 11ms;
  CHECK(told(timed_out(timeouts, CloseReason::message_timed_out, at).judged()) == "");
  CHECK(timed_out(timeouts, CloseReason::receive_timed_out, at).breaks(rule));
  CHECK_FALSE(timed_out({.receive = 9ms, .message = 10ms}, CloseReason::receive_timed_out, at).breaks(rule));
  CHECK(timed_out({.receive = 8ms, .message = 10ms}, CloseReason::message_timed_out, at).breaks(rule));
  Known forgiven = timed_out(timeouts, CloseReason::receive_timed_out, start + 110ms);
  CHECK_FALSE(forgiven.breaks(rule));
}

TEST_CASE("first_byte, connect and drain are told neither early nor late") {
  const auto silent = [](Instant at) {
    Known known = opened({.first_byte = 10ms});
    known.notes.clocks = LifeClocks(over(Timeouts{.first_byte = 10ms}, default_timeouts()), tick);
    known.notes.clocks.opened(start);
    known.notes.consumed = known.notes.given = 0;
    known.truth.arrived = known.truth.read = known.truth.taken = known.truth.acknowledged = 0;
    known.record.received = known.record.handed_to_kernel = 0;
    known.truth.last_recv_at = at;
    known.truth.last_recv = -EAGAIN;
    known.end(at, CloseReason::first_byte_timed_out, Origin::policy);
    return known;
  };
  CHECK(told(silent(start + 10ms).judged()) == "");
  CHECK(silent(start + 10ms - 1ns).breaks("no deadline is told early"));
  CHECK(silent(start + 11ms + 1ns).breaks("no deadline is late"));

  const auto attempt = [&](Instant at) {
    Known known = silent(at);
    known.notes.clocks = LifeClocks(over(Timeouts{.connect = 10ms}, default_timeouts()), tick);
    known.notes.clocks.attempted(start);
    known.notes.opened = known.truth.was_connected = false;
    known.notes.attempted = true;
    known.record.phase = Phase::connecting;
    known.end(at, CloseReason::connect_timed_out, Origin::policy);
    known.record.silence = at - start;
    return known;
  };
  CHECK(told(attempt(start + 10ms).judged()) == "");
  CHECK(attempt(start + 10ms - 1ns).breaks("the reason is true"));
  CHECK(attempt(start + 11ms + 1ns).breaks("no deadline is late"));
  Known answered = attempt(start + 10ms);
  answered.truth.was_connected = true;
  answered.truth.connected_at = start + 9ms;
  CHECK(answered.breaks("the reason is true"));
  CHECK(answered.breaks("a connection is told at once"));

  const auto drained = [](Instant at) {
    Known known = closed_gracefully();
    known.notes.clocks = LifeClocks(over(Timeouts{.drain = 10ms}, default_timeouts()), tick);
    known.notes.clocks.opened(start);
    known.notes.clocks.closing(start + 2ms);
    known.notes.clocks.turn_ended(start + 2ms);
    known.truth.end_arrived_at.reset();
    known.record.cut_short = CutShort::timed_out;
    known.end(at, CloseReason::local_close, Origin::local);
    known.record.phase = Phase::draining;
    return known;
  };
  CHECK(told(drained(start + 12ms).judged()) == "");
  CHECK(drained(start + 12ms - 1ns).breaks("cut_short is true"));
  CHECK(drained(start + 13ms + 1ns).breaks("no deadline is late"));
}

TEST_CASE("the send deadline is never early, and at most an eighth and a tick late") {
  const Timeouts timeouts{.send = 16ms};
  CHECK(told(stuck(timeouts, CloseReason::send_timed_out, start + 18ms).judged()) == "");
  CHECK(stuck(timeouts, CloseReason::send_timed_out, start + 18ms - 1ns).breaks("no deadline is told early"));
  CHECK(told(stuck(timeouts, CloseReason::send_timed_out, start + 21ms).judged()) == "");
  CHECK(stuck(timeouts, CloseReason::send_timed_out, start + 21ms + 1ns).breaks("no deadline is late"));
}

TEST_CASE("the send deadline does not count what the bytes waited for before their kernel was offered them") {
  Known known = stuck({.send = 16ms}, CloseReason::send_timed_out, start + 21ms);
  known.truth.offered_at = start + 5ms;
  CHECK(told(known.judged()) == "");
  known.truth.offered_at += 1ns;
  CHECK(known.breaks("no deadline is told early"));
  // Acknowledged since, it was another offer.
  known.truth.last_acknowledged = start + 3ms;
  CHECK(told(known.judged()) == "");
}

TEST_CASE("who is too slow had too little in a full window, and who had is told") {
  const Rate rate{.bytes_per_second = 1000, .window = 100ms, .grace = 0ms};  // 100 bytes in a window
  CHECK(told(timed_out({.receive_rate = rate}, CloseReason::receive_too_slow, start + 102ms).judged()) == "");
  CHECK(
      timed_out({.receive_rate = rate}, CloseReason::receive_too_slow, start + 100ms).breaks("too slow is slower than the rate"));
  CHECK(timed_out({.receive_rate = rate}, CloseReason::receive_too_slow, start + 99ms).breaks("no deadline is told early"));
  CHECK(timed_out({.receive_rate = rate}, CloseReason::receive_too_slow, start + 300ms).breaks("no deadline is late"));

  Known slow = stuck({.send_rate = rate}, CloseReason::send_too_slow, start + 103ms);
  CHECK(told(slow.judged()) == "");
  slow.truth.acknowledged = 160;
  slow.truth.taken = 170;
  slow.notes.given = slow.record.handed_to_kernel = 170;
  slow.notes.clocks.sent(start + 2ms, 110, 55);
  slow.notes.clocks.sampled(start + 4ms, 50);
  CHECK(slow.breaks("too slow is slower than the rate"));
  CHECK(stuck({.send_rate = rate}, CloseReason::send_too_slow, start + 101ms).breaks("no deadline is told early"));
  CHECK(stuck({.send_rate = rate}, CloseReason::send_too_slow, start + 300ms).breaks("no deadline is late"));
}

TEST_CASE("payload comes before a verdict, and so does what the stream said") {
  const Known known = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 11ms);
  Known other = known;
  other.truth.last_recv_at = start + 11ms - 1ns;
  CHECK(other.breaks("the kernel is asked before a verdict"));
  other = known;
  other.truth.last_recv = 1;
  CHECK(other.breaks("payload before verdict"));
  other = known;
  other.truth.arrived = 101;
  other.truth.last_arrival = start + 5ms;
  other.record.left_unread = 1;
  CHECK(other.breaks("payload before verdict"));
  other = known;
  other.truth.end_arrived_at = start + 5ms;
  CHECK(other.breaks("what the stream says comes before a deadline"));
  other = known;
  other.truth.error_at = start + 5ms;
  other.truth.error = ECONNRESET;
  CHECK(other.breaks("what the stream says comes before a deadline"));
  other = known;
  other.notes.hears_deadlines = true;
  CHECK(other.breaks("a handler is asked before its deadline closes"));
}

TEST_CASE("a deadline that stood still, or was given more time, is due so much later") {
  Known known = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 16ms);
  known.notes.clocks.paused(start + 2ms);
  known.notes.clocks.resumed(start + 7ms);
  CHECK(told(known.judged()) == "");
  known = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 16ms - 1ns);
  known.notes.clocks.paused(start + 2ms);
  known.notes.clocks.resumed(start + 7ms);
  CHECK(known.breaks("no deadline is told early"));
  known = timed_out({.receive = 10ms}, CloseReason::receive_timed_out, start + 15ms);
  known.notes.clocks.given_more_time(Deadline::receive, start + 11ms, start + 11ms, 5ms);
  CHECK(known.breaks("no deadline is told early"));
}

TEST_CASE("a peer's end, an error, bytes and ends of our own are told at once") {
  Known known = finished();
  known.end(start + 4ms, CloseReason::peer_finished, Origin::peer);
  CHECK(known.breaks("the peer's end is told at once"));
  known = failed(ECONNRESET, CloseReason::peer_reset, Origin::peer);
  known.end(start + 4ms, CloseReason::peer_reset, Origin::peer);
  CHECK(known.breaks("an error is told at once"));
  known = settled(Settled::by_abort, CloseReason::local_close, Origin::local, start + 6ms);
  known.truth.arrived = 101;
  known.truth.last_arrival = start + 5ms;
  known.record.left_unread = 1;
  CHECK(known.breaks("bytes are read at once"));
  known = settled(Settled::by_abort, CloseReason::local_close, Origin::local, start + 2ms);
  known.end(start + 3ms, CloseReason::local_close, Origin::local);
  CHECK(known.breaks("an end of our own is told at once"));
  known = settled(Settled::by_stopping, CloseReason::server_stopping, Origin::local, start + 2ms);
  known.notes.stopped_at_once = true;
  known.notes.stopped_at = start + 2ms;
  known.end(start + 3ms, CloseReason::server_stopping, Origin::local);
  CHECK(known.breaks("a stop is told at once"));
  known.delays.note(start + 2ms, 0ms);
  known.delays.note(start + 3ms, 1ms);
  CHECK(told(known.judged()) == "");
}

TEST_CASE("a failed attempt is told at once, with the errno it failed with") {
  Known known = failed_attempt(ECONNREFUSED, CloseReason::connect_refused, Origin::peer);
  CHECK(told(known.judged()) == "");
  Known late = known;
  late.end(start + 4ms, CloseReason::connect_refused, Origin::peer);
  late.record.silence = late.record.age;
  CHECK(late.breaks("a failed attempt is told at once"));
  known.truth.error = EHOSTUNREACH;
  CHECK(known.breaks("the reason is true"));
}

TEST_CASE("a second record is found") {
  Known known = finished();
  known.notes.closed = true;
  CHECK(known.breaks("one record for each life"));
}

TEST_CASE("what the peer received is a whole stream if it was told its end, and never more than was sent") {
  const Known known = closed_gracefully();
  const auto rules = [&](std::uint64_t bytes, bool is_finished) {
    SilentPeer peer;
    peer.bytes = bytes;
    peer.is_finished = is_finished;
    Problems problems;
    judge_peer(known.notes, known.record, peer, true, problems);
    std::string found;
    for (const Problem& one : problems) found += std::string(one.rule) + "; ";
    return found;
  };
  CHECK(rules(50, true) == "");
  CHECK(rules(51, false).find("nobody receives what was not sent") != std::string::npos);
  CHECK(rules(49, true).find("who is told an end has received all before it") != std::string::npos);
  CHECK(rules(49, false).find("all that was sent arrives when the end was orderly") != std::string::npos);
}

TEST_CASE("how long the loop was kept can be asked for any instant") {
  DelayLog delays;
  delays.note(start, 0ms);
  delays.note(start + 10ms, 4ms);  // its last part
  delays.note(start + 20ms, 4ms);
  CHECK(delays.since(start) == 4ms);
  CHECK(delays.since(start + 6ms) == 4ms);
  CHECK(delays.since(start + 8ms) == 2ms);
  CHECK(delays.since(start + 10ms) == 0ms);
  CHECK(delays.since(start + 30ms) == 0ms);
}
