// What is done to a connection, by its own callbacks and from outside, and what the oracle notes of it.
#include <cerrno>

#include <algorithm>

#include "swarm_text.hpp"
#include "swarm_world.hpp"

namespace vigil::tools {

using namespace std::chrono_literals;

namespace {

constexpr const char* names[] = {"nothing",       "finish",      "close",     "abort",         "pause",
                                 "resume",        "set_timeout", "set_rate",  "begin_message", "end_message",
                                 "receive_again", "send some",   "send much", "post"};
static_assert(std::size(names) == deed_count);

}  // namespace

void Swarm::settle(SwarmLife& life, Settled settled, bool outside) {
  LifeNotes& notes = life.notes;
  if (notes.settled != Settled::by_nothing) return;
  const sim::Truth facts = truth(life);
  notes.settled = settled;
  notes.settled_at = now();
  notes.settled_from_outside = outside;
  const LifeClocks& clocks = notes.clocks;
  const bool held = clocks.is_held(), perhaps_held = clocks.is_perhaps_held();
  const bool read_to_end = facts.end_arrived_at && facts.last_recv == 0 && facts.last_recv_at >= *facts.end_arrived_at;
  const bool told_gone = notes.hears_gone && notes.heard_gone && !notes.heard_finish;
  // Bytes left are offered once more before the end is told, and then reading may be held.
  const bool perhaps_not_told = held || perhaps_held || life.in_receive || clocks.last_release() >= facts.last_recv_at;
  notes.end_was_read = notes.heard_finish || (read_to_end && !perhaps_not_told);
  notes.was_told_gone = told_gone && held;
  notes.end_in_doubt = !notes.end_was_read && ((read_to_end && perhaps_not_told) || (told_gone && !held && perhaps_held));
}

/// What is overdue when reading is held would stand still.
void Swarm::judge_before_hold(SwarmLife& life) {
  if (const auto late = life.notes.clocks.overdue_receiving(now(), delays))
    problem(&life, "no deadline is late",
            std::string(to_string(late->kind)) + ": reading was paused instead; " +
                life.notes.clocks.describe(late->kind, now(), {}));
  life.notes.clocks.may_be_forgiven(now(), delays);
}

void Swarm::act(SwarmLife& life, Deed deed, bool outside) {
  LifeNotes& notes = life.notes;
  if (notes.closed || !life.connection) return;
  Connection& connection = *life.connection;
  LifeClocks& clocks = notes.clocks;
  const bool goes_on = notes.settled == Settled::by_nothing;
  if (outside) notes.touched_from_outside_at = now();
  tell(life, names[static_cast<std::size_t>(deed)]);
  switch (deed) {
    case Deed::nothing:
      return;
    case Deed::finish:
      if (connection.finish()) notes.finish_called = true;
      return;
    case Deed::close:
      settle(life, Settled::by_close, outside);
      if (notes.opened) {
        notes.graceful = true;
        clocks.closing(now());
        touch(life);
      }
      connection.close();
      return;
    case Deed::abort:
      settle(life, Settled::by_abort, outside);
      notes.aborted = true;
      if (notes.aborted_at == Instant{}) notes.aborted_at = now();
      connection.abort();
      return;
    case Deed::pause:
      if (!notes.opened || !goes_on || !connection.pause_reading()) return;
      tell(life, "is paused");
      judge_before_hold(life);
      clocks.paused(now());
      if (one_in(random, 8)) return;  // and never again
      world.after(any_magnitude(random, Duration(10us), Duration(1s)), [this, &life] { act(life, Deed::resume, true); });
      return;
    case Deed::resume:
      if (!notes.opened) return;
      connection.resume_reading();
      if (goes_on) clocks.resumed(now());
      return;
    case Deed::set_timeout: {
      constexpr Deadline kinds[] = {Deadline::first_byte, Deadline::receive, Deadline::message, Deadline::send, Deadline::drain};
      const Deadline kind = kinds[random.below(std::size(kinds))];
      if (kind == Deadline::send && notes.heartbeat.terms().ping_bytes != 0) return;
      const Timeouts& inherited = life.outgoing ? life.site->plan->attempted : life.site->plan->accepted;
      Timeout wanted = one_in(random, 6) ? inherit : draw_timeout(random);
      if (kind == Deadline::drain && wanted.is_never()) wanted = 1s;
      if (!connection.set_timeout(kind, wanted)) return;
      clocks.timeout_changed(kind, wanted.is_inherit() ? inherited.of(kind) : wanted, now());
      return;
    }
    case Deed::set_rate: {
      const Deadline kind = one_in(random, 2) ? Deadline::receive_rate : Deadline::send_rate;
      if (kind == Deadline::send_rate && notes.heartbeat.terms().ping_bytes != 0) return;
      const Rate wanted = draw_rate(random);
      if (notes.opened && connection.set_rate(kind, wanted)) clocks.rate_changed(kind, wanted, now());
      return;
    }
    case Deed::begin_message:
      if (!notes.opened) return;
      connection.begin_message();
      if (goes_on) clocks.message_began(now());
      return;
    case Deed::end_message:
      if (!notes.opened) return;
      connection.end_message();
      if (goes_on) clocks.message_ended(now(), life.left != 0 && !life.in_receive);
      return;
    case Deed::receive_again:
      connection.receive_again();
      return;
    case Deed::send_some:
      return send(life, random.between(1, 2000), outside);
    case Deed::send_much:
      return send(life, any_magnitude(random, 4096, 200'000), outside);
    case Deed::post:
      return post(life);
  }
}

void Swarm::post(SwarmLife& life) {
  SwarmSite& site = *life.site;
  const Instant posted_at = now();
  Task task = [this, &life, posted_at] {
    enter();
    Problems problems;
    judge_heard("a posted task runs at once", posted_at, now(), delays, problems);
    take(&life, problems);
    constexpr Deed deeds[] = {Deed::send_some,   Deed::pause,       Deed::resume, Deed::close,         Deed::finish,
                              Deed::end_message, Deed::set_timeout, Deed::abort,  Deed::begin_message, Deed::receive_again};
    act(life, deeds[random.below(std::size(deeds))], true);
    spend();
  };
  const auto posted = one_in(random, 2) ? site.reactor->post(std::move(task)) : site.reactor->mailbox().post(std::move(task));
  if (!posted && !site.ending) problem(&life, "a post is taken while the reactor lives", describe(posted.error()));
}

void Swarm::send(SwarmLife& life, std::uint64_t bytes, bool outside) {
  LifeNotes& notes = life.notes;
  if (notes.closed || !life.connection) return;
  Connection& connection = *life.connection;
  const SitePlan& site = *life.site->plan;
  const std::size_t bound = life.outgoing ? site.connector.backlog_bytes_max : site.listener.backlog_bytes_max;
  const std::size_t high = life.outgoing ? site.connector.backlog_high_mark_bytes : site.listener.backlog_high_mark_bytes;
  const bool pauses =
      (life.outgoing ? site.connector.when_backlogged : site.listener.when_backlogged) == WhenBacklogged::pause_reading;
  find_pings(life);
  while (bytes != 0) {
    const std::string_view piece = SwarmText::piece(life.stream_out(), life.spoken, bytes);
    const sim::Truth before = truth(life);
    const std::uint64_t waits = notes.given - before.taken;
    const auto sent = connection.send(Bytes(piece));
    const bool passes = waits + piece.size() > bound;
    if (!sent) {
      const bool may_be_over = outside || notes.finish_called || notes.settled != Settled::by_nothing || before.end_arrived_at;
      if (sent.error().code == ENOBUFS && passes) return settle(life, Settled::by_backlog, outside);
      if (sent.error().code == EPIPE && may_be_over) return;
      if (passes && before.error_at && before.error_was_taken) return;  // an earlier one met it, and it is told
      return problem(
          &life, "a send is refused for a reason",
          describe(sent.error()) + ", " + std::to_string(waits) + " bytes waited, the bound is " + std::to_string(bound));
    }
    if (passes) problem(&life, "no more than backlog_bytes_max waits", std::to_string(waits + piece.size()));
    notes.clocks.sent(now(), piece.size(), before.acknowledged);
    touch(life);
    notes.given += piece.size();
    life.spoken += piece.size();
    if (!life.is_pinging) notes.heartbeat.said(notes.given);
    tell(life, "sends", piece.size());
    if (pauses && waits + piece.size() > high) notes.clocks.may_be_held();
    if (connection.backlog_bytes() > bound)
      problem(&life, "no more than backlog_bytes_max waits", std::to_string(connection.backlog_bytes()));
    bytes -= piece.size();
  }
  ++life.messages_out;
  ++counts.messages;
}

}  // namespace vigil::tools
