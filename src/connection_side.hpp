// What few connections need: reading paused, bytes left by on_receive, marked messages, rates. In a block of its own, so that an
// idle connection pays a pointer for it.
//
// Thread: the reactor's. Ownership: the connection's, from the first need to the end of its life.
#pragma once

#include <cstdint>

#include "reactor_core.hpp"
#include "vigil/time.hpp"

namespace vigil {

/// One window of a Rate after the other: by `end` the count is to have reached `target`.
struct RateWindow {
  Instant end = never_due;  // never_due: no window is open yet
  Instant opens_at{};       // then the next one opens here at the earliest
  std::uint64_t target = 0;

  [[nodiscard]] bool is_open() const { return end != never_due; }
  void close_until(Instant next) {
    end = never_due;
    opens_at = next;
  }
};

struct ConnectRetry;

struct ConnectionSide {
  Instant paused_at{};  // while reading is held, by whatever

  // The receive and first_byte deadlines run from `counted_from` as long as the last byte is the one received at `counted_for`:
  // later than that byte, if reading was paused since, or the handler gave more time.
  Instant counted_from{};
  Instant counted_for = never_due;

  Instant message_began{};               // without meaning while the connection awaits a message
  Duration message_given{};              // beyond its timeout: by the handler, or for the time the loop stood still
  std::uint64_t received_before = 0;     // Connection::received_ when the message began
  RateWindow received;                   // of Connection::received_
  RateWindow acknowledged;               // of acknowledged_bytes
  std::uint64_t acknowledged_bytes = 0;  // at the last sample

  ConnectRetry* retry = nullptr;  // of an attempt that a Unix listener's full queue refused

  /// What a deadline that was found due waits for.
  struct Judging {
    bool begun = false;
    bool awaits_end = false;      // all was read, and what ended the stream behind it has one turn more
    std::uint64_t read_upto = 0;  // Connection::received_ when all was read that had come
  };
  Judging judging;

  SendChunk* tail = nullptr;  // what on_receive left
  std::uint32_t tail_bytes = 0;
};

static_assert(sizeof(ConnectionSide) <= ReactorCore::side_block_bytes);

}  // namespace vigil
