// An end of a connection: what its owner does with it, and what a segment does to it. tcp_timers.cpp: when it sends, and sends
// again.
#include "sim/tcp_end.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "sim/network.hpp"
#include "sim/simulated_host.hpp"
#include "sim/tcp_constants.hpp"

namespace vigil::sim {

TcpEnd::TcpEnd(SimulatedHost& host, const Flow& flow, const TcpSettings& given, std::shared_ptr<Conversation> conversation,
               bool is_client)
    : settings(given),
      host_(host),
      flow_(flow),
      conversation_(std::move(conversation)),
      is_client_(is_client),
      incarnation_(host.universe.random.next() | 1),
      state_(is_client ? State::syn_sent : State::syn_received) {
  own_side().room = window();
}

// What its owner does ---------------------------------------------------------------------------------------------------------

ssize_t TcpEnd::receive(void* buffer, std::size_t size) {
  while (!marks_.empty() && marks_.front() <= read_) marks_.pop_front();
  std::size_t count = std::min(size, incoming_.size());
  if (!marks_.empty()) count = std::min<std::size_t>(count, marks_.front() - read_);
  last_recv_at_ = host_.universe.now;
  if (count == 0) {
    if (unread() > 0) return last_recv_ = 0;   // no room was given
    if (end_received_) return last_recv_ = 0;  // an error behind the end never reaches recv
    if (error_ != 0) return last_recv_ = -std::exchange(error_, 0);
    if (receive_shut_ || has_ended()) return last_recv_ = 0;
    return last_recv_ = -EAGAIN;
  }
  std::memcpy(buffer, incoming_.view().data(), count);
  incoming_.drop(count);
  read_ += count;
  own_side().received += count;
  own_side().received_at = last_recv_at_;
  own_side().room = window();
  // The window opens again: told once it is worth a segment.
  const std::uint64_t worth = std::min<std::uint64_t>(segment_bytes_max, settings.receive_capacity / 2);
  // Where reading is shut the other side is told nothing of it.
  if (state_ == State::established && !end_received_ && !receive_shut_ && expected_ + window() >= told_window_ + worth)
    acknowledge();
  return last_recv_ = static_cast<std::int64_t>(count);
}

ssize_t TcpEnd::send(const iovec* pieces, std::size_t count) {
  if (state_ == State::syn_sent || state_ == State::syn_received) return -EAGAIN;
  if (error_ != 0) return -std::exchange(error_, 0);
  if (has_ended() || end_wanted_) return -EPIPE;
  Universe& universe = host_.universe;
  std::size_t wanted = 0;
  for (std::size_t index = 0; index < count; ++index) wanted += pieces[index].iov_len;
  if (wanted == 0) return 0;
  if (all_acknowledged() && !std::exchange(has_offer_, true)) offered_at_ = universe.now;
  std::size_t possible = std::min(room(), wanted);
  const auto struck = [&](Fault fault) { return universe.strikes(fault, conversation_->struck.faults); };
  if (host_.runs_vigil && possible > 0 && (struck(Fault::out_of_room) || struck(Fault::partial_send))) {
    // Memory is short for a moment: less is taken, and nothing more until it is over.
    possible = universe.random.below(possible);
    has_no_room_now_ = true;
    universe.after(universe.random.between(std::chrono::microseconds(1), std::chrono::milliseconds(5)),
                   [self = weak_from_this()] {
                     const auto end = self.lock();
                     if (end == nullptr) return;
                     end->has_no_room_now_ = false;
                     if (std::exchange(end->wants_room_, false)) end->tell(POLLOUT);
                   });
  }
  if (possible < wanted) {
    wants_room_ = true;
    last_short_send_ = universe.now;
  }
  if (possible == 0) return -EAGAIN;
  if (all_acknowledged()) first_unacknowledged_at_ = universe.now;
  std::size_t left = possible;
  for (std::size_t index = 0; left > 0; ++index) {
    const std::size_t part = std::min(left, pieces[index].iov_len);
    outgoing_.append({static_cast<const char*>(pieces[index].iov_base), part});
    left -= part;
  }
  has_offer_ = false;
  taken_ += possible;
  last_taken_ = universe.now;
  pump();
  return static_cast<ssize_t>(possible);
}

int TcpEnd::shutdown(int how) {
  if (state_ == State::syn_sent) return -ENOTCONN;
  if (has_ended()) {
    tell();  // all the same
    return -ENOTCONN;
  }
  if (how != SHUT_WR) receive_shut_ = true;
  if (how != SHUT_RD) end_stream();
  tell();
  return 0;
}

void TcpEnd::end_stream() {
  if (end_wanted_) return;
  if (all_acknowledged()) first_unacknowledged_at_ = host_.universe.now;
  end_wanted_ = true;
  ended_last_ = end_received_;
  end_wanted_at_ = host_.universe.now;
  own_side().finished = true;
  pump();
}

int TcpEnd::take_error() {
  if (error_ != 0) return std::exchange(error_, 0);
  return std::exchange(soft_error_, 0);
}

void TcpEnd::close() {
  if (!std::exchange(is_open_, false)) return;
  owner = nullptr;
  if (state_ == State::syn_sent) return die();
  if (has_ended()) return;
  if (unread() > 0 || settings.resets_on_close) return reset();
  end_stream();
  end_if_both_ends_came();
  plan();
}

void TcpEnd::reset() {
  is_open_ = false;
  owner = nullptr;
  if (has_ended()) return;
  own_side().was_reset = true;
  if (state_ != State::syn_sent) send_reset();
  die();
}

std::uint32_t TcpEnd::poll_state() const {
  if (state_ == State::syn_sent || state_ == State::syn_received) return 0;
  if (has_ended()) return POLLIN | POLLOUT | POLLRDHUP | POLLHUP | (error_ != 0 ? POLLERR : 0U);
  std::uint32_t bits = 0;
  if (unread() > 0 || end_received_ || receive_shut_) bits |= POLLIN;
  if (!marks_.empty()) bits |= POLLPRI;
  if (end_received_ || receive_shut_) bits |= POLLRDHUP;
  if ((end_received_ || receive_shut_) && end_wanted_) bits |= POLLHUP;
  // Writable again only where a third of the buffer is free (sk_stream_is_writeable).
  if (end_wanted_ || (!wants_room_ && room() > 0) || room() >= settings.send_capacity / 3) bits |= POLLOUT;
  if (has_no_room_now_) bits &= ~static_cast<std::uint32_t>(POLLOUT);
  return bits;
}

int TcpEnd::unsent() const {
  if (state_ == State::syn_sent || state_ == State::syn_received) return 0;
  return static_cast<int>(outgoing_.size()) + (end_wanted_ && !end_acknowledged_ ? 1 : 0);
}

std::uint64_t TcpEnd::window() const { return settings.receive_capacity > unread() ? settings.receive_capacity - unread() : 0; }

std::size_t TcpEnd::room() const {
  if (has_no_room_now_) return 0;
  return settings.send_capacity > outgoing_.size() ? settings.send_capacity - outgoing_.size() : 0;
}

sys::TcpSample TcpEnd::sample() {
  const Instant now = last_sample_at_ = host_.universe.now;
  const auto milliseconds_since = [&](Instant then) {
    return static_cast<std::uint32_t>((now - then) / std::chrono::milliseconds(1));
  };
  sys::TcpSample sample;
  sample.known = true;
  sample.connected = state_ != State::syn_sent && !has_ended();
  sample.bytes_acked = acknowledged_ + (end_acknowledged_ ? 1U : 0U);
  sample.window_known = true;
  if (!sample.connected) return sample;  // a dead socket remembers nothing of its last struggle
  const std::uint64_t in_flight = highest_ - std::min(highest_, acknowledged_ + (end_acknowledged_ ? 1U : 0U));
  sample.unacked = static_cast<std::uint32_t>((in_flight + segment_bytes_max - 1) / segment_bytes_max);
  sample.notsent_bytes = static_cast<std::uint32_t>(data_end() - std::min(highest_, data_end()));
  const bool retransmits = timer_ == Timer::retransmit || timer_ == Timer::local_retry;
  sample.retransmits = retransmits ? static_cast<std::uint32_t>(retries_) : 0;
  sample.total_retrans = total_retransmits_;
  sample.probes = static_cast<std::uint32_t>(probes_);
  sample.backoff = sample.retransmits + static_cast<std::uint32_t>(probe_backoff_);
  sample.rtt_us = static_cast<std::uint32_t>(smoothed_rtt_ / std::chrono::microseconds(1));
  sample.rto_us = static_cast<std::uint32_t>(backed_off(retries_) / std::chrono::microseconds(1));
  sample.last_ack_recv_ms = milliseconds_since(std::max(last_acknowledgement_, established_at_));
  sample.last_data_recv_ms = milliseconds_since(std::max(last_byte_, established_at_));
  sample.snd_wnd = static_cast<std::uint32_t>(allowed_ - std::min(allowed_, acknowledged_));
  return sample;
}

void TcpEnd::fill(Truth& truth) const {
  truth.was_connected = was_established();
  truth.connected_at = established_at_;
  truth.read = read_;
  truth.arrived = read_ + unread();
  if (end_received_) truth.end_arrived_at = end_arrived_at_;
  if (failure_ != 0) {
    truth.error_at = failed_at_;
    truth.error = failure_;
    truth.error_was_taken = error_ == 0;
  }
  truth.last_arrival = last_byte_;
  truth.last_recv_at = last_recv_at_;
  truth.last_recv = last_recv_;
  truth.taken = taken_;
  truth.acknowledged = acknowledged_;
  truth.last_acknowledged = last_progress_;
  truth.last_taken_at = last_taken_;
  truth.offered_at = offered_at_;
  truth.last_short_send = last_short_send_;
  truth.end_was_sent = end_wanted_;
  truth.end_sent_at = end_wanted_at_;
  truth.room = window();
  truth.last_heard = last_heard_;
  truth.last_sample = last_sample_at_;
  truth.round_trip = smoothed_rtt_;
  truth.untransmitted = data_end() - std::min(highest_, data_end());
  truth.faults = conversation_->struck.faults;
  truth.lost = conversation_->struck.lost;
  truth.last_lost = conversation_->struck.lost_at;
  truth.slow_until = conversation_->struck.slow_until;
  truth.was_reset = own_side().was_reset;
  truth.peer_sent = other_side().given;
  truth.peer_handed = other_side().handed;
  truth.peer_spoke_at = other_side().handed_at;
  truth.peer_finished = other_side().finished;
  truth.peer_was_reset = other_side().was_reset;
  truth.peer_is_gone = other_side().is_gone;
  truth.peer_received = other_side().received;
  truth.peer_read_at = other_side().received_at;
  truth.peer_room = other_side().room;
}

// What a segment does ---------------------------------------------------------------------------------------------------------

/// Left over from an earlier connection between the same ports, or from one that this host knows nothing of.
bool TcpEnd::is_of_another_life(const Segment& segment) const {
  if (segment.syn && !segment.ack) return their_incarnation_ != 0 && segment.from_incarnation != their_incarnation_;
  return segment.to_incarnation != incarnation_ || (their_incarnation_ != 0 && segment.from_incarnation != their_incarnation_);
}

void TcpEnd::arrive(const Segment& segment) {
  if (is_of_another_life(segment)) {
    if (segment.reset) return;
    const bool half_open = state_ == State::syn_sent || state_ == State::syn_received;
    if (half_open && segment.ack) return host_.refuse(segment);
    return state_ == State::established ? acknowledge() : void();  // so that the other side finds out (RFC 9293 3.10.7.4)
  }
  last_heard_ = host_.universe.now;
  if (segment.reset) {
    // In its window, or it is an old one; and a time-wait is not cut short (RFC 1337).
    const bool in_window = segment.sequence >= expected_ && segment.sequence <= told_window_ + 1;
    if (state_ == State::syn_sent) return segment.ack ? fail(ECONNREFUSED) : void();
    if (state_ == State::time_wait || !in_window) return;
    if (state_ == State::syn_received) {
      host_.handshake_done(*this, false);
      return die();
    }
    // As the kernel: a reset behind the other side's end is a broken pipe, while ours is still to come.
    return fail(end_received_ && !end_wanted_ ? EPIPE : ECONNRESET);
  }
  if (segment.sequence <= expected_) to_echo_ = std::max(to_echo_, segment.sent_at);
  if (segment.syn) {
    if (state_ == State::syn_received) return answer_syn_again();
    const bool reaches_itself = flow_.local == flow_.remote;  // a simultaneous open of one end with itself
    if (!segment.ack && !reaches_itself) return;
    if (state_ != State::syn_sent) return acknowledge();
    their_incarnation_ = segment.from_incarnation;
    allowed_ = segment.window;
    if (retries_ == 0) take_round_trip(segment);  // an echo of the first SYN, sent again, would count the wait too
    establish();
    acknowledge();
    pump();
    return tell();
  }
  if (!segment.ack) return;
  const bool wants_answer = segment.asks || segment.fin || !segment.bytes.empty();
  if (state_ == State::time_wait) return wants_answer ? acknowledge() : void();
  const bool completes = state_ == State::syn_received;
  if (completes) {
    allowed_ = segment.acknowledged + segment.window;
    if (retries_ == 0) take_round_trip(segment);  // an echo of the first SYN, sent again, would count the wait too
    establish();
  }
  const std::uint64_t expected_before = expected_;
  const std::uint64_t acknowledged_before = acknowledged_;
  const bool end_received_before = end_received_, end_acknowledged_before = end_acknowledged_;
  take_acknowledgement(segment);
  take_bytes(segment);
  if (state_ == State::dead) return;
  take_end(segment);
  if (wants_answer) acknowledge();
  end_if_both_ends_came();
  if (completes) host_.handshake_done(*this, true);
  const bool room_again = wants_room_ && acknowledged_ != acknowledged_before && (poll_state() & POLLOUT) != 0;
  if (room_again) wants_room_ = false;
  // Wake-ups as the kernel makes them: of bytes, of room that was asked for, and of everybody where the state changed.
  std::uint32_t kinds = room_again ? POLLOUT : 0U;
  if (expected_ != expected_before) kinds |= POLLIN | POLLPRI;
  if (end_received_ != end_received_before || end_acknowledged_ != end_acknowledged_before) kinds = every_kind;
  if (kinds != 0) tell(kinds);
}

/// Of one that acknowledges something for the first time.
void TcpEnd::take_round_trip(const Segment& segment) {
  if (segment.echo == Instant{}) return;
  const Duration sample = std::max<Duration>(host_.universe.now - segment.echo, std::chrono::microseconds(1));
  smoothed_rtt_ = smoothed_rtt_ == Duration{} ? sample : (7 * smoothed_rtt_ + sample) / 8;  // RFC 6298
}

void TcpEnd::take_acknowledgement(const Segment& segment) {
  const std::uint64_t upto = segment.acknowledged;
  if (upto > highest_ || upto < acknowledged_) return;  // of nothing that was sent; old
  const Instant now = host_.universe.now;
  last_acknowledgement_ = now;
  soft_error_ = 0;  // something works
  probes_ = 0;
  bool progress = false;
  const std::uint64_t payload = std::min(upto, data_end());
  const bool reaches_end = end_wanted_ && upto > data_end();
  if (payload > acknowledged_) {
    outgoing_.drop(payload - acknowledged_);
    acknowledged_ = payload;
    last_progress_ = now;
    progress = true;
  }
  if (reaches_end && !end_acknowledged_) end_acknowledged_ = progress = true;
  next_ = std::max(next_, upto);
  while (!marks_to_send_.empty() && marks_to_send_.front() < acknowledged_) marks_to_send_.pop_front();
  const bool opens = upto + segment.window > allowed_;
  allowed_ = std::max(allowed_, upto + segment.window);
  if (progress) {
    take_round_trip(segment);
    first_unacknowledged_at_ = now;
    retries_ = 0;
  }
  if (!progress && !opens) {
    // Who answers a probe and opens nothing is asked again as long after its answer as the back-off says.
    if (timer_ == Timer::probe) plan(Timer::probe, now + backed_off(probe_backoff_));
    return;
  }
  probe_backoff_ = 0;
  timer_ = Timer::none;
  pump();
}

void TcpEnd::take_bytes(const Segment& segment) {
  if (segment.bytes.empty() || end_received_) return;
  if (!is_open_) {
    // Nobody will ever read them.
    own_side().was_reset = true;
    send_reset();
    return die();
  }
  if (segment.sequence > expected_ || segment.end() <= expected_) return;  // out of order, or once more
  if (receive_shut_ && end_wanted_) {
    // Nobody will ever read them here either: a half-closed end whose reading is shut resets (RFC 1122 4.2.2.13).
    own_side().was_reset = true;
    send_reset();
    return fail(ECONNRESET);
  }
  std::string_view fresh = std::string_view(segment.bytes).substr(expected_ - segment.sequence);
  if (told_window_ < expected_ + fresh.size()) fresh = fresh.substr(0, told_window_ - std::min(told_window_, expected_));
  for (const std::uint64_t mark : segment.marks)
    if (mark >= expected_ && mark < expected_ + fresh.size()) marks_.push_back(mark);
  incoming_.append(fresh);
  expected_ += fresh.size();
  if (!fresh.empty()) last_byte_ = host_.universe.now;
  own_side().room = window();
}

void TcpEnd::take_end(const Segment& segment) {
  if (!segment.fin || end_received_ || segment.end() != expected_) return;
  end_received_ = true;
  end_arrived_at_ = host_.universe.now;
  ++expected_;
}

void TcpEnd::establish() {
  state_ = State::established;
  established_at_ = host_.universe.now;
  retries_ = 0;
  timer_ = Timer::none;
  plan();
}

void TcpEnd::end_if_both_ends_came() {
  if (state_ != State::established || !end_received_ || !end_acknowledged_) return;
  if (ended_last_) return die();
  state_ = State::time_wait;
  timer_ = Timer::none;
  plan(Timer::time_wait, host_.universe.now + time_wait_length);
}

void TcpEnd::path_error(int error) {
  if (state_ == State::syn_sent) return fail(error);
  soft_error_ = error;  // a hint, until something is acknowledged: an established connection tries again
}

void TcpEnd::fail(int error) {
  const bool is_told = state_ != State::syn_received;
  error_ = failure_ = error;
  failed_at_ = host_.universe.now;
  die();
  if (is_told) tell();
}

void TcpEnd::die() {
  if (state_ == State::dead) return;
  own_side().is_gone = true;
  state_ = State::dead;
  timer_ = Timer::none;
  host_.forget(flow_);
}

void TcpEnd::vanish() {
  own_side().is_gone = true;
  owner = nullptr;
  is_open_ = false;
  state_ = State::dead;
  timer_ = Timer::none;
}

void TcpEnd::tell(std::uint32_t kinds) {
  if (owner != nullptr) owner->tcp_changed(kinds);
}

void TcpEnd::send_reset() {
  Segment reset = segment();
  reset.reset = true;
  reset.sequence = highest_;
  transmit(std::move(reset));
}

}  // namespace vigil::sim
