// Every system call of a whole life fails in turn, each with what it may really fail with.
//
// Method: one busy scenario (a listener, accepted connections that end in every way, attempts, timers, tasks, watches, a signal,
// a shutdown) is run once to count its calls. Then it is run again for each of them, with that one call failing. Whatever fails:
// the scenario comes to its end in bounded virtual time and turns, every life opened or attempted has exactly one record, nothing
// is told after an end, no descriptor is left and none used after it was closed. A failure prints the call's number and name.
#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;
using sys::RecordedCall;

namespace {

/// What a call may fail with, the likeliest first. Empty: it can't fail, or its failure has no meaning.
std::vector<int> plausible_errors(const RecordedCall& made) {
  switch (made.call) {
    case Call::epoll_create:
    case Call::wake_open:
    case Call::reserve_open:
    case Call::signal_open:
    case Call::socket:
      return {EMFILE, ENFILE, ENOMEM};
    case Call::epoll_control:
      // Changing or removing an entry allocates nothing in the kernel: only adding one can fail.
      return made.operation == EPOLL_CTL_ADD ? std::vector<int>{ENOSPC, ENOMEM} : std::vector<int>{};
    case Call::epoll_wait:
    case Call::poll:
      return {EINTR};
    case Call::wake_signal:
    case Call::signal_take:
      return {EAGAIN};
    case Call::bind:
    case Call::listen:
      return {EADDRINUSE, EACCES};
    case Call::accept:
      return {EINTR, ECONNABORTED, EMFILE, ENOBUFS, EPERM};
    case Call::connect:
      return {EINTR, ECONNREFUSED, ENETUNREACH, EACCES, EADDRNOTAVAIL};
    case Call::recv:
      return {EINTR, EAGAIN, ECONNRESET, ETIMEDOUT, ENOMEM, EHOSTUNREACH};
    case Call::send:
    case Call::send_vector:
      return {EINTR, EAGAIN, EPIPE, ECONNRESET, ENOBUFS, ETIMEDOUT};
    case Call::shutdown:
      return {ENOTCONN};
    case Call::get_option:
    case Call::set_option:
      return {ENOBUFS, ECONNRESET, EINVAL};
    case Call::local_name:
      return {ENOBUFS};
    case Call::peer_name:
      return {ENOTCONN, ENOBUFS};
    case Call::unread_bytes:
    case Call::unsent_bytes:
      return {EINVAL};
    case Call::path_status:
    case Call::unlink:
      return {EACCES};
    default:
      return {};
  }
}

struct Outcome {
  std::size_t calls = 0;
  std::size_t records = 0;
  std::size_t turns = 0;
};

/// Does what it can, whatever is refused: only the end is checked.
Outcome live_a_whole_life(std::size_t calls_before, std::size_t variant, std::string& failed_call) {
  CheckedKernel kernel;
  Story story;
  Outcome outcome;
  if (calls_before != SIZE_MAX)
    kernel.will_fail_any(calls_before, [&](const RecordedCall& made) {
      const std::vector<int> errors = plausible_errors(made);
      const int error = variant < errors.size() ? errors[variant] : 0;
      failed_call = std::string(sys::to_string(made.call)) + " with " + (error == 0 ? "nothing" : errno_name(error));
      return error;
    });
  {
    ReactorOptions options;
    options.receive_buffer_bytes = 1024;
    Reactor reactor(options);
    const auto make = [&](Connection& connection) { return Actor(story, connection); };
    const auto make_lingering = [&](Connection& connection) { return LingeringActor(story, connection); };
    ListenerOptions listener_options;
    listener_options.timeouts = {.accept = 50ms, .first_byte = 400ms, .receive = 300ms, .send = 200ms, .drain = 100ms};
    listener_options.backlog_bytes_max = 30'000;
    listener_options.backlog_high_mark_bytes = 1000;
    listener_options.backlog_low_mark_bytes = 100;
    Listener<LingeringActor> listener(reactor, listener_options, make_lingering);
    ConnectorOptions connector_options;
    connector_options.timeouts = {.connect = 200ms, .receive = 150ms, .drain = 50ms};
    Connector<Actor> connector(reactor, connector_options, make);
    Timer timer(reactor, [] {});

    story.on_receive = [&](Connection& connection, std::string_view text) {
      connection.send(bytes_of(text));
      if (text.find("close") != std::string_view::npos) connection.close();
      if (text.find("abort") != std::string_view::npos) connection.abort();
      if (text.find("finish") != std::string_view::npos) connection.finish();
      if (text.find("large") != std::string_view::npos) connection.send(bytes_of(std::string(20'000, 'L')));
      if (text.find("huge") != std::string_view::npos) connection.send(bytes_of(std::string(100'000, 'H')));
      if (text.find("post") != std::string_view::npos) (void)reactor.post([&] { (void)timer.arm_after(3ms); });
      (void)connection.set_timeout(Deadline::receive, 120ms);
    };
    story.on_peer_finished = [&](Connection& connection) { connection.send(bytes_of("parting")); };

    const bool listens = static_cast<bool>(listener.listen("127.0.0.1:7000"));
    if (listens) (void)listener.address();
    if (listens) {
      const int listening = kernel.listener();
      const auto meet = [&](Duration at, std::vector<std::function<void(int)>> acts) {
        kernel.after(at, [&kernel, listening, acts] {
          if (kernel.listener() != listening) return;
          const int peer = kernel.peer_connects(listening);
          Duration delay = 5ms;
          for (const auto& act : acts) {
            kernel.after(delay, [act, peer] { act(peer); });
            delay += 5ms;
          }
        });
      };
      const auto says = [&kernel](std::string text) { return [&kernel, text](int peer) { kernel.peer_sends(peer, text); }; };
      meet(1ms, {says("hello"), says("hello again"), [&](int peer) { kernel.peer_finishes(peer); }});
      meet(2ms, {says("close")});
      meet(3ms, {says("abort")});
      meet(4ms, {says("finish"), says("more"), [&](int peer) { kernel.peer_finishes(peer); }});
      meet(5ms, {says("one"), [&](int peer) { kernel.peer_resets(peer); }});
      meet(6ms, {[&](int peer) { kernel.connection_fails(peer, ETIMEDOUT); }});
      meet(7ms, {says("large"), says("huge")});
      meet(8ms, {[&](int peer) { kernel.peer_reads(peer, 10); }, says("slow"), says("reader"),
                 [&](int peer) { kernel.peer_reads_all(peer); }});
      meet(9ms, {says(std::string(5000, 'm'))});
      meet(10ms, {says("post"), [&](int peer) { kernel.peer_finishes(peer); }, [&](int peer) { kernel.peer_resets(peer); }});
      meet(11ms, {});
    }

    std::vector<int> attempts;
    const auto attempt = [&] {
      const auto begun = connector.connect("192.0.2.9:80");
      if (begun && (*begun)->descriptor() >= 0) attempts.push_back((*begun)->descriptor());
    };
    for (int count = 0; count < 4; ++count) attempt();
    kernel.after(20ms, [&] {
      const auto pending = [&](std::size_t index) { return index < attempts.size() && kernel.is_connecting(attempts[index]); };
      if (pending(0)) kernel.peer_accepts(attempts[0]);
      if (pending(1)) kernel.peer_refuses(attempts[1], ECONNREFUSED);
      if (pending(2)) kernel.reaches_itself(attempts[2]);
    });

    const int own = kernel.open_descriptor();
    {
      auto watch = reactor.watch(own, WatchFor::readable, [&](Readiness) {
        if (own >= 0) kernel.set_state(own, 0);
      });
      auto signal = reactor.on_signal(15, [](int) {});
      kernel.after(15ms, [&] {
        if (own >= 0) kernel.set_state(own, EPOLLIN);
      });
      if (signal) kernel.after(16ms, [&] { kernel.raise(15); });
      (void)reactor.mailbox().post([] {});
      kernel.after(30ms, [&] { (void)reactor.mailbox().post([] {}); });

      const auto live_until = [&](Instant end) {
        while (kernel.now() < end && outcome.turns < 5000) {
          ++outcome.turns;
          if (!reactor.turn(end - kernel.now())) return;
        }
      };
      live_until(kernel.now() + 600ms);
      (void)reactor.shutdown(200ms);
      live_until(kernel.now() + 400ms);
    }
    if (own >= 0) sys::close(own);

    CHECK(reactor.counters().opened == reactor.counters().closed);
    CHECK(story.living == 0);
    CHECK(story.records.size() + reactor.counters().shed == reactor.counters().closed);
    CHECK(outcome.turns < 1000);
    for (const CloseRecord& record : story.records) {
      CHECK(std::string_view(to_string(record.reason)) != "");
      CHECK((record.error_number == 0) == (std::string_view(record.operation) == ""));
      CHECK(record.age >= 0ns);
      CHECK(record.age <= 2s);
    }
    outcome.records = story.records.size();
    story.on_receive = nullptr;
    story.on_peer_finished = nullptr;
  }
  CHECK(kernel.blocked_signals().empty());
  outcome.calls = kernel.calls().size();
  return outcome;
}

}  // namespace

TEST_CASE("whichever system call fails, every life ends once and nothing is left behind") {
  std::string failed_call;
  const Outcome undisturbed = live_a_whole_life(SIZE_MAX, 0, failed_call);
  REQUIRE(undisturbed.records == 15);
  REQUIRE(undisturbed.calls > 200);
  std::map<std::string, int> injected;
  for (std::size_t index = 0; index < undisturbed.calls; ++index) {
    for (std::size_t variant = 0; variant < 6; ++variant) {
      failed_call = "none";
      INFO("call ", index, " fails: ", failed_call);
      (void)live_a_whole_life(index, variant, failed_call);
      ++injected[failed_call];
    }
  }
  // What the scenario never reached would be a gap in this test.
  for (const char* fault :
       {"epoll_create with EMFILE", "epoll_control with ENOSPC", "epoll_wait with EINTR",   "wake_open with EMFILE",
        "wake_signal with EAGAIN",  "signal_open with EMFILE",   "signal_take with EAGAIN", "socket with EMFILE",
        "bind with EADDRINUSE",     "listen with EADDRINUSE",    "accept with EINTR",       "accept with ECONNABORTED",
        "accept with EMFILE",       "accept with ENOBUFS",       "connect with EINTR",      "connect with ECONNREFUSED",
        "recv with EINTR",          "recv with EAGAIN",          "recv with ECONNRESET",    "recv with ETIMEDOUT",
        "recv with ENOMEM",         "send with EINTR",           "send with EAGAIN",        "send with EPIPE",
        "send with ECONNRESET",     "send with ENOBUFS",         "send_vector with EPIPE",  "shutdown with ENOTCONN",
        "get_option with ENOBUFS",  "set_option with ENOBUFS",   "peer_name with ENOTCONN", "reserve_open with EMFILE"}) {
    INFO(fault);
    CHECK(injected[fault] > 0);
  }
}
