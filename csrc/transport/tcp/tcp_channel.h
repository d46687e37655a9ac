// Over TCP a header and the shard's bytes travel straight from and to the caller's arrays, and replies overlap
// requests.
//
// Invariants
// - The server's buffers are sized by its own shard, never by what a header claims.
// - A gradient is received while it is used, by the thread that waits for its next elements.
// - The data thread receives and never waits to send: the channel's own thread sends what does not leave at once. So a
//   client that does not read its replies yet delays neither its next gradient nor anybody's update. That thread is
//   started when it is first needed, and ends when the channel falls dormant.
// - No request is taken while max_inflight replies have not left. So a client that never reads its replies waits, and
//   holds a bounded number of them and of versions.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "base/waiting.h"
#include "transport/registry.h"
#include "transport/spin.h"
#include "wire/vector_decoder.h"

namespace distnet {

// Follows a gradient and says whether it counts. The client knows that only when it has checked all of it.
inline constexpr std::uint64_t kPushCounts = 0;
inline constexpr std::uint64_t kPushWithdrawn = 1;

class TcpServerChannel final : public ServerChannel, private Arrival {
 public:
  TcpServerChannel(const ChannelShape& shape, const Tuning& tuning, Memory& memory, Stream stream);
  TcpServerChannel(const TcpServerChannel&) = delete;
  TcpServerChannel& operator=(const TcpServerChannel&) = delete;
  ~TcpServerChannel() override;

  std::optional<Request> next() override;
  bool is_dormant() const override { return dormant_; }
  int wake_fd() const override { return stream_.poll_fd(); }
  void reply(Reply reply) override;
  void send_ahead(const RequestHeader& request, Reply ahead) override;
  void settled(std::uint64_t push) override;
  void client_left() override;
  void stop_taking() override;
  void close() override;
  bool was_cut_off() const override { return cut_off_; }
  Progress progress() const override;
  std::uint64_t bytes_received() const override { return bytes_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  struct Outgoing {
    Reply reply;
    std::vector<std::byte> rest;  // when not empty, all that is left to send
    bool ends_request() const { return (reply.header.flags & kAhead) == 0; }
  };

  State wait(std::uint64_t floats, std::chrono::microseconds patience) override;
  template <typename Room>
  bool wait_for(const Room& room);
  void enqueue(Outgoing outgoing, bool waited_for);
  bool send_at_once(Outgoing& outgoing);
  void count_sent(const Outgoing& outgoing);
  void send(Outgoing& outgoing);
  std::span<const std::byte> encoded(const float* from, std::size_t count);
  void send_both(std::span<const std::byte> first, std::span<const std::byte> second);
  bool ending();
  void send_replies();
  bool receive_header(RequestHeader& header);
  std::span<const double> receive_group_rates(std::uint64_t push);
  bool lacks_early(std::size_t bytes);
  bool fall_dormant();
  void awake();
  void begin_arrival(std::span<std::byte> payload);
  std::uint64_t slot_bytes() const { return (shape_.push_bytes() + 63) / 64 * 64; }
  template <typename Use>
  void for_each_chunk(const Reply& reply, const Use& use);

  const ChannelShape shape_;
  const Tuning tuning_;
  const VectorDecoder decoder_;
  Memory& memory_;
  Stream stream_;
  Region slots_;
  std::vector<double> group_rates_;      // of each slot; empty until needed
  std::span<std::byte> arriving_;        // the memory of the gradient that is received now
  std::uint64_t verdict_ = kPushCounts;  // follows the gradient
  std::size_t arrived_bytes_ = 0;        // how much of both is here
  SpinHabit between_requests_;
  SpinHabit during_arrival_;
  Region read_ahead_;                     // empty while dormant
  bool dormant_ = true;                   // until the first request
  std::span<std::byte> early_;            // the bytes in it that were received and not used yet
  std::optional<Deadline> last_replies_;  // used by the thread that sends, once no more requests are taken
  bool awaited_ = false;                  // the client waits for the reply to the request in hand
  // Parameters pass through it that are live, which are copied float by float, or encoded. Used by the thread that
  // sends; empty until it is needed, and while dormant.
  Region outgoing_chunks_;

  mutable Mutex mutex_;  // guards what follows; never held over I/O
  Condition changed_;
  std::deque<Outgoing> outgoing_;
  std::uint32_t replies_left_ = 0;  // requests taken whose replies have not left in full
  bool sending_ = false;
  bool sender_ends_ = false;  // once nothing is left to send
  bool client_left_ = false;  // nobody receives replies any more
  bool stopped_ = false;
  bool closed_ = false;
  std::uint64_t settled_ = 0;
  std::uint64_t replies_sent_ = 0;

  std::atomic<bool> busy_{false};              // a request has arrived in full and is being served
  std::atomic<std::uint64_t> taken_bytes_{0};  // of requests and gradients, counted as they arrive
  bool cut_off_ = false;                       // written by the data thread; read when it has ended
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> bytes_sent_{0};
  Thread sender_;
};

class TcpClientChannel final : public ClientChannel {
 public:
  TcpClientChannel(const ChannelShape& shape, const Tuning& tuning, Stream stream);

