// The life of a connection, as the reactor, listeners and connectors lead it.
//
// The path of a byte in: ready() -> deliver() -> the handler; where a read was not short, or something else is to be thought of,
// through receive(). What the handler leaves waits in keep_tail(); while reading is held, hear_while_held() only listens for the
// end. Out: Connection::send() -> the gather buffer or the queue -> write_out(). The path of a deadline: earliest_deadline() says
// which comes first; rearm() puts the one node there, or where something is to be looked at before; due() asks the kernel once
// more and then lets expire() judge. Every life ends in end(), and is told in finish().
//
// connection.cpp: birth and the user's calls. connection_exchange.cpp: a dispatch. connection_reading.cpp: reading held, and
// tails. connection_messages.cpp: messages and rates. connection_deadlines.cpp, connection_end.cpp: what their names say.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>

#include "connection_side.hpp"
#include "reactor_core.hpp"
#include "vigil/connection.hpp"
#include "vigil/heartbeat_options.hpp"
#include "vigil/socket.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

struct SocketAddress;

struct Heartbeat;

/// What the heartbeat, which stands above, does for connections whose policy has one (src/heartbeat.cpp).
struct HeartbeatThunks {
  bool (*begin)(ReactorCore& core, Connection& connection);  // it is open; false: no memory
  void (*drop)(ReactorCore& core, Connection& connection);
  Instant (*budget_ends)(const Connection& connection);  // never_due: nothing runs
  Instant (*next_look)(const Connection& connection);
  void (*look)(ReactorCore& core, Connection& connection);                                         // a probe may be due
  void (*expire)(ReactorCore& core, Connection& connection);                                       // the budget has ended
  bool (*explains)(ReactorCore& core, Connection& connection, int error, std::uint8_t operation);  // and has ended it
  void (*handed_over)(ReactorCore& core, Connection& connection);  // with Connection::probe_waits: it leaves now, or has left
  void (*answered)(ReactorCore& core, Connection& connection);     // with Connection::probed: a byte was received
  void (*tell)(const Connection& connection, CloseRecord& record);
};
extern const HeartbeatThunks heartbeat_thunks;

/// A ping's text, shared by a policy and its copies.
struct PingText {
  std::uint32_t references = 1;
  std::size_t size = 0;
  std::unique_ptr<std::byte[]> bytes;

  static void release(PingText* text) {
    if (text != nullptr && --text->references == 0) delete text;
  }
};

/// What all connections of a listener or connector share: counted, so that it lives as long as the last of them.
struct ConnectionPolicy {
  ReactorCore* core = nullptr;
  void (*on_receive)(void*, Connection&, Bytes) noexcept = nullptr;  // a copy of handler->on_receive: one load less per message
  std::uint32_t handler_offset = 0;
  std::uint32_t references = 1;
  std::size_t gather_max = 0;  // of the gather buffer, within backlog_bytes_max
  std::uint32_t backlog_bytes_max = 0;
  std::uint32_t high_mark = 0;
  std::uint32_t low_mark = 0;
  std::uint32_t message_bytes_max = 0;
  bool pauses_when_backlogged = false;
  const HandlerThunks* handler = nullptr;
  SourceSlab* slab = nullptr;
  const HeartbeatThunks* heartbeat = nullptr;  // null: none
  HeartbeatPlan plan;
  PingText* ping = nullptr;  // null: on_ping_due
  std::uint64_t heartbeat_seed = 0;

  Timeouts timeouts;   // every kind valued
  Timeouts inherited;  // what a connection's own `inherit` returns to

  // Told that a connection has ended and its slot is free, if it still lives itself then: a listener that counts its own.
  Source* maker = nullptr;
  std::uint32_t maker_generation = 0;
  void (*life_ended)(ReactorCore& core, Source& maker) = nullptr;

  static void release(ConnectionPolicy* policy) {
    if (policy == nullptr || --policy->references != 0) return;
    PingText::release(policy->ping);
    delete policy;
  }
};

