// What a reactor is made of, for the layers that stand on it. Users see only include/vigil/reactor.hpp.
//
// Thread: the reactor's, except Mailbox::Shared. The core owns every slot (through its slabs); facades own registrations.
//
// Stamps: the time a byte was received is taken after the fact. A receive notes where its stamp is to be stored (stamp_soon), and
// the next reading of the clock, at most a few sources later, stores it. A stamp is therefore never earlier than its byte, so
// that no deadline counted from it can fire early, and a message costs a store instead of a clock reading.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "block_pool.hpp"
#include "epoll_poller.hpp"
#include "reserved_array.hpp"
#include "send_queue.hpp"
#include "source_slab.hpp"
#include "sys/sys.hpp"
#include "vigil/mailbox.hpp"
#include "vigil/reactor.hpp"
#include "vigil/timer_wheel.hpp"

namespace vigil {

/// What posting threads and the reactor share. The lock is taken per post and per batch of tasks, never per message.
struct Mailbox::Shared {
  std::mutex lock;
  std::vector<Task> tasks;
  int wake_descriptor = -1;  // -1 once the reactor is gone
  bool stop_requested = false;
};

struct ReactorCore {
  explicit ReactorCore(const ReactorOptions& given);
  ~ReactorCore() = default;
  /// The end: tells every life that is left, then lets go of everything. Before the destructor; a second time changes nothing.
  void close();
  ReactorCore(const ReactorCore&) = delete;
  ReactorCore& operator=(const ReactorCore&) = delete;

  // --- time
  /// Reads the clock and stores every stamp asked for since the last reading.
  Instant read_clock() {
    now = sys::monotonic_now();
    for (std::size_t index = 0; index < stamps_wanted; ++index) *stamps[index] = now;
    stamps_wanted = 0;
    return now;
  }
  /// `*stamp` gets the time of the next clock reading. It must stay where it is until then (slots do: they are reclaimed later).
  void stamp_soon(Instant* stamp) { stamps[stamps_wanted++] = stamp; }
  /// There is room for two stamps when a source is dispatched; who wants more makes sure before each.
  void make_room_for_stamp() {
    if (stamps_wanted == stamps.size()) read_clock();
  }
  /// After each dispatched source: keeps stamps from growing old, and room for the next source's.
  void dispatched() {
    if (stamps_wanted >= stamps.size() - 1) read_clock();
  }

  // --- sources
  /// The slab of this layout, made if there is none.
  [[nodiscard]] SourceSlab* slab_for(std::size_t slot_bytes, std::size_t alignment, SourceSlab::Construct construct);
  /// A vacant source, with room on every list; null: out of memory, or the reactor has ended.
  [[nodiscard]] Source* take_source(SourceSlab& slab);
  void give_back(SourceSlab& slab, Source& source);

  /// Dispatches it again in this turn's second half, or in the next turn. Adds to what it already waits for: an edge is told
  /// once.
  void ready_later(Source& source, Readiness readiness) {
    enlist(ready_list, source, listed_ready);
    source.lists_ = static_cast<std::uint8_t>(source.lists_ | (readiness.bits << readiness_shift));
  }
  [[nodiscard]] static bool is_ready_later(const Source& source) { return (source.lists_ & listed_ready) != 0; }
  void flush_later(Source& source) { enlist(flush_list, source, listed_flush); }
  void finish_later(Source& source) { enlist(finish_list, source, listed_finish); }

  void arm(Source& source, Instant due) {
    wheel.arm(source, due);
    attend(wheel_changed);
  }
  void cancel(Source& source) {
    if (!source.armed()) return;
    wheel.cancel(source);
    attend(wheel_changed);
  }
  static Source& source_of(TimerNode& node) { return static_cast<Source&>(node); }

  // --- the gather buffer: small sends of the source being dispatched, until its dispatch ends
  [[nodiscard]] bool gathers_for(const Source& source) const { return gathering == &source; }

  // --- phases
  [[nodiscard]] Result<void> turn(Duration at_most);
  [[nodiscard]] Result<void> run();
  [[nodiscard]] Result<void> post(Task task);
  void stop();
  [[nodiscard]] Result<void> shutdown(Duration drain);
  void stop_sources(bool at_once);
  /// Errors latched by the constructor, then what a call from a wrong moment answers.
  [[nodiscard]] Result<void> usable(const char* operation) const;
  /// Slots in use: connections, listeners, timers, watches, and two of the reactor's own.
  [[nodiscard]] std::size_t sources() const { return slots_; }
  [[nodiscard]] std::uint64_t alive() const { return counters.opened - counters.closed; }
  void assert_thread() const { assert(owner == std::this_thread::get_id()); }

  static ReactorCore& of(Reactor& reactor) { return *reactor.core_; }

  std::vector<std::unique_ptr<SourceSlab>> slabs_;  // first: slots outlive the wheel and the lists that point to them
  ReactorOptions options;
  Error latched;  // code 0: none
  Poller poller;
  TimerWheel wheel;
  Instant now;
  std::array<Instant*, 8> stamps;
  std::size_t stamps_wanted = 0;

