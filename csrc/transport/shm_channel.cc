#include "transport/shm_channel.h"

#include <thread>

#include "base/error.h"
#include "base/kernels.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint32_t kMaxBuffers = 1U << 16U;
constexpr milliseconds kServerSlice{250};  // close() wakes a sleeper; the slice only bounds a wake-up lost to it
constexpr std::chrono::microseconds kSpin{50};

std::uint64_t round_to_page(std::uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

std::uint64_t slot_floats(const ChannelShape& shape) {
  return round_to_page(shape.shard_floats * sizeof(float)) / sizeof(float);
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins while `still` holds, for about as long as going to sleep and being woken takes. Yields again and again: the
// other end may have been woken on this very core, where it would wait until the spinning is over.
template <typename Condition>
void spin_while(const Condition& still) {
  static const bool several_cores = std::thread::hardware_concurrency() > 1;
  if (!several_cores) {
    return;
  }
  const auto until = Clock::now() + kSpin;
  while (still() && Clock::now() < until) {
    for (int i = 0; i < 16 && still(); ++i) {
      pause_briefly();
    }
    std::this_thread::yield();
  }
}

}  // namespace

std::uint64_t shm_slots_bytes(const ChannelShape& shape) {
  return slot_floats(shape) * sizeof(float) * shape.max_inflight;
}

// ---- Server ----

ShmServerChannel::ShmServerChannel(const ChannelShape& shape)
    : shape_(shape),
      control_region_(Region::shared_memory(round_to_page(sizeof(ShmControl)), true)),
      slots_region_(Region::shared_memory(shm_slots_bytes(shape), true)),
      control_(control_region_.as<ShmControl>()) {
  control_->nonce[0] = shape.nonce[0];
  control_->nonce[1] = shape.nonce[1];
}

ShmServerChannel::~ShmServerChannel() { close(); }

bool ShmServerChannel::wait_for_request() {
  const auto none_yet = [this] {
    return control_->request_count.load(std::memory_order_seq_cst) == requests_taken_ &&
           !stopped_.load(std::memory_order_acquire);
  };
  spin_while(none_yet);
  while (none_yet()) {
    control_->server_waiting.store(1, std::memory_order_seq_cst);  // pairs with post()
    if (none_yet()) {
      futex_wait(control_->request_count, requests_taken_, kServerSlice);
    }
    control_->server_waiting.store(0, std::memory_order_relaxed);
  }
  return !stopped_.load(std::memory_order_acquire);
}

std::optional<Request> ShmServerChannel::next() {
  if (!wait_for_request()) {
    return std::nullopt;
  }
  const std::uint32_t posted = control_->request_count.load(std::memory_order_acquire) - requests_taken_;
  if (posted > kRingEntries) {
    throw Error(ErrorCode::kProtocol, "a client announced more requests than its ring holds");
  }
  collect_released();
  {
    const std::lock_guard lock(held_mutex_);
    if (held_.size() > kRingEntries) {
      throw Error(ErrorCode::kProtocol, "a client asks on and lets none of its replies go");
    }
  }
  Request request;
  request.header = control_->requests[requests_taken_ % kRingEntries];  // a copy: checked, then used
  ++requests_taken_;
  if (request.header.payload_bytes != 0) {
    if (request.header.payload_bytes != shape_.shard_floats * sizeof(float) || request.header.push == 0) {
      throw Error(ErrorCode::kProtocol, "a request with " + std::to_string(request.header.payload_bytes) +
                                            " bytes of gradient; the shard has " +
                                            std::to_string(shape_.shard_floats * sizeof(float)));
    }
    const std::uint64_t slot = (request.header.push - 1) % shape_.max_inflight;
    request.payload = slots_region_.as<float>() + slot * slot_floats(shape_);
    bytes_received_.fetch_add(request.header.payload_bytes, std::memory_order_relaxed);
  }
  return request;
}

void ShmServerChannel::reply(const ReplyHeader& header, ReplyPayload payload) {
  {
    const std::lock_guard lock(held_mutex_);
    held_.push_back({replies_sent_ + 1, std::move(payload.release)});
  }
  control_->replies[replies_sent_ % kRingEntries] = header;
  ++replies_sent_;
  bytes_sent_.fetch_add(header.payload_bytes, std::memory_order_relaxed);
  control_->reply_count.store(replies_sent_, std::memory_order_release);  // pairs with receive()
  wake_client();
}

void ShmServerChannel::settled(std::uint64_t push) {
  control_->settled.store(push, std::memory_order_release);  // pairs with has_room()
  wake_client();
}

void ShmServerChannel::wake_client() {
  control_->server_events.fetch_add(1, std::memory_order_seq_cst);
  if (control_->client_waiting.load(std::memory_order_seq_cst) != 0) {  // pairs with wait()
    futex_wake_all(control_->server_events);
  }
}

void ShmServerChannel::collect_released() {
  const std::uint32_t released = control_->released_count.load(std::memory_order_acquire);
  std::deque<Held> free;
  {
    const std::lock_guard lock(held_mutex_);
    while (!held_.empty() && (closed_.load(std::memory_order_acquire) ||
                              static_cast<std::int32_t>(released - held_.front().reply) >= 0)) {
      free.push_back(std::move(held_.front()));
      held_.pop_front();
    }
  }
  for (const Held& held : free) {
    if (held.release) {
      held.release();
    }
  }
}

void ShmServerChannel::stop_taking() {
  stopped_.store(true, std::memory_order_release);
  futex_wake_all(control_->request_count);
}

void ShmServerChannel::close() {
  stop_taking();
  closed_.store(true, std::memory_order_release);
  control_->server_events.fetch_add(1, std::memory_order_seq_cst);
  futex_wake_all(control_->server_events);
  collect_released();
}

// ---- Client ----

ShmClientChannel::ShmClientChannel(const ChannelShape& shape, int control_fd, int slots_fd, MapBuffer map_buffer)
    : shape_(shape),
      map_buffer_(std::move(map_buffer)),
      control_region_(Region::map(control_fd, round_to_page(sizeof(ShmControl)), true)),
      slots_region_(Region::map(slots_fd, shm_slots_bytes(shape), true)),
      control_(control_region_.as<ShmControl>()) {
  if (control_->nonce[0] != shape.nonce[0] || control_->nonce[1] != shape.nonce[1]) {
    throw Error(ErrorCode::kConnect, "the shared memory that was passed is not this server's");
  }
}

bool ShmClientChannel::has_room(std::uint64_t push) {
  seen_events_ = control_->server_events.load(std::memory_order_seq_cst);
  return push <= control_->settled.load(std::memory_order_acquire) + shape_.max_inflight;
}

bool ShmClientChannel::stage(std::uint64_t push, std::span<const SourcePiece> gradient, float scale) {
  float* const slot = slots_region_.as<float>() + (push - 1) % shape_.max_inflight * slot_floats(shape_);
  bool finite = true;
  for (const SourcePiece& piece : gradient) {
    finite &= scale == 1.0F ? copy_finite(slot + piece.offset, piece.from, piece.count)
                            : copy_scaled_finite(slot + piece.offset, piece.from, scale, piece.count);
  }
  return finite;
}

void ShmClientChannel::post(const RequestHeader& request) {
  control_->requests[requests_posted_ % kRingEntries] = request;
  ++requests_posted_;
  control_->request_count.store(requests_posted_, std::memory_order_seq_cst);
  if (control_->server_waiting.load(std::memory_order_seq_cst) != 0) {  // pairs with wait_for_request()
    futex_wake_all(control_->request_count);
  }
}

bool ShmClientChannel::receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) {
  release_up_to(replies_taken_);  // what was read in place is let go now
  in_place_ = nullptr;
  const auto none_yet = [this] { return control_->reply_count.load(std::memory_order_acquire) == replies_taken_; };
  spin_while([&] { return none_yet() && !closed_.load(std::memory_order_acquire); });
  seen_events_ = control_->server_events.load(std::memory_order_seq_cst);
  if (none_yet()) {
    return false;
  }
  reply = control_->replies[replies_taken_ % kRingEntries];
  if (reply.payload_bytes != 0) {
    const float* const from = parameters_of(reply);
    for (const TargetPiece& piece : parameters) {
      copy(piece.to, from + piece.offset, piece.count);
    }
    in_place_ = from;
  }
  ++replies_taken_;
  if (!parameters.empty() || reply.payload_bytes == 0) {
    release_up_to(replies_taken_);
    in_place_ = nullptr;
  }
  return true;
}

