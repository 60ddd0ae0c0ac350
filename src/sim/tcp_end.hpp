// One end of a TCP connection, as its kernel keeps it: what was sent, acknowledged, received and read; when to send again, and
// when to give up. It knows neither descriptors nor epoll: it tells its owner what has changed in poll(2)'s bits.
//
// Modelled after Linux (RFC 9293, RFC 6298; tcp(7)): errors are handed out once and recv answers 0 afterwards; a reset leaves
// unread bytes readable; closing with unread bytes resets; a short read of a drained socket is followed by a new edge.
// Without congestion control and selective acknowledgement: what comes out of order is dropped, and sent again.
//
// Thread: the world's. Ownership: shared by its host, as long as segments are for it, and its owner, until that closes it.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>

#include "sim/byte_queue.hpp"
#include "sim/segment.hpp"
#include "sys/sys.hpp"
#include "vigil/time.hpp"

namespace vigil::sim {

class SimulatedHost;
class TcpEnd;
struct ListeningSocket;
struct Truth;

/// Who has an end open: a descriptor, or a scripted peer.
class TcpOwner {
 public:
  /// Something of these kinds happened, in poll(2)'s bits; a change of the connection's state is of every kind.
  virtual void tcp_changed(std::uint32_t kinds) = 0;

 protected:
  ~TcpOwner() = default;
};

struct TcpSettings {
  std::size_t send_capacity = 0, receive_capacity = 0;
  bool keepalive = false;
  Duration keepalive_idle = std::chrono::hours(2);
  Duration keepalive_interval = std::chrono::seconds(75);
  int keepalive_count = 9;
  Duration user_timeout{};  // 0: none
  int syn_retries = 6;
  bool resets_on_close = false;  // SO_LINGER, 0
};

class TcpEnd : public std::enable_shared_from_this<TcpEnd> {
 public:
  enum class State : std::uint8_t { syn_sent, syn_received, established, time_wait, dead };

  TcpEnd(SimulatedHost& host, const Flow& flow, const TcpSettings& settings, std::shared_ptr<Conversation> conversation,
         bool is_client);

  // --- of whoever has it open
  TcpOwner* owner = nullptr;
  TcpSettings settings;
  void connect();
  /// As recv(2), send(2), shutdown(2): a count, or the negated errno.
  [[nodiscard]] ssize_t receive(void* buffer, std::size_t size);
  [[nodiscard]] ssize_t send(const iovec* pieces, std::size_t count);
  [[nodiscard]] int shutdown(int how);
  /// SO_ERROR.
  [[nodiscard]] int take_error();
  /// close(2): nobody owns it afterwards.
  void close();
  void reset();
  [[nodiscard]] std::uint32_t poll_state() const;
  /// An urgent mark in front of this byte of what is sent.
  void mark_urgent(std::uint64_t offset) { marks_to_send_.push_back(offset); }
  void settings_changed();

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool has_ended() const { return state_ == State::dead || state_ == State::time_wait; }
  /// A new connection may take the place of one that only waits for old segments to die out.
  [[nodiscard]] bool gives_way_to(const Segment& syn) const {
    return state_ == State::time_wait && syn.syn && !syn.ack && syn.from_incarnation != their_incarnation_;
  }
  void give_way() { die(); }
  [[nodiscard]] bool was_established() const { return established_at_ != Instant{}; }
  [[nodiscard]] const Flow& flow() const { return flow_; }
  [[nodiscard]] std::size_t unread() const { return incoming_.size(); }
  [[nodiscard]] int unsent() const;  // SIOCOUTQ
  [[nodiscard]] sys::TcpSample sample();
  void fill(Truth& truth) const;
  [[nodiscard]] std::uint64_t& faults() { return conversation_->struck.faults; }
  [[nodiscard]] Conversation::Side& own_side() const { return is_client_ ? conversation_->client : conversation_->server; }
  [[nodiscard]] Conversation::Side& other_side() const { return is_client_ ? conversation_->server : conversation_->client; }

  // --- of its host
  ListeningSocket* listener = nullptr;  ///< whose queue it is for, until it is in it
  void accept_syn(const Segment& syn);  ///< a listener answers it
  void arrive(const Segment& segment);
  void timer_fired();
  /// The path says that it can't be reached.
  void path_error(int error);
  /// Its host is gone: nobody is told anything.
  void vanish();

