// A simulated world's calls on descriptors and sockets.
#include <linux/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "sim/world_kernel.hpp"

namespace vigil::sim {
namespace {

constexpr int first_number = 100;

sockaddr_storage storage_of(const sockaddr* address, socklen_t length) {
  sockaddr_storage name{};
  std::memcpy(&name, address, std::min<std::size_t>(length, sizeof name));
  return name;
}

}  // namespace

WorldKernel::Descriptor::Descriptor(WorldKernel& its_kernel, int its_number, Kind its_kind)
    : kernel(its_kernel), host(*its_kernel.host), number(its_number), kind(its_kind), settings(host.defaults) {
  ++host.descriptors;
}

TcpSettings& WorldKernel::Descriptor::settings_now() {
  if (end != nullptr) return end->settings;
  return listening != nullptr ? listening->settings : settings;
}

std::uint32_t WorldKernel::Descriptor::state() const {
  switch (kind) {
    case Kind::socket:
      if (end != nullptr) return end->poll_state();
      if (listening != nullptr) return listening->queue.empty() ? 0 : POLLIN;
      return POLLOUT | POLLHUP;  // a fresh one
    case Kind::wake:
      return POLLOUT | (signalled > 0 ? POLLIN : 0U);
    case Kind::signal:
      return signalled > 0 ? POLLIN : 0U;
    default:
      return 0;
  }
}

// The table -------------------------------------------------------------------------------------------------------------------

WorldKernel::Descriptor* WorldKernel::find(int descriptor) const {
  const int index = descriptor - first_number;
  return index < 0 || index >= static_cast<int>(descriptors_.size()) ? nullptr
                                                                     : descriptors_[static_cast<std::size_t>(index)].get();
}

WorldKernel::Descriptor* WorldKernel::find_socket(int descriptor, int& error) {
  Descriptor* found = find(descriptor);
  if (found == nullptr) ++calls_on_closed;
  error = found == nullptr ? -EBADF : found->kind != Kind::socket ? -ENOTSOCK : 0;
  return error == 0 ? found : nullptr;
}

int WorldKernel::open(Kind kind) {
  if (host->descriptors >= host->descriptors_max) {
    universe_.happened(Fault::descriptors_limited);
    return -EMFILE;
  }
  while (lowest_free_ < descriptors_.size() && descriptors_[lowest_free_] != nullptr) ++lowest_free_;
  if (lowest_free_ == descriptors_.size()) descriptors_.emplace_back();
  const int number = first_number + static_cast<int>(lowest_free_);
  descriptors_[lowest_free_] = std::make_unique<Descriptor>(*this, number, kind);
  return number;
}

int WorldKernel::shortage() {
  if (universe_.strikes(Fault::no_descriptor)) return universe_.random.below(4) == 0 ? -ENFILE : -EMFILE;
  if (universe_.strikes(Fault::no_buffers)) return universe_.random.below(2) == 0 ? -ENOBUFS : -ENOMEM;
  return 0;
}

std::size_t WorldKernel::open_descriptors() const {
  return static_cast<std::size_t>(
      std::count_if(descriptors_.begin(), descriptors_.end(), [](const auto& one) { return one != nullptr; }));
}

int WorldKernel::reserve_open() { return told("open", -1, open(Kind::reserve)); }

int WorldKernel::close(int number) {
  Descriptor* descriptor = find(number);
  if (descriptor == nullptr) {
    ++calls_on_closed;
    return -EBADF;
  }
  for (const int poller : pollers_) find(poller)->registrations->forget(number);
  if (descriptor->kind == Kind::epoll) std::erase(pollers_, number);
  if (descriptor->kind == Kind::socket) {
    Life& life = lives_.at(descriptor->life - 1);
    life.truth = truth_of(*descriptor, life.truth);
    life.truth.is_closed = true;
    life.truth.closed_at = universe_.now;
    life.descriptor = -1;
    if (descriptor->end != nullptr) {
      const std::shared_ptr<TcpEnd> end = descriptor->end;
      end->close();
      life.truth.was_reset = end->own_side().was_reset;
      const bool sends_end = !life.truth.end_was_sent && !life.truth.was_reset && life.truth.was_connected;
      if (sends_end) life.truth.end_sent_at = universe_.now;
      life.truth.end_was_sent = life.truth.end_was_sent || sends_end;
    }
    if (descriptor->listening != nullptr) descriptor->host.remove_listener(*descriptor->listening);
  }
  --descriptor->host.descriptors;
  descriptors_[static_cast<std::size_t>(number - first_number)].reset();
  lowest_free_ = std::min(lowest_free_, static_cast<std::size_t>(number - first_number));
  return told("close", number, 0);
}

bool WorldKernel::is_interrupted(Descriptor& descriptor) {
  if (!universe_.strikes_in_a_row(Fault::interrupted, descriptor.interruptions)) return false;
  if (descriptor.end != nullptr) ++descriptor.end->faults();
  return true;
}

// Making, naming, listening ---------------------------------------------------------------------------------------------------

int WorldKernel::socket(int family, int type) {
  if ((family != AF_INET && family != AF_INET6) || type != SOCK_STREAM) return told("socket", -1, -EAFNOSUPPORT);
  if (const int error = shortage(); error != 0) return told("socket", -1, error);
  const int number = open(Kind::socket);
  if (number < 0) return told("socket", -1, number);
  Descriptor& made = *find(number);
  made.family = family;
  made.type = type;
  begin_life(made);
  return told("socket", -1, number);
}

void WorldKernel::begin_life(Descriptor& socket) {
  lives_.push_back({socket.number, {}, nullptr});
  socket.life = lives_.size();
  lives_.back().truth.life = socket.life;
  lives_.back().truth.made_at = universe_.now;
}

int WorldKernel::bind(int number, const sockaddr* address, socklen_t length) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->bound || address->sa_family != socket->family) return told("bind", number, -EINVAL);
  Endpoint wanted = Endpoint::of(storage_of(address, length));
  if (!socket->host.owns(wanted.ip)) return told("bind", number, -EADDRNOTAVAIL);
  if (wanted.port == 0) wanted.port = socket->host.free_port();
  if (!is_free(*socket, wanted)) return told("bind", number, -EADDRINUSE);
  socket->bound = wanted;
  return told("bind", number, 0);
}

