// An attempt that has to be made again. A Unix listener whose queue is full answers EAGAIN and tells nobody when it has room: the
// attempt is repeated in growing steps until its connect deadline. Until it succeeds the poller is not told of the socket, which
// is connected to nothing and would be reported as hung up.
#include <algorithm>
#include <cerrno>
#include <new>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {
namespace {

constexpr Duration first_delay = std::chrono::milliseconds(1);
constexpr Duration longest_delay = std::chrono::milliseconds(100);

}  // namespace

struct ConnectRetry {
  SocketAddress target;
  Instant at;
  Duration delay;
};

void ConnectionLife::retry_later(Connection& connection, const SocketAddress& target) {
  if (connection.stage_ != Connection::Stage::connecting) return;  // make_handler has ended it
  ReactorCore& core = *connection.policy_->core;
  ConnectionSide* side = side_of(core, connection);
  ConnectRetry* retry = side == nullptr ? nullptr : new (std::nothrow) ConnectRetry;
  if (retry == nullptr) return end(connection, CloseReason::connect_failed, ENOMEM, number(Operation::connect));
  *retry = {target, core.read_clock() + first_delay, first_delay};
  side->retry = retry;
  rearm(core, connection);
}

Instant ConnectionLife::retries_at(const Connection& connection) {
  const ConnectionSide* side = connection.side_;
  return side == nullptr || side->retry == nullptr ? never_due : side->retry->at;
}

/// False: it waits for no retry.
bool ConnectionLife::retry_now(ReactorCore& core, Connection& connection) {
  if (retries_at(connection) == never_due) return false;
  ConnectRetry& retry = *connection.side_->retry;
  const int answer = uninterrupted([&] { return sys::connect(connection.descriptor_, retry.target.get(), retry.target.length); });
  if (would_block(answer)) {
    retry.delay = std::min(2 * retry.delay, longest_delay);
    retry.at = core.read_clock() + retry.delay;
    return true;
  }
  drop_retry(connection);
  if (answer != 0) {
    connecting(connection, answer);
    return true;
  }
  // Now, not in the next turn: it may have been its deadline that asked.
  register_stream(connection);
  if (connection.stage_ == Connection::Stage::connecting)
    confirm_connect(core, connection, {Readiness::readable | Readiness::writable});
  return true;
}

void ConnectionLife::drop_retry(Connection& connection) {
  delete connection.side_->retry;
  connection.side_->retry = nullptr;
}

}  // namespace vigil
