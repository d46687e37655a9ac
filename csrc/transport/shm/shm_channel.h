// Shared memory: gradients are copied once, by the client into a slot the server owns; parameters once, by the server
// into the client's replica or by the client out of the version its reply names (or not at all, where it reads in
// place).
//
// Invariants
// - A word of the control block has one writer: the client (its two lines, requests[]) or the server (the rest).
// - requests[i] is written before request_count announces it, and not again before the reply. replies[i] is written
//   before reply_count announces it.
// - The gradient of push n lies in slot (n-1) mod max_inflight, free again once `settled` >= n. The slot's word in
//   `staged` says of which push how much is there; elements are written before it counts them. The last ones are
//   counted only once the client knows the whole gradient to be finite.
// - The replica is written by the server alone, between a request that asks for delivery and the reply to it.
// - The server copies a header before it looks at it, and believes `staged` only about the client's own gradient: the
//   client can write there at any time.
// - A sleeper says so (`*_waiting`) before it looks a last time; a waker looks for sleepers after it has written. Both
//   with sequential consistency, so one of the two sees the other.
#pragma once

#include <atomic>
#include <deque>
#include <mutex>

#include "transport/channel.h"
#include "transport/spin.h"

namespace distnet {

inline constexpr std::uint32_t kRingEntries = 2 * kMaxInFlight;

struct ShmControl {
  std::uint64_t nonce[2];
  alignas(64) std::atomic<std::uint32_t> client_events;  // counts requests and gradients: what the server sleeps on
  std::atomic<std::uint32_t> request_count;
  std::atomic<std::uint32_t> client_waiting;
  std::atomic<std::uint32_t> released_count;                    // replies whose parameters the client has let go
  std::atomic<std::uint32_t> client_core;                       // where it last ran
  alignas(64) std::atomic<std::uint64_t> staged[kMaxInFlight];  // of each slot, a Staged, packed
  alignas(64) std::atomic<std::uint32_t> server_events;  // counts replies and settlings: what the client sleeps on
  std::atomic<std::uint32_t> reply_count;
  std::atomic<std::uint32_t> server_waiting;
  std::atomic<std::uint32_t> server_core;
  std::atomic<std::uint64_t> settled;  // pushes whose slot is free again
  std::atomic<std::uint64_t> draft;    // a Drafted, packed
  alignas(64) RequestHeader requests[kRingEntries];
  ReplyHeader replies[kRingEntries];
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

// How much of which push lies in a slot.
struct Staged {
  static constexpr std::uint32_t kWithdrawn = 0xFFFFFFFFU;
  std::uint32_t push = 0;    // its low 32 bits
  std::uint32_t pieces = 0;  // of kPieceFloats, the last one shorter; or kWithdrawn

  std::uint64_t packed() const { return (std::uint64_t{push} << 32U) | pieces; }
  static Staged unpacked(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 32U), static_cast<std::uint32_t>(word)};
  }
};

// How much of the version that a push makes is there to be read, and where. A hint: the reply says whether it came
// true.
struct Drafted {
  std::uint32_t push = 0;    // its low 16 bits
  std::uint32_t buffer = 0;  // below 2^16
  std::uint32_t pieces = 0;  // of kPieceFloats, the last one shorter

  std::uint64_t packed() const {
    return (std::uint64_t{push & 0xFFFFU} << 48U) | (std::uint64_t{buffer & 0xFFFFU} << 32U) | pieces;
  }
  static Drafted unpacked(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 48U), static_cast<std::uint32_t>(word >> 32U) & 0xFFFFU,
            static_cast<std::uint32_t>(word)};
  }
};

inline std::uint32_t shm_pieces(std::uint64_t floats) {
  return static_cast<std::uint32_t>((floats + kPieceFloats - 1) / kPieceFloats);
}

// Sizes of what is mapped: whole pages.
inline constexpr std::uint64_t shm_pages(std::uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}
inline constexpr std::uint64_t kShmControlBytes = shm_pages(sizeof(ShmControl));
inline std::uint64_t shm_shard_bytes(const ChannelShape& shape) {
  return shm_pages(shape.shard_floats * sizeof(float));
}
inline std::uint64_t shm_slot_floats(const ChannelShape& shape) { return shm_shard_bytes(shape) / sizeof(float); }
inline std::uint64_t shm_slots_bytes(const ChannelShape& shape) { return shm_shard_bytes(shape) * shape.max_inflight; }

