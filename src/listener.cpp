// Accepting: the batch, what holds it, what happens when descriptors or memory run out, and the accept deadline.
//
// Accepting is held while any of a set of causes holds. settle() is the one place where that reaches the kernel and the timer:
// with the first hold the poller's interest in the socket goes and the accept deadline stands still, with the last release both
// come back. Nothing is lost meanwhile: the kernel's queue keeps who waits.
#include "vigil/listener.hpp"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "connection_life.hpp"
#include "rate_limit.hpp"
#include "socket_calls.hpp"
#include "unix_path.hpp"

namespace vigil {
namespace {

/// Connections accepted before the established ones have their turn. The socket is level-triggered: the rest is told again.
constexpr int accepts_per_turn = 64;

/// After running out of descriptors or memory accepting is tried again, first soon, then at most ten times a second.
constexpr Duration first_retry = std::chrono::milliseconds(10);
constexpr Duration longest_retry = std::chrono::milliseconds(100);

}  // namespace

struct ListenerSource final : Source {
  /// Why nothing is accepted now. The first two last until somebody says otherwise, the others until an instant.
  static constexpr unsigned by_user = 1, by_maximum = 2, by_rate = 4, by_shortage = 8;

  ListenerOptions options;
  ListenerBase::Setup setup{};
  ConnectionPolicy* policy = nullptr;
  std::size_t connections = 0;   // of its own, until their slots are free again
  std::optional<UnixPath> path;  // of a Unix socket in the file system
  RateLimit rate;
  Timeout accept_timeout = never;
  Instant last_accepted{};
  Instant short_since{};  // the first failure of a row for want of descriptors or memory
  Instant retry_at{};
  Duration retry{};           // zero: no such row
  Duration time_left{};       // of the accept deadline while nothing is accepted
  std::uint32_t listens = 0;  // how often it began and ended to listen: a callback may do both
  unsigned holds = 0;
  bool accepting = false;  // as the poller was told last
  bool ip = false;

  [[nodiscard]] bool held(unsigned causes) const { return (holds & causes) != 0; }
  [[nodiscard]] bool listening() const { return descriptor_ >= 0; }
  /// The same socket as when `listens` was asked for.
  [[nodiscard]] bool still(std::uint32_t listen) const { return listening() && listens == listen; }

  static Source* construct(void* slot) { return ::new (slot) ListenerSource; }
};

struct ListenerLife {
  static ListenerSource& of(Source& source) { return static_cast<ListenerSource&>(source); }
  static int descriptor(Source& source) { return source.descriptor_; }
  static SourceSlab& slab(ReactorCore& core) {
    return *core.slab_for(sizeof(ListenerSource), alignof(ListenerSource), &ListenerSource::construct);
  }

  static Source* make(ReactorCore& core, const ListenerOptions& options, ListenerBase::Setup setup) {
    Source* source = core.take_source(slab(core));
    if (source == nullptr) return nullptr;
    source->operations_ = &operations;
    source->descriptor_ = -1;
    ListenerSource& listener = of(*source);
    listener.options = options;
    listener.setup = std::move(setup);
    listener.connections = 0;
    listener.rate = RateLimit(options.accept_rate);
    listener.holds = 0;
    return source;
  }

  static Result<void> refresh(ReactorCore& core, ListenerSource& listener) {
    const ListenerOptions& options = listener.options;
    const StreamBounds bounds{options.backlog_bytes_max, options.backlog_high_mark_bytes, options.backlog_low_mark_bytes,
                              options.when_backlogged, options.message_bytes_max};
    return refresh_policy(listener.policy, core, *listener.setup.handler, bounds, options.timeouts, options.heartbeat, "listen");
  }

  /// The policy of the connections that come next. It tells this listener when one of them has ended, also where it was copied or
  /// the listener has a newer one since.
  static Result<void> prepare_policy(ReactorCore& core, ListenerSource& listener) {
    if (auto made = refresh(core, listener); !made) return made;
    listener.policy->maker = &listener;
    listener.policy->maker_generation = listener.generation_;
    listener.policy->life_ended = life_ended;
    return {};
  }

