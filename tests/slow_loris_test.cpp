// Two thousand connections that trickle one byte a second, while fifty good clients work: the attackers are ended by the message
// or the rate deadline, on time, and the good ones are not touched. Prints what the good ones felt of it.
#include <doctest/doctest.h>

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/loopback.hpp"
#include "support/peer.hpp"
#include "support/recorder.hpp"
#include "support/seed.hpp"
#include "vigil/vigil.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Duration;
using vigil::Instant;
using vigil::Listener;
using vigil::ListenerOptions;
namespace test = vigil::test;

constexpr std::size_t attacker_count = 2000;
constexpr std::size_t client_count = 50;
constexpr Duration trickle = 1s;  // between two bytes of an attacker
constexpr Duration message_timeout = 2500ms;
constexpr vigil::Rate rate{.bytes_per_second = 100, .window = 1s, .grace = 1500ms};
constexpr Duration quiet = 1s;     // the good clients work alone for that long
constexpr Duration pace = 10ms;    // between two messages of a good client
constexpr Duration stall = 100ms;  // a loop that was kept from working for that long gives a rate another window

/// Which deadline is in an attacker's way: they take turns.
bool against_rate(std::size_t number) { return number % 2 != 0; }

/// What both sides saw of one attacker. Its number is its source address.
struct Attack {
  Instant first_sent{};      // just before its first byte was sent
  Instant first_received{};  // on entry to on_receive
  Instant told{};
  CloseRecord record{};
  int told_closed = 0;
};

std::array<std::uint8_t, 4> source_of(std::size_t number) {
  return {127, 2, static_cast<std::uint8_t>(number >> 8), static_cast<std::uint8_t>(number)};
}

bool is_attacker(const vigil::Address& address) { return address.ip()[1] == 2; }

std::size_t number_of(const vigil::Address& address) {
  return static_cast<std::size_t>(address.ip()[2]) << 8 | static_cast<std::size_t>(address.ip()[3]);
}

test::Peer connected_from(const std::array<std::uint8_t, 4>& source, const vigil::Address& target) {
  const test::RawAddress from(vigil::Address::from_ipv4(source, 0));
  const test::RawAddress to(target);
  const int descriptor = to.open();
  REQUIRE(descriptor >= 0);
  REQUIRE(::bind(descriptor, from.get(), from.length) == 0);
  REQUIRE(::connect(descriptor, to.get(), to.length) == 0);
  return test::Peer(descriptor);
}

enum Phase : int { alone, attacked, afterwards };
constexpr int phase_count = afterwards + 1;

/// What is shared by the reactor and the threads of those who connect to it.
struct Scene {
  std::vector<Attack> attacks{attacker_count};
  std::atomic<std::size_t> attackers_told = 0;
  std::atomic<int> phase = alone;
  std::atomic<bool> over = false;
  std::vector<CloseRecord> good_ends;  // the reactor's thread's
};

/// A server whose message is a line, which it sends back.
struct LineEcho {
  Scene* scene;
  Attack* attack;  // null: a good client

  void on_open(Connection& connection) { connection.end_message(); }

  void on_receive(Connection& connection, Bytes bytes) {
    if (attack != nullptr && attack->first_received == Instant{}) attack->first_received = test::now();
    if (!bytes.text().ends_with('\n')) return;
    connection.send(bytes);
    connection.end_message();
  }

  void on_close(Connection&, const CloseRecord& record) {
    test::report_reason(record);
    if (attack == nullptr) return scene->good_ends.push_back(record);
    attack->told = test::now();
    attack->record = record;
    ++attack->told_closed;
    ++scene->attackers_told;
  }
};

/// Both ends of every connection are descriptors of this process.
class EnoughDescriptors {
 public:
  static constexpr rlim_t needed = 2 * (attacker_count + client_count) + 100;

  EnoughDescriptors() {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    rlimit more = before_;
    more.rlim_cur = std::max(before_.rlim_cur, std::min(before_.rlim_max, needed));
    are_there = more.rlim_cur >= needed && ::setrlimit(RLIMIT_NOFILE, &more) == 0;
  }
  ~EnoughDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  EnoughDescriptors(const EnoughDescriptors&) = delete;
  EnoughDescriptors& operator=(const EnoughDescriptors&) = delete;

  bool are_there = false;

 private:
  rlimit before_{};
};

