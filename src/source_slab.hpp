// Slots for sources of one size. Chunks are never given back while the slab lives: a pointer into it can always be looked at.
//
// A slot's Source is constructed once, with its chunk, and reused: that is what keeps its generation. A slot whose generation has
// used up its range retires instead of being handed out again, so that no handle ever matches a second life.
#pragma once

#include <cstddef>
#include <cstdint>

#include "reserved_array.hpp"
#include "vigil/source.hpp"

namespace vigil {

class SourceSlab {
 public:
  using Construct = Source* (*)(void* slot);

  /// What a vacant slot answers to a late event: nothing.
  static const SourceOperations vacant;

  SourceSlab(std::size_t slot_bytes, std::size_t alignment, Construct make, std::uint32_t generation_max = UINT32_MAX);
  ~SourceSlab();
  SourceSlab(const SourceSlab&) = delete;
  SourceSlab& operator=(const SourceSlab&) = delete;

  /// A vacant slot, or null when there is no memory. Never moves another one.
  [[nodiscard]] Source* take();
  /// Ends the slot's life: its generation grows, and it may be handed out again. Allocates nothing.
  void give_back(Source& source);

  [[nodiscard]] std::size_t slot_bytes() const { return slot_bytes_; }
  [[nodiscard]] std::size_t alignment() const { return alignment_; }
  [[nodiscard]] Construct construct() const { return construct_; }
  [[nodiscard]] std::size_t taken() const { return taken_; }

  template <class Visit>
  void for_each_taken(Visit visit) {
    for (std::size_t index = 0; index < sources_.size(); ++index)  // by index: a visit may take more slots
      if (sources_[index]->operations_ != &vacant) visit(*sources_[index]);
  }

 private:
  bool grow();

  std::size_t slot_bytes_;
  std::size_t alignment_;
  Construct construct_;
  std::uint32_t generation_max_;
  std::size_t taken_ = 0;
  ReservedArray<void*> chunks_;
  ReservedArray<Source*> sources_;
  ReservedArray<Source*> vacant_;  // capacity for every slot, so that giving back can't fail
};

}  // namespace vigil
