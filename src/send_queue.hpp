// Bytes that wait: a connection's list of chunks, drawn from its reactor's pool. What the kernel did not take, and what
// on_receive left.
//
// Thread: the reactor's. A queue is one pointer in its connection (null: empty) so that an idle one owns nothing; who holds it
// counts its bytes. A chunk belongs to exactly one queue, or to the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "block_pool.hpp"
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

class SendChunkPool {
 public:
  [[nodiscard]] SendChunk* take() {  ///< null: out of memory
    void* block = blocks_.take();
    return block == nullptr ? nullptr : ::new (block) SendChunk;
  }
  void give_back(SendChunk* chunk) { blocks_.give_back(chunk); }
  [[nodiscard]] std::size_t in_use() const { return blocks_.in_use(); }

 private:
  static constexpr std::size_t kept_max = 64;  // 1 MiB
  BlockPool blocks_{SendChunk::chunk_bytes, kept_max};
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
