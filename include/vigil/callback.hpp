// A move-only owner of anything callable: what timers, watches, posted tasks and make_handler keep. It may hold what
// std::function can't (a unique_ptr, say). It costs one allocation; nothing on the per-message path uses it.
//
// What is called may assign to the Callback it was called by, or end it: the callable stays until it returns.
//
// Thread: as the callable's own. A callback that throws terminates the program.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace vigil {

template <class Signature>
class Callback;

template <class Answer, class... Arguments>
class Callback<Answer(Arguments...)> {
 public:
  Callback() = default;

  template <class Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Callback> &&
           std::is_invocable_r_v<Answer, std::decay_t<Callable>&, Arguments...>) Callback(Callable&& callable)
      : target_(new Holder<std::decay_t<Callable>>(std::forward<Callable>(callable))) {}

  [[nodiscard]] explicit operator bool() const { return target_ != nullptr; }
  Answer operator()(Arguments... arguments) noexcept {
    const Running running(*target_);
    return running.target.call(std::forward<Arguments>(arguments)...);
  }

 private:
  struct Target {
    virtual ~Target() = default;
    virtual Answer call(Arguments... arguments) noexcept = 0;
    int calls = 0;  // that have not returned
    bool is_owned = true;
  };

  /// Who lets go of a target that runs leaves it to its last call.
  struct Release {
    void operator()(Target* target) const {
      target->is_owned = false;
      if (target->calls == 0) delete target;
    }
  };

  struct Running {
    explicit Running(Target& called) : target(called) { ++target.calls; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() {
      if (--target.calls == 0 && !target.is_owned) delete &target;
    }
    Target& target;
  };

  template <class Callable>
  struct Holder final : Target {
    explicit Holder(const Callable& given) : callable(given) {}
    explicit Holder(Callable&& given) : callable(std::move(given)) {}
    Answer call(Arguments... arguments) noexcept override { return callable(std::forward<Arguments>(arguments)...); }
    Callable callable;
  };

  std::unique_ptr<Target, Release> target_;
};

using Task = Callback<void()>;

}  // namespace vigil
