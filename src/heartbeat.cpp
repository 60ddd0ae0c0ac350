// The heartbeat: probes into a peer's silence, evidence while its budget runs out, the verdict at the end.
//
// A silence counts from the last sign of life: a byte received, or, while other bytes hold the probe back, their acknowledgement;
// with reading held, bytes that the kernel received. Nothing is done per message: last_received_ is stored anyway. Only the first
// byte after a probe takes the slow path, once, and ends the silence there. The first probe of each silence has its own random
// phase; from it on the budget may run out, but never before the peer had budget - interval to answer, unless phi doubts it.
//
// A silence is one after the other:
//   quiet      until next_probe: decides_at is never_due
//   asked      decides_at counts from the first look; a probe that waits for the turn's flush hides it (leaves)
//   held back  the kernel did not take all of the probe (Connection::probe_waits): decides_at counts anew from when it does
//   in grace   beyond the budget, without a verdict: next_probe is never_due, decides_at is the next look
//   over       a byte came (Connection::probed: seen at once, else by the next look), or the connection ends
//
// What is decided from the evidence stands in verdict.cpp, what follows from the options in heartbeat_options.cpp.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <new>
#include <utility>

#include "connection_life.hpp"
#include "vigil/phi_accrual.hpp"
#include "vigil/verdict.hpp"

namespace vigil {

/// What is gathered from the first probe of a silence until the next sign of life.
struct Doubt {
  Instant probed_at;           // by that probe; never_due: none was sent, for bytes that wait would have held it back
  std::uint64_t handed;        // to the kernel by then: what comes after it is this silence's
  std::uint64_t acknowledged;  // at the last look
  Instant progress;            // when that last grew, or the silence began
  Instant heard;               // the peer's kernel, as the first look saw it
  std::uint32_t retransmits;   // in all, by then
  Evidence evidence;           // of the last look
};

/// Of one connection, from its open on.
struct Heartbeat {
  Instant other_life{};            // a sign of life that was no byte received
  Instant silence{};               // the sign of life from which what follows counts
  Instant next_probe{};            // in this silence
  Instant decides_at = never_due;  // the budget's end, or what phi makes of it; never_due before the first probe
  Instant gives_up_at{};           // the budget's end and its grace
  Doubt* doubt = nullptr;          // null before the first probe, or for want of memory: then nothing is known
  AnswerTimes* answers = nullptr;  // of all its silences, for phi; null before the first
  std::uint32_t phase_seed = 0;    // of the connection
  std::uint32_t asked_to = 0;      // where the first probe since the last byte received ends in our stream, modulo 2^32
  int unread = 0;                  // while reading is held, at the last look since the last byte received
  bool is_asked = false;           // there was one
  Verdict verdict = Verdict::unknown;
  bool leaves = false;  // the first probe waits for the turn to hand it to the kernel (later on perhaps for room there)
};

// What a heartbeat costs an idle connection: with the pointer to it, and 16 bytes that an allocator may add.
static_assert(ReactorCore::heartbeat_block_bytes + sizeof(Heartbeat*) + 16 <= 96);
static_assert(sizeof(Heartbeat) <= ReactorCore::heartbeat_block_bytes);
static_assert(sizeof(Doubt) <= ReactorCore::doubt_block_bytes && sizeof(AnswerTimes) <= ReactorCore::answers_block_bytes);

namespace {

/// Two looks at the same segment's arrival may differ by as much: two ticks of the kernel that counts in the longest (HZ 100).
constexpr Duration kernel_grain = std::chrono::milliseconds(20);
/// The kernel charges 768 bytes at least for each write to a Unix socket, against the sender's SO_SNDBUF, which is 212,992 by
/// default (net.core.wmem_default): 278 of one byte fill it.
constexpr int least_unix_room = 212'992 / 768;

struct HeartbeatLife {
  static Heartbeat& of(const Connection& connection) { return *ConnectionLife::birth_of(connection).heartbeat; }
  static const HeartbeatPlan& plan_of(const Connection& connection) { return ConnectionLife::policy_of(connection).plan; }

