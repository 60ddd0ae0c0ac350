#include "message_marks.hpp"

#include <string_view>

namespace vigil::tools {
namespace {

bool is_set(Timeout timeout) { return !timeout.is_inherit() && !timeout.is_never(); }
bool is_set(const Rate& rate) { return !rate.is_inherit() && !rate.is_never(); }

}  // namespace

MessageMarks::MessageMarks(const Timeouts& timeouts, std::size_t message_bytes)
    : needed_(is_set(timeouts.message) || is_set(timeouts.receive_rate)), message_bytes_(message_bytes) {}

/// A piece may end any number of messages, and begin one more. One that ends none goes on with the message under way, or begins
/// one, which the connection knows by itself.
void MessageMarks::find_last_end(Connection& connection, Bytes received) {
  std::size_t begun = 0;  // bytes behind the last end
  if (message_bytes_ == 0) {
    const std::size_t last_end = received.text().rfind('\n');
    if (last_end == std::string_view::npos) return;
    begun = received.size() - 1 - last_end;
  } else {
    const bool ends_one = received.size() >= message_bytes_ - begun_bytes_;
    begun_bytes_ = (begun_bytes_ + received.size()) % message_bytes_;
    if (!ends_one) return;
    begun = begun_bytes_;
  }
  connection.end_message();
  if (begun > 0) connection.begin_message();
}

}  // namespace vigil::tools
