#include "flood.hpp"

#include <array>

namespace vigil::tools {

void Flood::fill(Connection& connection) const {
  (void)reactor_->post([flood = *this, handle = connection.handle()] {
    if (handle->is_open()) flood.send_some(*handle);
  });
}

void Flood::send_some(Connection& connection) const {
  constexpr int pieces_at_once = 32;
  static constexpr std::array<std::byte, 64 * 1024> piece{};
  for (int pieces = 0; pieces < pieces_at_once; ++pieces) {
    const std::size_t queued = connection.backlog_bytes();
    if (queued > mark_) return;
    if (!connection.send(Bytes(piece).first(mark_ + 1 - queued))) return;
  }
  fill(connection);
}

}  // namespace vigil::tools
