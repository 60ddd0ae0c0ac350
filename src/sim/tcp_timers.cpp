// When an end sends, sends again, asks, and gives up (RFC 6298, RFC 9293 3.8; tcp(7)).
#include <algorithm>
#include <cerrno>
#include <utility>

#include "sim/network.hpp"
#include "sim/simulated_host.hpp"
#include "sim/tcp_constants.hpp"
#include "sim/tcp_end.hpp"

namespace vigil::sim {

Segment TcpEnd::segment() {
  told_window_ = std::max(told_window_, expected_ + window());
  return {.from = flow_.local,
          .to = flow_.remote,
          .ack = state_ != State::syn_sent,
          .from_incarnation = incarnation_,
          .to_incarnation = their_incarnation_,
          .sequence = next_,
          .acknowledged = expected_,
          .window = told_window_ - expected_,
          .sent_at = host_.universe.now,
          .echo = to_echo_};
}

int TcpEnd::transmit(Segment&& segment) { return host_.network.send(host_, std::move(segment), conversation_->struck); }

void TcpEnd::connect() {
  Segment syn = segment();
  syn.syn = true;
  syn.conversation = conversation_;
  transmit(std::move(syn));
  plan(Timer::syn, host_.universe.now + (first_rto * (1 << retries_)));
}

void TcpEnd::accept_syn(const Segment& syn) {
  their_incarnation_ = syn.from_incarnation;
  to_echo_ = syn.sent_at;
  answer_syn_again();
  plan(Timer::syn, host_.universe.now + first_rto);
}

void TcpEnd::answer_syn_again() {
  Segment answer = segment();
  answer.syn = true;
  transmit(std::move(answer));
}

/// Sends what may be sent now.
void TcpEnd::pump() {
  if (state_ != State::established) return;
  wait_for_route_ = false;
  while (next_ < data_end() && next_ < allowed_) {
    Segment data = segment();
    data.bytes = outgoing_.view(next_ - acknowledged_, std::min(segment_bytes_max, allowed_ - next_));
    for (const std::uint64_t mark : marks_to_send_)
      if (mark >= next_ && mark < data.end()) data.marks.push_back(mark);
    const std::uint64_t end = data.end();
    if (transmit(std::move(data)) != 0) {
      wait_for_route_ = true;
      break;
    }
    next_ = end;
    highest_ = std::max(highest_, next_);
    if (retries_ > 0) break;  // one at a time, until something comes through again
  }
  if (end_wanted_ && !end_acknowledged_ && next_ == data_end() && !wait_for_route_) {
    Segment end = segment();
    end.fin = true;
    if (transmit(std::move(end)) != 0) {
      wait_for_route_ = true;
    } else {
      ++next_;
      highest_ = std::max(highest_, next_);
    }
  }
  plan();
}

Duration TcpEnd::backed_off(int times) const {
  const Duration base = smoothed_rtt_ == Duration{} ? first_rto : std::max(shortest_rto, 2 * smoothed_rtt_);
  return times >= 10 ? longest_rto : std::min(base * (1 << times), longest_rto);
}

/// Puts the timer where the state wants it; one that runs for the same purpose is left running.
void TcpEnd::plan() {
  if (state_ != State::established) return;
  const Instant now = host_.universe.now;
  if (!all_acknowledged()) {
    const bool closed = !wait_for_route_ && !something_is_in_flight();
    if (closed && !std::exchange(window_was_closed_, true)) {
      host_.universe.happened(Fault::window_closed);
      ++conversation_->struck.faults;
    }
    if (!closed) window_was_closed_ = false;
    const Timer wanted = wait_for_route_ ? Timer::local_retry : closed ? Timer::probe : Timer::retransmit;
    if (timer_ == wanted) return;
    if (wanted == Timer::local_retry) return plan(wanted, now + local_retry);
    return plan(wanted, now + backed_off(closed ? probe_backoff_ : retries_));
  }
  if (!is_open_ && end_acknowledged_) {
    if (timer_ != Timer::time_wait) plan(Timer::time_wait, now + time_wait_length);  // FIN_WAIT_2, nobody waits in it for ever
    return;
  }
  if (!settings.keepalive) {
    timer_ = Timer::none;
    return;
  }
  if (timer_ != Timer::keepalive) plan(Timer::keepalive, std::max(last_heard_, established_at_) + settings.keepalive_idle);
}

void TcpEnd::plan(Timer timer, Instant at) {
  timer_ = timer;
  const bool has_work = timer == Timer::retransmit || timer == Timer::probe || timer == Timer::local_retry;
  if (has_work && settings.user_timeout > Duration::zero()) at = std::min(at, first_unacknowledged_at_ + settings.user_timeout);
  timer_at_ = std::max(at, host_.universe.now);
  if (planned_at_ <= timer_at_) return;  // that entry comes first, and plans again
  planned_at_ = timer_at_;
  host_.universe.agenda.add(timer_at_, [self = weak_from_this(), at = timer_at_] {
    const auto end = self.lock();
    if (end == nullptr || end->planned_at_ != at) return;
    end->planned_at_ = never_due;
    if (end->timer_ == Timer::none) return;
    if (end->timer_at_ > at) return end->plan(end->timer_, end->timer_at_);
    end->timer_fired();
  });
}

void TcpEnd::settings_changed() {
  if (timer_ == Timer::keepalive) timer_ = Timer::none;
  plan();
}

bool TcpEnd::user_timeout_is_over(Instant since) const {
  return settings.user_timeout > Duration::zero() && host_.universe.now - since >= settings.user_timeout;
}

void TcpEnd::timer_fired() {
  const Instant now = host_.universe.now;
  switch (std::exchange(timer_, Timer::none)) {
    case Timer::none:
      return;
    case Timer::syn:
      if (state_ == State::syn_received && retries_ == syn_ack_retries) {
        host_.handshake_done(*this, false);
        return die();
      }
      if (state_ == State::syn_sent && retries_ == settings.syn_retries) return give_up(ETIMEDOUT);
      ++retries_;
      if (state_ == State::syn_sent) return connect();
      answer_syn_again();
      return plan(Timer::syn, now + first_rto * (1 << retries_));
    case Timer::retransmit:
      if (user_timeout_is_over(first_unacknowledged_at_)) return give_up(ETIMEDOUT);
      if (retries_ == (is_open_ ? retries_max : orphan_retries_max)) return give_up(ETIMEDOUT);
      ++retries_;
      ++total_retransmits_;
      next_ = acknowledged_;
      return pump();
    case Timer::local_retry:
      if (user_timeout_is_over(first_unacknowledged_at_)) return give_up(ETIMEDOUT);
      if (now - first_unacknowledged_at_ >= local_retries_last) return give_up(ETIMEDOUT);
      if (something_is_in_flight()) {  // one more retransmission that the sender's own routes refuse, which counts all the same
        ++retries_;
        ++total_retransmits_;
      }
      return pump();
    case Timer::probe:
      if (user_timeout_is_over(first_unacknowledged_at_) || probes_ == retries_max) return give_up(ETIMEDOUT);
      break;
    case Timer::keepalive:
      if (probes_ == 0 && last_heard_ + settings.keepalive_idle > now) return plan();
      if (settings.user_timeout > Duration::zero() ? probes_ > 0 && user_timeout_is_over(last_heard_)
                                                   : probes_ >= settings.keepalive_count) {
        send_reset();
        return give_up(ETIMEDOUT);
      }
      break;
    case Timer::time_wait:
      return die();
  }
  // A byte that the other side has already: whoever is there answers.
  ++probes_;
  Segment probe = segment();
  probe.asks = true;
  transmit(std::move(probe));
  if (!all_acknowledged()) {
    probe_backoff_ = std::min(probe_backoff_ + 1, retries_max);
    return plan(Timer::probe, now + backed_off(probe_backoff_));
  }
  plan(Timer::keepalive, now + settings.keepalive_interval);
}

void TcpEnd::give_up(int error) { fail(soft_error_ != 0 ? soft_error_ : error); }

}  // namespace vigil::sim
