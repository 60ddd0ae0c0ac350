// Which reason is true. reason_is_true() is the whole of it: one case for each reason, and before it what settles the question.
#include <cerrno>

#include <algorithm>
#include <cstring>

#include "oracle.hpp"
#include "readable.hpp"

namespace vigil::tools {
namespace {

bool is_reset(int error) { return error == ECONNRESET || error == EPIPE; }
bool is_unreachable(int error) {
  return error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN || error == ENETDOWN;
}
/// What a kernel that gives up on an established connection has heard of the path last.
bool lost_the_way(int error) {
  return is_unreachable(error) || error == ECONNREFUSED || error == ENOPROTOOPT || error == EOPNOTSUPP || error == EPROTO ||
         error == ENONET;
}
/// Its descriptor could not be watched, which the record says.
bool was_not_watched(const CloseRecord& record, const sim::Truth& truth) {
  return truth.watch_error != 0 && record.error_number == truth.watch_error && std::strcmp(record.operation, "watch") == 0;
}

std::optional<Deadline> deadline_of(CloseReason reason) {
  switch (reason) {
    case CloseReason::first_byte_timed_out:
      return Deadline::first_byte;
    case CloseReason::receive_timed_out:
      return Deadline::receive;
    case CloseReason::message_timed_out:
      return Deadline::message;
    case CloseReason::receive_too_slow:
      return Deadline::receive_rate;
    case CloseReason::send_timed_out:
      return Deadline::send;
    case CloseReason::send_too_slow:
      return Deadline::send_rate;
    case CloseReason::drain_timed_out:
      return Deadline::drain;
    default:
      return std::nullopt;
  }
}

Origin true_origin(CloseReason reason, int error) {
  constexpr std::array origins{
      Origin::local,    // local_close
      Origin::peer,     // peer_finished
      Origin::peer,     // peer_reset
      Origin::peer,     // connect_refused
      Origin::policy,   // connect_timed_out
      Origin::network,  // connect_unreachable
      Origin::local,    // connect_failed
      Origin::local,    // self_connect
      Origin::policy,   // accept_shed
      Origin::policy,   // first_byte_timed_out
      Origin::policy,   // receive_timed_out
      Origin::policy,   // message_timed_out
      Origin::policy,   // receive_too_slow
      Origin::policy,   // send_timed_out
      Origin::policy,   // send_too_slow
      Origin::policy,   // drain_timed_out
      Origin::policy,   // heartbeat_lost
      Origin::network,  // network_timed_out
      Origin::network,  // network_unreachable
      Origin::policy,   // backlog_full
      Origin::policy,   // message_too_large
      Origin::local,    // server_stopping
      Origin::local,    // system_error
  };
  static_assert(origins.size() == close_reason_count);
  const bool kernel_may_give_up = reason == CloseReason::connect_timed_out || reason == CloseReason::heartbeat_lost;
  if (kernel_may_give_up && error != 0) return Origin::network;
  return origins[static_cast<std::size_t>(reason)];
}

/// What the library owed the peer when it ended.
bool owed(const CloseRecord& record) { return record.unsent != 0 || record.unacknowledged.value_or(0) != 0; }

/// The stream failed, as the record says.
bool failed_with(const Ending& ending, bool (*kind)(int)) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  if (!truth.error_at || !kind(truth.error)) return false;
  return record.error_number == truth.error || (is_reset(record.error_number) && is_reset(truth.error));
}

bool is_or_was_held(const LifeNotes& notes) { return notes.clocks.is_held() || notes.clocks.is_perhaps_held(); }

/// A stream that failed and was not settled before: RST behind the FIN is an end if nothing was owed.
bool stream_reason_is_true(const Ending& ending) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  const bool reset = truth.error_at && is_reset(truth.error);
  switch (record.reason) {
    case CloseReason::peer_finished:
      if (!truth.end_arrived_at) return false;
      // With reading held, a deadline that finds the stream failed ends it with what the stream said, read or not.
      if (truth.unread() != 0 && !notes.was_told_gone && !notes.end_in_doubt && !(reset && is_or_was_held(notes))) return false;
      if (notes.end_was_read || notes.was_told_gone || notes.end_in_doubt) return true;  // a close or shutdown came behind it
      return !notes.hears_finish || notes.finish_called || (reset && !owed(record));     // else its handler goes on
    case CloseReason::peer_reset:
      if (!failed_with(ending, is_reset)) return false;
      // Unread up to its end, and with our own end sent, the kernel shows no more of it than the reset.
      return !truth.end_arrived_at || owed(record) || (truth.error == ECONNRESET && notes.was_told_gone);
    case CloseReason::network_timed_out:
      return failed_with(ending, [](int error) { return error == ETIMEDOUT; });
    case CloseReason::network_unreachable:
      return failed_with(ending, lost_the_way);
    case CloseReason::heartbeat_lost:  // in a doubt
      return record.error_number != 0 && !failed_with(ending, is_reset) && failed_with(ending, [](int) { return true; });
    default:
      return false;
  }
}

