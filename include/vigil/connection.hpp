// One connection: a stream socket, its handler, and the one record of its end.
//
// Thread: its reactor's. Ownership: the reactor's slab owns the slot; the listener or connector that made it may be destroyed
// earlier. A Connection& is good inside its handler's callbacks; keep a ConnectionHandle for later.
//
// No callback is entered from inside these calls: a send or close that ends the connection is told by on_close after the caller
// has returned to the reactor. Every life that ends with bytes of ours the kernel never took is ended with a reset (TCP; a Unix
// socket has none), so that no peer mistakes a truncated stream for a whole one.
//
// Inside on_close the life is over: send(), finish() and pause_reading() answer EPIPE, set_timeout(), set_rate() and
// local_address() EBADF, close(), abort(), resume_reading() and receive_again() succeed and change nothing; descriptor() is -1,
// and peer(), the counts and the times answer still. After on_close only a handle is left, and it is stale (ConnectionHandle).
//
//   void on_receive(vigil::Connection& peer, vigil::Bytes bytes) {
//     if (bytes.text() == "quit\n") peer.close(); else peer.send(bytes);
//     idle_ = peer.handle();      // for later: idle_->send("still there?\n") changes nothing once the life is over
//   }
#pragma once

#include <cstddef>
#include <cstdint>

#include "vigil/address.hpp"
#include "vigil/bytes.hpp"
#include "vigil/close_record.hpp"
#include "vigil/handler.hpp"
#include "vigil/result.hpp"
#include "vigil/source.hpp"
#include "vigil/timeouts.hpp"

namespace vigil {

class ConnectionHandle;
class Reactor;
struct ConnectionPolicy;
struct ConnectionSide;
struct SendChunk;

/// What a queue above its high mark does to reading.
enum class WhenBacklogged : std::uint8_t {
  close,         ///< nothing: a send that would pass backlog_bytes_max ends the connection
  pause_reading  ///< nothing more is received until it has fallen to the low mark; the bound still holds
};

class Connection final : private Source {
 public:
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Takes all of `bytes`, which are not borrowed after the call: they are gathered, handed to the kernel, or queued. While the
  /// connection is still connecting they wait in the queue. Errors: {send, ENOBUFS}: they would pass backlog_bytes_max; none was
  /// taken and the connection ends with backlog_full; where an earlier send has met a reset, or another failure of the stream,
  /// {send, that errno} instead, and the failure is told. {send, EPIPE}: our end was already sent, or closing, or over.
  /// {send, EBADF}: a stale handle. {send, ENOMEM}: no memory for the queue; ends with system_error.
  Result<void> send(Bytes bytes);

  /// Sends what is queued, then our end (FIN); receiving goes on, and so do its deadlines. A heartbeat ends here, because the
  /// peer can't be asked any more. A second call changes nothing. {finish, EPIPE}: closing or over.
  Result<void> finish();

  /// Graceful end: what is queued, then our end, then the peer's end is awaited within the drain deadline; bytes received
  /// meanwhile are counted and discarded. The reason is local_close, or peer_finished if the peer's end had been told before.
  Result<void> close();

  /// Ends at once with a reset (RST), also while closing gracefully. The record says local_close: of an open connection, and of
  /// one whose on_peer_finished was told and that has not been closed since. During a graceful close its reason stays, and
  /// cut_short is `reset`, without an errno where it is our own; a handler without on_peer_finished closes gracefully from the
  /// peer's end on, so that an abort() from there on is peer_finished, cut short.
  Result<void> abort();

  /// Overrides one timeout for this connection alone; `inherit` returns to the listener's or connector's value. A running
  /// deadline of that kind is judged by the new value from its old start (`send`, if it was `never`, from now). Errors:
  /// {set timeout, EINVAL}: out of range, `accept`, or a kind that has a rate; EBADF: the connection is over; ENOMEM.
  Result<void> set_timeout(Deadline kind, Timeout timeout);

  /// The same for receive_rate and send_rate; windows begin anew, after the grace. {set rate, EINVAL}: out of range, or no rate;
  /// EBADF: the connection is over; ENOMEM.
  Result<void> set_rate(Deadline kind, const Rate& rate);

  /// Receives nothing until resume_reading(); what the peer sends waits in the kernel and holds it back in the end. Receive-side
  /// deadlines stand still. The peer's end or reset is told by on_peer_gone_while_paused, once; its record follows after
  /// resume_reading() has delivered what the kernel holds, or at once when the handler closes. A second call changes nothing.
  /// {pause reading, EPIPE}: closing or over; ENOMEM.
  Result<void> pause_reading();
  /// Receiving goes on in the next turn; bytes left by on_receive are handed over again. A no-op while not paused.
  Result<void> resume_reading();
  /// Hands over again what on_receive left, in the next turn, without waiting for more. A no-op where nothing was left, or while
  /// reading is paused.
  Result<void> receive_again();
  /// Inside on_receive: the peer's end is behind these bytes; what is left of them now counts as unconsumed.
  [[nodiscard]] bool is_final() const { return has(final_bytes); }

  /// Marks where a message begins, if not at the first byte received after end_message() (bytes left by on_receive begin one
  /// too), and where it ends: the message and receive_rate deadlines run between. Nothing once closing or over.
  void begin_message();
  void end_message() {
    if (side_ != nullptr && !has(has_tail)) [[likely]] {
      set(awaits_message);
    } else {
      end_message_slowly();
    }
  }

