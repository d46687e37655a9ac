#include "transport/shm_channel.h"

#include <algorithm>

#include "base/error.h"
#include "base/kernels.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint32_t kMaxBuffers = 1U << 16U;
constexpr milliseconds kServerSlice{250};  // close() wakes a sleeper; the slice only bounds a wake-up lost to it
constexpr std::uint64_t kSpinBytesPerMicrosecond = 16'000;  // what a server gets through, at best
constexpr std::chrono::microseconds kLongestSpin{2000};
constexpr std::uint32_t kNoCore = 0xFFFFFFFFU;

std::uint64_t round_to_page(std::uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

std::uint64_t shard_bytes(const ChannelShape& shape) { return round_to_page(shape.shard_floats * sizeof(float)); }

std::uint64_t slot_floats(const ChannelShape& shape) { return shard_bytes(shape) / sizeof(float); }

std::uint64_t slots_bytes(const ChannelShape& shape) { return shard_bytes(shape) * shape.max_inflight; }

std::uint32_t pieces_of(std::uint64_t floats) {
  return static_cast<std::uint32_t>((floats + kStageFloats - 1) / kStageFloats);
}

std::uint64_t packed(Staged staged) { return (std::uint64_t{staged.push} << 32U) | staged.pieces; }

Staged unpacked(std::uint64_t word) {
  return {static_cast<std::uint32_t>(word >> 32U), static_cast<std::uint32_t>(word)};
}

}  // namespace

// ---- Server ----

ShmServerChannel::ShmServerChannel(const ChannelShape& shape, const Tuning& tuning)
    : shape_(shape),
      tuning_(tuning),
      control_region_(Region::shared_memory(round_to_page(sizeof(ShmControl)), true)),
      slots_region_(shape.takes_pushes ? Region::shared_memory(slots_bytes(shape), true) : Region()),
      replica_region_(shape.takes_pushes && tuning.deliver ? Region::shared_memory(shard_bytes(shape), true)
                                                           : Region()),
      control_(control_region_.as<ShmControl>()) {
  control_->nonce[0] = shape.nonce[0];
  control_->nonce[1] = shape.nonce[1];
  control_->client_core.store(kNoCore, std::memory_order_relaxed);
  control_->server_core.store(kNoCore, std::memory_order_relaxed);
}

ShmServerChannel::~ShmServerChannel() { close(); }

std::vector<int> ShmServerChannel::fds() const {
  std::vector<int> fds{control_region_.fd()};
  for (const Region* region : {&slots_region_, &replica_region_}) {
    if (region->fd() >= 0) {
      fds.push_back(region->fd());
    }
  }
  return fds;
}

// Sleeps while `still` holds, until the client does something.
template <typename Condition>
void ShmServerChannel::wait_for_client(const Condition& still) {
  const std::uint32_t seen = control_->client_events.load(std::memory_order_seq_cst);
  control_->server_waiting.store(1, std::memory_order_seq_cst);  // pairs with wake_server()
  if (still() && control_->client_events.load(std::memory_order_seq_cst) == seen) {
    futex_wait(control_->client_events, seen, kServerSlice);
  }
  control_->server_waiting.store(0, std::memory_order_relaxed);
}

bool ShmServerChannel::wait_for_request() {
  const auto none_yet = [this] {
    return control_->request_count.load(std::memory_order_seq_cst) == requests_taken_ &&
           !stopped_.load(std::memory_order_acquire);
  };
  spin_while(none_yet, tuning_.spin, cores());
  while (none_yet()) {
    wait_for_client(none_yet);
  }
  return !stopped_.load(std::memory_order_acquire);
}

void ShmServerChannel::check_payload(const RequestHeader& header) const {
  const std::uint64_t expected = shape_.takes_pushes ? shape_.shard_floats * sizeof(float) : 0;
  if (header.payload_bytes != expected || header.push == 0) {
    throw Error(ErrorCode::kProtocol, "a request with " + std::to_string(header.payload_bytes) +
                                          " bytes of gradient; this session's have " + std::to_string(expected));
  }
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
    check_payload(request.header);
    const std::uint64_t slot = (request.header.push - 1) % shape_.max_inflight;
    request.payload = slots_region_.as<float>() + slot * slot_floats(shape_);
    bytes_received_.fetch_add(request.header.payload_bytes, std::memory_order_relaxed);
    arriving_push_ = request.header.push;
    request.arriving = this;
  }
  if ((request.header.flags & kDeliver) != 0) {
    request.replica = replica_region_.as<float>();  // null where there is none
  }
  return request;
}

