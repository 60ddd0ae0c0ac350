// A simulated world to test a server in: hosts, a network between them, a clock that moves when everybody waits, and every fault
// a real kernel and a real network have. Link vigil_sim instead of vigil: the library above the system calls is the same, line
// for line, and so is the server under test. What happens is a function of the seed: a run that failed can be had again.
//
//   vigil::sim::World world({.seed = 42});
//   vigil::Reactor reactor;
//   vigil::Listener<Echo> listener(reactor, {.timeouts = {.receive = 30s}});
//   (void)listener.listen("10.0.0.1:7000");
//   world.attach(reactor);
//   vigil::sim::Peer& client = world.host("10.0.0.2").connect("10.0.0.1:7000");
//   client.send("hello");
//   world.run_for(1s);                    // client.received() == "hello"
//   world.host("10.0.0.2").vanish();      // power off: no end, no reset, nothing
//   world.run_for(24h);                   // takes no time; the receive deadline closed the connection after 30 s
//
// Thread: the one the world was made on; every reactor and server of a world runs there, turned by the world in an order drawn
// from the seed. Several threads may have a world each; on one thread the youngest counts. Lifetime: make the world first and let
// it go last: reactors, servers and sockets made in it end before it. Hosts, paths and peers are the world's and live as long.
//
// A wait of a program's own (Reactor::run(), receive_within(), ...) lets the world go on too; where nothing will ever happen it
// answers EDEADLK instead of waiting for ever.
//
// What is truthful: TCP as Linux shows it to a program (streams, windows, retransmission and its back-off, keepalive, user
// timeout, resets, half-closed ends, errors handed out once, the listener's queue, TCP_INFO), epoll, descriptors and their limit.
// What is not there: Unix and datagram sockets, signals from outside, congestion control, segments larger or smaller than sent.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "vigil/bytes.hpp"
#include "vigil/callback.hpp"
#include "vigil/reactor.hpp"
#include "vigil/time.hpp"

namespace vigil::sim {

/// Chance: the same numbers for the same seed, on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  /// Takes its numbers from `choices` while they last (they must live as long), then from the seed: how a fuzzer drives a world.
  Random(std::uint64_t seed, Bytes choices) : state_(seed), choices_(choices) {}

  std::uint64_t next();
  std::uint64_t below(std::uint64_t bound);  ///< 0 to bound - 1; 0 for a bound of 0
  std::uint64_t between(std::uint64_t least, std::uint64_t most) { return least + below(most - least + 1); }
  Duration between(Duration least, Duration most);
  bool happens(double probability);  ///< draws nothing for 0

 private:
  std::uint64_t state_;
  Bytes choices_{};
};

/// What can go wrong. Those with a chance happen by themselves, each time they could (World::set_chance); the rest are done by
/// the functions and fields of Host, Path and Peer. Every one that took effect is counted.
enum class Fault : std::uint8_t {
  // Of the calls, by chance.
  // Interruptions, spurious events and errors of accept come so often in a row of a descriptor and no more: strikes_in_a_row_max.
  interrupted,      ///< EINTR from a wait, accept, recv or send; nothing else happened
  spurious_event,   ///< a wait reports a descriptor that has nothing to say
  shuffled_events,  ///< a wait reports its batch in another order
  late_wakeup,      ///< a wait returns later than it should, by up to WorldOptions::latest_wakeup
  coarse_wakeup,    ///< a wait that times out does so only at the next 4 ms of the clock
  stalled,          ///< a wait returns later than it should by up to WorldOptions::longest_stall: the process was stopped
  no_descriptor,    ///< EMFILE or ENFILE from socket or accept
  no_buffers,       ///< ENOBUFS or ENOMEM from socket or accept, ENOMEM or ENOSPC from epoll_ctl
  no_port,          ///< EADDRNOTAVAIL from connect: no port of its own is free; not of a socket that was bound
  accept_error,     ///< accept hands out a pending network error of its next connection, which stays in the queue
  partial_send,     ///< send takes fewer bytes than there is room for
  out_of_room,      ///< send takes nothing although there was room, and tells as soon as there is again
  urgent_mark,      ///< a peer's send carries an urgent mark, at which one recv stops short
  // Of the path, by chance (and Path::loss).
  lost,        ///< a segment is lost
  duplicated,  ///< a segment arrives twice
  delayed,     ///< a segment is overtaken by later ones
  // Of the path, done by setting Path::way.
  cut,            ///< a segment was swallowed by a path that says nothing
  route_refused,  ///< a segment was refused by the sender's own routes
  path_rejected,  ///< a segment was answered by a firewall or router on the way
  // Of hosts and peers, done by their functions.
  descriptors_limited,  ///< a call met Host::limit_descriptors
  queue_full,           ///< a listener's queue was full: a handshake was dropped
  host_hung,
  host_vanished,
  host_rebooted,
  processes_killed,
  peer_reset,
  peer_stopped_reading,
  window_closed,  ///< a sender met a window of zero
};
inline constexpr std::size_t fault_count = static_cast<std::size_t>(Fault::window_closed) + 1;
[[nodiscard]] const char* to_string(Fault fault);

