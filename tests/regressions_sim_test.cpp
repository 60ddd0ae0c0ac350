// What once went wrong, on virtual time: one test for each mistake, with its cause.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <functional>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/out_of_memory.hpp"
#include "support/simulation.hpp"

#if VIGIL_MEMORY_RUNS_OUT
// Of all allocations only those that may answer null are made to: what the library asks for in this way it must do without.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (vigil::memory_runs_out()) return nullptr;
  try {
    return ::operator new(size);
  } catch (...) {
    return nullptr;
  }
}
#endif

using namespace vigil;
using sys::Call;
using sys::Ending;

namespace {

constexpr Duration tick = 1ms;

ListenerOptions with_marks(std::size_t high, std::size_t low) {
  ListenerOptions options;
  options.backlog_high_mark_bytes = high;
  options.backlog_low_mark_bytes = low;
  return options;
}

}  // namespace

// Whose bytes ----------------------------------------------------------------------------------------------------------------

// The dispatch had handed the gather buffer over already when it told on_send_drained, but still gathered: the bytes stayed
// there, and whoever was dispatched next sent them to its own peer.
TEST_CASE("what a handler sends once its queue has drained goes to its own peer and to nobody else's") {
  ListenerOptions options = with_marks(1000, 100);
  SUBCASE("without a send deadline") {}
  SUBCASE("with one") { options.timeouts.send = 30s; }
  Simulation world(options);
  const int a = world.accept();
  const int b = world.accept();
  const std::string bulk(2000, 'a');
  world.story.on_send_drained = [](Connection& connection) { CHECK(connection.send(bytes_of("after"))); };
  world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
  world.kernel.will_take(a, 0);
  CHECK(world.story.connection(a).send(bytes_of(bulk)));
  world.settle();

  world.kernel.peer_reads_all(a);
  world.kernel.peer_sends(b, "one");
  world.settle();
  world.kernel.peer_sends(b, "two");
  world.settle();
  CHECK(world.kernel.sent(a) == bulk + "after");
  CHECK(world.kernel.sent(b) == "onetwo");
  CHECK(world.story.connection(a).backlog_bytes() == 0);
}

// As above: what stayed in the gather buffer was counted by nobody when its connection ended at once.
TEST_CASE("what a handler sends once its queue has drained, and then aborts, is told as unsent") {
  Simulation world(with_marks(1000, 100));
  const int a = world.accept();
  const int b = world.accept();
  const std::string bulk(2000, 'a');
  world.story.on_send_drained = [](Connection& connection) {
    CHECK(connection.send(bytes_of("after")));
    CHECK(connection.backlog_bytes() == 5);
    CHECK(connection.abort());
  };
  world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
  world.kernel.will_take(a, 0);
  CHECK(world.story.connection(a).send(bytes_of(bulk)));
  world.settle();

  world.kernel.peer_reads_all(a);
  world.kernel.peer_sends(b, "one");
  world.settle();
  CHECK(world.kernel.sent(a) == bulk);
  CHECK(world.kernel.sent(b) == "one");
  CHECK(world.story.record(a).reason == CloseReason::local_close);
  CHECK(world.story.record(a).unsent == 5);
  CHECK(world.story.record(a).handed_to_kernel == bulk.size());
  CHECK(world.kernel.ending(a) == Ending::reset);
}

// As above: our end went out before what was gathered.
TEST_CASE("what a handler sends once its queue has drained, and then closes, arrives before our end") {
  Simulation world(with_marks(1000, 100));
  const int peer = world.accept();
  const std::string bulk(2000, 'a');
  world.story.on_send_drained = [](Connection& connection) {
    CHECK(connection.send(bytes_of("after")));
    CHECK(connection.close());
  };
  world.kernel.will_take(peer, 0);
  CHECK(world.story.connection(peer).send(bytes_of(bulk)));
  world.settle();

  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(world.kernel.sent(peer) == bulk + "after");
  CHECK(world.kernel.sent_end(peer));
  world.kernel.peer_finishes(peer);
  world.settle();
  CHECK(world.story.record(peer).unsent == 0);
  CHECK(world.kernel.ending(peer) == Ending::orderly);
}

