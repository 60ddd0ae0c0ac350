// A storm: thousands of short lives in random order, most of them cut off, and what both sides of each one saw.
//
// Every life has a source address of its own, which is its number: the server's side knows whose end it is told, and no port is
// needed twice. The clients are plain kernel sockets driven by one thread, so many at a time and no more; a reset leaves nothing
// behind, an orderly end one TIME_WAIT on the client's side.
//
//   test::Storm storm(seed);
//   Listener<test::StormHandler> listener(reactor, options, [&](Connection& connection) {
//     return test::StormHandler(storm, test::Storm::number_of(connection.peer()));
//   });
//   ... the reactor runs on a thread of its own ...
//   storm.blow(address);                                // returns when every life has been told, or patience ended
//   CHECK(storm.problems() == "");                      // after the reactor's thread was joined
#pragma once

#include <doctest/doctest.h>

#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "loopback.hpp"
#include "peer.hpp"
#include "reasons.hpp"
#include "vigil/vigil.hpp"

namespace vigil::test {

/// What a life's client does.
enum class Deed : std::uint8_t {
  connect_and_reset,
  connect_and_close,
  half_close,                     ///< and reads to the server's end
  data_then_reset,                ///< what the kernel takes at once
  data_then_close,                ///< without reading the echo: the client's kernel may reset
  data_then_half_close,           ///< and reads the echo, which it is owed, to the server's end
  data_then_half_close_and_reset  ///< while it may be owed the echo
};
inline constexpr std::size_t deed_count = 7;

/// The storm's own record of one life. The client's thread writes the first part, the reactor's thread the second.
struct StormLife {
  Deed deed{};
  std::uint32_t planned = 0;       ///< bytes to send
  std::uint32_t sent = 0;          ///< taken by the client's kernel
  std::uint32_t acknowledged = 0;  ///< of those, by the server's kernel before the client let go
  std::uint32_t echoed = 0;        ///< read back
  const char* client_problem = "";

  std::uint32_t told_open = 0;
  std::uint32_t told_closed = 0;
  bool bytes_right = true;  ///< what on_receive was given is what the client sends at that place
  CloseRecord record{};
};

class Storm {
 public:
  static constexpr std::size_t lives_count = 20'000;

  explicit Storm(std::uint64_t seed) : lives(lives_count), text_(pattern(largest + offsets)) {
    std::mt19937_64 random(seed);
    for (std::size_t number = 0; number < lives.size(); ++number) lives[number].deed = static_cast<Deed>(number % deed_count);
    std::shuffle(lives.begin(), lives.end(), random);
    for (StormLife& life : lives) {
      if (life.deed < Deed::data_then_reset) continue;
      // Most are a message, some fill a window, a few fill all the buffers there are.
      const std::size_t most = random() % 32 != 0 ? 512 : random() % 8 != 0 ? 32 * 1024 : largest;
      life.planned = static_cast<std::uint32_t>(1 + random() % most);
    }
  }

  /// Lives every life against the listeners at `address`, on the calling thread.
  void blow(const Address& address);
  /// One line for each life that went wrong, the first few; empty: none did.
  [[nodiscard]] std::string problems() const;

  /// What life `number` sends at `position`.
  [[nodiscard]] const char* bytes(std::size_t number, std::size_t position) const {
    return text_.data() + number % offsets + position;
  }
  static std::array<std::uint8_t, 4> address_of(std::size_t number) {
    return {127, 1, static_cast<std::uint8_t>(number >> 8), static_cast<std::uint8_t>(number)};
  }
  static std::size_t number_of(const Address& address) {
    return static_cast<std::size_t>(address.ip()[2]) << 8 | static_cast<std::size_t>(address.ip()[3]);
  }

  std::vector<StormLife> lives;
  std::atomic<std::size_t> told = 0;
  std::atomic<int> handlers = 0;  ///< alive now

 private:
  static constexpr std::size_t largest = 256 * 1024;
  static constexpr std::size_t offsets = 4096;
  static constexpr std::size_t clients_at_once = 256;
  static constexpr std::size_t untold_at_once = 512;  // far below any accept queue, which would drop what does not fit

  /// Keeps the calling thread on its processor: packets of one connection that left from two might overtake each other on
  /// loopback, and a reset that overtakes the end of its handshake is one the server never hears of.
  class OneProcessor {
   public:
    OneProcessor() {
      REQUIRE(::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) == 0);
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
      REQUIRE(::pthread_setaffinity_np(::pthread_self(), sizeof one, &one) == 0);
    }
    ~OneProcessor() { ::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_); }
    OneProcessor(const OneProcessor&) = delete;
    OneProcessor& operator=(const OneProcessor&) = delete;