/// How often a descriptor is interrupted or has a spurious event (of a wait's own descriptor), one after the other; with a chance
/// of 1 then, all but one of so many and one.
inline constexpr int strikes_in_a_row_max = 16;
/// And a listener's pending errors, which accept fetches one by one: a queue of them.
inline constexpr int accept_errors_in_a_row_max = 5000;

/// What becomes of a segment that takes a path.
enum class Way : std::uint8_t {
  open,
  cut,  ///< swallowed: nobody is told
  // The sender's own routes refuse it; connect fails at once, an established connection keeps its bytes and tries again.
  no_route,           ///< ENETUNREACH: no route, or the link is down
  unreachable_route,  ///< EHOSTUNREACH
  prohibited_route,   ///< EACCES
  blackhole_route,    ///< EINVAL
  // Somebody on the way answers. A connect fails with it; an established connection takes note and tries again.
  port_unreachable,  ///< ICMP: ECONNREFUSED
  host_unreachable,  ///< ICMP: EHOSTUNREACH
  net_unreachable,   ///< ICMP: ENETUNREACH
  prohibited,        ///< ICMP, administratively prohibited: EHOSTUNREACH
  reset,             ///< a firewall answers with an RST
};

/// One direction between two hosts. Set its fields at any time; they hold for segments sent from then on.
struct Path {
  Duration latency = std::chrono::microseconds(100);
  Duration jitter{};                   ///< up to this much more, never overtaking
  double loss = 0;                     ///< chance of each segment
  std::uint64_t bytes_per_second = 0;  ///< 0: without limit
  Way way = Way::open;
};

class Host;
class World;

/// The other side of a connection: a script plays its application, and the world its kernel. Callbacks are optional; while the
/// peer's host hangs they wait. Set those of a peer that comes from Host::listen() in its on_accept.
class Peer {
 public:
  virtual void send(std::string_view bytes) = 0;  ///< what its kernel has no room for waits and follows, also after finish()
  virtual void finish() = 0;                      ///< its end (FIN) follows what was sent; it goes on receiving
  virtual void close() = 0;                       ///< close(2): an end, or a reset if bytes are unread; receives nothing more
  virtual void reset() = 0;                       ///< an RST at once; what was not yet sent is gone
  virtual void stop_reading() = 0;                ///< its window closes once its kernel's buffer is full
  virtual void read_on() = 0;

  [[nodiscard]] virtual bool connected() const = 0;  ///< established, and neither closed nor failed since
  /// The end of the other side's stream was read. Nothing follows from it by itself: a script that ends too calls finish() or
  /// close() then, else who drains waits for it.
  [[nodiscard]] virtual bool finished() const = 0;
  [[nodiscard]] virtual int error() const = 0;  ///< errno of a refused or broken connection; 0: none
  [[nodiscard]] virtual std::uint64_t received_bytes() const = 0;
  [[nodiscard]] virtual std::uint64_t sent_bytes() const = 0;  ///< given to send()
  /// What was read and not taken by on_receive.
  [[nodiscard]] virtual std::string_view received() const = 0;
  [[nodiscard]] virtual Host& host() const = 0;

  Callback<void(Peer&)> on_connected;
  Callback<void(Peer&, std::string_view bytes)> on_receive;
  Callback<void(Peer&)> on_finished;
  Callback<void(Peer&)> on_error;

 protected:
  Peer() = default;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() = default;
};

/// One machine of the world.
class Host {
 public:
  [[nodiscard]] virtual std::string_view address() const = 0;
  /// It answers to this one too, `fd00::2` say.
  virtual void add_address(std::string_view ip) = 0;

  /// A peer on this host connects to `address`, from a port of its own choice or `source_port`.
  virtual Peer& connect(std::string_view address, std::uint16_t source_port = 0) = 0;
  /// Peers on this host accept what comes to `port`, `backlog` at most before they are accepted; a hung host accepts nobody.
  virtual void listen(std::uint16_t port, Callback<void(Peer&)> on_accept, int backlog = 128) = 0;
  /// What listens on `port` accepts nobody for a while; its kernel goes on completing handshakes into the queue.
  virtual void pause_accepting(std::uint16_t port) = 0;
  virtual void resume_accepting(std::uint16_t port) = 0;
  virtual void stop_listening(std::uint16_t port) = 0;

