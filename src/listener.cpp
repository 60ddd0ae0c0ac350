// Accepting: the batch, what happens when descriptors or memory run out, and the accept deadline.
#include "vigil/listener.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

/// Connections accepted before the established ones have their turn. The socket is level-triggered: the rest is told again.
constexpr int accepts_per_turn = 64;

/// After running out of descriptors or memory accepting is tried again, first soon, then at most ten times a second.
constexpr Duration first_retry = std::chrono::milliseconds(10);
constexpr Duration longest_retry = std::chrono::milliseconds(100);

}  // namespace

struct ListenerSource final : Source {
  ListenerOptions options;
  ListenerBase::Setup setup{};
  ConnectionPolicy* policy = nullptr;
  Timeout accept_timeout = never;
  Instant last_accepted{};
  Instant paused_at{};   // the first pause of a row
  Duration retry{};      // zero: not paused
  Duration time_left{};  // of the accept deadline while paused
  bool ip = false;

  [[nodiscard]] bool paused() const { return retry != Duration::zero(); }

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
    of(*source).options = options;
    of(*source).setup = std::move(setup);
    return source;
  }

  static Result<void> refresh(ReactorCore& core, ListenerSource& listener) {
    const ListenerOptions& options = listener.options;
    const StreamBounds bounds{options.backlog_bytes_max, options.backlog_high_mark_bytes, options.backlog_low_mark_bytes,
                              options.when_backlogged, options.message_bytes_max};
    return refresh_policy(listener.policy, core, *listener.setup.handler, bounds, options.timeouts, "listen");
  }

  static Result<void> listen(ReactorCore& core, Source& source, const Address& address) {
    ListenerSource& listener = of(source);
    if (auto usable = core.usable("listen"); !usable) return usable;
    if (listener.descriptor_ >= 0) return Error{"listen", EINVAL, "already listening"};
    if (auto made = refresh(core, listener); !made) return made;
    const ListenerOptions& options = listener.options;
    if (options.accept_queue < 1) return Error{"listen", EINVAL, "accept_queue below 1"};
    auto opened = listen_on(address, {.socket = options.socket,
                                      .reuse_address = true,
                                      .reuse_port = options.reuse_port,
                                      .v6_only = options.v6_only,
                                      .backlog = options.accept_queue});
    if (!opened) return opened.error();
    listener.descriptor_ = opened->release();
    if (const int error = core.poller.add(listener, Poller::Interest::readable); error != 0) {
      close(core, listener);
      return Error{"listen", error, "poller"};
    }
    listener.ip = address.is_ip();
    listener.retry = Duration::zero();
    listener.accept_timeout = listener.policy->timeouts.accept;
    listener.last_accepted = core.read_clock();
    rearm(core, listener);
    return {};
  }

  static void close(ReactorCore& core, ListenerSource& listener) {
    core.cancel(listener);
    if (listener.descriptor_ < 0) return;
    core.poller.remove(listener);  // a duplicate of the descriptor (a fork) would keep a level-triggered registration alive
    sys::close(listener.descriptor_);
    listener.descriptor_ = -1;
  }

  // --- the phases of a turn

  static void ready(ReactorCore& core, Source& source, Readiness) noexcept {
    ListenerSource& listener = of(source);
    if (listener.descriptor_ < 0 || listener.paused()) return;
    accept_batch(core, listener);
    if (listener.descriptor_ >= 0) rearm(core, listener);
  }

  static void accept_batch(ReactorCore& core, ListenerSource& listener) {
    if (auto refreshed = refresh(core, listener); !refreshed) return pause(core, listener, refreshed.error().code);
    for (int accepts = 0; accepts < accepts_per_turn && listener.descriptor_ >= 0; ++accepts) {
      SocketAddress peer;
      peer.length = sizeof peer.storage;
      const int descriptor = uninterrupted([&] { return sys::accept(listener.descriptor_, peer.get(), &peer.length); });
      switch (classify_accept(descriptor)) {
        case AcceptAnswer::accepted:
          listener.last_accepted = core.read_clock();
          if (!open_connection(core, listener, descriptor, peer_from(peer.get(), peer.length))) {
            if (listener.descriptor_ >= 0) pause(core, listener, ENOMEM);
            return;
          }
          break;
        case AcceptAnswer::none_waiting:
          return;
        case AcceptAnswer::skip:
          break;
        case AcceptAnswer::out_of_resources:
          // Out of descriptors the kernel answers so even if nobody waits: that is no reason to begin a pause.
          if (!shed_head(core, listener, -descriptor) && !listener.paused()) return;
          if (listener.descriptor_ >= 0) pause(core, listener, -descriptor);
          return;
        case AcceptAnswer::failed:  // nothing we know of; a pause keeps it from spinning, and tells
          return pause(core, listener, -descriptor);
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

  static void pause(ReactorCore& core, ListenerSource& listener, int cause) {
    const Instant now = core.read_clock();
    if (!listener.paused()) {
      listener.paused_at = now;
      listener.time_left = due_at(listener.last_accepted, listener.accept_timeout) - now;
      (void)core.poller.modify(listener, Poller::Interest::none);  // allocates nothing: can't fail on a registered descriptor
    }
    listener.retry = std::clamp(2 * listener.retry, first_retry, longest_retry);
    ++core.counters.accept_pauses;
    if (core.reserve_descriptor < 0) core.reserve_descriptor = sys::reserve_open();
    core.arm(listener, now + listener.retry);
    if (listener.setup.event_thunks->on_accept_paused != nullptr)
      listener.setup.event_thunks->on_accept_paused(listener.setup.events, Error{"accept", cause}, listener.retry);
  }

  /// The retry: still out of resources pauses again, anything else resumes.
  static void retry(ReactorCore& core, ListenerSource& listener) {
    const std::uint64_t pauses = core.counters.accept_pauses;
    accept_batch(core, listener);
    if (listener.descriptor_ < 0 || core.counters.accept_pauses != pauses) return;
    const Instant now = core.read_clock();
    listener.retry = Duration::zero();
    listener.last_accepted = std::max(listener.last_accepted, now - (listener.accept_timeout.duration() - listener.time_left));
    (void)core.poller.modify(listener, Poller::Interest::readable);
    rearm(core, listener);
    if (listener.setup.event_thunks->on_accept_resumed != nullptr)
      listener.setup.event_thunks->on_accept_resumed(listener.setup.events, now - listener.paused_at);
  }

  static void due(ReactorCore& core, Source& source) noexcept {
    ListenerSource& listener = of(source);
    if (listener.descriptor_ < 0) return;
    core.read_clock();
    if (listener.paused()) return retry(core, listener);
    if (deadline(listener) <= core.now) accept_batch(core, listener);  // whoever waits beats the deadline
    if (listener.descriptor_ < 0 || listener.paused()) return;
    const Instant since = listener.last_accepted;
    const bool expired = deadline(listener) <= core.read_clock();
    if (expired) listener.last_accepted = core.now;  // told once per period
    rearm(core, listener);
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
    core.give_back(slab(core), source);
  }

  static Instant deadline(const ListenerSource& listener) { return due_at(listener.last_accepted, listener.accept_timeout); }

  static void rearm(ReactorCore& core, ListenerSource& listener) {
    if (listener.paused()) return;
    const Instant at = deadline(listener);
    if (at == never_due) return core.cancel(listener);
    core.arm(listener, at);
  }

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

}  // namespace vigil
