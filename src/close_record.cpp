#include "vigil/close_record.hpp"

#include <array>
#include <cinttypes>
#include <cstdio>

#include "vigil/result.hpp"

namespace vigil {
namespace {

struct ReasonText {
  const char* name;
  const char* meaning;
};

// In the order of the enumeration.
constexpr std::array<ReasonText, close_reason_count> reason_texts{{
    {"local_close", "this program closed it"},
    {"peer_finished", "the peer ended its stream in order, and everything it sent was delivered"},
    {"peer_reset", "the peer reset the connection, or finished and reset while it was owed data"},
    {"connect_refused", "nobody listens there: the attempt was rejected"},
    {"connect_timed_out", "the attempt got no answer in time"},
    {"connect_unreachable", "there is no way to the host"},
    {"connect_failed", "the attempt failed"},
    {"self_connect", "the attempt reached its own socket"},
    {"accept_shed", "closed at once: no descriptor or memory was left for it"},
    {"first_byte_timed_out", "not a single byte came in time"},
    {"receive_timed_out", "no byte came for too long"},
    {"message_timed_out", "a message that had begun did not end in time"},
    {"receive_too_slow", "the peer sent fewer bytes in a window than it must"},
    {"send_timed_out", "the peer acknowledged nothing for too long while bytes were outstanding"},
    {"send_too_slow", "the peer acknowledged fewer bytes in a window than it must, though more were outstanding"},
    {"drain_timed_out", "the peer finished, and the handler neither sent nor closed in time"},
    {"heartbeat_lost", "the peer gave no sign of life for as long as its heartbeat allows"},
    {"network_timed_out", "the kernel gave up on the peer: its probes or retransmissions went unanswered"},
    {"network_unreachable", "the kernel lost the way to the peer"},
    {"backlog_full", "a send would have passed the bound on queued bytes"},
    {"message_too_large", "the handler left more bytes unconsumed than may wait for the rest of a message"},
    {"server_stopping", "the program is shutting down"},
    {"system_error", "an operation failed"},
}};

std::string seconds(Duration duration) {
  char text[40];
  std::snprintf(text, sizeof text, "%.3f s", static_cast<double>(duration.count()) * 1e-9);
  return text;
}

std::string milliseconds(Duration duration) {
  char text[40];
  std::snprintf(text, sizeof text, "%.3f", static_cast<double>(duration.count()) * 1e-6);
  return text;
}

}  // namespace

const char* to_string(CloseReason reason) { return reason_texts.at(static_cast<std::size_t>(reason)).name; }
const char* meaning(CloseReason reason) { return reason_texts.at(static_cast<std::size_t>(reason)).meaning; }

const char* to_string(Origin origin) {
  constexpr const char* names[] = {"local", "peer", "network", "policy"};
  return names[static_cast<std::size_t>(origin)];
}

const char* to_string(Phase phase) {
  constexpr const char* names[] = {"connecting", "open", "draining"};
  return names[static_cast<std::size_t>(phase)];
}

const char* to_string(CutShort cut_short) {
  constexpr const char* names[] = {"none", "reset", "timed_out"};
  return names[static_cast<std::size_t>(cut_short)];
}

std::string describe(const CloseRecord& record) {
  std::string line = to_string(record.reason);
  line += std::string(" (") + to_string(record.origin) + ", " + to_string(record.phase) + "): ";
  if (record.error_number != 0) line += describe(Error{record.operation, record.error_number}) + "; ";
  line += "received " + std::to_string(record.received) + ", handed to the kernel " + std::to_string(record.handed_to_kernel);
  const auto count_unless_zero = [&line](const char* name, std::uint64_t bytes) {
    if (bytes != 0) line += std::string(", ") + name + " " + std::to_string(bytes);
  };
  count_unless_zero("unacknowledged", record.unacknowledged.value_or(0));
  count_unless_zero("unsent", record.unsent);
  count_unless_zero("left unread", record.left_unread);
  count_unless_zero("unconsumed", record.unconsumed);
  if (record.verdict)
    line += std::string(", the peer is ") + (*record.verdict == Verdict::unknown ? "lost: " : "") + to_string(*record.verdict);
  line += ", age " + seconds(record.age) + ", silent " + seconds(record.silence);
  if (record.cut_short != CutShort::none) line += std::string(", cut short: ") + to_string(record.cut_short);
  return line;
}

std::string to_json(const CloseRecord& record) {
  std::string object = "{";
  // Every text is one of our own names, so nothing needs escaping.
  const auto text = [&object](const char* key, const char* value) {
    if (object.size() > 1) object += ',';
    object += std::string("\"") + key + "\":" + (value == nullptr ? "null" : '"' + std::string(value) + '"');
  };
  const auto number = [&object](const char* key, const std::string& value) {
    object += std::string(",\"") + key + "\":" + value;
  };
  text("reason", to_string(record.reason));
  text("verdict", record.verdict ? to_string(*record.verdict) : nullptr);
  text("origin", to_string(record.origin));
  text("phase", to_string(record.phase));
  number("errno", std::to_string(record.error_number));
  text("operation", record.operation[0] == '\0' ? nullptr : record.operation);
  number("received", std::to_string(record.received));
  number("handed_to_kernel", std::to_string(record.handed_to_kernel));
  number("unacknowledged", record.unacknowledged ? std::to_string(*record.unacknowledged) : "null");
  number("unsent", std::to_string(record.unsent));
  number("left_unread", std::to_string(record.left_unread));
  number("unconsumed", std::to_string(record.unconsumed));
  number("age_ms", milliseconds(record.age));
  number("silent_ms", milliseconds(record.silence));
  text("cut_short", to_string(record.cut_short));
  number("evidence", record.evidence ? to_json(*record.evidence) : "null");
  return object + '}';
}

}  // namespace vigil
