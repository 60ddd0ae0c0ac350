// What one life is to do, on both sides.
#include "swarm_life.hpp"

namespace vigil::tools {

using namespace std::chrono_literals;

HandlerScript draw_handler_script(sim::Random& random, const SitePlan& site) {
  HandlerScript script;
  script.message_bytes = static_cast<std::uint32_t>(any_magnitude(random, 1, one_in(random, 8) ? 3000 : 200));
  const bool parses = site.handler_kind != 0 && site.handler_kind != 2;
  if (parses) script.message_bytes = std::min<std::uint32_t>(script.message_bytes, 1000);
  if (!one_in(random, 3))
    script.reply_bytes = static_cast<std::uint32_t>(any_magnitude(random, 1, one_in(random, 10) ? 20'000 : 300));
  if (one_in(random, 4))
    script.greeting_bytes = static_cast<std::uint32_t>(any_magnitude(random, 1, one_in(random, 6) ? 150'000 : 500));
  script.marks = one_in(random, 2);
  script.is_stubborn = parses && one_in(random, 12);
  script.lies = parses && one_in(random, 60);
  constexpr Deed deeds[] = {Deed::nothing,       Deed::nothing,  Deed::nothing, Deed::nothing,  Deed::finish, Deed::close,
                            Deed::close,         Deed::close,    Deed::abort,   Deed::pause,    Deed::pause,  Deed::set_timeout,
                            Deed::receive_again, Deed::set_rate, Deed::post,    Deed::send_much};
  script.deed = deeds[random.below(std::size(deeds))];
  if (one_in(random, 40)) script.deed = Deed::send_pieces;
  script.deed_at = random.between(one_in(random, 20) ? 0 : 2, 6);
  if (one_in(random, 3)) {
    constexpr Deed timed[] = {Deed::finish,      Deed::close,       Deed::abort,     Deed::pause,     Deed::pause,
                              Deed::resume,      Deed::set_timeout, Deed::set_rate,  Deed::send_some, Deed::begin_message,
                              Deed::end_message, Deed::end_message, Deed::send_much, Deed::post,      Deed::receive_again};
    script.timed_deed = timed[random.below(std::size(timed))];
    script.timed_after = any_magnitude(random, Duration(1us), Duration(2s));
  }
  constexpr Deed at_finish[] = {Deed::nothing, Deed::finish,    Deed::finish, Deed::close,
                                Deed::close,   Deed::send_some, Deed::abort};
  script.at_finish = at_finish[random.below(std::size(at_finish))];
  if (one_in(random, 2)) script.more_time = static_cast<std::uint32_t>(random.between(1, 3));
  script.is_mute = one_in(random, 40);
  return script;
}

PeerScript draw_peer_script(sim::Random& random, bool is_watched) {
  PeerScript script;
  constexpr PeerStyle styles[] = {PeerStyle::chats,  PeerStyle::chats,    PeerStyle::chats, PeerStyle::bursts,
                                  PeerStyle::bursts, PeerStyle::trickles, PeerStyle::chats, PeerStyle::floods};
  script.style = one_in(random, 25) ? PeerStyle::silent : styles[random.below(std::size(styles))];
  constexpr PeerEnd ends[] = {PeerEnd::stays,
                              PeerEnd::finishes,
                              PeerEnd::finishes,
                              PeerEnd::closes,
                              PeerEnd::closes,
                              PeerEnd::resets,
                              PeerEnd::finishes_and_closes,
                              PeerEnd::finishes_and_resets};
  script.end = is_watched && one_in(random, 2) ? PeerEnd::stays : ends[random.below(std::size(ends))];
  script.reading = one_in(random, 8) ? Reading::pauses : one_in(random, 12) ? Reading::never : Reading::at_once;
  script.messages = static_cast<std::uint32_t>(random.between(3, 10));
  script.gap = any_magnitude(random, Duration(1us), Duration(100ms));
  script.lingers = any_magnitude(random, Duration(1us), Duration(500ms));
  script.ends_at_finish = !one_in(random, 4);
  constexpr Answering answers[] = {Answering::at_once, Answering::at_once,      Answering::at_once, Answering::late,
                                   Answering::late,    Answering::now_and_then, Answering::never};
  script.answering = answers[random.below(std::size(answers))];
  return script;
}

}  // namespace vigil::tools