bool WorldKernel::is_free(const Descriptor& socket, const Endpoint& wanted) const {
  const auto option = [&](int level, int name) {
    const auto found = socket.options.find({level, name});
    return found != socket.options.end() && found->second != 0;
  };
  const bool takes_v4_too = socket.family == AF_INET6 && !option(IPPROTO_IPV6, IPV6_V6ONLY);
  return socket.host.is_free(wanted, takes_v4_too, option(SOL_SOCKET, SO_REUSEPORT));
}

int WorldKernel::listen(int number, int backlog) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->end != nullptr) return told("listen", number, -EINVAL);
  if (socket->listening != nullptr) {
    socket->listening->backlog = backlog;
    return told("listen", number, 0);
  }
  if (!socket->bound) socket->bound = Endpoint{.ip = {}, .port = socket->host.free_port()};
  if (!is_free(*socket, *socket->bound)) return told("listen", number, -EADDRINUSE);
  const auto v6_only = socket->options.find({IPPROTO_IPV6, IPV6_V6ONLY});
  const auto shares = socket->options.find({SOL_SOCKET, SO_REUSEPORT});
  const bool takes_v4_too = socket->family == AF_INET6 && (v6_only == socket->options.end() || v6_only->second == 0);
  socket->listening = std::make_unique<ListeningSocket>(ListeningSocket{
      .at = *socket->bound, .takes_v4_too = takes_v4_too, .backlog = backlog, .settings = socket->settings, .owner = socket});
  socket->host.runs_vigil = true;
  socket->host.add_listener(*socket->listening, shares != socket->options.end() && shares->second != 0);
  return told("listen", number, 0);
}

