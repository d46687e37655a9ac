// Shared memory: gradients are copied once, by the client into a slot the server owns; parameters once, by the client
// out of the version its reply names (or not at all, where it reads in place).
//
// Invariants
// - A word of the control block has one writer: the client (request_count, released_count, requests[]) or the server
// (the rest).
// - requests[i] and slots are written before request_count announces them, and not again before the reply (requests) or
//   `settled` (slots) says so. replies[i] is written before reply_count announces it.
// - The server copies a header before it looks at it: the client can write there at any time.
// - A sleeper says so (`*_waiting`) before it looks a last time; a waker looks for sleepers after it has written. Both
// with
//   sequential consistency, so one of the two sees the other.
#pragma once

#include <atomic>
#include <deque>
#include <mutex>

#include "transport/channel.h"

namespace distnet {

inline constexpr std::uint32_t kRingEntries = 2 * kMaxInFlight;

struct ShmControl {
  std::uint64_t nonce[2];
  alignas(64) std::atomic<std::uint32_t> request_count;
  std::atomic<std::uint32_t> client_waiting;
  std::atomic<std::uint32_t> released_count;             // replies whose parameters the client has let go
  alignas(64) std::atomic<std::uint32_t> server_events;  // counts replies and settlings: what the client sleeps on
  std::atomic<std::uint32_t> reply_count;
  std::atomic<std::uint32_t> server_waiting;
  std::atomic<std::uint64_t> settled;  // pushes whose slot is free again
  alignas(64) RequestHeader requests[kRingEntries];
  ReplyHeader replies[kRingEntries];
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

std::uint64_t shm_slots_bytes(const ChannelShape& shape);

class ShmServerChannel final : public ServerChannel {
 public:
  explicit ShmServerChannel(const ChannelShape& shape);
  ~ShmServerChannel() override;

  // Passed to the client, in this order.
  int control_fd() const { return control_region_.fd(); }
  int slots_fd() const { return slots_region_.fd(); }

  std::optional<Request> next() override;
  void reply(const ReplyHeader& header, ReplyPayload payload) override;
  void settled(std::uint64_t push) override;
  void collect_released() override;
  void stop_taking() override;
  void close() override;
  std::uint64_t bytes_received() const override { return bytes_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  struct Held {
    std::uint32_t reply = 0;
    std::function<void()> release;
  };

  bool wait_for_request();
  void wake_client();

  const ChannelShape shape_;
  Region control_region_;
  Region slots_region_;
  ShmControl* const control_;
  std::uint32_t requests_taken_ = 0;
  std::uint32_t replies_sent_ = 0;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> closed_{false};
  std::mutex held_mutex_;  // a few instructions at a time
  std::deque<Held> held_;  // replies whose parameters the client may still be reading
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> bytes_sent_{0};
};

class ShmClientChannel final : public ClientChannel {
 public:
  // Maps buffer `index` (Region::map of the descriptor that the server passes on demand).
  using MapBuffer = std::function<Region(std::uint32_t index)>;

  // Throws Error(kConnect) where the block does not hold the server's nonce: the peer is not on this host after all.
  ShmClientChannel(const ChannelShape& shape, int control_fd, int slots_fd, MapBuffer map_buffer);

  bool has_room(std::uint64_t push) override;
  bool stage(std::uint64_t push, std::span<const SourcePiece> gradient, float scale) override;
  void post(const RequestHeader& request) override;
  bool flush() override { return true; }
  bool receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) override;
  const float* in_place() const override { return in_place_; }
  void wait(milliseconds at_most) override;
  TransportKind kind() const override { return TransportKind::kShm; }
  void close() override;

 private:
  const float* parameters_of(const ReplyHeader& reply);
  void release_up_to(std::uint32_t reply);

  const ChannelShape shape_;
  MapBuffer map_buffer_;
  Region control_region_;
  Region slots_region_;
  ShmControl* const control_;
  std::vector<Region> buffers_;
  std::uint32_t requests_posted_ = 0;
  std::uint32_t replies_taken_ = 0;
  std::uint32_t seen_events_ = 0;
  const float* in_place_ = nullptr;
  std::atomic<bool> closed_{false};
};

}  // namespace distnet
