#include "scripted_kernel.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "epoll_registrations.hpp"
#include "simulated_descriptor.hpp"

namespace vigil::sys {

namespace {

constexpr std::array<const char*, call_count> call_names = {
    "monotonic_now", "random_seed",    "epoll_create",     "epoll_control",
    "epoll_wait",    "poll",           "wake_open",        "wake_signal",
    "signal_open",   "signal_take",    "signal_restore",   "socket",
    "bind",          "listen",         "accept",           "connect",
    "recv",          "send",           "send_vector",      "shutdown",
    "close",         "get_option",     "set_option",       "local_name",
    "peer_name",     "status_flags",   "set_status_flags", "unread_bytes",
    "unsent_bytes",  "tcp_sample",     "reserve_open",     "path_status",
    "unlink",        "interface_index"};

constexpr int first_descriptor = 100;
constexpr std::uint16_t first_peer_port = 50'000;
constexpr std::uint16_t first_own_port = 40'000;

[[noreturn]] void misused(const char* what, int number) {
  std::fprintf(stderr, "vigil: the script of a simulated kernel is wrong: %s (%d)\n", what, number);
  std::abort();
}

/// The kernel's habit: no more than fits, and the true length.
void copy_name(const sockaddr_storage& from, socklen_t from_length, sockaddr* to, socklen_t* to_length) {
  if (to == nullptr || to_length == nullptr) return;
  std::memcpy(to, &from, std::min(from_length, *to_length));
  *to_length = from_length;
}

socklen_t make_name(int family, std::uint32_t host, std::uint16_t port, sockaddr_storage& name) {
  name = {};
  name.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(name);
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = htonl(0xC0000200U | host);  // 192.0.2.host, which is for examples
    return sizeof v4;
  }
  if (family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(name);
    v6.sin6_port = htons(port);
    v6.sin6_addr.s6_addr[0] = 0x20;  // 2001:db8::host, likewise
    v6.sin6_addr.s6_addr[1] = 0x01;
    v6.sin6_addr.s6_addr[2] = 0x0d;
    v6.sin6_addr.s6_addr[3] = 0xb8;
    v6.sin6_addr.s6_addr[15] = static_cast<std::uint8_t>(host);
    return sizeof v6;
  }
  return sizeof(sa_family_t);  // a Unix socket's peer has no name
}

std::uint16_t* port_of(sockaddr_storage& name) {
  if (name.ss_family == AF_INET) return &reinterpret_cast<sockaddr_in&>(name).sin_port;
  if (name.ss_family == AF_INET6) return &reinterpret_cast<sockaddr_in6&>(name).sin6_port;
  return nullptr;
}

/// The path of a Unix address that stands in the file system; empty for any other.
std::string path_in(const sockaddr_storage& name, socklen_t length) {
  if (name.ss_family != AF_UNIX || length <= offsetof(sockaddr_un, sun_path)) return {};
  const char* path = reinterpret_cast<const sockaddr_un&>(name).sun_path;
  return std::string(path, ::strnlen(path, length - offsetof(sockaddr_un, sun_path)));
}

}  // namespace

const char* to_string(Call call) { return call_names[static_cast<std::size_t>(call)]; }

class ScriptedKernel::World final : public Kernel {
 public:
  using Kind = SimulatedDescriptor::Kind;
  using Stage = SimulatedDescriptor::Stage;