/// Bounds and marks as the options give them.
struct StreamBounds {
  std::size_t backlog_bytes_max, high_mark, low_mark;
  WhenBacklogged when_backlogged;
  std::size_t message_bytes_max;
};
/// Makes `policy`, or makes it anew if the process's timeouts have changed since. Error{operation, EINVAL, which option}.
[[nodiscard]] Result<void> refresh_policy(ConnectionPolicy*& policy, ReactorCore& core, const HandlerThunks& handler,
                                          const StreamBounds& bounds, const Timeouts& own_layer,
                                          const HeartbeatOptions& heartbeat, const char* operation);

/// What a heartbeat of the kernel's own (keepalive_only) adds to a socket's options. Error{operation, EINVAL, ...}: they say
/// something else themselves.
[[nodiscard]] Result<SocketOptions> with_keepalive(SocketOptions options, const HeartbeatOptions& heartbeat, bool tcp,
                                                   const char* operation);

/// The operations a record may name, by their number in a connection.
enum class Operation : std::uint8_t { none, recv, send, connect, watch, accept, on_receive, open, begin_message, end_message };
constexpr std::uint8_t number(Operation operation) { return static_cast<std::uint8_t>(operation); }

/// Connection::send_progress_ while no byte of ours is on its way. No reading of a clock that counts from boot.
inline constexpr Instant nothing_outstanding{};

inline bool is_reset(int error_number) { return error_number == ECONNRESET || error_number == EPIPE; }

/// What stands in the slot between the connection and its handler: asked when it begins and when it ends.
struct ConnectionBirth {
  PeerAddress peer;
  Instant made_at{};    // accepted or attempted
  Instant opened_at{};  // established
  Heartbeat* heartbeat = nullptr;
};

struct ConnectionLife {
  using Construct = Callback<void(void* storage, Connection&)>;

  /// A slot for a new life, its handler not yet built; null: no memory. Counts as opened.
  [[nodiscard]] static Connection* begin(ConnectionPolicy& policy, int descriptor, const PeerAddress& peer, bool tcp);
  static void build_handler(Connection& connection, Construct& construct);
  static void register_stream(Connection& connection);

  /// The connection is established: on_open is told, deadlines run. From the reactor's phases only.
  static void established(Connection& connection);
  static void accepted(Connection& connection);
  static void connecting(Connection& connection, int connect_answer);
  /// Instead of connecting(): a Unix listener's queue is full, and the attempt is repeated until the connect deadline.
  static void retry_later(Connection& connection, const SocketAddress& target);
  [[nodiscard]] static Instant retries_at(const Connection& connection);
  [[nodiscard]] static bool retry_now(ReactorCore& core, Connection& connection);
  static void drop_retry(Connection& connection);

  // The phases of a turn.
  static void ready(ReactorCore& core, Source& source, Readiness readiness) noexcept;
  static void due(ReactorCore& core, Source& source) noexcept;
  static void flush(ReactorCore& core, Source& source) noexcept;
  static void finish(ReactorCore& core, Source& source) noexcept;
  static void stop(ReactorCore& core, Source& source, bool at_once) noexcept;

  // Where readiness becomes outcomes.
  static void ready_otherwise(ReactorCore& core, Connection& connection, Readiness readiness);
  static void begin_dispatch(ReactorCore& core, Connection& connection);
  static void end_dispatch(ReactorCore& core, Connection& connection, Readiness readiness);
  [[nodiscard]] static bool is_plain(const Connection& connection, Readiness readiness);
  [[nodiscard]] static bool is_drained_when_short(const Connection& connection, Readiness readiness);
  [[nodiscard]] static ssize_t read_some(ReactorCore& core, const Connection& connection);
  static void receive(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned);
  static void deliver(ReactorCore& core, Connection& connection, std::size_t size);
  static void count_received(ReactorCore& core, Connection& connection, std::size_t size);
  static void count_discarded(Connection& connection, std::uint64_t size);
  [[nodiscard]] static bool worth_receiving(Connection& connection, Readiness readiness);
  static void heard_no_data(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned);
  static void write_ready(ReactorCore& core, Connection& connection, Readiness readiness);
  static void write_out(ReactorCore& core, Connection& connection);
  static void send_gathered(ReactorCore& core, Connection& connection);
  static void send_queued(ReactorCore& core, Connection& connection);
  [[nodiscard]] static std::size_t account_sent(ReactorCore& core, Connection& connection, ssize_t returned);
  static void sent_nothing(ReactorCore& core, Connection& connection, ssize_t returned);
  static void keep_gathered(ReactorCore& core, Connection& connection, ssize_t returned, std::size_t size);
  static void stall(ReactorCore& core, Connection& connection);
  static void confirm_connect(ReactorCore& core, Connection& connection, Readiness readiness);