  static bool begin(ReactorCore& core, Connection& connection) {
    void* block = core.heartbeats.take();
    if (block == nullptr) return false;
    auto* heartbeat = ::new (block) Heartbeat{};
    heartbeat->phase_seed = static_cast<std::uint32_t>(core.counters.opened);
    ConnectionLife::birth_of(connection).heartbeat = heartbeat;
    begin_silence(core, connection);
    return true;
  }

  static void drop(ReactorCore& core, Connection& connection) {
    Heartbeat*& heartbeat = ConnectionLife::birth_of(connection).heartbeat;
    if (heartbeat == nullptr) return;
    drop_doubt(core, *heartbeat);
    if (heartbeat->answers != nullptr) core.answers.give_back(heartbeat->answers);
    core.heartbeats.give_back(heartbeat);
    heartbeat = nullptr;
  }

  static void drop_doubt(ReactorCore& core, Heartbeat& heartbeat) {
    if (heartbeat.doubt != nullptr) core.doubts.give_back(heartbeat.doubt);
    heartbeat.doubt = nullptr;
  }

  static Instant last_life(const Connection& connection) {
    return std::max(ConnectionLife::last_received(connection), of(connection).other_life);
  }

  /// Half an interval to a whole one after the sign of life, another each time, and another for each connection: many that fell
  /// silent together do not ping together.
  static Instant first_probe_after(const Connection& connection, Instant life) {
    std::uint64_t mixed = ConnectionLife::policy_of(connection).heartbeat_seed ^ of(connection).phase_seed * 0x9E3779B97F4A7C15U ^
                          static_cast<std::uint64_t>(life.time_since_epoch().count());
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9U;  // splitmix64's finalizer (Steele, Lea, Flood 2014)
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBU;
    mixed ^= mixed >> 31;
    const Duration half = plan_of(connection).interval / 2;
    return life + half + Duration(static_cast<std::int64_t>(mixed % static_cast<std::uint64_t>(half.count() + 1)));
  }

  static void begin_silence(ReactorCore& core, Connection& connection) {
    Heartbeat& heartbeat = of(connection);
    drop_doubt(core, heartbeat);
    ConnectionLife::expect_no_answer(connection);
    heartbeat.silence = last_life(connection);
    if (heartbeat.silence == ConnectionLife::last_received(connection)) {
      heartbeat.is_asked = false;
      heartbeat.unread = 0;
    }
    heartbeat.next_probe = first_probe_after(connection, heartbeat.silence);
    heartbeat.decides_at = never_due;
    heartbeat.leaves = false;
  }

  /// Not once the peer's stream has ended, or ours is being ended: other deadlines see to that.
  static bool runs(const Connection& connection) {
    return ConnectionLife::birth_of(connection).heartbeat != nullptr && ConnectionLife::expects_life(connection);
  }
  static bool is_silent(const Connection& connection) { return of(connection).silence == last_life(connection); }

  static Instant budget_ends(const Connection& connection) {
    return runs(connection) && is_silent(connection) && !of(connection).leaves ? of(connection).decides_at : never_due;
  }

  static Instant next_look(const Connection& connection) {
    if (!runs(connection)) return never_due;
    if (is_silent(connection)) return of(connection).next_probe;
    return first_probe_after(connection, last_life(connection));
  }

