// Bytes in at the back, out at the front: what a simulated kernel holds of a stream.
//
// Thread: its owner's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace vigil::sim {

class ByteQueue {
 public:
  [[nodiscard]] std::size_t size() const { return bytes_.size() - head_; }
  [[nodiscard]] bool empty() const { return size() == 0; }
  [[nodiscard]] std::string_view view() const { return std::string_view(bytes_).substr(head_); }
  /// At most `most` bytes from `offset` on.
  [[nodiscard]] std::string_view view(std::size_t offset, std::size_t most) const { return view().substr(offset, most); }

  void append(std::string_view bytes) { bytes_.append(bytes); }

  void drop(std::size_t count) {
    head_ += count;
    if (head_ == bytes_.size()) {
      bytes_.clear();
      head_ = 0;
    } else if (head_ > 4096 && head_ > bytes_.size() / 2) {
      bytes_.erase(0, head_);
      head_ = 0;
    }
  }
  void clear() { drop(size()); }

 private:
  std::string bytes_;
  std::size_t head_ = 0;
};

}  // namespace vigil::sim
