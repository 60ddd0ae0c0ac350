// What is judged of a heartbeat: that a peer is lost only after the silence that was promised, and no later, and that the verdict
// is what the world knows of that silence.
#include "oracle_heartbeat.hpp"

#include <algorithm>

#include "oracle.hpp"
#include "readable.hpp"

namespace vigil::tools {
namespace {

/// TCP_INFO counts in whole milliseconds, and a sign of life within two of the last one begins no silence of its own.
constexpr Duration kernel_grain = std::chrono::milliseconds(3);
constexpr Duration shortest_rto = std::chrono::milliseconds(200);

bool is_held(const LifeNotes& notes) { return notes.clocks.is_held() || notes.clocks.is_perhaps_held(); }
/// At some time in this silence, perhaps.
bool was_held(const LifeNotes& notes) {
  return is_held(notes) || notes.clocks.last_release() > notes.clocks.last_received().earliest;
}

}  // namespace

// --- what happened

void HeartbeatClock::heard(bool outstanding) {
  spoke_ = outstanding;
  first_asked_.reset();
  last_asked_.reset();
}

void HeartbeatClock::said(std::uint64_t given) {
  spoke_ = true;
  said_to_ = given;
  cleared_at_.reset();
}

void HeartbeatClock::asked(Instant now, const sim::Truth& truth, bool exactly) {
  sampled(truth);
  last_asked_ = now;
  if (first_asked_) return;
  first_asked_ = now;
  asked_exactly_ = exactly;
  was_owed_ = truth.acknowledged < said_to_;
  owed_to_ = said_to_;
  if (truth.acknowledged < truth.taken) holds_back(truth.taken);  // also probes of an earlier silence
}

void HeartbeatClock::holds_back(std::uint64_t taken) {
  if (taken <= said_to_) return;
  said_to_ = taken;
  cleared_at_.reset();
}

void HeartbeatClock::sampled(const sim::Truth& truth) {
  if (first_asked_ && truth.untransmitted != 0) holds_back(truth.taken);  // who takes more of that then reads
  if (!cleared_at_ && truth.acknowledged >= said_to_) cleared_at_ = truth.last_acknowledged;
}

Instant HeartbeatClock::certain_life(Span last, bool held, const sim::Truth& truth, Instant judged) const {
  Instant life = last.earliest;
  if (held && truth.unread() != 0 && truth.last_arrival < judged) life = std::max(life, truth.last_arrival - kernel_grain);
  const bool was_owed = first_asked_ && asked_exactly_ && was_owed_ && truth.acknowledged <= owed_to_;
  if (was_owed && truth.last_acknowledged > *first_asked_ && truth.last_acknowledged < judged)
    life = std::max(life, truth.last_acknowledged - terms_.interval - kernel_grain);  // as of the look before, which saw it owed
  return life;
}

Instant HeartbeatClock::possible_life(Span last, bool held, const sim::Truth& truth) const {
  Instant life = last.latest;
  if (held) life = std::max(life, truth.last_arrival);
  // A peer that has filled our buffer can't say another word: its kernel speaks for it.
  if (held && truth.unread() >= truth.room / 4) life = std::max(life, truth.last_heard);
  Instant progress{};  // the last acknowledgement that may have been life
  // After a loss our own congestion window holds bytes back, and a kernel that takes more of those counts as one whose process
  // reads. And a first probe that our kernel took in parts may be acknowledged in parts, of which only the last is no life.
  if (first_asked_) {
    const bool was_held_back = truth.last_short_send >= *first_asked_ || (truth.lost != 0 && truth.last_lost >= *first_asked_);
    if (was_held_back) progress = truth.last_acknowledged;
  }
  // While reading is held, the probes of one silence are on their way into the next, which unread bytes began.
  if (held)
    progress =
        std::max(progress, std::min(truth.last_acknowledged, truth.last_arrival + 2 * (terms_.interval + truth.round_trip)));
  const bool is_owed = truth.acknowledged <= said_to_ || !cleared_at_;
  progress = std::max(progress, is_owed ? truth.last_acknowledged : *cleared_at_);
  if (progress < last.earliest) return life;
  // A look that finds progress takes the last segment that acknowledged anything for it, be it of the same again, or of a probe
  // behind what was owed.
  return std::max(life, std::min(truth.last_heard, progress + terms_.interval + 2 * terms_.tick));
}

// --- what is judged

namespace {

/// It runs: a peer that is silent will be lost.
bool runs(const LifeNotes& notes) {
  return notes.heartbeat.is_on() && notes.opened && notes.settled == Settled::by_nothing && !notes.finish_called &&
         !notes.heard_finish;
}

std::string summary(const LifeNotes& notes, const sim::Truth& truth, Instant now) {
  const auto ago = [now](Instant at) { return at == Instant{} ? std::string("never") : readable(now - at) + " ago"; };
  const HeartbeatClock& heartbeat = notes.heartbeat;
  const HeartbeatTerms& terms = heartbeat.terms();
  std::string text = "budget " + readable(terms.budget) + ", interval " + readable(terms.interval) + ", grace " +
                     readable(terms.grace) + ", tick " + readable(terms.tick) + "; the last byte was received " +
                     ago(notes.clocks.last_received().earliest);
  text += ", asked " + (heartbeat.was_asked() ? ago(*heartbeat.first_asked()) + " and " + ago(*heartbeat.last_asked()) : "never");
  text += ", last taken " + ago(truth.last_taken_at) + ", acknowledged " + ago(truth.last_acknowledged) + ", heard " +
          ago(truth.last_heard) + ", arrived " + ago(truth.last_arrival);
  text += ", lost " + ago(truth.last_lost) + ", slow " + ago(truth.slow_until) + ", round trip " + readable(truth.round_trip);
  text += "; the peer spoke " + ago(truth.peer_spoke_at) + ", read " + ago(truth.peer_read_at) + " and has room for " +
          std::to_string(truth.peer_room) + "; unread " + std::to_string(truth.unread()) + ", unacknowledged " +
          std::to_string(truth.unacknowledged()) + ", untransmitted " + std::to_string(truth.untransmitted);
  if (is_held(notes)) text += "; reading is held";
  if (notes.finish_called) text += "; finish() was called";
  return text;
}

/// What the world knows of the silence that a verdict speaks of.
struct Silence {
  Silence(const Ending& ending, bool excuses_given)
      : notes(ending.notes),
        truth(ending.truth),
        terms(ending.notes.heartbeat.terms()),
        judged(ending.turn_began),
        excuses(excuses_given) {}

