// What a fuzz target takes out of its input: numbers, choices and bytes, as long as there are any; after that zeros. Every input
// means something, so that a fuzzer that changes a byte changes one decision, and one that appends adds decisions.
//
// Each number takes as few bytes as its range needs. Clang's FuzzedDataProvider is not used: it comes with clang alone, and the
// corpus is run with every compiler.
//
// Thread: one. Ownership: the bytes belong to the caller and live as long as the input.
//
//   Input input(data, size);
//   while (!input.empty()) {
//     switch (input.below(3)) {
//       case 0: write(input.text(input.below(4096))); break;
//       case 1: advance(Duration(input.of_any_size(40))); break;
//       default: close(); break;
//     }
//   }
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vigil::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  [[nodiscard]] std::size_t size() const { return rest_.size(); }

  [[nodiscard]] std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const std::uint8_t taken = rest_.front();
    rest_ = rest_.subspan(1);
    return taken;
  }

  /// A number of `bits` bits, 0 to 64; lowest byte first.
  [[nodiscard]] std::uint64_t bits(unsigned bits) {
    std::uint64_t number = 0;
    for (unsigned taken = 0; taken < bits; taken += 8) number |= std::uint64_t{byte()} << taken;
    return bits < 64 ? number & ((std::uint64_t{1} << bits) - 1) : number;
  }

  /// 0 to bound - 1. A bound of 0 or 1 takes no byte and gives 0.
  [[nodiscard]] std::uint64_t below(std::uint64_t bound) {
    return bound < 2 ? 0 : bits(static_cast<unsigned>(std::bit_width(bound - 1) + 7) / 8 * 8) % bound;
  }

  /// first to last, both included.
  [[nodiscard]] std::uint64_t between(std::uint64_t first, std::uint64_t last) {
    const std::uint64_t above = last - first;
    return first + (above == ~std::uint64_t{0} ? bits(64) : below(above + 1));
  }

  /// True for one value in `count`: what should happen seldom.
  [[nodiscard]] bool one_in(std::uint64_t count) { return below(count) == count - 1; }
  [[nodiscard]] bool flag() { return (byte() & 1U) != 0; }

  /// One of a table's entries.
  template <class Table>
  [[nodiscard]] const auto& one_of(const Table& table) {
    return std::data(table)[below(std::size(table))];
  }

  /// A number of at most `bits_max` bits (0 to 64), of which small ones are as frequent as large ones: first how many bits it
  /// has, then the bits.
  [[nodiscard]] std::uint64_t of_any_size(unsigned bits_max) { return bits(static_cast<unsigned>(below(bits_max + 1U))); }

  /// The next `count` bytes; fewer if there are no more.
  [[nodiscard]] std::string_view text(std::size_t count) {
    const auto taken = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }

  /// All up to the next `separator`, which is dropped; the whole rest if there is none.
  [[nodiscard]] std::string_view text_until(char separator) {
    const auto place = std::find(rest_.begin(), rest_.end(), static_cast<std::uint8_t>(separator));
    const std::string_view taken = text(static_cast<std::size_t>(place - rest_.begin()));
    (void)byte();
    return taken;
  }

  [[nodiscard]] std::string_view rest() { return text(rest_.size()); }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace vigil::fuzz
