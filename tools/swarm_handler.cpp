#include "swarm_handler.hpp"

#include <algorithm>
#include <utility>

#include "readable.hpp"
#include "swarm_text.hpp"

namespace vigil::tools {

SwarmHandler::SwarmHandler(SwarmLife& life) : life_(life), swarm_(*life.swarm) { ++life_.site->handlers; }
SwarmHandler::~SwarmHandler() { --life_.site->handlers; }

namespace {

std::string told_late(const Overdue& late, const LifeClocks& clocks, Instant now) {
  return std::string(to_string(late.kind)) + ": due " + readable(now - late.since) + " ago, at most " + readable(late.allowed) +
         " late; " + clocks.describe(late.kind, now, {});
}

}  // namespace

void SwarmHandler::enter(const char* callback) {
  swarm_.enter();
  swarm_.tell(life_, callback, life_.received);
  if (life_.notes.closed) swarm_.problem(&life_, "no callback after on_close", callback);
  swarm_.look_at_backlog(life_);
}

void SwarmHandler::on_open(Connection& connection) {
  enter("on_open");
  const Instant now = swarm_.now();
  LifeNotes& notes = life_.notes;
  if (notes.opened) swarm_.problem(&life_, "on_open comes once", "again");
  const sim::Truth truth = swarm_.truth(life_);
  if (!truth.was_connected) swarm_.problem(&life_, "on_open comes once it is connected", "it is not");
  if (notes.attempted) {
    Problems problems;
    judge_heard("a connection is told at once", truth.connected_at, now, swarm_.delays, problems);
    swarm_.take(&life_, problems);
  }
  notes.opened = true;
  notes.opened_at = now;
  notes.clocks.opened(now);
  ++swarm_.counts.opened;
  life_.deadlines = notes.clocks.armed() + (notes.heartbeat.is_on() ? 1 : 0);
  if (notes.heartbeat.is_on()) swarm_.watch(life_);
  life_.connection = connection.handle();
  if (life_.script.marks && one_in(swarm_.random, 2)) swarm_.act(life_, Deed::end_message, false);  // the first one begins later
  swarm_.spend();
  if (life_.script.greeting_bytes != 0) swarm_.send(life_, life_.script.greeting_bytes);
  if (life_.script.deed_at == 0) swarm_.act(life_, life_.script.deed, false);
}

std::size_t SwarmHandler::received(Connection& connection, Bytes bytes, bool parses) {
  enter("on_receive");
  const Instant now = swarm_.now();
  life_.in_receive = true;
  LifeNotes& notes = life_.notes;
  const std::uint64_t fresh = connection.received() - life_.received;
  life_.received = connection.received();
  if (notes.consumed + bytes.size() != life_.received)
    swarm_.problem(
        &life_, "bytes are handed over once and in order",
        std::to_string(bytes.size()) + " at " + std::to_string(notes.consumed) + ", received " + std::to_string(life_.received));
  if (!SwarmText::matches(life_.stream_in(), notes.consumed, bytes.text()))
    swarm_.problem(&life_, "what is delivered is a prefix of what was sent", "other bytes at " + std::to_string(notes.consumed));
  if (notes.graceful || notes.aborted) swarm_.problem(&life_, "nothing is delivered after close()", std::to_string(bytes.size()));
  if (notes.clocks.is_held())
    swarm_.problem(&life_, "nothing is delivered while reading is paused", std::to_string(bytes.size()));
  if (fresh == 0 && life_.left == 0) swarm_.problem(&life_, "on_receive comes with bytes", "with none that are new or were left");
  if (fresh != 0) {
    swarm_.judge_read_while_backlogged(life_);
    if (const auto late = notes.clocks.overdue_receiving(now, swarm_.delays))
      swarm_.problem(&life_, "no deadline is late", told_late(*late, notes.clocks, now) + "; bytes came instead");
    if (notes.heartbeat.is_on()) heard_life();
    notes.clocks.received(now, fresh);
    swarm_.touch(life_);
  }
  swarm_.counts.bytes += fresh;
  life_.left = 0;
  const bool is_final = connection.is_final();
  const bool answers_first = one_in(swarm_.random, 2);
  if (!answers_first) swarm_.spend();

  std::size_t consumed = bytes.size();
  const HandlerScript& script = life_.script;
  if (parses && !is_final) {
    const std::uint64_t whole = (notes.consumed + bytes.size()) / script.message_bytes * script.message_bytes;
    consumed = static_cast<std::size_t>(std::max(whole, notes.consumed) - notes.consumed);
    if (script.is_stubborn && !one_in(swarm_.random, 4)) consumed = 0;
  } else if (parses && one_in(swarm_.random, 3)) {
    consumed = swarm_.random.below(bytes.size() + 1);
  }
  const std::uint64_t before = notes.consumed;
  notes.consumed += consumed;
  life_.left = static_cast<std::uint32_t>(bytes.size() - consumed);
  count_messages(before, life_.left != 0);
  if (answers_first) swarm_.spend();
  life_.in_receive = false;

  const bool goes_on = notes.settled == Settled::by_nothing;
  if (parses && script.lies && goes_on && !bytes.empty() && life_.messages_in != 0) {
    notes.consumed += life_.left;
    life_.left = 0;
    swarm_.settle(life_, Settled::by_lying, false);
    return bytes.size() + 1 + swarm_.random.below(1000);
  }
  if (life_.left != 0 && goes_on && !is_final) {
    const std::size_t most =
        life_.outgoing ? life_.site->plan->connector.message_bytes_max : life_.site->plan->listener.message_bytes_max;
    if (life_.left > (most == 0 ? life_.site->plan->reactor.receive_buffer_bytes : most)) {
      swarm_.settle(life_, Settled::by_leaving, false);
    } else {
      notes.clocks.left_bytes(swarm_.now());
      swarm_.touch(life_);
    }
  }
  if (!goes_on || is_final) life_.left = 0;
  return consumed;
}

/// Bytes came: the silence before them was no longer than it may be, and the next one begins.
void SwarmHandler::heard_life() {
  LifeNotes& notes = life_.notes;
  swarm_.find_pings(life_);
  const sim::Truth truth = swarm_.truth(life_);
  Problems problems;
  // What the kernel held while reading was held has just been read, and says no more how long the silence was.
  const LifeClocks& clocks = notes.clocks;
  const bool was_held = clocks.is_perhaps_held() || clocks.last_release() > clocks.last_received().earliest;
  if (!was_held) judge_silence(notes, truth, swarm_.now(), swarm_.delays, problems);
  swarm_.take(&life_, problems);
  notes.heartbeat.heard(truth.acknowledged != notes.given);
}

void SwarmHandler::on_ping_due(Connection&) {
  enter("on_ping_due");
  swarm_.ping(life_);
  swarm_.spend();
  if (!one_in(swarm_.random, 60)) return;
  life_.is_pinging = true;  // whatever is said here asks
  swarm_.act(life_, one_in(swarm_.random, 2) ? Deed::close : Deed::send_some, false);
  life_.is_pinging = false;
}

void SwarmHandler::count_messages(std::uint64_t consumed_before, bool leaves) {
  const std::uint64_t whole = life_.notes.consumed / life_.script.message_bytes - consumed_before / life_.script.message_bytes;
  if (whole == 0) return;
  const std::uint64_t seen = life_.messages_in;
  life_.messages_in += whole;
  swarm_.counts.messages += whole;
  if (life_.script.marks) mark(whole, leaves || life_.notes.consumed % life_.script.message_bytes != 0);
  const std::uint64_t replies = std::min<std::uint64_t>(whole, 16);
  for (std::uint64_t reply = 0; reply < replies && life_.script.reply_bytes != 0; ++reply)
    swarm_.send(life_, life_.script.reply_bytes);
  if (seen < life_.script.deed_at && life_.messages_in >= life_.script.deed_at) swarm_.act(life_, life_.script.deed, false);
}

/// Ends the messages that are whole. Bytes left begin the next one by themselves, bytes taken have to be told of.
void SwarmHandler::mark(std::uint64_t, bool rest_waits) {
  swarm_.act(life_, Deed::end_message, false);
  if (rest_waits && life_.left == 0) swarm_.act(life_, Deed::begin_message, false);
}

void SwarmHandler::drained() {
  enter("on_send_drained");
  life_.notes.clocks.holds_no_more(swarm_.now());
  const std::size_t mark =
      life_.outgoing ? life_.site->plan->connector.backlog_low_mark_bytes : life_.site->plan->listener.backlog_low_mark_bytes;
  if (life_.connection->backlog_bytes() > mark)
    swarm_.problem(&life_, "on_send_drained comes at the low mark", std::to_string(life_.connection->backlog_bytes()));
  swarm_.spend();
  if (one_in(swarm_.random, 4)) swarm_.send(life_, swarm_.random.between(1, 4096));
}

void SwarmHandler::heard_finish() {
  enter("on_peer_finished");
  const Instant now = swarm_.now();
  LifeNotes& notes = life_.notes;
  if (notes.heard_finish) swarm_.problem(&life_, "on_peer_finished comes once", "again");
  const sim::Truth truth = swarm_.truth(life_);
  if (!truth.end_arrived_at) {
    swarm_.problem(&life_, "a peer's end is told when it came", "it has not");
  } else {
    Problems problems;
    const Instant heard = std::max({*truth.end_arrived_at, notes.opened_at, notes.clocks.last_release()});
    if (!notes.clocks.is_perhaps_held()) judge_heard("the peer's end is told at once", heard, now, swarm_.delays, problems);
    swarm_.take(&life_, problems);
  }
  if (truth.unread() != 0)
    swarm_.problem(&life_, "payload before the peer's end", std::to_string(truth.unread()) + " bytes unread");
  if (notes.graceful || notes.aborted) swarm_.problem(&life_, "no callback but on_close after close()", "on_peer_finished");
  swarm_.find_pings(life_);  // those before it
  notes.heard_finish = true;
  notes.heard_finish_at = now;
  notes.clocks.peer_end_read();
  notes.clocks.lingers(now);
  swarm_.touch(life_);
  swarm_.spend();
  swarm_.act(life_, life_.script.at_finish, false);
}

void SwarmHandler::heard_gone() {
  enter("on_peer_gone_while_paused");
  LifeNotes& notes = life_.notes;
  if (notes.heard_gone) swarm_.problem(&life_, "on_peer_gone_while_paused comes once", "again");
  if (!notes.clocks.is_held() && !notes.clocks.is_perhaps_held())
    swarm_.problem(&life_, "on_peer_gone_while_paused comes while paused", "reading goes on");
  const sim::Truth truth = swarm_.truth(life_);
  if (!truth.end_arrived_at && !truth.error_at) swarm_.problem(&life_, "a peer's end is told when it came", "it has not");
  notes.heard_gone = true;
  swarm_.spend();
  const Deed deeds[] = {Deed::nothing, Deed::resume, Deed::close, Deed::abort, Deed::send_some};
  swarm_.act(life_, deeds[swarm_.random.below(5)], false);
}

Duration SwarmHandler::asked(Deadline kind) {
  enter("on_deadline");
  const Instant asked_at = swarm_.now();
  LifeNotes& notes = life_.notes;
  if (kind == Deadline::connect || kind == Deadline::drain || kind == Deadline::accept)
    swarm_.problem(&life_, "on_deadline is not asked for connect and drain", to_string(kind));
  if (notes.graceful || notes.aborted) swarm_.problem(&life_, "on_deadline is not asked once closing", to_string(kind));
  const sim::Truth truth = swarm_.truth(life_);
  Problems problems;
  judge_verdict(notes, kind, truth, asked_at, swarm_.turn_began, truth.acknowledged, problems);
  swarm_.take(&life_, problems);
  swarm_.spend();
  if (one_in(swarm_.random, 8)) swarm_.act(life_, one_in(swarm_.random, 2) ? Deed::close : Deed::send_some, false);
  if (notes.settled != Settled::by_nothing) return {};
  if (life_.script.more_time == 0) {
    notes.refused = kind;
    notes.refused_at = asked_at;
    return one_in(swarm_.random, 2) ? Duration{} : Duration(-1);
  }
  --life_.script.more_time;
  ++swarm_.counts.extended[static_cast<std::size_t>(kind)];
  const Duration answer = any_magnitude(swarm_.random, Duration(1000), Duration(std::chrono::seconds(1)));
  notes.clocks.given_more_time(kind, asked_at, swarm_.now(), answer);
  swarm_.tell(life_, to_string(kind), static_cast<std::uint64_t>(answer.count()));
  return answer;
}

void SwarmHandler::on_close(Connection& connection, const CloseRecord& record) {
  enter("on_close");
  swarm_.find_pings(life_, record.handed_to_kernel + record.unsent);
  const sim::Truth truth = swarm_.truth(life_);
  if (!truth.is_closed) swarm_.problem(&life_, "its descriptor is closed when on_close is told", "it is open");
  if (connection.is_open() || connection.descriptor() != -1)
    swarm_.problem(&life_, "in on_close a connection is over", "it is not");
  Problems problems;
  const Ending ending{
      .notes = life_.notes, .record = record, .truth = truth, .now = swarm_.now(), .turn_began = swarm_.turn_began};
  judge_end(ending, swarm_.delays, problems);
  if (verdict_is_excused(ending)) ++swarm_.counts.excused[static_cast<std::size_t>(*record.verdict)];
  life_.record = record;
  swarm_.take(&life_, problems);
  life_.notes.closed = true;
  swarm_.end_life(life_);
  swarm_.spend();
}

}  // namespace vigil::tools