  virtual void hang() = 0;    ///< its processes stop, as by SIGSTOP; its kernel answers
  virtual void resume() = 0;  ///< they go on
  virtual void kill() = 0;    ///< its peers' processes die: their kernel closes what they had open. Listening ends too
  virtual void vanish() = 0;  ///< power off: it sends and answers nothing, and forgets everything
  virtual void reboot() = 0;  ///< it is there (again) and knows of no connection: it answers with RST

  /// At most this many descriptors of what runs on it (reactors, sockets); beyond, EMFILE. For the host vigil runs on.
  virtual void limit_descriptors(std::size_t open_at_most) = 0;
  /// Bytes a new socket's kernel buffers hold; for peers' and for vigil's sockets that ask for nothing else.
  virtual void set_buffers(std::size_t send_bytes, std::size_t receive_bytes) = 0;

 protected:
  Host() = default;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  ~Host() = default;
};

/// What really happened to one socket of vigil's, as its kernel knows: what a record can be judged by.
struct Truth {
  std::uint64_t life = 0;  ///< counts the sockets of a world from 1; 0: no such life
  Instant made_at{};       ///< accept or socket
  bool was_connected = false;
  Instant connected_at{};  ///< its handshake ended
  bool is_closed = false;  ///< close(2) was called; what follows stays as it was then
  Instant closed_at{};

  std::uint64_t arrived = 0;              ///< bytes that came in order, read or not
  std::uint64_t read = 0;                 ///< handed out by recv
  std::optional<Instant> end_arrived_at;  ///< the peer's FIN, in its place in the stream
  std::optional<Instant> error_at;        ///< when the connection failed, or its attempt
  int error = 0;                          ///< with what; handed out once
  bool error_was_taken = false;
  Instant last_arrival{};  ///< of a byte
  Instant last_recv_at{};  ///< the last recv call, and what it answered
  std::int64_t last_recv = 0;
  std::uint64_t room = 0;  ///< of its kernel, for more; 0: its own window is closed
  Instant last_heard{};    ///< a segment of the other side's came
  Instant last_sample{};   ///< TCP_INFO was asked for
  int watch_error = 0;     ///< with which epoll_ctl last refused to watch it; 0: it never did
  Duration round_trip{};   ///< smoothed, as TCP_INFO has it; 0: none was measured yet

  std::uint64_t taken = 0;          ///< bytes the kernel took
  std::uint64_t acknowledged = 0;   ///< of those
  Instant last_acknowledged{};      ///< when the count last grew
  Instant last_taken_at{};          ///< when `taken` last grew
  Instant offered_at{};             ///< when bytes last were offered, taken or not, to a kernel that held none unacknowledged
  Instant last_short_send{};        ///< the kernel last took less than it was offered, or nothing
  std::uint64_t untransmitted = 0;  ///< of `taken`: never sent yet, for want of a window or of a route
  bool end_was_sent = false;        ///< shutdown(2), or close(2)
  Instant end_sent_at{};            ///< when
  bool was_reset = false;           ///< closed with an RST

  std::uint64_t peer_sent = 0;      ///< given to send() by the other side's application
  std::uint64_t peer_handed = 0;    ///< of it, handed to its kernel by a process that does not hang
  Instant peer_spoke_at{};          ///< the last of that
  bool peer_finished = false;       ///< and whether it ended its stream, by finish(), or by close() in order
  bool peer_was_reset = false;      ///< or reset it
  bool peer_is_gone = false;        ///< its host knows the connection no more: power off, or it has failed there
  std::uint64_t peer_received = 0;  ///< read by the other side's application
  Instant peer_read_at{};           ///< the last of it
  std::uint64_t peer_room = 0;      ///< of its kernel, for more; 0: its window is closed

  std::uint64_t faults = 0;  ///< that struck a call or a segment of this connection
  std::uint64_t lost = 0;    ///< segments of it, of either side, that never came
  Instant last_lost{};       ///< the last of them was sent
  Instant slow_until{};      ///< the last that was overtaken, or on its way for longer than 100 ms, comes then

  [[nodiscard]] std::uint64_t unread() const { return arrived - read; }
  [[nodiscard]] std::uint64_t unacknowledged() const { return taken - acknowledged; }
};