  // Reading held, and bytes left by on_receive.
  static constexpr unsigned held = Connection::paused | Connection::backlogged;
  [[nodiscard]] static bool hold_reading(ReactorCore& core, Connection& connection, unsigned cause);
  static void release_reading(ReactorCore& core, Connection& connection, unsigned causes);
  static void read_on(ReactorCore& core, Connection& connection);
  static void hear_while_held(ReactorCore& core, Connection& connection, Readiness readiness);
  [[nodiscard]] static short ended_by_now(const Connection& connection);
  static void latch_pending_error(Connection& connection);
  [[nodiscard]] static bool end_with_pending_error(ReactorCore& core, Connection& connection);
  [[nodiscard]] static bool was_told_gone(const Connection& connection);
  static void close_unread(ReactorCore& core, Connection& connection);
  static void deliver_with_tail(ReactorCore& core, Connection& connection, std::size_t size);
  [[nodiscard]] static bool offer_last(ReactorCore& core, Connection& connection);
  static void keep_tail(Connection& connection, Bytes bytes, std::size_t consumed);

  // Rare state; null: no memory.
  [[nodiscard]] static ConnectionSide* side_of(ReactorCore& core, Connection& connection);
  static void drop_side(ReactorCore& core, Connection& connection);

  // What the stream said.
  static void peer_end(ReactorCore& core, Connection& connection);
  static void stream_error(ReactorCore& core, Connection& connection);
  static void latch_error(Connection& connection, int error_number, std::uint8_t operation);

  // Closing.
  static void begin_close(ReactorCore& core, Connection& connection, CloseReason reason, bool by_user);
  static void advance_end(ReactorCore& core, Connection& connection);
  static void end(Connection& connection, CloseReason reason, int error_number = 0, std::uint8_t operation = 0);
  [[nodiscard]] static bool owes(const Connection& connection);

  // Deadlines.
  struct Due {
    Instant at;
    Deadline kind;
  };
  [[nodiscard]] static Due earliest_deadline(const Connection& connection);
  [[nodiscard]] static Timeout send_timeout(const Connection& connection);
  [[nodiscard]] static bool send_clock_runs(const Connection& connection);
  [[nodiscard]] static bool send_clock_counts(const Connection& connection);
  static void rearm(ReactorCore& core, Connection& connection);
  static void expire(ReactorCore& core, Connection& connection, Deadline kind);
  [[nodiscard]] static Instant next_look(const ReactorCore& core, const Connection& connection);
  [[nodiscard]] static Instant receive_counts_from(const Connection& connection);
  [[nodiscard]] static bool receive_clocks_run(const Connection& connection);
  [[nodiscard]] static bool watches_sending(const Connection& connection);
  [[nodiscard]] static bool has_more_to_read(ReactorCore& core, Connection& connection, Deadline kind);
  [[nodiscard]] static bool allows_more_time(ReactorCore& core, Connection& connection, Deadline kind);
  static void forgive(ReactorCore& core, Connection& connection, Duration late);
  static void start_send_clock(ReactorCore& core, Connection& connection);
  static void sending_watch_changed(ReactorCore& core, Connection& connection);
  static void sample_progress(ReactorCore& core, Connection& connection);
  [[nodiscard]] static bool is_tcp(const Connection& connection) { return connection.has(Connection::tcp); }
  /// Bytes were given in this turn, and the kernel has not been offered them yet.
  [[nodiscard]] static bool waits_for_flush(const Connection& connection) {
    return connection.backlog_bytes() != 0 && !connection.has(Connection::stalled);
  }
  static void send_clock_begins_later(ReactorCore& core, Connection& connection);
  static void send_clock_begins_now(ReactorCore& core, Connection& connection);