  World() : before_(install(this)) {}
  ~World() { install(before_); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // The calls of the seam ------------------------------------------------------------------------------------------------

  Instant monotonic_now() override {
    ++clock_reads_;
    return now_;
  }

  std::uint64_t random_seed() override {
    seed_ = seed_ * 6364136223846793005U + 1442695040888963407U;
    record({.call = Call::random_seed, .at = now_});
    return seed_;
  }

  int epoll_create() override {
    return made({.call = Call::epoll_create}, [&] {
      const int descriptor = open(Kind::epoll);
      if (descriptor >= 0) pollers_[descriptor];
      return descriptor;
    });
  }

  int epoll_control(int epoll, int operation, int descriptor, epoll_event* event) override {
    return made({.call = Call::epoll_control, .descriptor = descriptor, .operation = operation}, [&] {
      const auto poller = pollers_.find(epoll);
      const SimulatedDescriptor* about = find(descriptor);
      if (poller == pollers_.end() || about == nullptr) {
        if (operation != EPOLL_CTL_DEL) ++calls_on_closed_;
        return -EBADF;
      }
      if (about->kind == Kind::reserve) return -EPERM;  // as of a regular file
      if (epoll == descriptor) return -EINVAL;
      return poller->second.control(operation, descriptor, event, about->state());
    });
  }

  int epoll_wait(int epoll, epoll_event* events, int capacity, Duration timeout) override {
    return made(
        {.call = Call::epoll_wait, .descriptor = epoll, .timeout = timeout, .size = static_cast<std::size_t>(capacity)}, [&] {
          const auto poller = pollers_.find(epoll);
          if (poller == pollers_.end()) return on_closed();
          if (capacity <= 0) return -EINVAL;
          return wait(timeout, [&] {
            return poller->second.take(events, capacity, [&](int descriptor) { return descriptors_.at(descriptor).state(); });
          });
        });
  }

  int poll(pollfd* entries, std::size_t count, Duration timeout) override {
    return made({.call = Call::poll, .descriptor = count == 1 ? entries[0].fd : -1, .timeout = timeout, .size = count}, [&] {
      return wait(timeout, [&] {
        int ready = 0;
        for (std::size_t index = 0; index < count; ++index) {
          pollfd& entry = entries[index];
          const SimulatedDescriptor* about = find(entry.fd);
          const std::uint32_t state = about == nullptr ? POLLNVAL : about->state();
          const std::uint32_t heard = state & (static_cast<std::uint32_t>(entry.events) | POLLERR | POLLHUP | POLLNVAL);
          entry.revents = entry.fd < 0 ? 0 : static_cast<short>(heard);
          if (entry.revents != 0) ++ready;
        }
        return ready;
      });
    });
  }

  int wake_open() override {
    return made({.call = Call::wake_open}, [&] { return open(Kind::wake); });
  }

  int wake_signal(int descriptor) override {
    return made({.call = Call::wake_signal, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* wake = find(descriptor);
      if (wake == nullptr || wake->kind != Kind::wake) return on_closed();
      ++wake->signalled;
      tell(descriptor);
      return 8;  // as write(2) of eight bytes
    });
  }

  int signal_open(int signal_number, bool& was_blocked) override {
    return made({.call = Call::signal_open}, [&] {
      if (signal_number < 1 || signal_number > 64) return -EINVAL;
      const int descriptor = open(Kind::signal);
      if (descriptor < 0) return descriptor;
      descriptors_.at(descriptor).signal_number = signal_number;
      was_blocked = std::find(blocked_signals_.begin(), blocked_signals_.end(), signal_number) != blocked_signals_.end();
      if (!was_blocked) blocked_signals_.push_back(signal_number);
      return descriptor;
    });
  }

  int signal_take(int descriptor) override {
    return made({.call = Call::signal_take, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* signal = find(descriptor);
      if (signal == nullptr || signal->kind != Kind::signal) return on_closed();
      if (signal->signalled == 0) return -EAGAIN;
      --signal->signalled;
      return signal->signal_number;
    });
  }

  void signal_restore(int signal_number, bool was_blocked) override {
    record({.call = Call::signal_restore, .at = now_});
    if (!was_blocked) std::erase(blocked_signals_, signal_number);
  }

  int socket(int family, int type) override {
    return made({.call = Call::socket}, [&] {
      if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) return -EAFNOSUPPORT;
      const int descriptor = open(Kind::socket);
      if (descriptor < 0) return descriptor;
      descriptors_.at(descriptor).family = family;
      descriptors_.at(descriptor).type = type;
      return descriptor;
    });
  }

  int bind(int descriptor, const sockaddr* address, socklen_t length) override {
    return made({.call = Call::bind, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      if (socket->local_length != 0 || length > sizeof(sockaddr_storage) || address->sa_family != socket->family) return -EINVAL;
      sockaddr_storage name{};
      std::memcpy(&name, address, length);
      if (std::uint16_t* port = port_of(name); port != nullptr && *port == 0) *port = htons(next_own_port_++);
      if (is_taken(name, length, *socket)) return -EADDRINUSE;
      if (const std::string path = path_in(name, length); !path.empty()) {
        if (paths_.contains(path)) return -EADDRINUSE;
        paths_[path] = next_inode_++;
      }
      socket->local = name;
      socket->local_length = length;
      return 0;
    });
  }

