// Errors are values: an Error names the operation that failed and the errno it failed with; a Result holds a value or an Error.
//
// Thread: plain values, usable anywhere. Lifetime: an Error borrows its operation's name, which is always a string with static
// storage duration. Nothing here throws; reading the value of a failed Result, or the error of a good one, aborts.
//
//   if (auto bound = listener.listen("127.0.0.1:7000"); !bound) return vigil::report(bound.error());
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace vigil {

/// What went wrong: the operation as the user knows it ("listen", "send") and the errno that tells the cause.
struct Error {
  const char* operation = "";  ///< never null; static storage
  int code = 0;                ///< an errno value; 0 only where there is no error
  const char* detail = "";     ///< the option or argument at fault and what is wrong with it, or empty; static storage

  /// The detail is for people: it does not take part.
  friend bool operator==(const Error& left, const Error& right) {
    return left.code == right.code && std::string_view(left.operation) == std::string_view(right.operation);
  }
};

/// One line for people: `listen: Address already in use (EADDRINUSE)`, with a detail
/// `listen: receive timeout out of range: Invalid argument (EINVAL)`.
[[nodiscard]] std::string describe(const Error& error);

/// The symbolic name of an errno, `EADDRINUSE`; a number the platform has no name for reads `errno 12345`.
[[nodiscard]] std::string errno_name(int code);

/// A value or an Error. `Result<void>` is success or an Error.
template <class Value>
class Result {
 public:
  Result(Value value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, error) {}

  [[nodiscard]] explicit operator bool() const { return state_.index() == 0; }
  [[nodiscard]] Value& value() & { return checked(std::get_if<0>(&state_)); }
  [[nodiscard]] const Value& value() const& { return checked(std::get_if<0>(&state_)); }
  [[nodiscard]] Value&& value() && { return std::move(checked(std::get_if<0>(&state_))); }
  [[nodiscard]] Value& operator*() & { return value(); }
  [[nodiscard]] const Value& operator*() const& { return value(); }
  [[nodiscard]] Value&& operator*() && { return std::move(*this).value(); }
  [[nodiscard]] Value* operator->() { return &value(); }
  [[nodiscard]] const Value* operator->() const { return &value(); }
  [[nodiscard]] const Error& error() const { return checked(std::get_if<1>(&state_)); }

 private:
  template <class Pointee>
  static Pointee& checked(Pointee* pointer) {
    if (pointer == nullptr) std::abort();
    return *pointer;
  }

  std::variant<Value, Error> state_;
};

template <>
class Result<void> {
 public:
  Result() : failed_(false) {}
  Result(Error error) : error_(error), failed_(true) {}

  [[nodiscard]] explicit operator bool() const { return !failed_; }
  [[nodiscard]] const Error& error() const {
    if (!failed_) std::abort();
    return error_;
  }

 private:
  union {  // success writes one byte: this is what every send() returns
    Error error_;
  };
  bool failed_;
};

/// Prints the error on stderr, one line, and returns the exit status 1: `return vigil::report(bound.error());`.
int report(const Error& error);

/// Reports a failure as above; a success prints nothing and returns 0: `return vigil::report(reactor.run());`.
int report(const Result<void>& result);

}  // namespace vigil