  [[nodiscard]] ConnectionHandle handle();
  [[nodiscard]] Address peer() const;                   ///< also after the end; unspecified address on a stale handle
  [[nodiscard]] Result<Address> local_address() const;  ///< asks the kernel
  [[nodiscard]] int descriptor() const;                 ///< for reading socket options; -1 once over
  [[nodiscard]] bool is_open() const;                   ///< established, our end not under way: send() may be called
  [[nodiscard]] bool is_reading_paused() const { return has(paused); }  ///< by pause_reading(), not for a backlog
  [[nodiscard]] std::uint64_t received() const { return received_; }
  [[nodiscard]] std::uint64_t handed_to_kernel() const { return handed_to_kernel_; }
  [[nodiscard]] std::size_t backlog_bytes() const;  ///< given to send() and not yet handed to the kernel
  [[nodiscard]] Duration age() const;               ///< since it was opened, or attempted
  [[nodiscard]] Duration silence() const;           ///< since the last byte was received, or since it was opened

  /// The handler in this connection's slot. The caller vouches for the type, which is the listener's or connector's, and that the
  /// connection is alive.
  template <class Handler>
  [[nodiscard]] Handler& handler() {
    return *static_cast<Handler*>(handler_storage());
  }

 private:
  friend class ConnectionHandle;
  friend struct ConnectionLife;  // src/connection_life.hpp: what the reactor, listeners and connectors do with it

  enum class Stage : std::uint8_t { vacant, connecting, open, ended };
  enum Flag : std::uint32_t {
    tcp = 1,                    // a short read has drained it
    end_hinted = 2,             // the poller told of an end or an error: read until recv says so
    stalled = 4,                // the kernel's buffer is full: wait for writable
    finish_wanted = 8,          // our end follows the queue
    end_sent = 16,              // it was sent
    closing = 32,               // the reason is settled; received bytes are discarded
    draining = 64,              // closing: our end was sent, the peer's is awaited
    peer_finished = 128,        // recv answered 0
    error_latched = 256,        // error_ holds what a send was told; reads go on until the stream's end
    reset_wanted = 512,         // close with RST
    was_open = 1024,            // on_open was told
    above_high_mark = 2048,     // the queue passed the high mark and has not fallen to the low one
    lingering = 4096,           // the peer finished and its handler is asked: the drain deadline runs when nothing is owed
    close_called = 8192,        // by the user or a shutdown: what follows is told in cut_short_
    fin_counts = 16384,         // the kernel took our end: it counts as one unacknowledged byte
    paused = 32768,             // reading is held by the user ...
    backlogged = 1 << 16,       // ... and by a queue above the high mark, where the options say so
    gone_told = 1 << 17,        // on_peer_gone_while_paused was due: the peer's end waits to be read
    has_tail = 1 << 18,         // side_->tail holds what on_receive left
    tail_wanted = 1 << 19,      // ... and it is to be handed over even if nothing follows
    final_bytes = 1 << 20,      // on_receive is given the tail for the last time
    has_queue = 1 << 22,        // queue_ holds something
    awaits_message = 1 << 21,   // between two messages: the next byte begins one
    just_given = 1 << 23,       // the first outstanding bytes may still be on their way to the kernel
    probed = 1 << 24,           // what is received next answers a heartbeat, and the heartbeat wants to know when
    probe_waits = 1 << 25,      // its first probe has not left whole, and the heartbeat wants to know when it does
    is_established = 1U << 31,  // stage_ is open: asked together with the others by what is hot, and a sign is asked cheapest
  };

  Connection() = default;
  ~Connection() = default;

  [[nodiscard]] bool has(unsigned flags) const { return (flags_ & flags) != 0; }
  void set(unsigned flags) { flags_ |= flags; }
  void clear(unsigned flags) { flags_ &= ~flags; }
  [[nodiscard]] void* handler_storage();
  void end_message_slowly();

  Stage stage_ = Stage::vacant;
  CutShort cut_short_ = CutShort::none;
  CloseReason reason_ = CloseReason::local_close;
  std::uint32_t flags_ = 0;
  ConnectionPolicy* policy_ = nullptr;  // shared by all connections of a listener or connector, counted
  Instant last_received_{};             // or when it was opened, before the first byte
  std::uint64_t received_ = 0;
  std::uint64_t handed_to_kernel_ = 0;
  SendChunk* queue_ = nullptr;
  ConnectionSide* side_ = nullptr;  // what few connections need; null until needed
  Instant send_progress_{};         // since when nothing was acknowledged; or nothing_outstanding, or never_due: not watched
  Instant drain_began_ = never_due;
  std::uint32_t queued_bytes_ = 0;
  std::uint32_t acknowledged_ = 0;  // low half of the count at the last sample
  std::uint32_t discarded_ = 0;     // received and not consumed; stays at the most it can count
  std::int16_t error_ = 0;
  std::uint8_t operation_ = 0;
};

// A connection is two cache lines; what a listener's connections share is behind policy_.
static_assert(sizeof(Connection) <= 128);

/// A connection as it is kept: a slot and the generation of one life in it. Use it on the reactor's thread while the reactor
/// lives. It lives until on_close has returned; afterwards every call through it changes nothing, calls that return a Result
/// answer EBADF and queries answer zero, but for descriptor(), which answers -1.
class ConnectionHandle {
 public:
  ConnectionHandle() = default;

  [[nodiscard]] explicit operator bool() const { return &target() != &over(); }
  [[nodiscard]] Connection* operator->() const { return &target(); }
  [[nodiscard]] Connection& operator*() const { return target(); }

  friend bool operator==(const ConnectionHandle&, const ConnectionHandle&) = default;

 private:
  friend class Connection;
  ConnectionHandle(Connection* connection, std::uint32_t generation) : connection_(connection), generation_(generation) {}
  [[nodiscard]] Connection& target() const;
  [[nodiscard]] static Connection& over();  // stands for every life that has ended

  Connection* connection_ = nullptr;
  std::uint32_t generation_ = 0;
};

}  // namespace vigil
