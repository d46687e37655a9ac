#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/platform.h"
#include "base/waiting.h"
#include "kernels/kernels.h"
#include "transport/shm/shm_channel.h"

namespace distnet {
namespace {

constexpr milliseconds kBetweenMoves{100};  // from a core that is shared: where each is, the system decides, too
constexpr milliseconds kMostSleep{250};  // close() wakes a sleeper; this only bounds how late a lost wake-up is noticed
constexpr std::uint32_t kNoCore = 0xFFFFFFFFU;

}  // namespace

ShmServerChannel::ShmServerChannel(const ChannelShape& shape, const Tuning& tuning, Memory& memory)
    : shape_(shape),
      tuning_(tuning),
      control_region_(memory.allocate_shared(kShmControlBytes, true)),
      slots_region_(shape.takes_pushes ? memory.allocate_shared(shm_slots_bytes(shape), true) : Region()),
      replica_region_(shape.takes_pushes && tuning.deliver ? memory.allocate_shared(shm_shard_bytes(shape), true)
                                                           : Region()),
      control_(control_region_.as<ShmControl>()) {
  control_->nonce[0] = shape.nonce[0];
  control_->nonce[1] = shape.nonce[1];
  control_->client_core.store(kNoCore, std::memory_order_relaxed);
  control_->server_core.store(kNoCore, std::memory_order_relaxed);
  control_->server_waiting.store(kServerDormant, std::memory_order_relaxed);  // before the client gets the region
}

ShmServerChannel::~ShmServerChannel() { close(); }

std::vector<int> ShmServerChannel::descriptors() const {
  std::vector<int> fds{control_region_.fd()};
  for (const Region* region : {&slots_region_, &replica_region_}) {
    if (region->fd() >= 0) {
      fds.push_back(region->fd());
    }
  }
  return fds;
}

void ShmServerChannel::descriptors_passed() {
  for (Region* const region : {&control_region_, &slots_region_, &replica_region_}) {
    region->close_file();
  }
}

// Sleeps while `still` holds, until the client posts or concludes something, for so long at most.
template <typename Condition>
void ShmServerChannel::wait_for_client(const Condition& still, std::chrono::nanoseconds at_most) {
  const std::uint32_t seen = control_->client_events.load(std::memory_order_seq_cst);
  control_->server_waiting.store(kServerSleeps, std::memory_order_seq_cst);  // pairs with wake_server()
  if (still() && control_->client_events.load(std::memory_order_seq_cst) == seen) {
    futex_wait(control_->client_events, seen, at_most);
  }
  control_->server_waiting.store(kServerAwake, std::memory_order_relaxed);
}

// Requests that a client had posted when it left are still taken.
bool ShmServerChannel::wait_for_request() {
  const auto none_yet = [this] {
    const bool left = client_left_.load(std::memory_order_acquire);  // read first: what it posted before counts
    return control_->request_count.load(std::memory_order_seq_cst) == requests_taken_ && !left &&
           !stopped_.load(std::memory_order_acquire);
  };
  const auto spin = [this](const auto& still) { return spin_while(still, tuning_.spin, cores()); };
  if (control_->core_to_leave.load(std::memory_order_relaxed) == current_core() + 1 && next_move_.expired() &&
      !simulated()) {
    leave_core();
    next_move_ = Deadline::after(kBetweenMoves);
  }
  if (between_requests_.wait_awake(none_yet, spin)) {
    const Deadline idle = Deadline::after(kIdleSeconds);
    while (none_yet()) {
      if (idle.expired() && fall_dormant(none_yet)) {
        return false;
      }
      wait_for_client(none_yet, kMostSleep);
    }
  }
  return !stopped_.load(std::memory_order_acquire) &&
         control_->request_count.load(std::memory_order_acquire) != requests_taken_;
}

// Returns false where a request came at the last moment.
template <typename Condition>
bool ShmServerChannel::fall_dormant(const Condition& none_yet) {
  control_->server_waiting.store(kServerDormant, std::memory_order_seq_cst);  // pairs with wake_server()
  dormant_ = none_yet();
  if (!dormant_) {
    control_->server_waiting.store(kServerAwake, std::memory_order_relaxed);
  }
  return dormant_;
}

void ShmServerChannel::check_payload(const RequestHeader& header) const {
  const std::uint64_t expected = shape_.takes_pushes ? shape_.shard_floats * sizeof(float) : 0;
  if (header.payload_bytes != expected || header.push == 0) {
    throw Error(ErrorCode::kProtocol, "a request with " + std::to_string(header.payload_bytes) +
                                          " bytes of gradient; this session's have " + std::to_string(expected));
  }
}

// A copy: the client may write there at any time.
std::span<const double> ShmServerChannel::take_group_rates(std::uint64_t slot) {
  group_rates_.resize(std::size_t{kMaxInFlight} * kMaxRatedGroups);
  const std::span<double> rates(&group_rates_[slot * kMaxRatedGroups], shape_.rated_groups);
  std::copy_n(control_->group_rates[slot], rates.size(), rates.begin());
  return rates;
}

std::optional<Request> ShmServerChannel::next() {
  if (std::exchange(dormant_, false)) {
    control_->server_waiting.store(kServerAwake, std::memory_order_relaxed);  // a late Wake does no harm
  }
  if (!wait_for_request()) {
    return std::nullopt;
  }
  control_->server_core.store(current_core(), std::memory_order_relaxed);  // also where it has not spun
  const std::uint32_t posted = control_->request_count.load(std::memory_order_acquire) - requests_taken_;
  if (posted > kRingEntries) {
    throw Error(ErrorCode::kProtocol, "a client announced more requests than its ring holds");
  }
  collect_released();
  {
    const std::lock_guard lock(held_mutex_);
    // One reply more than may be unanswered: a client that reads in place lets go of it with the next one.
    if (held_.size() > shape_.max_inflight) {
      throw Error(ErrorCode::kProtocol, "a client asks on and lets none of its replies go");
    }
  }
  Request request;
  request.header = control_->requests[requests_taken_ % kRingEntries];  // a copy: checked, then used
  ++requests_taken_;
  if (request.header.payload_bytes != 0) {
    check_payload(request.header);
    const std::uint64_t slot = (request.header.push - 1) % shape_.max_inflight;
    request.gradient =
        GradientView::dense(slots_region_.as<float>() + slot * shm_slot_floats(shape_), shape_.shard_floats);
    if ((request.header.fields & kHasGroupRates) != 0) {
      request.group_rates = take_group_rates(slot);
    }
    bytes_received_.fetch_add(request.header.payload_bytes, std::memory_order_relaxed);
    arriving_push_ = request.header.push;
    request.arriving = this;
  }
  if ((request.header.flags & kDeliver) != 0) {
    request.replica = replica_region_.as<float>();  // null when there is none
  }
  return request;
}

Arrival::State ShmServerChannel::wait(std::uint64_t floats, std::chrono::microseconds patience) {
  const std::atomic<std::uint64_t>& word = control_->staged[(arriving_push_ - 1) % shape_.max_inflight];
  const std::uint32_t needed = shm_pieces(std::min(floats, shape_.shard_floats));
  State state = State::kLate;
  std::uint32_t pieces = 0;
  const auto still = [&] {
    // Read first: what was staged before the client left counts.
    const bool ended = stopped_.load(std::memory_order_acquire) || client_left_.load(std::memory_order_acquire);
    const Staged staged = Staged::unpacked(word.load(std::memory_order_acquire));  // pairs with count_staged()
    if (staged.push == static_cast<std::uint32_t>(arriving_push_)) {
      pieces = staged.pieces;
    }
    if (pieces >= needed) {
      state = pieces == Staged::kWithdrawn ? State::kWithdrawn : State::kHere;
    } else if (ended) {
      state = State::kCutOff;
    }
    return state == State::kLate;
  };
  if (patience < kAnyPatience) {
    const Deadline deadline = Deadline::after(patience);
    // The spin ends early where both ends share a core: the client needs it.
    const auto spin = [&](const auto& condition) { return spin_while(condition, patience, cores()); };
    if (during_arrival_.wait_awake(still, spin) && !deadline.expired()) {
      wait_for_client(still, deadline.left());
    }
  }
  while (patience == kAnyPatience && still()) {
    const std::uint32_t seen = pieces;
    const auto spin = [this](const auto& condition) { return spin_while(condition, tuning_.spin, cores()); };
    if (during_arrival_.wait_awake(still, spin) && pieces == seen) {
      wait_for_client(still, kMostSleep);
    }
  }
  cut_off_ = state == State::kCutOff;
  return state;
}

void ShmServerChannel::reply(Reply reply) {
  const bool delivered = (reply.header.flags & kDeliver) != 0;
  {
    const std::lock_guard lock(held_mutex_);
    held_.push_back({replies_sent_ + 1, std::move(reply.pin)});
  }
  control_->replies[replies_sent_ % kRingEntries] = reply.header;
  ++replies_sent_;
  bytes_sent_.fetch_add(delivered ? shape_.shard_floats * sizeof(float) : reply.header.payload_bytes,
                        std::memory_order_relaxed);
  control_->reply_count.store(replies_sent_, std::memory_order_release);  // pairs with receive()
  wake_client();
}

void ShmServerChannel::settled(std::uint64_t push) {
  control_->settled.store(push, std::memory_order_release);  // pairs with has_room()
  wake_client();
}

// Pairs with read_draft(). The word is empty while it changes, so that no reader takes one push's draft for another's.
void ShmServerChannel::drafted(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) {
  const bool first = push != drafting_push_;
  if (first) {
    drafting_push_ = push;
    control_->draft.store(0, std::memory_order_release);
    control_->draft_push.store(push, std::memory_order_release);
  }
  control_->draft.store(Drafted{buffer, shm_pieces(elements)}.packed(), std::memory_order_release);
  if (first && shm_pieces(elements) < shm_pieces(shape_.shard_floats)) {  // else the reply comes at once
    wake_client();
  }
}

Progress ShmServerChannel::progress() const {
  return {bytes_received(), control_->reply_count.load(std::memory_order_relaxed), true};
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
}  // the pins are released here, outside the lock

void ShmServerChannel::client_left() {
  client_left_.store(true, std::memory_order_release);
  futex_wake_all(control_->client_events);
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

std::unique_ptr<ServerChannel> open_shm_channel(const ChannelShape& shape, const Tuning& tuning, Memory& memory,
                                                Stream) {
  return std::make_unique<ShmServerChannel>(shape, tuning, memory);
}

}  // namespace distnet
