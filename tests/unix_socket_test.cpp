// Unix stream sockets on the kernel: whose path it is, what is left in the way, abstract names, and a listener's full queue.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Connector;
using vigil::Error;
using vigil::Listener;
using vigil::ListenerOptions;
using vigil::Reactor;
using vigil::Verdict;
namespace test = vigil::test;
using test::HookedHandler;

/// A directory of the test's own, removed with all that is in it.
class Directory {
 public:
  Directory() {
    char name[] = "/tmp/vigil-test-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    name_ = name;
  }
  ~Directory() { std::filesystem::remove_all(name_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  [[nodiscard]] std::string path(const std::string& name) const { return name_ + "/" + name; }
  [[nodiscard]] Address address(const std::string& name = "socket") const { return Address::from_unix_path(path(name)); }

 private:
  std::string name_;
};

bool exists(const Address& address) {
  struct stat status {};
  return ::lstat(std::string(address.path()).c_str(), &status) == 0;
}

/// A plain socket bound to the path; closing it leaves the path, as a crash does.
class Occupant {
 public:
  explicit Occupant(const Address& address, int type = SOCK_STREAM, bool listens = false)
      : descriptor_(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0)) {
    const test::RawAddress raw(address);
    REQUIRE(::bind(descriptor_, raw.get(), raw.length) == 0);
    if (listens) REQUIRE(::listen(descriptor_, 16) == 0);
  }
  ~Occupant() { ::close(descriptor_); }
  Occupant(const Occupant&) = delete;
  Occupant& operator=(const Occupant&) = delete;

 private:
  int descriptor_;
};

void leave_stale(const Address& address) { const Occupant crashed(address, SOCK_STREAM, true); }

struct Server {
  explicit Server(const ListenerOptions& options = {}) : listener(std::in_place, *reactor, options, hooks.make()) {}

  [[nodiscard]] bool serves(const Address& address) {
    return test::connect_client(*reactor, hooks, address).connection->is_open();
  }

