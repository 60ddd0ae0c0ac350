#include "vigil/mailbox.hpp"

#include <cerrno>
#include <mutex>
#include <utility>

#include "reactor_core.hpp"
#include "sys/sys.hpp"

namespace vigil {

Result<void> Mailbox::post(Task task) const {
  if (!task) return Error{"post", EINVAL, "empty task"};
  const std::lock_guard guard(shared_->lock);
  if (shared_->wake_descriptor < 0) return Error{"post", ESHUTDOWN};
  // Whoever finds the box empty wakes the reactor; until it has emptied the box, one wake-up is enough for all that follow.
  const bool first = shared_->tasks.empty();
  shared_->tasks.push_back(std::move(task));
  if (first) sys::wake_signal(shared_->wake_descriptor);
  return {};
}

Result<void> Mailbox::stop() const {
  const std::lock_guard guard(shared_->lock);
  if (shared_->wake_descriptor < 0) return Error{"stop", ESHUTDOWN};
  shared_->stop_requested = true;
  sys::wake_signal(shared_->wake_descriptor);
  return {};
}

}  // namespace vigil
