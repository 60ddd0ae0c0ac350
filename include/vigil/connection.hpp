// One connection: a stream socket, its handler, and the one record of its end.
//
// Thread: its reactor's. Ownership: the reactor's slab owns the slot; the listener or connector that made it may be destroyed
// earlier. A Connection& is good inside its handler's callbacks; keep a ConnectionHandle for later.
//
// No callback is entered from inside these calls: a send or close that ends the connection is told by on_close after the caller
// has returned to the reactor. Every life that ends with bytes of ours the kernel never took is ended with a reset (TCP; a Unix
// socket has none), so that no peer mistakes a truncated stream for a whole one.
//
//   void on_receive(vigil::Connection& peer, vigil::Bytes bytes) {
//     if (bytes.text() == "quit\n") peer.close(); else peer.send(bytes);
//     idle_ = peer.handle();                     // for later: idle_->send("still there?\n") changes nothing once the life is
//     over
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
struct SendChunk;

class Connection final : private Source {
 public:
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Takes all of `bytes`, which are not borrowed after the call: they are gathered, handed to the kernel, or queued. While the
  /// connection is still connecting they wait in the queue. Errors: {send, ENOBUFS}: they would pass backlog_bytes_max; none was
  /// taken and the connection ends with backlog_full. {send, EPIPE}: our end was already sent, or closing, or over.
  /// {send, EBADF}: a stale handle. {send, ENOMEM}: no memory for the queue; ends with system_error.
  Result<void> send(Bytes bytes);

  /// Sends what is queued, then our end (FIN); receiving goes on. A second call changes nothing. {finish, EPIPE}: closing or
  /// over.
  Result<void> finish();

  /// Graceful end: what is queued, then our end, then the peer's end is awaited within the drain deadline; bytes received
  /// meanwhile are counted and discarded. The reason is local_close, or peer_finished if the peer's end had been told before.
  Result<void> close();

  /// Ends at once with a reset (RST), also while closing gracefully.
  Result<void> abort();

  /// Overrides one timeout for this connection alone; a running deadline of that kind is judged by the new value from its old
  /// start (send, if it was never: from now). {set timeout, EINVAL}: out of range, or `accept`. Inherit returns to the listener's
  /// or connector's value.
  Result<void> set_timeout(Deadline kind, Timeout timeout);

  [[nodiscard]] ConnectionHandle handle();
  [[nodiscard]] Address peer() const;                   ///< also after the end; unspecified address on a stale handle
  [[nodiscard]] Result<Address> local_address() const;  ///< asks the kernel
  [[nodiscard]] int descriptor() const;                 ///< for reading socket options; -1 once over
  [[nodiscard]] bool is_open() const;                   ///< established, our end not under way: send() may be called
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
  friend struct ConnectionCheck;

  enum class Stage : std::uint8_t { vacant, connecting, open, ended };
  enum Flag : std::uint16_t {
    tcp = 1,                 // a short read has drained it
    end_hinted = 2,          // the poller told of an end or an error: read until recv says so
    stalled = 4,             // the kernel's buffer is full: wait for writable
    finish_wanted = 8,       // our end follows the queue
    end_sent = 16,           // it was sent
    closing = 32,            // the reason is settled; received bytes are discarded
    draining = 64,           // closing took longer than the call or event that began it
    peer_finished = 128,     // recv answered 0
    error_latched = 256,     // error_ holds what a send was told; reads go on until the stream's end
    reset_wanted = 512,      // close with RST
    was_open = 1024,         // on_open was told
    above_high_mark = 2048,  // the queue passed the high mark and has not fallen to the low one
    lingering = 4096,        // the peer finished and its handler is asked: the drain deadline runs when nothing is owed
    close_called = 8192,     // by the user or a shutdown: what follows is told in cut_short_
    fin_counts = 16384,      // the kernel took our end: it counts as one unacknowledged byte
    is_established = 32768,  // stage_ is open: asked together with the others by what is hot
  };

  Connection() = default;
  ~Connection() = default;

  [[nodiscard]] bool has(unsigned flags) const { return (flags_ & flags) != 0; }
  void set(unsigned flags) { flags_ = static_cast<std::uint16_t>(flags_ | flags); }
  void clear(unsigned flags) { flags_ = static_cast<std::uint16_t>(flags_ & ~flags); }
  [[nodiscard]] void* handler_storage();

  Stage stage_ = Stage::vacant;
  std::uint16_t flags_ = 0;
  std::uint32_t queued_bytes_ = 0;
  ConnectionPolicy* policy_ = nullptr;  // shared by all connections of a listener or connector, counted
  Instant last_received_{};             // or opened_at_ before the first byte
  std::uint64_t received_ = 0;
  std::uint64_t handed_to_kernel_ = 0;
  SendChunk* queue_ = nullptr;
  Instant send_progress_{};  // since when nothing was acknowledged; `clear`: nothing outstanding; never_due: no send deadline
  Instant opened_at_{};
  Instant drain_began_ = never_due;
  std::uint32_t acknowledged_ = 0;  // low half of the count at the last sample
  std::int16_t error_ = 0;
  std::uint8_t operation_ = 0;
  CloseReason reason_ = CloseReason::local_close;
  CutShort cut_short_ = CutShort::none;
  std::uint32_t discarded_ = 0;  // received while closing; stays at the most it can count
};

// A connection is two cache lines; what a listener's connections share is behind policy_.
static_assert(sizeof(Connection) <= 128);

/// A connection as it is kept: a slot and the generation of one life in it. Use it on the reactor's thread while the reactor
/// lives. It lives until on_close has returned; afterwards every call through it changes nothing, calls that return a Result
/// answer EBADF and queries answer zero.
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
