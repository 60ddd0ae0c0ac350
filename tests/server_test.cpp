// Servers on real threads and sockets: what every reactor is told, how they end, and that nothing is left of them.
#include "vigil/server.hpp"

#include <doctest/doctest.h>

#include <dirent.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "support/loopback.hpp"
#include "sys/sys.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Address;
using vigil::Bytes;
using vigil::CloseReason;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Duration;
using vigil::Error;
using vigil::ReactorCounters;
using vigil::Server;
using vigil::ServerOptions;
using vigil::Socket;
using vigil::Timeout;
using vigil::Worker;
namespace sys = vigil::sys;
namespace test = vigil::test;

constexpr Duration patience = std::chrono::milliseconds(test::patience_ms);

/// What one reactor saw, as its shard leaves it.
struct Seen {
  unsigned index = 0;
  std::thread::id thread;
  std::vector<int> cpus;
  std::vector<CloseRecord> records;
};

struct Ledger {
  std::atomic<int> opened = 0;
  std::mutex lock;
  std::vector<Seen> reactors;  ///< in the order in which their shards ended

  [[nodiscard]] std::vector<CloseRecord> records() const {
    std::vector<CloseRecord> all;
    for (const Seen& seen : reactors) all.insert(all.end(), seen.records.begin(), seen.records.end());
    return all;
  }
};

std::vector<int> usable_cpus() {
  std::vector<int> cpus(1024);
  cpus.resize(static_cast<std::size_t>(sys::usable_cpus(cpus.data(), cpus.size())));
  return cpus;
}

struct EchoShard;

struct Echo {
  explicit Echo(EchoShard& its_shard) : shard(its_shard) {}
  void on_open(Connection&);
  void on_receive(Connection& peer, Bytes bytes);
  void on_close(Connection&, const CloseRecord& record);
  EchoShard& shard;
};

struct EchoShard {
  EchoShard(Ledger& given, Worker& worker) : ledger(given), reactor(worker.reactor()) {
    seen.index = worker.index();
    seen.thread = std::this_thread::get_id();
    seen.cpus = usable_cpus();
  }
  EchoShard(const EchoShard&) = delete;
  ~EchoShard() {
    if (seen.thread != std::this_thread::get_id()) std::abort();
    const std::lock_guard guard(ledger.lock);
    ledger.reactors.push_back(std::move(seen));
  }
  Echo make_handler(Connection&) { return Echo(*this); }

  Ledger& ledger;
  vigil::Reactor& reactor;
  Seen seen;
};

void Echo::on_open(Connection&) { ++shard.ledger.opened; }
void Echo::on_receive(Connection& peer, Bytes bytes) {
  if (bytes.text() == "stop") shard.reactor.stop();
  peer.send(bytes);
}
void Echo::on_close(Connection&, const CloseRecord& record) { shard.seen.records.push_back(record); }

struct EchoServer : Server<Echo, EchoShard> {
  explicit EchoServer(Ledger& ledger, const ServerOptions& options = {.reactors = 2})
      : Server(options, [&ledger](Worker& worker) { return EchoShard(ledger, worker); }) {}

  void start_here(const Address& at = test::loopback()) {
    const auto started = start(at);
    if (!started) FAIL(describe(started.error()));
  }
  void run_to_the_end() {
    const auto ran = run();
    if (!ran) FAIL(describe(ran.error()));
  }
};

/// One connection on a thread without doctest: each step ends the program if it fails.
class Client {
 public:
  explicit Client(const Address& address) : socket_(std::move(*vigil::open_socket(address.family()))) {
    must(connect_within(socket_, address, Timeout(patience)).outcome == vigil::ConnectOutcome::accepted);
  }

  void echo(std::string_view text) {
    must(send_within(socket_, Bytes(reinterpret_cast<const std::byte*>(text.data()), text.size()), Timeout(patience)).outcome ==
         vigil::SendOutcome::sent);
    std::string answer;
    while (answer.size() < text.size()) {
      const auto received = receive();
      must(received.outcome == vigil::ReceiveOutcome::data);
      answer.append(reinterpret_cast<const char*>(buffer_.data()), received.bytes);
    }
    must(answer == text);
  }

  /// The server's orderly end comes next.
  void wait_for_end() { must(receive().outcome == vigil::ReceiveOutcome::finished); }

 private:
  static void must(bool held) {
    if (!held) std::abort();
  }
  vigil::Received receive() { return receive_within(socket_, {buffer_.data(), buffer_.size()}, Timeout(patience)); }

  Socket socket_;
  std::array<std::byte, 4096> buffer_{};
};

std::size_t threads_alive() {
  DIR* directory = ::opendir("/proc/self/task");
  REQUIRE(directory != nullptr);
  std::size_t count = 0;
  while (const dirent* entry = ::readdir(directory)) count += entry->d_name[0] == '.' ? 0 : 1;
  ::closedir(directory);
  return count;
}

bool is_blocked(int signal_number) {
  sigset_t blocked;
  REQUIRE(::pthread_sigmask(SIG_SETMASK, nullptr, &blocked) == 0);
  return ::sigismember(&blocked, signal_number) == 1;
}

}  // namespace

