// Over shared memory the client copies a gradient once, into a slot that the server owns. Parameters are copied once,
// by the server into the client's replica, or by the client from the version that its reply names. A client that reads
// in place copies nothing.
//
// Invariants
// - A word of the control region has one writer. The client writes its two lines and requests[], the server the rest.
// - requests[i] is written before request_count announces it, and not again before its reply. replies[i] is written
//   before reply_count announces it.
// - The gradient of push n lies in slot (n-1) mod max_inflight, which is free again once `settled` >= n. The slot's
//   word in `staged` says how much of which push is there. Elements are written before the word counts them, and the
//   last ones are counted only once the client knows that the whole gradient is finite.
// - The server alone writes the replica, between a request that asks for delivery and its reply.
// - The client can write into the control region at any time. So the server copies a header before it checks it, and
//   trusts `staged` only about the client's own gradient.
// - The words about cores are hints, and order nothing. A client that lies there moves the thread that serves it alone,
//   and seldom.
// - A thread that goes to sleep sets `*_waiting` before it looks a last time; a waker looks at that word after it has
//   written. Both use sequential consistency, so one of them sees the other. The same holds for a server that gives up
//   its thread.
#pragma once

#include <atomic>
#include <deque>

#include "base/waiting.h"
#include "transport/registry.h"
#include "transport/spin.h"

namespace distnet {

inline constexpr std::uint32_t kRingEntries = 2 * kMaxInFlight;

// Values of `server_waiting`: how the client tells the server of a request. A server that is awake looks by itself, one
// that sleeps is woken by its futex, and a dormant one has no thread for the session: the client says Wake over the
// control connection.
inline constexpr std::uint32_t kServerAwake = 0;
inline constexpr std::uint32_t kServerSleeps = 1;
inline constexpr std::uint32_t kServerDormant = 2;

struct ShmControl {
  std::uint64_t nonce[2];
  alignas(64) std::atomic<std::uint32_t> client_events;  // counts requests and gradients; the server sleeps on it
  std::atomic<std::uint32_t> request_count;
  std::atomic<std::uint32_t> client_waiting;
  std::atomic<std::uint32_t> released_count;  // replies whose parameters the client has released
  std::atomic<std::uint32_t> client_core;     // where it last ran
  std::atomic<std::uint32_t> core_to_leave;   // one more than the core that the server is asked to leave; or 0
  alignas(64) std::atomic<std::uint64_t> staged[kMaxInFlight];  // a packed Staged for each slot
  alignas(64) std::atomic<std::uint32_t> server_events;  // counts replies and settled pushes; the client sleeps on it
  std::atomic<std::uint32_t> reply_count;
  std::atomic<std::uint32_t> server_waiting;
  std::atomic<std::uint32_t> server_core;
  std::atomic<std::uint64_t> settled;     // pushes whose slot is free again
  std::atomic<std::uint64_t> draft_push;  // the push whose version `draft` describes
  std::atomic<std::uint64_t> draft;       // a packed Drafted
  alignas(64) RequestHeader requests[kRingEntries];
  ReplyHeader replies[kRingEntries];
  alignas(64) double group_rates[kMaxInFlight][kMaxRatedGroups];  // for each slot; the client's to write
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

// How much of which push lies in a slot. Every max_inflight-th push uses the slot, and its word is written anew before
// the request is posted. So 32 bits tell a push from the slot's last one.
struct Staged {
  static constexpr std::uint32_t kWithdrawn = 0xFFFFFFFFU;
  std::uint32_t push = 0;    // the low 32 bits of its number
  std::uint32_t pieces = 0;  // of kPieceFloats, the last one shorter; or kWithdrawn

  std::uint64_t packed() const { return (std::uint64_t{push} << 32U) | pieces; }
  static Staged unpacked(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 32U), static_cast<std::uint32_t>(word)};
  }
};

// How much of the version that a push makes can be read already, and in which buffer. It is a hint: the reply says
// whether it came true. `draft_push` names the push; `draft` is 0 while that changes.
struct Drafted {
  std::uint32_t buffer = 0;
  std::uint32_t pieces = 0;  // of kPieceFloats, the last one shorter; 0 in a word that describes nothing

  std::uint64_t packed() const { return (std::uint64_t{buffer} << 32U) | pieces; }
  static Drafted unpacked(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 32U), static_cast<std::uint32_t>(word)};
  }
};

inline std::uint32_t shm_pieces(std::uint64_t floats) {
  return static_cast<std::uint32_t>((floats + kPieceFloats - 1) / kPieceFloats);
}