  int listen(int descriptor, int backlog) override {
    return made({.call = Call::listen, .descriptor = descriptor, .size = static_cast<std::size_t>(backlog)}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      if (is_taken(socket->local, socket->local_length, *socket)) return -EADDRINUSE;
      if (socket->stage != Stage::fresh && socket->stage != Stage::listening) return -EINVAL;
      socket->stage = Stage::listening;
      listener_ = descriptor;
      return 0;
    });
  }

  int accept(int descriptor, sockaddr* address, socklen_t* length) override {
    return made({.call = Call::accept, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* listener = find(descriptor);
      if (listener == nullptr) return on_closed();
      if (listener->kind != Kind::socket) return -ENOTSOCK;
      if (listener->stage != Stage::listening) return -EINVAL;
      if (is_full()) return -EMFILE;  // the kernel takes a number first, and looks for a connection then
      if (listener->waiting.empty()) return -EAGAIN;
      const int next = listener->waiting.front();
      listener->waiting.pop_front();
      if (next < 0) return next;
      descriptors_[next] = std::move(arriving_.at(next));
      arriving_.erase(next);
      closed_.erase(next);
      const SimulatedDescriptor& accepted = descriptors_.at(next);
      copy_name(accepted.remote, accepted.remote_length, address, length);
      return next;
    });
  }

  int connect(int descriptor, const sockaddr* address, socklen_t length) override {
    return made({.call = Call::connect, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      if (socket->stage == Stage::connecting) return -EALREADY;
      if (socket->stage == Stage::connected) return -EISCONN;
      if (socket->stage == Stage::listening) return -EISCONN;
      if (socket->connect_error != 0) return -std::exchange(socket->connect_error, 0);
      if (address->sa_family != socket->family) return -EAFNOSUPPORT;
      std::memcpy(&socket->remote, address, std::min<std::size_t>(length, sizeof socket->remote));
      socket->remote_length = length;
      if (socket->local_length == 0) socket->local_length = make_name(socket->family, 2, next_own_port_++, socket->local);
      const bool at_once = std::exchange(connect_at_once_, false) || socket->family == AF_UNIX;
      socket->stage = at_once ? Stage::connected : Stage::connecting;
      return at_once ? 0 : -EINPROGRESS;
    });
  }

  ssize_t recv(int descriptor, void* buffer, std::size_t size) override {
    return made({.call = Call::recv, .descriptor = descriptor, .size = size}, [&]() -> ssize_t {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      return socket->kind == Kind::socket ? socket->receive(buffer, size) : -ENOTSOCK;
    });
  }

  ssize_t send(int descriptor, const void* bytes, std::size_t size) override {
    const iovec piece{const_cast<void*>(bytes), size};
    return sent_by(Call::send, descriptor, &piece, 1);
  }

  ssize_t send_vector(int descriptor, const iovec* pieces, std::size_t count) override {
    return sent_by(Call::send_vector, descriptor, pieces, count);
  }

  int shutdown(int descriptor, int how) override {
    return made({.call = Call::shutdown, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      return socket->kind == Kind::socket ? socket->shutdown(how) : -ENOTSOCK;
    });
  }

  int close(int descriptor) override {
    return made({.call = Call::close, .descriptor = descriptor}, [&] {
      const auto found = descriptors_.find(descriptor);
      if (found == descriptors_.end()) return on_closed();
      for (int number : found->second.waiting) arriving_.erase(number);
      const bool lives_on = std::erase(duplicated_, descriptor) > 0;
      for (auto& [number, poller] : pollers_) lives_on ? poller.orphan(descriptor) : poller.forget(descriptor);
      pollers_.erase(descriptor);
      found->second.ended_by_reset = found->second.would_reset();
      closed_[descriptor] = std::move(found->second);
      descriptors_.erase(found);
      if (listener_ == descriptor) listener_ = -1;
      return 0;
    });
  }

  int get_option(int descriptor, int level, int name, void* value, socklen_t* length) override {
    return made({.call = Call::get_option, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      int number = 0;
      if (level == SOL_SOCKET && name == SO_ERROR) {
        number = socket->take_error();
      } else if (level == SOL_SOCKET && name == SO_TYPE) {
        number = socket->type;
      } else if (level == SOL_SOCKET && name == SO_DOMAIN) {
        number = socket->family;
      } else if (level == SOL_SOCKET && name == SO_ACCEPTCONN) {
        number = socket->stage == Stage::listening ? 1 : 0;
      } else if (const auto option = socket->options.find({level, name}); option != socket->options.end()) {
        *length = std::min(*length, static_cast<socklen_t>(option->second.size()));
        std::memcpy(value, option->second.data(), *length);
        return 0;
      }
      *length = std::min(*length, static_cast<socklen_t>(sizeof number));
      std::memcpy(value, &number, *length);
      return 0;
    });
  }

  int set_option(int descriptor, int level, int name, const void* value, socklen_t length) override {
    return made({.call = Call::set_option, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      const auto* bytes = static_cast<const std::byte*>(value);
      socket->options[{level, name}].assign(bytes, bytes + length);
      return 0;
    });
  }

  int local_name(int descriptor, sockaddr* address, socklen_t* length) override {
    return made({.call = Call::local_name, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      sockaddr_storage unbound{};
      unbound.ss_family = static_cast<sa_family_t>(socket->family);
      if (socket->local_length == 0)
        copy_name(unbound, socket->family == AF_INET ? sizeof(sockaddr_in) : sizeof(sa_family_t), address, length);
      else
        copy_name(socket->local, socket->local_length, address, length);
      return 0;
    });
  }

  int peer_name(int descriptor, sockaddr* address, socklen_t* length) override {
    return made({.call = Call::peer_name, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      if (socket->kind != Kind::socket) return -ENOTSOCK;
      // A connection that was reset has no peer any more, even before accept.
      if (socket->stage != Stage::connected || (socket->state() & (POLLERR | POLLHUP)) != 0) return -ENOTCONN;
      copy_name(socket->remote, socket->remote_length, address, length);
      return 0;
    });
  }

  int status_flags(int descriptor) override {
    return made({.call = Call::status_flags, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* about = find(descriptor);
      return about == nullptr ? on_closed() : about->flags;
    });
  }

  int set_status_flags(int descriptor, int flags) override {
    return made({.call = Call::set_status_flags, .descriptor = descriptor}, [&] {
      SimulatedDescriptor* about = find(descriptor);
      if (about == nullptr) return on_closed();
      about->flags = flags;
      return 0;
    });
  }

  int unread_bytes(int descriptor) override {
    return made({.call = Call::unread_bytes, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* socket = find(descriptor);
      return socket == nullptr ? on_closed() : socket->unread();
    });
  }

  int unsent_bytes(int descriptor) override {
    return made({.call = Call::unsent_bytes, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* socket = find(descriptor);
      return socket == nullptr ? on_closed() : socket->unsent();
    });
  }

  TcpSample tcp_sample(int descriptor) override {
    TcpSample sample;
    made({.call = Call::tcp_sample, .descriptor = descriptor}, [&] {
      const SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      sample = socket->sample();
      return 0;
    });
    return sample;
  }

  int reserve_open() override {
    return made({.call = Call::reserve_open}, [&] { return open(Kind::reserve); });
  }

  int path_status(const char* path, struct stat& status) override {
    return made({.call = Call::path_status}, [&] {
      const auto found = paths_.find(path);
      if (found == paths_.end()) return -ENOENT;
      status = {};
      status.st_dev = 1;
      status.st_ino = found->second;
      status.st_mode = S_IFSOCK | 0755;
      return 0;
    });
  }

  int unlink(const char* path) override {
    return made({.call = Call::unlink}, [&] { return paths_.erase(path) > 0 ? 0 : -ENOENT; });
  }

  unsigned interface_index(const char* name) override {
    record({.call = Call::interface_index, .at = now_});
    const auto found = interfaces_.find(name);
    return found == interfaces_.end() ? 0 : found->second;
  }

  // What scripts do --------------------------------------------------------------------------------------------------------

  /// Time reaches `until`; what was scheduled up to then happens at its own instant, in order.
  void pass_time(Instant until) {
    while (!actions_.empty() && actions_.begin()->first <= until) {
      now_ = std::max(now_, actions_.begin()->first);
      const std::function<void()> action = std::move(actions_.begin()->second);
      actions_.erase(actions_.begin());
      action();
    }
    now_ = std::max(now_, until);
  }

  SimulatedDescriptor* find(int descriptor) {
    const auto found = descriptors_.find(descriptor);
    return found == descriptors_.end() ? nullptr : &found->second;
  }

  /// A descriptor of a script: open, or promised to accept.
  SimulatedDescriptor& scripted(int descriptor) {
    if (SimulatedDescriptor* open_one = find(descriptor)) return *open_one;
    const auto promised = arriving_.find(descriptor);
    if (promised == arriving_.end()) misused("no such descriptor is open", descriptor);
    return promised->second;
  }

  /// The same, of something that the world does: nothing happens to what was closed meanwhile.
  SimulatedDescriptor* still_there(int descriptor) {
    if (closed_.contains(descriptor) && find(descriptor) == nullptr && !arriving_.contains(descriptor)) return nullptr;
    return &scripted(descriptor);
  }

  /// A life that may be over.
  const SimulatedDescriptor& life(int descriptor) {
    const auto over = closed_.find(descriptor);
    if (find(descriptor) == nullptr && over != closed_.end()) return over->second;
    return scripted(descriptor);
  }

  void report(int descriptor, std::uint32_t events) {
    for (auto& [number, poller] : pollers_) poller.report(descriptor, events);
  }

  /// Its state has changed.
  void tell(int descriptor) {
    if (const SimulatedDescriptor* about = find(descriptor)) report(descriptor, about->state());
  }

  void arrives(int descriptor, Arrival arrival) {
    SimulatedDescriptor* socket = still_there(descriptor);
    if (socket == nullptr) return;
    socket->arrivals.push_back(std::move(arrival));
    tell(descriptor);
  }

  int make_peer(int listener_descriptor) {
    SimulatedDescriptor& listening = scripted(listener_descriptor);
    if (listening.stage != Stage::listening) misused("not listening", listener_descriptor);
    SimulatedDescriptor connection;
    connection.kind = Kind::socket;
    connection.stage = Stage::connected;
    connection.family = listening.family;
    connection.type = listening.type;
    connection.options = listening.options;
    connection.local = listening.local;
    connection.local_length = listening.local_length;
    connection.remote_length = make_name(listening.family, 1, next_peer_port_++, connection.remote);
    const int descriptor = lowest_free();
    arriving_[descriptor] = std::move(connection);
    listening.waiting.push_back(descriptor);
    return descriptor;
  }

  int open(Kind kind) {
    if (is_full()) return -EMFILE;
    const int descriptor = lowest_free();
    closed_.erase(descriptor);
    descriptors_[descriptor].kind = kind;
    return descriptor;
  }

  Instant now_{std::chrono::hours(1)};
  std::multimap<Instant, std::function<void()>> actions_;
  Duration oversleep_{};
  std::map<int, SimulatedDescriptor> descriptors_;
  std::map<int, SimulatedDescriptor> arriving_;  // promised to accept, by the number they will have
  std::map<int, SimulatedDescriptor> closed_;    // the last life of each number
  std::map<int, EpollRegistrations> pollers_;
  std::vector<int> duplicated_;
  int listener_ = -1;
  bool connect_at_once_ = false;
  std::size_t open_at_most_ = SIZE_MAX;
  std::map<std::string, ino_t> paths_;
  std::map<std::string, unsigned, std::less<>> interfaces_;
  std::vector<int> blocked_signals_;
  std::vector<RecordedCall> calls_;
  std::size_t clock_reads_ = 0;
  std::size_t calls_on_closed_ = 0;

  struct Failure {
    std::size_t calls_before;
    int error;
  };
  std::array<std::deque<Failure>, call_count> failures_;
  std::size_t calls_before_any_ = 0;
  std::function<int(const RecordedCall&)> error_for_any_;

 private:
  std::size_t record(const RecordedCall& call) {
    calls_.push_back(call);
    return calls_.size() - 1;
  }

  int on_closed() {
    ++calls_on_closed_;
    return -EBADF;
  }

  /// Every call goes through here: it fails as scripted, or does what it does, and is recorded either way.
  template <class Body>
  auto made(RecordedCall call, Body body) -> decltype(body()) {
    call.at = now_;
    const std::size_t index = record(call);
    const std::size_t forgotten_before = times_forgotten_;
    const int failure = scripted_failure(call);
    const auto answer = failure != 0 ? static_cast<decltype(body())>(-failure) : body();
    if (forgotten_before == times_forgotten_) calls_[index].result = answer;  // an action inside a wait may clear the record
    return answer;
  }

  int scripted_failure(const RecordedCall& call) {
    if (error_for_any_ && calls_before_any_-- == 0) {
      const auto error_for = std::exchange(error_for_any_, nullptr);
      if (const int error = error_for(call); error != 0) return error;
    }
    auto& failures = failures_[static_cast<std::size_t>(call.call)];
    if (failures.empty() || failures.front().calls_before-- > 0) return 0;
    const int error = failures.front().error;
    failures.pop_front();
    return error;
  }

  /// `take` tells how many are ready; time passes until some are, or until the timeout.
  template <class Take>
  int wait(Duration timeout, Take take) {
    pass_time(now_);
    const bool for_ever = timeout < Duration::zero() || now_ > Instant::max() - timeout;
    const Instant end = for_ever ? Instant::max() : now_ + timeout;
    int count = take();
    while (count == 0 && !actions_.empty() && actions_.begin()->first <= end) {
      pass_time(actions_.begin()->first);
      count = take();
    }
    if (count == 0 && for_ever) return -EDEADLK;
    const Duration late = std::exchange(oversleep_, Duration::zero());
    pass_time((count == 0 ? end : now_) + late);
    return count == 0 ? take() : count;  // what happened while it overslept is told, as by a real kernel
  }

  ssize_t sent_by(Call call, int descriptor, const iovec* pieces, std::size_t count) {
    std::size_t size = 0;
    for (std::size_t index = 0; index < count; ++index) size += pieces[index].iov_len;
    return made({.call = call, .descriptor = descriptor, .size = size}, [&]() -> ssize_t {
      SimulatedDescriptor* socket = find(descriptor);
      if (socket == nullptr) return on_closed();
      return socket->kind == Kind::socket ? socket->send(pieces, count) : -ENOTSOCK;
    });
  }

  [[nodiscard]] bool is_full() const { return descriptors_.size() >= open_at_most_; }

  [[nodiscard]] int lowest_free() const {
    int number = first_descriptor;
    while (descriptors_.contains(number) || arriving_.contains(number)) ++number;
    return number;
  }

  /// Somebody listens on the name, and they do not agree to share it.
  [[nodiscard]] bool is_taken(const sockaddr_storage& name, socklen_t length, const SimulatedDescriptor& by) const {
    const std::pair<int, int> reuse_port{SOL_SOCKET, SO_REUSEPORT};
    for (const auto& [number, other] : descriptors_) {
      if (&other == &by || other.stage != Stage::listening || other.local_length != length) continue;
      if (std::memcmp(&other.local, &name, length) != 0) continue;
      if (!other.options.contains(reuse_port) || !by.options.contains(reuse_port)) return true;
    }
    return false;
  }

  Kernel* before_;
  std::uint64_t seed_ = 1;
  std::uint16_t next_peer_port_ = first_peer_port;
  std::uint16_t next_own_port_ = first_own_port;
  ino_t next_inode_ = 1000;

 public:
  std::size_t times_forgotten_ = 0;
};

