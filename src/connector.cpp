#include "vigil/connector.hpp"

#include <cerrno>
#include <utility>

#include "connection_life.hpp"
#include "socket_calls.hpp"

namespace vigil {

ConnectorBase::ConnectorBase(Reactor& reactor, const ConnectorOptions& options, Setup setup)
    : core_(&ReactorCore::of(reactor)), options_(options), setup_(std::make_shared<Setup>(std::move(setup))) {}

ConnectorBase::~ConnectorBase() { ConnectionPolicy::release(policy_); }

Result<ConnectionHandle> ConnectorBase::connect(std::string_view address) {
  auto parsed = Address::parse(address);
  if (!parsed) return parsed.error();
  return connect(*parsed);
}

Result<ConnectionHandle> ConnectorBase::connect(const Address& address) {
  if (auto usable = core_->usable("connect"); !usable) return usable.error();
  const StreamBounds bounds{options_.backlog_bytes_max, options_.backlog_high_mark_bytes, options_.backlog_low_mark_bytes,
                            options_.when_backlogged, options_.message_bytes_max};
  if (auto made = refresh_policy(policy_, *core_, *setup_->handler, bounds, options_.timeouts, options_.heartbeat, "connect");
      !made)
    return made.error();
  if (auto valid = validate(options_.socket, address.is_ip(), "connect"); !valid) return valid.error();
  const auto socket_options = with_keepalive(options_.socket, options_.heartbeat, address.is_ip(), "connect");
  if (!socket_options) return socket_options.error();
  if (address.is_ip() && address.port() == 0) return Error{"connect", EINVAL, "port 0"};
  const auto target = resolve(address, "connect");
  if (!target) return target.error();

  auto socket = open_socket(address.family());
  if (!socket) return Error{"connect", socket.error().code, "socket"};
  if (auto applied = apply(socket->descriptor(), *socket_options, address.is_ip()); !applied) return applied.error();
  if (options_.source)
    if (auto bound = bind(*socket, *options_.source); !bound) return Error{"connect", bound.error().code, "source address"};

  ReactorCore& core = *core_;
  Connection* connection =
      ConnectionLife::begin(*policy_, socket->descriptor(), peer_from(target->get(), target->length), address.is_ip());
  if (connection == nullptr) return Error{"connect", ENOMEM};
  const int descriptor = socket->release();
  const std::shared_ptr<Setup> setup = setup_;  // from make_handler on, this connector may be gone
  {
    // make_handler is a callback like any other, although connect() may be called between turns: no turn may meet the half-made.
    const bool in_turn = std::exchange(core.in_turn, true);
    ConnectionLife::build_handler(*connection, setup->construct);
    core.in_turn = in_turn;
  }
  const int answer = uninterrupted([&] { return sys::connect(descriptor, target->get(), target->length); });
  if (would_block(answer) && !address.is_ip()) {
    ConnectionLife::retry_later(*connection, *target);
  } else {
    ConnectionLife::connecting(*connection, answer);
  }
  return connection->handle();
}

}  // namespace vigil