int WorldKernel::accept(int number, sockaddr* address, socklen_t* length) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->listening == nullptr) return told("accept", number, -EINVAL);
  if (is_interrupted(*socket)) return told("accept", number, -EINTR);
  if (error = shortage(); error != 0) return told("accept", number, error);
  // The kernel takes a number first, and looks for a connection then.
  if (socket->host.descriptors >= socket->host.descriptors_max) {
    universe_.happened(Fault::descriptors_limited);
    return told("accept", number, -EMFILE);
  }
  auto& queue = socket->listening->queue;
  if (queue.empty()) return told("accept", number, -EAGAIN);
  if (universe_.strikes_in_a_row(Fault::accept_error, socket->accept_errors, accept_errors_in_a_row_max)) {
    static constexpr std::array pending{ENETDOWN,     EPROTO,     ENOPROTOOPT, EHOSTDOWN,   ENONET,
                                        EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, ECONNABORTED};  // accept(2)
    return told("accept", number, -pending[universe_.random.below(pending.size())]);
  }
  SimulatedHost* const host_before = std::exchange(host, &socket->host);
  const int accepted_number = open(Kind::socket);
  host = host_before;
  Descriptor& accepted = *find(accepted_number);
  accepted.family = socket->family;
  accepted.type = socket->type;
  accepted.options = socket->options;
  accepted.end = std::move(queue.front());
  queue.pop_front();
  accepted.end->owner = &accepted;
  begin_life(accepted);
  lives_.back().peer = accepted.end->other_side().peer;
  accepted.end->flow().remote.write(accepted.family, address, length);
  return told("accept", number, accepted_number);
}

int WorldKernel::connect(int number, const sockaddr* address, socklen_t length) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->listening != nullptr) return told("connect", number, -EISCONN);
  if (socket->end != nullptr) {
    if (socket->end->state() == TcpEnd::State::syn_sent) return told("connect", number, -EALREADY);
    if (!std::exchange(socket->connect_is_unanswered, false)) return told("connect", number, -EISCONN);
    if (socket->end->state() == TcpEnd::State::established) return told("connect", number, 0);
    // The failure is told once, and the socket may try again.
    const int failed = socket->end->take_error();
    socket->end->fill(lives_.at(socket->life - 1).truth);
    socket->settings = socket->end->settings;
    socket->end->close();
    socket->end = nullptr;
    report(number, POLLERR);
    return told("connect", number, failed != 0 ? -failed : -ECONNABORTED);
  }
  if (address->sa_family != socket->family) return told("connect", number, -EAFNOSUPPORT);
  SimulatedHost& its_host = socket->host;
  its_host.runs_vigil = true;
  Endpoint remote = Endpoint::of(storage_of(address, length));
  if (remote.ip.is_any()) remote.ip = socket->family == AF_INET ? Ip{0, 0xFFFF7F000001} : Ip{0, 1};  // as the kernel: loopback
  const std::optional<Ip> source =
      socket->bound && !socket->bound->ip.is_any() ? socket->bound->ip : its_host.source_for(remote.ip);
  const auto fails_at_once = [&](int with) {
    Truth& truth = lives_.at(socket->life - 1).truth;
    truth.error = with;
    truth.error_at = universe_.now;
    truth.error_was_taken = true;
    return told("connect", number, -with);
  };
  error = source ? network_.route_error(its_host, remote.ip) : ENETUNREACH;
  if (error != 0) return fails_at_once(error);
  if (!socket->bound && universe_.strikes(Fault::no_port)) return fails_at_once(EADDRNOTAVAIL);
  const Flow flow{{*source, socket->bound ? socket->bound->port : its_host.free_port(*source, remote)}, remote};
  if (flow.local.port == 0 || its_host.has_flow(flow)) return fails_at_once(EADDRNOTAVAIL);
  socket->end = its_host.open_flow(flow, socket->settings, std::make_shared<Conversation>(), true);
  socket->end->owner = socket;
  socket->connect_is_unanswered = true;
  socket->end->connect();
  return told("connect", number, -EINPROGRESS);
}