ScriptedKernel::ScriptedKernel() : world_(std::make_unique<World>()) {}
ScriptedKernel::~ScriptedKernel() = default;

// Time -----------------------------------------------------------------------------------------------------------------------

Instant ScriptedKernel::now() const { return world_->now_; }
void ScriptedKernel::advance(Duration duration) { world_->pass_time(world_->now_ + duration); }
void ScriptedKernel::at(Instant instant, std::function<void()> action) { world_->actions_.emplace(instant, std::move(action)); }
void ScriptedKernel::will_oversleep(Duration duration) { world_->oversleep_ += duration; }

// Readiness ------------------------------------------------------------------------------------------------------------------

void ScriptedKernel::report(int descriptor, std::uint32_t events) {
  world_->scripted(descriptor);
  world_->report(descriptor, events);
}

void ScriptedKernel::is_duplicated(int descriptor) {
  world_->scripted(descriptor);
  world_->duplicated_.push_back(descriptor);
}

void ScriptedKernel::report_orphan(int descriptor, std::uint32_t events) {
  for (auto& [number, poller] : world_->pollers_) poller.report_orphan(descriptor, events);
}

std::uint32_t ScriptedKernel::registered_for(int descriptor) const {
  for (const auto& [number, poller] : world_->pollers_)
    if (poller.contains(descriptor)) return poller.wanted(descriptor).events;
  return 0;
}

