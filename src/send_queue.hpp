// Bytes the kernel did not take: a connection's list of chunks, drawn from its reactor's pool.
//
// Thread: the reactor's. A queue is one pointer in its connection (null: empty) so that an idle one owns nothing; who holds it
// counts its bytes. A chunk belongs to exactly one queue, or to the pool.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sys/sys.hpp"
#include "vigil/bytes.hpp"

namespace vigil {

struct SendChunk {
  static constexpr std::size_t chunk_bytes = 16 * 1024;

  SendChunk* next = nullptr;
  SendChunk* last = nullptr;  // of the whole queue; valid in its first chunk
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  [[nodiscard]] std::byte* bytes() { return reinterpret_cast<std::byte*>(this + 1); }
  static constexpr std::size_t capacity();
};

constexpr std::size_t SendChunk::capacity() { return chunk_bytes - sizeof(SendChunk); }

/// Keeps a bounded number of free chunks at hand; more go back to the allocator.
class SendChunkPool {
 public:
  SendChunkPool() = default;
  ~SendChunkPool();
  SendChunkPool(const SendChunkPool&) = delete;
  SendChunkPool& operator=(const SendChunkPool&) = delete;

  [[nodiscard]] SendChunk* take();  ///< null: out of memory
  void give_back(SendChunk* chunk);
  [[nodiscard]] std::size_t in_use() const { return in_use_; }

 private:
  static constexpr std::size_t kept_max = 64;  // 1 MiB
  SendChunk* free_ = nullptr;
  std::size_t kept_ = 0;
  std::size_t in_use_ = 0;
};

namespace send_queue {

/// Copies `bytes` behind what is queued. False: out of memory, and nothing was appended.
[[nodiscard]] bool append(SendChunkPool& pool, SendChunk*& queue, Bytes bytes);

/// The first pieces, at most `pieces_max`, for one system call; returns how many.
[[nodiscard]] std::size_t first_pieces(SendChunk* queue, iovec* pieces, std::size_t pieces_max);

/// Drops the first `count` bytes, which must be there.
void consume(SendChunkPool& pool, SendChunk*& queue, std::size_t count);

void clear(SendChunkPool& pool, SendChunk*& queue);

}  // namespace send_queue
}  // namespace vigil
