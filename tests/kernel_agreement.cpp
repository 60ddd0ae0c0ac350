// Runs scripts of system calls drawn from seeds and prints what each answered. Linked once with vigil and once with vigil_sim,
// the two print the same, or the simulated world does not do what this kernel does; tests/kernel_agreement.py compares them.
//
//   kernel-agreement FIRST_SEED SEEDS [PATIENCE_MS [STEP ...]]      the numbered steps are left out
//
// A script plays both sides of a few TCP connections over 127.0.0.1. After each step everything settles, then the sockets whose
// state has changed are shown: poll(2)'s bits, FIONREAD, SIOCOUTQ and whether there is a peer.
#include <linux/tcp.h>
#include <netinet/in.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernel_agreement_site.hpp"
#include "sys/sys.hpp"

using namespace vigil;

namespace {

std::set<std::uint64_t> left_out;

/// SplitMix64: the same numbers everywhere.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) {
    std::uint64_t mixed = state_ += 0x9E3779B97F4A7C15U;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9U;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBU;
    return (mixed ^ mixed >> 31) % bound;
  }
  template <class Value, std::size_t count>
  Value of(const std::array<Value, count>& values) {
    return values.at(below(count));
  }

 private:
  std::uint64_t state_;
};

std::string bits_text(std::uint32_t bits) {
  std::string text;
  for (const auto& [bit, name] : {std::pair<std::uint32_t, const char*>{POLLIN, "IN"},
                                  {POLLPRI, "PRI"},
                                  {POLLOUT, "OUT"},
                                  {POLLRDHUP, "RDHUP"},
                                  {POLLHUP, "HUP"},
                                  {POLLERR, "ERR"},
                                  {POLLNVAL, "NVAL"}})
    if ((bits & bit) != 0) text += (text.empty() ? "" : "|") + std::string(name);
  return text.empty() ? "-" : text;
}

std::string answer_text(std::int64_t answer) {
  return answer < 0 ? sys::error_name(static_cast<int>(-answer)) : std::to_string(answer);
}

struct Socket {
  std::string name;
  int descriptor;
  std::uint16_t port = 0;
  bool was_connected = false, was_shut = false;
  std::string shown{};
};

class Script {
 public:
  explicit Script(std::uint64_t seed) : seed_(seed), draw_(seed * 1'000'003) {}
  ~Script() {
    for (const Socket& socket : sockets_) sys::close(socket.descriptor);
    sys::close(epoll_);
  }
  Script(const Script&) = delete;
  Script& operator=(const Script&) = delete;

  void run();

 private:
  void step();
  void settle_all();
  void show();
  [[nodiscard]] Socket make(std::string name);
  [[nodiscard]] Socket make_bound(std::string name);
  [[nodiscard]] Socket make_listener();
  [[nodiscard]] std::uint16_t port_of(int descriptor) const;
  void say(const Socket& socket, const std::string& call, std::int64_t answer) const {
    std::printf("%s.%s = %s\n", socket.name.c_str(), call.c_str(), answer_text(answer).c_str());
  }
  void begin_connection();
  void connect(Socket& socket, std::size_t to);
  void accept(Socket& socket);
  void shut_down(std::size_t index);
  void reset_on_close(const Socket& socket);
  void close(std::size_t index);
  void send(const Socket& socket);
  void recv(const Socket& socket);
  void fill(const Socket& socket);
  void drain(const Socket& socket);
  void take_error(const Socket& socket);
  void epoll_control(const Socket& socket);
  void epoll_wait();

  std::uint64_t seed_;
  Draw draw_;
  /// Buffers are small: sends fill them and reads empty them, for the amounts between are a matter of each kernel's tuning.
  bool is_tight_ = false;
  std::vector<Socket> sockets_{};  // the listener first, then a socket that is bound only
  int epoll_ = -1;
  int clients_ = 0;
  std::map<std::uint16_t, int> client_of_port_{};  // the youngest, also after its end
};

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(port);
  return name;
}