// A listener and who comes to it ---------------------------------------------------------------------------------------------

int ScriptedKernel::listener() const { return world_->listener_; }

int ScriptedKernel::peer_connects(int listener) {
  const int descriptor = world_->make_peer(listener);
  world_->tell(listener);
  return descriptor;
}

int ScriptedKernel::will_accept(int listener) { return world_->make_peer(listener); }

void ScriptedKernel::will_fail_to_accept(int listener, int error) { world_->scripted(listener).waiting.push_back(-error); }

void ScriptedKernel::limit_descriptors(std::size_t open_at_most) { world_->open_at_most_ = open_at_most; }

// Connecting -----------------------------------------------------------------------------------------------------------------

bool ScriptedKernel::is_connecting(int descriptor) const {
  const SimulatedDescriptor* socket = world_->find(descriptor);
  return socket != nullptr && socket->stage == World::Stage::connecting;
}

void ScriptedKernel::peer_accepts(int descriptor) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (socket->stage != World::Stage::connecting) misused("not connecting", descriptor);
  socket->stage = World::Stage::connected;
  world_->tell(descriptor);
}

void ScriptedKernel::peer_refuses(int descriptor, int error) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (socket->stage != World::Stage::connecting) misused("not connecting", descriptor);
  socket->stage = World::Stage::refused;
  socket->connect_error = error;
  world_->tell(descriptor);
}

