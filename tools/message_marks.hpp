// Tells a connection where its messages begin and end, for the deadlines that look at each message by itself.
//
// Thread: the reactor's. One for each connection, told of all that it receives, in order.
#pragma once

#include <cstddef>

#include "vigil/bytes.hpp"
#include "vigil/connection.hpp"
#include "vigil/timeouts.hpp"

namespace vigil::tools {

class MessageMarks {
 public:
  /// With size 0 a message is a line. Where `timeouts` look at no message, marking costs a comparison and does nothing.
  MessageMarks(const Timeouts& timeouts, std::size_t message_bytes);

  void mark(Connection& connection, Bytes received) {
    if (needed_) find_last_end(connection, received);
  }

 private:
  void find_last_end(Connection& connection, Bytes received);

  bool needed_;
  std::size_t message_bytes_;
  std::size_t begun_bytes_ = 0;  // of a message of that size
};

}  // namespace vigil::tools
