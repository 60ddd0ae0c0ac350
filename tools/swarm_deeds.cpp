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
                                 "receive_again", "send some",   "send much", "send pieces",   "post"};
static_assert(std::size(names) == deed_count);

}  // namespace

void Swarm::settle(SwarmLife& life, Settled settled, bool outside) {
  LifeNotes& notes = life.notes;
  if (notes.settled != Settled::by_nothing) return;
  find_pings(life);  // those before it
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

namespace {

struct Marks {
  std::size_t bound, high, low;
  bool pauses;
};

Marks marks_of(const SwarmLife& life) {
  const auto of = [](const auto& options) {
    return Marks{options.backlog_bytes_max, options.backlog_high_mark_bytes, options.backlog_low_mark_bytes,
                 options.when_backlogged == WhenBacklogged::pause_reading};
  };
  return life.outgoing ? of(life.site->plan->connector) : of(life.site->plan->listener);
}

}  // namespace

void Swarm::look_at_backlog(SwarmLife& life) {
  LifeNotes& notes = life.notes;
  if (!notes.clocks.is_perhaps_held()) return;
  find_pings(life);
  const sim::Truth facts = truth(life);
  if (notes.given <= facts.taken + marks_of(life).low) notes.clocks.holds_no_more(facts.last_taken_at);
}

void Swarm::judge_read_while_backlogged(SwarmLife& life) {
  const Marks marks = marks_of(life);
  const sim::Truth facts = truth(life);
  // Where the stream has ended a queue can never fall again, and holds nothing.
  if (!marks.pauses || facts.error_at || facts.end_arrived_at) return;
  // What its callbacks of this very dispatch have said may be gathered and not yet queued.
  if (life.notes.given > facts.taken + marks.high + life.site->plan->reactor.gather_buffer_bytes)
    problem(&life, "nothing is read above the high mark", std::to_string(life.notes.given - facts.taken) + " bytes wait");
}

/// What is overdue when reading is held would stand still.
void Swarm::judge_before_hold(SwarmLife& life) {
  look_at_backlog(life);
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
      if (notes.opened && !notes.stopped_at_once) {  // else it is over, and not yet told
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
      clocks.may_be_forgiven(now(), delays);  // by the timeout before
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
    case Deed::send_much: {
      const std::uint64_t much = any_magnitude(random, 4096, 200'000), bound = marks_of(life).bound;
      const std::uint64_t waits = notes.given - std::min(notes.given, truth(life).taken);
      // Now and then exactly what may wait, or one byte more.
      const bool fills = one_in(random, 4) && waits <= bound && bound - waits <= 512 * 1024;
      return send(life, fills ? bound - waits + random.below(2) : much, outside);
    }
    case Deed::send_pieces:
      return send_pieces(life, outside);
    case Deed::post:
      return post(life);
  }
}

/// More pieces than a dispatch hands to the kernel at once, the later ones large and small by turns: whatever way each of them
/// takes, they leave in order.
void Swarm::send_pieces(SwarmLife& life, bool outside) {
  constexpr std::uint64_t large = 8 * 1024, at_once = 16;
  const std::uint64_t pieces = at_once + random.between(2, 10);
  const bool takes_time = one_in(random, 2);
  for (std::uint64_t piece = 0; piece < pieces && life.notes.settled == Settled::by_nothing; ++piece) {
    const bool is_small = piece >= at_once && piece % 2 == 0;
    send(life, is_small ? random.between(1, large - 1) : random.between(large, large + large / 4), outside);
    if (!takes_time) continue;
    world.spend(any_magnitude(random, Duration(1us), Duration(1ms)));  // the kernel's buffer empties meanwhile
    delays.note(now(), world.delays());
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
  const auto [bound, high, low, pauses] = marks_of(life);
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
    if (pauses && waits + piece.size() > high && notes.given > truth(life).taken + high) notes.clocks.may_be_held(now(), delays);
    if (connection.backlog_bytes() > bound)
      problem(&life, "no more than backlog_bytes_max waits", std::to_string(connection.backlog_bytes()));
    bytes -= piece.size();
  }
  ++life.messages_out;
  ++counts.messages;
}

}  // namespace vigil::tools
