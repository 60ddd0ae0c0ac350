// Listeners on virtual time: batches, what accept may answer, running out of descriptors, and the accept deadline.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <vector>

#include "support/observed_listener.hpp"

using namespace vigil;
using sys::Call;
using sys::Ending;

namespace {

constexpr Duration tick = 1ms;

}  // namespace

TEST_CASE("who waits is accepted in bounded batches, and the established have their turn in between") {
  Simulation world;
  const int established = world.accept();
  for (int count = 0; count < 500; ++count) (void)world.kernel.peer_connects(world.listening);
  std::size_t turns = 0;
  while (world.story.opened.size() < 501) {
    const std::size_t before = world.story.opened.size();
    world.kernel.peer_sends(established, "x");
    world.turn();
    ++turns;
    CHECK(world.story.opened.size() - before <= 64);
    REQUIRE(world.story.received[established] == std::string(turns, 'x'));
  }
  CHECK(turns <= 10);
}

TEST_CASE("an accepted connection costs one accept, one registration and no option") {
  Simulation world;
  world.kernel.forget_calls();
  (void)world.accept();
  CHECK(world.kernel.count(Call::accept) <= 2);
  CHECK(world.kernel.count(Call::epoll_control) == 1);
  CHECK(world.kernel.count(Call::set_option) == 0);
  CHECK(world.kernel.count(Call::get_option) == 0);
}

TEST_CASE("a connection that died while it waited is skipped, whatever it died of, and who waits behind it is accepted") {
  for (const int error :
       {ECONNABORTED, ENETDOWN, EPROTO, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, EPERM}) {
    CAPTURE(error);
    Observed world;
    world.kernel.will_fail_to_accept(world.listening, error);
    world.kernel.will_fail_to_accept(world.listening, error);
    const int behind = world.kernel.peer_connects(world.listening);
    world.turn();  // within the one batch
    CHECK(world.story.opened == std::vector<int>{behind});
    CHECK(world.events.paused.empty());
    CHECK(world.events.shed.empty());
    CHECK(world.reactor->counters().opened == 1);
    CHECK(world.is_watched());
  }
}

TEST_CASE("an interrupted accept is repeated") {
  Simulation world;
  world.kernel.will_fail(Call::accept, EINTR);
  world.kernel.will_fail(Call::accept, EINTR);
  (void)world.accept();
}

TEST_CASE("a connection reset before it was accepted opens and ends, with its bytes") {
  Simulation world;
  const int peer = world.kernel.peer_connects(world.listening);
  world.kernel.will_receive(peer, "last words");
  world.kernel.will_receive_error(peer, ECONNRESET);
  world.settle();
  CHECK(world.story.opened == std::vector<int>{peer});
  CHECK(world.story.received[peer] == "last words");
  CHECK(world.story.record(peer).reason == CloseReason::peer_reset);
}

TEST_CASE("what a peer sent before it was accepted is read without another event") {
  Simulation world;
  const int peer = world.kernel.peer_connects(world.listening);
  world.kernel.will_receive(peer, "early");
  world.settle();
  CHECK(world.story.received[peer] == "early");
}

TEST_CASE("a connection that can't be watched ends with system_error, once, and was never open") {
  Simulation world;
  world.kernel.will_fail(Call::epoll_control, ENOSPC);
  const int peer = world.kernel.peer_connects(world.listening);
  world.settle();
  CHECK(world.story.opened.empty());
  REQUIRE(world.story.records.size() == 1);
  const CloseRecord& record = world.story.record(peer);
  CHECK(record.reason == CloseReason::system_error);
  CHECK(record.error_number == ENOSPC);
  CHECK(std::string_view(record.operation) != "");
  CHECK(record.phase == Phase::connecting);
  CHECK(world.reactor->counters().opened == 1);
  CHECK(world.reactor->counters().closed == 1);
  (void)world.accept();  // the listener lives on
}

// Out of descriptors ---------------------------------------------------------------------------------------------------------

