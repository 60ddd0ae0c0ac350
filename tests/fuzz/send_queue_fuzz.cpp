// The send queue against a std::string for each queue of one pool: what was appended comes out in order, in as few chunks as it
// needs, and every chunk is back in the pool at the end.
#include "send_queue.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

#include "expect.hpp"
#include "input.hpp"
#include "target.hpp"

namespace {

using vigil::Bytes;
using vigil::SendChunk;
using vigil::SendChunkPool;
using vigil::fuzz::expect;
using vigil::fuzz::Input;
namespace send_queue = vigil::send_queue;

constexpr std::size_t queue_bytes_max = 1024 * 1024;  // so that an input of a few bytes takes no time
constexpr std::size_t pieces_limit = 80;              // more than hold queue_bytes_max

/// A queue and what it should hold.
class Modelled {
 public:
  void append(SendChunkPool& pool, std::size_t size) {
    std::string bytes(std::min(size, queue_bytes_max - expected_.size()), '\0');
    for (char& byte : bytes) byte = static_cast<char>(counter_++ * 0x9e3779b1U >> 24);  // no two chunks hold the same
    expect(send_queue::append(pool, queue_, bytes), "appending succeeds while there is memory");
    expected_ += bytes;
  }

  void consume(SendChunkPool& pool, std::size_t size) {
    size = std::min(size, expected_.size());
    send_queue::consume(pool, queue_, size);
    expected_.erase(0, size);
    consumed_of_first_ = expected_.empty() ? 0 : (consumed_of_first_ + size) % SendChunk::capacity();
  }

  void clear(SendChunkPool& pool) {
    send_queue::clear(pool, queue_);
    expected_.clear();
    consumed_of_first_ = 0;
  }

  /// Chunks that bytes without gaps need.
  [[nodiscard]] std::size_t chunks() const {
    return (consumed_of_first_ + expected_.size() + SendChunk::capacity() - 1) / SendChunk::capacity();
  }
  [[nodiscard]] std::size_t size() const { return expected_.size(); }

  void check(std::size_t pieces_max) const {
    expect((queue_ == nullptr) == expected_.empty(), "a queue is null exactly when it is empty");
    std::array<iovec, pieces_limit> pieces{};
    const std::size_t count = send_queue::first_pieces(queue_, pieces.data(), pieces_max);
    expect(count == std::min(pieces_max, chunks()), "there is one piece for each chunk, as many as were asked for");
    std::size_t place = 0;
    for (std::size_t index = 0; index < count; ++index) {
      const auto* bytes = static_cast<const char*>(pieces[index].iov_base);
      expect(pieces[index].iov_len > 0, "no piece is empty");
      expect(expected_.compare(place, pieces[index].iov_len, bytes, pieces[index].iov_len) == 0,
             "the pieces hold what was appended and not consumed yet");
      place += pieces[index].iov_len;
    }
    if (count < pieces_max) expect(place == expected_.size(), "fewer pieces than asked for hold everything");
  }

 private:
  SendChunk* queue_ = nullptr;
  std::string expected_;
  std::size_t consumed_of_first_ = 0;
  unsigned counter_ = 0;
};

/// Sizes around those of whole chunks, where the edges are, or any.
std::size_t some_size(Input& input) {
  if (input.flag()) return input.of_any_size(18);
  const std::size_t chunks = input.between(1, 5) * SendChunk::capacity();
  return chunks + input.below(3) - 1;
}

/// Queues that go back to the pool however the run ends.
struct Queues {
  ~Queues() {
    for (Modelled& queue : all) queue.clear(pool);
  }
  SendChunkPool pool;
  std::array<Modelled, 3> all;
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Queues queues;
  while (!input.empty()) {
    Modelled& queue = queues.all[input.below(queues.all.size())];
    switch (input.below(6)) {
      case 0:
      case 1:
        queue.append(queues.pool, some_size(input));
        break;
      case 2:
      case 3:
        queue.consume(queues.pool, some_size(input));
        break;
      case 4:
        queue.consume(queues.pool, queue.size());
        break;
      default:
        queue.clear(queues.pool);
        break;
    }
    queue.check(input.below(pieces_limit + 1));
    std::size_t chunks = 0;
    for (const Modelled& each : queues.all) chunks += each.chunks();
    expect(queues.pool.in_use() == chunks, "the queues own as many chunks as their bytes need");
  }
  for (Modelled& queue : queues.all) {
    queue.check(pieces_limit);
    queue.clear(queues.pool);
    queue.check(pieces_limit);
  }
  expect(queues.pool.in_use() == 0, "every chunk is back in the pool");
  return 0;
}
