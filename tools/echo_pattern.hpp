// The bytes that are sent and expected back: a sequence that tells its own position, so that a byte lost, doubled, shifted or
// delivered to the wrong connection is noticed and not only a byte that changed.
//
// It is pseudo-random with a period that is prime, and that divides no message's size: no two messages in a row look alike.
//
// Thread: any; it never changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vigil/bytes.hpp"

namespace vigil::tools {

class EchoPattern {
 public:
  static constexpr std::size_t longest_piece = 256 * 1024;

  explicit EchoPattern(std::size_t message_bytes);

  /// `size` bytes from a position on; at most longest_piece.
  [[nodiscard]] Bytes at(std::size_t position, std::size_t size) const { return Bytes(bytes_.data() + position, size); }

  /// Where the stream stands after `size` more bytes. Positions are below period().
  [[nodiscard]] std::size_t advance(std::size_t position, std::size_t size) const { return (position + size) % period_; }

  /// How many of `bytes` are right, if they are to stand at `position`.
  [[nodiscard]] std::size_t right_bytes(std::size_t position, Bytes bytes) const;

  [[nodiscard]] std::size_t period() const { return period_; }

 private:
  std::size_t period_;
  std::vector<std::byte> bytes_;  // one period and the longest piece more, so that every piece is contiguous
};

}  // namespace vigil::tools