// Bytes -----------------------------------------------------------------------------------------------------------------------

ssize_t WorldKernel::recv(int number, void* buffer, std::size_t size) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->end == nullptr) return told<ssize_t>("recv", number, -ENOTCONN);
  if (is_interrupted(*socket)) return told<ssize_t>("recv", number, -EINTR);
  return told("recv", number, socket->end->receive(buffer, size));
}

ssize_t WorldKernel::send(int number, const void* bytes, std::size_t size) {
  const iovec piece{const_cast<void*>(bytes), size};
  return send_vector(number, &piece, 1);
}

ssize_t WorldKernel::send_vector(int number, const iovec* pieces, std::size_t count) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->end == nullptr) return told<ssize_t>("send", number, -EPIPE);
  if (is_interrupted(*socket)) return told<ssize_t>("send", number, -EINTR);
  return told("send", number, socket->end->send(pieces, count));
}

int WorldKernel::shutdown(int number, int how) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  socket->connect_is_unanswered = false;
  return told("shutdown", number, socket->end == nullptr ? -ENOTCONN : socket->end->shutdown(how));
}

int WorldKernel::unread_bytes(int number) {
  int error = 0;
  const Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->listening != nullptr) return -EINVAL;
  return socket->end == nullptr ? 0 : static_cast<int>(socket->end->unread());
}

int WorldKernel::unsent_bytes(int number) {
  int error = 0;
  const Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  if (socket->listening != nullptr) return -EINVAL;
  return socket->end == nullptr ? 0 : socket->end->unsent();
}

sys::TcpSample WorldKernel::tcp_sample(int number) {
  int error = 0;
  const Descriptor* socket = find_socket(number, error);
  return socket == nullptr || socket->end == nullptr ? sys::TcpSample{} : socket->end->sample();
}

// Options and names -----------------------------------------------------------------------------------------------------------

int WorldKernel::get_option(int number, int level, int name, void* value, socklen_t* length) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  int answer = 0;
  if (level == SOL_SOCKET && name == SO_ERROR) {
    answer = socket->end == nullptr ? 0 : socket->end->take_error();
  } else if (level == SOL_SOCKET && name == SO_TYPE) {
    answer = socket->type;
  } else if (level == SOL_SOCKET && name == SO_DOMAIN) {
    answer = socket->family;
  } else if (level == SOL_SOCKET && name == SO_ACCEPTCONN) {
    answer = socket->listening != nullptr ? 1 : 0;
  } else if (level == SOL_SOCKET && name == SO_SNDBUF) {
    answer = static_cast<int>(socket->settings_now().send_capacity);
  } else if (level == SOL_SOCKET && name == SO_RCVBUF) {
    answer = static_cast<int>(socket->settings_now().receive_capacity);
  } else if (const auto option = socket->options.find({level, name}); option != socket->options.end()) {
    answer = option->second;
  }
  *length = std::min(*length, static_cast<socklen_t>(sizeof answer));
  std::memcpy(value, &answer, *length);
  return told("getsockopt", number, 0);
}

int WorldKernel::set_option(int number, int level, int name, const void* value, socklen_t length) {
  int error = 0;
  Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  TcpSettings& settings = socket->settings_now();
  if (level == SOL_SOCKET && name == SO_LINGER) {
    linger wanted{};
    std::memcpy(&wanted, value, std::min<std::size_t>(length, sizeof wanted));
    settings.resets_on_close = wanted.l_onoff != 0 && wanted.l_linger == 0;
    return told("setsockopt", number, 0);
  }
  int wanted = 0;
  std::memcpy(&wanted, value, std::min<std::size_t>(length, sizeof wanted));
  socket->options[{level, name}] = wanted;
  const std::chrono::seconds seconds(wanted);
  // The kernel doubles what is asked of a buffer, for its own part (socket(7)).
  constexpr std::size_t least_buffer = 2304;
  const std::size_t buffer = std::max(least_buffer, 2 * static_cast<std::size_t>(std::max(wanted, 0)));
  if (level == SOL_SOCKET && name == SO_KEEPALIVE) settings.keepalive = wanted != 0;
  if (level == SOL_SOCKET && name == SO_SNDBUF) settings.send_capacity = buffer;
  if (level == SOL_SOCKET && name == SO_RCVBUF) settings.receive_capacity = buffer;
  if (level == IPPROTO_TCP && name == TCP_KEEPIDLE) settings.keepalive_idle = seconds;
  if (level == IPPROTO_TCP && name == TCP_KEEPINTVL) settings.keepalive_interval = seconds;
  if (level == IPPROTO_TCP && name == TCP_KEEPCNT) settings.keepalive_count = wanted;
  if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT) settings.user_timeout = std::chrono::milliseconds(wanted);
  if (level == IPPROTO_TCP && name == TCP_SYNCNT) settings.syn_retries = wanted;
  if (socket->end != nullptr) socket->end->settings_changed();
  return told("setsockopt", number, 0);
}

