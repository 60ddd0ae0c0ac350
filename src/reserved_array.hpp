// A growing array whose growth may be refused: room is reserved first, which answers whether there was memory, and then filled
// without allocating.
//
// Thread: its owner's. Elements are plain values.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace vigil {

template <class Element>
class ReservedArray {
  static_assert(std::is_trivially_copyable_v<Element> && alignof(Element) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);

 public:
  ReservedArray() = default;
  ReservedArray(const ReservedArray&) = delete;
  ReservedArray& operator=(const ReservedArray&) = delete;
  ~ReservedArray() { ::operator delete(elements_); }

  /// Room for `capacity` elements in all. False: no memory, and nothing has changed.
  [[nodiscard]] bool reserve(std::size_t capacity) {
    if (capacity <= capacity_) return true;
    void* larger = ::operator new(capacity * sizeof(Element), std::nothrow);
    if (larger == nullptr) return false;
    if (size_ != 0) std::memcpy(larger, elements_, size_ * sizeof(Element));
    ::operator delete(elements_);
    elements_ = static_cast<Element*>(larger);
    capacity_ = capacity;
    return true;
  }
  /// There is room: it was reserved.
  void push_back(const Element& element) {
    assert(size_ < capacity_);
    ::new (static_cast<void*>(elements_ + size_)) Element(element);
    ++size_;
  }
  void pop_back() { --size_; }
  void clear() { size_ = 0; }
  void swap(ReservedArray& other) {
    std::swap(elements_, other.elements_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] const Element& back() const { return elements_[size_ - 1]; }
  [[nodiscard]] const Element& operator[](std::size_t index) const { return elements_[index]; }
  [[nodiscard]] const Element* begin() const { return elements_; }
  [[nodiscard]] const Element* end() const { return elements_ + size_; }

 private:
  Element* elements_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace vigil