void ScriptedKernel::will_connect_at_once() { world_->connect_at_once_ = true; }

void ScriptedKernel::reaches_itself(int descriptor) {
  SimulatedDescriptor& socket = world_->scripted(descriptor);
  socket.local = socket.remote;
  socket.local_length = socket.remote_length;
  peer_accepts(descriptor);
}

// What the peer sends --------------------------------------------------------------------------------------------------------

void ScriptedKernel::peer_sends(int descriptor, std::string_view bytes) {
  world_->arrives(descriptor, {.kind = Arrival::Kind::bytes, .bytes = std::string(bytes)});
}

void ScriptedKernel::peer_sends_urgent_mark(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::mark}); }
void ScriptedKernel::peer_finishes(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::end}); }
void ScriptedKernel::peer_resets(int descriptor) { connection_fails(descriptor, ECONNRESET); }

void ScriptedKernel::connection_fails(int descriptor, int error) {
  world_->arrives(descriptor, {.kind = Arrival::Kind::error, .error = error});
}

void ScriptedKernel::peer_floods(int descriptor) { world_->arrives(descriptor, {.kind = Arrival::Kind::endless_bytes}); }

void ScriptedKernel::will_receive(int descriptor, std::string_view bytes) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::bytes, .bytes = std::string(bytes)});
}