struct WorldOptions {
  std::uint64_t seed = 1;
  Bytes choices{};                        ///< see Random; must live as long as the world
  std::string_view address = "10.0.0.1";  ///< of the host that reactors run on unless told otherwise
  Duration latest_wakeup = std::chrono::milliseconds(20);
  Duration longest_stall = std::chrono::seconds(5);
  Duration longest_delay = std::chrono::milliseconds(50);  ///< of a delayed segment
};

class World {
 public:
  explicit World(const WorldOptions& options = {});
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // --- time
  /// It begins an hour after the epoch of Instant.
  [[nodiscard]] Instant now() const;
  /// Everything that happens up to that instant: segments arrive, reactors turn, peers answer. A turn that has begun ends, and
  /// what its callbacks spend beyond that instant has passed then. Up to never_due, and for Duration::max(): until nothing will
  /// ever happen again, which takes no time; so of every length that leads beyond.
  void run_until(Instant until);
  void run_for(Duration duration);
  /// Until `done` answers true: true; or for `at_most`: false.
  bool run_until(Callback<bool()> done, Duration at_most);
  /// The next single thing: one event of the world, or one turn of one reactor. False: nothing will ever happen again.
  bool step();
  [[nodiscard]] std::uint64_t steps() const;
  /// Calls back at that instant (now, if it has passed), while no reactor is in a turn.
  void at(Instant instant, Task task);
  void after(Duration delay, Task task);
  /// For a callback of vigil's that is to take time: segments arrive and peers answer meanwhile, but no reactor turns, and no
  /// task given to at() begins.
  void spend(Duration duration);
  /// All the time that reactors could not have used: that callbacks spent, and that waits were late by. How late a deadline may
  /// be told, beyond its tick, is by how much this grew since it was due.
  [[nodiscard]] Duration delays() const;

  // --- who runs
  /// Turned by the world from now on, on the host that was entered when it was attached, until it ends or is detached. A Server's
  /// workers need no attaching; what its own run() turns, and stop and signals with it, is Server::control(): attach that, or
  /// call run().
  /// A turn never waits: where its wait would sleep it answers 0 before its time, and the next turn comes when that is over or
  /// something is ready. ReactorCounters::turns is therefore higher than that of a reactor on a thread of its own.
  /// A reactor that is called while it sleeps (by a task, a peer's callback, run_until's `done`, between two steps) is turned at
  /// that very instant. So are a server's workers, but for `done` and between steps: mail reaches them then, as on threads.
  void attach(Reactor& reactor);
  /// Also from inside its own turn.
  void detach(Reactor& reactor);
  /// Sockets are made on this host from now on.
  void enter(Host& host);

  /// The signal comes to whoever watches for it (Reactor::on_signal, a Server).
  void raise(int signal_number);

  // --- the network
  /// The host of this IP address, made when it is first named.
  Host& host(std::string_view ip);
  Host& local();  ///< of WorldOptions::address; 127.0.0.1 and ::1 lead back to whoever asks
  Path& path(Host& from, Host& to);
  void set_way(Host& one, Host& other, Way way);  ///< in both directions
  void heal(Host& one, Host& other) { set_way(one, other, Way::open); }

  // --- faults
  void set_chance(Fault fault, double probability);  ///< 0 to 1; of those with a chance
  [[nodiscard]] std::uint64_t count(Fault fault) const;
  Random& random();

  // --- the truth
  /// The life of vigil's socket that has this descriptor now; 0: none.
  [[nodiscard]] std::uint64_t life(int descriptor) const;
  /// Also after its end.
  [[nodiscard]] Truth truth(std::uint64_t life) const;
  /// The other side, if a script plays it; null before the handshake began, or where vigil is on both sides.
  [[nodiscard]] Peer* peer_of(std::uint64_t life) const;
  [[nodiscard]] std::size_t open_descriptors() const;
  [[nodiscard]] std::size_t calls_on_closed() const;  ///< calls with a descriptor that was not open: always a bug
  [[nodiscard]] static std::size_t pending_timers(Reactor& reactor);
  /// Connections, listeners, timers and watches that live, its own few too; blocks of its pools in use.
  [[nodiscard]] static std::size_t sources_in_use(Reactor& reactor);
  [[nodiscard]] static std::size_t blocks_in_use(Reactor& reactor);
  /// A fingerprint of everything that has happened: the same for the same seed and the same program.
  [[nodiscard]] std::uint64_t digest() const;
  /// One line to `write` for each call of vigil's and each segment, until called with an empty one.
  void trace(Callback<void(std::string_view line)> write);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vigil::sim
