#include "vigil/result.hpp"

#include <cstdio>

#include "sys/sys.hpp"

namespace vigil {

std::string errno_name(int code) {
  const char* name = sys::error_name(code);
  return name != nullptr ? std::string(name) : "errno " + std::to_string(code);
}

std::string describe(const Error& error) {
  std::string line = error.operation;
  if (error.detail[0] != '\0') line += std::string(": ") + error.detail;
  const char* text = sys::error_text(error.code);
  if (text == nullptr) return line + ": " + errno_name(error.code);
  return line + ": " + text + " (" + errno_name(error.code) + ')';
}

int report(const Error& error) {
  // One write, so that lines of several threads stay whole; nothing is left to tell where stderr itself fails.
  std::fputs((describe(error) + '\n').c_str(), stderr);
  return 1;
}

int report(const Result<void>& result) { return result ? 0 : report(result.error()); }

}  // namespace vigil