// What is gathered is no queue, and only a queue passes the high mark: with a mark below the gather buffer's size a handler that
// filled up to it was never told to go on.
TEST_CASE("a handler that fills up to a high mark below the gather buffer stops there and is told when to go on") {
  const std::size_t high = 1000;
  Simulation world(with_marks(high, 100));
  const int peer = world.accept();
  const std::string piece(300, 'p');
  std::size_t sends = 0;
  int drained = 0;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    while (connection.backlog_bytes() <= high && sends < 100'000) {
      CHECK(connection.send(bytes_of(piece)));
      ++sends;
    }
  };
  world.story.on_send_drained = [&](Connection& connection) {
    ++drained;
    CHECK(connection.backlog_bytes() <= 100);
  };
  SUBCASE("of a peer that reads everything at once") {}
  SUBCASE("of a peer that reads nothing at first") { world.kernel.will_take(peer, 0); }
  SUBCASE("of a peer that reads a part") { world.kernel.will_take(peer, 1700); }
  world.kernel.peer_sends(peer, "go");
  world.settle();
  CHECK(sends < 100'000);
  world.kernel.peer_reads_all(peer);
  world.settle();
  CHECK(drained == 1);
  CHECK(world.kernel.sent(peer).size() == sends * piece.size());
}

// An empty span has no address, which memcpy may not be given, not even for no bytes.
TEST_CASE("a send of nothing does nothing") {
  ListenerOptions options;
  SUBCASE("without a send deadline") {}
  SUBCASE("with one") { options.timeouts.send = 50ms; }
  Simulation world(options);
  const int peer = world.accept();
  std::string_view reply;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    CHECK(connection.send(Bytes()));
    CHECK(connection.backlog_bytes() == 0);
    if (!reply.empty()) {
      CHECK(connection.send(bytes_of(reply)));
      CHECK(connection.send(Bytes()));
    }
  };
  world.kernel.forget_calls();
  world.kernel.peer_sends(peer, "x");
  world.settle();
  CHECK(world.story.connection(peer).send(Bytes()));
  world.run_for(1s);
  CHECK(world.kernel.count(Call::send) + world.kernel.count(Call::send_vector) == 0);
  CHECK(world.story.records.empty());  // nor does a deadline run

  reply = "reply";
  world.kernel.peer_sends(peer, "y");
  world.settle();
  CHECK(world.kernel.sent(peer) == "reply");
  CHECK(world.story.connection(peer).finish());
  CHECK(world.story.connection(peer).send(Bytes()).error() == Error{"send", EPIPE});
}

// Out of memory --------------------------------------------------------------------------------------------------------------

#if VIGIL_MEMORY_RUNS_OUT

// Keeping what the kernel had not taken ended the connection, but its dispatch went on with it as if it were open: it sent our
// end, and armed a deadline in a slot about to be given back.
TEST_CASE("without memory for what the kernel did not take of a reply a connection ends once, with the cause") {
  bool closes = false;
  SUBCASE("and no more was asked of it") {}
  SUBCASE("and it was closed behind the reply") { closes = true; }
  Simulation world;
  const int peer = world.accept();
  std::optional<OutOfMemory> shortage;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    CHECK(connection.send(bytes_of("reply")));
    if (closes) CHECK(connection.close());
    shortage.emplace();
  };
  world.kernel.will_take(peer, 2);
  world.kernel.peer_sends(peer, "x");
  world.settle();
  shortage.reset();
  REQUIRE(world.story.records.size() == 1);
  const CloseRecord& record = world.story.record(peer);
  CHECK(record.reason == CloseReason::system_error);
  CHECK(record.error_number == ENOMEM);
  CHECK(std::string_view(record.operation) == "send");
  CHECK(record.handed_to_kernel == 2);
  CHECK(record.unsent == 3);
  CHECK(world.kernel.sent(peer) == "re");
  CHECK_FALSE(world.kernel.sent_end(peer));
  CHECK(world.kernel.ending(peer) == Ending::reset);
  world.run_for(1h);
  (void)world.accept();  // and the slot is as good as new
}