  test::Hooks hooks;
  std::optional<Reactor> reactor{std::in_place};
  std::optional<Listener<HookedHandler>> listener;
};

std::string unique_name(const std::string& name) { return "vigil-test-" + name + '-' + std::to_string(::getpid()); }

// A path ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("a listener on a Unix path serves, and names itself and its peers as people write them") {
  const Directory directory;
  Server server;
  REQUIRE(server.listener->listen("unix:" + directory.path("socket")));
  CHECK(*server.listener->address() == directory.address());
  server.hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
  test::Client client = test::connect_client(*server.reactor, server.hooks, directory.address());
  CHECK(client.connection->peer().to_string() == "unix:");
  CHECK(*client.connection->local_address() == directory.address());
  const int descriptor = client.connection->descriptor();
  CHECK((::fcntl(descriptor, F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(descriptor, F_GETFL) & O_NONBLOCK) != 0);

  client.peer.send("hello");
  CHECK(test::turn_until(*server.reactor, [&] { return client.peer.read().received == "hello"; }));
  client.peer.finish();
  REQUIRE(test::turn_until(*server.reactor, [&] { return server.hooks.records.size() == 1; }));
  CHECK(server.hooks.records[0].reason == CloseReason::peer_finished);
  CHECK(server.hooks.records[0].received == 5);
  CHECK_FALSE(server.hooks.records[0].unacknowledged);
}

TEST_CASE("a peer on a Unix path that answers is not lost while reading is paused, and one that is mute is, without a verdict") {
  const Directory directory;
  ListenerOptions options;
  options.heartbeat = {.budget = 300ms, .interval = 50ms, .ping = "ping"};
  options.heartbeat.wants_verdict = false;
  Server server(options);
  REQUIRE(server.listener->listen("unix:" + directory.path("socket")));
  test::Client client = test::connect_client(*server.reactor, server.hooks, directory.address());
  REQUIRE(client.connection->pause_reading());
  std::string pings;
  for (std::size_t heard = 0; heard < 12;) {  // longer than two budgets
    REQUIRE(test::turn_until(*server.reactor, [&] {
      pings += client.peer.read().received;
      return pings.size() / 4 > heard || !server.hooks.records.empty();
    }));
    REQUIRE(server.hooks.records.empty());
    for (; heard < pings.size() / 4; ++heard) client.peer.send("pong");
  }
  REQUIRE(test::turn_until(*server.reactor, [&] { return !server.hooks.records.empty(); }));
  CHECK(server.hooks.records[0].reason == CloseReason::heartbeat_lost);
  CHECK(server.hooks.records[0].verdict == Verdict::unknown);
}

TEST_CASE("the mode of a listener's path is what the umask leaves") {
  for (const auto& [mask, mode] : {std::pair<mode_t, mode_t>{0077, 0700}, {0, 0777}}) {
    const Directory directory;
    Server server;
    const mode_t before = ::umask(mask);
    const auto listening = server.listener->listen(directory.address());
    ::umask(before);
    REQUIRE(listening);
    struct stat status {};
    REQUIRE(::stat(directory.path("socket").c_str(), &status) == 0);
    CHECK(S_ISSOCK(status.st_mode));
    CHECK((status.st_mode & 0777) == mode);
  }
}

TEST_CASE("a listener's path goes with the listener, however it ends, and its connections stay") {
  const Directory directory;
  Server server;
  REQUIRE(server.listener->listen(directory.address()));
  const test::Client client = test::connect_client(*server.reactor, server.hooks, directory.address());
  CHECK(exists(directory.address()));
  SUBCASE("closed") {
    server.listener->close();
    CHECK(client.connection->is_open());
    CHECK_FALSE(exists(directory.address()));
    CHECK(server.listener->listen(directory.address()));
    CHECK(server.serves(directory.address()));
    server.listener->close();
  }
  SUBCASE("destroyed") {
    server.listener.reset();
    CHECK(client.connection->is_open());
  }
  SUBCASE("shut down with its reactor") {
    REQUIRE(server.reactor->shutdown(0s));
    REQUIRE(server.reactor->run());
  }
  SUBCASE("its reactor destroyed") { server.reactor.reset(); }
  CHECK_FALSE(exists(directory.address()));
}

TEST_CASE("a path that is no longer the listener's own is left alone") {
  const Directory directory;
  Server server;
  REQUIRE(server.listener->listen(directory.address()));
  REQUIRE(::unlink(directory.path("socket").c_str()) == 0);
  SUBCASE("another socket stands there") {
    const Occupant other(directory.address(), SOCK_STREAM, true);
    server.listener->close();
    CHECK(exists(directory.address()));
    const test::Peer peer(directory.address());  // and it is served
  }
  SUBCASE("a file stands there") {
    std::ofstream(directory.path("socket")) << "not ours";
    server.listener->close();
    CHECK(exists(directory.address()));
  }
  SUBCASE("a socket that was moved there") {
    const Occupant other(directory.address("other"), SOCK_STREAM, true);
    REQUIRE(::rename(directory.path("other").c_str(), directory.path("socket").c_str()) == 0);
    server.listener->close();
    CHECK(exists(directory.address()));
  }
  SUBCASE("nothing") {
    server.listener->close();
    CHECK_FALSE(exists(directory.address()));
  }
}

TEST_CASE("a path that a crashed process left is replaced") {
  const Directory directory;
  int type = SOCK_STREAM;
  SUBCASE("by a stream socket") {}
  SUBCASE("by a datagram socket") { type = SOCK_DGRAM; }
  SUBCASE("by a sequence of packets") { type = SOCK_SEQPACKET; }
  { const Occupant crashed(directory.address(), type); }
  Server server;
  REQUIRE(server.listener->listen(directory.address()));
  CHECK(server.serves(directory.address()));
  server.listener->close();
  CHECK_FALSE(exists(directory.address()));
}

TEST_CASE("a path whose owner lives is in use, and the owner notices nothing") {
  const Directory directory;
  Server first;
  REQUIRE(first.listener->listen(directory.address()));
  Server second;
  const auto refused = second.listener->listen(directory.address());
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"listen", EADDRINUSE});
  CHECK(std::string(refused.error().detail) == "the path's owner lives");
  CHECK(second.listener->address().error() == Error{"address", ENOTCONN});
  second.listener.reset();
  CHECK(exists(directory.address()));
  test::turn_at_once(*first.reactor);
  CHECK(first.reactor->counters().opened == 0);
  CHECK(first.serves(directory.address()));
}

