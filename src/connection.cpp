// What users call on a connection, and how one begins. connection_life.hpp draws the paths and says what stands where.
#include "vigil/connection.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

CloseReason reason_of_connect(int error_number) {
  switch (classify_connect(error_number)) {
    case ConnectOutcome::rejected:
      return CloseReason::connect_refused;
    case ConnectOutcome::timed_out:
      return CloseReason::connect_timed_out;
    case ConnectOutcome::unreachable:
      return CloseReason::connect_unreachable;
    default:
      return CloseReason::connect_failed;
  }
}

}  // namespace

constinit const SourceOperations ConnectionLife::operations{
    .ready = ready, .due = due, .flush = flush, .finish = finish, .stop = stop, .cancel = nullptr};

void* Connection::handler_storage() { return ConnectionLife::handler_of(*this); }

// --- birth

namespace {

/// False: no memory.
bool share_ping(ConnectionPolicy& policy, const std::string& text) {
  policy.ping = new (std::nothrow) PingText;
  if (policy.ping == nullptr) return false;
  policy.ping->bytes.reset(new (std::nothrow) std::byte[text.size()]);
  if (policy.ping->bytes == nullptr) return false;
  policy.ping->size = text.size();
  std::memcpy(policy.ping->bytes.get(), text.data(), text.size());
  return true;
}

}  // namespace

Result<void> refresh_policy(ConnectionPolicy*& policy, ReactorCore& core, const HandlerThunks& handler,
                            const StreamBounds& bounds, const Timeouts& own_layer, const HeartbeatOptions& heartbeat,
                            const char* operation) {
  if (auto valid = validate(own_layer, operation); !valid) return valid;
  if (bounds.backlog_bytes_max == 0 || bounds.backlog_bytes_max > UINT32_MAX)
    return Error{operation, EINVAL, "backlog_bytes_max out of range"};
  if (bounds.low_mark > bounds.high_mark) return Error{operation, EINVAL, "backlog low mark above the high mark"};
  if (bounds.message_bytes_max > core.options.receive_buffer_bytes)
    return Error{operation, EINVAL, "message_bytes_max above the reactor's receive_buffer_bytes"};
  const auto plan = plan_heartbeat(heartbeat, operation);
  if (!plan) return plan.error();
  if (heartbeat.ping && heartbeat.ping->size() > bounds.backlog_bytes_max)
    return Error{operation, EINVAL, "heartbeat ping larger than backlog_bytes_max"};
  const bool probes = plan->is_on() && !heartbeat.keepalive_only;
  if (probes && !heartbeat.ping && handler.on_ping_due == nullptr)
    return Error{operation, EINVAL, "a heartbeat needs a ping, or a handler with on_ping_due"};
  const Timeouts timeouts = over(own_layer, over(core.options.timeouts, default_timeouts()));
  if (policy != nullptr && policy->inherited == timeouts) return {};

  auto* fresh = new (std::nothrow) ConnectionPolicy;
  if (fresh == nullptr) return Error{operation, ENOMEM};
  fresh->core = &core;
  fresh->on_receive = handler.on_receive;
  fresh->handler_offset =
      static_cast<std::uint32_t>(ConnectionLife::handler_offset(std::max(handler.alignment, alignof(ConnectionBirth))));
  fresh->backlog_bytes_max = static_cast<std::uint32_t>(bounds.backlog_bytes_max);
  // What is gathered never passes the high mark, so that whoever fills up to it is told when it drains.
  fresh->gather_max = std::min({bounds.backlog_bytes_max, bounds.high_mark, core.options.gather_buffer_bytes});
  // A mark beyond the bound is never reached: then on_send_drained simply does not come.
  fresh->high_mark = static_cast<std::uint32_t>(std::min<std::size_t>(bounds.high_mark, UINT32_MAX));
  fresh->low_mark = static_cast<std::uint32_t>(std::min<std::size_t>(bounds.low_mark, UINT32_MAX));
  fresh->message_bytes_max =
      static_cast<std::uint32_t>(bounds.message_bytes_max == 0 ? core.options.receive_buffer_bytes : bounds.message_bytes_max);
  fresh->pauses_when_backlogged = bounds.when_backlogged == WhenBacklogged::pause_reading;
  fresh->handler = &handler;
  fresh->slab = core.slab_for(fresh->handler_offset + handler.size, alignof(Connection), &ConnectionLife::construct_slot);
  if (probes) {
    fresh->heartbeat = &heartbeat_thunks;
    fresh->plan = *plan;
    fresh->heartbeat_seed = sys::random_seed();
    if (heartbeat.ping && !share_ping(*fresh, *heartbeat.ping)) {
      ConnectionPolicy::release(fresh);
      return Error{operation, ENOMEM};
    }
  }
  fresh->timeouts = timeouts;
  fresh->inherited = timeouts;
  ConnectionPolicy::release(policy);
  policy = fresh;
  return {};
}