  static Result<void> listen(ReactorCore& core, Source& source, const Address& address) {
    ListenerSource& listener = of(source);
    if (auto usable = core.usable("listen"); !usable) return usable;
    if (listener.listening()) return Error{"listen", EINVAL, "already listening"};
    if (auto made = prepare_policy(core, listener); !made) return made;
    const ListenerOptions& options = listener.options;
    if (options.accept_queue < 1) return Error{"listen", EINVAL, "accept_queue below 1"};
    if (options.accept_rate > RateLimit::per_second_max) return Error{"listen", EINVAL, "accept_rate above 1,000,000"};
    const auto socket_options = with_keepalive(options.socket, options.heartbeat, address.is_ip(), "listen");
    if (!socket_options) return socket_options.error();
    const ListenSocketOptions opening{.socket = *socket_options,
                                      .reuse_address = true,
                                      .reuse_port = options.reuse_port,
                                      .v6_only = options.v6_only,
                                      .backlog = options.accept_queue};
    auto opened = address.family() == Address::Family::unix_path ? listen_on_path(address, opening, listener.path)
                                                                 : listen_on(address, opening);
    if (!opened) return opened.error();
    listener.descriptor_ = opened->release();
    ++listener.listens;
    listener.ip = address.is_ip();
    listener.accept_timeout = listener.policy->timeouts.accept;
    listener.last_accepted = core.read_clock();
    listener.accepting = listener.holds == 0;  // what holds it did so before it listened
    if (!listener.accepting) listener.time_left = listener.accept_timeout.duration();
    if (const int error = core.poller.add(listener, interest(listener)); error != 0) {
      close(core, listener);
      return Error{"listen", error, "poller"};
    }
    settle(core, listener);
    return {};
  }

  static Poller::Interest interest(const ListenerSource& listener) {
    return listener.accepting ? Poller::Interest::readable : Poller::Interest::none;
  }

  static void close(ReactorCore& core, ListenerSource& listener) {
    core.cancel(listener);
    if (!listener.listening()) return;
    core.poller.remove(listener);  // a duplicate of the descriptor (a fork) would keep a level-triggered registration alive
    if (listener.path) listener.path->remove();
    listener.path.reset();
    sys::close(listener.descriptor_);
    listener.descriptor_ = -1;
    ++listener.listens;
    listener.retry = Duration::zero();
    listener.holds &= ~ListenerSource::by_shortage;
  }

  // --- what holds accepting

  static void hold(ReactorCore& core, ListenerSource& listener, unsigned cause) {
    listener.holds |= cause;
    settle(core, listener);
  }

  static void release(ReactorCore& core, ListenerSource& listener, unsigned cause) {
    listener.holds &= ~cause;
    settle(core, listener);
  }

  /// Brings the poller's interest, the accept deadline and the timer in line with what holds.
  static void settle(ReactorCore& core, ListenerSource& listener) {
    if (!listener.listening()) return;
    const bool accepting = listener.holds == 0;
    if (accepting != listener.accepting) {
      const Instant now = core.read_clock();
      const Timeout timeout = listener.accept_timeout;
      if (!timeout.is_never() && accepting) listener.last_accepted = now - (timeout.duration() - listener.time_left);
      if (!timeout.is_never() && !accepting) listener.time_left = deadline(listener) - now;
      listener.accepting = accepting;
      (void)core.poller.modify(listener, interest(listener));  // allocates nothing: can't fail on a registered descriptor
    }
    const Instant at = accepting ? deadline(listener) : released_at(listener);
    if (at == never_due) return core.cancel(listener);
    core.arm(listener, at);
  }

  /// When time alone will have released all that holds.
  static Instant released_at(const ListenerSource& listener) {
    if (listener.held(ListenerSource::by_user | ListenerSource::by_maximum)) return never_due;
    const Instant rate = listener.held(ListenerSource::by_rate) ? listener.rate.free_at() : Instant{};
    return listener.held(ListenerSource::by_shortage) ? std::max(rate, listener.retry_at) : rate;
  }

  static void hold_at_bounds(const ReactorCore& core, ListenerSource& listener) {
    const std::size_t maximum = listener.options.connections_max;
    if (maximum != 0 && listener.connections >= maximum) listener.holds |= ListenerSource::by_maximum;
    if (!listener.rate.allows(core.now)) listener.holds |= ListenerSource::by_rate;
  }

  /// One of its connections has ended, and its slot is free.
  static void life_ended(ReactorCore& core, Source& source) {
    ListenerSource& listener = of(source);
    --listener.connections;
    if (listener.held(ListenerSource::by_maximum)) release(core, listener, ListenerSource::by_maximum);
  }

  // --- the phases of a turn

  static void ready(ReactorCore& core, Source& source, Readiness) noexcept {
    ListenerSource& listener = of(source);
    if (!listener.listening() || listener.holds != 0) return;  // told before it was closed or held
    accept_batch(core, listener);
    settle(core, listener);
  }