TEST_CASE("a path whose owner has bound it but does not listen yet, or is no stream socket, is in use as well") {
  const Directory directory;
  int type = SOCK_STREAM;
  SUBCASE("bound") {}
  SUBCASE("datagrams") { type = SOCK_DGRAM; }
  SUBCASE("packets") { type = SOCK_SEQPACKET; }
  const Occupant owner(directory.address(), type);
  Server server;
  CHECK(server.listener->listen(directory.address()).error() == Error{"listen", EADDRINUSE});
  CHECK(exists(directory.address()));
}

TEST_CASE("what is no socket is never touched") {
  const Directory directory;
  const std::string path = directory.path("socket");
  leave_stale(directory.address("stale"));
  std::ofstream(directory.path("file")) << "precious";
  SUBCASE("a file") { std::ofstream(path) << "precious"; }
  SUBCASE("an empty file") { std::ofstream{path}; }
  SUBCASE("a directory") { REQUIRE(::mkdir(path.c_str(), 0700) == 0); }
  SUBCASE("a pipe") { REQUIRE(::mkfifo(path.c_str(), 0600) == 0); }
  SUBCASE("a link to a file") { REQUIRE(::symlink("file", path.c_str()) == 0); }
  SUBCASE("a link to nothing") { REQUIRE(::symlink("nothing", path.c_str()) == 0); }
  SUBCASE("a link to a stale socket") { REQUIRE(::symlink("stale", path.c_str()) == 0); }
  struct stat before {};
  REQUIRE(::lstat(path.c_str(), &before) == 0);
  Server server;
  const auto refused = server.listener->listen(directory.address());
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"listen", EADDRINUSE});
  CHECK(std::string(refused.error().detail) == "the path exists and is no socket");
  server.listener.reset();
  struct stat after {};
  REQUIRE(::lstat(path.c_str(), &after) == 0);
  CHECK(after.st_ino == before.st_ino);
  CHECK(after.st_size == before.st_size);
  CHECK(exists(directory.address("stale")));
}

TEST_CASE("a path may be as long as the kernel takes, and one byte more is refused in plain words") {
  const Directory directory;
  const std::string prefix = directory.path("");
  const std::string longest = prefix + std::string(107 - prefix.size(), 'x');
  Server server;
  REQUIRE(server.listener->listen("unix:" + longest));
  CHECK(server.listener->address()->path() == longest);
  CHECK(server.serves(Address::from_unix_path(longest)));
  server.listener->close();
  CHECK_FALSE(exists(Address::from_unix_path(longest)));

  const auto parsed = server.listener->listen("unix:" + longest + "x");
  REQUIRE_FALSE(parsed);
  CHECK(parsed.error() == Error{"parse address", EINVAL});
  CHECK(std::string(parsed.error().detail).find("Unix") != std::string::npos);
  const auto from_parts = server.listener->listen(Address::from_unix_path(longest + "x"));
  REQUIRE_FALSE(from_parts);
  CHECK(from_parts.error() == Error{"listen", EINVAL});
  CHECK(std::string(from_parts.error().detail).find("too long") != std::string::npos);
}

TEST_CASE("a path nobody can bind is the kernel's own error") {
  const Directory directory;
  Server server;
  const auto missing = server.listener->listen("unix:" + directory.path("no/such/directory"));
  REQUIRE_FALSE(missing);
  CHECK(missing.error() == Error{"listen", ENOENT});
  CHECK(std::string(missing.error().detail) == "bind");
  CHECK_FALSE(server.listener->listen("unix:" + directory.path("")));
}

TEST_CASE("TCP's own options are refused for a Unix socket, before its path is bound") {
  const Directory directory;
  Server server({.socket = {.keep_alive = vigil::KeepAlive{1s, 1s, 3}}});
  CHECK(server.listener->listen(directory.address()).error() == Error{"listen", EINVAL});
  CHECK_FALSE(exists(directory.address()));
  CHECK_FALSE(vigil::listen_on(directory.address(), {.backlog = -1}));
  CHECK_FALSE(exists(directory.address()));
}

// An abstract name -----------------------------------------------------------------------------------------------------------

TEST_CASE("a listener on an abstract name serves, leaves no file, and frees its name") {
  const std::string name = unique_name("abstract");
  const Address address = Address::from_unix_abstract(name);
  Server first;
  REQUIRE(first.listener->listen("unix:@" + name));
  CHECK(*first.listener->address() == address);
  CHECK(first.serves(address));
  Server second;
  CHECK(second.listener->listen(address).error() == Error{"listen", EADDRINUSE});
  first.listener->close();
  CHECK(second.listener->listen(address));
  CHECK(second.serves(address));
  CHECK_FALSE(std::filesystem::exists("@" + name));
}