int WorldKernel::local_name(int number, sockaddr* address, socklen_t* length) {
  int error = 0;
  const Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  const Endpoint here = socket->end != nullptr ? socket->end->flow().local : socket->bound.value_or(Endpoint{});
  here.write(socket->family, address, length);
  return 0;
}

int WorldKernel::peer_name(int number, sockaddr* address, socklen_t* length) {
  int error = 0;
  const Descriptor* socket = find_socket(number, error);
  if (socket == nullptr) return error;
  // A connection that was reset has no peer any more, even before accept.
  if (socket->end == nullptr || socket->end->state() != TcpEnd::State::established) return told("getpeername", number, -ENOTCONN);
  socket->end->flow().remote.write(socket->family, address, length);
  return told("getpeername", number, 0);
}

int WorldKernel::status_flags(int number) {
  const Descriptor* about = find(number);
  return about == nullptr ? -EBADF : about->flags;
}

int WorldKernel::set_status_flags(int number, int flags) {
  Descriptor* about = find(number);
  if (about == nullptr) return -EBADF;
  about->flags = flags;
  return 0;
}

int WorldKernel::path_status(const char*, struct stat&) { return -ENOENT; }
int WorldKernel::unlink(const char*) { return -ENOENT; }
unsigned WorldKernel::interface_index(const char* name) { return std::string_view(name) == "lo" ? 1 : 0; }

// The truth -------------------------------------------------------------------------------------------------------------------

Truth WorldKernel::truth_of(const Descriptor& descriptor, Truth known) const {
  if (descriptor.end != nullptr) descriptor.end->fill(known);
  return known;
}

std::uint64_t WorldKernel::life(int descriptor) const {
  const Descriptor* found = find(descriptor);
  return found == nullptr ? 0 : found->life;
}

Truth WorldKernel::truth(std::uint64_t number) const {
  if (number == 0 || number > lives_.size()) return {};
  const Life& life = lives_[number - 1];
  return life.descriptor < 0 ? life.truth : truth_of(*find(life.descriptor), life.truth);
}

Peer* WorldKernel::peer_of(std::uint64_t number) const {
  if (number == 0 || number > lives_.size()) return nullptr;
  const Life& life = lives_[number - 1];
  const Descriptor* open_one = life.descriptor < 0 ? nullptr : find(life.descriptor);
  if (open_one != nullptr && open_one->end != nullptr) return open_one->end->other_side().peer;
  return life.peer;
}

void WorldKernel::trace_call(const char* call, int descriptor, std::int64_t answer) {
  char line[160];
  const double seconds = static_cast<double>(universe_.now.time_since_epoch().count()) * 1e-9;
  const char* name = answer < 0 ? sys::error_name(static_cast<int>(-answer)) : nullptr;
  if (name != nullptr)
    std::snprintf(line, sizeof line, "%14.9f  %s(%d) = %s", seconds, call, descriptor, name);
  else
    std::snprintf(line, sizeof line, "%14.9f  %s(%d) = %lld", seconds, call, descriptor, static_cast<long long>(answer));
  universe_.trace(line);
}

}  // namespace vigil::sim