  static void accept_batch(ReactorCore& core, ListenerSource& listener) {
    if (auto prepared = prepare_policy(core, listener); !prepared) return run_short(core, listener, prepared.error().code);
    const std::uint32_t listen = listener.listens;
    for (int accepts = 0; accepts < accepts_per_turn && listener.still(listen); ++accepts) {
      hold_at_bounds(core, listener);
      if (listener.holds != 0) return;
      SocketAddress peer;
      peer.length = sizeof peer.storage;
      const int descriptor = uninterrupted([&] { return sys::accept(listener.descriptor_, peer.get(), &peer.length); });
      switch (classify_accept(descriptor)) {
        case AcceptAnswer::accepted:
          listener.last_accepted = core.read_clock();
          listener.time_left = listener.accept_timeout.duration();
          listener.rate.take(core.now);
          if (open_connection(core, listener, descriptor, peer_from(peer.get(), peer.length))) break;
          if (listener.still(listen)) run_short(core, listener, ENOMEM);
          return;
        case AcceptAnswer::none_waiting:
          return;
        case AcceptAnswer::skip:
          break;
        case AcceptAnswer::out_of_resources:
          // Out of descriptors the kernel answers so even if nobody waits: that is no reason to begin a pause.
          if (!shed_head(core, listener, -descriptor) && listener.retry == Duration::zero()) return;
          if (listener.still(listen)) run_short(core, listener, -descriptor);
          return;
        case AcceptAnswer::failed:  // nothing we know of; a pause keeps it from spinning, and tells
          return run_short(core, listener, -descriptor);
      }
    }
  }

  /// False: no memory, and it was shed.
  static bool open_connection(ReactorCore& core, ListenerSource& listener, int descriptor, const PeerAddress& peer) {
    Connection* connection = ConnectionLife::begin(*listener.policy, descriptor, peer, listener.ip);
    if (connection == nullptr) {
      close_with_reset(descriptor);
      tell_shed(core, listener, ENOMEM);
      return false;
    }
    ++listener.connections;
    ConnectionLife::build_handler(*connection, listener.setup.construct);
    ConnectionLife::register_stream(*connection);
    ConnectionLife::accepted(*connection);
    return true;
  }

  /// Out of descriptors or memory: the reserve makes room for the head of the kernel's queue, which is closed at once. Its peer
  /// learns, and the queue does not fill with connections nobody will ever answer. False: nobody was waiting.
  static bool shed_head(ReactorCore& core, ListenerSource& listener, int cause) {
    if (core.reserve_descriptor < 0) return true;
    sys::close(core.reserve_descriptor);
    SocketAddress peer;
    peer.length = sizeof peer.storage;
    const int descriptor = uninterrupted([&] { return sys::accept(listener.descriptor_, peer.get(), &peer.length); });
    if (descriptor >= 0) close_with_reset(descriptor);
    core.reserve_descriptor = sys::reserve_open();  // another thread may have taken it: tried again with the next pause
    if (descriptor >= 0) tell_shed(core, listener, cause);
    return classify_accept(descriptor) != AcceptAnswer::none_waiting;
  }

  static void tell_shed(ReactorCore& core, ListenerSource& listener, int cause) {
    CloseRecord record;
    record.reason = CloseReason::accept_shed;
    record.origin = Origin::policy;
    record.phase = Phase::connecting;
    record.error_number = cause;
    record.operation = "accept";
    ++core.counters.opened;
    ++core.counters.shed;
    ++core.counters.closed;
    ++core.counters.closed_for[static_cast<std::size_t>(record.reason)];
    if (listener.setup.event_thunks->on_shed != nullptr) listener.setup.event_thunks->on_shed(listener.setup.events, record);
  }

  /// Nothing more can be taken for want of descriptors or memory: accepting is held, and tried again after a growing delay.
  static void run_short(ReactorCore& core, ListenerSource& listener, int cause) {
    const Instant now = core.read_clock();
    if (listener.retry == Duration::zero()) listener.short_since = now;
    listener.retry = std::clamp(2 * listener.retry, first_retry, longest_retry);
    listener.retry_at = now + listener.retry;
    ++core.counters.accept_pauses;
    if (core.reserve_descriptor < 0) core.reserve_descriptor = sys::reserve_open();
    hold(core, listener, ListenerSource::by_shortage);
    if (listener.setup.event_thunks->on_accept_paused != nullptr)
      listener.setup.event_thunks->on_accept_paused(listener.setup.events, Error{"accept", cause}, listener.retry);
  }

