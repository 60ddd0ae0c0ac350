// The heartbeat: probes into a peer's silence, evidence while its budget runs out, the verdict at the end.
//
// A silence counts from the last sign of life: a byte received, or, behind bytes that were on their way when it began, their
// acknowledgement; with reading held, bytes that the kernel received. Nothing is done per message: last_received_ is stored
// anyway, and the node, when it comes to the probe of a silence that is over, moves to the next one. The first probe of each
// silence has its own random phase; from it on the budget may run out, but never before the peer had budget - interval to answer.
//
// What is decided from the evidence stands in verdict.cpp, what follows from the options in heartbeat_options.cpp.
#include <algorithm>
#include <new>

#include "connection_life.hpp"
#include "vigil/verdict.hpp"

namespace vigil {

/// Of one connection, from its open on.
struct Heartbeat {
  std::uint64_t number;           // of the connection, for its phases
  Instant other_life{};           // a sign of life that was no byte received
  Instant silence{};              // the sign of life from which what follows counts
  Instant next_probe{};           // in this silence
  Instant decides_at{};           // the budget's end; never_due before the first probe
  Instant gives_up_at{};          // and its grace
  std::uint64_t owed = 0;         // where our stream stood at the first probe, with what waited: beyond it is this silence's
  std::uint64_t acknowledged;     // at the last look
  Instant progress{};             // when that last grew, or the silence began
  Evidence* evidence = nullptr;   // of the last look; null before the first
  std::uint32_t retransmits = 0;  // in all, when the first probe was due
  Verdict verdict = Verdict::unknown;
};

static_assert(sizeof(Heartbeat) <= ReactorCore::heartbeat_block_bytes && sizeof(Evidence) <= ReactorCore::heartbeat_block_bytes);

namespace {

struct HeartbeatLife {
  static Heartbeat& of(const Connection& connection) { return *ConnectionLife::birth_of(connection).heartbeat; }
  static const HeartbeatPlan& plan_of(const Connection& connection) { return ConnectionLife::policy_of(connection).plan; }

  static bool begin(ReactorCore& core, Connection& connection) {
    void* block = core.heartbeats.take();
    if (block == nullptr) return false;
    auto* heartbeat = ::new (block) Heartbeat{};
    heartbeat->number = core.counters.opened;
    heartbeat->decides_at = never_due;
    ConnectionLife::birth_of(connection).heartbeat = heartbeat;
    begin_silence(connection);
    return true;
  }

  static void drop(ReactorCore& core, Connection& connection) {
    Heartbeat*& heartbeat = ConnectionLife::birth_of(connection).heartbeat;
    if (heartbeat == nullptr) return;
    forget_evidence(core, *heartbeat);
    core.heartbeats.give_back(heartbeat);
    heartbeat = nullptr;
  }

  static void forget_evidence(ReactorCore& core, Heartbeat& heartbeat) {
    if (heartbeat.evidence != nullptr) core.heartbeats.give_back(heartbeat.evidence);
    heartbeat.evidence = nullptr;
  }

  static Instant last_life(const Connection& connection) {
    return std::max(ConnectionLife::last_received(connection), of(connection).other_life);
  }

  /// Half an interval to a whole one after the sign of life, another each time, and another for each connection: many that fell
  /// silent together do not ping together.
  static Instant first_probe_after(const Connection& connection, Instant life) {
    std::uint64_t mixed = ConnectionLife::policy_of(connection).heartbeat_seed ^ of(connection).number * 0x9E3779B97F4A7C15U ^
                          static_cast<std::uint64_t>(life.time_since_epoch().count());
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9U;  // splitmix64's finalizer (Steele, Lea, Flood 2014)
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBU;
    mixed ^= mixed >> 31;
    const Duration half = plan_of(connection).interval / 2;
    return life + half + Duration(static_cast<std::int64_t>(mixed % static_cast<std::uint64_t>(half.count() + 1)));
  }

  static void begin_silence(Connection& connection) {
    Heartbeat& heartbeat = of(connection);
    heartbeat.silence = last_life(connection);
    heartbeat.next_probe = first_probe_after(connection, heartbeat.silence);
    heartbeat.decides_at = never_due;
  }

