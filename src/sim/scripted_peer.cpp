#include "sim/scripted_peer.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

#include "sim/simulated_host.hpp"

namespace vigil::sim {

Host& ScriptedPeer::host() const { return host_; }

void ScriptedPeer::take(std::shared_ptr<TcpEnd> end) {
  end_ = std::move(end);
  end_->owner = this;
  end_->own_side().peer = this;
}

// What the script does --------------------------------------------------------------------------------------------------------

void ScriptedPeer::send(std::string_view bytes) {
  if (end_ == nullptr || end_follows_ || bytes.empty()) return;
  Conversation::Side& side = end_->own_side();
  if (host_.universe.strikes(Fault::urgent_mark, end_->faults()))
    end_->mark_urgent(side.given + host_.universe.random.below(bytes.size()));
  side.given += bytes.size();
  sent_bytes_ += bytes.size();
  waiting_.append(bytes);
  look();
}

void ScriptedPeer::finish() {
  if (end_ == nullptr) return;
  end_follows_ = true;
  look();
}

void ScriptedPeer::close() {
  if (end_ == nullptr) return;
  end_follows_ = close_follows_ = true;
  look();
}

void ScriptedPeer::reset() {
  if (end_ == nullptr) return;
  host_.universe.happened(Fault::peer_reset);
  ++end_->faults();
  end_->reset();
  let_go();
}

void ScriptedPeer::stop_reading() {
  if (!std::exchange(is_reading_, false)) return;
  host_.universe.happened(Fault::peer_stopped_reading);
  if (end_ != nullptr) ++end_->faults();
}

void ScriptedPeer::read_on() {
  is_reading_ = true;
  look();
}

// What its kernel says --------------------------------------------------------------------------------------------------------

void ScriptedPeer::tcp_changed(std::uint32_t) { look(); }

/// Everything there is to do now. A callback may do anything, also end it: the end is looked at anew after each.
void ScriptedPeer::look() {
  if (host_.is_hung) return;
  if (std::exchange(is_looking_, true)) {
    looks_again_ = true;
    return;
  }
  do {
    looks_again_ = false;
    if (end_ != nullptr && !was_told_connected_ && end_->was_established()) {
      was_told_connected_ = true;
      call(on_connected);
    }
    push();
    if (is_reading_) pull();
    if (end_ != nullptr && (end_->poll_state() & POLLERR) != 0 && (end_->unread() == 0 || !is_reading_))
      told_error(end_->take_error());
  } while (looks_again_);
  is_looking_ = false;
}

void ScriptedPeer::call(Callback<void(Peer&)>& callback) {
  if (!callback) return;
  ++host_.universe.script_calls;
  callback(*this);
}

void ScriptedPeer::push() {
  if (end_ == nullptr || !end_->was_established()) {
    if (close_follows_ && end_ != nullptr && !end_->has_ended()) {  // closed before it was connected
      end_->close();
      let_go();
    }
    return;
  }
  while (!waiting_.empty()) {
    const std::string_view bytes = waiting_.view();
    const iovec piece{const_cast<char*>(bytes.data()), bytes.size()};
    const ssize_t sent = end_->send(&piece, 1);
    if (sent == -EAGAIN) return;
    if (sent < 0) {
      waiting_.clear();
      if (sent != -EPIPE) return told_error(static_cast<int>(-sent));
      break;
    }
    waiting_.drop(static_cast<std::size_t>(sent));
    end_->own_side().handed += static_cast<std::size_t>(sent);
    end_->own_side().handed_at = host_.universe.now;
  }
  if (end_follows_ && !std::exchange(end_was_given_, true)) (void)end_->shutdown(SHUT_WR);
  if (!close_follows_) return;
  end_->close();
  let_go();
}

void ScriptedPeer::pull() {
  std::array<char, 16 * 1024> buffer;
  while (end_ != nullptr && is_reading_ && end_->was_established()) {
    const ssize_t size = end_->receive(buffer.data(), buffer.size());
    if (size == -EAGAIN) return;
    if (size < 0) return told_error(static_cast<int>(-size));
    if (size == 0) {
      if (saw_end_ || error_ != 0) return;
      saw_end_ = true;
      call(on_finished);
      return;
    }
    const std::string_view bytes(buffer.data(), static_cast<std::size_t>(size));
    received_bytes_ += bytes.size();
    if (on_receive) {
      ++host_.universe.script_calls;
      on_receive(*this, bytes);
    } else {
      received_.append(bytes);
    }
  }
}

void ScriptedPeer::told_error(int error) {
  if (error_ != 0 || error == 0) return;
  error_ = error;
  waiting_.clear();
  call(on_error);
}

void ScriptedPeer::let_go() {
  end_.reset();
  waiting_.clear();
}

void ScriptedPeer::die() {
  if (end_ == nullptr) return;
  end_->close();
  let_go();
}

void ScriptedPeer::vanish() { let_go(); }

}  // namespace vigil::sim