  // Messages and rates.
  [[nodiscard]] static Instant message_began(const Connection& connection);
  [[nodiscard]] static Instant message_counts_from(const Connection& connection);
  static void message_begins(ReactorCore& core, Connection& connection);
  static void message_begins_with_tail(ReactorCore& core, Connection& connection);
  [[nodiscard]] static RateWindow receive_window(const Connection& connection);
  static void start_windows(ReactorCore& core, Connection& connection);
  static void roll_windows(ReactorCore& core, Connection& connection);

  // Sending.
  [[nodiscard]] static bool enqueue(ReactorCore& core, Connection& connection, Bytes bytes);
  static void gather(ReactorCore& core, Bytes bytes);
  static Result<void> send(Connection& connection, Bytes bytes);
  static Result<void> send_direct(ReactorCore& core, Connection& connection, Bytes bytes);

  [[nodiscard]] static void* handler_of(Connection& connection) {
    return reinterpret_cast<std::byte*>(&connection) + connection.policy_->handler_offset;
  }
  // What the heartbeat asks of one.
  [[nodiscard]] static const ConnectionPolicy& policy_of(const Connection& connection) { return *connection.policy_; }
  [[nodiscard]] static Instant last_received(const Connection& connection) { return connection.last_received_; }
  static void flush_later(ReactorCore& core, Connection& connection) { core.flush_later(connection); }
  static void expect_answer(Connection& connection) { connection.set(Connection::probed); }
  static void expect_no_answer(Connection& connection) { connection.clear(Connection::probed | Connection::probe_waits); }
  [[nodiscard]] static bool probe_waits(const Connection& connection) { return connection.has(Connection::probe_waits); }
  static void probe_waits_in_queue(Connection& connection) {
    connection.clear(Connection::probe_waits);
    if (connection.backlog_bytes() != 0) connection.set(Connection::probe_waits);
  }
  [[nodiscard]] static bool holds_reading(const Connection& connection) { return connection.has(held); }
  [[nodiscard]] static bool expects_life(const Connection& connection) {
    constexpr unsigned ended = Connection::closing | Connection::peer_finished | Connection::finish_wanted;
    return connection.stage_ == Connection::Stage::open && !connection.has(ended);
  }
  /// Whatever the kernel has said of its room. False: that ended it.
  static bool write_again(ReactorCore& core, Connection& connection) {
    connection.clear(Connection::stalled);
    write_out(core, connection);
    return connection.stage_ == Connection::Stage::open;
  }
  /// Behind what is not read while reading is held.
  [[nodiscard]] static bool end_waits(const Connection& connection) {
    return connection.has(held) && connection.has(Connection::end_hinted);
  }

  [[nodiscard]] static ConnectionBirth& birth_of(Connection& connection) {
    return *reinterpret_cast<ConnectionBirth*>(&connection + 1);
  }
  [[nodiscard]] static const ConnectionBirth& birth_of(const Connection& connection) {
    return *reinterpret_cast<const ConnectionBirth*>(&connection + 1);
  }
  [[nodiscard]] static std::uint64_t in_flight(const Connection& connection);
  [[nodiscard]] static CloseRecord record_of(const ReactorCore& core, const Connection& connection);
  [[nodiscard]] static bool own_policy(Connection& connection);

  static Source* construct_slot(void* slot);
  static Connection& over();
  static constexpr std::size_t handler_offset(std::size_t alignment) {
    return (sizeof(Connection) + sizeof(ConnectionBirth) + alignment - 1) / alignment * alignment;
  }
  static const SourceOperations operations;
};

/// With the next reading of the clock; the caller made room for a stamp. The node needs no move: while a message is awaited it
/// stands no later than one that began at once would need it (next_look).
inline void ConnectionLife::message_begins(ReactorCore& core, Connection& connection) {
  connection.clear(Connection::awaits_message);
  ConnectionSide& side = *connection.side_;
  side.received.close_until({});
  side.received_before = connection.received_;
  side.message_given = {};
  core.stamp_soon(&side.message_began);
}

}  // namespace vigil