std::uint16_t Script::port_of(int descriptor) const {
  sockaddr_in name{};
  socklen_t length = sizeof name;
  (void)sys::local_name(descriptor, reinterpret_cast<sockaddr*>(&name), &length);
  return ntohs(name.sin_port);
}

Socket Script::make(std::string name) {
  Socket made{std::move(name), sys::socket(AF_INET, SOCK_STREAM)};
  if (made.descriptor < 0) std::abort();
  const auto set = [&](int level, int option, int value) {
    if (sys::set_option(made.descriptor, level, option, &value, sizeof value) != 0) std::abort();
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  if (is_tight_) {
    set(SOL_SOCKET, SO_SNDBUF, 8 * 1024);
    set(SOL_SOCKET, SO_RCVBUF, 8 * 1024);
    set(IPPROTO_TCP, TCP_MAXSEG, 1000);  // loopback's segments would be larger than the window
  }
  return made;
}

Socket Script::make_bound(std::string name) {
  Socket made = make(std::move(name));
  const sockaddr_in at = loopback(0);
  if (sys::bind(made.descriptor, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0) std::abort();
  made.port = port_of(made.descriptor);
  return made;
}

Socket Script::make_listener() {
  Socket made = make_bound("listener");
  const int backlog = draw_.of(std::array{0, 1, 8});
  say(made, "listen(" + std::to_string(backlog) + ")", sys::listen(made.descriptor, backlog));
  return made;
}

void Script::connect(Socket& socket, std::size_t to) {
  const sockaddr_in name = loopback(sockets_[to].port);
  socket.was_connected = false;
  say(socket, to == 0 ? "connect" : "connect(closed port)",
      sys::connect(socket.descriptor, reinterpret_cast<const sockaddr*>(&name), sizeof name));
  if (socket.name.front() == 'c') client_of_port_[port_of(socket.descriptor)] = std::stoi(socket.name.substr(1));
}

void Script::settle_all() {
  std::vector<int> descriptors;
  for (const Socket& socket : sockets_) descriptors.push_back(socket.descriptor);
  settle(descriptors);
}

void Script::run() {
  is_tight_ = draw_.below(4) == 0;
  epoll_ = sys::epoll_create();
  sockets_.push_back(make_listener());
  sockets_.push_back(make_bound("bound"));
  settle_all();
  const std::uint64_t steps = 10 + draw_.below(41);
  for (std::uint64_t number = 0; number < steps; ++number) {
    if (left_out.contains(number)) continue;
    draw_ = Draw(seed_ << 8 | number);  // each step's own, whichever were left out before it
    std::printf("%2llu  ", static_cast<unsigned long long>(number));
    step();
    settle_all();
    show();
  }
}

/// The sockets whose state has changed.
void Script::show() {
  for (Socket& socket : sockets_) {
    pollfd entry{socket.descriptor, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    (void)sys::poll(&entry, 1, Duration::zero());
    sockaddr_in name{};
    socklen_t length = sizeof name;
    const int peer = sys::peer_name(socket.descriptor, reinterpret_cast<sockaddr*>(&name), &length);
    // How much is underway where buffers are full is a matter of tuning; what never connected has sequence numbers, but no bytes.
    const auto amount = [&](int bytes) { return is_tight_ && bytes > 0 ? std::string("some") : answer_text(bytes); };
    if (peer == 0) socket.was_connected = true;
    const std::string now =
        bits_text(static_cast<std::uint32_t>(entry.revents)) + ", unread " + amount(sys::unread_bytes(socket.descriptor)) +
        ", unsent " + (socket.was_connected ? amount(sys::unsent_bytes(socket.descriptor)) : "-") + ", peer " + answer_text(peer);
    if (now != socket.shown) std::printf("    %s: %s\n", socket.name.c_str(), now.c_str());
    socket.shown = now;
  }
}

void Script::step() {
  // The first two have little to say.
  const std::size_t index = sockets_.size() == 2 || draw_.below(20) == 0 ? draw_.below(2) : 2 + draw_.below(sockets_.size() - 2);
  Socket& socket = sockets_[index];
  std::uint64_t dice = draw_.below(100);
  const auto comes = [&](std::uint64_t percent) { return dice < percent || (dice -= percent, false); };
  if (comes(8)) return begin_connection();
  if (comes(10)) return accept(draw_.below(20) == 0 ? socket : sockets_[0]);
  if (comes(20)) return is_tight_ ? fill(socket) : send(socket);
  if (comes(18)) return is_tight_ ? drain(socket) : recv(socket);
  if (comes(7)) return shut_down(index);
  if (comes(5)) return close(index);
  if (comes(4)) return take_error(socket);
  if (comes(2)) return reset_on_close(socket);
  if (comes(2) && index >= 2 && !socket.was_shut) return connect(socket, 0);
  if (comes(10)) return epoll_control(socket);
  epoll_wait();
}

void Script::begin_connection() {
  if (sockets_.size() >= 8) return epoll_wait();
  sockets_.push_back(make("c" + std::to_string(clients_++)));
  if (draw_.below(3) == 0) epoll_control(sockets_.back());
  if (draw_.below(16) == 0) return;
  const bool is_refused = draw_.below(12) == 0;
  connect(sockets_.back(), is_refused ? 1 : 0);
  if (is_refused || draw_.below(3) == 0) return;
  settle_all();
  accept(sockets_[0]);
  if (draw_.below(2) == 0) epoll_control(sockets_.back());
}

void Script::shut_down(std::size_t index) {
  // Shutting down what listens, still connects or never did undoes that in part, and what was shut down before it failed can't
  // connect again: vigil does nothing of the kind.
  Socket& socket = sockets_[index];
  if (index < 2 || socket.shown.starts_with("-,") || socket.shown.starts_with("OUT|HUP,")) return epoll_wait();
  socket.was_shut = true;
  using How = std::pair<int, const char*>;
  static constexpr How end{SHUT_WR, "shutdown(WR)"}, both{SHUT_RDWR, "shutdown(RDWR)"}, reading{SHUT_RD, "shutdown(RD)"};
  // Bytes that meet shut reading behind a full buffer wait for their sender's next probe, a fifth of a second later.
  const auto [how, name] = is_tight_ ? end : draw_.of(std::array{end, end, end, both, reading});
  say(socket, name, sys::shutdown(socket.descriptor, how));
}

void Script::reset_on_close(const Socket& socket) {
  const linger value{1, 0};
  say(socket, "linger(0)", sys::set_option(socket.descriptor, SOL_SOCKET, SO_LINGER, &value, sizeof value));
}

void Script::accept(Socket& socket) {
  sockaddr_in name{};
  socklen_t length = sizeof name;
  const int accepted = sys::accept(socket.descriptor, reinterpret_cast<sockaddr*>(&name), &length);
  if (accepted < 0) return say(socket, "accept", accepted);
  const auto client = client_of_port_.find(ntohs(name.sin_port));
  const std::string made = client == client_of_port_.end() ? "s-" : "s" + std::to_string(client->second);
  std::printf("%s.accept = %s\n", socket.name.c_str(), made.c_str());
  sockets_.push_back({made, accepted});
}

void Script::close(std::size_t index) {
  // The listener goes seldom: without it there is little left to do.
  if (index == 0 && draw_.below(4) != 0) return epoll_wait();
  if (index == 1) return epoll_wait();
  say(sockets_[index], "close", sys::close(sockets_[index].descriptor));
  if (index == 0)
    sockets_[0] = make_listener();
  else
    sockets_.erase(sockets_.begin() + static_cast<std::ptrdiff_t>(index));
}

void Script::send(const Socket& socket) {
  static constexpr std::array<char, 700> bytes{};
  const std::size_t size = draw_.of(std::array<std::size_t, 5>{0, 1, 10, 100, 700});
  say(socket, "send(" + std::to_string(size) + ")", sys::send(socket.descriptor, bytes.data(), size));
}

void Script::recv(const Socket& socket) {
  std::array<char, 65536> buffer{};
  const std::size_t size = draw_.of(std::array<std::size_t, 5>{0, 1, 50, buffer.size(), buffer.size()});
  say(socket, "recv(" + std::to_string(size) + ")", sys::recv(socket.descriptor, buffer.data(), size));
}

void Script::fill(const Socket& socket) {
  static constexpr std::array<char, 4096> bytes{};
  bool any = false;
  ssize_t sent = 0;
  for (int times = 0; times < 1000 && (sent = sys::send(socket.descriptor, bytes.data(), bytes.size())) > 0; ++times) {
    any = true;
    settle_all();
  }
  say(socket, any ? "fill: some, then" : "fill", sent);
}

void Script::drain(const Socket& socket) {
  std::array<char, 65536> buffer{};
  bool any = false;
  ssize_t received = 0;
  for (int times = 0; times < 1000 && (received = sys::recv(socket.descriptor, buffer.data(), buffer.size())) > 0; ++times) {
    any = true;
    settle_all();
  }
  say(socket, any ? "drain: some, then" : "drain", received);
}

void Script::take_error(const Socket& socket) {
  int error = 0;
  socklen_t length = sizeof error;
  const int status = sys::get_option(socket.descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
  say(socket, "SO_ERROR", status < 0 ? status : -error);
}

void Script::epoll_control(const Socket& socket) {
  epoll_event wanted{};
  wanted.events = draw_.of(std::array<std::uint32_t, 5>{EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI,
                                                        EPOLLIN | EPOLLOUT | EPOLLRDHUP, EPOLLIN | EPOLLRDHUP, EPOLLOUT, 0});
  const bool is_edge_triggered = draw_.below(4) != 0;
  const std::string text = bits_text(wanted.events) + (is_edge_triggered ? ", edge)" : ", level)");
  if (is_edge_triggered) wanted.events |= EPOLLET;
  wanted.data.fd = socket.descriptor;
  switch (draw_.below(6)) {
    case 0:
      return say(socket, "epoll_del", sys::epoll_control(epoll_, EPOLL_CTL_DEL, socket.descriptor, &wanted));
    case 1:
      return say(socket, "epoll_mod(" + text, sys::epoll_control(epoll_, EPOLL_CTL_MOD, socket.descriptor, &wanted));
    default:
      return say(socket, "epoll_add(" + text, sys::epoll_control(epoll_, EPOLL_CTL_ADD, socket.descriptor, &wanted));
  }
}

/// In the order of the sockets: a batch has none that anybody may rely on.
void Script::epoll_wait() {
  std::array<epoll_event, 32> events{};
  const int count = sys::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), Duration::zero());
  std::printf("epoll_wait = %s\n", answer_text(count).c_str());
  for (const Socket& socket : sockets_)
    for (int index = 0; index < count; ++index)
      if (events.at(static_cast<std::size_t>(index)).data.fd == socket.descriptor)
        std::printf("    event of %s: %s\n", socket.name.c_str(),
                    bits_text(events.at(static_cast<std::size_t>(index)).events).c_str());
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return 64;
  const auto number = [&](int index) { return std::strtoull(arguments[index], nullptr, 10); };
  const auto patience = std::chrono::milliseconds(count > 3 ? number(3) : 0);
  for (int index = 4; index < count; ++index) left_out.insert(number(index));
  for (std::uint64_t seed = number(1); seed < number(1) + number(2); ++seed) {
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
    run_on_site(seed, patience, [](std::uint64_t drawn) { Script(drawn).run(); });
  }
}