Result<SocketOptions> with_keepalive(SocketOptions options, const HeartbeatOptions& heartbeat, bool tcp, const char* operation) {
  if (!heartbeat.keepalive_only) return options;
  if (!tcp) return Error{operation, EINVAL, "keepalive_only is for TCP, a Unix socket has no keepalive"};
  const auto plan = plan_heartbeat(heartbeat, operation);
  if (!plan) return plan.error();
  if (options.keep_alive || options.user_timeout != Duration::zero())
    return Error{operation, EINVAL, "keepalive_only sets the socket's keep_alive and user_timeout itself"};
  options.keep_alive = KeepAlive{plan->keepalive_idle, plan->keepalive_interval, plan->keepalive_count};
  options.user_timeout = plan->user_timeout;
  return options;
}

Source* ConnectionLife::construct_slot(void* slot) { return ::new (slot) Connection; }

Connection* ConnectionLife::begin(ConnectionPolicy& policy, int descriptor, const PeerAddress& peer, bool tcp) {
  ReactorCore& core = *policy.core;
  Source* source = core.take_source(*policy.slab);
  if (source == nullptr) return nullptr;
  auto& connection = static_cast<Connection&>(*source);
  ++policy.references;
  ++core.counters.opened;
  connection.operations_ = &operations;
  connection.descriptor_ = descriptor;
  connection.stage_ = Connection::Stage::connecting;
  connection.flags_ = tcp ? static_cast<std::uint32_t>(Connection::tcp) : 0;
  connection.queued_bytes_ = 0;
  connection.policy_ = &policy;
  connection.received_ = 0;
  connection.handed_to_kernel_ = 0;
  connection.queue_ = nullptr;
  connection.side_ = nullptr;
  connection.send_progress_ = watches_sending(connection) ? nothing_outstanding : never_due;
  connection.last_received_ = core.read_clock();
  connection.drain_began_ = never_due;
  connection.acknowledged_ = 0;
  connection.discarded_ = 0;
  connection.error_ = 0;
  connection.operation_ = 0;
  connection.reason_ = CloseReason::local_close;
  connection.cut_short_ = CutShort::none;
  ::new (&birth_of(connection)) ConnectionBirth{peer, core.now, core.now};
  return &connection;
}

void ConnectionLife::build_handler(Connection& connection, Construct& construct) {
  construct(handler_of(connection), connection);
}

void ConnectionLife::register_stream(Connection& connection) {
  const int error = connection.policy_->core->poller.add(connection, Poller::Interest::stream);
  if (error != 0) end(connection, CloseReason::system_error, error, number(Operation::watch));
}