void ScriptedKernel::will_stop_short(int descriptor) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::mark});
}

void ScriptedKernel::will_receive_hiccup(int descriptor, int error) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::hiccup, .error = error});
}

void ScriptedKernel::will_receive_end(int descriptor) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::end});
}

void ScriptedKernel::will_receive_error(int descriptor, int error) {
  world_->scripted(descriptor).arrivals.push_back({.kind = Arrival::Kind::error, .error = error});
}

void ScriptedKernel::will_have_unread(int descriptor, int bytes) { world_->scripted(descriptor).scripted_unread = bytes; }

// What the peer takes --------------------------------------------------------------------------------------------------------

const std::string& ScriptedKernel::sent(int descriptor) const { return world_->life(descriptor).sent; }
bool ScriptedKernel::sent_end(int descriptor) const { return world_->life(descriptor).send_shut; }

Ending ScriptedKernel::ending(int descriptor) const {
  if (world_->find(descriptor) != nullptr) return Ending::open;
  return world_->life(descriptor).ended_by_reset ? Ending::reset : Ending::orderly;
}

void ScriptedKernel::will_take(int descriptor, std::size_t bytes) {
  std::size_t& room = world_->scripted(descriptor).room;
  room = room == SimulatedDescriptor::unlimited ? bytes : room + bytes;
}

void ScriptedKernel::peer_reads(int descriptor, std::size_t bytes) {
  if (world_->still_there(descriptor) == nullptr) return;
  will_take(descriptor, bytes);
  world_->tell(descriptor);
}

void ScriptedKernel::peer_reads_all(int descriptor) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  socket->room = SimulatedDescriptor::unlimited;
  world_->tell(descriptor);
}