  const LifeNotes& notes;
  const sim::Truth& truth;
  const HeartbeatTerms& terms;
  Instant judged;  // at the earliest
  bool excuses;    // what was lost or slow counts as one

  [[nodiscard]] Instant began() const { return notes.clocks.last_received().earliest; }
  [[nodiscard]] Instant probed() const { return began() + terms.interval / 2; }  // at the earliest
  /// The peer's host forgot it, or something of this connection was lost or slow: the situation may have changed, and what both
  /// kernels know differ.
  [[nodiscard]] bool was_disturbed() const {
    // What was lost right before waits for its retransmission: a second, and two after that (RFC 6298).
    return truth.peer_is_gone || (truth.lost != 0 && truth.last_lost + std::chrono::seconds(3) >= began()) ||
           truth.slow_until >= began();
  }
  [[nodiscard]] bool is_disturbed() const { return excuses && was_disturbed(); }
  /// And it has not been made good since. What is sent again, and the probe of a closed window, comes after as long as it has
  /// been tried for at the most, since each wait is twice the one before.
  [[nodiscard]] bool is_unsettled() const {
    const Duration tried = std::max<Duration>(truth.last_lost - truth.offered_at, std::chrono::seconds(3));
    const bool is_made_good = truth.last_lost + tried + retransmit_timeout() < judged;
    return is_disturbed() &&
           (truth.peer_is_gone || (truth.lost != 0 && !is_made_good) || truth.slow_until + retransmit_timeout() >= judged);
  }
  /// Nothing came back of all that was sent.
  [[nodiscard]] bool is_severed() const { return truth.last_heard < probed(); }
  /// A second before the first round trip was measured (RFC 6298, 2.1).
  [[nodiscard]] Duration retransmit_timeout() const {
    return truth.round_trip == Duration{} ? std::chrono::seconds(1) : std::max(shortest_rto, 2 * truth.round_trip);
  }
  /// Unless it was acknowledged while callbacks of this very turn took their time.
  [[nodiscard]] bool something_is_outstanding() const { return truth.unacknowledged() != 0 || truth.last_acknowledged >= judged; }
};

const char* hung_is_true(const Silence& silence) {
  const sim::Truth& truth = silence.truth;
  if (truth.last_acknowledged < silence.probed()) return "its kernel has acknowledged nothing of what was asked";
  // What it said and the way swallowed is sent again after a timeout of its own kernel, which may be far longer than ours.
  const bool has_spoken = truth.peer_handed > truth.arrived && truth.peer_spoke_at + shortest_rto < silence.judged;
  if (has_spoken && !silence.is_disturbed()) return "its process has spoken";
  if (silence.is_unsettled()) return nullptr;
  if (truth.untransmitted != 0 && truth.last_taken_at + shortest_rto < silence.judged) return "its window is closed";
  return nullptr;
}

const char* not_reading_is_true(const Silence& silence) {
  const sim::Truth& truth = silence.truth;
  if (!silence.something_is_outstanding()) return "nothing waits for it";
  if (silence.is_severed()) return "its kernel does not answer";
  if (silence.is_unsettled()) return nullptr;
  const bool reads = truth.peer_room != 0 && truth.peer_read_at + shortest_rto < silence.judged;
  return reads ? "its window is open" : nullptr;
}

const char* unreachable_is_true(const Silence& silence) {
  if (!silence.something_is_outstanding()) return "everything was acknowledged";
  if (silence.is_severed() && silence.was_disturbed()) return nullptr;
  return silence.is_unsettled() ? nullptr : "its kernel answers, or nothing was lost or slow on its way";
}

/// The evidence was there to decide.
const char* unknown_is_true(const Silence& silence) {
  const sim::Truth& truth = silence.truth;
  const HeartbeatTerms& terms = silence.terms;
  const Duration timeout = silence.retransmit_timeout();
  if (!terms.wants_verdict) return nullptr;
  // Nothing was said lately: a loop that slept, or a handler that is mute.
  const bool was_asked = truth.last_taken_at + terms.interval + 2 * terms.tick + kernel_grain >= silence.judged;
  if (!silence.something_is_outstanding() && !was_asked) return nullptr;
  if (truth.round_trip > terms.budget / 2) return nullptr;  // congestion
  // A closed window is asked for ever more rarely: no probe of it fell into the silence.
  if (truth.untransmitted != 0 && truth.last_heard + terms.budget <= silence.judged) return nullptr;
  if (silence.is_severed()) {
    if (!silence.something_is_outstanding()) return nullptr;
    // Two retransmissions need three timeouts, each twice as long as the one before.
    // And what a route of our own held back may have left only now, so that they have the grace alone.
    const bool too_slow = 8 * timeout > terms.budget - terms.interval + terms.grace || 3 * timeout > terms.grace;
    return too_slow ? nullptr : "nothing came back of what was asked";
  }
  if (silence.is_disturbed()) return nullptr;
  // What was asked last, or a probe of the window, is still on its way, and the grace too short to await the answer.
  const bool is_on_its_way = truth.untransmitted != 0 || truth.last_taken_at + timeout + terms.grace >= silence.judged;
  return is_on_its_way && terms.grace < timeout ? nullptr : "its kernel answers, and nothing was lost or slow";
}

/// Given by an earlier look, of which nothing is known but that it was in this silence: what has been so all the time since. That
/// the way is lost a kernel says itself, by giving up: with a user timeout that is shorter than the way, too.
const char* earlier_verdict_is_true(const Silence& silence, Verdict verdict) {
  const sim::Truth& truth = silence.truth;
  const bool was_open = truth.peer_room != 0 && truth.peer_read_at < silence.began() && !silence.was_disturbed();
  return verdict == Verdict::not_reading && was_open ? "its window was open all the time" : nullptr;
}

const char* verdict_is_true(const Ending& ending, bool excuses) {
  const Silence silence(ending, excuses);
  const bool kernel_gave_up = ending.record.error_number != 0;
  if (kernel_gave_up && excuses && *ending.record.verdict != Verdict::hung)
    return earlier_verdict_is_true(silence, *ending.record.verdict);
  switch (*ending.record.verdict) {
    case Verdict::hung:
      return hung_is_true(silence);
    case Verdict::not_reading:
      return not_reading_is_true(silence);
    case Verdict::unreachable:
      return unreachable_is_true(silence);
    case Verdict::unknown:
      return unknown_is_true(silence);
  }
  return "no such value";
}

/// When phi may end a silence at the earliest that begins no earlier than with `life`; never_due: it may not.
Instant phi_speaks_from(const HeartbeatClock& heartbeat, Instant life) {
  const HeartbeatTerms& terms = heartbeat.terms();
  const bool was_asked = heartbeat.was_asked() || terms.ping_bytes != 0;  // of the library's own the last is not known yet
  if (terms.phi_from == Duration{} || !was_asked) return never_due;
  return std::max(life + terms.interval / 2, heartbeat.exactly_asked().value_or(life)) + terms.phi_from;
}

/// Before the budget's end: phi is why, and what it ends is decided.
template <class Wrong>
void judge_early_loss(const Ending& ending, const Wrong& wrong) {
  constexpr double rounding = 1e-3;
  const HeartbeatTerms& terms = ending.notes.heartbeat.terms();
  if (terms.phi_from == Duration{}) return;  // told too early anyway
  const double phi = ending.record.evidence ? ending.record.evidence->phi : 0;
  if (phi < terms.phi_threshold * (1 - rounding))
    wrong("a loss before the budget's end has reached phi's threshold",
          std::to_string(phi) + ", " + std::to_string(terms.phi_threshold) + " is wanted");
  if (terms.wants_verdict && ending.record.verdict == Verdict::unknown)
    wrong("a loss before the budget's end has its verdict", "unknown");
}

void judge_loss(const Ending& ending, Problems& problems) {
  const LifeNotes& notes = ending.notes;
  const sim::Truth& truth = ending.truth;
  const HeartbeatClock& heartbeat = notes.heartbeat;
  const HeartbeatTerms& terms = heartbeat.terms();
  const Span last = notes.clocks.last_received();
  const bool held = was_held(notes) || notes.settled != Settled::by_nothing;  // what released it may be of this very turn
  const auto wrong = [&](const char* rule, const std::string& told) {
    problems.push_back({rule, told + "; " + summary(notes, truth, ending.now)});
  };
  if (!heartbeat.is_on()) return;  // judge_reason()
  if (notes.finish_called) wrong("who can't be asked is not lost", "our stream has ended");

  const Instant life = heartbeat.certain_life(last, held, truth, ending.turn_began);
  const Instant phi_from = phi_speaks_from(heartbeat, life);
  const Instant due = std::min(life + terms.budget, phi_from);
  const bool kernel_gave_up = ending.record.error_number != 0;
  const std::optional<Evidence>& evidence = ending.record.evidence;
  if (evidence && evidence->phi != 0 && terms.phi_from == Duration{}) wrong("phi is told where it was asked for", "it was not");
  if (kernel_gave_up) {
    if (truth.error != ending.record.error_number) wrong("a kernel that gave up said so", std::to_string(truth.error));
    if (ending.now < last.earliest + terms.interval / 2) wrong("no peer is lost early", "it was not in doubt");
  } else {
    if (ending.now < due) wrong("no peer is lost early", "due in " + readable(due - ending.now));
    if (ending.now < life + terms.budget) judge_early_loss(ending, wrong);
    const Instant looked = std::min(last.earliest + terms.budget, phi_speaks_from(heartbeat, last.earliest));
    if (truth.last_sample < looked) wrong("the kernel is asked before a peer is lost", "not since");
    if (!held && truth.last_recv_at < looked) wrong("the kernel is asked before a peer is lost", "no recv");
    if (truth.error_at && *truth.error_at < ending.turn_began)
      wrong("what the stream says comes before a lost heartbeat", "it had failed");
    if (truth.end_arrived_at && *truth.end_arrived_at < ending.turn_began)
      wrong("what the stream says comes before a lost heartbeat", "the peer's end had arrived");
    if (!held && truth.unread() != 0 && truth.last_arrival < ending.turn_began)
      wrong("bytes come before a lost heartbeat", "some had arrived and were not read");
    if (const auto other = notes.clocks.due_before(due, ending.now, truth))
      wrong("of deadlines due together the earliest comes first", to_string(*other));
    if (heartbeat.only_asked() && !heartbeat.was_asked()) wrong("who is lost was asked", "nobody asked");
    const auto asked = heartbeat.exactly_asked();
    const Duration answering = terms.phi_from != Duration{} ? terms.phi_from : terms.budget - terms.interval;
    if (heartbeat.only_asked() && asked && ending.now < *asked + answering)
      wrong("who is lost had time to answer", "asked too late");
  }
  if (!ending.record.verdict) return;
  if (const char* lie = verdict_is_true(ending, true))
    wrong("the verdict is true", std::string("told ") + to_string(*ending.record.verdict) + ": " + lie);
}

}  // namespace

bool verdict_is_excused(const Ending& ending) {
  if (!ending.record.verdict || !ending.notes.heartbeat.is_on()) return false;
  return verdict_is_true(ending, true) == nullptr && verdict_is_true(ending, false) != nullptr;
}

void judge_heartbeat(const Ending& ending, const DelayLog& delays, Problems& problems) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  const bool is_lost = record.reason == CloseReason::heartbeat_lost;
  if (record.verdict.has_value() != is_lost || (record.evidence && !is_lost))
    problems.push_back({"a verdict comes with a lost heartbeat, and with nothing else", to_string(record.reason)});
  if (is_lost) judge_loss(ending, problems);
  judge_silence(notes, truth, now, delays, problems);