Arrival::State ShmServerChannel::wait(std::uint64_t floats, std::chrono::microseconds patience) {
  const std::atomic<std::uint64_t>& word = control_->staged[(arriving_push_ - 1) % shape_.max_inflight];
  const std::uint32_t needed = pieces_of(std::min(floats, shape_.shard_floats));
  State state = State::kLate;
  std::uint32_t pieces = 0;
  const auto still = [&] {
    const Staged staged = unpacked(word.load(std::memory_order_acquire));  // pairs with count_staged()
    if (staged.push == static_cast<std::uint32_t>(arriving_push_)) {
      pieces = staged.pieces;
    }
    if (pieces >= needed) {
      state = pieces == Staged::kWithdrawn ? State::kWithdrawn : State::kHere;
    } else if (stopped_.load(std::memory_order_acquire)) {
      state = State::kCutOff;
    }
    return state == State::kLate;
  };
  if (patience < kAnyPatience) {
    spin_while(still, patience, cores());
  }
  while (patience == kAnyPatience && still()) {
    const std::uint32_t seen = pieces;
    if (spin_while(still, tuning_.spin, cores()) && pieces == seen) {
      wait_for_client(still);
    }
  }
  cut_off_ = state == State::kCutOff;
  return state;
}

void ShmServerChannel::reply(const ReplyHeader& header, ReplyPayload payload) {
  {
    const std::lock_guard lock(held_mutex_);
    held_.push_back({replies_sent_ + 1, std::move(payload.release)});
  }
  control_->replies[replies_sent_ % kRingEntries] = header;
  ++replies_sent_;
  const bool delivered = (header.flags & kDeliver) != 0;
  bytes_sent_.fetch_add(delivered ? shape_.shard_floats * sizeof(float) : header.payload_bytes,
                        std::memory_order_relaxed);
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
  futex_wake_all(control_->client_events);
}

void ShmServerChannel::close() {
  stop_taking();
  closed_.store(true, std::memory_order_release);
  control_->server_events.fetch_add(1, std::memory_order_seq_cst);
  futex_wake_all(control_->server_events);
  collect_released();
}

// ---- Client ----

ShmClientChannel::ShmClientChannel(const ChannelShape& shape, const Tuning& tuning, std::vector<FileDescriptor> fds,
                                   MapBuffer map_buffer)
    : shape_(shape), tuning_(tuning), map_buffer_(std::move(map_buffer)) {
  if (fds.empty() || (shape.takes_pushes && fds.size() < 2)) {
    throw Error(ErrorCode::kProtocol, "the server passed no shared memory with its welcome");
  }
  control_region_ = Region::map(fds[0].release(), round_to_page(sizeof(ShmControl)), true);
  control_ = control_region_.as<ShmControl>();
  if (control_->nonce[0] != shape.nonce[0] || control_->nonce[1] != shape.nonce[1]) {
    throw Error(ErrorCode::kConnect, "the shared memory that was passed is not this server's");
  }
  if (shape.takes_pushes) {
    slots_region_ = Region::map(fds[1].release(), slots_bytes(shape), true);
  }
  if (fds.size() > 2) {
    replica_fd_ = std::move(fds[2]);
  }
}

bool ShmClientChannel::place_replica(float* at) {
  if (!replica_fd_ || !tuning_.deliver || reinterpret_cast<std::uintptr_t>(at) % kPageBytes != 0) {
    return false;
  }
  Region::map_over(at, replica_fd_.release(), shard_bytes(shape_));
  replica_ = at;
  return true;
}

bool ShmClientChannel::has_room(std::uint64_t push) {
  seen_events_ = control_->server_events.load(std::memory_order_seq_cst);
  return push <= control_->settled.load(std::memory_order_acquire) + shape_.max_inflight;
}

void ShmClientChannel::announce(const RequestHeader& request) {
  control_->requests[requests_posted_ % kRingEntries] = request;
  ++requests_posted_;
  control_->request_count.store(requests_posted_, std::memory_order_seq_cst);  // pairs with wait_for_request()
  wake_server();
}