  /// Not once the peer's stream has ended, or ours is being ended: other deadlines see to that.
  static bool runs(const Connection& connection) {
    return ConnectionLife::birth_of(connection).heartbeat != nullptr && ConnectionLife::expects_life(connection);
  }
  static bool is_silent(const Connection& connection) { return of(connection).silence == last_life(connection); }

  static Instant budget_ends(const Connection& connection) {
    return runs(connection) && is_silent(connection) ? of(connection).decides_at : never_due;
  }

  static Instant next_look(const Connection& connection) {
    if (!runs(connection)) return never_due;
    if (is_silent(connection)) return of(connection).next_probe;
    return first_probe_after(connection, last_life(connection));
  }

  /// Looks at what the own kernel knows. True: it knows of life that nobody has read.
  static bool hears_of_life(ReactorCore& core, Connection& connection, const sys::TcpSample& sample, std::uint64_t acknowledged) {
    Heartbeat& heartbeat = of(connection);
    const bool grew = acknowledged > heartbeat.acknowledged;
    if (grew) heartbeat.progress = core.now;
    // What was there before the probe holds the probe back: its acknowledgement is the only answer there can be.
    if (grew && heartbeat.acknowledged < heartbeat.owed)
      heartbeat.other_life = std::max(heartbeat.other_life, core.now - std::chrono::milliseconds(sample.last_ack_recv_ms));
    heartbeat.acknowledged = acknowledged;
    const int unread = ConnectionLife::holds_reading(connection) ? sys::unread_bytes(connection.descriptor()) : 0;
    if (unread > 0 && sample.known)
      heartbeat.other_life = std::max(heartbeat.other_life, core.now - std::chrono::milliseconds(sample.last_data_recv_ms));
    // The kernel counts in milliseconds, up to one late: the silence only begins anew where it was well before.
    return last_life(connection) > heartbeat.silence + std::chrono::milliseconds(2);
  }

  static void take_evidence(ReactorCore& core, Connection& connection, const sys::TcpSample& sample, std::uint64_t acknowledged) {
    Heartbeat& heartbeat = of(connection);
    if (heartbeat.evidence == nullptr) {
      void* block = core.heartbeats.take();
      if (block == nullptr) return;
      heartbeat.evidence = ::new (block) Evidence;
    }
    Evidence& evidence = *heartbeat.evidence;
    evidence.known = sample.known && sample.connected;
    evidence.sent_in_silence = std::max(connection.handed_to_kernel(), heartbeat.owed) - heartbeat.owed;
    evidence.acknowledged_in_silence = acknowledged > heartbeat.owed;
    evidence.unacknowledged_segments = sample.unacked;
    evidence.not_transmitted_bytes = sample.notsent_bytes;
    evidence.retransmits = sample.retransmits;
    evidence.retransmits_in_silence = sample.total_retrans - heartbeat.retransmits;
    evidence.probes = sample.probes;
    if (sample.window_known) evidence.window_bytes = sample.snd_wnd;
    evidence.round_trip = std::chrono::microseconds(sample.rtt_us);
    evidence.retransmit_timeout = std::chrono::microseconds(sample.rto_us);
    evidence.last_acknowledgement = std::chrono::milliseconds(sample.last_ack_recv_ms);
    evidence.without_progress = core.now - std::max(heartbeat.progress, heartbeat.silence);
  }

  /// One look at the kernel. False: there was life, and a new silence has begun.
  static bool stays_silent(ReactorCore& core, Connection& connection) {
    const sys::TcpSample sample = sys::tcp_sample(connection.descriptor());
    const std::uint64_t acknowledged = connection.handed_to_kernel() - ConnectionLife::in_flight(connection);
    if (hears_of_life(core, connection, sample, acknowledged)) {
      forget_evidence(core, of(connection));
      begin_silence(connection);
      return false;
    }
    Heartbeat& heartbeat = of(connection);
    if (heartbeat.decides_at == never_due) {
      heartbeat.owed = connection.handed_to_kernel() + connection.backlog_bytes();
      heartbeat.retransmits = sample.total_retrans;
      heartbeat.progress = heartbeat.silence;
    }
    take_evidence(core, connection, sample, acknowledged);
    return true;
  }

