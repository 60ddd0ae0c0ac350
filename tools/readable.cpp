#include "readable.hpp"

#include <array>
#include <cstdio>

namespace vigil::tools {
namespace {

/// Three significant digits, and all of those before the point.
std::string three_digits(double value, const char* unit) {
  char text[64];
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  std::snprintf(text, sizeof text, "%.*f %s", decimals, value, unit);
  return text;
}

}  // namespace

std::string grouped(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t from_end = 3; from_end < digits.size(); from_end += 4) digits.insert(digits.size() - from_end, 1, ',');
  return digits;
}

std::string readable(Duration duration) {
  const auto nanoseconds = static_cast<double>(duration.count());
  if (nanoseconds >= 999.5e6) return three_digits(nanoseconds * 1e-9, "s");
  if (nanoseconds >= 999.5e3) return three_digits(nanoseconds * 1e-6, "ms");
  if (nanoseconds >= 1e3) return three_digits(nanoseconds * 1e-3, "µs");
  return std::to_string(duration.count()) + " ns";
}

std::string readable_bytes(double bytes) {
  constexpr std::array<const char*, 5> units{"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1023.5 && unit + 1 < units.size()) {
    bytes /= 1024;
    ++unit;
  }
  if (unit > 0) return three_digits(bytes, units[unit]);
  return std::to_string(static_cast<std::uint64_t>(bytes)) + " B";
}

}  // namespace vigil::tools