 private:
  static constexpr std::uint32_t every_kind = ~0U;
  enum class Timer : std::uint8_t { none, syn, retransmit, probe, local_retry, keepalive, time_wait };

  [[nodiscard]] bool is_of_another_life(const Segment& segment) const;
  void answer_syn_again();
  [[nodiscard]] Segment segment();
  int transmit(Segment&& segment);
  void acknowledge() { transmit(segment()); }
  void send_reset();
  void pump();
  void plan();
  void plan(Timer timer, Instant at);
  [[nodiscard]] Duration backed_off(int times) const;
  [[nodiscard]] bool user_timeout_is_over(Instant since) const;
  void give_up(int error);
  void fail(int error);
  void die();
  void establish();
  void take_round_trip(const Segment& segment);
  void take_acknowledgement(const Segment& segment);
  void take_bytes(const Segment& segment);
  void take_end(const Segment& segment);
  void end_stream();
  void end_if_both_ends_came();
  void tell(std::uint32_t kinds = every_kind);
  [[nodiscard]] std::uint64_t data_end() const { return acknowledged_ + outgoing_.size(); }
  [[nodiscard]] bool end_is_on_its_way() const { return end_wanted_ && highest_ > data_end(); }
  /// Nothing was given that the other side has not acknowledged.
  [[nodiscard]] bool all_acknowledged() const { return outgoing_.empty() && (!end_wanted_ || end_acknowledged_); }
  [[nodiscard]] bool something_is_in_flight() const { return highest_ > acknowledged_ + (end_acknowledged_ ? 1 : 0); }
  [[nodiscard]] std::uint64_t window() const;
  [[nodiscard]] std::size_t room() const;

  SimulatedHost& host_;
  Flow flow_;
  std::shared_ptr<Conversation> conversation_;
  bool is_client_;
  std::uint64_t incarnation_, their_incarnation_ = 0;
  State state_;
  bool is_open_ = true;  // somebody may still read and write

  // Sending. Offsets count bytes of the stream; our end counts as one more.
  ByteQueue outgoing_;              // from acknowledged_ on
  std::uint64_t acknowledged_ = 0;  // payload
  std::uint64_t next_ = 0;          // to transmit next
  std::uint64_t highest_ = 0;       // transmitted so far
  std::uint64_t allowed_ = 0;       // by the other side's window
  std::uint64_t taken_ = 0;
  bool end_wanted_ = false, end_acknowledged_ = false;
  bool ended_last_ = false;  // our end was given when the other side's had come
  std::deque<std::uint64_t> marks_to_send_;
  bool wants_room_ = false;       // a send found none: the next room is told
  bool has_no_room_now_ = false;  // by a fault, for a moment
  bool has_offer_ = false;        // of which nothing was taken, with nothing unacknowledged
  bool window_was_closed_ = false;

  // Receiving.
  ByteQueue incoming_;
  std::uint64_t expected_ = 0;  // the byte, or the end, that comes next
  std::uint64_t read_ = 0;
  std::uint64_t told_window_ = 0;  // right edge of what the other side may send
  bool end_received_ = false, receive_shut_ = false;
  std::deque<std::uint64_t> marks_;  // a recv stops in front of these

  int error_ = 0, soft_error_ = 0;
  int failure_ = 0;  // the error, whether it was handed out or not

  // Timing.
  Timer timer_ = Timer::none;
  Instant timer_at_{};
  Instant planned_at_ = never_due;  // the earliest entry of the agenda for it
  int retries_ = 0;                 // in a row, of what the timer sends
  int probes_ = 0;                  // unanswered in a row, of the window or of keepalive
  int probe_backoff_ = 0;           // of the window's, answered or not, until it opens
  std::uint32_t total_retransmits_ = 0;
  Duration smoothed_rtt_{};            // 0: not measured yet
  Instant to_echo_{};                  // when the latest segment that left no gap was sent
  Instant first_unacknowledged_at_{};  // since when something is on its way or held back
  Instant established_at_{}, end_arrived_at_{}, failed_at_{};
  Instant last_heard_{}, last_acknowledgement_{}, last_progress_{}, last_byte_{}, last_taken_{}, end_wanted_at_{}, offered_at_{},
      last_short_send_{};
  Instant last_recv_at_{};
  std::int64_t last_recv_ = 0;
  Instant last_sample_at_{};
  bool wait_for_route_ = false;  // the last transmission was refused here
};

}  // namespace vigil::sim
