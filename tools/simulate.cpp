// vigil-simulate: lives by the million in simulated worlds, with every fault a kernel and a network have, each judged by an
// oracle. Exit status 0 only if no promise was broken, every fault happened, and every reason and every verdict was told.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "command_line.hpp"
#include "progress_bar.hpp"
#include "readable.hpp"
#include "swarm.hpp"
#include "vigil/close_record.hpp"
#include "vigil/sim.hpp"

namespace {

using namespace vigil;
using namespace vigil::tools;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t no_world = UINT64_MAX;

struct Settings {
  std::uint64_t seed = 1;
  std::uint64_t lives = 20'000;
  std::uint64_t minutes = 0;
  std::uint64_t threads = 0;
  std::uint64_t world = no_world;
  bool trace = false;
  bool keep_going = false;
};

unsigned usable_cpus() {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (::sched_getaffinity(0, sizeof usable, &usable) != 0) return 1;
  return static_cast<unsigned>(std::max(CPU_COUNT(&usable), 1));
}

/// Worlds one after the other, run by several threads. Their reports are added up in the order of their numbers and as far as
/// is needed, so that the sum does not depend on the threads.
class Run {
 public:
  explicit Run(const Settings& settings) : settings_(settings) {}

  void begin(unsigned threads) {
    for (unsigned index = 0; index < threads; ++index) workers_.emplace_back([this] { work(); });
  }
  /// Waits a little; whether it goes on.
  bool wait() {
    std::unique_lock guard(lock_);
    changed_.wait_for(guard, std::chrono::milliseconds(200));
    if (settings_.minutes != 0 && Clock::now() - began_ >= std::chrono::minutes(settings_.minutes)) over_ = true;
    return !over_;
  }
  void end() {
    over_ = true;
    for (std::thread& worker : workers_) worker.join();
  }
  [[nodiscard]] WorldReport sum() {
    const std::lock_guard guard(lock_);
    return sum_;
  }
  /// How many worlds are in the sum.
  [[nodiscard]] std::uint64_t worlds() {
    const std::lock_guard guard(lock_);
    return added_;
  }
  [[nodiscard]] std::size_t violations() {
    const std::lock_guard guard(lock_);
    return broken.size();
  }
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

  struct Broken {
    std::uint64_t world;
    Violation violation;
  };
  std::vector<Broken> broken;  // after end()

 private:
  void work() {
    while (!over_) {
      const std::uint64_t number = next_++;
      WorldReport report = run_world({.seed = settings_.seed, .number = number});
      const std::lock_guard guard(lock_);
      finished_.emplace(number, std::move(report));
      add_up();
      changed_.notify_one();
    }
  }

  void add_up() {
    for (auto first = finished_.begin(); first != finished_.end() && first->first == added_ && !is_enough();
         first = finished_.begin()) {
      for (const Violation& violation : first->second.violations) broken.push_back({added_, violation});
      first->second.violations.clear();
      sum_ += first->second;
      ++added_;
      finished_.erase(first);
    }
    if (is_enough()) over_ = true;
  }

  [[nodiscard]] bool is_enough() const {
    if (!broken.empty() && !settings_.keep_going) return true;
    return settings_.minutes == 0 && sum_.counted >= settings_.lives;
  }

