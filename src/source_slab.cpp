#include "source_slab.hpp"

#include <algorithm>
#include <cassert>
#include <new>

namespace vigil {

constinit const SourceOperations SourceSlab::vacant{
    [](ReactorCore&, Source&, Readiness) noexcept {}, nullptr, nullptr, nullptr, nullptr, nullptr};

SourceSlab::SourceSlab(std::size_t bytes, std::size_t align, Construct make, std::uint32_t last_generation)
    : slot_bytes_((bytes + align - 1) / align * align), alignment_(align), construct_(make), generation_max_(last_generation) {}

SourceSlab::~SourceSlab() {
  // Sources are trivially abandoned: the reactor has ended every life before its slabs go.
  for (void* chunk : chunks_) ::operator delete(chunk, std::align_val_t(alignment_));
}

Source* SourceSlab::take() {
  if (vacant_.empty() && !grow()) return nullptr;
  Source* source = vacant_.back();
  vacant_.pop_back();
  ++taken_;
  return source;
}

void SourceSlab::give_back(Source& source) {
  assert(source.operations_ != &vacant && !source.armed());
  source.operations_ = &vacant;
  source.descriptor_ = -1;
  source.lists_ = 0;
  --taken_;
  if (source.generation_++ < generation_max_) vacant_.push_back(&source);
}

bool SourceSlab::grow() {
  // Chunks double up to 1,024 slots: a small program stays small, a large one allocates rarely.
  const std::size_t count = std::clamp<std::size_t>(sources_.size(), 8, 1024);
  const std::size_t slots = sources_.size() + count;
  if (!chunks_.reserve(chunks_.size() + 1) || !sources_.reserve(slots) || !vacant_.reserve(slots)) return false;
  void* chunk = ::operator new(count* slot_bytes_, std::align_val_t(alignment_), std::nothrow);
  if (chunk == nullptr) return false;
  chunks_.push_back(chunk);
  for (std::size_t index = count; index-- > 0;) {
    Source* source = construct_(static_cast<std::byte*>(chunk) + index * slot_bytes_);
    source->operations_ = &vacant;
    sources_.push_back(source);
    vacant_.push_back(source);
  }
  return true;
}

}  // namespace vigil
