// What lies behind one descriptor of the simulated world: above all a socket's two streams. It answers calls and tells its state;
// who is told of a change, and when, is decided elsewhere (epoll_registrations.hpp).
//
// As the kernel does it: an error is handed out once, to whoever asks first, be it recv, send or SO_ERROR; afterwards recv says
// "orderly end" and send says EPIPE.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sys/sys.hpp"

namespace vigil::sys {

/// What a peer put into a stream, in order.
struct Arrival {
  enum class Kind : std::uint8_t {
    bytes,
    endless_bytes,  ///< every recv fills its buffer
    mark,           ///< a recv that took something stops here (an urgent mark, a Unix socket's ancillary data)
    hiccup,         ///< one recv fails with `error` and nothing else has happened (EINTR, EAGAIN)
    end,            ///< the peer's FIN
    error,          ///< the connection's error: the peer's RST, or the network's
  };
  Kind kind = Kind::bytes;
  std::string bytes{};
  int error = 0;
};

struct SimulatedDescriptor {
  enum class Kind : std::uint8_t { socket, epoll, wake, signal, reserve, other };
  enum class Stage : std::uint8_t { fresh, listening, connecting, connected, refused };

  Kind kind = Kind::other;
  int family = 0;
  int type = 0;
  int flags = O_RDWR | O_NONBLOCK;
  std::map<std::pair<int, int>, std::vector<std::byte>> options;

  Stage stage = Stage::fresh;
  sockaddr_storage local{};
  socklen_t local_length = 0;  // 0: not bound
  sockaddr_storage remote{};
  socklen_t remote_length = 0;  // 0: no peer

  // Of a listener: numbers of connections that wait, or the negated errno of a call that fails.
  std::deque<int> waiting;

  // Of a connection.
  std::deque<Arrival> arrivals;
  int connect_error = 0;  // a refused one's, until it was handed out
  bool dead = false;      // its error was handed out
  bool receive_shut = false;
  bool send_shut = false;
  std::string sent;
  std::size_t room = unlimited;  // bytes the send buffer still takes
  std::deque<int> send_errors;
  bool acknowledges_at_once = true;
  std::size_t acknowledged = 0;  // of `sent`, and of our end as one byte more
  std::optional<TcpSample> scripted_sample;
  bool ended_by_reset = false;  // closed so that the peer sees an RST

  // Of a wake-up descriptor: how often it was signalled. Of a signal's: which one it is, and how many wait to be taken. Of
  // anything else: what the script says of its state.
  std::uint64_t signalled = 0;
  int signal_number = 0;
  std::uint32_t scripted_state = 0;

  static constexpr std::size_t unlimited = SIZE_MAX;

  /// What there is to say, in poll(2)'s bits and POLLRDHUP.
  [[nodiscard]] std::uint32_t state() const;

  [[nodiscard]] ssize_t receive(void* buffer, std::size_t size);
  [[nodiscard]] ssize_t send(const iovec* pieces, std::size_t count);
  [[nodiscard]] int shutdown(int how);
  /// SO_ERROR: the error, once.
  [[nodiscard]] int take_error();
  [[nodiscard]] int unread() const;
  [[nodiscard]] int unsent() const;
  [[nodiscard]] TcpSample sample() const;
  /// What the peer sees when this is closed now: an RST if asked for (SO_LINGER 0) or if something was left unread.
  [[nodiscard]] bool would_reset() const;

 private:
  [[nodiscard]] int take_arrived_error();
  [[nodiscard]] bool has_arrived(Arrival::Kind kind) const;
};

}  // namespace vigil::sys