bool attempt_failed_with(const Ending& ending, bool (*kind)(int)) {
  return !ending.notes.opened && ending.notes.attempted && kind(ending.record.error_number) && ending.truth.error_at &&
         ending.truth.error == ending.record.error_number;
}

/// One case for each reason. Null: it is true; else what is wrong with it.
const char* reason_is_true(const Ending& ending) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  const auto unless = [](bool is_true, const char* wrong) { return is_true ? nullptr : wrong; };

  // What this side settled stays, whatever the peer does later: only what came before it in the stream is told instead.
  const bool may_have_ended_before = notes.settled_from_outside && (notes.settled_at >= turn_began || !notes.opened);
  if (notes.end_in_doubt && stream_reason_is_true(ending)) return nullptr;
  if (notes.settled != Settled::by_nothing && !may_have_ended_before) {
    // It may have been flushing because its peer finished, which a shutdown leaves alone.
    if (notes.end_in_doubt && notes.settled == Settled::by_stopping && deadline_of(record.reason)) return nullptr;
    if (notes.was_told_gone && (notes.settled == Settled::by_close || notes.settled == Settled::by_stopping))
      return unless(stream_reason_is_true(ending), "closed after it was told that the peer is gone: what the stream said");
    if (notes.end_was_read && (notes.settled == Settled::by_close || notes.settled == Settled::by_stopping))
      return unless(stream_reason_is_true(ending), "closed after the peer's end was told: that stays the reason");
    // Flushing because the peer finished is not the handler's to rename.
    if (notes.settled == Settled::by_abort && notes.end_was_read && !notes.hears_finish)
      return unless(stream_reason_is_true(ending), "aborted while it ended with the peer: that stays the reason");
    switch (notes.settled) {
      case Settled::by_close:
      case Settled::by_abort:
        return unless(record.reason == CloseReason::local_close, "our own close stays local_close");
      case Settled::by_stopping:
        return unless(record.reason == CloseReason::server_stopping, "a shutdown is server_stopping");
      case Settled::by_backlog:
        return unless(record.reason == CloseReason::backlog_full, "a refused send is backlog_full");
      case Settled::by_leaving:
        return unless(record.reason == CloseReason::message_too_large, "too much left is message_too_large");
      case Settled::by_lying:
        return unless(record.reason == CloseReason::system_error && record.error_number == EINVAL &&
                          std::strcmp(record.operation, "on_receive") == 0,
                      "more consumed than given is system_error");
      default:
        break;
    }
  }

  switch (record.reason) {
    case CloseReason::local_close:
      return unless(notes.settled == Settled::by_close || notes.settled == Settled::by_abort, "nobody had closed it");
    case CloseReason::server_stopping:
      return unless(notes.settled == Settled::by_stopping, "nobody had stopped its reactor");
    case CloseReason::backlog_full:
      return unless(notes.settled == Settled::by_backlog, "no send was refused");
    case CloseReason::message_too_large:
      return unless(notes.settled == Settled::by_leaving, "too much was not left");
    case CloseReason::peer_finished:
    case CloseReason::peer_reset:
    case CloseReason::network_timed_out:
    case CloseReason::network_unreachable:
      return unless(stream_reason_is_true(ending), "the stream did not say that");
    case CloseReason::connect_refused:
      return unless(attempt_failed_with(ending, [](int error) { return error == ECONNREFUSED; }), "nobody refused");
    case CloseReason::connect_unreachable:
      return unless(
          attempt_failed_with(
              ending, [](int error) { return is_unreachable(error) || error == EACCES || error == EPERM || error == EINVAL; }),
          "there was a way");
    case CloseReason::connect_timed_out:
      if (record.error_number != 0)
        return unless(attempt_failed_with(ending, [](int error) { return error == ETIMEDOUT; }), "the kernel had not given up");
      // An answer that had come beats the deadline.
      if (truth.was_connected && truth.connected_at < turn_began) return "it was connected";
      if (truth.error_at && *truth.error_at < turn_began) return "the attempt had been answered with an error";
      return unless(!notes.opened && notes.clocks.is_due(Deadline::connect, now, truth), "told before its time");
    case CloseReason::connect_failed:
      return unless(!notes.opened && notes.attempted && record.error_number != 0 && truth.error == record.error_number,
                    "the attempt did not fail like that");
    case CloseReason::heartbeat_lost:  // and judge_heartbeat()
      return unless(notes.heartbeat.is_on(), "no heartbeat was asked for");
    case CloseReason::system_error:
      return unless(was_not_watched(record, truth), "no call of its own was refused like that");
    case CloseReason::self_connect:
      return unless(notes.reaches_itself && truth.was_connected, "it had not reached itself");
    case CloseReason::accept_shed:
      return "nothing like that happens to a handler here";
    default:
      return nullptr;  // deadlines: judge_verdict()
  }
}