TEST_CASE("out of descriptors the head of the queue is shed, accepting pauses with growing delays, and resumes") {
  Observed world;
  const std::size_t open_before = world.kernel.open_descriptors().size();
  world.kernel.limit_descriptors(open_before);
  std::vector<int> peers;
  for (int count = 0; count < 3; ++count) peers.push_back(world.kernel.peer_connects(world.listening));
  const Instant first_pause = world.kernel.now();
  world.turn();
  REQUIRE(world.events.shed.size() == 1);
  CHECK(world.events.shed[0].reason == CloseReason::accept_shed);
  CHECK(world.events.shed[0].error_number == EMFILE);
  CHECK(world.events.shed[0].origin == Origin::policy);
  CHECK(world.kernel.ending(peers[0]) == Ending::reset);
  CHECK(world.events.paused == std::vector<Error>{{"accept", EMFILE}});
  CHECK(world.story.opened.empty());
  CHECK(world.reactor->counters().shed == 1);
  CHECK(world.reactor->counters().opened == 1);
  CHECK(world.reactor->counters().closed == 1);

  world.kernel.forget_calls();
  world.run_for(1s);
  CHECK(world.events.shed.size() == 3);
  CHECK(world.kernel.count(Call::epoll_wait) < 40);  // no spin
  for (std::size_t index = 1; index < world.events.retries.size(); ++index) {
    CHECK(world.events.retries[index] >= world.events.retries[index - 1]);
    CHECK(world.events.retries[index] <= 2 * world.events.retries[index - 1]);
  }
  CHECK(world.events.retries.front() < world.events.retries.back());
  CHECK(world.events.resumed_after.empty());
  CHECK(world.kernel.open_descriptors().size() == open_before);  // with the reserve

  world.kernel.limit_descriptors(1000);
  const int peer = world.kernel.peer_connects(world.listening);
  world.run_for(1s);
  CHECK(world.story.opened == std::vector<int>{peer});
  REQUIRE(world.events.resumed_after.size() == 1);
  CHECK(world.events.resumed_after[0] >= 1s);
  CHECK(world.events.resumed_after[0] <= world.kernel.now() - first_pause);
  CHECK(world.reactor->counters().opened == world.reactor->counters().closed + 1);
}

TEST_CASE("a reserve that somebody else took meanwhile is restored when there is room") {
  Observed world;
  const std::size_t open_before = world.kernel.open_descriptors().size();
  world.kernel.limit_descriptors(open_before);
  world.kernel.will_fail(Call::reserve_open, EMFILE);
  world.kernel.will_fail(Call::reserve_open, ENFILE);
  (void)world.kernel.peer_connects(world.listening);
  (void)world.kernel.peer_connects(world.listening);
  world.turn();
  world.run_for(1s);
  CHECK(world.kernel.open_descriptors().size() == open_before);
  world.kernel.limit_descriptors(1000);
  world.run_for(1s);
  CHECK(world.events.resumed_after.size() == 1);
}

TEST_CASE("out of memory the head of the queue is shed as well, accepting pauses, and who waits behind it is accepted then") {
  int error = ENOMEM;
  SUBCASE("ENOMEM") {}
  SUBCASE("ENOBUFS") { error = ENOBUFS; }
  Observed world;
  world.kernel.will_fail_to_accept(world.listening, error);
  (void)world.kernel.peer_connects(world.listening);
  const int behind = world.kernel.peer_connects(world.listening);
  world.turn();
  CHECK(world.events.paused == std::vector<Error>{{"accept", error}});
  REQUIRE(world.events.shed.size() == 1);
  CHECK(world.events.shed[0].error_number == error);
  CHECK(world.story.opened.empty());
  world.run_for(100ms);
  CHECK(world.story.opened == std::vector<int>{behind});
  CHECK(world.events.resumed_after.size() == 1);
}

TEST_CASE("an accept that fails for a cause nobody foresaw is told and tried again, never a spin") {
  Observed world;
  for (int count = 0; count < 3; ++count) world.kernel.will_fail(Call::accept, EFAULT);
  const int peer = world.kernel.peer_connects(world.listening);
  world.kernel.forget_calls();
  world.run_for(1s);
  CHECK(world.events.paused.size() == 3);
  CHECK(world.events.paused[0] == Error{"accept", EFAULT});
  CHECK(world.kernel.count(Call::accept) <= 6);
  CHECK(world.story.opened == std::vector<int>{peer});
}

TEST_CASE("a listener destroyed while it pauses leaves no timer behind") {
  Observed world;
  world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
  (void)world.kernel.peer_connects(world.listening);
  world.turn();
  REQUIRE(world.events.paused.size() == 1);
  world.observed.reset();
  world.run_for(1s);
  CHECK(world.events.paused.size() == 1);
}

TEST_CASE("a listener may be destroyed from everything it tells") {
  Observed world;
  std::vector<int> peers;
  for (int count = 0; count < 5; ++count) peers.push_back(world.kernel.peer_connects(world.listening));
  world.story.on_open = [&](Connection&) { world.observed.reset(); };
  world.settle();
  CHECK(world.story.opened == std::vector<int>{peers[0]});
  CHECK(world.story.connection(peers[0]).is_open());
  CHECK(world.kernel.listener() == -1);
}

// The accept deadline --------------------------------------------------------------------------------------------------------