  /// Looks at what the own kernel knows. True: it knows of life that nobody has read.
  static bool hears_of_life(ReactorCore& core, Connection& connection, const sys::TcpSample& sample, std::uint64_t acknowledged) {
    Heartbeat& heartbeat = of(connection);
    if (sample.known && !sample.connected) return !is_silent(connection);  // it has failed, and counts from nothing any more
    if (Doubt* doubt = heartbeat.doubt; doubt != nullptr && acknowledged > doubt->acknowledged) {
      doubt->progress = core.now;
      if (is_on_the_way(heartbeat, acknowledged)) (void)lived_at(connection, heard_at(core, sample));
      doubt->acknowledged = acknowledged;
    }
    const int unread = unread_while_held(connection);
    const Instant arrived = sample.known ? core.now - std::chrono::milliseconds(sample.last_data_recv_ms) : core.now;
    if (unread > std::exchange(heartbeat.unread, unread) && lived_at(connection, arrived)) heartbeat.is_asked = false;
    // A peer that has filled our buffer can't get another byte to us: its kernel speaks for it.
    if (unread != 0 && may_be_full(connection, unread)) (void)lived_at(connection, kernel_spoke_at(core, connection, sample));
    return !is_silent(connection);
  }

  /// A Unix peer's kernel is ours, which tells its end by itself.
  static Instant kernel_spoke_at(const ReactorCore& core, const Connection& connection, const sys::TcpSample& sample) {
    if (!ConnectionLife::is_tcp(connection)) return core.now;
    const Instant heard = heard_at(core, sample);
    const Doubt* doubt = of(connection).doubt;
    const Duration grain = std::min(kernel_grain, plan_of(connection).interval / 2);
    const bool is_new = sample.known && (doubt == nullptr || heard > doubt->heard + grain);
    return is_new ? heard : Instant{};
  }

  static Instant heard_at(const ReactorCore& core, const sys::TcpSample& sample) {
    return core.now - std::chrono::milliseconds(sample.last_ack_recv_ms);
  }

  static int unread_while_held(const Connection& connection) {
    return ConnectionLife::holds_reading(connection) ? sys::unread_bytes(connection.descriptor()) : 0;
  }

  /// A TCP window closes with less in the buffer than its size, which counts what the kernel needs around the bytes. What a Unix
  /// peer may have on its way is for its own socket to say: by default as many writes as here, be each of one byte.
  static bool may_be_full(const Connection& connection, int unread) {
    if (!ConnectionLife::is_tcp(connection)) return unread >= least_unix_room;
    int size = 0;
    socklen_t length = sizeof size;
    const bool known = sys::get_option(connection.descriptor(), SOL_SOCKET, SO_RCVBUF, &size, &length) == 0;
    return known && unread >= size / 4;
  }

  /// The kernel counts in milliseconds: of a sign of life hardly later than the last nobody knows whether it is another.
  static bool lived_at(const Connection& connection, Instant at) {
    const bool later = at > last_life(connection) + std::chrono::milliseconds(2);
    if (later) of(connection).other_life = at;
    return later;
  }

  static std::uint32_t given(const Connection& connection) {
    return static_cast<std::uint32_t>(connection.handed_to_kernel() + connection.backlog_bytes());
  }

  /// Whether the probe has not reached the peer, for bytes that hold it back: then an acknowledgement of those is the only answer
  /// there can be. Later ones are none, for the kernel of a process that hangs sends them too; but where it had taken no more,
  /// and takes more now, its process reads.
  static bool is_on_the_way(const Heartbeat& heartbeat, std::uint64_t acknowledged) {
    const auto left = static_cast<std::int32_t>(heartbeat.asked_to - static_cast<std::uint32_t>(acknowledged));
    return !heartbeat.is_asked || left > 0 || heartbeat.doubt->evidence.not_transmitted_bytes != 0;
  }

  static void begin_doubt(ReactorCore& core, Connection& connection, const sys::TcpSample& sample, std::uint64_t acknowledged) {
    Heartbeat& heartbeat = of(connection);
    void* block = core.doubts.take();
    if (block == nullptr) return;
    heartbeat.doubt = ::new (block) Doubt{.probed_at = never_due,
                                          .handed = connection.handed_to_kernel(),
                                          .acknowledged = acknowledged,
                                          .progress = heartbeat.silence,
                                          .heard = heard_at(core, sample),
                                          .retransmits = sample.total_retrans,
                                          .evidence = {}};
  }

