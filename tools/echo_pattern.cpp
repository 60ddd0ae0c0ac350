#include "echo_pattern.hpp"

#include <algorithm>
#include <cstring>
#include <random>

namespace vigil::tools {

// 131071 and 65537 are primes: a size below 2^33 that both divide does not exist.
EchoPattern::EchoPattern(std::size_t message_bytes)
    : period_(message_bytes % 131'071 != 0 ? 131'071 : 65'537), bytes_(period_ + longest_piece) {
  std::mt19937 random(7);  // the same in every run, so that a wrong byte can be looked at again
  for (std::size_t position = 0; position < period_; ++position) bytes_[position] = static_cast<std::byte>(random() >> 24);
  for (std::size_t position = period_; position < bytes_.size(); ++position) bytes_[position] = bytes_[position - period_];
}

std::size_t EchoPattern::right_bytes(std::size_t position, Bytes bytes) const {
  std::size_t right = 0;
  while (right < bytes.size()) {
    const Bytes piece = bytes.without_first(right).first(longest_piece);
    const Bytes expected = at(advance(position, right), piece.size());
    if (std::memcmp(piece.data(), expected.data(), piece.size()) == 0) {
      right += piece.size();
      continue;
    }
    const auto [wrong, other] = std::mismatch(piece.begin(), piece.end(), expected.begin());
    return right + static_cast<std::size_t>(wrong - piece.begin());
  }
  return right;
}

}  // namespace vigil::tools
