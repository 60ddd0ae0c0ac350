// What travels between simulated hosts, and between which ends.
//
// Thread: plain values.
#pragma once

#include <netinet/in.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vigil/address.hpp"
#include "vigil/time.hpp"

namespace vigil::sim {

/// Sixteen bytes; an IPv4 address as ::ffff:a.b.c.d.
struct Ip {
  std::uint64_t high = 0, low = 0;

  [[nodiscard]] static Ip of(const Address& address);
  [[nodiscard]] bool is_v4() const { return high == 0 && low >> 32 == 0xFFFF; }
  [[nodiscard]] bool is_any() const { return high == 0 && (low == 0 || low == 0xFFFF00000000); }
  [[nodiscard]] bool is_loopback() const { return high == 0 && (low == 1 || low >> 24 == 0xFFFF7F); }
  friend bool operator==(const Ip&, const Ip&) = default;
  friend auto operator<=>(const Ip&, const Ip&) = default;
};

struct Endpoint {
  Ip ip;
  std::uint16_t port = 0;

  [[nodiscard]] static Endpoint of(const sockaddr_storage& name);
  /// Writes it as the kernel does: no more than fits, and the true length.
  void write(int family, sockaddr* name, socklen_t* length) const;
  [[nodiscard]] std::string text() const;
  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

/// A connection as one of its hosts sees it.
struct Flow {
  Endpoint local, remote;
  friend bool operator==(const Flow&, const Flow&) = default;
};

struct FlowHash {
  std::size_t operator()(const Flow& flow) const {
    std::uint64_t hash = flow.local.ip.low * 31 + flow.remote.ip.low + flow.remote.ip.high * 7 + flow.local.ip.high * 3;
    hash = hash * 0x9E3779B97F4A7C15U + (std::uint64_t{flow.local.port} << 16 | flow.remote.port);
    return static_cast<std::size_t>(hash ^ hash >> 32);
  }
};

class ScriptedPeer;

/// What became of a conversation's calls and segments, of either side.
struct Struck {
  std::uint64_t faults = 0;
  std::uint64_t lost = 0;  // segments that never came
  Instant lost_at{};       // the last of them
  Instant slow_until{};    // one that was overtaken, or on its way for longer than slow_trip, comes then
};

/// What the two applications of a connection did and have, which no kernel knows of the other side.
struct Conversation {
  struct Side {
    std::uint64_t given = 0;       // to send
    std::uint64_t handed = 0;      // of it, to its kernel
    Instant handed_at{};           // the last of it
    bool finished = false;         // its end follows what was given
    bool was_reset = false;        // by this side
    std::uint64_t received = 0;    // read
    Instant received_at{};         // the last of it
    std::uint64_t room = 0;        // of its kernel, for more
    bool is_gone = false;          // its host knows the connection no more
    ScriptedPeer* peer = nullptr;  // if a script plays it
  };
  Side client, server;
  Struck struck;
};

struct Segment {
  Endpoint from, to;
  bool syn = false, ack = false, fin = false, reset = false;
  // Which life of these two ports it belongs to, as initial sequence numbers tell; 0: the sender does not know the other's yet.
  std::uint64_t from_incarnation = 0, to_incarnation = 0;
  bool asks = false;               // a probe: the answer is an acknowledgement
  std::uint64_t sequence = 0;      // of its first byte
  std::uint64_t acknowledged = 0;  // the byte expected next; the end counts as one
  std::uint64_t window = 0;
  std::string bytes{};
  std::vector<std::uint64_t> marks{};            // urgent marks: in front of these bytes
  std::shared_ptr<Conversation> conversation{};  // of a SYN
  // Timestamps (RFC 7323): what is acknowledged by an echo of its own departure was measured, sent once or often.
  Instant sent_at{}, echo{};

  [[nodiscard]] std::uint64_t end() const { return sequence + bytes.size(); }
  /// The RST with which who knows nothing of the connection, or wants nothing of it, answers this.
  [[nodiscard]] Segment refusal() const {
    return {.from = to,
            .to = from,
            .ack = true,
            .reset = true,
            .from_incarnation = to_incarnation,
            .to_incarnation = from_incarnation,
            .sequence = acknowledged,
            .acknowledged = end()};
  }
};

}  // namespace vigil::sim
