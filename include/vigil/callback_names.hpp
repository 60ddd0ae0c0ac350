// Whether a type has a member of an optional callback's name, callable as documented or not: one that has the name and can't be
// called is a mistake that must not compile. Used by handlers (handler.hpp), events objects (listener.hpp) and shards
// (server.hpp). All at compile time.
#pragma once

#include <type_traits>
#include <utility>

namespace vigil::callback_names {

/// An argument of any type, to ask whether something is a function without knowing which.
struct AnyArgument {
  template <class Type>
  operator Type&() const;
};

// Deriving from a handler and from a struct with the same member name makes the name ambiguous exactly if the handler has it,
// overloaded, templated or private as it may be. A final handler can't be derived from: there the name is looked for as what is
// callable as documented, a plain member, a template of one type, and what can be called with up to three arguments of any type.
// A private one, and an overload set that none of these tells apart, can't be told from none.
#define VIGIL_NAMES_MEMBER(name)                                                                        \
  struct Has_##name {                                                                                   \
    int name;                                                                                           \
  };                                                                                                    \
  template <class Handler>                                                                              \
  struct Both_##name : Handler, Has_##name {};                                                          \
  template <class Handler, class... Arguments>                                                          \
  consteval bool names_##name() {                                                                       \
    if constexpr (!std::is_final_v<Handler>) {                                                          \
      return !requires { &Both_##name<Handler>::name; };                                                \
    } else if constexpr (requires(Handler & handler) { handler.name(std::declval<Arguments>()...); }) { \
      return true;                                                                                      \
    } else {                                                                                            \
      return requires { &Handler::name; }                                                               \
      || requires { &Handler::template name<AnyArgument>; }                                             \
      || requires(Handler & handler) { handler.name(); }                                                \
      || requires(Handler & handler, AnyArgument any) { handler.name(any); }                            \
      || requires(Handler & handler, AnyArgument any) { handler.name(any, any); }                       \
      || requires(Handler & handler, AnyArgument any) { handler.name(any, any, any); };                 \
    }                                                                                                   \
  }

VIGIL_NAMES_MEMBER(on_open)
VIGIL_NAMES_MEMBER(on_send_drained)
VIGIL_NAMES_MEMBER(on_peer_finished)
VIGIL_NAMES_MEMBER(on_peer_gone_while_paused)
VIGIL_NAMES_MEMBER(on_deadline)
VIGIL_NAMES_MEMBER(on_ping_due)
VIGIL_NAMES_MEMBER(on_accept_timed_out)
VIGIL_NAMES_MEMBER(on_accept_paused)
VIGIL_NAMES_MEMBER(on_accept_resumed)
VIGIL_NAMES_MEMBER(on_shed)
VIGIL_NAMES_MEMBER(make_handler)
#undef VIGIL_NAMES_MEMBER

}  // namespace vigil::callback_names