void ShmClientChannel::wake_server() {
  control_->client_events.fetch_add(1, std::memory_order_seq_cst);
  if (control_->server_waiting.load(std::memory_order_seq_cst) != 0) {  // pairs with wait_for_client()
    futex_wake_all(control_->client_events);
  }
}

void ShmClientChannel::count_staged(std::uint64_t push, std::uint32_t pieces) {
  control_->staged[(push - 1) % shape_.max_inflight].store(packed({static_cast<std::uint32_t>(push), pieces}),
                                                           std::memory_order_release);
}

bool ShmClientChannel::stage(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) {
  float* const slot = slots_region_.as<float>() + (request.push - 1) % shape_.max_inflight * slot_floats(shape_);
  if (tuning_.announce_early && shape_.shard_floats > kStageFloats) {
    count_staged(request.push, 0);
    announced_push_ = request.push;
    announce(request);
  }
  bool finite = true;
  std::uint64_t counted = kStageFloats;  // where the next piece to count ends
  for (const SourcePiece& piece : gradient) {
    for (std::uint64_t done = 0; done < piece.count && finite;) {
      const std::uint64_t at = piece.offset + done;
      const std::uint64_t step = std::min(piece.count - done, kStageFloats - at % kStageFloats);
      finite = scale == 1.0F ? copy_finite(slot + at, piece.from + done, step)
                             : copy_scaled_finite(slot + at, piece.from + done, scale, step);
      done += step;
      if (at + step >= counted && at + step < shape_.shard_floats) {
        count_staged(request.push, static_cast<std::uint32_t>((at + step) / kStageFloats));
        counted = (at + step) / kStageFloats * kStageFloats + kStageFloats;
      }
    }
  }
  return finite;
}

void ShmClientChannel::post(const RequestHeader& request) {
  if (request.kind == RequestKind::kPush) {
    count_staged(request.push, pieces_of(shape_.shard_floats));
  }
  if (request.push == 0 || announced_push_ != request.push) {
    announce(request);
    return;
  }
  if (request.kind == RequestKind::kSkip) {
    count_staged(request.push, Staged::kWithdrawn);
  }
  announced_push_ = 0;
  wake_server();
}

bool ShmClientChannel::receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) {
  release_up_to(replies_taken_);  // what was read in place is let go now
  in_place_ = nullptr;
  const auto none_yet = [this] { return control_->reply_count.load(std::memory_order_acquire) == replies_taken_; };
  const std::chrono::microseconds work(shape_.shard_floats * sizeof(float) / kSpinBytesPerMicrosecond);
  const auto spin = tuning_.spin.count() == 0 ? tuning_.spin : std::min(tuning_.spin + work, kLongestSpin);
  spin_while([&] { return none_yet() && !closed_.load(std::memory_order_acquire); }, spin, cores());
  seen_events_ = control_->server_events.load(std::memory_order_seq_cst);
  if (none_yet()) {
    return false;
  }
  reply = control_->replies[replies_taken_ % kRingEntries];
  take_parameters(reply, parameters);
  ++replies_taken_;
  if (in_place_ == nullptr) {
    release_up_to(replies_taken_);
  }
  return true;
}

// Copies them to where they are wanted, or leaves them to be read where they lie: nobody wants them elsewhere.
void ShmClientChannel::take_parameters(const ReplyHeader& reply, std::span<const TargetPiece> targets) {
  const bool delivered = (reply.flags & kDeliver) != 0;
  if (delivered && replica_ == nullptr) {
    throw Error(ErrorCode::kProtocol, "a reply says that it put parameters where there is no place for them");
  }
  if (!delivered && reply.payload_bytes == 0) {
    return;
  }
  const float* const from = delivered ? replica_ : parameters_of(reply);
  const std::uint64_t there = delivered ? shape_.shard_floats : reply.delivered * kDeliveredFloats;
  for (TargetPiece piece : targets) {
    if (piece.to == replica_ + piece.offset && piece.offset < there) {
      const std::uint64_t skipped = std::min(piece.count, there - piece.offset);
      piece = {piece.to + skipped, piece.offset + skipped, piece.count - skipped};
    }
    copy_whole(piece.to, from + piece.offset, piece.count, tuning_.past_cache);
  }
  in_place_ = targets.empty() && !delivered ? from : nullptr;
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
