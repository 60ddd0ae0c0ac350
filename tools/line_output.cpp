#include "line_output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

namespace vigil::tools {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t waiting_bytes_max = 64 * 1024 * 1024;
constexpr auto patience_at_the_end = 2s;

/// A program started without stdin, stdout or stderr would be given their numbers for its sockets, and print into them.
void occupy_standard_descriptors() {
  int opened = 0;
  do {
    opened = ::open("/dev/null", O_RDWR);
  } while (opened >= 0 && opened <= STDERR_FILENO);
  if (opened > STDERR_FILENO) ::close(opened);
}

/// 0, or the errno of a write that failed. A descriptor that somebody else made non-blocking is waited for.
int write_whole(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      pollfd room{descriptor, POLLOUT, 0};
      (void)::poll(&room, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

}  // namespace

struct LineOutput::Shared {
  explicit Shared(int given) : descriptor(given) {}

  const int descriptor;
  std::mutex mutex;
  std::condition_variable changed;
  std::string waiting;  // whole lines
  bool writing = false;
  bool ending = false;
  bool ended = false;
  int error = 0;
  std::uint64_t lost = 0;
  std::function<void()> when_gone;
};

LineOutput::LineOutput(int descriptor) : shared_(std::make_shared<Shared>(descriptor)) {
  occupy_standard_descriptors();
  // The writer takes no signal: those it is not meant for go to the reactor's thread, and a broken pipe answers EPIPE.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  writer_ = std::thread([shared = shared_] { write_all(*shared); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void LineOutput::finish() {
  if (!writer_.joinable()) return;
  std::unique_lock lock(shared_->mutex);
  shared_->ending = true;
  shared_->changed.notify_all();
  const bool ended = shared_->changed.wait_for(lock, patience_at_the_end, [this] { return shared_->ended; });
  lock.unlock();
  if (ended) {
    writer_.join();
  } else {
    writer_.detach();  // stuck in a write that nobody reads; the end of the process ends it
  }
}

void LineOutput::print(std::string_view line) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->error != 0) return;
  if (shared_->waiting.size() + line.size() >= waiting_bytes_max) {
    ++shared_->lost;
    return;
  }
  const bool idle = shared_->waiting.empty() && !shared_->writing;
  shared_->waiting.append(line).push_back('\n');
  if (idle) shared_->changed.notify_all();
}

void LineOutput::when_gone(std::function<void()> task) {
  std::unique_lock lock(shared_->mutex);
  if (shared_->error == 0) {
    shared_->when_gone = std::move(task);
    return;
  }
  lock.unlock();
  task();
}

int LineOutput::error() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->error;
}

std::uint64_t LineOutput::lost() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->lost;
}

void LineOutput::write_all(Shared& shared) {
  std::string bytes;
  std::unique_lock lock(shared.mutex);
  while (true) {
    shared.changed.wait(lock, [&shared] { return !shared.waiting.empty() || shared.ending; });
    if (shared.waiting.empty()) break;
    bytes.clear();
    bytes.swap(shared.waiting);
    shared.writing = true;
    lock.unlock();
    const int error = write_whole(shared.descriptor, bytes);
    lock.lock();
    shared.writing = false;
    if (error == 0) continue;
    shared.error = error;
    shared.waiting.clear();
    if (const auto task = std::exchange(shared.when_gone, nullptr)) {
      lock.unlock();
      task();
      lock.lock();
    }
    break;
  }
  shared.ended = true;
  shared.changed.notify_all();
}

}  // namespace vigil::tools