const char* phase_is_true(const Ending& ending) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  if (notes.opened != (record.phase != Phase::connecting)) return "connecting until on_open and never after it";
  if (record.phase != Phase::draining) return nullptr;
  const bool closing = notes.graceful || (truth.end_arrived_at && !notes.hears_finish);
  if (!closing) return "draining without a close";
  const bool could_not = record.error_number != 0;  // it is drained all the same, and the error heard
  return (truth.end_was_sent || could_not) && record.unsent == 0 ? nullptr : "draining before our end was sent";
}

const char* cut_is_true(const Ending& ending) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  const bool ours = notes.graceful || (notes.stopped_at_once && notes.settled != Settled::by_nothing) || now >= notes.stops_at;
  switch (record.cut_short) {
    case CutShort::none:
      if (!notes.graceful || notes.settled == Settled::by_abort || notes.was_told_gone) return nullptr;
      if (record.reason == CloseReason::peer_finished && truth.end_arrived_at) return nullptr;
      if (record.reason != CloseReason::local_close && record.reason != CloseReason::server_stopping) return nullptr;
      if (!notes.opened) return nullptr;
      return truth.end_arrived_at && truth.end_was_sent && record.unsent == 0 ? nullptr
                                                                              : "neither whole nor told what cut it short";
    case CutShort::reset:
      if (notes.aborted && record.error_number == 0 && (notes.graceful || (truth.end_arrived_at && !notes.hears_finish)))
        return nullptr;  // ours
      return ours && failed_with(ending, is_reset) ? nullptr : "nobody reset it while it closed";
    case CutShort::timed_out:
      if (!ours) return "nobody had closed it";
      if (notes.stopped_at_once || now >= notes.stops_at) return nullptr;
      if (truth.error_at && !is_reset(truth.error)) return nullptr;
      // While callbacks of this very turn took their time, perhaps after it was cut.
      if (truth.last_acknowledged > turn_began) return nullptr;
      if (notes.clocks.is_due(Deadline::drain, now, truth) || notes.clocks.is_due(Deadline::send, now, truth)) return nullptr;
      if (notes.clocks.is_due(Deadline::send_rate, now, truth)) return nullptr;
      return "before its time";
  }
  return "no such value";
}

/// What was told and what is known, for the reader of a violation.
std::string summary(const Ending& ending) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  constexpr const char* settled[] = {"nothing",        "close()",    "abort()",      "a shutdown",
                                     "a refused send", "bytes left", "a false count"};
  const auto ago = [&ending](Instant at) { return readable(ending.now - at) + " ago"; };
  std::string text = std::string("told ") + to_string(record.reason) + " (" + to_string(record.phase) + ", errno " +
                     std::to_string(record.error_number) + ", cut short: " + to_string(record.cut_short) + "); settled by " +
                     settled[static_cast<std::size_t>(notes.settled)];
  if (notes.settled != Settled::by_nothing) text += ' ' + ago(notes.settled_at);
  if (truth.end_arrived_at) text += ", the peer's end came " + ago(*truth.end_arrived_at);
  if (truth.error_at) text += ", errno " + std::to_string(truth.error) + " came " + ago(*truth.error_at);
  text += ", the last recv " + ago(truth.last_recv_at) + " answered " + std::to_string(truth.last_recv);
  if (truth.unread() != 0) text += ", unread " + std::to_string(truth.unread());
  if (record.unsent != 0) text += ", unsent " + std::to_string(record.unsent);
  if (truth.unacknowledged() != 0) text += ", unacknowledged " + std::to_string(truth.unacknowledged());
  if (notes.heard_finish) text += ", its handler heard of the end";
  if (notes.heard_gone) text += ", its handler heard that the peer is gone";
  if (notes.finish_called) text += ", finish() was called";
  return text;
}

}  // namespace