  std::unique_ptr<std::byte[]> receive_storage;
  std::byte* receive_buffer;  // its second half; bytes left by on_receive are put right before what follows them
  std::unique_ptr<std::byte[]> gather_buffer;
  std::size_t gathered = 0;
  const Source* gathering = nullptr;
  static constexpr int direct_sends_per_dispatch = 16;
  int direct_sends_left = 0;  // of the source being dispatched, or of all callbacks of the turn's later phases: then they queue
  const Source* refilling = nullptr;  // is in its on_send_drained: what it queues now leaves in the next turn
  SendChunkPool chunks;
  static constexpr std::size_t side_block_bytes = 192;
  BlockPool sides{side_block_bytes, 1024};
  static constexpr std::size_t heartbeat_block_bytes = 72;
  BlockPool heartbeats{heartbeat_block_bytes, 1024};
  static constexpr std::size_t doubt_block_bytes = 160;
  BlockPool doubts{doubt_block_bytes, 256};
  static constexpr std::size_t answers_block_bytes = 264;
  BlockPool answers{answers_block_bytes, 256};
  ReactorCounters counters;

  // Why a turn must do more than wait and dispatch. One byte, so that a plain turn asks once.
  static constexpr std::uint8_t clock_is_old = 1;   // something ran since `now` was read
  static constexpr std::uint8_t wheel_changed = 2;  // next_expiry_ is to be asked for anew
  static constexpr std::uint8_t work_waits = 4;     // a list or the tasks hold something
  static constexpr std::uint8_t stop_requested = 8;
  static constexpr std::uint8_t shutting_down = 16;  // for good
  std::uint8_t attention = clock_is_old | wheel_changed;
  void attend(unsigned why) { attention = static_cast<std::uint8_t>(attention | why); }
  [[nodiscard]] bool attends(unsigned why) const { return (attention & why) != 0; }

  /// A single delay of the loop that is worth forgiving peers: nobody can tell what they would have sent meanwhile.
  static constexpr Duration stall_length = std::chrono::milliseconds(100);
  Instant last_stall{};  // when the last such delay ended, how long it was, and in which turn
  Duration last_stall_length{};
  std::uint64_t last_stall_turn = 0;
  void note_stall(Duration delay) {
    if (delay < stall_length) return;
    last_stall = now;
    last_stall_length = delay;
    last_stall_turn = counters.turns;
  }
  [[nodiscard]] bool stalled_in_this_turn() const { return last_stall_turn == counters.turns; }

  bool in_turn = false;
  bool running = false;
  bool ending = false;  // the last life was told: no other begins
  int reserve_descriptor = -1;
  std::shared_ptr<Registration::Link> link;
  std::shared_ptr<Mailbox::Shared> mailbox;

 private:
  struct Listed {
    Source* source;
    std::uint32_t generation;
  };
  // A source's lists_: which lists hold it, and above that the readiness it waits on the ready list with.
  static constexpr std::uint8_t listed_ready = 1, listed_flush = 2, listed_finish = 4;
  static constexpr int readiness_shift = 3;

  [[nodiscard]] bool make_room_on_lists(std::size_t entries);  // false: no memory
  // Never allocates: take_source() reserved room for every source on every list.
  void enlist(ReservedArray<Listed>& list, Source& source, std::uint8_t mark) {
    attend(work_waits);
    if ((source.lists_ & mark) != 0) return;
    source.lists_ |= mark;
    list.push_back({&source, source.generation_});
  }
  /// Takes `entry` off its list: its source, or null if that life is over.
  static Source* unlist(const Listed& entry, std::uint8_t mark) {
    if (entry.source->generation_ != entry.generation) return nullptr;
    entry.source->lists_ = static_cast<std::uint8_t>(entry.source->lists_ & ~mark);
    return entry.source;
  }
  static Readiness take_readiness(Source& source) {
    const auto bits = static_cast<std::uint8_t>(source.lists_ >> readiness_shift);
    source.lists_ = static_cast<std::uint8_t>(source.lists_ & ((1 << readiness_shift) - 1));
    return {bits};
  }

  [[nodiscard]] int one_turn(Duration at_most);  // 0 or the errno of the wait
  [[nodiscard]] bool run_is_over() const;
  [[nodiscard]] Instant wait_end();
  void count_delay(Duration delay);
  void dispatch(int count);
  void dispatch_left_over();
  void other_phases();
  void take_thread() { owner = std::this_thread::get_id(); }
  void advance_timers();
  void run_tasks();
  void flush_and_finish();
  bool flush_and_finish_once();
  bool flush_round();
  bool finish_round();
  void take_mail();

  std::size_t slots_ = 0;
  std::size_t listed_max_ = 0;  // how many entries every list has room for
  ReservedArray<Listed> ready_list, ready_now_, flush_list, flush_now_, finish_list, finish_now_;
  std::vector<Task> tasks_, tasks_now_;
  Instant next_expiry_ = never_due;
  std::thread::id owner = std::this_thread::get_id();
  Source* shutdown_timer_ = nullptr;
  Instant shutdown_ends_ = never_due;

  friend struct CoreSources;
};

}  // namespace vigil
