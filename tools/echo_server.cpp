#include "echo_server.hpp"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "flood.hpp"
#include "message_marks.hpp"

namespace vigil::tools {
namespace {

/// What the connections of one reactor share, and what it tells that belongs to no connection.
class Service {
 public:
  Service(const EchoOptions& given, std::unique_ptr<EchoObserver> told, Worker& worker)
      : options(given),
        reactor(worker.reactor()),
        observer(std::move(told)),
        next_id_(worker.index() + 1),
        reactors_(worker.reactors()),
        stats_due_(reactor.now()),
        stats_(reactor, [this] { tell_stats(); }) {
    if (options.stats > Duration::zero()) arm_stats();
  }
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service() {
    if (options.stats > Duration::zero()) observer->stats(reactor.counters());
  }

  [[nodiscard]] std::uint64_t take_id() { return std::exchange(next_id_, next_id_ + reactors_); }

  void on_accept_timed_out(Duration after) { observer->accept_timed_out(after); }
  void on_accept_paused(const Error& error, Duration retry) { observer->accept_paused(error, retry); }
  void on_accept_resumed(Duration after) { observer->accept_resumed(after); }
  void on_shed(const CloseRecord& record) { observer->shed(record); }

  const EchoOptions& options;
  Reactor& reactor;
  const std::unique_ptr<EchoObserver> observer;

 private:
  void arm_stats() {
    stats_due_ = std::max(stats_due_ + options.stats, reactor.now());
    (void)stats_.arm_at(stats_due_);
  }
  void tell_stats() {
    observer->stats(reactor.counters());
    arm_stats();
  }

  std::uint64_t next_id_;
  std::uint64_t reactors_;
  Instant stats_due_;
  Timer stats_;
};

/// A reactor's service, and the kind of connection it is for.
template <class Handler>
struct ServiceOf : Service {
  using Service::Service;
  Handler make_handler(Connection&) { return Handler(*this); }
};

/// What every kind of connection does: it has an id, its beginning and end are told, and its messages are marked.
struct Told {
  explicit Told(Service& shared)
      : service(&shared), id(shared.take_id()), marks(shared.options.server.listener.timeouts, shared.options.message_bytes) {}

  void on_open(Connection& peer) { service->observer->opened(id, peer.peer()); }
  void on_close(Connection& peer, const CloseRecord& why) { service->observer->closed(id, peer.peer(), why); }

  Service* service;
  std::uint64_t id;
  MessageMarks marks;
};

struct Echo : Told {
  using Told::Told;
  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    peer.send(bytes);
  }
};

/// Cuts a stream into messages of one size; with size 0 each piece that comes is one.
class Splitter {
 public:
  explicit Splitter(std::size_t size) : size_(size) {}

  template <class Take>
  void split(Bytes bytes, Take take) {
    if (size_ == 0) return take(bytes);
    if (!begun_.empty()) {
      const Bytes missing = bytes.first(size_ - begun_.size());
      begun_.insert(begun_.end(), missing.begin(), missing.end());
      bytes = bytes.without_first(missing.size());
      if (begun_.size() < size_) return;
      take(Bytes(begun_));
      begun_.clear();
    }
    for (; bytes.size() >= size_; bytes = bytes.without_first(size_)) take(bytes.first(size_));
    begun_.assign(bytes.begin(), bytes.end());
  }

  /// The message that the peer's end has cut off, if there is one.
  template <class Take>
  void finish(Take take) {
    if (!begun_.empty()) take(Bytes(begun_));
    begun_.clear();
  }

 private:
  std::size_t size_;
  std::vector<std::byte> begun_;
};

/// One send call for each message.
struct MessageEcho : Told {
  explicit MessageEcho(Service& shared) : Told(shared), messages(shared.options.message_bytes) {}

  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    messages.split(bytes, [&peer](Bytes message) { peer.send(message); });
  }
  void on_peer_finished(Connection& peer) {
    messages.finish([&peer](Bytes rest) { peer.send(rest); });
    peer.close();
  }

  Splitter messages;
};