  const Settings& settings_;
  const Clock::time_point began_ = Clock::now();
  std::atomic<std::uint64_t> next_ = 0;
  std::atomic<bool> over_ = false;
  std::mutex lock_;
  std::condition_variable changed_;
  std::map<std::uint64_t, WorldReport> finished_;  // and not yet added up
  WorldReport sum_;
  std::uint64_t added_ = 0;
  std::vector<std::thread> workers_;
};

std::uint64_t median(const Spread& spread) {
  std::uint64_t total = 0;
  for (const std::uint64_t count : spread) total += count;
  std::uint64_t passed = 0;
  for (std::size_t value = 0; value < spread.size(); ++value) {
    passed += spread[value];
    if (2 * passed >= total) return value;
  }
  return 0;
}

void print_row(const char* left, std::uint64_t left_count, const char* right, std::uint64_t right_count) {
  if (right[0] == '\0') return static_cast<void>(std::printf("  %-22s %15s\n", left, grouped(left_count).c_str()));
  std::printf("  %-22s %15s    %-22s %15s\n", left, left[0] == '\0' ? "" : grouped(left_count).c_str(), right,
              grouped(right_count).c_str());
}

void print_tables(const WorldReport& sum) {
  std::printf("\n  %-38s    %s\n", "faults injected", "reasons told");
  for (std::size_t row = 0; row < std::max(sim::fault_count, close_reason_count); ++row) {
    const bool has_fault = row < sim::fault_count, has_reason = row < close_reason_count;
    print_row(has_fault ? sim::to_string(static_cast<sim::Fault>(row)) : "", has_fault ? sum.faults[row] : 0,
              has_reason ? to_string(static_cast<CloseReason>(row)) : "", has_reason ? sum.reasons[row] : 0);
  }
  const auto print_verdicts = [](const char* what, const auto& counts) {
    std::printf("  %s:", what);
    for (std::size_t index = 0; index < verdict_count; ++index)
      std::printf(" %s %s%s", grouped(counts[index]).c_str(), to_string(static_cast<Verdict>(index)),
                  index + 1 < verdict_count ? "," : "\n");
  };
  std::printf("\n");
  print_verdicts("heartbeats lost", sum.verdicts);
  print_verdicts("of these excused, since what was lost, slow or is not known may have misled", sum.excused);
  std::printf("\n  %s lives ended, %s of them opened, %s count: a deadline armed, three messages and a fault, at least\n",
              grouped(sum.lives).c_str(), grouped(sum.opened).c_str(), grouped(sum.counted).c_str());
  std::printf("  median of a life that opened: %s deadlines armed, %s messages, %s faults\n",
              grouped(median(sum.deadlines_each)).c_str(), grouped(median(sum.messages_each)).c_str(),
              grouped(median(sum.faults_each)).c_str());
  const auto fewer_than = [&](const Spread& spread, std::size_t wanted) {
    std::uint64_t count = 0;
    for (std::size_t value = 0; value < wanted; ++value) count += spread[value];
    return grouped(count);
  };
  std::printf("  of those that opened %s had no deadline armed, %s fewer than three messages, %s no fault\n",
              fewer_than(sum.deadlines_each, 1).c_str(), fewer_than(sum.messages_each, 3).c_str(),
              fewer_than(sum.faults_each, 1).c_str());
}

/// One line each, the first few; and how to see the first one again.
void print_broken(const Settings& settings, const std::vector<Run::Broken>& broken) {
  constexpr std::size_t shown = 20;
  for (std::size_t index = 0; index < std::min(broken.size(), shown); ++index) {
    const auto& [world, violation] = broken[index];
    std::printf(
        "\nVIOLATED: %s\n  %s\n  seed %llu, world %llu, %s%s, step %llu, at %s\n  ./tools/simulate --seed %llu --world %llu\n",
        violation.rule.c_str(), violation.told.c_str(), static_cast<unsigned long long>(settings.seed),
        static_cast<unsigned long long>(world), violation.life == 0 ? "no life of its own" : "life ",
        violation.life == 0 ? "" : std::to_string(violation.life).c_str(), static_cast<unsigned long long>(violation.step),
        readable(violation.at).c_str(), static_cast<unsigned long long>(settings.seed), static_cast<unsigned long long>(world));
  }
  if (broken.size() > shown) std::printf("\n... and %zu more\n", broken.size() - shown);
}

int replay(const Settings& settings) {
  WorldChoice choice{.seed = settings.seed, .number = settings.world};
  if (settings.trace)
    choice.trace = [](std::string_view line) { std::printf("%.*s\n", static_cast<int>(line.size()), line.data()); };
  const WorldReport report = run_world(std::move(choice));
  print_tables(report);
  std::printf("  world %llu of seed %llu: %s steps, %s simulated, digest %016llx\n",
              static_cast<unsigned long long>(settings.world), static_cast<unsigned long long>(settings.seed),
              grouped(report.steps).c_str(), readable(report.simulated).c_str(), static_cast<unsigned long long>(report.digest));
  std::vector<Run::Broken> broken;
  for (const Violation& violation : report.violations) broken.push_back({settings.world, violation});
  print_broken(settings, broken);
  std::printf("%s\n", broken.empty() ? "0 violations" : "");
  return broken.empty() ? 0 : 1;
}

int simulate(const Settings& settings) {
  const unsigned threads = settings.threads != 0 ? static_cast<unsigned>(settings.threads) : usable_cpus();
  std::printf("Simulating %s, seed %llu, %u %s\n",
              settings.minutes != 0 ? (std::to_string(settings.minutes) + " minutes of lives").c_str()
                                    : (grouped(settings.lives) + " lives").c_str(),
              static_cast<unsigned long long>(settings.seed), threads, threads == 1 ? "thread" : "threads");
  std::fflush(stdout);
  Run run(settings);
  run.begin(threads);
  ProgressBar bar;
  while (run.wait()) {
    const WorldReport sum = run.sum();
    const double fraction = settings.minutes != 0 ? run.seconds() / (60.0 * static_cast<double>(settings.minutes))
                                                  : static_cast<double>(sum.counted) / static_cast<double>(settings.lives);
    bar.draw("simulating", fraction, grouped(sum.counted) + " lives, " + grouped(run.violations()) + " violations");
  }
  run.end();
  bar.clear();
  const WorldReport sum = run.sum();
  const double seconds = run.seconds();
  print_tables(sum);
  std::printf("  %s worlds, %s simulated, %s steps, %s delivered, digest %016llx\n", grouped(run.worlds()).c_str(),
              readable(sum.simulated).c_str(), grouped(sum.steps).c_str(), readable_bytes(static_cast<double>(sum.bytes)).c_str(),
              static_cast<unsigned long long>(sum.digest));
  print_broken(settings, run.broken);
  bool all_happened = true;
  const bool came_to_its_end = run.broken.empty() || settings.keep_going;
  const auto want = [&](std::uint64_t count, const char* otherwise, const char* what) {
    if (count != 0 || !came_to_its_end) return;
    all_happened = false;
    std::printf("\n%s: %s\n", otherwise, what);
  };
  for (std::size_t index = 0; index < sim::fault_count; ++index)
    want(sum.faults[index], "NEVER HAPPENED", sim::to_string(static_cast<sim::Fault>(index)));
  for (std::size_t index = 0; index < close_reason_count; ++index)
    want(sum.reasons[index], "NEVER TOLD", to_string(static_cast<CloseReason>(index)));
  for (std::size_t index = 0; index < verdict_count; ++index)
    want(sum.verdicts[index], "NEVER TOLD of a lost heartbeat", to_string(static_cast<Verdict>(index)));
  std::printf("\n%s violations in %s lives, %.1f s\n", grouped(run.broken.size()).c_str(), grouped(sum.counted).c_str(), seconds);
  return run.broken.empty() && all_happened ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CommandLine command_line("vigil-simulate", "Lives in simulated worlds, with every fault there is, judged by an oracle.");
  command_line.number("--seed", "N", settings.seed, 0, UINT64_MAX, "What everything is drawn from");
  auto* lives =
      command_line.number("--lives", "N", settings.lives, 1, 1'000'000'000'000, "How many lives that count are to be lived");
  auto* minutes = command_line.number("--minutes", "N", settings.minutes, 1, 100'000, "For so long instead");
  command_line.number("--threads", "N", settings.threads, 1, 1024, "How many run worlds; as many as there are usable CPUs");
  command_line.flag("--keep-going", settings.keep_going, "Don't stop at the first world with a violation");
  command_line.heading("One world again");
  auto* world = command_line.number("--world", "N", settings.world, 0, no_world - 1, "Run this one alone");
  auto* trace = command_line.flag("--trace", settings.trace, "A line for each system call and each segment");
  if (const auto status = command_line.parse(argc, argv)) return *status;
  if (lives->count() != 0 && minutes->count() != 0) return command_line.refuse("--lives and --minutes exclude each other");
  if (world->count() != 0 && (lives->count() != 0 || minutes->count() != 0))
    return command_line.refuse("--world is one world: it takes no --lives or --minutes");
  if (trace->count() != 0 && world->count() == 0) return command_line.refuse("--trace belongs to --world");
  return settings.world != no_world ? replay(settings) : simulate(settings);
}
