// Network namespaces a test creates and removes: routes, dead links and lost packets without touching the machine's own network.
//
// Thread: a namespace is entered by one thread; threads and commands it starts while inside are inside too. Sockets opened inside
// stay inside, so close them before expecting the namespace to go. Needs root and the `ip` command.
//
//   TEST_CASE("a route that forbids it makes a connect unreachable") {
//     if (test::skip_without_root()) return;
//     const test::NetworkNamespace network;
//     network.run("ip route add prohibit 10.1.0.0/16");
//     const auto inside = network.enter();
//     ...
#pragma once

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

namespace vigil::test {

/// True, having said so, where the running test can't have a namespace: the caller returns. The line is what counts the skips.
inline bool skip_without_root() {
  if (::geteuid() == 0) return false;
  std::printf("SKIPPED: %s: needs root\n", doctest::getContextOptions()->currentTest->m_name);
  return true;
}

class NetworkNamespace {
 public:
  /// Back to where the thread was when it ends.
  class Inside {
   public:
    explicit Inside(int inside) : outside_(open_current()) { REQUIRE(::setns(inside, CLONE_NEWNET) == 0); }
    ~Inside() {
      if (::setns(outside_, CLONE_NEWNET) != 0) std::abort();  // every test after this one would run in the wrong network
      ::close(outside_);
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    int outside_;
  };

  /// A new one, with nothing in it but `lo`, which is up. The calling thread stays where it was.
  NetworkNamespace() {
    const int outside = open_current();
    REQUIRE(::unshare(CLONE_NEWNET) == 0);
    descriptor_ = open_current();
    const bool returned = ::setns(outside, CLONE_NEWNET) == 0;
    ::close(outside);
    if (!returned) std::abort();
    run("ip link set lo up");
  }
  ~NetworkNamespace() { ::close(descriptor_); }
  NetworkNamespace(const NetworkNamespace&) = delete;
  NetworkNamespace& operator=(const NetworkNamespace&) = delete;

  /// Enters it for as long as the result lives.
  [[nodiscard]] Inside enter() const { return Inside(descriptor_); }

  /// Runs a shell command inside; the test fails if the command does.
  void run(const std::string& command) const {
    const Inside inside(descriptor_);
    INFO(command);
    REQUIRE(std::system(command.c_str()) == 0);
  }

  /// How `ip` and others name it: `ip link add ... netns PATH`.
  [[nodiscard]] std::string path() const { return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(descriptor_); }

 private:
  static int open_current() {
    const int descriptor = ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    REQUIRE(descriptor >= 0);
    return descriptor;
  }

  int descriptor_ = -1;
};

/// A cable between two namespaces: a device `veth0` in each, up, with the given addresses (`10.0.0.1/24`; `fe80::1/64` too).
/// Unplug it with `ip link set veth0 down` or `ip link delete veth0` on either side; lose packets with `tc` or `nft`.
inline void connect_by_cable(const NetworkNamespace& left, const std::string& left_address, const NetworkNamespace& right,
                             const std::string& right_address) {
  left.run("ip link add veth0 type veth peer name veth0 netns " + right.path());
  const std::pair<const NetworkNamespace*, const std::string*> ends[] = {{&left, &left_address}, {&right, &right_address}};
  for (const auto& [end, address] : ends) {
    end->run("ip address add " + *address + " dev veth0" + (address->find(':') != std::string::npos ? " nodad" : ""));
    end->run("ip link set veth0 up");
  }
}

}  // namespace vigil::test