// What had been handed over was ended in order, as if it were all.
TEST_CASE("without memory for the rest of a piece the kernel took a part of, its peer sees a reset") {
  Simulation world;
  const int peer = world.accept();
  std::optional<OutOfMemory> shortage;
  world.story.on_receive = [&](Connection& connection, std::string_view) {
    shortage.emplace();
    CHECK(connection.send(bytes_of(std::string(20'000, 'x'))).error() == Error{"send", ENOMEM});
  };
  world.kernel.will_take(peer, 8000);
  world.kernel.peer_sends(peer, "x");
  world.settle();
  shortage.reset();
  REQUIRE(world.story.records.size() == 1);
  CHECK(world.story.record(peer).reason == CloseReason::system_error);
  CHECK(world.story.record(peer).error_number == ENOMEM);
  CHECK(world.kernel.sent(peer).size() == 8000);
  CHECK(world.kernel.ending(peer) == Ending::reset);
}

#endif

// Deadlines ------------------------------------------------------------------------------------------------------------------

// While closing, drain's duration stands in for a send deadline of never; setting it to never anew forgot that, and the close
// lasted as long as its peer liked.
TEST_CASE("a close whose send timeout becomes never meanwhile is still bounded by drain's duration") {
  ListenerOptions options;
  options.timeouts.drain = 1s;
  SUBCASE("it was never before") {}
  SUBCASE("it was a duration before") { options.timeouts.send = 30s; }
  Simulation world(options);
  const int peer = world.accept();
  Instant ended{};
  world.story.on_close = [&](Connection&, const CloseRecord&) { ended = world.kernel.now(); };
  SUBCASE("the peer reads nothing") { world.kernel.will_take(peer, 0); }
  SUBCASE("the peer acknowledges nothing") { world.kernel.will_not_acknowledge(peer); }
  CHECK(world.story.connection(peer).send(bytes_of("unread")));
  world.settle();
  CHECK(world.story.connection(peer).close());
  const Instant closed = world.kernel.now();
  world.run_for(200ms);
  CHECK(world.story.connection(peer).set_timeout(Deadline::send, never));
  const Instant set = world.kernel.now();
  world.run_for(1h);
  const CloseRecord& record = world.story.record(peer);
  CHECK(record.reason == CloseReason::local_close);
  CHECK(record.cut_short == CutShort::timed_out);
  CHECK(ended >= closed + 1s);
  CHECK(ended <= set + 1s + tick);
}

// Without a descriptor left the kernel answers EMFILE though nobody waits. That began a pause, in which the accept deadline
// stands still: it was never told.
TEST_CASE("out of descriptors with nobody waiting accepting goes on, and its deadline is told") {
  struct Events {
    std::size_t timed_out = 0;
    std::size_t paused = 0;
    std::size_t shed = 0;
    void on_accept_timed_out(Duration) { ++timed_out; }
    void on_accept_paused(const Error&, Duration) { ++paused; }
    void on_shed(const CloseRecord&) { ++shed; }
  } events;
  Simulation world;
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  Listener<Actor> listener(
      *world.reactor, options, [&](Connection& connection) { return Actor(world.story, connection); }, events);
  REQUIRE(listener.listen("127.0.0.1:7001"));
  const int listening = world.kernel.listener();
  world.settle();
  const std::size_t open_before = world.kernel.open_descriptors().size();
  world.kernel.limit_descriptors(open_before);
  world.run_for(1100ms);
  CHECK(events.timed_out == 4);
  CHECK(events.paused == 0);
  CHECK(events.shed == 0);
  CHECK(world.kernel.open_descriptors().size() == open_before);  // with the reserve

  (void)world.kernel.peer_connects(listening);
  world.turn();
  CHECK(events.paused == 1);  // whereas somebody who waits is a reason
  CHECK(events.shed == 1);
}

// The reactor's end ----------------------------------------------------------------------------------------------------------

namespace {

/// Does something when the callable that holds it is destroyed.
struct AtEnd {
  explicit AtEnd(std::function<void()> given) : act(std::move(given)) {}
  AtEnd(AtEnd&& other) noexcept : act(std::exchange(other.act, nullptr)) {}
  AtEnd& operator=(AtEnd&&) = delete;
  ~AtEnd() {
    if (act) act();
  }
  std::function<void()> act;
};

}  // namespace

// The last tasks were destroyed while the list they stood on was being destroyed, and what one of them posted went there.
TEST_CASE("a task that was never run may post another when the reactor's end destroys it") {
  CheckedKernel kernel;
  int destroyed = 0;
  bool ran = false;
  {
    Reactor reactor;
    const auto posts_another = [&] {
      ++destroyed;
      (void)reactor.post([&ran, last = AtEnd([&destroyed] { ++destroyed; })] { ran = true; });
    };
    SUBCASE("posted") {
      REQUIRE(reactor.post([last = AtEnd(posts_another)] {}));
    }
    SUBCASE("posted through the mailbox") {
      REQUIRE(reactor.mailbox().post([last = AtEnd(posts_another)] {}));
    }
  }
  CHECK(destroyed == 2);
  CHECK_FALSE(ran);
}

// A timer that was cancelled could still be armed until its slot was given back: the wheel then held a node of a vacant slot.
TEST_CASE("a timer that is armed again from what the reactor's end destroys stays unarmed") {
  CheckedKernel kernel;
  std::vector<Result<void>> answers;
  {
    std::optional<Reactor> reactor(std::in_place);
    std::optional<Timer> first;
    std::optional<Timer> second;
    const auto arm_both = [&] {
      answers.push_back(first->arm_after(1ms));
      answers.push_back(second->arm_after(0ms));
    };
    first.emplace(*reactor, [last = AtEnd(arm_both)] {});
    second.emplace(*reactor, [last = AtEnd(arm_both)] {});
    REQUIRE(first->arm_after(1h));
    REQUIRE(reactor->post([last = AtEnd(arm_both)] {}));
    reactor.reset();
    CHECK_FALSE(first->armed());
    CHECK_FALSE(second->armed());
  }
  REQUIRE(answers.size() == 6);
  for (const auto& answer : answers) {
    REQUIRE_FALSE(answer);
    CHECK(answer.error() == Error{"arm timer", ECANCELED});
  }
}

// What was posted, and the callback of a timer made, while the reactor destroyed its tasks was never destroyed.
// For the address sanitizer: the pool keeps a thousand side blocks, the rest go back to the allocator.
TEST_CASE("a message that begins as its connection ends leaves no stamp owed to memory that was given back") {
  ListenerOptions options;
  options.timeouts = {.receive = 50ms, .message = 10s};
  Simulation world(options);
  world.story.on_open = [](Connection& connection) { connection.end_message(); };
  world.story.on_receive = [](Connection& connection, std::string_view) { connection.abort(); };
  constexpr std::size_t connections = 1'100;
  for (std::size_t count = 0; count < connections; ++count) world.kernel.will_receive(world.accept(), "x");
  world.run_for(60ms);  // nobody is told of the bytes: the receive deadline asks for them
  CHECK(world.story.records.size() == connections);
  for (const CloseRecord& record : world.story.records) REQUIRE(record.reason == CloseReason::local_close);
}

TEST_CASE("nothing begins any more while the reactor's end destroys what was never run") {
  CheckedKernel kernel;
  int destroyed = 0;
  bool gone = false;
  std::function<void()> post_another;
  Timer late;
  {
    Reactor reactor;
    post_another = [&] {
      if (++destroyed == 1) late = Timer(reactor, [last = AtEnd([&gone] { gone = true; })] {});
      if (destroyed < 10) (void)reactor.post([last = AtEnd(post_another)] {});
    };
    REQUIRE(reactor.post([last = AtEnd(post_another)] {}));
  }
  CHECK(destroyed == 10);  // each that was refused was destroyed at once
  CHECK(gone);
  CHECK_FALSE(late.active());
  CHECK(late.arm_after(1ms).error() == Error{"arm timer", ECANCELED});
}
