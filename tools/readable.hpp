// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

#include "vigil/time.hpp"

namespace vigil::tools {

/// `1,234,567`.
[[nodiscard]] std::string grouped(std::uint64_t number);

/// `980 ns`, `12.3 µs`, `4.56 ms`, `31.0 s`.
[[nodiscard]] std::string readable(Duration duration);

/// `512 B`, `7.53 MiB`.
[[nodiscard]] std::string readable_bytes(double bytes);

}  // namespace vigil::tools