  // The kernel gave up in the middle of a doubt: the first probe was due, and everything since was asked.
  const bool gave_up = record.reason == CloseReason::network_timed_out || record.reason == CloseReason::network_unreachable;
  if (!gave_up || !runs(notes) || !truth.error_at || truth.end_arrived_at) return;
  const HeartbeatTerms& terms = notes.heartbeat.terms();
  const Instant life = notes.heartbeat.possible_life(notes.clocks.last_received(), was_held(notes), truth);
  if (life == never_due) return;
  const Instant probed = life + terms.interval + 2 * terms.tick + delays.since(life);
  if (*truth.error_at > probed)
    problems.push_back({"a kernel that gives up in a doubt is a lost heartbeat", summary(notes, truth, now)});
}

void judge_silence(const LifeNotes& notes, const sim::Truth& truth, Instant now, const DelayLog& delays, Problems& problems) {
  if (!runs(notes)) return;
  const HeartbeatTerms& terms = notes.heartbeat.terms();
  const Instant life = notes.heartbeat.possible_life(notes.clocks.last_received(), was_held(notes), truth);
  if (life == never_due) return;
  const Instant until = std::min({now, truth.end_arrived_at.value_or(now), truth.error_at.value_or(now)});
  Instant due = life + terms.budget;
  // A first probe that the kernel took late has its time to be answered from there.
  if (truth.last_short_send >= life + terms.interval / 2)
    due = std::max(due, truth.last_taken_at + terms.budget - terms.interval);
  if (until <= due) return;
  // A tick in which the first probe is found due, and one in which the budget's end is; an undecided verdict its own.
  // Life that only a look finds, in the kernel's milliseconds, may be found an interval later, and then the peer is asked anew.
  const bool was_looked_for = life > notes.clocks.last_received().latest;
  const Duration allowed = 2 * terms.tick + (was_looked_for ? kernel_grain + terms.interval : Duration{}) +
                           (terms.grace != Duration{} ? terms.grace + terms.tick : Duration{});
  if (until - due <= allowed + delays.since(life)) return;
  problems.push_back({"no lost peer is told late", "due " + readable(until - due) + " ago, of which the loop was kept " +
                                                       readable(delays.since(life)) + "; " + summary(notes, truth, now)});
}

void judge_probe(const LifeNotes& notes, Instant now, Problems& problems) {
  const HeartbeatClock& heartbeat = notes.heartbeat;
  const auto wrong = [&](const char* told) {
    problems.push_back({"a probe goes out only into a silence", std::string(told) + "; " + summary(notes, {}, now)});
  };
  if (!heartbeat.is_on()) return wrong("no heartbeat was asked for");
  if (notes.graceful || notes.aborted || notes.heard_finish || notes.finish_called) return wrong("a stream has ended");
  const Duration half = heartbeat.terms().interval / 2;
  if (now < notes.clocks.last_received().earliest + half) return wrong("half an interval had not passed");
  // Life that a look finds begins another silence, whose first probe may be due at once.
  const bool same_silence = heartbeat.only_asked() && !was_held(notes);
  if (same_silence && heartbeat.last_asked() && now < *heartbeat.last_asked() + half) return wrong("one had just gone out");
}

}  // namespace vigil::tools
