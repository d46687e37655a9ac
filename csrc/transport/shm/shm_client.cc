#include <algorithm>

#include "base/error.h"
#include "base/platform.h"
#include "base/waiting.h"
#include "kernels/kernels.h"
#include "transport/shm/shm_channel.h"

namespace distnet {
namespace {

constexpr std::uint32_t kMaxBuffers = 1U << 16U;
constexpr std::uint64_t kSpinBytesPerMicrosecond = 16'000;  // the highest rate at which a server works
constexpr std::chrono::microseconds kLongestSpin{2000};

}  // namespace

ShmClientChannel::ShmClientChannel(const ChannelShape& shape, const Tuning& tuning, std::vector<FileDescriptor> fds,
                                   ControlCalls calls)
    : shape_(shape), tuning_(tuning), calls_(std::move(calls)) {
  if (fds.empty() || (shape.takes_pushes && fds.size() < 2)) {
    throw Error(ErrorCode::kProtocol, "the server passed no shared memory with its welcome");
  }
  control_region_ = Region::map(fds[0].release(), kShmControlBytes, true);
  control_ = control_region_.as<ShmControl>();
  if (control_->nonce[0] != shape.nonce[0] || control_->nonce[1] != shape.nonce[1]) {
    throw Error(ErrorCode::kConnect, "the shared memory that was passed is not this server's");
  }
  if (shape.takes_pushes) {
    slots_region_ = Region::map(fds[1].release(), shm_slots_bytes(shape), true);
  }
  if (fds.size() > 2) {
    replica_fd_ = std::move(fds[2]);
  }
}

bool ShmClientChannel::place_replica(float* at) {
  if (!replica_fd_ || !tuning_.deliver || reinterpret_cast<std::uintptr_t>(at) % kPageBytes != 0) {
    return false;
  }
  Region::map_over(at, replica_fd_.release(), shm_shard_bytes(shape_));
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
  const std::uint32_t waiting = control_->server_waiting.load(std::memory_order_seq_cst);
  if (waiting == kServerSleeps) {  // pairs with wait_for_client()
    futex_wake_all(control_->client_events);
  } else if (waiting == kServerDormant) {  // pairs with fall_dormant()
    calls_.wake_server();
  }
}

// Pairs with the server's wait().
void ShmClientChannel::count_staged(std::uint32_t pieces) {
  const Staged staged{static_cast<std::uint32_t>(pushing_.push), pieces};
  control_->staged[(pushing_.push - 1) % shape_.max_inflight].store(staged.packed(), std::memory_order_release);
}

void ShmClientChannel::post(const RequestHeader& request) {
  reads_draft_ = false;
  announce(request);
}

void ShmClientChannel::start(const RequestHeader& request, std::span<const double> group_rates,
                             std::span<const SourceSlice> gradient, float scale) {
  pushing_ = request;
  reads_draft_ = tuning_.read_drafts && (request.flags & kWantParameters) != 0;
  draft_ = {};
  finite_ = true;
  half_way_ = true;
  DISTNET_INVARIANT(group_rates.size() <= kMaxRatedGroups);
  std::ranges::copy(group_rates, control_->group_rates[(request.push - 1) % shape_.max_inflight]);
  announced_ = tuning_.announce_early && shape_.shard_floats > kPieceFloats;
  if (announced_) {
    count_staged(0);
    announce(request);
  }
  float* const slot = slots_region_.as<float>() + (request.push - 1) % shape_.max_inflight * shm_slot_floats(shape_);
  std::uint64_t counted = 0;
  for (const SourceSlice& slice : gradient) {
    for (std::uint64_t done = 0; done < slice.count && finite_;) {
      const std::uint64_t at = slice.offset + done;
      const std::uint64_t step = std::min(slice.count - done, kPieceFloats - at % kPieceFloats);
      finite_ = scale == 1.0F ? copy_finite(slot + at, slice.from + done, step)
                              : copy_scaled_finite(slot + at, slice.from + done, scale, step);
      done += step;
      const std::uint64_t whole = (at + step) / kPieceFloats;
      if (whole > counted && at + step < shape_.shard_floats) {  // the last piece is counted by conclude()
        counted = whole;
        count_staged(static_cast<std::uint32_t>(whole));
      }
    }
  }
}

// Only an exception between start() and conclude() leaves a push half-way.
bool ShmClientChannel::withdraw() {
  const bool begun = half_way_;
  if (begun) {
    conclude(false);
  }
  return begun;
}

void ShmClientChannel::conclude(bool counts) {
  half_way_ = false;
  reads_draft_ = reads_draft_ && counts;  // else there will be no version to read
  count_staged(counts ? shm_pieces(shape_.shard_floats) : Staged::kWithdrawn);
  if (announced_) {
    wake_server();
  } else {
    announce(pushing_);
  }
}

bool ShmClientChannel::receive(ReplyHeader& reply, std::span<const TargetSlice> parameters) {
  release_up_to(replies_taken_);  // what was read in place is released now
  in_place_ = nullptr;
  const auto none_yet = [this] {
    return control_->reply_count.load(std::memory_order_acquire) == replies_taken_ &&
           !closed_.load(std::memory_order_acquire);
  };
  const std::chrono::microseconds work(shape_.shard_floats * sizeof(float) / kSpinBytesPerMicrosecond);
  const auto spin = tuning_.spin.count() == 0 ? tuning_.spin : std::min(tuning_.spin + work, kLongestSpin);
  const auto nothing_to_read = [&] { return none_yet() && !read_draft(parameters); };
  const auto spins = [&](const auto& still) { return spin_while(still, spin, cores()); };
  // The first piece of a draft wakes a client that sleeps. The next one is then a few microseconds away.
  while (none_yet() && !(draft_.pieces != 0 ? during_drafts_ : before_replies_).wait_awake(nothing_to_read, spins)) {
  }
  seen_events_ = control_->server_events.load(std::memory_order_seq_cst);
  if (control_->reply_count.load(std::memory_order_acquire) == replies_taken_) {
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

// Copies what can be read of the version that the newest request's push makes. Returns whether there was anything new.
bool ShmClientChannel::read_draft(std::span<const TargetSlice> targets) {
  if (!reads_draft_ || targets.empty() || replies_taken_ + 1 != requests_posted_) {
    return false;
  }
  // The word describes that push because it is the same before and after reading the push's number. Pairs with
  // drafted().
  const std::uint64_t word = control_->draft.load(std::memory_order_acquire);
  const std::uint64_t push = control_->draft_push.load(std::memory_order_acquire);
  const Drafted draft = Drafted::unpacked(word);
  if (push != pushing_.push || control_->draft.load(std::memory_order_acquire) != word ||
      draft.pieces > shm_pieces(shape_.shard_floats)) {
    return false;
  }
  if (draft_.buffer != draft.buffer || draft_to_ != targets.front().to) {
    draft_ = {draft.buffer, 0};
    draft_to_ = targets.front().to;
  }
  if (draft.pieces <= draft_.pieces) {
    return false;
  }
  copy_range(targets, buffer(draft.buffer).as<float>(), draft_.pieces * kPieceFloats,
             std::min(draft.pieces * kPieceFloats, shape_.shard_floats));
  draft_.pieces = draft.pieces;
  return true;
}

// Copies the parameters to where they are wanted. Without targets they are left to be read in place.
void ShmClientChannel::take_parameters(const ReplyHeader& reply, std::span<const TargetSlice> targets) {
  const bool delivered = (reply.flags & kDeliver) != 0;
  if ((delivered || reply.delivered != 0) && replica_ == nullptr) {
    throw Error(ErrorCode::kProtocol, "a reply says that it put parameters where there is no place for them");
  }
  if (!delivered && reply.payload_bytes == 0) {
    return;
  }
  const float* const from = delivered ? replica_ : parameters_of(reply);
  const bool is_here = !targets.empty() && targets.front().to == draft_to_;
  const bool drafted = (reply.flags & kDrafted) != 0 && reply.buffer == draft_.buffer && is_here;
  const std::uint64_t read = drafted ? draft_.pieces * kPieceFloats : 0;
  const std::uint64_t there = delivered ? shape_.shard_floats : reply.delivered * kDeliveredFloats;
  const bool into_replica = !targets.empty() && targets.front().to == replica_ + targets.front().offset;
  copy_range(targets, from, std::max(read, into_replica ? there : 0), shape_.shard_floats);
  draft_ = {};
  in_place_ = targets.empty() && !delivered ? from : nullptr;
}

void ShmClientChannel::copy_range(std::span<const TargetSlice> targets, const float* from, std::uint64_t begin,
                                  std::uint64_t end) const {
  for (const TargetSlice& slice : targets) {
    const std::uint64_t first = std::max(begin, slice.offset);
    const std::uint64_t last = std::min(end, slice.offset + slice.count);
    if (first < last) {
      copy_whole(slice.to + (first - slice.offset), from + first, last - first,
                 tuning_.past_cache && exceeds_cache(shape_.shard_floats * sizeof(float)));
    }
  }
}

const Region& ShmClientChannel::buffer(std::uint32_t index) {
  if (index >= buffers_.size()) {
    buffers_.resize(index + 1);
  }
  if (buffers_[index].data() == nullptr) {
    buffers_[index] = calls_.map_buffer(index);
  }
  return buffers_[index];
}

const float* ShmClientChannel::parameters_of(const ReplyHeader& reply) {
  if (reply.buffer >= kMaxBuffers || reply.payload_bytes != shape_.shard_floats * sizeof(float)) {
    throw Error(ErrorCode::kProtocol, "a reply names parameters that cannot be");
  }
  const bool ema = (reply.flags & kWantEma) != 0;
  return buffer(reply.buffer).as<float>(ema ? shape_.ema_offset_bytes : 0);
}

void ShmClientChannel::release_up_to(std::uint32_t reply) {
  if (control_->released_count.load(std::memory_order_relaxed) != reply) {
    control_->released_count.store(reply, std::memory_order_release);  // pairs with collect_released()
  }
}

std::optional<std::uint32_t> ShmClientChannel::server_core() const {
  return control_->server_core.load(std::memory_order_relaxed);
}

void ShmClientChannel::ask_to_leave(std::uint32_t core) {
  control_->core_to_leave.store(core + 1, std::memory_order_relaxed);  // a hint: it orders nothing
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

std::unique_ptr<ClientChannel> join_shm_channel(const ChannelShape& shape, const Tuning& tuning, Stream,
                                                std::vector<FileDescriptor>&& fds, const ControlCalls& calls) {
  return std::make_unique<ShmClientChannel>(shape, tuning, std::move(fds), calls);
}

}  // namespace distnet