  static void take_evidence(ReactorCore& core, Connection& connection, const sys::TcpSample& sample, std::uint64_t acknowledged) {
    const Heartbeat& heartbeat = of(connection);
    Doubt& doubt = *heartbeat.doubt;
    Evidence& evidence = doubt.evidence;
    evidence.known = sample.known && sample.connected;
    evidence.sent_in_silence = connection.handed_to_kernel() - doubt.handed;
    evidence.acknowledged_in_silence = acknowledged > doubt.handed;
    evidence.unacknowledged_segments = sample.unacked;
    evidence.not_transmitted_bytes = sample.notsent_bytes;
    evidence.retransmits = sample.retransmits;
    evidence.retransmits_in_silence = sample.total_retrans - doubt.retransmits;
    evidence.probes = sample.probes;
    if (sample.window_known) evidence.window_bytes = sample.snd_wnd;
    evidence.round_trip = std::chrono::microseconds(sample.rtt_us);
    evidence.retransmit_timeout = std::chrono::microseconds(sample.rto_us);
    evidence.last_acknowledgement = std::chrono::milliseconds(sample.last_ack_recv_ms);
    evidence.silence = core.now - heartbeat.silence;
    evidence.without_progress = core.now - std::max(doubt.progress, heartbeat.silence);
    if (phi_speaks(connection) && doubt.probed_at != never_due)
      evidence.phi = phi(core.now - doubt.probed_at, heartbeat.answers->mean(), answers_deviate(connection));
  }

  /// One look at the kernel. False: there was life, and a new silence has begun.
  static bool stays_silent(ReactorCore& core, Connection& connection) {
    const sys::TcpSample sample = sys::tcp_sample(connection.descriptor());
    const std::uint64_t acknowledged = connection.handed_to_kernel() - ConnectionLife::in_flight(connection);
    if (hears_of_life(core, connection, sample, acknowledged)) {
      begin_silence(core, connection);
      return false;
    }
    if (of(connection).decides_at == never_due) begin_doubt(core, connection, sample, acknowledged);
    if (of(connection).doubt != nullptr) take_evidence(core, connection, sample, acknowledged);
    return true;
  }

  // --- phi: what the peer's earlier answers say of this one

  static bool phi_speaks(const Connection& connection) {
    const HeartbeatPlan& plan = plan_of(connection);
    const AnswerTimes* answers = of(connection).answers;
    return plan.phi && answers != nullptr && answers->count() >= plan.phi->least_answers;
  }
  static Duration answers_deviate(const Connection& connection) {
    return std::max(of(connection).answers->deviation(), plan_of(connection).phi->least_deviation);
  }

  /// How long after the first probe it reaches its threshold; the budget's length at most.
  static Duration phi_reached_after(const Connection& connection) {
    const HeartbeatPlan& plan = plan_of(connection);
    const Doubt* doubt = of(connection).doubt;
    if (!phi_speaks(connection) || doubt == nullptr || doubt->probed_at == never_due) return plan.budget;
    const double deviations = plan.phi_deviations * static_cast<double>(answers_deviate(connection).count());
    if (deviations >= static_cast<double>(plan.budget.count())) return plan.budget;
    const Duration reached = of(connection).answers->mean() + Duration(static_cast<std::int64_t>(deviations));
    return std::min(std::max(reached, plan.phi_from), plan.budget);
  }

  static void learn(ReactorCore& core, Heartbeat& heartbeat, Duration took) {
    if (heartbeat.answers == nullptr) {
      void* block = core.answers.take();
      if (block == nullptr) return;
      heartbeat.answers = ::new (block) AnswerTimes;
    }
    heartbeat.answers->add(took);
  }

  // --- a silence

