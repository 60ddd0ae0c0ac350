// Bytes that on_receive leaves, on virtual time: handed over again in front of what follows, each byte once and in its place.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "reactor_core.hpp"
#include "support/out_of_memory.hpp"
#include "support/seed.hpp"
#include "support/simulation.hpp"

using namespace vigil;
using sys::Call;
using sys::Ending;

namespace {

/// One that consumes what its story says.
struct Consumer : Actor {
  using Actor::Actor;
  std::size_t on_receive(Connection& connection, Bytes bytes) {
    CHECK_FALSE(closed_);
    const std::size_t consumed = story_->consume(connection, text_of(bytes));
    story_->received[descriptor_] += text_of(bytes.first(std::min(consumed, bytes.size())));
    return consumed;
  }
};

using Rule = std::function<std::size_t(Connection&, std::string_view)>;

std::size_t nothing(Connection&, std::string_view) { return 0; }
std::size_t everything(Connection&, std::string_view text) { return text.size(); }
std::size_t one_line(Connection&, std::string_view text) { return text.find('\n') + 1; }  // none: npos + 1 is 0
std::size_t whole_records(Connection&, std::string_view text) { return text.size() / 7 * 7; }

/// One connection whose handler consumes by a rule.
struct Scene : SimulationOf<Consumer> {
  explicit Scene(Rule its_rule, const ListenerOptions& options = {}, const ReactorOptions& reactor_options = {})
      : SimulationOf<Consumer>(options, reactor_options), rule(std::move(its_rule)) {
    story.consume = [this](Connection& connection, std::string_view text) {
      offered.emplace_back(text);
      finals += connection.is_final() ? 1 : 0;
      return rule(connection, text);
    };
    peer = accept();
  }
  ~Scene() {
    listener.reset();
    if (!reactor) return;
    CHECK(reactor->shutdown(0ns));
    settle();
    CHECK(core().chunks.in_use() == 0);
    CHECK(core().sides.in_use() == 0);
  }

  [[nodiscard]] ReactorCore& core() { return ReactorCore::of(*reactor); }
  [[nodiscard]] Connection& connection() { return story.connection(peer); }
  [[nodiscard]] const std::string& consumed() { return story.received[peer]; }
  [[nodiscard]] bool is_over() const { return !story.records.empty(); }
  [[nodiscard]] const CloseRecord& record() const { return story.record(peer); }
  void peer_sends(std::string_view bytes) {
    kernel.peer_sends(peer, bytes);
    settle();
  }

