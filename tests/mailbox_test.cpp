// Posting from other threads: every task runs exactly once or is destroyed unrun, in order, with few wake-ups and none lost.
#include "vigil/mailbox.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/hooks.hpp"

namespace {

using namespace std::chrono_literals;
using vigil::Bytes;
using vigil::CloseRecord;
using vigil::Connection;
using vigil::Error;
using vigil::Mailbox;
using vigil::Reactor;
using vigil::Task;
using vigil::Timeouts;
using vigil::Timer;
namespace test = vigil::test;

/// Counts the tasks that hold one: the last reference is gone when every one of them was destroyed.
using Alive = std::shared_ptr<int>;
Alive alive() { return std::make_shared<int>(0); }

TEST_CASE("tasks posted through the mailbox and directly run in the order they were posted, one batch a turn") {
  Reactor reactor;
  const Mailbox mailbox = reactor.mailbox();
  std::string order;
  REQUIRE(mailbox.post([&] {
    order += "a";
    CHECK(mailbox.post([&] { order += "d"; }));
    CHECK(reactor.post([&] { order += "c"; }));
  }));
  REQUIRE(mailbox.post([&] { order += "b"; }));
  test::turn_at_once(reactor);
  CHECK(order == "ab");
  test::turn_at_once(reactor);
  CHECK(order.size() == 4);
  CHECK(reactor.counters().tasks_run == 4);
}

TEST_CASE("however many tasks are posted to a reactor that sleeps, it is woken once") {
  Reactor reactor;
  int run = 0;
  for (int batch = 1; batch <= 3; ++batch) {
    for (int count = 0; count < 1000; ++count) REQUIRE(reactor.mailbox().post([&] { ++run; }));
    test::turn_at_once(reactor);
    CHECK(run == 1000 * batch);
    CHECK(reactor.counters().wakeups == static_cast<std::uint64_t>(batch));
  }
}

TEST_CASE("an empty task is refused") {
  Reactor reactor;
  CHECK(reactor.mailbox().post(Task()).error() == Error{"post", EINVAL});
  CHECK(reactor.post(Task()).error() == Error{"post", EINVAL});
}

TEST_CASE("a post to a reactor that is gone answers ESHUTDOWN and destroys the task, whose end may post as well") {
  const Alive task = alive();
  std::optional<Reactor> reactor(std::in_place);
  const Mailbox mailbox = reactor->mailbox();
  const Mailbox copy = mailbox;  // NOLINT: a copy is what is tested
  reactor.reset();

  struct PostsAtItsEnd {
    PostsAtItsEnd(const Mailbox& its_mailbox, Alive its_task) : mailbox(its_mailbox), task(std::move(its_task)) {}
    PostsAtItsEnd(PostsAtItsEnd&&) = default;
    ~PostsAtItsEnd() {
      if (task) CHECK(mailbox.post([] {}).error() == Error{"post", ESHUTDOWN});
    }
    void operator()() const {}
    Mailbox mailbox;
    Alive task;
  };
  CHECK(copy.post(PostsAtItsEnd(mailbox, task)).error() == Error{"post", ESHUTDOWN});
  CHECK(mailbox.stop().error() == Error{"stop", ESHUTDOWN});
  CHECK(task.use_count() == 1);
}

TEST_CASE("tasks that were not run are destroyed with the reactor, and their ends may post, cancel and close") {
  const Alive task = alive();
  test::Hooks hooks;
  {
    Reactor reactor;
    const test::HookedListener server(reactor, hooks);
    const test::Client client = test::connect_client(reactor, hooks, server.address);
    struct Holds {
      ~Holds() {
        connection->abort();
        (void)mailbox->post([] { FAIL_CHECK("nothing runs after the end"); });
      }
      Timer timer;
      std::optional<Mailbox> mailbox;
      Alive task;
      vigil::ConnectionHandle connection;
    };
    for (int count = 0; count < 3; ++count) {
      const auto held = std::make_shared<Holds>();
      held->timer = Timer(reactor, [] {});
      held->mailbox = reactor.mailbox();
      held->task = task;
      held->connection = client.connection;
      REQUIRE(reactor.mailbox().post([held] { FAIL_CHECK("never run"); }));
      REQUIRE(reactor.post([held] { FAIL_CHECK("never run"); }));
    }
  }
  CHECK(task.use_count() == 1);
  CHECK(hooks.records.size() == 1);
}

TEST_CASE("a task that was run is destroyed before the next turn") {
  Reactor reactor;
  const Alive task = alive();
  REQUIRE(reactor.mailbox().post([task] {}));
  REQUIRE(reactor.post([task] {}));
  CHECK(task.use_count() == 3);
  test::turn_at_once(reactor);
  CHECK(task.use_count() == 1);
}

TEST_SUITE("threads") {
  TEST_CASE("what many threads post runs once each, in each thread's order, with no more wake-ups than batches") {
    constexpr std::size_t posters = 4, tasks = 5'000;
    Reactor reactor;
    std::vector<std::size_t> next(posters, 0);
    std::size_t run = 0;
    std::vector<std::thread> threads;
    for (std::size_t poster = 0; poster < posters; ++poster)
      threads.emplace_back([&, poster, mailbox = reactor.mailbox()] {
        for (std::size_t index = 0; index < tasks; ++index) {
          const auto posted = mailbox.post([&, poster, index] {
            CHECK(next[poster] == index);
            next[poster] = index + 1;
            if (++run == posters * tasks) reactor.stop();
          });
          if (!posted) return;
        }
      });

    REQUIRE(reactor.run());
    for (std::thread& thread : threads) thread.join();

    CHECK(run == posters * tasks);
    CHECK(reactor.counters().tasks_run == posters * tasks);
    CHECK(reactor.counters().wakeups <= reactor.counters().turns);
  }

  TEST_CASE("no wake-up is lost, however the post and the sleep meet") {
    Reactor reactor;
    // Ping-pong: each post finds the reactor about to sleep. One lost wake-up and it stands still.
    constexpr int rounds = 20'000;
    std::atomic<int> answered = 0;
    std::thread other([&, mailbox = reactor.mailbox()] {
      for (int round = 1; round <= rounds; ++round) {
        if (!mailbox.post([&, round] { answered.store(round, std::memory_order_release); })) return;
        // Half of the rounds come at once, the others when the reactor has had time to go back to sleep.
        while (round % 2 == 0 && answered.load(std::memory_order_acquire) != round) {
        }
      }
      (void)mailbox.stop();
    });
    Timer guard(reactor, [&] {
      FAIL_CHECK("a wake-up was lost");
      reactor.stop();
    });
    REQUIRE(guard.arm_after(std::chrono::milliseconds(test::patience_ms)));
    REQUIRE(reactor.run());
    other.join();
    CHECK(test::turn_until(reactor, [&] { return answered == rounds; }));
  }

  TEST_CASE("another thread's stop ends a run that sleeps without a deadline") {
    Reactor reactor;
    for (int round = 0; round < 100; ++round) {
      std::atomic<bool> running = false;
      REQUIRE(reactor.post([&] { running = true; }));
      std::thread other([&, mailbox = reactor.mailbox()] {
        while (!running) std::this_thread::yield();
        if (!mailbox.stop()) std::abort();
      });
      REQUIRE(reactor.run());
      other.join();
    }
  }

  TEST_CASE("a stop posted behind tasks lets them run") {
    Reactor reactor;
    int run = 0;
    std::thread other([&run, mailbox = reactor.mailbox()] {
      for (int count = 0; count < 10; ++count)
        if (!mailbox.post([&run] { ++run; })) std::abort();
      if (!mailbox.stop()) std::abort();
    });
    other.join();
    // Asked for before the run began, and yet not lost: whoever stops from another thread can't know how far we are.
    REQUIRE(reactor.run());
    CHECK(run == 10);
  }

  TEST_CASE("threads that post while the reactor ends get an answer, and every task ends") {
    const Alive task = alive();
    for (int round = 0; round < 50; ++round) {
      std::optional<Reactor> reactor(std::in_place);
      std::atomic<int> posted = 0;
      std::vector<std::thread> threads;
      for (int count = 0; count < 3; ++count)
        threads.emplace_back([&posted, task, mailbox = reactor->mailbox()] {
          for (;;) {
            const auto answer = mailbox.post([task] {});
            ++posted;
            if (answer) continue;
            if (answer.error() != Error{"post", ESHUTDOWN}) std::abort();
            return;
          }
        });
      while (posted < 100) REQUIRE(reactor->turn(1ms));
      reactor.reset();
      for (std::thread& thread : threads) thread.join();
      threads.clear();
      CHECK(task.use_count() == 1);
    }
  }

  TEST_CASE("a task posted to a reactor that is gone is destroyed by the thread that posts it, before post returns") {
    std::optional<Reactor> reactor(std::in_place);
    const Mailbox mailbox = reactor->mailbox();
    reactor.reset();
    std::thread other([&mailbox] {
      std::thread::id destroyed_by;
      Alive task(new int(0), [&destroyed_by](const int* held) {
        destroyed_by = std::this_thread::get_id();
        delete held;
      });
      const auto answer = mailbox.post([task = std::move(task)] { std::abort(); });
      if (answer || answer.error() != Error{"post", ESHUTDOWN}) std::abort();
      if (destroyed_by != std::this_thread::get_id()) std::abort();
    });
    other.join();
  }

  TEST_CASE("the process's timeouts may be replaced by any thread while connections are made") {
    const test::ProcessTimeouts process;
    test::Hooks hooks;
    Reactor reactor;
    const test::HookedListener server(reactor, hooks);
    std::atomic<bool> over = false;
    std::thread other([&over] {
      for (int round = 0; !over; ++round) {
        Timeouts timeouts = vigil::default_timeouts();
        timeouts.receive = std::chrono::seconds(3600 + round % 100);
        timeouts.send = timeouts.receive;
        if (!vigil::set_default_timeouts(timeouts)) std::abort();
      }
    });
    hooks.on_receive = [](Connection& connection, Bytes bytes) { connection.send(bytes); };
    for (int count = 0; count < 50; ++count) {
      test::Client client = test::connect_client(reactor, hooks, server.address);
      client.peer.send("hello");
      CHECK(test::turn_until(reactor, [&] { return client.peer.read().received == "hello"; }));
    }
    over = true;
    other.join();
  }

  TEST_CASE("reactors on threads of their own share nothing but their mailboxes") {
    constexpr int rounds = 2'000;
    Reactor here;
    std::optional<Mailbox> there;
    std::atomic<bool> made = false;
    std::thread thread([&] {
      Reactor reactor;
      there = reactor.mailbox();
      made = true;
      if (!reactor.run()) std::abort();
    });
    while (!made) std::this_thread::yield();
    int returned = 0;
    struct Ball {
      Mailbox here;
      Mailbox there;
      int* returned;
      void serve() const {
        const Ball ball = *this;
        (void)there.post([ball] {
          (void)ball.here.post([ball] {
            if (++*ball.returned < rounds) ball.serve();
          });
        });
      }
    };
    Ball{here.mailbox(), *there, &returned}.serve();
    CHECK(test::turn_until(here, [&] { return returned == rounds; }));
    REQUIRE(there->stop());
    thread.join();
  }
}

}  // namespace
