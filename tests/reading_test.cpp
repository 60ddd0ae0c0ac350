// Reading that is held, and bytes that on_receive leaves, on the kernel's own sockets, TCP and Unix.
#include <doctest/doctest.h>
#include <sys/un.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <utility>

#include "support/recorder.hpp"
#include "support/seed.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::ListenerOptions;
using vigil::WhenBacklogged;
namespace test = vigil::test;

/// One that wants to know of a peer that is gone while it does not read.
struct Watchful : test::Recorder {
  using Recorder::Recorder;
  void on_peer_gone_while_paused(Connection& connection) {
    ++gone;
    CHECK(connection.is_reading_paused());
  }
  int gone = 0;
};

/// A Unix address of this process alone, which no file keeps.
struct UnixAddress {
  std::string name = "vigil-reading-" + std::to_string(::getpid());
  [[nodiscard]] Address address() const { return Address::from_unix_abstract(name); }

  /// A plain socket that is connected there.
  [[nodiscard]] test::Peer connect() const {
    sockaddr_un raw{};
    raw.sun_family = AF_UNIX;
    REQUIRE(name.size() + 1 < sizeof raw.sun_path);
    std::memcpy(raw.sun_path + 1, name.data(), name.size());
    const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(descriptor >= 0);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    REQUIRE(::connect(descriptor, reinterpret_cast<const sockaddr*>(&raw), length) == 0);
    return test::Peer(descriptor);
  }
};

enum class Over { tcp, unix_socket };
constexpr Over both_families[] = {Over::tcp, Over::unix_socket};

/// One connection of a listener, and its peer.
template <class Handler = Watchful>
struct Scene : test::Served<Handler> {
  explicit Scene(Over over, const ListenerOptions& options = {}, int peer_receive_buffer = 0)
      : test::Served<Handler>(options, {}, over == Over::tcp ? test::loopback() : UnixAddress().address()),
        peer(over == Over::tcp ? test::Peer(*this->listener.address(), peer_receive_buffer) : UnixAddress().connect()) {
    REQUIRE(this->turn_until([this] { return this->log.opened == 1; }));
  }

  [[nodiscard]] Handler& handler() { return this->connection().template handler<Handler>(); }
  /// What the peer sent is in the kernel and will stay there.
  void wait_for_unread(std::size_t size) {
    REQUIRE(test::wait_for_unread(this->connection().descriptor(), static_cast<int>(size)));
  }
  /// A stretch of real time in which nobody has anything to do: none of the waits returns before its end.
  void check_rests() {
    const std::uint64_t receives = this->reactor.counters().receive_calls;
    const std::uint64_t events = this->reactor.counters().events;
    const vigil::Instant end = test::now() + 50ms;
    int turns = 0;
    for (; test::now() < end; ++turns) REQUIRE(this->reactor.turn(end - test::now() > 0ns ? end - test::now() : 0ns));
    CHECK(turns <= 4);
    CHECK(this->reactor.counters().receive_calls == receives);
    CHECK(this->reactor.counters().events == events);
  }

  test::Peer peer;
};

// Pausing --------------------------------------------------------------------------------------------------------------------