  /// The first byte received after a probe: the silence is over before the node comes to it.
  static void answered(ReactorCore& core, Connection& connection) {
    ConnectionLife::expect_no_answer(connection);
    if (!runs(connection)) return;
    Heartbeat& heartbeat = of(connection);
    const Instant now = core.read_clock();  // stores the stamp of that byte
    const bool asked = heartbeat.doubt != nullptr && heartbeat.doubt->probed_at != never_due;
    if (plan_of(connection).phi && asked) learn(core, heartbeat, now - heartbeat.doubt->probed_at);
    begin_silence(core, connection);
    ConnectionLife::rearm(core, connection);
  }

  static void look(ReactorCore& core, Connection& connection) {
    if (!runs(connection)) return;
    Heartbeat& heartbeat = of(connection);
    heartbeat.leaves = false;  // the turn in which it did is over
    if (!is_silent(connection)) begin_silence(core, connection);
    if (core.now < heartbeat.next_probe || heartbeat.decides_at <= core.now) return;
    if (!stays_silent(core, connection)) return;
    const bool is_first = heartbeat.decides_at == never_due;
    const bool asks = connection.backlog_bytes() == 0;  // else another probe behind it would ask nothing more
    if (is_first && asks && heartbeat.doubt != nullptr) heartbeat.doubt->probed_at = core.now;
    if (is_first) count_from(connection, core.now);
    heartbeat.next_probe = core.now + plan_of(connection).interval;
    if (!asks) return;
    ConnectionLife::expect_answer(connection);
    const ConnectionPolicy& policy = ConnectionLife::policy_of(connection);
    const std::uint32_t given_before = given(connection);
    if (policy.ping != nullptr) {
      connection.send(Bytes(policy.ping->bytes.get(), policy.ping->size));
    } else {
      policy.handler->on_ping_due(ConnectionLife::handler_of(connection), connection);
    }
    // Where the handler has said nothing, what it says next stands for the probe: a process that hangs acknowledges that, too.
    if (!std::exchange(heartbeat.is_asked, true))
      heartbeat.asked_to = given(connection) + (given(connection) == given_before ? 1 : 0);
    heartbeat.next_probe = core.read_clock() + plan_of(connection).interval;
    if (!is_first) return;
    ConnectionLife::probe_waits_in_queue(connection);
    heartbeat.leaves = ConnectionLife::probe_waits(connection);
    if (heartbeat.leaves) return ConnectionLife::flush_later(core, connection);
    peer_is_asked(core, connection);  // the callback may have taken long
  }

  /// The budget ends with the silence's, but a loop that slept has asked only now: then the peer gets the time that an answer may
  /// take from here.
  static void count_from(Connection& connection, Instant probed) {
    Heartbeat& heartbeat = of(connection);
    const HeartbeatPlan& plan = plan_of(connection);
    const Instant budget_ends = std::max(heartbeat.silence + plan.budget, probed + plan.budget - plan.interval);
    heartbeat.decides_at = std::min(budget_ends, probed + phi_reached_after(connection));
    heartbeat.gives_up_at = budget_ends + plan.grace;
  }

  static void peer_is_asked(const ReactorCore& core, Connection& connection) {
    if (Doubt* doubt = of(connection).doubt; doubt != nullptr) doubt->probed_at = core.now;
    count_from(connection, core.now);
  }

  /// What waited is offered to the kernel now, or all of it was taken: callbacks since the probe, or a kernel without room, may
  /// have taken long, and only now the peer is asked.
  static void handed_over(ReactorCore& core, Connection& connection) {
    Heartbeat& heartbeat = of(connection);
    if (!runs(connection) || heartbeat.decides_at == never_due) return;
    heartbeat.leaves = false;
    ConnectionLife::probe_waits_in_queue(connection);
    peer_is_asked(core, connection);
  }

  static std::optional<Verdict> judged(const Connection& connection) {
    const HeartbeatPlan& plan = plan_of(connection);
    if (!plan.wants_verdict) return Verdict::unknown;
    const Doubt* doubt = of(connection).doubt;
    return doubt == nullptr ? std::nullopt : judge(doubt->evidence, plan.interval, plan.budget);
  }

