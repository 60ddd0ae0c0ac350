#include "simulated_descriptor.hpp"

#include <netinet/tcp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vigil::sys {

bool SimulatedDescriptor::has_arrived(Arrival::Kind kind_wanted) const {
  return std::any_of(arrivals.begin(), arrivals.end(), [=](const Arrival& arrival) { return arrival.kind == kind_wanted; });
}

std::uint32_t SimulatedDescriptor::state() const {
  switch (kind) {
    case Kind::wake:
    case Kind::signal:
      return signalled > 0 ? POLLIN : 0;
    case Kind::epoll:
    case Kind::reserve:
      return 0;
    case Kind::other:
      return scripted_state;
    case Kind::socket:
      break;
  }
  std::uint32_t bits = 0;
  switch (stage) {
    case Stage::fresh:
      return POLLOUT | POLLHUP;
    case Stage::listening:
      return waiting.empty() ? 0 : POLLIN;
    case Stage::connecting:
      return 0;
    case Stage::refused:
      return POLLIN | POLLOUT | POLLRDHUP | POLLHUP | (connect_error != 0 ? POLLERR : 0U);
    case Stage::connected:
      break;
  }
  const bool errored = has_arrived(Arrival::Kind::error);
  const bool peer_ended = errored || dead || has_arrived(Arrival::Kind::end);
  if (!arrivals.empty() || dead || receive_shut) bits |= POLLIN;
  if (peer_ended || receive_shut) bits |= POLLRDHUP;
  if (errored || dead || (peer_ended && send_shut)) bits |= POLLHUP;
  if (errored) bits |= POLLERR;
  if (has_arrived(Arrival::Kind::mark)) bits |= POLLPRI;
  if (room > 0 || errored || dead || send_shut) bits |= POLLOUT;
  return bits;
}

ssize_t SimulatedDescriptor::receive(void* buffer, std::size_t size) {
  if (stage == Stage::refused && connect_error != 0) return -std::exchange(connect_error, 0);
  if (stage == Stage::refused) return 0;
  if (stage == Stage::connecting) return -EAGAIN;
  if (stage != Stage::connected) return -ENOTCONN;
  if (size == 0) return 0;

  auto* out = static_cast<char*>(buffer);
  std::size_t taken = 0;
  while (taken < size && !arrivals.empty()) {
    Arrival& next = arrivals.front();
    if (next.kind == Arrival::Kind::bytes) {
      const std::size_t part = std::min(size - taken, next.bytes.size());
      std::memcpy(out + taken, next.bytes.data(), part);
      next.bytes.erase(0, part);
      if (next.bytes.empty()) arrivals.pop_front();
      taken += part;
      continue;
    }
    if (next.kind == Arrival::Kind::endless_bytes) {
      std::memset(out + taken, '~', size - taken);
      return static_cast<ssize_t>(size);
    }
    if (next.kind == Arrival::Kind::mark) {
      arrivals.pop_front();
      if (taken > 0) break;
      continue;
    }
    if (taken > 0) break;
    if (next.kind == Arrival::Kind::end) {
      if (arrivals.size() > 1) arrivals.pop_front();  // what a script puts behind an end is answered next
      return 0;
    }
    const int error = next.error;
    if (next.kind == Arrival::Kind::error) dead = true;
    arrivals.pop_front();
    return -error;
  }
  if (taken > 0) return static_cast<ssize_t>(taken);
  return dead || receive_shut ? 0 : -EAGAIN;
}

ssize_t SimulatedDescriptor::send(const iovec* pieces, std::size_t count) {
  if (stage == Stage::connecting) return -EAGAIN;
  if (stage == Stage::refused && connect_error != 0) return -std::exchange(connect_error, 0);
  if (stage != Stage::connected) return -EPIPE;
  if (!send_errors.empty()) {
    const int error = send_errors.front();
    send_errors.pop_front();
    if (error != EINTR && error != EAGAIN && error != ENOBUFS && error != ENOMEM) dead = true;
    return -error;
  }
  if (const int error = take_arrived_error(); error != 0) return -error;
  if (dead || send_shut) return -EPIPE;

  std::size_t taken = 0;
  bool offered = false;
  for (std::size_t index = 0; index < count; ++index) {
    const std::size_t part = std::min(room, pieces[index].iov_len);
    offered = offered || pieces[index].iov_len > 0;
    sent.append(static_cast<const char*>(pieces[index].iov_base), part);
    taken += part;
    if (room != unlimited) room -= part;
  }
  if (taken == 0 && offered) return -EAGAIN;
  if (acknowledges_at_once) acknowledged += taken;
  return static_cast<ssize_t>(taken);
}

int SimulatedDescriptor::shutdown(int how) {
  if (stage != Stage::connected) return -ENOTCONN;
  if (how == SHUT_RD || how == SHUT_RDWR) receive_shut = true;
  if ((how == SHUT_WR || how == SHUT_RDWR) && !send_shut) {
    send_shut = true;
    if (acknowledges_at_once) ++acknowledged;
  }
  return 0;
}

int SimulatedDescriptor::take_error() {
  if (connect_error != 0) return std::exchange(connect_error, 0);
  return take_arrived_error();
}

int SimulatedDescriptor::take_arrived_error() {
  const auto found =
      std::find_if(arrivals.begin(), arrivals.end(), [](const Arrival& arrival) { return arrival.kind == Arrival::Kind::error; });
  if (found == arrivals.end()) return 0;
  const int error = found->error;
  arrivals.erase(found);  // what stands in front of it can still be read; then comes the false orderly end
  dead = true;
  return error;
}

int SimulatedDescriptor::unread() const {
  std::size_t bytes = 0;
  for (const Arrival& arrival : arrivals) bytes += arrival.bytes.size();
  return static_cast<int>(bytes);
}

int SimulatedDescriptor::unsent() const { return static_cast<int>(sent.size() + (send_shut ? 1U : 0U) - acknowledged); }

TcpSample SimulatedDescriptor::sample() const {
  if (scripted_sample) return *scripted_sample;
  if (kind != Kind::socket || family == AF_UNIX) return {};
  TcpSample sample;
  sample.known = true;
  sample.connected = stage == Stage::connected && !dead;
  sample.bytes_acked = acknowledged;
  sample.unacked = unsent() > 0 ? 1 : 0;
  sample.window_known = true;
  sample.snd_wnd = 65535;
  return sample;
}

bool SimulatedDescriptor::would_reset() const {
  if (stage != Stage::connected) return false;
  if (unread() > 0) return true;
  const auto option = options.find({SOL_SOCKET, SO_LINGER});
  if (option == options.end() || option->second.size() < sizeof(linger)) return false;
  linger value{};
  std::memcpy(&value, option->second.data(), sizeof value);
  return value.l_onoff != 0 && value.l_linger == 0;
}

}  // namespace vigil::sys
