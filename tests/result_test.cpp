#include "vigil/result.hpp"

#include <doctest/doctest.h>

#include <cerrno>
#include <memory>
#include <string>

namespace {

using vigil::Error;
using vigil::Result;

TEST_CASE("an error reads as operation, cause and errno name") {
  CHECK(vigil::describe(Error{"listen", EADDRINUSE, ""}) == "listen: Address already in use (EADDRINUSE)");
}

TEST_CASE("an error with a detail names what is at fault") {
  const Error error{"listen", EINVAL, "receive timeout out of range"};

  CHECK(vigil::describe(error) == "listen: receive timeout out of range: Invalid argument (EINVAL)");
}

TEST_CASE("an errno nobody knows keeps its number") {
  CHECK(vigil::errno_name(12345) == "errno 12345");
  CHECK(vigil::describe(Error{"send", 12345, ""}).find("12345") != std::string::npos);
}

TEST_CASE("errnos have the names Linux gives them") {
  CHECK(vigil::errno_name(EAGAIN) == "EAGAIN");
  CHECK(vigil::errno_name(EOPNOTSUPP) == "EOPNOTSUPP");
  CHECK(vigil::errno_name(EHOSTDOWN) == "EHOSTDOWN");
  CHECK(vigil::errno_name(ETIMEDOUT) == "ETIMEDOUT");
}

TEST_CASE("errors are equal by operation and errno, whatever their detail") {
  const std::string operation = "send";

  CHECK(Error{"send", EPIPE, ""} == Error{operation.c_str(), EPIPE, "the peer is gone"});
  CHECK_FALSE(Error{"send", EPIPE, ""} == Error{"send", ECONNRESET, ""});
  CHECK_FALSE(Error{"send", EPIPE, ""} == Error{"receive", EPIPE, ""});
}

TEST_CASE("a result holds a value or an error") {
  const Result<int> good = 7;
  const Result<int> bad = Error{"listen", EINVAL, ""};

  REQUIRE(good);
  CHECK(*good == 7);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == EINVAL);
}

TEST_CASE("a result gives its value away") {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(7);

  const std::unique_ptr<int> taken = *std::move(result);

  CHECK(*taken == 7);
}

TEST_CASE("a success reports exit status 0, a failure 1") {
  CHECK(vigil::report(Result<void>()) == 0);
  CHECK(vigil::report(Result<void>(Error{"this line is meant to be here", EINVAL, ""})) == 1);
}

}  // namespace
