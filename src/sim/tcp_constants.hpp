// What Linux has built in for TCP, and what its simulation keeps of it.
#pragma once

#include <chrono>
#include <cstdint>

#include "vigil/time.hpp"

namespace vigil::sim {

inline constexpr std::uint64_t segment_bytes_max = 16 * 1024;                      // as an offloading sender cuts them
inline constexpr Duration shortest_rto = std::chrono::milliseconds(200);           // TCP_RTO_MIN
inline constexpr Duration longest_rto = std::chrono::seconds(120);                 // TCP_RTO_MAX
inline constexpr Duration first_rto = std::chrono::seconds(1);                     // TCP_TIMEOUT_INIT
inline constexpr int retries_max = 15;                                             // net.ipv4.tcp_retries2
inline constexpr int orphan_retries_max = 8;                                       // net.ipv4.tcp_orphan_retries
inline constexpr int syn_ack_retries = 5;                                          // net.ipv4.tcp_synack_retries
inline constexpr Duration time_wait_length = std::chrono::seconds(60);             // TCP_TIMEWAIT_LEN, and tcp_fin_timeout
inline constexpr Duration local_retry = std::chrono::milliseconds(500);            // TCP_RESOURCE_PROBE_INTERVAL
inline constexpr Duration local_retries_last = std::chrono::milliseconds(924600);  // as long as retries_max retransmissions
inline constexpr Duration slow_trip = shortest_rto / 2;                         // of a segment: longer, and its sender repeats it
inline constexpr Duration no_such_neighbour = std::chrono::milliseconds(3050);  // until the link's own search has failed

}  // namespace vigil::sim
