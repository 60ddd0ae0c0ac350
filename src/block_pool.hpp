// Blocks of memory of one size, a bounded number of which is kept for reuse; more go back to the allocator.
//
// Thread: its owner's. Every block is back before the pool goes.
#pragma once

#include <cassert>
#include <cstddef>
#include <new>

namespace vigil {

class BlockPool {
 public:
  /// Blocks of `block_bytes` (at least a pointer's), aligned as operator new aligns.
  BlockPool(std::size_t block_bytes, std::size_t kept_max) : block_bytes_(block_bytes), kept_max_(kept_max) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool() {
    assert(in_use_ == 0);
    while (free_ != nullptr) {
      Free* next = free_->next;
      ::operator delete(free_);
      free_ = next;
    }
  }

  /// Null: out of memory.
  [[nodiscard]] void* take() {
    void* block = free_;
    if (free_ != nullptr) {
      free_ = free_->next;
      --kept_;
    } else {
      block = ::operator new(block_bytes_, std::nothrow);
      if (block == nullptr) return nullptr;
    }
    ++in_use_;
    return block;
  }

  void give_back(void* block) {
    --in_use_;
    if (kept_ == kept_max_) return ::operator delete(block);
    free_ = ::new (block) Free{free_};
    ++kept_;
  }

  [[nodiscard]] std::size_t in_use() const { return in_use_; }

 private:
  struct Free {
    Free* next;
  };

  std::size_t block_bytes_;
  std::size_t kept_max_;
  Free* free_ = nullptr;
  std::size_t kept_ = 0;
  std::size_t in_use_ = 0;
};

}  // namespace vigil
