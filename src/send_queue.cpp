#include "send_queue.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <new>

namespace vigil {

namespace send_queue {

bool append(SendChunkPool& pool, SendChunk*& queue, Bytes bytes) {
  // New chunks first, so that running out of memory half-way leaves the queue as it was.
  const std::size_t room = queue == nullptr ? 0 : SendChunk::capacity() - queue->last->end;
  SendChunk* fresh = nullptr;
  SendChunk* fresh_last = nullptr;
  for (std::size_t covered = room; covered < bytes.size(); covered += SendChunk::capacity()) {
    SendChunk* chunk = pool.take();
    if (chunk == nullptr) {
      clear(pool, fresh);
      return false;
    }
    (fresh == nullptr ? fresh : fresh_last->next) = chunk;
    fresh_last = chunk;
  }

  SendChunk* target = queue == nullptr ? fresh : queue->last;
  if (queue != nullptr) {
    queue->last->next = fresh;
  } else {
    queue = fresh;
  }
  if (fresh != nullptr) queue->last = fresh_last;

  for (; !bytes.empty(); target = target->next) {
    const std::size_t size = std::min(bytes.size(), SendChunk::capacity() - target->end);
    std::memcpy(target->bytes() + target->end, bytes.data(), size);
    target->end += static_cast<std::uint32_t>(size);
    bytes = bytes.without_first(size);
  }
  return true;
}

std::size_t first_pieces(SendChunk* queue, iovec* pieces, std::size_t pieces_max) {
  std::size_t count = 0;
  for (SendChunk* chunk = queue; chunk != nullptr && count < pieces_max; chunk = chunk->next)
    pieces[count++] = {chunk->bytes() + chunk->begin, chunk->end - chunk->begin};
  return count;
}

void consume(SendChunkPool& pool, SendChunk*& queue, std::size_t count) {
  while (count > 0) {
    assert(queue != nullptr);
    const std::size_t here = std::min<std::size_t>(count, queue->end - queue->begin);
    queue->begin += static_cast<std::uint32_t>(here);
    count -= here;
    if (queue->begin < queue->end) return;
    SendChunk* emptied = queue;
    queue = emptied->next;
    if (queue != nullptr) queue->last = emptied->last;
    pool.give_back(emptied);
  }
}

void clear(SendChunkPool& pool, SendChunk*& queue) {
  while (queue != nullptr) {
    SendChunk* next = queue->next;
    pool.give_back(queue);
    queue = next;
  }
}

}  // namespace send_queue
}  // namespace vigil
