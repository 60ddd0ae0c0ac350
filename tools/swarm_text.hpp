// What a life's two streams carry: byte i of a stream is a function of the stream and of i, so that whoever receives it can check
// any piece at its place without keeping what was sent.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace vigil::tools {

class SwarmText {
 public:
  static constexpr std::size_t piece_max = 32 * 1024;

  /// What stream `stream` carries from `position` on: `size` bytes, at most piece_max. Valid for the program's life.
  static std::string_view piece(std::uint64_t stream, std::uint64_t position, std::size_t size) {
    return std::string_view(table()).substr((stream * 7919 + position) % period, size < piece_max ? size : piece_max);
  }
  static bool matches(std::uint64_t stream, std::uint64_t position, std::string_view bytes) {
    while (!bytes.empty()) {
      const std::string_view expected = piece(stream, position, bytes.size());
      if (std::memcmp(expected.data(), bytes.data(), expected.size()) != 0) return false;
      position += expected.size();
      bytes.remove_prefix(expected.size());
    }
    return true;
  }

 private:
  static constexpr std::size_t period = 65'521;  // a prime: no power of two misplaced goes unnoticed

  static const std::string& table() {
    static const std::string text = [] {
      std::string made(period + piece_max, '\0');
      std::uint64_t state = 0x9E3779B97F4A7C15U;
      for (std::size_t index = 0; index < period; ++index) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        made[index] = static_cast<char>(state >> 56);
      }
      for (std::size_t index = 0; index < piece_max; ++index) made[period + index] = made[index];
      return made;
    }();
    return text;
  }
};

}  // namespace vigil::tools