  static void look(ReactorCore& core, Connection& connection) {
    if (!runs(connection)) return;
    Heartbeat& heartbeat = of(connection);
    if (!is_silent(connection)) {
      forget_evidence(core, heartbeat);
      begin_silence(connection);
    }
    if (core.now < heartbeat.next_probe || heartbeat.decides_at <= core.now) return;
    if (!stays_silent(core, connection)) return;
    const HeartbeatPlan& plan = plan_of(connection);
    if (heartbeat.decides_at == never_due) {
      // A loop that slept has not asked yet: then the peer gets the time that an answer may take from now.
      heartbeat.decides_at = std::max(heartbeat.silence + plan.budget, core.now + plan.budget - plan.interval);
      heartbeat.gives_up_at = heartbeat.decides_at + plan.grace;
    }
    heartbeat.next_probe = core.now + plan.interval;
    if (connection.backlog_bytes() != 0) return;  // another probe behind it would ask nothing more
    const ConnectionPolicy& policy = ConnectionLife::policy_of(connection);
    if (!policy.ping.empty()) {
      connection.send(policy.ping);
    } else {
      policy.handler->on_ping_due(ConnectionLife::handler_of(connection), connection);
    }
    if (ConnectionLife::birth_of(connection).heartbeat != nullptr) core.read_clock();
  }

  static void expire(ReactorCore& core, Connection& connection) {
    Heartbeat& heartbeat = of(connection);
    const HeartbeatPlan& plan = plan_of(connection);
    if (!stays_silent(core, connection)) return ConnectionLife::rearm(core, connection);
    std::optional<Verdict> verdict;
    if (!plan.wants_verdict) verdict = Verdict::unknown;
    if (!verdict && heartbeat.evidence != nullptr) verdict = judge(*heartbeat.evidence, plan.interval, plan.budget);
    if (!verdict && core.now < heartbeat.gives_up_at) {
      heartbeat.decides_at = std::min(core.now + std::max(plan.grace / 8, core.options.tick), heartbeat.gives_up_at);
      return ConnectionLife::rearm(core, connection);
    }
    heartbeat.verdict = verdict.value_or(Verdict::unknown);
    ConnectionLife::end(connection, CloseReason::heartbeat_lost);
  }

  /// The kernel has given up first. Its memory of the struggle is gone: the last look is what there is.
  static bool explains(ReactorCore&, Connection& connection, int error, std::uint8_t operation) {
    if (!runs(connection) || !is_silent(connection) || of(connection).decides_at == never_due) return false;
    Heartbeat& heartbeat = of(connection);
    const HeartbeatPlan& plan = plan_of(connection);
    if (heartbeat.evidence != nullptr && plan.wants_verdict)
      heartbeat.verdict = judge(*heartbeat.evidence, plan.interval, plan.budget).value_or(Verdict::unknown);
    ConnectionLife::end(connection, CloseReason::heartbeat_lost, error, operation);
    return true;
  }

  static void tell(const Connection& connection, CloseRecord& record) {
    if (record.reason != CloseReason::heartbeat_lost || ConnectionLife::birth_of(connection).heartbeat == nullptr) return;
    const Heartbeat& heartbeat = of(connection);
    record.verdict = heartbeat.verdict;
    if (heartbeat.evidence != nullptr) record.evidence = *heartbeat.evidence;
  }
};

}  // namespace

constinit const HeartbeatThunks heartbeat_thunks{.begin = HeartbeatLife::begin,
                                                 .drop = HeartbeatLife::drop,
                                                 .budget_ends = HeartbeatLife::budget_ends,
                                                 .next_look = HeartbeatLife::next_look,
                                                 .look = HeartbeatLife::look,
                                                 .expire = HeartbeatLife::expire,
                                                 .explains = HeartbeatLife::explains,
                                                 .tell = HeartbeatLife::tell};

}  // namespace vigil
