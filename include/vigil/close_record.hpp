// Why a connection ended: one close reason, and the record of everything that was known when it did.
//
// Every connection opened or attempted ends in exactly one record, handed to its handler's on_close. Records are plain values:
// keep and copy them on any thread.
//
//   void on_close(vigil::Connection&, const vigil::CloseRecord& why) { std::puts(vigil::describe(why).c_str()); }
//
// Which reason wins where several causes meet in one turn:
//   1. What the stream says comes first, in stream order: bytes, then the peer's end or reset, before any deadline due.
//   2. A reset after the peer's FIN is peer_reset if anything of ours was unsent or unacknowledged, else peer_finished. (Where
//      the stream was not read up to the FIN because reading is paused, and our own end was sent, the kernel shows the reset
//      alone.)
//   3. Our own close stays local_close whatever the peer does later; `cut_short` tells what it did. backlog_full stays as well
//      where a reset waits behind the bytes being read; but once a send has met the reset, nothing leaves any more, and what
//      fills the backlog then is the reset's doing: peer_reset.
//   4. server_stopping beats local_close only where the user had not closed. A peer's end that was told before a close or a
//      shutdown stays the reason.
//   5. Of deadlines due together, the one due earliest.
//   6. Where the kernel gives up on the peer (ETIMEDOUT, EHOSTUNREACH, ...) while its heartbeat is in doubt, which is from the
//      first probe of a silence until the next sign of life, the reason is heartbeat_lost with that errno. Its verdict follows
//      from the last evidence taken while the connection lived, and from that errno. Otherwise it is network_timed_out or
//      network_unreachable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "vigil/time.hpp"
#include "vigil/verdict.hpp"

namespace vigil {

/// A closed list: there is no "unknown".
enum class CloseReason : std::uint8_t {
  local_close,           ///< this program called close() or abort()
  peer_finished,         ///< the peer ended its stream in order (FIN), and everything it sent was delivered, but for what the
                         ///< handler did not want: left_unread, unconsumed
  peer_reset,            ///< the peer reset the connection (RST), or finished and reset while it was owed data
  connect_refused,       ///< nobody listens there: the connection attempt was rejected
  connect_timed_out,     ///< no answer to the attempt: errno 0 is our deadline, ETIMEDOUT the kernel's own
  connect_unreachable,   ///< no way there: no route, no such host, link down, or a firewall or route that forbids it
  connect_failed,        ///< the attempt failed for another cause; errno tells
  self_connect,          ///< the attempt reached its own socket (TCP simultaneous open on an ephemeral port)
  accept_shed,           ///< accepted only to be closed: no descriptor or memory was left for it
  first_byte_timed_out,  ///< not a single byte within the first_byte deadline
  receive_timed_out,     ///< no byte for as long as the receive deadline allows
  message_timed_out,     ///< a message had begun and did not end within the message deadline
  receive_too_slow,      ///< in a full window fewer bytes were received than receive_rate asks for
  send_timed_out,        ///< bytes were outstanding and the peer acknowledged none for as long as the send deadline allows
  send_too_slow,    ///< in a full window the peer acknowledged fewer bytes than send_rate asks for, though more were outstanding
  drain_timed_out,  ///< the peer finished, and its handler neither sent nor closed within the drain deadline
  heartbeat_lost,   ///< the peer gave no sign of life for the heartbeat's budget, or the kernel gave it up before that (errno
                    ///< tells); the verdict says what is known of why
  network_timed_out,    ///< the kernel gave up: keepalive, user timeout or retransmissions went unanswered (ETIMEDOUT)
  network_unreachable,  ///< the kernel lost the way to the peer (EHOSTUNREACH, ENETUNREACH, ...)
  backlog_full,         ///< a send would have passed backlog_bytes_max
  message_too_large,    ///< on_receive left more bytes unconsumed than message_bytes_max
  server_stopping,      ///< shutdown() or the reactor's end closed it
  system_error,         ///< an operation failed in a way that none of the above describes; errno and operation tell
};

/// Who caused the end: this program, the peer, something between, or a limit this program set.
enum class Origin : std::uint8_t { local, peer, network, policy };

/// How far the connection had come.
enum class Phase : std::uint8_t { connecting, open, draining };

/// What cut a graceful close short, after the reason was settled: a reset, the peer's (errno ECONNRESET or EPIPE) or our own
/// abort() (errno 0); or time, be it a deadline's, the kernel's (its errno) or that of a shutdown.
enum class CutShort : std::uint8_t { none, reset, timed_out };

inline constexpr std::size_t close_reason_count = static_cast<std::size_t>(CloseReason::system_error) + 1;

[[nodiscard]] const char* to_string(CloseReason reason);
[[nodiscard]] const char* to_string(Origin origin);
[[nodiscard]] const char* to_string(Phase phase);
[[nodiscard]] const char* to_string(CutShort cut_short);
/// The enumerator's line of meaning, for people.
[[nodiscard]] const char* meaning(CloseReason reason);

struct CloseRecord {
  CloseReason reason = CloseReason::system_error;
  Origin origin = Origin::local;
  Phase phase = Phase::open;
  CutShort cut_short = CutShort::none;
  int error_number = 0;        ///< the errno behind the reason; 0 where there is none (an orderly end, our own deadline)
  const char* operation = "";  ///< the operation error_number came from; static storage; empty with error_number 0

  std::uint64_t received = 0;                   ///< bytes read from the kernel
  std::uint64_t handed_to_kernel = 0;           ///< bytes of ours the kernel took
  std::optional<std::uint64_t> unacknowledged;  ///< of those, bytes the peer's kernel had not acknowledged, where known
  std::uint64_t unsent = 0;                     ///< bytes given to send() that the kernel never took
  std::uint64_t left_unread = 0;                ///< bytes the kernel still held for us
  /// Bytes received that on_receive did not consume, or that came while closing; more than 4,294,967,295 are told as that many.
  std::uint64_t unconsumed = 0;

  /// Of heartbeat_lost: what the evidence says of the peer, and the evidence, where there was any. A Unix socket has some, too,
  /// but with `known` false: nothing of what TCP would know.
  std::optional<Verdict> verdict;
  std::optional<Evidence> evidence;

  Duration age{};      ///< from open (or from connect()) to the end
  Duration silence{};  ///< from the last byte received (or from open) to the end
};

/// One line, for people; counts that are zero or not known are left out after the first two:
/// `receive_timed_out (policy, open): received 120, handed to the kernel 4096, age 31.002 s, silent 30.001 s`.
[[nodiscard]] std::string describe(const CloseRecord& record);

/// One JSON object with every field of the record; null where a value is not known.
[[nodiscard]] std::string to_json(const CloseRecord& record);

}  // namespace vigil