void ScriptedKernel::will_fail_to_send(int descriptor, int error) { world_->scripted(descriptor).send_errors.push_back(error); }

void ScriptedKernel::will_not_acknowledge(int descriptor) { world_->scripted(descriptor).acknowledges_at_once = false; }

void ScriptedKernel::peer_acknowledges(int descriptor, std::size_t bytes) {
  SimulatedDescriptor* socket = world_->still_there(descriptor);
  if (socket == nullptr) return;
  if (bytes > static_cast<std::size_t>(socket->unsent())) misused("more is acknowledged than was sent", descriptor);
  socket->acknowledged += bytes;
}

void ScriptedKernel::will_sample(int descriptor, const TcpSample& sample) {
  world_->scripted(descriptor).scripted_sample = sample;
}

// Descriptors that are no sockets --------------------------------------------------------------------------------------------

int ScriptedKernel::open_descriptor() { return world_->open(World::Kind::other); }

void ScriptedKernel::set_state(int descriptor, std::uint32_t events) {
  world_->scripted(descriptor).scripted_state = events;
  world_->tell(descriptor);
}

void ScriptedKernel::raise(int signal_number) {
  bool somebody = false;
  for (auto& [number, descriptor] : world_->descriptors_) {
    if (descriptor.kind != World::Kind::signal || descriptor.signal_number != signal_number) continue;
    descriptor.signalled = 1;  // a signal that is pending already is not counted twice
    world_->tell(number);
    somebody = true;
  }
  if (!somebody) misused("nobody expects this signal", signal_number);
}

// Failures -------------------------------------------------------------------------------------------------------------------

void ScriptedKernel::will_fail(Call call, int error, std::size_t calls_before) {
  world_->failures_[static_cast<std::size_t>(call)].push_back({calls_before, error});
}

void ScriptedKernel::will_fail_any(std::size_t calls_before, std::function<int(const RecordedCall&)> error_for) {
  world_->calls_before_any_ = calls_before;
  world_->error_for_any_ = std::move(error_for);
}

void ScriptedKernel::has_interface(std::string name, unsigned index) { world_->interfaces_[std::move(name)] = index; }

// The record -----------------------------------------------------------------------------------------------------------------

const std::vector<RecordedCall>& ScriptedKernel::calls() const { return world_->calls_; }

std::size_t ScriptedKernel::count(Call call) const {
  return static_cast<std::size_t>(
      std::count_if(world_->calls_.begin(), world_->calls_.end(), [=](const RecordedCall& made) { return made.call == call; }));
}

std::size_t ScriptedKernel::count(Call call, int descriptor) const {
  return static_cast<std::size_t>(std::count_if(world_->calls_.begin(), world_->calls_.end(), [=](const RecordedCall& made) {
    return made.call == call && made.descriptor == descriptor;
  }));
}

std::string ScriptedKernel::names() const {
  std::string names;
  for (const RecordedCall& made : world_->calls_) {
    if (!names.empty()) names += ' ';
    names += to_string(made.call);
  }
  return names;
}

Duration ScriptedKernel::last_timeout() const {
  const auto last = std::find_if(world_->calls_.rbegin(), world_->calls_.rend(), [](const RecordedCall& made) {
    return made.call == Call::epoll_wait || made.call == Call::poll;
  });
  if (last == world_->calls_.rend()) misused("nobody has waited yet", 0);
  return last->timeout;
}

std::size_t ScriptedKernel::clock_reads() const { return world_->clock_reads_; }

void ScriptedKernel::forget_calls() {
  world_->calls_.clear();
  world_->clock_reads_ = 0;
  ++world_->times_forgotten_;
}

// What is left ---------------------------------------------------------------------------------------------------------------

std::vector<int> ScriptedKernel::open_descriptors() const {
  std::vector<int> numbers;
  for (const auto& [number, descriptor] : world_->descriptors_) numbers.push_back(number);
  return numbers;
}

std::size_t ScriptedKernel::calls_on_closed() const { return world_->calls_on_closed_; }
std::vector<int> ScriptedKernel::blocked_signals() const { return world_->blocked_signals_; }

std::vector<std::string> ScriptedKernel::paths() const {
  std::vector<std::string> names;
  for (const auto& [path, inode] : world_->paths_) names.push_back(path);
  return names;
}

}  // namespace vigil::sys