  static void due(ReactorCore& core, Source& source) noexcept {
    ListenerSource& listener = of(source);
    if (!listener.listening()) return;
    core.read_clock();
    listener.holds == 0 ? accept_deadline(core, listener) : try_again(core, listener);
  }

  /// Time has released what held: whoever waits is accepted before the poller is asked to tell of others. Still out of
  /// descriptors or memory holds again, anything else ends that row.
  static void try_again(ReactorCore& core, ListenerSource& listener) {
    const std::uint32_t listen = listener.listens;
    listener.holds &= ~(ListenerSource::by_rate | ListenerSource::by_shortage);
    accept_batch(core, listener);
    settle(core, listener);
    if (!listener.still(listen) || listener.held(ListenerSource::by_shortage) || listener.retry == Duration::zero()) return;
    listener.retry = Duration::zero();
    if (listener.setup.event_thunks->on_accept_resumed != nullptr)
      listener.setup.event_thunks->on_accept_resumed(listener.setup.events, core.read_clock() - listener.short_since);
  }

  static void accept_deadline(ReactorCore& core, ListenerSource& listener) {
    if (deadline(listener) <= core.now) accept_batch(core, listener);  // whoever waits beats the deadline
    if (!listener.listening()) return;
    const Instant since = listener.last_accepted;
    const bool expired = listener.holds == 0 && deadline(listener) <= core.read_clock();
    if (expired) listener.last_accepted = core.now;  // told once per period
    settle(core, listener);
    if (expired && listener.setup.event_thunks->on_accept_timed_out != nullptr)
      listener.setup.event_thunks->on_accept_timed_out(listener.setup.events, core.now - since);
  }

  static void stop(ReactorCore& core, Source& source, bool) noexcept { close(core, of(source)); }

  static void cancel(ReactorCore& core, Source& source) noexcept {
    close(core, of(source));
    core.finish_later(source);  // not now: a callback of its own may be what destroys it
  }

  static void finish(ReactorCore& core, Source& source) noexcept {
    ListenerSource& listener = of(source);
    const ListenerBase::Setup setup = std::exchange(listener.setup, {});
    ConnectionPolicy::release(std::exchange(listener.policy, nullptr));
    listener.options.heartbeat.ping.reset();  // slots are never destroyed, and it may own memory
    core.give_back(slab(core), source);
  }

  static Instant deadline(const ListenerSource& listener) { return due_at(listener.last_accepted, listener.accept_timeout); }

  static constexpr SourceOperations operations{
      .ready = ready, .due = due, .flush = nullptr, .finish = finish, .stop = stop, .cancel = cancel};
};

ListenerBase::ListenerBase(Reactor& reactor, const ListenerOptions& options, Setup setup)
    : source_(ReactorCore::of(reactor).link, ListenerLife::make(ReactorCore::of(reactor), options, std::move(setup))) {}

ListenerBase::~ListenerBase() = default;

Result<void> ListenerBase::listen(std::string_view address) {
  auto parsed = Address::parse(address);
  if (!parsed) return parsed.error();
  return listen(*parsed);
}

Result<void> ListenerBase::listen(const Address& address) {
  if (source_.core() == nullptr) return Error{"listen", ESHUTDOWN};
  if (source_.source() == nullptr) return Error{"listen", ENOMEM};
  return ListenerLife::listen(*source_.core(), *source_.source(), address);
}

Result<Address> ListenerBase::address() const {
  const int descriptor = source_.source() == nullptr ? -1 : ListenerLife::descriptor(*source_.source());
  if (descriptor < 0) return Error{"address", ENOTCONN};
  return local_address(descriptor);
}

void ListenerBase::close() {
  if (source_.source() != nullptr) ListenerLife::close(*source_.core(), ListenerLife::of(*source_.source()));
}

void ListenerBase::pause_accepting() {
  if (source_.source() != nullptr)
    ListenerLife::hold(*source_.core(), ListenerLife::of(*source_.source()), ListenerSource::by_user);
}

void ListenerBase::resume_accepting() {
  if (source_.source() != nullptr)
    ListenerLife::release(*source_.core(), ListenerLife::of(*source_.source()), ListenerSource::by_user);
}

std::size_t ListenerBase::connections() const {
  return source_.source() == nullptr ? 0 : ListenerLife::of(*source_.source()).connections;
}

}  // namespace vigil