TEST_CASE("while reading is paused the kernel holds what the peer sends, and nobody spins; afterwards all of it comes") {
  for (const Over over : both_families) {
    CAPTURE(static_cast<int>(over));
    Scene scene(over);
    const std::string bytes = test::pattern(300'000);
    scene.log.at_receive = [](Connection& connection, Bytes) { CHECK(connection.pause_reading()); };
    std::size_t sent = scene.peer.send_some(bytes);
    REQUIRE(scene.turn_until([&] { return !scene.log.received.empty(); }));
    const std::size_t first = scene.log.received.size();
    while (const std::size_t more = scene.peer.send_some(std::string_view(bytes).substr(sent))) sent += more;
    REQUIRE(scene.turn_until([] { return true; }));
    REQUIRE(scene.reactor.turn(0ns));
    scene.check_rests();
    CHECK(scene.log.received.size() == first);
    scene.log.at_receive = nullptr;
    CHECK(scene.connection().resume_reading());
    REQUIRE(scene.turn_until([&] {
      if (sent < bytes.size()) sent += scene.peer.send_some(std::string_view(bytes).substr(sent));
      return scene.log.received.size() == bytes.size();
    }));
    CHECK(test::same(scene.log.received, bytes));
  }
}

enum class Goes { finishes, resets, finishes_and_resets };

void check_departure(Over over, Goes goes, bool sends, bool resumes) {
  CAPTURE(static_cast<int>(over));
  CAPTURE(static_cast<int>(goes));
  CAPTURE(sends);
  CAPTURE(resumes);
  Scene scene(over);
  CHECK(scene.connection().pause_reading());
  if (sends) {
    scene.peer.send("farewell");
    scene.wait_for_unread(8);
  }
  if (goes != Goes::resets) scene.peer.finish();
  if (goes == Goes::finishes_and_resets) REQUIRE(test::wait_for(scene.connection().descriptor(), POLLRDHUP));
  if (goes != Goes::finishes) scene.peer.reset();
  REQUIRE(scene.turn_until([&] { return scene.handler().gone == 1; }));
  if (goes != Goes::finishes) REQUIRE(test::wait_for(scene.connection().descriptor(), POLLHUP));
  REQUIRE(scene.reactor.turn(0ns));
  scene.check_rests();
  CHECK(scene.handler().gone == 1);
  REQUIRE(scene.log.closed.empty());
  CHECK((resumes ? scene.connection().resume_reading() : scene.connection().close()));
  const CloseRecord& record = scene.end();
  const std::size_t size = sends ? 8 : 0;
  CHECK(record.reason == (goes == Goes::resets ? CloseReason::peer_reset : CloseReason::peer_finished));
  CHECK(record.received == (resumes ? size : 0));
  CHECK(record.left_unread == (resumes ? 0 : size));
  CHECK(scene.log.received == (resumes && sends ? "farewell" : ""));
}

TEST_CASE("a peer that goes while reading is paused is told of once; its record follows a resume, or a close at once") {
  for (const bool sends : {false, true})
    for (const bool resumes : {false, true}) {
      for (const Goes goes : {Goes::finishes, Goes::resets, Goes::finishes_and_resets})
        check_departure(Over::tcp, goes, sends, resumes);
      check_departure(Over::unix_socket, Goes::finishes, sends, resumes);
    }
}

TEST_CASE("a Unix peer that closes with our bytes unread has reset; what it sent before comes first") {
  Scene scene(Over::unix_socket);
  CHECK(scene.connection().pause_reading());
  CHECK(scene.connection().send("never read"));
  REQUIRE(scene.turn_until([&] { return scene.connection().handed_to_kernel() == 10; }));
  scene.peer.send("farewell");
  scene.peer.close();
  REQUIRE(scene.turn_until([&] { return scene.handler().gone == 1; }));
  REQUIRE(scene.log.closed.empty());
  CHECK(scene.connection().resume_reading());
  CHECK(scene.end().reason == CloseReason::peer_reset);
  CHECK(scene.log.received == "farewell");
}

TEST_CASE("a reset behind the peer's end, both while reading is paused, is a reset if anything of ours was owed") {
  Scene scene(Over::tcp, {}, 4096);
  CHECK(scene.connection().pause_reading());
  CHECK(scene.connection().send(test::pattern(4 * 1024 * 1024)));  // more than the peer's kernel takes
  scene.peer.send("farewell");
  scene.peer.finish();
  REQUIRE(scene.turn_until([&] { return scene.handler().gone == 1; }));
  scene.peer.reset();
  REQUIRE(scene.turn_until([&] { return test::wait_for(scene.connection().descriptor(), POLLHUP); }));
  CHECK(scene.connection().resume_reading());
  const CloseRecord& record = scene.end();
  CHECK(scene.log.received == "farewell");
  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(record.unsent + record.unacknowledged.value_or(0) > 0);
  CHECK(scene.log.closed.size() == 1);
}

TEST_CASE("an urgent byte that came while reading was paused hides nothing behind it") {
  Scene scene(Over::tcp);
  CHECK(scene.connection().pause_reading());
  scene.peer.send("before ");
  scene.peer.send_urgent('!');
  scene.peer.send("behind");
  scene.wait_for_unread(13);
  REQUIRE(scene.reactor.turn(0ns));
  CHECK(scene.connection().resume_reading());
  REQUIRE(scene.turn_until([&] { return scene.log.received.ends_with("behind"); }));
  CHECK(scene.log.received.starts_with("before "));
}

// A queue above its high mark ------------------------------------------------------------------------------------------------

/// Echoes, and remembers the most that waited.
struct EchoScene : Scene<> {
  explicit EchoScene(Over over, const ListenerOptions& options) : Scene(over, options) {
    this->log.at_receive = [this](Connection& connection, Bytes bytes) {
      connection.send(bytes);
      backlog_max = std::max(backlog_max, connection.backlog_bytes());
    };
  }
  std::size_t backlog_max = 0;
};

ListenerOptions pausing_when_backlogged() {
  return {.backlog_bytes_max = 1024 * 1024,
          .backlog_high_mark_bytes = 256 * 1024,
          .backlog_low_mark_bytes = 64 * 1024,
          .when_backlogged = WhenBacklogged::pause_reading};
}

/// The peer sends and never reads, until nobody takes anything any more. Returns how much it could send.
template <class World>
std::size_t clog(World& scene, std::string_view bytes) {
  std::size_t sent = 0;
  int idle_turns = 0;
  REQUIRE(scene.turn_until([&] {
    const std::size_t more = scene.peer.send_some(bytes.substr(sent));
    sent += more;
    idle_turns = more == 0 ? idle_turns + 1 : 0;
    return idle_turns == 20 || sent == bytes.size();
  }));
  REQUIRE(sent < bytes.size());
  return sent;
}

TEST_CASE("an echo whose peer never reads holds bounded memory, and drains byte for byte when it reads") {
  for (const Over over : both_families) {
    CAPTURE(static_cast<int>(over));
    EchoScene scene(over, pausing_when_backlogged());
    const std::string bytes = test::pattern(32 * 1024 * 1024);
    std::size_t sent = clog(scene, bytes);
    CHECK(scene.log.closed.empty());
    CHECK(scene.backlog_max > 256 * 1024);
    CHECK(scene.backlog_max <= (256 + 64) * 1024);
    scene.check_rests();

    bool finished = false;
    REQUIRE(scene.turn_until([&] {
      if (sent < bytes.size()) sent += scene.peer.send_some(std::string_view(bytes).substr(sent, 1024 * 1024));
      if (sent == bytes.size() && !std::exchange(finished, true)) scene.peer.finish();
      return scene.peer.read(1024 * 1024).finished;
    }));
    CHECK(test::same(scene.peer.received, bytes));
    CHECK(scene.backlog_max <= (256 + 64) * 1024);
    CHECK(scene.end().reason == CloseReason::peer_finished);
    CHECK(scene.end().unsent == 0);
  }
}

TEST_CASE("the hard bound holds while a backlog holds reading") {
  EchoScene scene(Over::tcp, pausing_when_backlogged());
  const std::string bytes = test::pattern(32 * 1024 * 1024);
  (void)clog(scene, bytes);
  const std::size_t room = 1024 * 1024 - scene.connection().backlog_bytes();
  CHECK(scene.connection().send(std::string_view(bytes).substr(0, room)));
  CHECK(scene.connection().send("x").error() == vigil::Error{"send", ENOBUFS});
  CHECK(scene.end().reason == CloseReason::backlog_full);
  CHECK(scene.end().unsent == 1024 * 1024);
  CHECK(scene.end().left_unread > 0);
}

TEST_CASE("a reset behind a backlog ends it, with everything before it delivered") {
  ListenerOptions options = pausing_when_backlogged();
  options.backlog_bytes_max = 64 * 1024 * 1024;
  EchoScene scene(Over::tcp, options);
  const std::string bytes = test::pattern(32 * 1024 * 1024);
  (void)clog(scene, bytes);
  const std::size_t received_before = scene.log.received.size();
  int unread = 0;
  REQUIRE(::ioctl(scene.connection().descriptor(), FIONREAD, &unread) == 0);
  REQUIRE(unread > 0);
  scene.peer.reset();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(record.left_unread == 0);
  CHECK(record.received >= received_before + static_cast<std::size_t>(unread));
  CHECK(record.handed_to_kernel + record.unsent == record.received);
}

TEST_CASE("a Unix peer that closes behind a backlog ends it") {
  EchoScene scene(Over::unix_socket, pausing_when_backlogged());
  const std::string bytes = test::pattern(32 * 1024 * 1024);
  (void)clog(scene, bytes);
  scene.peer.close();
  const CloseRecord& record = scene.end();
  CHECK(record.reason == CloseReason::peer_reset);
  CHECK(record.left_unread == 0);
  CHECK(record.unsent > 0);
}

// Bytes left -----------------------------------------------------------------------------------------------------------------

/// Consumes a random part, never more than it may leave, and asks for the rest now and then.
struct Nibbler : test::Recorder {
  using Recorder::Recorder;
  std::size_t on_receive(Connection& connection, Bytes bytes) {
    std::size_t takes = random() % (bytes.size() + 1);
    if (bytes.size() - takes > 8 * 1024) takes = bytes.size() - random() % (8 * 1024);
    if (connection.is_final()) takes = bytes.size();
    if (random() % 4 == 0) CHECK(connection.receive_again());
    log->received += bytes.text().substr(0, takes);
    return takes;
  }
  std::mt19937_64 random{1};
};

TEST_CASE("what is left is handed over again and nothing is lost, doubled or reordered") {
  const std::uint64_t seed = test::seed_of("bytes left, on the kernel");
  INFO("VIGIL_SEED=" << seed);
  std::mt19937_64 random(seed);
  for (const Over over : both_families) {
    CAPTURE(static_cast<int>(over));
    Scene<Nibbler> scene(over);
    scene.handler().random.seed(random());
    const std::string bytes = test::pattern(2 * 1024 * 1024);
    std::size_t sent = 0;
    REQUIRE(scene.turn_until([&] {
      sent += scene.peer.send_some(std::string_view(bytes).substr(sent, 1 + random() % 50'000));
      return sent == bytes.size();
    }));
    scene.peer.finish();
    const CloseRecord& record = scene.end();
    CHECK(record.reason == CloseReason::peer_finished);
    CHECK(record.unconsumed == 0);
    CHECK(test::same(scene.log.received, bytes));
  }
}

struct NeverSatisfied : test::Recorder {
  using Recorder::Recorder;
  std::size_t on_receive(Connection& connection, Bytes bytes) {
    log->received = bytes.text();
    finals += connection.is_final() ? 1 : 0;
    if (connection.is_final()) log->received += " (final)";
    return 0;
  }
  int finals = 0;
};

TEST_CASE("what is left at the peer's end or reset is offered once more, marked final, and then counts as unconsumed") {
  for (const Over over : both_families)
    for (const bool resets : {false, true}) {
      if (over == Over::unix_socket && resets) continue;
      CAPTURE(static_cast<int>(over));
      CAPTURE(resets);
      Scene<NeverSatisfied> scene(over);
      scene.peer.send("unfinished");
      REQUIRE(scene.turn_until([&] { return scene.log.received == "unfinished"; }));
      resets ? scene.peer.reset() : scene.peer.finish();
      const CloseRecord& record = scene.end();
      CHECK(scene.log.received == "unfinished (final)");
      CHECK(record.reason == (resets ? CloseReason::peer_reset : CloseReason::peer_finished));
      CHECK(record.unconsumed == 10);
    }
}

}  // namespace
