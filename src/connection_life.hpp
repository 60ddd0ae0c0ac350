// The life of a connection, as the reactor, listeners and connectors lead it. The rules stand in connection.cpp.
//
// The path of a byte in: ready() -> receive() -> the handler. Out: Connection::send() -> the gather buffer or the queue ->
// write_out(). The path of a deadline: earliest_deadline() says which comes first; rearm() puts the one node there; due() asks
// the kernel once more and then lets expire() judge. Every life ends in end(), and is told in finish().
#pragma once

#include <cerrno>
#include <cstdint>

#include "reactor_core.hpp"
#include "vigil/connection.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

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
  const HandlerThunks* handler = nullptr;
  SourceSlab* slab = nullptr;
  Timeouts timeouts;   // every kind valued
  Timeouts inherited;  // what a connection's own `inherit` returns to

  // Told that a connection has ended and its slot is free, if it still lives itself then: a listener that counts its own.
  Source* maker = nullptr;
  std::uint32_t maker_generation = 0;
  void (*life_ended)(ReactorCore& core, Source& maker) = nullptr;

  static void release(ConnectionPolicy* policy) {
    if (policy != nullptr && --policy->references == 0) delete policy;
  }
};

/// Bounds and marks as the options give them.
struct BacklogBounds {
  std::size_t bytes_max, high_mark, low_mark;
};
/// Makes `policy`, or makes it anew if the process's timeouts have changed since. Error{operation, EINVAL, which option}.
[[nodiscard]] Result<void> refresh_policy(ConnectionPolicy*& policy, ReactorCore& core, const HandlerThunks& handler,
                                          const BacklogBounds& bounds, const Timeouts& own_layer, const char* operation);

/// The operations a record may name, by their number in a connection.
enum class Operation : std::uint8_t { none, recv, send, connect, watch, accept };
constexpr std::uint8_t number(Operation operation) { return static_cast<std::uint8_t>(operation); }

/// Connection::send_progress_ while no byte of ours is on its way. No reading of a clock that counts from boot.
inline constexpr Instant nothing_outstanding{};

inline bool is_reset(int error_number) { return error_number == ECONNRESET || error_number == EPIPE; }

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

  // The phases of a turn.
  static void ready(ReactorCore& core, Source& source, Readiness readiness) noexcept;
  static void due(ReactorCore& core, Source& source) noexcept;
  static void flush(ReactorCore& core, Source& source) noexcept;
  static void finish(ReactorCore& core, Source& source) noexcept;
  static void stop(ReactorCore& core, Source& source, bool at_once) noexcept;

  // Where readiness becomes outcomes.
  static void exchange(ReactorCore& core, Connection& connection, Readiness readiness);
  [[nodiscard]] static bool is_plain(const Connection& connection, Readiness readiness);
  [[nodiscard]] static ssize_t read_some(ReactorCore& core, const Connection& connection);
  static void receive(ReactorCore& core, Connection& connection, Readiness readiness, ssize_t returned);
  static void deliver(ReactorCore& core, Connection& connection, std::size_t size);
  static void count_received(ReactorCore& core, Connection& connection, std::size_t size);
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
  static void rearm(ReactorCore& core, Connection& connection);
  static void expire(Connection& connection, Deadline kind);
  static void start_send_clock(ReactorCore& core, Connection& connection);
  static void sample_progress(ReactorCore& core, Connection& connection);

  // Sending.
  [[nodiscard]] static bool enqueue(ReactorCore& core, Connection& connection, Bytes bytes);
  static void gather(ReactorCore& core, Bytes bytes);
  static Result<void> send(Connection& connection, Bytes bytes);
  static Result<void> send_direct(ReactorCore& core, Connection& connection, Bytes bytes);

  [[nodiscard]] static void* handler_of(Connection& connection) {
    return reinterpret_cast<std::byte*>(&connection) + connection.policy_->handler_offset;
  }
  [[nodiscard]] static PeerAddress& peer_of(Connection& connection) { return *reinterpret_cast<PeerAddress*>(&connection + 1); }
  [[nodiscard]] static std::uint64_t in_flight(const Connection& connection);
  [[nodiscard]] static CloseRecord record_of(ReactorCore& core, Connection& connection);
  [[nodiscard]] static bool own_policy(Connection& connection);

  static Source* construct_slot(void* slot);
  static Connection& over();
  static constexpr std::size_t handler_offset(std::size_t alignment) {
    return (sizeof(Connection) + sizeof(PeerAddress) + alignment - 1) / alignment * alignment;
  }
  static const SourceOperations operations;
};

}  // namespace vigil