/// Each reply waits before it is sent. A peer that finishes meanwhile still gets what it is owed, unless its drain deadline
/// passes.
struct DelayedEcho : Told {
  explicit DelayedEcho(Service& shared) : Told(shared), messages(shared.options.message_bytes) {}

  void on_open(Connection& peer) {
    Told::on_open(peer);
    timer = Timer(service->reactor, [handle = peer.handle()] { handle->handler<DelayedEcho>().send_due(*handle); });
  }
  void on_receive(Connection& peer, Bytes bytes) {
    marks.mark(peer, bytes);
    messages.split(bytes, [&](Bytes message) { hold(peer, message); });
    const ListenerOptions& options = service->options.server.listener;
    if (options.when_backlogged == WhenBacklogged::pause_reading &&
        held_bytes + peer.backlog_bytes() > options.backlog_high_mark_bytes)
      (void)peer.pause_reading();
  }
  void on_peer_finished(Connection& peer) {
    messages.finish([&](Bytes rest) { hold(peer, rest); });
    finished = true;
    if (held.empty()) peer.close();
  }

  struct Reply {
    Instant due;
    std::vector<std::byte> bytes;
  };

  void hold(Connection& peer, Bytes message) {
    if (outrun) return;
    held_bytes += message.size();
    held.push_back({service->reactor.now() + service->options.reply_delay, {message.begin(), message.end()}});
    if (held_bytes > service->options.server.listener.backlog_bytes_max) {
      send_too_much(peer);
    } else if (held.size() == 1) {
      (void)timer.arm_at(held.front().due);
    }
  }

  /// What waits here is bounded as the send queue is. A peer that outruns it meets the same end as one that leaves its replies
  /// unread: all that waits goes into one send, which passes the bound and so ends the connection with backlog_full.
  void send_too_much(Connection& peer) {
    outrun = true;
    std::vector<std::byte> all;
    all.reserve(held_bytes);
    for (const Reply& reply : held) all.insert(all.end(), reply.bytes.begin(), reply.bytes.end());
    held.clear();
    timer.disarm();
    peer.send(Bytes(all));
  }

  void send_due(Connection& peer) {
    const Instant now = service->reactor.now();
    while (!held.empty() && held.front().due <= now) {
      held_bytes -= held.front().bytes.size();
      peer.send(Bytes(held.front().bytes));
      held.pop_front();
    }
    if (held_bytes <= service->options.server.listener.backlog_low_mark_bytes) (void)peer.resume_reading();
    if (!held.empty()) {
      (void)timer.arm_at(held.front().due);
    } else if (finished) {
      peer.close();
    }
  }

  Splitter messages;
  Timer timer;
  std::deque<Reply> held;
  std::size_t held_bytes = 0;
  bool finished = false;
  bool outrun = false;
};

/// Sends as much as the peer takes and ignores what it says.
struct FloodingEcho : Told {
  using Told::Told;
  void on_open(Connection& peer) {
    Told::on_open(peer);
    fill(peer);
  }
  void on_receive(Connection& peer, Bytes bytes) { marks.mark(peer, bytes); }
  void on_send_drained(Connection& peer) { fill(peer); }
  void fill(Connection& peer) { Flood(service->reactor, service->options.server.listener.backlog_high_mark_bytes).fill(peer); }
};

template <class Handler>
std::shared_ptr<ServerBase> make(const EchoOptions& options, MakeEchoObserver&& make_observer) {
  // The server keeps this function, and with it the options, for as long as it lives.
  const auto make_service = [options, make_observer = std::move(make_observer)](Worker& worker) {
    return ServiceOf<Handler>(options, make_observer(worker), worker);
  };
  return std::make_shared<Server<Handler, ServiceOf<Handler>>>(options.server, make_service);
}

}  // namespace

std::shared_ptr<ServerBase> make_echo_server(const EchoOptions& options, MakeEchoObserver make_observer) {
  if (options.flood) return make<FloodingEcho>(options, std::move(make_observer));
  if (options.reply_delay > Duration::zero()) return make<DelayedEcho>(options, std::move(make_observer));
  if (options.message_bytes > 0) return make<MessageEcho>(options, std::move(make_observer));
  return make<Echo>(options, std::move(make_observer));
}

}  // namespace vigil::tools