// Connecting -----------------------------------------------------------------------------------------------------------------

TEST_CASE("a Unix attempt is accepted, refused where nobody listens, and failed where there is no path") {
  const Directory directory;
  Server server;
  REQUIRE(server.listener->listen(directory.address()));
  leave_stale(directory.address("stale"));
  test::Hooks hooks;
  Connector<HookedHandler> connector(*server.reactor, {}, hooks.make());
  REQUIRE(connector.connect(directory.address()));
  REQUIRE(test::turn_until(*server.reactor, [&] { return hooks.opened.size() == 1; }));
  CHECK(hooks.opened[0]->peer().to_string() == "unix:");
  REQUIRE(connector.connect(directory.address("stale")));
  REQUIRE(connector.connect(directory.address("nothing")));
  REQUIRE(test::turn_until(*server.reactor, [&] { return hooks.records.size() == 2; }));
  CHECK(hooks.records[0].reason == CloseReason::connect_refused);
  CHECK(hooks.records[0].error_number == ECONNREFUSED);
  CHECK(hooks.records[1].reason == CloseReason::connect_failed);
  CHECK(hooks.records[1].error_number == ENOENT);
  CHECK(hooks.opened[0]->is_open());
  server.reactor.reset();
}

TEST_CASE("attempts that find a listener's queue full wait without spinning, and open when it accepts") {
  Address address = Address::from_unix_abstract(unique_name("queue"));
  const Directory directory;
  SUBCASE("an abstract name") {}
  SUBCASE("a path") { address = directory.address(); }
  Server server({.accept_queue = 1});
  REQUIRE(server.listener->listen(address));
  server.listener->pause_accepting();
  test::Hooks hooks;
  Connector<HookedHandler> connector(*server.reactor, {}, hooks.make());
  constexpr std::size_t attempts = 6;  // the kernel queues two
  for (std::size_t count = 0; count < attempts; ++count) REQUIRE(connector.connect(address));
  vigil::Timer over(*server.reactor, [] {});
  REQUIRE(over.arm_after(300ms));
  const std::uint64_t turns_before = server.reactor->counters().turns;
  while (over.armed()) REQUIRE(server.reactor->turn());
  // Four that wait ask at most ten times each in that time; a spin would be thousands.
  CHECK(server.reactor->counters().turns - turns_before <= 4 * 12 + 20);
  CHECK(hooks.opened.size() == 2);
  CHECK(hooks.records.empty());

  server.listener->resume_accepting();
  REQUIRE(test::turn_until(*server.reactor, [&] { return hooks.opened.size() == attempts; }));
  CHECK(test::turn_until(*server.reactor, [&] { return server.hooks.opened.size() == attempts; }));
  CHECK(hooks.records.empty());
  server.reactor.reset();
}

TEST_CASE("an attempt that finds a listener's queue full for good ends at its connect deadline") {
  const Directory directory;
  const test::PeerListener listener(directory.address(), 0);
  const test::Peer first(directory.address());
  Reactor reactor;
  test::Hooks hooks;
  Connector<HookedHandler> connector(reactor, {.timeouts = {.connect = 50ms}}, hooks.make());
  const auto before = reactor.now();
  REQUIRE(connector.connect(directory.address()));
  REQUIRE(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  CHECK(reactor.now() - before >= 50ms);
  CHECK(hooks.opened.empty());
  CHECK(hooks.records[0].reason == CloseReason::connect_timed_out);
  CHECK(hooks.records[0].origin == vigil::Origin::policy);
  CHECK(hooks.records[0].error_number == 0);
}

TEST_CASE("an attempt that waits for room is refused when its listener goes") {
  const Directory directory;
  std::optional<test::PeerListener> listener(std::in_place, directory.address(), 0);
  const test::Peer first(directory.address());
  Reactor reactor;
  test::Hooks hooks;
  Connector<HookedHandler> connector(reactor, {}, hooks.make());
  REQUIRE(connector.connect(directory.address()));
  test::turn_at_once(reactor);
  CHECK(hooks.records.empty());
  listener.reset();
  REQUIRE(test::turn_until(reactor, [&] { return hooks.records.size() == 1; }));
  CHECK(hooks.records[0].reason == CloseReason::connect_refused);
}

}  // namespace