void judge_reason(const Ending& ending, Problems& problems) {
  const auto& [notes, record, truth, now, turn_began] = ending;
  if (const char* wrong = reason_is_true(ending))
    problems.push_back({"the reason is true", std::string(wrong) + ": " + summary(ending)});
  const bool by_policy_or_end = record.error_number == 0;
  const bool names_operation = record.operation != nullptr && record.operation[0] != '\0';
  if (by_policy_or_end == names_operation) problems.push_back({"an errno has its operation", record.operation});
  if (record.origin != true_origin(record.reason, record.error_number))
    problems.push_back({"the origin is true", to_string(record.origin)});
  if (const char* wrong = phase_is_true(ending))
    problems.push_back({"the phase is true", std::string(wrong) + ": " + summary(ending)});
  if (const char* wrong = cut_is_true(ending))
    problems.push_back({"cut_short is true", std::string(wrong) + ": " + summary(ending) + "; drain " +
                                                 notes.clocks.describe(Deadline::drain, now, truth) + "; send " +
                                                 notes.clocks.describe(Deadline::send, now, truth)});
  if (const auto kind = deadline_of(record.reason)) {
    if (notes.hears_deadlines && *kind != Deadline::drain && !notes.end_was_read && !notes.refused && !truth.end_arrived_at)
      problems.push_back({"a handler is asked before its deadline closes", to_string(*kind)});
    // In this very turn, perhaps after the verdict.
    if (notes.touched_from_outside_at >= turn_began) return;
    const bool was_refused = notes.refused == kind && notes.refused_at >= turn_began;
    if (!was_refused) judge_verdict(notes, *kind, truth, now, turn_began, truth.acknowledged, problems);
  }
}

void judge_verdict(const LifeNotes& notes, Deadline kind, const sim::Truth& truth, Instant now, Instant turn_began,
                   std::uint64_t acknowledged, Problems& problems) {
  const auto wrong = [&](const char* rule, const char* told) {
    problems.push_back({rule, std::string(to_string(kind)) + ": " + told + "; " + notes.clocks.describe(kind, now, truth) +
                                  "; the last recv " + readable(now - truth.last_recv_at) + " ago answered " +
                                  std::to_string(truth.last_recv) + ", unread " + std::to_string(truth.unread()) +
                                  ", the last byte came " + readable(now - truth.last_arrival) + " ago"});
  };
  const bool sending = kind == Deadline::send || kind == Deadline::send_rate;
  // What was acknowledged while callbacks of this very turn took their time came after the verdict, perhaps.
  const bool in_doubt = sending && truth.last_acknowledged > turn_began;
  if (!in_doubt && !notes.clocks.is_due(kind, now, truth)) wrong("no deadline is told early", "it was not due");
  // Where there is more to read than one turn may, what comes after a deadline was found due does not put it off.
  const bool reads_on = truth.last_recv > 0 && kind != Deadline::first_byte && kind != Deadline::receive;
  const Instant due = notes.clocks.earliest(kind, truth);
  if (const auto other = notes.clocks.due_before(due, now, truth); other && due != never_due && !in_doubt)
    wrong("of deadlines due together the earliest comes first", to_string(*other));
  if (truth.error_at && *truth.error_at < (reads_on ? due : turn_began))
    wrong("what the stream says comes before a deadline", "it had failed");
  if (kind == Deadline::drain) return;

  const bool end_was_read = truth.end_arrived_at && *truth.end_arrived_at <= truth.last_recv_at && truth.last_recv == 0;
  const bool held = notes.clocks.is_held() || notes.clocks.is_perhaps_held();
  if (!held && !notes.heard_finish && !end_was_read) {
    if (!sending && truth.last_recv_at < due) wrong("the kernel is asked before a verdict", "no recv since it was due");
    if (truth.last_recv > 0 && !reads_on) wrong("payload before verdict", "the last recv brought bytes");
    if (truth.end_arrived_at && *truth.end_arrived_at < (reads_on ? due : truth.last_recv_at))
      wrong("what the stream says comes before a deadline", "the peer's end had arrived");
    if (truth.unread() != 0 && truth.last_arrival < (reads_on ? due : truth.last_recv_at))
      wrong("payload before verdict", "bytes that had arrived were not read");
  }
  if (kind == Deadline::receive_rate &&
      notes.clocks.received_in_window(truth.last_recv_at) >= notes.clocks.timeouts().receive_rate.bytes_per_window())
    wrong("too slow is slower than the rate", "a full window had enough");
  if (kind == Deadline::send_rate && !in_doubt &&
      notes.clocks.acknowledged_in_window(now, acknowledged) >= notes.clocks.timeouts().send_rate.bytes_per_window())
    wrong("too slow is slower than the rate", "a full window had enough");
}

}  // namespace vigil::tools
