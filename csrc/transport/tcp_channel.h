// TCP: a header, then the shard's bytes, straight from and to the caller's arrays; replies overlap requests.
//
// Invariants
// - The server's buffers are sized by its own shard, never by what a header claims.
// - The data thread receives and never waits to send: what does not leave at once is sent by the channel's own thread,
//   so a client that does not read its replies yet keeps neither its next gradient nor anybody's update waiting.
// - No request is taken while max_inflight replies have not left: a client that never reads its replies waits, and
// holds
//   a bounded number of them and of versions.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "transport/channel.h"

namespace distnet {

class TcpServerChannel final : public ServerChannel {
 public:
  TcpServerChannel(const ChannelShape& shape, const Tuning& tuning, Socket socket);
  ~TcpServerChannel() override;

  std::optional<Request> next() override;
  void reply(const ReplyHeader& header, ReplyPayload payload) override;
  void settled(std::uint64_t push) override;
  void stop_taking() override;
  void close() override;
  bool was_cut_off() const override { return cut_off_; }
  std::uint64_t bytes_received() const override { return bytes_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  struct Outgoing {
    ReplyHeader header;
    ReplyPayload payload;
    std::vector<std::byte> rest;  // where it is not empty: all that is left to send
  };

  template <typename Room>
  bool wait_for(const Room& room);
  bool send_at_once(Outgoing& outgoing);
  void send(const Outgoing& outgoing);
  void send_replies();

  const ChannelShape shape_;
  Socket socket_;
  Region slots_;
  std::vector<float> bounce_;  // of whoever is sending: live parameters pass through it float by float

  std::mutex mutex_;  // guards what follows; never held over I/O
  std::condition_variable changed_;
  std::deque<Outgoing> outgoing_;
  bool sending_ = false;
  bool stopped_ = false;
  bool closed_ = false;
  std::uint64_t settled_ = 0;

  bool cut_off_ = false;  // of the data thread; read when it has ended
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> bytes_sent_{0};
  std::thread sender_;
};

class TcpClientChannel final : public ClientChannel {
 public:
  TcpClientChannel(const ChannelShape& shape, const Tuning& tuning, Socket socket);

  bool has_room(std::uint64_t) override { return true; }  // the server stops reading where it has none
  bool stage(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) override;
  void post(const RequestHeader& request) override;
  bool flush() override;
  bool receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) override;
  void wait(milliseconds at_most) override;
  int poll_fd() const override { return socket_.fd(); }
  short poll_events() const override;
  TransportKind kind() const override { return TransportKind::kTcp; }
  void close() override { socket_.shutdown(); }

 private:
  void finish_receiving(ReplyHeader& reply);

  const ChannelShape shape_;
  Socket socket_;
  std::vector<float> scaled_;
  std::vector<SourcePiece> gradient_;
  RequestHeader request_{};
  std::uint64_t send_position_ = 0;  // bytes of header and payload sent
  std::uint64_t send_total_ = 0;
  ReplyHeader reply_{};
  std::uint64_t receive_position_ = 0;
};

}  // namespace distnet