  bool place_replica(float* at) override { return static_cast<void>(at), tuning_.duplex; }
  std::uint64_t push_bytes() const override { return shape_.push_bytes(); }
  bool has_room(std::uint64_t) override { return true; }  // the server stops reading when it has none
  void start(const RequestHeader& request, std::span<const double> group_rates, std::span<const SourceSlice> gradient,
             float scale) override;
  bool finite() const override { return finite_; }
  void conclude(bool counts) override;
  bool withdraw() override;
  void post(const RequestHeader& request) override;
  std::span<float> unsent() override { return {carried_.as<float>(), carried_.bytes() / sizeof(float)}; }
  void expect(std::span<const TargetSlice> parameters) override { expected_ = parameters; }
  bool flush() override;
  bool receive(ReplyHeader& reply, std::span<const TargetSlice> parameters) override;
  std::uint64_t sent_bytes() const override { return sent_bytes_; }
  std::uint64_t received_bytes() const override { return received_bytes_; }
  std::uint64_t replies_received() const override { return replies_received_; }
  void wait(milliseconds at_most) override;
  int poll_fd() const override { return stream_.poll_fd(); }
  short poll_events() const override;
  TransportKind kind() const override { return TransportKind::kTcp; }
  void close() override { stream_.shutdown(); }

 private:
  bool sending() const { return !queued_.empty() || queued_floats_ < shape_.shard_floats; }
  void queue_bytes(std::span<const std::byte> bytes);
  std::uint64_t header_left() const;
  bool scattered(std::size_t slices) const;
  void queue_next();
  void encode_chunk(std::uint64_t begin, std::size_t count, std::byte* to);
  bool send_queued();
  bool receive_ahead();
  void end_ahead();
  std::uint64_t receive(const Buffers& buffers);
  bool receive_header();
  bool receive_payload(std::span<const TargetSlice> parameters);
  std::uint64_t receive_plain(std::span<const TargetSlice> parameters);
  std::uint64_t receive_chunks(std::span<const TargetSlice> parameters);
  void decode_chunk(std::uint64_t begin, const std::byte* from, std::span<const TargetSlice> parameters);

  const ChannelShape shape_;
  const Tuning tuning_;
  Stream stream_;

  RequestHeader request_{};
  std::array<double, kMaxRatedGroups> group_rates_{};
  std::vector<SourceSlice> gradient_;
  float scale_ = 1.0F;
  bool finite_ = true;
  std::uint64_t queued_floats_;                    // of the gradient; all of them when there is none
  std::deque<std::span<const std::byte>> queued_;  // what leaves next
  std::uint64_t verdict_ = kPushCounts;
  bool settles_unsent_ = false;  // keep what is unsent once the verdict has left
  bool half_way_ = false;        // a push is begun and not concluded
  std::uint64_t sent_bytes_ = 0;
  std::uint64_t received_bytes_ = 0;
  std::uint64_t replies_received_ = 0;
  bool had_ahead_ = false;          // parameters came ahead of the next reply
  std::vector<float> chunk_;        // of the gradient, contiguous
  std::vector<std::byte> encoded_;  // some of the gradient, encoded
  Region carried_;                  // what earlier pushes left unsent
  Region left_;                     // what this one leaves unsent, if it counts

  SpinHabit before_replies_;
  std::span<const TargetSlice> expected_;
  ReplyHeader reply_{};
  std::uint64_t receive_position_ = 0;  // bytes of header and payload received
  std::vector<std::byte> decoding_;     // some of the parameters, encoded
  std::vector<float> decoded_;
};

std::unique_ptr<ServerChannel> open_tcp_channel(const ChannelShape& shape, const Tuning& tuning, Memory& memory,
                                                Stream data);
std::unique_ptr<ClientChannel> join_tcp_channel(const ChannelShape& shape, const Tuning& tuning, Stream data,
                                                std::vector<FileDescriptor>&& fds, const ControlCalls& calls);

}  // namespace distnet