class ShmServerChannel final : public ServerChannel, private Arrival {
 public:
  ShmServerChannel(const ChannelShape& shape, const Tuning& tuning);
  ~ShmServerChannel() override;

  // Passed to the client, in this order: control block; then, where it pushes, slots and replica.
  std::vector<int> fds() const;
  const Region& control_region() const { return control_region_; }

  std::optional<Request> next() override;
  void reply(const ReplyHeader& header, ReplyPayload payload, bool then_applies) override;
  void settled(std::uint64_t push) override;
  void drafted(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) override;
  void collect_released() override;
  void stop_taking() override;
  void close() override;
  bool was_cut_off() const override { return cut_off_; }
  std::uint64_t bytes_received() const override { return bytes_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  struct Held {
    std::uint32_t reply = 0;
    std::function<void()> release;
  };

  State wait(std::uint64_t floats, std::chrono::microseconds patience) override;
  Cores cores() const { return {control_->server_core, control_->client_core}; }
  template <typename Condition>
  void wait_for_client(const Condition& still);
  bool wait_for_request();
  void check_payload(const RequestHeader& header) const;
  void wake_client();

  const ChannelShape shape_;
  const Tuning tuning_;
  Region control_region_;
  Region slots_region_;
  Region replica_region_;
  ShmControl* const control_;
  SpinHabit between_requests_;
  SpinHabit during_arrival_;
  std::uint32_t requests_taken_ = 0;
  std::uint32_t replies_sent_ = 0;
  std::uint64_t arriving_push_ = 0;
  bool cut_off_ = false;  // of the data thread; read when it has ended
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
  ShmClientChannel(const ChannelShape& shape, const Tuning& tuning, std::vector<FileDescriptor> fds,
                   MapBuffer map_buffer);

  bool place_replica(float* at) override;
  std::uint64_t push_bytes() const override { return shape_.push_bytes(); }
  bool has_room(std::uint64_t push) override;
  void start(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) override;
  bool finite() const override { return finite_; }
  void conclude(bool counts) override;
  void post(const RequestHeader& request) override;
  void expect(std::span<const TargetPiece> parameters) override { expected_ = parameters; }
  bool flush() override { return true; }
  bool receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) override;
  const float* in_place() const override { return in_place_; }
  void wait(milliseconds at_most) override;
  TransportKind kind() const override { return TransportKind::kShm; }
  void close() override;

 private:
  Cores cores() const { return {control_->client_core, control_->server_core}; }
  void announce(const RequestHeader& request);
  void count_staged(std::uint32_t pieces);
  void wake_server();
  const Region& buffer(std::uint32_t index);
  const float* parameters_of(const ReplyHeader& reply);
  bool read_draft();
  void take_parameters(const ReplyHeader& reply, std::span<const TargetPiece> targets);
  void copy_range(std::span<const TargetPiece> targets, const float* from, std::uint64_t begin,
                  std::uint64_t end) const;
  void release_up_to(std::uint32_t reply);

  const ChannelShape shape_;
  const Tuning tuning_;
  MapBuffer map_buffer_;
  Region control_region_;
  Region slots_region_;
  FileDescriptor replica_fd_;
  ShmControl* control_ = nullptr;
  std::vector<Region> buffers_;
  float* replica_ = nullptr;
  std::span<const TargetPiece> expected_;  // where the newest request's parameters may be put before its reply
  Drafted draft_;                          // what has been read there of the version that its push makes
  RequestHeader pushing_;                  // the push begun last
  bool announced_ = false;                 // … and whether the server knows of it
  bool finite_ = true;                     // … and its gradient
  SpinHabit before_replies_;
  std::uint32_t requests_posted_ = 0;
  std::uint32_t replies_taken_ = 0;
  std::uint32_t seen_events_ = 0;
  const float* in_place_ = nullptr;
  std::atomic<bool> closed_{false};
};

}  // namespace distnet
