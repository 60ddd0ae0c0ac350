// The one door into a reactor from other threads: tasks posted here run on the reactor's thread, in the order they were posted.
//
// Thread: any. Ownership: a Mailbox is a counted reference; it may outlive its reactor, and a post to a reactor that is gone
// returns an error and destroys the task on the calling thread.
//
//   vigil::Mailbox mailbox = reactor.mailbox();
//   std::thread worker([mailbox] { (void)mailbox.post([] { std::puts("on the reactor's thread"); }); });
#pragma once

#include <memory>

#include "vigil/callback.hpp"
#include "vigil/result.hpp"

namespace vigil {

class Reactor;

class Mailbox {
 public:
  /// Runs `task` in the reactor's next turn. Costs a lock, and one system call if the reactor has not been woken yet.
  /// Error{post, ESHUTDOWN}: the reactor is gone. Error{post, EINVAL}: an empty task.
  [[nodiscard]] Result<void> post(Task task) const;

  /// As Reactor::stop(), from any thread; one that comes before run() has begun ends that run.
  [[nodiscard]] Result<void> stop() const;

 private:
  friend class Reactor;
  friend struct ReactorCore;
  struct Shared;
  explicit Mailbox(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  std::shared_ptr<Shared> shared_;
};

}  // namespace vigil