void ConnectionLife::established(Connection& connection) {
  ReactorCore& core = *connection.policy_->core;
  const Timeouts& timeouts = connection.policy_->timeouts;
  if (!(timeouts.receive_rate.is_never() && timeouts.send_rate.is_never()) && side_of(core, connection) == nullptr)
    return end(connection, CloseReason::system_error, ENOMEM, number(Operation::open));
  // The receive side's deadlines run from here, and a silence that the heartbeat counts.
  birth_of(connection).opened_at = connection.last_received_ = core.read_clock();
  if (connection.side_ != nullptr) connection.side_->message_began = connection.side_->paused_at = core.now;
  start_windows(core, connection);
  if (connection.policy_->heartbeat != nullptr && !connection.policy_->heartbeat->begin(core, connection))
    return end(connection, CloseReason::system_error, ENOMEM, number(Operation::open));
  connection.stage_ = Connection::Stage::open;
  connection.set(Connection::was_open | Connection::is_established);
  if (connection.policy_->handler->on_open != nullptr) connection.policy_->handler->on_open(handler_of(connection), connection);
  if (connection.stage_ != Connection::Stage::open) return;
  core.read_clock();
  rearm(core, connection);
  if (connection.queued_bytes_ == 0) return;
  if (connection.send_progress_ == nothing_outstanding) start_send_clock(core, connection);
  send_clock_begins_later(core, connection);  // sent while it was connecting
}

void ConnectionLife::accepted(Connection& connection) {
  if (connection.stage_ == Connection::Stage::connecting) established(connection);  // else it could not be registered
}

void ConnectionLife::connecting(Connection& connection, int connect_answer) {
  ReactorCore& core = *connection.policy_->core;
  // EALREADY: an interrupted call had begun it.
  if (connect_answer < 0 && connect_answer != -EINPROGRESS && connect_answer != -EALREADY)
    return end(connection, reason_of_connect(-connect_answer), -connect_answer, number(Operation::connect));
  register_stream(connection);
  if (connection.stage_ != Connection::Stage::connecting) return;
  rearm(core, connection);
  // Connected at once: told in the next turn, as everything is, never from inside connect().
  if (connect_answer == 0) core.ready_later(connection, {Readiness::readable | Readiness::writable});
}

void ConnectionLife::confirm_connect(ReactorCore& core, Connection& connection, Readiness readiness) {
  if (retry_now(core, connection)) return;
  const int error = connect_result(connection.descriptor_);
  if (error == EINPROGRESS) return;  // a stale or spurious event: the handshake is still under way
  // A handshake that never completed is answered ECONNREFUSED; a reset of an established connection was one that had opened.
  if (error != 0 && !is_reset(error)) return end(connection, reason_of_connect(error), error, number(Operation::connect));
  if (error == 0 && connection.has(Connection::tcp) && is_self_connected(connection.descriptor_))
    return end(connection, CloseReason::self_connect);
  if (error != 0) latch_error(connection, error, number(Operation::connect));
  established(connection);
  if (connection.stage_ == Connection::Stage::open) ready(core, connection, readiness);
}

// --- the user's calls

Connection& ConnectionLife::over() {
  // Shared by every stale handle of every thread and never written: each call on it sees `vacant` and leaves.
  alignas(Connection) static std::byte storage[sizeof(Connection) + sizeof(ConnectionBirth)];
  static Connection* const connection = [] {
    auto* made = ::new (static_cast<void*>(storage)) Connection;
    ::new (&birth_of(*made)) ConnectionBirth;
    return made;
  }();
  return *connection;
}

Result<void> Connection::finish() {
  if (stage_ == Stage::vacant) return Error{"finish", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended || has(closing)) return Error{"finish", EPIPE};
  if (has(finish_wanted)) return {};
  set(finish_wanted);
  policy_->core->flush_later(*this);
  return {};
}

Result<void> Connection::close() {
  if (stage_ == Stage::vacant) return Error{"close", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended || has(close_called)) return {};
  if (stage_ == Stage::connecting) {
    ConnectionLife::end(*this, CloseReason::local_close);
    return {};
  }
  if (ConnectionLife::was_told_gone(*this)) {
    ConnectionLife::close_unread(*policy_->core, *this);
    return {};
  }
  const bool after_peer = has(peer_finished);
  ConnectionLife::begin_close(*policy_->core, *this, after_peer ? CloseReason::peer_finished : CloseReason::local_close, true);
  return {};
}