const float* ShmClientChannel::parameters_of(const ReplyHeader& reply) {
  if (reply.buffer >= kMaxBuffers || reply.payload_bytes != shape_.shard_floats * sizeof(float)) {
    throw Error(ErrorCode::kProtocol, "a reply names parameters that cannot be");
  }
  if (reply.buffer >= buffers_.size()) {
    buffers_.resize(reply.buffer + 1);
  }
  Region& region = buffers_[reply.buffer];
  if (region.data() == nullptr) {
    region = map_buffer_(reply.buffer);
  }
  const bool average = (reply.flags & kWantAverage) != 0;
  return region.as<float>(average ? shape_.average_offset_bytes : 0);
}

void ShmClientChannel::release_up_to(std::uint32_t reply) {
  if (control_->released_count.load(std::memory_order_relaxed) != reply) {
    control_->released_count.store(reply, std::memory_order_release);  // pairs with collect_released()
  }
}

void ShmClientChannel::wait(milliseconds at_most) {
  control_->client_waiting.store(1, std::memory_order_seq_cst);  // pairs with wake_client()
  if (control_->server_events.load(std::memory_order_seq_cst) == seen_events_ &&
      !closed_.load(std::memory_order_acquire)) {
    futex_wait(control_->server_events, seen_events_, at_most);
  }
  control_->client_waiting.store(0, std::memory_order_relaxed);
}

void ShmClientChannel::close() {
  closed_.store(true, std::memory_order_release);
  futex_wake_all(control_->server_events);
}

}  // namespace distnet