   private:
    cpu_set_t before_{};
  };

  /// The client of one life, while it lives.
  struct Client {
    std::size_t number = 0;
    int descriptor = -1;
    short waits_for = POLLOUT;
    bool connected = false;
  };

  [[nodiscard]] Client begin(std::size_t number, const RawAddress& server);
  void step(Client& client);
  void act(Client& client, StormLife& life);
  void send_all(Client& client, StormLife& life);
  void read_to_end(Client& client, StormLife& life);
  [[nodiscard]] static const char* problem_of(const StormLife& life);

  static void half_close(Client& client) {
    ::shutdown(client.descriptor, SHUT_WR);
    client.waits_for = POLLIN;
  }
  static void close(Client& client) { ::close(std::exchange(client.descriptor, -1)); }
  static void reset(Client& client, StormLife& life) {
    int outstanding = 0;
    ::ioctl(client.descriptor, SIOCOUTQ, &outstanding);
    life.acknowledged = life.sent - std::min(life.sent, static_cast<std::uint32_t>(outstanding));
    const linger at_once{1, 0};
    ::setsockopt(client.descriptor, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(client);
  }

  std::string text_;
};

/// Echoes, and writes down what it is told.
class StormHandler {
 public:
  StormHandler(Storm& storm, std::size_t number) : storm_(storm), number_(number) { ++storm_.handlers; }
  ~StormHandler() { --storm_.handlers; }
  StormHandler(const StormHandler&) = delete;
  StormHandler& operator=(const StormHandler&) = delete;

  void on_open(Connection&) { ++life().told_open; }
  void on_receive(Connection& connection, Bytes bytes) {
    const bool right = position_ + bytes.size() <= life().planned &&
                       std::memcmp(bytes.data(), storm_.bytes(number_, position_), bytes.size()) == 0;
    life().bytes_right = life().bytes_right && right && life().told_closed == 0;
    position_ += bytes.size();
    connection.send(bytes);
  }
  void on_close(Connection&, const CloseRecord& record) {
    life().bytes_right = life().bytes_right && position_ == record.received;
    ++life().told_closed;
    life().record = record;
    storm_.told.fetch_add(1, std::memory_order_release);
  }

 private:
  [[nodiscard]] StormLife& life() { return storm_.lives[number_]; }

  Storm& storm_;
  std::size_t number_;
  std::size_t position_ = 0;
};

inline void Storm::blow(const Address& address) {
  const OneProcessor here;
  const RawAddress server(address);
  std::vector<Client> clients;
  std::vector<pollfd> waits;
  std::size_t begun = 0, told_before = 0;
  auto progress = std::chrono::steady_clock::now();
  while (told.load(std::memory_order_acquire) < lives.size() || !clients.empty()) {
    while (begun < lives.size() && clients.size() < clients_at_once && begun - told < untold_at_once)
      clients.push_back(begin(begun++, server));
    waits.clear();
    for (const Client& client : clients) waits.push_back({client.descriptor, client.waits_for, 0});
    ::poll(waits.data(), waits.size(), 1);
    for (std::size_t index = 0; index < clients.size(); ++index)
      if (waits[index].revents != 0) step(clients[index]);
    std::erase_if(clients, [](const Client& client) { return client.descriptor < 0; });

    const auto now = std::chrono::steady_clock::now();
    if (told != std::exchange(told_before, told)) progress = now;
    if (now - progress > std::chrono::milliseconds(patience_ms)) break;
  }
  for (Client& client : clients) close(client);
}