  static void expire(ReactorCore& core, Connection& connection) {
    Heartbeat& heartbeat = of(connection);
    if (ConnectionLife::end_waits(connection)) {  // a peer that has finished says no more
      heartbeat.decides_at = heartbeat.next_probe = never_due;
      return ConnectionLife::rearm(core, connection);
    }
    if (ConnectionLife::probe_waits(connection)) {  // a loop that was late has not heard yet that there is room
      if (!ConnectionLife::write_again(core, connection)) return;
      if (!runs(connection) || core.now < heartbeat.decides_at) return ConnectionLife::rearm(core, connection);
    }
    if (!stays_silent(core, connection)) return ConnectionLife::rearm(core, connection);
    const std::optional<Verdict> verdict = judged(connection);
    // A loop that comes late has looked too seldom: what it sent only now needs the grace as well.
    const Instant budget_ends = heartbeat.gives_up_at - plan_of(connection).grace;
    if (heartbeat.decides_at <= budget_ends && budget_ends < core.now)
      heartbeat.gives_up_at = core.now + plan_of(connection).grace;
    // A Unix socket never has evidence that would be worth waiting for.
    const Instant decided_by = ConnectionLife::is_tcp(connection) ? heartbeat.gives_up_at : budget_ends;
    if (!verdict && core.now < decided_by) {
      // In the grace no probe hides that the one before it was acknowledged.
      if (core.now >= heartbeat.gives_up_at - plan_of(connection).grace) heartbeat.next_probe = never_due;
      heartbeat.decides_at = looks_again_at(core, connection);
      return ConnectionLife::rearm(core, connection);
    }
    heartbeat.verdict = verdict.value_or(Verdict::unknown);
    ConnectionLife::end(connection, CloseReason::heartbeat_lost);
  }

  /// A verdict that is not decided yet: a few looks within the budget, where phi spoke too early, and a few within the grace.
  static Instant looks_again_at(const ReactorCore& core, const Connection& connection) {
    const Heartbeat& heartbeat = of(connection);
    const HeartbeatPlan& plan = plan_of(connection);
    const Instant budget_ends = heartbeat.gives_up_at - plan.grace;
    const bool early = core.now < budget_ends;
    const Duration step = std::max((early ? plan.interval : plan.grace) / 8, core.options.tick);
    return std::min(core.now + step, early ? budget_ends : heartbeat.gives_up_at);
  }

  /// The kernel has given up first. Its memory of the struggle is gone: the last look is what there is.
  static bool explains(ReactorCore& core, Connection& connection, int error, std::uint8_t operation) {
    core.read_clock();  // stores the stamp of a byte that came right before the error
    if (!runs(connection) || !is_silent(connection) || of(connection).decides_at == never_due) return false;
    of(connection).verdict = judged(connection).value_or(Verdict::unknown);
    // Newer than that look: nobody acknowledges any more. A user timeout says the same of a peer that lives and does not read.
    const bool lost_the_way = error != ETIMEDOUT || of(connection).verdict == Verdict::hung;
    if (plan_of(connection).wants_verdict && lost_the_way) of(connection).verdict = Verdict::unreachable;
    ConnectionLife::end(connection, CloseReason::heartbeat_lost, error, operation);
    return true;
  }

  static void tell(const Connection& connection, CloseRecord& record) {
    if (record.reason != CloseReason::heartbeat_lost || ConnectionLife::birth_of(connection).heartbeat == nullptr) return;
    const Heartbeat& heartbeat = of(connection);
    record.verdict = heartbeat.verdict;
    if (heartbeat.doubt != nullptr) record.evidence = heartbeat.doubt->evidence;
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
                                                 .handed_over = HeartbeatLife::handed_over,
                                                 .answered = HeartbeatLife::answered,
                                                 .tell = HeartbeatLife::tell};

}  // namespace vigil