// Sizes of the mapped regions, in whole pages.
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
  ShmServerChannel(const ChannelShape& shape, const Tuning& tuning, Memory& memory);
  ShmServerChannel(const ShmServerChannel&) = delete;
  ShmServerChannel& operator=(const ShmServerChannel&) = delete;
  ~ShmServerChannel() override;

  // Returns the control region first and, when the client pushes, the slots and the replica.
  std::vector<int> descriptors() const override;
  void descriptors_passed() override;

  std::optional<Request> next() override;
  bool is_dormant() const override { return dormant_; }
  void reply(Reply reply) override;
  void settled(std::uint64_t push) override;
  void drafted(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) override;
  void collect_released() override;
  void client_left() override;
  void stop_taking() override;
  void close() override;
  bool was_cut_off() const override { return cut_off_; }
  Progress progress() const override;
  std::uint64_t bytes_received() const override { return bytes_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_sent() const override { return bytes_sent_.load(std::memory_order_relaxed); }

 private:
  struct Held {
    std::uint32_t reply = 0;
    Pin pin;
  };

  State wait(std::uint64_t floats, std::chrono::microseconds patience) override;
  Cores cores() const { return {control_->server_core, control_->client_core}; }
  template <typename Condition>
  void wait_for_client(const Condition& still, std::chrono::nanoseconds at_most);
  bool wait_for_request();
  template <typename Condition>
  bool fall_dormant(const Condition& none_yet);
  void check_payload(const RequestHeader& header) const;
  std::span<const double> take_group_rates(std::uint64_t slot);
  void wake_client();

  const ChannelShape shape_;
  const Tuning tuning_;
  Region control_region_;
  Region slots_region_;
  Region replica_region_;
  ShmControl* const control_;
  SpinHabit between_requests_;
  SpinHabit during_arrival_;
  std::vector<double> group_rates_;  // of each slot, as they were when their request was taken; empty until needed
  std::uint32_t requests_taken_ = 0;
  std::uint32_t replies_sent_ = 0;
  std::uint64_t arriving_push_ = 0;
  std::uint64_t drafting_push_ = 0;            // the push that `draft` describes
  bool dormant_ = true;                        // until the first request
  Deadline next_move_ = Deadline::after(0.0);  // to another core; earlier ones are not made
  bool cut_off_ = false;                       // written by the data thread; read when it has ended
  std::atomic<bool> client_left_{false};       // the client copies nothing more
  std::atomic<bool> stopped_{false};
  std::atomic<bool> closed_{false};
  Mutex held_mutex_;       // held for a few instructions at a time
  std::deque<Held> held_;  // replies whose parameters the client may still be reading
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> bytes_sent_{0};
};

class ShmClientChannel final : public ClientChannel {
 public:
  // Throws Error(kConnect) when the control region does not hold the server's nonce: the peer is not on this host.
  ShmClientChannel(const ChannelShape& shape, const Tuning& tuning, std::vector<FileDescriptor> fds,
                   ControlCalls calls);

  bool place_replica(float* at) override;
  std::uint64_t push_bytes() const override { return shape_.push_bytes(); }
  bool has_room(std::uint64_t push) override;
  void start(const RequestHeader& request, std::span<const double> group_rates, std::span<const SourceSlice> gradient,
             float scale) override;
  bool finite() const override { return finite_; }
  void conclude(bool counts) override;
  bool withdraw() override;
  void post(const RequestHeader& request) override;
  bool flush() override { return true; }
  bool receive(ReplyHeader& reply, std::span<const TargetSlice> parameters) override;
  const float* in_place() const override { return in_place_; }
  std::optional<std::uint32_t> server_core() const override;
  void ask_to_leave(std::uint32_t core) override;
  std::uint64_t replies_received() const override { return replies_taken_; }
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
  bool read_draft(std::span<const TargetSlice> targets);
  void take_parameters(const ReplyHeader& reply, std::span<const TargetSlice> targets);
  void copy_range(std::span<const TargetSlice> targets, const float* from, std::uint64_t begin,
                  std::uint64_t end) const;
  void release_up_to(std::uint32_t reply);

  const ChannelShape shape_;
  const Tuning tuning_;
  const ControlCalls calls_;
  Region control_region_;
  Region slots_region_;
  FileDescriptor replica_fd_;
  ShmControl* control_ = nullptr;
  std::vector<Region> buffers_;
  float* replica_ = nullptr;
  RequestHeader pushing_;            // the push begun last
  bool announced_ = false;           // whether the server knows of it
  bool finite_ = true;               // whether its gradient is finite
  bool half_way_ = false;            // whether it is not concluded yet
  bool reads_draft_ = false;         // whether the newest request is that push, and asks for the version that it makes
  Drafted draft_;                    // what was read of that version
  const float* draft_to_ = nullptr;  // where to
  SpinHabit before_replies_;
  SpinHabit during_drafts_;
  std::uint32_t requests_posted_ = 0;
  std::uint32_t replies_taken_ = 0;
  std::uint32_t seen_events_ = 0;
  const float* in_place_ = nullptr;
  std::atomic<bool> closed_{false};
};

std::unique_ptr<ServerChannel> open_shm_channel(const ChannelShape& shape, const Tuning& tuning, Memory& memory,
                                                Stream data);
std::unique_ptr<ClientChannel> join_shm_channel(const ChannelShape& shape, const Tuning& tuning, Stream data,
                                                std::vector<FileDescriptor>&& fds, const ControlCalls& calls);

}  // namespace distnet