/// Connects the attackers one after another and lets each send a byte, and one a second after that.
void attack(Scene& scene, const vigil::Address& message_address, const vigil::Address& rate_address, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<test::Peer> peers;
  std::vector<Instant> next(attacker_count);
  const auto trickle_to = [&](std::size_t number) {
    (void)peers[number].send_some("x");
    next[number] = test::now() + trickle - 100ms + std::chrono::milliseconds(random() % 200);
  };
  const auto trickle_all = [&] {
    for (std::size_t number = 0; number < peers.size(); ++number)
      if (next[number] <= test::now()) trickle_to(number);
  };
  while (peers.size() < attacker_count) {
    const std::size_t number = peers.size();
    peers.push_back(connected_from(source_of(number), against_rate(number) ? rate_address : message_address));
    scene.attacks[number].first_sent = test::now();
    trickle_to(number);
    if (number % 8 == 0) ::poll(nullptr, 0, 1);
    if (number % 64 == 0) trickle_all();
  }
  const Instant give_up = test::now() + std::chrono::milliseconds(test::patience_ms);
  while (scene.attackers_told < attacker_count && test::now() < give_up) {
    trickle_all();
    ::poll(nullptr, 0, 2);
  }
}

struct Felt {
  std::array<std::vector<Duration>, phase_count> latencies;  // by the phase in which the message was due
  int wrong = 0;                                             // replies that were not what was sent, or ends
};

/// Fifty clients that send a line every ten milliseconds and wait for it to come back. Latency counts from when it was due.
void work(Scene& scene, const vigil::Address& message_address, const vigil::Address& rate_address, Felt& felt) {
  struct Client {
    test::Peer peer;
    Instant due{};
    int phase = alone;
    bool waits = false;
  };
  std::vector<Client> clients;
  const std::string line = std::string(63, 'g') + '\n';
  for (std::size_t index = 0; index < client_count; ++index)
    clients.push_back({.peer = test::Peer(index % 2 != 0 ? rate_address : message_address),
                       .due = test::now() + pace * static_cast<int>(index) / static_cast<int>(client_count)});
  std::vector<pollfd> waits(client_count);
  while (!scene.over) {
    Instant wake = test::now() + 10ms;
    for (Client& client : clients) {
      if (!client.waits && client.due <= test::now()) {
        client.phase = scene.phase;
        client.waits = client.peer.send_some(line) == line.size();
        if (!client.waits) ++felt.wrong;
      }
      if (!client.waits) wake = std::min(wake, client.due);
    }
    for (std::size_t index = 0; index < client_count; ++index) waits[index] = {clients[index].peer.descriptor(), POLLIN, 0};
    const Duration left = std::max<Duration>(wake - test::now(), 0ns);
    const timespec timeout{0, static_cast<long>(left.count())};
    ::ppoll(waits.data(), waits.size(), &timeout, nullptr);
    for (std::size_t index = 0; index < client_count; ++index) {
      Client& client = clients[index];
      if (waits[index].revents == 0) continue;
      client.peer.read();
      if (client.peer.finished || client.peer.error != 0) return void(++felt.wrong);
      if (client.peer.received.size() < line.size()) continue;
      const Instant now = test::now();
      if (client.peer.received != line) ++felt.wrong;
      felt.latencies[static_cast<std::size_t>(client.phase)].push_back(now - client.due);
      client.peer.received.clear();
      client.waits = false;
      client.due += pace;
    }
  }
  // What is still owed is read: a socket closed before would be reset.
  for (Client& client : clients) client.peer.finish();
  for (Client& client : clients) {
    pollfd wait{client.peer.descriptor(), POLLIN, 0};
    while (!client.peer.read().finished && client.peer.error == 0)
      if (::poll(&wait, 1, test::patience_ms) <= 0) return void(++felt.wrong);
  }
}

double milliseconds_at(std::vector<Duration>& durations, double share) {
  if (durations.empty()) return 0;
  std::sort(durations.begin(), durations.end());
  const auto index = static_cast<std::size_t>(share * static_cast<double>(durations.size() - 1));
  return static_cast<double>(durations[index].count()) / 1e6;
}

}  // namespace

