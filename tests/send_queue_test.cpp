// The send queue against a std::string that is appended to and erased from.
#include "send_queue.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

namespace {

using vigil::Bytes;
using vigil::SendChunk;
using vigil::SendChunkPool;
namespace send_queue = vigil::send_queue;

/// What the pieces for one system call hold.
std::string first_bytes(SendChunk* queue, std::size_t pieces_max) {
  std::string bytes;
  iovec pieces[64];
  REQUIRE(pieces_max <= 64);
  const std::size_t count = send_queue::first_pieces(queue, pieces, pieces_max);
  for (std::size_t index = 0; index < count; ++index) {
    CHECK(pieces[index].iov_len > 0);
    bytes.append(static_cast<const char*>(pieces[index].iov_base), pieces[index].iov_len);
  }
  return bytes;
}

std::string random_bytes(std::mt19937_64& random, std::size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST_CASE("an empty queue owns nothing") {
  SendChunkPool pool;
  SendChunk* queue = nullptr;
  CHECK(send_queue::append(pool, queue, Bytes()));
  CHECK(queue == nullptr);
  CHECK(first_bytes(queue, 1).empty());
  send_queue::consume(pool, queue, 0);
  send_queue::clear(pool, queue);
  CHECK(pool.in_use() == 0);
}

TEST_CASE("a queue gives back what was appended, whatever the sizes") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    SendChunkPool pool;
    SendChunk* queue = nullptr;
    std::string model;
    // Sizes around those of a chunk, small ones, and large ones.
    const std::size_t edges[] = {1, SendChunk::capacity() - 1, SendChunk::capacity(), SendChunk::capacity() + 1,
                                 3 * SendChunk::capacity()};
    for (int step = 0; step < 300; ++step) {
      const std::uint64_t choice = random() % 8;
      if (choice < 4) {
        std::size_t size = choice == 0 ? edges[random() % 5] : random() % (choice == 1 ? 60'000 : 500);
        const std::string bytes = random_bytes(random, size);
        REQUIRE(send_queue::append(pool, queue, bytes));
        model += bytes;
      } else {
        const std::size_t size = std::min<std::size_t>(model.size(), choice == 4 ? edges[random() % 5] : random() % 40'000);
        send_queue::consume(pool, queue, size);
        model.erase(0, size);
      }
      const std::size_t pieces_max = 1 + random() % 64;
      const std::string seen = first_bytes(queue, pieces_max);
      CHECK((model.compare(0, seen.size(), seen) == 0));
      CHECK((queue == nullptr) == model.empty());
      if (pieces_max == 64) CHECK((seen.size() == model.size() || seen.size() > 63 * 1024));
      // Chunks are filled before the next is begun: at most the first and the last are partly used.
      CHECK(pool.in_use() <= model.size() / SendChunk::capacity() + 2);
    }
    send_queue::clear(pool, queue);
    CHECK(queue == nullptr);
    CHECK(pool.in_use() == 0);
  }
}

TEST_CASE("appending fills the last chunk before it takes another") {
  SendChunkPool pool;
  SendChunk* queue = nullptr;
  for (std::size_t count = 0; count < SendChunk::capacity(); ++count) REQUIRE(send_queue::append(pool, queue, "x"));
  CHECK(pool.in_use() == 1);
  REQUIRE(send_queue::append(pool, queue, "y"));
  CHECK(pool.in_use() == 2);
  send_queue::consume(pool, queue, SendChunk::capacity());
  CHECK(pool.in_use() == 1);
  CHECK(first_bytes(queue, 16) == "y");
  send_queue::clear(pool, queue);
}

TEST_CASE("queues of one pool share its chunks, and chunks given back are used again") {
  SendChunkPool pool;
  SendChunk* first = nullptr;
  SendChunk* second = nullptr;
  REQUIRE(send_queue::append(pool, first, std::string(100'000, 'a')));
  REQUIRE(send_queue::append(pool, second, std::string(50'000, 'b')));
  const std::size_t in_use = pool.in_use();
  send_queue::clear(pool, first);
  CHECK(pool.in_use() < in_use);
  CHECK(first_bytes(second, 16) == std::string(50'000, 'b'));
  REQUIRE(send_queue::append(pool, first, std::string(100'000, 'c')));
  CHECK(pool.in_use() == in_use);
  CHECK(first_bytes(first, 16) == std::string(100'000, 'c'));
  send_queue::clear(pool, first);
  send_queue::clear(pool, second);
  CHECK(pool.in_use() == 0);
}

TEST_CASE("a pool keeps a bounded number of free chunks") {
  SendChunkPool pool;
  SendChunk* queue = nullptr;
  REQUIRE(send_queue::append(pool, queue, std::string(200 * SendChunk::capacity(), 'x')));
  CHECK(pool.in_use() == 200);
  send_queue::clear(pool, queue);  // the sanitizer would see one used after it went back to the allocator
  CHECK(pool.in_use() == 0);
  REQUIRE(send_queue::append(pool, queue, std::string(100 * SendChunk::capacity(), 'y')));
  CHECK(first_bytes(queue, 2) == std::string(2 * SendChunk::capacity(), 'y'));
  send_queue::clear(pool, queue);
}

}  // namespace