  Rule rule;
  std::vector<std::string> offered;  // each piece on_receive was given
  int finals = 0;                    // how many of them were marked so
  int peer = -1;
};

ListenerOptions with_message_bytes_max(std::size_t most) {
  ListenerOptions options;
  options.message_bytes_max = most;
  return options;
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST_CASE("what on_receive leaves is handed over again in front of what follows, as one piece") {
  Scene scene(one_line);
  scene.peer_sends("he");
  scene.peer_sends("llo\nwor");
  scene.peer_sends("ld");
  scene.peer_sends("\n");
  CHECK(scene.offered == Pieces{"he", "hello\nwor", "world", "world\n"});
  CHECK(scene.consumed() == "hello\nworld\n");
  CHECK(scene.core().chunks.in_use() == 0);
}

TEST_CASE("bytes left cost nothing while nothing follows") {
  Scene scene(nothing);
  scene.peer_sends("half a line");
  CHECK(scene.core().chunks.in_use() == 1);
  scene.kernel.forget_calls();
  scene.run_for(1s);
  CHECK(scene.offered == Pieces{"half a line"});
  CHECK(scene.kernel.count(Call::recv) == 0);
  CHECK(scene.kernel.count(Call::epoll_wait) <= 3);
}

TEST_CASE("bytes left by several reads of one dispatch stay one stream") {
  ReactorOptions small;
  small.receive_buffer_bytes = 1024;
  Scene scene(whole_records, {}, small);
  std::string stream;
  for (int number = 0; number < 3000; ++number) stream += static_cast<char>('a' + number % 23);
  scene.peer_sends(stream);
  CHECK(scene.consumed() == stream.substr(0, stream.size() / 7 * 7));
  for (std::size_t index = 1; index < scene.offered.size(); ++index) CHECK(scene.offered[index].size() <= 1024 + 6);
}

TEST_CASE("nothing is lost, doubled or reordered, whatever the pieces, and whatever the handler takes and asks for") {
  const std::uint64_t seed = test::seed_of("bytes left");
  INFO("VIGIL_SEED=" << seed);
  std::mt19937_64 random(seed);
  const auto upto = [&random](std::size_t most) { return static_cast<std::size_t>(random() % (most + 1)); };
  for (int round = 0; round < 60; ++round) {
    ReactorOptions small;
    small.receive_buffer_bytes = 1024 + upto(1024);
    std::string stream(2000 + upto(20'000), '\0');
    for (char& letter : stream) letter = random() % 20 == 0 ? '\n' : static_cast<char>('a' + random() % 26);
    Scene scene(everything, {}, small);
    const std::size_t kind = upto(3);
    scene.rule = [&](Connection& connection, std::string_view text) -> std::size_t {
      // The model: what is handed over is the stream from the first byte that was not consumed.
      CHECK(text == stream.substr(scene.consumed().size(), text.size()));
      std::size_t takes = kind == 0   ? one_line(connection, text)
                          : kind == 1 ? whole_records(connection, text)
                          : kind == 2 ? std::min<std::size_t>(1, text.size())
                                      : upto(text.size());
      if (text.size() - takes > 900) takes = text.size();
      if (takes != 0 && takes != text.size()) CHECK(connection.receive_again());
      if (random() % 50 == 0) CHECK(connection.pause_reading());
      if (random() % 10 == 0) connection.send(bytes_of("reply"));
      return takes;
    };
    for (std::size_t sent = 0; sent < stream.size();) {
      const std::string piece = stream.substr(sent, 1 + upto(random() % 4 == 0 ? 3000 : 30));
      sent += piece.size();
      scene.kernel.peer_sends(scene.peer, piece);
      if (random() % 3 == 0) scene.settle();
      if (random() % 3 == 0) CHECK(scene.connection().resume_reading());
      if (random() % 5 == 0) CHECK(scene.connection().receive_again());
    }
    const auto read_on = [&] {
      CHECK(scene.connection().resume_reading());
      scene.settle();
    };
    for (std::size_t before = stream.size() + 1; before != scene.consumed().size(); read_on()) before = scene.consumed().size();
    while (!scene.is_over() && scene.connection().is_reading_paused()) read_on();
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    if (!scene.is_over()) read_on();
    REQUIRE(scene.is_over());
    CHECK(scene.record().received == stream.size());
    CHECK(scene.consumed().size() + scene.record().unconsumed == stream.size());
    CHECK(scene.consumed() == stream.substr(0, scene.consumed().size()));
  }
}

// Handed over again ----------------------------------------------------------------------------------------------------------

TEST_CASE("receive_again hands over what is left in the next turn, as often as it is called") {
  Scene scene([](Connection& connection, std::string_view text) -> std::size_t {
    CHECK(connection.receive_again());
    return text.empty() ? 0 : 1;
  });
  scene.kernel.peer_sends(scene.peer, "abcd");
  scene.turn(0ns);
  CHECK(scene.offered == Pieces{"abcd"});  // others have their turn first
  scene.settle();
  CHECK(scene.offered == Pieces{"abcd", "bcd", "cd", "d"});
  CHECK(scene.consumed() == "abcd");
}

TEST_CASE("receive_again from elsewhere hands over once, together with what has come meanwhile") {
  Scene scene(nothing);
  scene.peer_sends("left");
  SUBCASE("from a timer") {
    Timer timer(*scene.reactor, [&] { CHECK(scene.connection().receive_again()); });
    REQUIRE(timer.arm_after(1s));
    scene.run_for(2s);
    CHECK(scene.offered == Pieces{"left", "left"});
  }
  SUBCASE("called twice") {
    CHECK(scene.connection().receive_again());
    CHECK(scene.connection().receive_again());
    scene.settle();
    CHECK(scene.offered == Pieces{"left", "left"});
  }
  SUBCASE("more has come") {
    CHECK(scene.connection().receive_again());
    scene.peer_sends(" and more");
    CHECK(scene.offered == Pieces{"left", "left and more"});
  }
  SUBCASE("while reading is paused it waits for resume_reading()") {
    CHECK(scene.connection().pause_reading());
    CHECK(scene.connection().receive_again());
    scene.settle();
    CHECK(scene.offered == Pieces{"left"});
    CHECK(scene.connection().resume_reading());
    scene.settle();
    CHECK(scene.offered == Pieces{"left", "left"});
  }
  SUBCASE("after close it changes nothing") {
    CHECK(scene.connection().receive_again());
    scene.connection().close();
    CHECK(scene.connection().receive_again());
    scene.settle();
    CHECK(scene.offered == Pieces{"left"});
  }
}

TEST_CASE("receive_again where nothing was left changes nothing, also not for bytes that come later") {
  Scene scene(everything);
  CHECK(scene.connection().receive_again());
  scene.settle();
  CHECK(scene.offered.empty());
  scene.peer_sends("all of it");
  CHECK(scene.connection().receive_again());
  scene.rule = nothing;
  scene.peer_sends("left");
  CHECK(scene.offered == Pieces{"all of it", "left"});
}

TEST_CASE("resume_reading hands over again what was left, without more") {
  Scene scene([](Connection& connection, std::string_view) -> std::size_t {
    CHECK(connection.pause_reading());
    return 2;
  });
  scene.peer_sends("abcdef");
  scene.kernel.will_receive(scene.peer, "g");
  CHECK(scene.offered == Pieces{"abcdef"});
  scene.rule = everything;
  CHECK(scene.connection().resume_reading());
  scene.settle();
  CHECK(scene.offered == Pieces{"abcdef", "cdefg"});
}

TEST_CASE("a handler may send, pause, close or abort and leave something") {
  Scene scene(nothing);
  SUBCASE("send") {
    scene.rule = [](Connection& connection, std::string_view text) -> std::size_t {
      connection.send(bytes_of(text));
      return text.size() - 1;
    };
    scene.peer_sends("ab");
    scene.peer_sends("c");
    CHECK(scene.kernel.sent(scene.peer) == "abbc");
    return;
  }
  SUBCASE("close") {
    scene.rule = [](Connection& connection, std::string_view) -> std::size_t {
      connection.close();
      return 1;
    };
    scene.peer_sends("abc");
    CHECK(scene.core().chunks.in_use() == 0);
    scene.kernel.peer_sends(scene.peer, "de");
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    CHECK(scene.record().received == 5);
    CHECK(scene.record().unconsumed == 4);
  }
  SUBCASE("abort") {
    scene.rule = [](Connection& connection, std::string_view) -> std::size_t {
      connection.abort();
      return 1;
    };
    scene.peer_sends("abc");
    CHECK(scene.record().unconsumed == 2);
  }
  CHECK(scene.record().reason == CloseReason::local_close);
  CHECK(scene.offered == Pieces{"abc"});
}

// Ends -----------------------------------------------------------------------------------------------------------------------

TEST_CASE("what is left at the peer's end is offered once more, marked final, and what is left of that was not consumed") {
  Scene scene(nothing);
  scene.peer_sends("unfinished");
  CHECK(scene.finals == 0);
  CloseReason reason = CloseReason::peer_finished;
  std::size_t takes = 0;
  SUBCASE("its end") { scene.kernel.peer_finishes(scene.peer); }
  SUBCASE("its end, and the handler consumes some of it") {
    takes = 4;
    scene.kernel.peer_finishes(scene.peer);
  }
  SUBCASE("its end, and the handler consumes all of it") {
    takes = 10;
    scene.kernel.peer_finishes(scene.peer);
  }
  SUBCASE("a reset") {
    reason = CloseReason::peer_reset;
    scene.kernel.peer_resets(scene.peer);
  }
  SUBCASE("a reset that a send was told of") {
    reason = CloseReason::peer_reset;
    scene.kernel.will_fail_to_send(scene.peer, ECONNRESET);
    scene.connection().send(bytes_of("x"));
  }
  SUBCASE("the host is gone") {
    reason = CloseReason::network_timed_out;
    scene.kernel.connection_fails(scene.peer, ETIMEDOUT);
  }
  SUBCASE("its end, while reading is paused") {
    CHECK(scene.connection().pause_reading());
    scene.kernel.peer_finishes(scene.peer);
    scene.settle();
    CHECK(scene.finals == 0);
    CHECK(scene.connection().resume_reading());
  }
  SUBCASE("its end, asked for again by receive_again()") {
    scene.kernel.peer_finishes(scene.peer);
    CHECK(scene.connection().receive_again());
  }
  scene.rule = [=](Connection& connection, std::string_view) {
    CHECK(connection.is_final());
    CHECK(connection.receive_again());
    return takes;
  };
  scene.settle();
  CHECK(scene.offered == Pieces{"unfinished", "unfinished"});
  CHECK(scene.finals == 1);
  CHECK(scene.record().reason == reason);
  CHECK(scene.record().received == 10);
  CHECK(scene.record().unconsumed == 10 - takes);
}

TEST_CASE("only on_receive is told that bytes are final") {
  struct LingeringConsumer : Consumer {
    using Consumer::Consumer;
    void on_peer_finished(Connection& connection) { CHECK_FALSE(connection.is_final()); }
  };
  SimulationOf<LingeringConsumer> world;
  const int peer = world.accept();
  std::vector<bool> finals;
  world.story.consume = [&](Connection& connection, std::string_view) -> std::size_t {
    finals.push_back(connection.is_final());
    return 0;
  };
  world.kernel.peer_sends(peer, "left");
  world.kernel.peer_finishes(peer);
  world.settle();
  CHECK(finals == std::vector<bool>{false, true});
  CHECK(world.story.records.empty());
  CHECK_FALSE(world.story.connection(peer).is_final());
}

TEST_CASE("what follows at the peer's end comes before the bytes are final") {
  Scene scene(nothing);
  scene.peer_sends("one ");
  scene.kernel.peer_sends(scene.peer, "two");
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  CHECK(scene.offered == Pieces{"one ", "one two", "one two"});
  CHECK(scene.finals == 1);
  CHECK(scene.record().unconsumed == 7);
}

TEST_CASE("nothing left, nothing offered at the peer's end") {
  Scene scene(everything);
  scene.peer_sends("all");
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  CHECK(scene.offered == Pieces{"all"});
  CHECK(scene.record().unconsumed == 0);
}

TEST_CASE("a handler answers what is final, and its peer receives the answer") {
  Scene scene([](Connection& connection, std::string_view text) -> std::size_t {
    if (connection.is_final()) connection.send(bytes_of(text));
    return 0;
  });
  scene.kernel.peer_sends(scene.peer, "no newline");
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  CHECK(scene.kernel.sent(scene.peer) == "no newline");
  CHECK(scene.record().reason == CloseReason::peer_finished);
}

TEST_CASE("what is left is not offered again once the handler has closed: it was not consumed") {
  Scene scene(nothing);
  scene.peer_sends("left");
  SUBCASE("close") { scene.connection().close(); }
  SUBCASE("close after receive_again") {
    CHECK(scene.connection().receive_again());
    scene.connection().close();
  }
  SUBCASE("close after resume_reading") {
    CHECK(scene.connection().pause_reading());
    CHECK(scene.connection().resume_reading());
    scene.connection().close();
  }
  SUBCASE("shutdown") { CHECK(scene.reactor->shutdown(1h)); }
  scene.settle();
  scene.peer_sends("late");
  scene.kernel.peer_finishes(scene.peer);
  scene.settle();
  CHECK(scene.offered == Pieces{"left"});
  CHECK(scene.record().unconsumed == 8);
}

TEST_CASE("an error met by a send where bytes are handed over again does not hide what came before it") {
  Scene scene(nothing);
  scene.peer_sends("left");
  scene.rule = [&](Connection& connection, std::string_view) -> std::size_t {
    if (scene.offered.size() == 2) {
      scene.kernel.will_receive(scene.peer, " and more");
      scene.kernel.will_fail_to_send(scene.peer, ECONNRESET);
      connection.send(bytes_of(std::string(10'000, 'x')));  // large: it leaves at once
    }
    return 0;
  };
  CHECK(scene.connection().receive_again());
  scene.settle();
  CHECK(scene.offered == Pieces{"left", "left", "left and more", "left and more"});
  CHECK(scene.finals == 1);
  CHECK(scene.record().reason == CloseReason::peer_reset);
}

// Bounds ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("exactly message_bytes_max may be left, one more is message_too_large") {
  std::size_t most = 100;
  std::optional<Scene> scene;
  SUBCASE("as the option says") { scene.emplace(nothing, with_message_bytes_max(most)); }
  SUBCASE("the receive buffer, unless it says something") {
    most = ReactorOptions{}.receive_buffer_bytes;
    scene.emplace(nothing);
  }
  SUBCASE("the receive buffer at most") {
    most = 1024;
    ReactorOptions small;
    small.receive_buffer_bytes = most;
    scene.emplace(nothing, with_message_bytes_max(most), small);
  }
  scene->peer_sends(std::string(most, 'x'));
  REQUIRE_FALSE(scene->is_over());
  CHECK(scene->offered.back().size() == most);
  CHECK(scene->connection().receive_again());
  scene->settle();
  REQUIRE_FALSE(scene->is_over());
  scene->peer_sends("y");
  REQUIRE(scene->is_over());
  CHECK(scene->offered.back() == std::string(most, 'x') + "y");
  CHECK(scene->record().reason == CloseReason::message_too_large);
  CHECK(scene->record().origin == Origin::policy);
  CHECK(scene->record().unconsumed == most + 1);
  CHECK(scene->finals == 0);
}

TEST_CASE("a message longer than message_bytes_max that comes at once and is consumed is no matter") {
  Scene scene(everything, with_message_bytes_max(10));
  scene.peer_sends(std::string(5000, 'x'));
  CHECK(scene.consumed().size() == 5000);
}

TEST_CASE("a message_bytes_max above the receive buffer is refused") {
  sys::ScriptedKernel kernel;
  Reactor reactor;
  Listener<Consumer> listener(reactor, with_message_bytes_max(ReactorOptions{}.receive_buffer_bytes + 1),
                              [](Connection&) -> Consumer { std::abort(); });
  const auto refused = listener.listen("127.0.0.1:7000");
  CHECK(refused.error().code == EINVAL);
}

TEST_CASE("a handler that claims more than it was given ends its connection") {
  Scene scene([](Connection&, std::string_view text) { return text.size() + 1; });
  SUBCASE("of what just came") { scene.peer_sends("abc"); }
  SUBCASE("of what was left") {
    const Rule claims = std::exchange(scene.rule, nothing);
    scene.peer_sends("ab");
    scene.rule = claims;
    scene.peer_sends("c");
  }
  REQUIRE(scene.is_over());
  CHECK(scene.record().reason == CloseReason::system_error);
  CHECK(scene.record().error_number == EINVAL);
  CHECK(std::string(scene.record().operation) == "on_receive");
}

#if VIGIL_MEMORY_RUNS_OUT
TEST_CASE("without memory for what is left the connection ends, and says so") {
  Scene scene(nothing);
  scene.kernel.peer_sends(scene.peer, "left");
  {
    const OutOfMemory now;
    scene.settle();
  }
  REQUIRE(scene.is_over());
  CHECK(scene.record().reason == CloseReason::system_error);
  CHECK(scene.record().error_number == ENOMEM);
  CHECK(std::string(scene.record().operation) == "on_receive");
  CHECK(scene.record().unconsumed == 4);
}

TEST_CASE("without memory for its state a pause is refused, and reading goes on") {
  Scene scene(everything);
  {
    const OutOfMemory now;
    CHECK(scene.connection().pause_reading().error() == Error{"pause reading", ENOMEM});
  }
  CHECK_FALSE(scene.connection().is_reading_paused());
  scene.peer_sends("heard");
  CHECK(scene.consumed() == "heard");
}
#endif

TEST_CASE("memory for what is left is given back as it is consumed, whatever the lives do") {
  Scene scene(nothing);
  std::vector<int> peers{scene.peer};
  for (int count = 1; count < 20; ++count) peers.push_back(scene.accept());
  for (const int peer : peers) scene.kernel.peer_sends(peer, std::string(20'000, 'x'));
  scene.settle();
  CHECK(scene.core().chunks.in_use() == 40);  // of 16 KiB
  CHECK(scene.core().sides.in_use() == 20);
  scene.rule = [](Connection&, std::string_view text) { return text.size() - 10'000; };
  for (const int peer : peers) CHECK(scene.story.connection(peer).receive_again());
  scene.settle();
  CHECK(scene.core().chunks.in_use() == 20);
  scene.rule = everything;
  for (std::size_t index = 0; index < peers.size(); ++index) {
    if (index % 3 == 0) CHECK(scene.story.connection(peers[index]).receive_again());
    if (index % 3 == 1) scene.kernel.peer_resets(peers[index]);
    if (index % 3 == 2) scene.story.connection(peers[index]).abort();
  }
  scene.settle();
  CHECK(scene.core().chunks.in_use() == 0);
  CHECK(scene.core().sides.in_use() == 7);
}
