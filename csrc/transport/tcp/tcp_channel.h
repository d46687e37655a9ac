// TCP: a header, then the shard's bytes, straight from and to the caller's arrays; replies overlap requests.
//
// Invariants
// - The server's buffers are sized by its own shard, never by what a header claims.
// - A gradient is received while it is handled, by whoever waits for its next elements.
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
#include <optional>
#include <thread>
#include <vector>

#include "transport/channel.h"
#include "transport/spin.h"
#include "wire/vector_decoder.h"

namespace distnet {

// Follows a gradient: whether it counts, which its client knows only when it has looked at all of it.
inline constexpr std::uint64_t kPushCounts = 0;
inline constexpr std::uint64_t kPushWithdrawn = 1;

class TcpServerChannel final : public ServerChannel, private Arrival {
 public:
  TcpServerChannel(const ChannelShape& shape, const Tuning& tuning, Socket socket);
  ~TcpServerChannel() override;

  std::optional<Request> next() override;
  void reply(const ReplyHeader& header, ReplyPayload payload, bool then_applies) override;
  void send_ahead(const RequestHeader& request, ReplyPayload payload) override;
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
    bool ends_request() const { return (header.flags & kAhead) == 0; }
  };

  State wait(std::uint64_t floats, std::chrono::microseconds patience) override;
  template <typename Room>
  bool wait_for(const Room& room);
  void enqueue(Outgoing outgoing, bool waited_for);
  bool send_at_once(Outgoing& outgoing);
  void send(const Outgoing& outgoing);
  std::span<const std::byte> encoded(const float* from, std::size_t count);
  void send_pieces(std::span<const std::byte> first, std::span<const std::byte> second);
  bool ending();
  void send_replies();
  void receive_header(RequestHeader& header);
  void begin_arrival(std::span<std::byte> payload);
  std::uint64_t slot_bytes() const { return (shape_.push_bytes() + 63) / 64 * 64; }
  template <typename Use>
  void for_each_chunk(const ReplyPayload& payload, const Use& use);

  const ChannelShape shape_;
  const Tuning tuning_;
  const VectorDecoder decoder_;
  Socket socket_;
  Region slots_;
  std::span<std::byte> arriving_;        // the gradient that is received now
  std::uint64_t verdict_ = kPushCounts;  // … and what follows it
  std::size_t arrived_bytes_ = 0;        // how much of both is here
  SpinHabit between_requests_;
  SpinHabit during_arrival_;
  std::vector<std::byte> read_ahead_;
  std::span<std::byte> early_;            // in it: received, and not looked at yet
  std::optional<Deadline> last_replies_;  // of whoever is sending: once no more requests are taken
  bool awaited_ = false;                  // the client waits for the reply to the request in hand
  std::vector<float> bounce_;             // of whoever is sending: live parameters pass through it float by float
  std::vector<std::byte> encoded_;        // … and encoded ones

  std::mutex mutex_;  // guards what follows; never held over I/O
  std::condition_variable changed_;
  std::deque<Outgoing> outgoing_;
  std::uint32_t replies_left_ = 0;  // of those taken whose requests have not been answered in full
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

  bool place_replica(float* at) override { return static_cast<void>(at), tuning_.duplex; }
  std::uint64_t push_bytes() const override { return shape_.push_bytes(); }
  bool has_room(std::uint64_t) override { return true; }  // the server stops reading where it has none
  void start(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) override;
  bool finite() const override { return finite_; }
  void conclude(bool counts) override;
  void post(const RequestHeader& request) override;
  std::span<float> unsent() override { return {carried_.as<float>(), carried_.bytes() / sizeof(float)}; }
  void expect(std::span<const TargetPiece> parameters) override { expected_ = parameters; }
  bool flush() override;
  bool receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) override;
  void wait(milliseconds at_most) override;
  int poll_fd() const override { return socket_.fd(); }
  short poll_events() const override;
  TransportKind kind() const override { return TransportKind::kTcp; }
  void close() override { socket_.shutdown(); }

 private:
  bool sending() const { return !staged_.empty() || staged_floats_ < shape_.shard_floats; }
  void stage_bytes(std::span<const std::byte> bytes);
  void stage_next();
  void encode_chunk(std::uint64_t begin, std::size_t count, std::byte* to);
  bool send_staged();
  bool receive_ahead();
  void end_ahead();
  bool receive_header();
  bool receive_payload(std::span<const TargetPiece> parameters);
  std::uint64_t receive_plain(std::span<const TargetPiece> parameters);
  std::uint64_t receive_chunks(std::span<const TargetPiece> parameters);
  void decode_chunk(std::uint64_t begin, const std::byte* from, std::span<const TargetPiece> parameters);

  const ChannelShape shape_;
  const Tuning tuning_;
  Socket socket_;

  RequestHeader request_{};
  std::vector<SourcePiece> gradient_;
  float scale_ = 1.0F;
  bool finite_ = true;
  std::uint64_t staged_floats_;                    // of the gradient; all of it where there is none
  std::deque<std::span<const std::byte>> staged_;  // what leaves next
  std::uint64_t verdict_ = kPushCounts;
  bool settles_unsent_ = false;     // once the verdict has left
  bool had_ahead_ = false;          // of the reply that comes next
  std::vector<float> chunk_;        // of the gradient, in one piece
  std::vector<std::byte> encoded_;  // … and as the format has it
  Region carried_;                  // what earlier pushes left unsent
  Region left_;                     // … and this one, if it counts

  SpinHabit before_replies_;
  std::span<const TargetPiece> expected_;
  ReplyHeader reply_{};
  std::uint64_t receive_position_ = 0;  // bytes of header and payload received
  std::vector<std::byte> decoding_;     // a chunk of parameters as the format has it
  std::vector<float> decoded_;
};

}  // namespace distnet
