// The path of a Unix listener, on scripted system calls: what is left when something fails, and who wins when two start at once.
#include <doctest/doctest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;

namespace {

constexpr const char* path = "/run/vigil.socket";
const std::vector<std::string> bound{path};
const std::vector<std::string> nothing;

struct PathWorld : Simulation {
  PathWorld() : server(*reactor, {}, [this](Connection& connection) { return Actor(story, connection); }) {}

  /// A process bound the path and crashed.
  void leave_stale() {
    const int crashed = sys::socket(AF_UNIX, SOCK_STREAM);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::string(path).copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(sys::bind(crashed, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    sys::close(crashed);
    kernel.forget_calls();
  }

  Error listen() {
    const std::size_t open_before = kernel.open_descriptors().size();
    const auto answer = server.listen(Address::from_unix_path(path));
    CHECK(kernel.open_descriptors().size() == open_before + (answer ? 1 : 0));
    return answer ? Error{} : answer.error();
  }

  Listener<Actor> server;
};

}  // namespace

TEST_CASE("whatever fails after a path was bound takes the path away again") {
  PathWorld world;
  int error = EADDRINUSE;
  SUBCASE("listen") { world.kernel.will_fail(Call::listen, EADDRINUSE); }
  SUBCASE("the poller") {
    error = ENOSPC;
    world.kernel.will_fail(Call::epoll_control, ENOSPC);
  }
  CHECK(world.listen().code == error);
  CHECK(world.kernel.paths() == nothing);
  CHECK(world.listen().code == 0);
  CHECK(world.kernel.paths() == bound);
  world.server.close();
  CHECK(world.kernel.paths() == nothing);
}

TEST_CASE("a path is removed before its socket is closed: its inode has no successor until then") {
  PathWorld world;
  REQUIRE(world.listen().code == 0);
  world.kernel.forget_calls();
  world.server.close();
  const std::string names = world.kernel.names();
  REQUIRE(names.find("unlink") != std::string::npos);
  CHECK(names.find("unlink") < names.find("close"));
}

TEST_CASE("a stale path is replaced once nobody answers for it") {
  PathWorld world;
  world.leave_stale();
  world.kernel.will_fail(Call::connect, ECONNREFUSED);
  world.kernel.will_fail(Call::connect, ECONNREFUSED);
  CHECK(world.listen().code == 0);
  CHECK(world.kernel.count(Call::unlink) == 1);
  CHECK(world.kernel.paths() == bound);
  world.server.close();
}

TEST_CASE("a path of which nobody can tell whether its owner lives is left alone") {
  PathWorld world;
  world.leave_stale();
  int error = EADDRINUSE;
  SUBCASE("its owner lives") {}
  SUBCASE("its owner's queue is full") { world.kernel.will_fail(Call::connect, EAGAIN); }
  SUBCASE("its owner is of another type") { world.kernel.will_fail(Call::connect, EPROTOTYPE); }
  SUBCASE("we may not connect to it") { world.kernel.will_fail(Call::connect, EACCES); }
  SUBCASE("without a descriptor to ask with") {
    error = EMFILE;
    world.kernel.will_fail(Call::socket, EMFILE, 1);
  }
  SUBCASE("somebody bound it anew while we asked") { world.kernel.will_fail(Call::connect, ECONNREFUSED); }
  CHECK(world.listen().code == error);
  CHECK(world.kernel.count(Call::unlink) == 0);
  CHECK(world.kernel.paths() == bound);
}

TEST_CASE("a stale path that can't be removed is an error that says so") {
  PathWorld world;
  world.leave_stale();
  world.kernel.will_fail(Call::connect, ECONNREFUSED);
  world.kernel.will_fail(Call::connect, ECONNREFUSED);
  world.kernel.will_fail(Call::unlink, EACCES);
  const Error error = world.listen();
  CHECK(error == Error{"listen", EACCES});
  CHECK(std::string(error.detail) == "a stale path can't be removed");
}

TEST_CASE("a stale path that goes while it is asked about is no obstacle") {
  PathWorld world;
  world.leave_stale();
  SUBCASE("before the question") {
    world.kernel.will_fail(Call::bind, EADDRINUSE);
    sys::unlink(path);
  }
  SUBCASE("before it is removed") {
    world.kernel.will_fail(Call::connect, ECONNREFUSED);
    world.kernel.will_fail(Call::connect, ECONNREFUSED);
    world.kernel.will_fail(Call::unlink, ENOENT);
    world.kernel.will_fail(Call::bind, EADDRINUSE);  // whoever removed it has bound it already
    CHECK(world.listen() == Error{"listen", EADDRINUSE});
    sys::unlink(path);
  }
  CHECK(world.listen().code == 0);
  world.server.close();
}

TEST_CASE("a listener whose path was taken while it began to listen does not listen") {
  PathWorld world;
  world.kernel.will_fail(Call::path_status, ENOENT, 1);  // the second look
  const Error error = world.listen();
  CHECK(error == Error{"listen", EADDRINUSE});
  CHECK(std::string(error.detail) == "somebody else took the path meanwhile");
}