TEST_SUITE("threads") {
  TEST_CASE("two reactors serve what many threads open, and every connection is told once, on its own thread") {
    constexpr int client_threads = 4, connections = 40;
    Ledger ledger;
    EchoServer server(ledger);
    server.start_here();
    const Address address = *server.address();
    std::vector<std::thread> threads;
    std::atomic<int> threads_left = client_threads;
    for (int thread = 0; thread < client_threads; ++thread)
      threads.emplace_back([&] {
        for (int connection = 0; connection < connections; ++connection) Client(address).echo("hello");
        if (--threads_left == 0 && !server.shutdown(5s)) std::abort();
      });
    server.run_to_the_end();
    for (std::thread& thread : threads) thread.join();

    constexpr std::size_t all = client_threads * connections;
    CHECK(ledger.opened == all);
    CHECK(ledger.records().size() == all);
    CHECK(server.counters().opened == all);
    CHECK(server.counters().closed == all);
    CHECK(server.counters().received_bytes == 5 * all);
    REQUIRE(ledger.reactors.size() == 2);
    CHECK(ledger.reactors[0].thread != ledger.reactors[1].thread);
    // The kernel spreads them by a hash of the ports: that all of so many go one way does not happen.
    for (const Seen& seen : ledger.reactors) CHECK_FALSE(seen.records.empty());
  }

  TEST_CASE("SIGTERM drains every reactor: each open connection ends in order and is told") {
    constexpr int connections = 20;
    const std::size_t threads_before = threads_alive();
    Ledger ledger;
    {
      EchoServer server(ledger, {.reactors = 2, .drain = patience});
      server.start_here();
      CHECK(is_blocked(SIGTERM));
      std::thread clients([address = *server.address()] {
        std::vector<Client> open;
        for (int count = 0; count < connections; ++count) open.emplace_back(address).echo("hello");
        ::kill(::getpid(), SIGTERM);
        for (Client& client : open) client.wait_for_end();
      });
      server.run_to_the_end();
      clients.join();
    }
    CHECK_FALSE(is_blocked(SIGTERM));
    CHECK_FALSE(is_blocked(SIGINT));
    CHECK(test::wait_until([&] { return threads_alive() == threads_before; }));  // a joined thread may still be in the list
    const std::vector<CloseRecord> records = ledger.records();
    CHECK(records.size() == connections);
    for (const CloseRecord& record : records) {
      CHECK(record.reason == CloseReason::server_stopping);
      CHECK(record.cut_short == vigil::CutShort::none);
    }
  }

  TEST_CASE("a second signal does not wait for peers that hold on") {
    Ledger ledger;
    EchoServer server(ledger, {.reactors = 2, .drain = std::chrono::hours(1)});
    server.start_here();
    std::atomic<bool> over = false;
    std::thread clients([&over, address = *server.address()] {
      Client first(address), second(address);
      first.echo("a");
      second.echo("b");
      ::kill(::getpid(), SIGINT);
      first.wait_for_end();  // so the first signal was taken
      second.wait_for_end();
      ::kill(::getpid(), SIGINT);
      while (!over) std::this_thread::yield();
    });
    server.run_to_the_end();
    over = true;
    clients.join();
    CHECK(ledger.records().size() == 2);
  }

  TEST_CASE("a handler's stop does not end its reactor") {
    Ledger ledger;
    EchoServer server(ledger, {.reactors = 1});
    server.start_here();
    std::thread clients([&server, address = *server.address()] {
      Client client(address);
      client.echo("stop");
      client.echo("still there");
      Client(address).echo("and open");
      if (!server.shutdown(5s)) std::abort();
    });
    server.run_to_the_end();
    clients.join();
    CHECK(ledger.records().size() == 2);
  }

  TEST_CASE("a server may be started again on the port it had, by itself and by the next") {
    Ledger ledger;
    Address address = test::loopback();
    const auto serve = [&](EchoServer& server) {
      server.start_here(address);
      address = *server.address();
      std::thread client([&] {
        Client(address).echo("hello");
        if (!server.shutdown(5s)) std::abort();
      });
      server.run_to_the_end();
      client.join();
      CHECK(server.counters().opened == 1);
      CHECK(server.counters().closed == 1);
    };
    for (int servers = 0; servers < 3; ++servers) {
      EchoServer server(ledger);
      for (int runs = 0; runs < 3; ++runs) serve(server);
    }
    CHECK(ledger.records().size() == 9);
  }

  TEST_CASE("a server destroyed while it runs ends every connection and every thread") {
    const std::size_t threads_before = threads_alive();
    Ledger ledger;
    {
      EchoServer server(ledger);
      server.start_here();
      for (int count = 0; count < 10; ++count) Client(*server.address()).echo("hello");
    }
    CHECK(ledger.records().size() == 10);
    CHECK(test::wait_until([&] { return threads_alive() == threads_before; }));
  }

  TEST_CASE("a start that finds the port taken leaves no thread, no descriptor and no blocked signal") {
    const Socket taken = test::listening();
    const std::size_t threads_before = threads_alive();
    Ledger ledger;
    for (const unsigned reactors : {1U, 2U}) {
      EchoServer server(ledger, {.reactors = reactors});
      const auto started = server.start(test::address_of(taken));
      REQUIRE_FALSE(started);
      CHECK(started.error() == Error{"listen", EADDRINUSE});
      CHECK(server.run().error() == Error{"run", EINVAL});
      CHECK_FALSE(is_blocked(SIGTERM));
      CHECK(test::wait_until([&] { return threads_alive() == threads_before; }));
    }
    CHECK(ledger.opened == 0);
  }

  TEST_CASE("a second server is refused the port that a first one's reactors share") {
    Ledger ledger;
    EchoServer first(ledger);
    first.start_here();
    EchoServer second(ledger, {.reactors = 2, .stop_on_signals = false});
    CHECK(second.start(*first.address()).error() == Error{"listen", EADDRINUSE});
    EchoServer sharing(ledger, {.reactors = 2, .stop_on_signals = false, .listener = {.reuse_port = true}});
    CHECK(sharing.start(*first.address()));
  }

  TEST_CASE("without descriptors nothing is started, and when they are back it is") {
    const std::size_t threads_before = threads_alive();
    Ledger ledger;
    EchoServer server(ledger);
    {
      const test::NoDescriptorsLeft none;
      const auto started = server.start(test::loopback());
      REQUIRE_FALSE(started);
      CHECK(started.error().code == EMFILE);
      EchoServer unwatched(ledger, {.reactors = 2, .stop_on_signals = false});
      CHECK_FALSE(unwatched.start(test::loopback()));
    }
    CHECK(test::wait_until([&] { return threads_alive() == threads_before; }));
    server.start_here();
  }

  TEST_CASE("pinned reactors run on their own CPU, others on any") {
    const std::vector<int> usable = usable_cpus();
    REQUIRE_FALSE(usable.empty());
    for (const bool pinned : {true, false}) {
      Ledger ledger;
      {
        EchoServer server(ledger, {.reactors = 0, .pin_cpus = pinned});
        server.start_here();
        CHECK(server.reactors() == usable.size());
      }
      for (const Seen& seen : ledger.reactors) CHECK(seen.cpus == (pinned ? std::vector<int>{usable[seen.index]} : usable));
    }
    CHECK(usable_cpus() == usable);
  }

  TEST_CASE("a worker for a CPU that does not exist is not started") {
    struct Calls {
      std::atomic<int> count = 0;
    } calls;
    const auto called = [](void* argument) { ++static_cast<Calls*>(argument)->count; };
    sys::Worker worker{.set_up = called, .body = called, .argument = &calls, .cpu = 65'535};
    sys::WorkerHandle handle = 0;
    CHECK(sys::start_worker(worker, handle) == -EINVAL);
    CHECK(calls.count == 0);
    worker.cpu = -1;
    REQUIRE(sys::start_worker(worker, handle) == 0);
    CHECK(calls.count >= 1);  // set_up has returned
    CHECK(sys::join_worker(handle) == 0);
    CHECK(calls.count == 2);
  }

  TEST_CASE("sums are sampled while connections come and go") {
    Ledger ledger;
    EchoServer server(ledger);
    server.start_here();
    std::uint64_t last = 0;
    int samples = 0;
    vigil::Timer timer(server.control(), [&] {
      const auto asked = server.sample([&](const ReactorCounters& sum) {
        CHECK(sum.opened >= sum.closed);
        CHECK(sum.opened >= last);
        last = sum.opened;
        ++samples;
        if (last < 100) REQUIRE(timer.arm_after(1ms));
        if (last == 100) REQUIRE(server.shutdown(5s));
      });
      CHECK(asked);
    });
    REQUIRE(timer.arm_after(0ms));
    std::thread clients([address = *server.address()] {
      for (int count = 0; count < 100; ++count) Client(address).echo("hello");
    });
    server.run_to_the_end();
    clients.join();
    CHECK(samples > 0);
    CHECK(last == 100);
  }

  TEST_CASE("threads that shut a server down while it ends are answered") {
    for (int round = 0; round < 20; ++round) {
      Ledger ledger;
      EchoServer server(ledger);
      server.start_here();
      std::vector<std::thread> threads;
      for (int thread = 0; thread < 3; ++thread)
        threads.emplace_back([&] {
          for (int count = 0; count < 10; ++count)
            if (!server.shutdown(0s)) std::abort();
        });
      server.run_to_the_end();
      for (std::thread& thread : threads) thread.join();
    }
  }

  TEST_CASE("one reactor serves a Unix address") {
    Ledger ledger;
    EchoServer server(ledger, {.reactors = 1});
    server.start_here(Address::from_unix_abstract("vigil-server-test-" + std::to_string(::getpid())));
    std::thread client([&server, address = *server.address()] {
      Client(address).echo("hello");
      if (!server.shutdown(5s)) std::abort();
    });
    server.run_to_the_end();
    client.join();
    CHECK(ledger.records().size() == 1);
  }
}