TEST_SUITE("threads") {
  TEST_CASE("two thousand slow attackers end on time with the reason that is theirs, and no good client is closed") {
    const std::uint64_t seed = test::seed_of("the slow attackers");
    CAPTURE(seed);
    const EnoughDescriptors enough;
    if (!enough.are_there) {
      std::printf("SKIPPED: two thousand slow attackers: needs %ju descriptors\n",
                  static_cast<std::uintmax_t>(EnoughDescriptors::needed));
      return;
    }
    Scene scene;
    vigil::Reactor reactor;
    const auto make = [&scene](Connection& connection) {
      const vigil::Address peer = connection.peer();
      return LineEcho{&scene, is_attacker(peer) ? &scene.attacks[number_of(peer)] : nullptr};
    };
    Listener<LineEcho> by_message(reactor, {.timeouts = {.message = message_timeout}}, make);
    Listener<LineEcho> by_rate(reactor, {.timeouts = {.receive_rate = rate}}, make);
    REQUIRE(by_message.listen(test::loopback()));
    REQUIRE(by_rate.listen(test::loopback()));
    const vigil::Address message_address = *by_message.address();
    const vigil::Address rate_address = *by_rate.address();

    Felt felt;
    std::thread good([&] { work(scene, message_address, rate_address, felt); });
    std::thread bad;
    const Instant begin = test::now();
    Instant ended{};
    while (test::now() - begin < std::chrono::milliseconds(test::patience_ms)) {
      REQUIRE(reactor.turn(10ms));
      if (scene.phase == alone && test::now() - begin >= quiet) {
        scene.phase = attacked;
        bad = std::thread([&] { attack(scene, message_address, rate_address, seed); });
      }
      if (scene.phase == attacked && scene.attackers_told == attacker_count) {
        scene.phase = afterwards;
        ended = test::now();
      }
      if (scene.phase == afterwards && test::now() - ended >= quiet) break;
    }
    CHECK(scene.good_ends.empty());
    scene.over = true;
    const Instant give_up = test::now() + std::chrono::milliseconds(test::patience_ms);
    while (scene.good_ends.size() < client_count && test::now() < give_up) REQUIRE(reactor.turn(10ms));
    good.join();
    if (bad.joinable()) bad.join();

    CHECK(felt.wrong == 0);
    REQUIRE(scene.good_ends.size() == client_count);
    for (const CloseRecord& record : scene.good_ends) CHECK(record.reason == CloseReason::peer_finished);

    // A loop that itself was late is late with what it tells, at each of the looks a window needs; how much, it has counted.
    const auto worst = Duration(static_cast<std::int64_t>(reactor.counters().loop_delay_ns_max));
    const Duration at_most = 500ms + 3 * worst + (worst >= stall ? 2 * rate.window : 0ns);
    std::vector<Duration> late;
    std::size_t untold = 0, wrong_reason = 0, early = 0, too_late = 0;
    for (std::size_t number = 0; number < attacker_count; ++number) {
      const Attack& attack = scene.attacks[number];
      if (attack.told_closed != 1) {
        ++untold;
        continue;
      }
      const CloseReason own = against_rate(number) ? CloseReason::receive_too_slow : CloseReason::message_timed_out;
      if (attack.record.reason != own) ++wrong_reason;
      const Duration allowed = against_rate(number) ? rate.grace + rate.window : message_timeout;
      if (attack.told < attack.first_sent + allowed) ++early;
      if (attack.told > attack.first_received + allowed + at_most) ++too_late;
      late.push_back(attack.told - attack.first_sent - allowed);
    }
    CHECK(untold == 0);
    CHECK(wrong_reason == 0);
    CHECK(early == 0);
    CHECK(too_late == 0);

    std::printf("%zu slow attackers: told late by p50 %.2f ms, p99 %.2f ms, max %.2f ms; worst loop delay %.2f ms\n", late.size(),
                milliseconds_at(late, 0.5), milliseconds_at(late, 0.99), milliseconds_at(late, 1),
                static_cast<double>(worst.count()) / 1e6);
    const char* names[] = {"without the attack", "with the attack", "after the attack"};
    for (std::size_t phase = 0; phase < phase_count; ++phase) {
      auto& latencies = felt.latencies[phase];
      CHECK(!latencies.empty());
      std::printf("%zu good clients %s: %zu messages, p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", client_count, names[phase],
                  latencies.size(), milliseconds_at(latencies, 0.5), milliseconds_at(latencies, 0.99),
                  milliseconds_at(latencies, 1));
    }
  }
}
