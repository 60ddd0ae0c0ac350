// Bytes: a borrowed, read-only view of bytes; Buffer: a borrowed place to put some.
//
// Thread: plain values, as std::span. Ownership: neither owns anything; who passes one keeps the bytes alive for as long as the
// function called says (in vigil: until the call returns, never longer).
//
//   peer.send("hello\n");                       // text, std::string, std::string_view
//   peer.send(vigil::Bytes(&header, sizeof header));
//   std::array<std::byte, 4096> storage;        // a Buffer is any contiguous std::byte storage
//   vigil::receive(socket, storage);
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>

namespace vigil {

using Buffer = std::span<std::byte>;

class Bytes {
 public:
  constexpr Bytes() = default;
  constexpr Bytes(std::span<const std::byte> bytes) : bytes_(bytes) {}
  Bytes(const void* data, std::size_t size) : bytes_(static_cast<const std::byte*>(data), size) {}

  /// Anything that reads as text: a literal (up to its NUL), std::string, std::string_view.
  template <class Text>
  requires(std::is_convertible_v<const Text&, std::string_view>) Bytes(const Text& text)
      : Bytes(std::string_view(text).data(), std::string_view(text).size()) {}

  /// Anything that is contiguous std::byte storage: Buffer, std::array, std::vector.
  template <class Storage>
  requires(!std::is_same_v<Storage, Bytes> && !std::is_same_v<Storage, std::span<const std::byte>> &&
           !std::is_convertible_v<const Storage&, std::string_view> &&
           std::is_convertible_v<const Storage&, std::span<const std::byte>>) constexpr Bytes(const Storage& storage)
      : bytes_(storage) {}

  [[nodiscard]] constexpr const std::byte* data() const { return bytes_.data(); }
  [[nodiscard]] constexpr std::size_t size() const { return bytes_.size(); }
  [[nodiscard]] constexpr bool empty() const { return bytes_.empty(); }
  [[nodiscard]] constexpr const std::byte* begin() const { return data(); }
  [[nodiscard]] constexpr const std::byte* end() const { return data() + size(); }

  /// The same bytes as text; nothing is copied and nothing is terminated.
  [[nodiscard]] std::string_view text() const { return {reinterpret_cast<const char*>(data()), size()}; }

  /// The first `count` bytes; all of them if there are fewer.
  [[nodiscard]] constexpr Bytes first(std::size_t count) const { return bytes_.first(count < size() ? count : size()); }

  /// All but the first `count` bytes; nothing if there are fewer.
  [[nodiscard]] constexpr Bytes without_first(std::size_t count) const { return bytes_.subspan(count < size() ? count : size()); }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace vigil
