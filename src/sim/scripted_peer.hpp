// The other side of a connection, played by a script: an application without a program.
//
// Thread: the world's. Ownership: the network's, for as long as the world lives.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "sim/byte_queue.hpp"
#include "sim/tcp_end.hpp"
#include "vigil/sim.hpp"

namespace vigil::sim {

class ScriptedPeer final : public Peer, public TcpOwner {
 public:
  explicit ScriptedPeer(SimulatedHost& host) : host_(host) {}

  void send(std::string_view bytes) override;
  void finish() override;
  void close() override;
  void reset() override;
  void stop_reading() override;
  void read_on() override;
  [[nodiscard]] bool connected() const override { return was_told_connected_ && end_ != nullptr && error_ == 0; }
  [[nodiscard]] bool finished() const override { return saw_end_; }
  [[nodiscard]] int error() const override { return error_; }
  [[nodiscard]] std::uint64_t received_bytes() const override { return received_bytes_; }
  [[nodiscard]] std::uint64_t sent_bytes() const override { return sent_bytes_; }
  [[nodiscard]] std::string_view received() const override { return received_; }
  [[nodiscard]] Host& host() const override;

  void tcp_changed(std::uint32_t bits) override;

  /// It owns this end from now on.
  void take(std::shared_ptr<TcpEnd> end);
  /// Its connect fails with this before there is an end.
  void fail(int error) { told_error(error); }
  /// What its host was told while it hung.
  void look();
  /// Its process dies: its kernel closes.
  void die();
  /// Its host is gone.
  void vanish();

 private:
  void call(Callback<void(Peer&)>& callback);
  void push();
  void pull();
  void told_error(int error);
  void let_go();

  SimulatedHost& host_;
  std::shared_ptr<TcpEnd> end_;
  ByteQueue waiting_;  // given to send(), and not yet to the kernel
  std::string received_;
  std::uint64_t received_bytes_ = 0, sent_bytes_ = 0;
  int error_ = 0;
  bool was_told_connected_ = false, saw_end_ = false;
  bool is_reading_ = true;
  bool end_follows_ = false, end_was_given_ = false, close_follows_ = false;
  bool is_looking_ = false, looks_again_ = false;
};

}  // namespace vigil::sim