Result<void> Connection::abort() {
  if (stage_ == Stage::vacant) return Error{"abort", EBADF};
  policy_->core->assert_thread();
  if (stage_ == Stage::ended) return {};
  set(reset_wanted);
  if (has(closing)) cut_short_ = CutShort::reset;  // our own
  ConnectionLife::end(*this, has(closing) ? reason_ : CloseReason::local_close);
  return {};
}

/// Most connections share their listener's policy; one that differs gets its own copy.
bool ConnectionLife::own_policy(Connection& connection) {
  if (connection.policy_->references == 1) return true;
  auto* own = new (std::nothrow) ConnectionPolicy(*connection.policy_);
  if (own == nullptr) return false;
  own->references = 1;
  if (own->ping != nullptr) ++own->ping->references;
  ConnectionPolicy::release(connection.policy_);
  connection.policy_ = own;
  return true;
}

Result<void> Connection::set_timeout(Deadline kind, Timeout timeout) {
  if (stage_ == Stage::vacant || stage_ == Stage::ended) return Error{"set timeout", EBADF};
  if (kind == Deadline::accept) return Error{"set timeout", EINVAL, "accept belongs to a listener"};
  if (is_rate(kind)) return Error{"set timeout", EINVAL, "a kind that has a rate: set_rate"};
  Timeouts wanted;
  wanted.of(kind) = timeout;
  if (auto valid = validate(wanted, "set timeout"); !valid) return valid;
  policy_->core->assert_thread();
  if (!ConnectionLife::own_policy(*this)) return Error{"set timeout", ENOMEM};
  const bool send_was_never = ConnectionLife::send_timeout(*this).is_never();
  policy_->timeouts.of(kind) = timeout.is_inherit() ? policy_->inherited.of(kind) : timeout;
  ReactorCore& core = *policy_->core;
  core.read_clock();
  if (kind == Deadline::send && send_was_never && ConnectionLife::send_clock_runs(*this)) {  // for a rate
    send_progress_ = core.now;
    if (ConnectionLife::waits_for_flush(*this)) ConnectionLife::send_clock_begins_later(core, *this);
  }
  if (kind == Deadline::send || kind == Deadline::drain) ConnectionLife::sending_watch_changed(core, *this);
  ConnectionLife::rearm(core, *this);
  return {};
}

ConnectionHandle Connection::handle() { return ConnectionHandle(this, generation_); }

Address Connection::peer() const {
  if (stage_ == Stage::vacant) return {};
  return ConnectionLife::birth_of(*this).peer.to_address();
}

Result<Address> Connection::local_address() const {
  if (stage_ == Stage::vacant || descriptor_ < 0) return Error{"local address", EBADF};
  return vigil::local_address(descriptor_);
}

int Connection::descriptor() const { return descriptor_; }
bool Connection::is_open() const { return stage_ == Stage::open && !has(closing | finish_wanted); }

std::size_t Connection::backlog_bytes() const {
  if (stage_ == Stage::vacant) return 0;
  return queued_bytes_ + (policy_->core->gathers_for(*this) ? policy_->core->gathered : 0);
}

Duration Connection::age() const {
  return stage_ == Stage::vacant ? Duration{} : sys::monotonic_now() - ConnectionLife::birth_of(*this).made_at;
}

Duration Connection::silence() const {
  if (stage_ == Stage::vacant) return {};
  return policy_->core->read_clock() - last_received_;
}

Connection& ConnectionHandle::over() { return ConnectionLife::over(); }

Connection& ConnectionHandle::target() const {
  if (connection_ == nullptr || connection_->generation() != generation_ || connection_->stage_ == Connection::Stage::vacant)
    return over();
  return *connection_;
}

}  // namespace vigil