TEST_CASE("nobody coming is told once per period, on time, and the listener lives on") {
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  const auto check_period = [](const ListenerEvents& events, std::size_t index, Instant since) {
    REQUIRE(events.timed_out.size() > index);
    CHECK(events.timed_out[index] >= since + 250ms);
    CHECK(events.timed_out[index] <= since + 250ms + tick);
    CHECK(events.timed_out_after[index] == events.timed_out[index] - since);
  };
  Observed world(options);
  const Instant start = world.kernel.now();
  world.run_for(300ms);
  check_period(world.events, 0, start);
  world.run_for(250ms);
  check_period(world.events, 1, world.events.timed_out[0]);
  world.run_for(100ms);
  (void)world.accept();
  const Instant accepted = world.kernel.now();
  world.run_for(300ms);
  check_period(world.events, 2, accepted);
  CHECK(world.events.timed_out.size() == 3);
}

TEST_CASE("who comes in the same turn as the accept deadline beats it") {
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  Observed world(options);
  const Instant due = world.kernel.now() + 250ms;
  int peer = -1;
  world.kernel.at(due, [&] { peer = world.kernel.will_accept(world.listening); });
  world.run_until(due + 50ms);
  CHECK(world.events.timed_out.empty());
  CHECK(world.story.opened == std::vector<int>{peer});
}

TEST_CASE("the accept deadline stands still while accepting is paused") {
  ListenerOptions options;
  options.timeouts.accept = 250ms;
  Observed world(options);
  world.run_for(200ms);
  world.kernel.limit_descriptors(world.kernel.open_descriptors().size());
  (void)world.kernel.peer_connects(world.listening);
  const std::size_t shed_before = world.events.shed.size();
  world.run_for(3s);
  CHECK(world.events.shed.size() == shed_before + 1);
  CHECK(world.events.timed_out.empty());
  world.kernel.limit_descriptors(1000);
  const Instant lifted = world.kernel.now();
  world.run_for(1s);
  REQUIRE_FALSE(world.events.timed_out.empty());
  CHECK(world.events.timed_out[0] > lifted + 40ms);
  CHECK(world.events.timed_out[0] < lifted + 200ms);
}

// Opening and closing --------------------------------------------------------------------------------------------------------

TEST_CASE("whatever fails while it begins to listen is one error that says so, and leaves nothing open") {
  Simulation world;
  const std::size_t open_before = world.kernel.open_descriptors().size();
  Story story;
  Listener<Actor> listener(*world.reactor, {.timeouts = {}, .socket = {}, .reuse_port = true},
                           [&](Connection& connection) { return Actor(story, connection); });
  const auto fails = [&](int error) {
    const auto listening = listener.listen("[::1]:0");
    REQUIRE_FALSE(listening);
    CHECK(listening.error().code == error);
    CHECK(std::string_view(listening.error().operation) != "");
    CHECK(world.kernel.open_descriptors().size() == open_before);
    CHECK_FALSE(listener.address());
  };
  world.kernel.will_fail(Call::socket, EMFILE);
  fails(EMFILE);
  world.kernel.will_fail(Call::bind, EADDRINUSE);
  fails(EADDRINUSE);
  world.kernel.will_fail(Call::bind, EACCES);
  fails(EACCES);
  world.kernel.will_fail(Call::listen, EADDRINUSE);
  fails(EADDRINUSE);
  world.kernel.will_fail(Call::epoll_control, ENOSPC);
  fails(ENOSPC);
  for (std::size_t option = 0; option < 4; ++option) {
    world.kernel.will_fail(Call::set_option, ENOBUFS, option);
    fails(ENOBUFS);
  }
  CHECK(listener.listen("[::1]:0"));
  CHECK(listener.address());
  const auto again = listener.listen("[::1]:0");
  REQUIRE_FALSE(again);
  CHECK(again.error().code == EINVAL);
  listener.close();
  CHECK_FALSE(listener.address());
  CHECK(listener.listen("[::1]:0"));
}

TEST_CASE("a port in use is refused, and may be used once it is free") {
  Simulation world;
  Story story;
  Listener<Actor> second(*world.reactor, {}, [&](Connection& connection) { return Actor(story, connection); });
  const auto refused = second.listen("127.0.0.1:7000");
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Error{"listen", EADDRINUSE});
  world.listener->close();
  CHECK(second.listen("127.0.0.1:7000"));
}

TEST_CASE("closing a listener leaves its connections open") {
  Simulation world;
  const int peer = world.accept();
  world.story.on_receive = [](Connection& connection, std::string_view text) { connection.send(bytes_of(text)); };
  SUBCASE("close") { world.listener->close(); }
  SUBCASE("destroy") { world.listener.reset(); }
  world.settle();
  world.kernel.peer_sends(peer, "still there");
  world.settle();
  CHECK(world.kernel.sent(peer) == "still there");
}