inline Storm::Client Storm::begin(std::size_t number, const RawAddress& server) {
  Client client{number, ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  const RawAddress source(Address::from_ipv4(address_of(number), 0));
  const int port_with_connect = 1;
  ::setsockopt(client.descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &port_with_connect, sizeof port_with_connect);
  const bool bound = ::bind(client.descriptor, source.get(), source.length) == 0;
  if (!bound || (::connect(client.descriptor, server.get(), server.length) != 0 && errno != EINPROGRESS))
    lives[number].client_problem = "could not begin to connect";
  return client;
}

inline void Storm::step(Client& client) {
  StormLife& life = lives[client.number];
  if (client.connected) return client.waits_for == POLLOUT ? send_all(client, life) : read_to_end(client, life);
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(client.descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) {
    life.client_problem = "its connect failed";
    return close(client);
  }
  client.connected = true;
  act(client, life);
}

inline void Storm::act(Client& client, StormLife& life) {
  switch (life.deed) {
    case Deed::connect_and_reset:
      return reset(client, life);
    case Deed::connect_and_close:
      return close(client);
    case Deed::half_close:
      return half_close(client);
    default:
      return send_all(client, life);
  }
}

inline void Storm::send_all(Client& client, StormLife& life) {
  const ssize_t taken =
      ::send(client.descriptor, bytes(client.number, life.sent), life.planned - life.sent, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (taken < 0 && errno != EAGAIN) {
    life.client_problem = "its send failed, though nobody but itself may end it";
    return close(client);
  }
  life.sent += taken > 0 ? static_cast<std::uint32_t>(taken) : 0;
  if (life.deed == Deed::data_then_reset) return reset(client, life);
  if (life.sent < life.planned) return;
  if (life.deed == Deed::data_then_close) return close(client);
  half_close(client);
  if (life.deed == Deed::data_then_half_close_and_reset) reset(client, life);
}

inline void Storm::read_to_end(Client& client, StormLife& life) {
  std::array<char, 64 * 1024> room;
  const ssize_t size = ::recv(client.descriptor, room.data(), room.size(), MSG_DONTWAIT);
  if (size < 0 && errno == EAGAIN) return;
  if (size < 0) life.client_problem = "it was reset before the server's end";
  if (size <= 0) return close(client);
  const auto count = static_cast<std::size_t>(size);
  if (life.echoed + count > life.sent || std::memcmp(room.data(), bytes(client.number, life.echoed), count) != 0)
    life.client_problem = "it read what it had not sent";
  life.echoed += static_cast<std::uint32_t>(count);
}

inline const char* Storm::problem_of(const StormLife& life) {
  const CloseRecord& record = life.record;
  const bool finished = record.reason == CloseReason::peer_finished;
  const bool was_reset = record.reason == CloseReason::peer_reset;
  const std::uint64_t owed = record.unsent + record.unacknowledged.value_or(0);
  if (*life.client_problem != '\0') return life.client_problem;
  if (life.told_open != 1) return "it was not opened once";
  if (life.told_closed != 1) return "it was not closed once";
  switch (life.deed) {
    case Deed::connect_and_reset:
    case Deed::data_then_reset:
      if (!was_reset) return "it was a reset";
      break;
    case Deed::connect_and_close:
    case Deed::half_close:
    case Deed::data_then_half_close:
      if (!finished) return "it was an orderly end";
      break;
    case Deed::data_then_close:  // a reset instead of the end, or behind it, where the echo meets nobody who reads it
      if (!finished && !was_reset) return "it was an orderly end, or a reset";
      break;
    case Deed::data_then_half_close_and_reset:
      if (!finished && !(was_reset && owed > 0)) return "it was a reset if it was owed something, else an orderly end";
      break;
  }
  if (finished && record.unsent != 0) return "it was owed bytes that were never sent: that is no orderly end";
  if (!life.bytes_right) return "other bytes were received than sent";
  if (record.received > life.sent || record.received < life.acknowledged) return "bytes that arrived were not received";
  if (finished && record.received != life.sent) return "an end was told before the bytes in front of it";
  if (life.deed == Deed::data_then_half_close && life.echoed != life.sent) return "it was not sent all it was owed";
  if (record.handed_to_kernel + record.unsent != record.received) return "the record's sums are wrong";
  if (record.left_unread != 0 || record.unconsumed != 0) return "bytes were left unread";
  return nullptr;
}

inline std::string Storm::problems() const {
  std::string lines;
  for (std::size_t number = 0, told_of = 0; number < lives.size() && told_of < 10; ++number) {
    const StormLife& life = lives[number];
    const char* problem = problem_of(life);
    if (problem == nullptr) continue;
    ++told_of;
    lines += "life " + std::to_string(number) + " (deed " + std::to_string(static_cast<int>(life.deed)) + ", sent " +
             std::to_string(life.sent) + ", acknowledged " + std::to_string(life.acknowledged) + ", echoed " +
             std::to_string(life.echoed) + "): " + problem + ": " + describe(life.record) + "\n";
  }
  return lines;
}

}  // namespace vigil::test
