// The lane of ranks on one host: each has staging chunks in shared memory, which it fills and all others read.
//
// What moves is cut into steps, counted alike on all ranks through all operations. In a step a rank fills one of its
// chunks and reads its part of the chunks of the others. A chunk is used again kChunks steps later.
//
// Invariants
// - Each word of the region has one owner, the rank whose block it is in, which alone stores it. The one exception is
//   `bell`: its owner sleeps on it, and others add to it to wake the owner.
// - The chunk of step s is filled before `posted` exceeds s, and filled anew only when every other rank's `taken` has
//   passed the step that it was filled for.
// - All ranks count the same steps for an operation, because they compute them from the same headers.
// - A peer can write anything anywhere in the region at any time. A header and its lengths are copied before they are
//   checked, no word is used as an index or a length, and what is read of a chunk goes to the caller's arrays alone.
// - A rank that goes to sleep sets `waits_for` before it looks a last time; whoever posts or takes looks at that word
//   afterwards. Both use sequential consistency, so one of them sees the other.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/threads.h"
#include "base/units.h"
#include "base/waiting.h"
#include "group/carrier_lane.h"
#include "kernels/kernels.h"
#include "transport/spin.h"

namespace distnet {
namespace {

constexpr std::uint64_t kChunks = 4;
constexpr std::uint64_t kChunkBytes = 256 * 1024;
constexpr std::uint64_t kAhead = 1;  // chunks that a rank fills before it reads the step it is at
static_assert(kAhead < kChunks && kSmallBytes <= kChunkBytes);

// How long a rank spins for a chunk, beside Tuning::spin: about as long as others need to fill one.
constexpr std::chrono::microseconds kChunkTime{60};

struct alignas(kCacheLineBytes) Words {
  std::atomic<std::uint64_t> posted;     // steps whose chunk is filled
  std::atomic<std::uint64_t> taken;      // steps of which nothing will be read any more
  std::atomic<std::uint32_t> waits_for;  // the rank that this one sleeps for, plus 1; else 0
  std::atomic<std::uint32_t> core;       // where it last ran
  alignas(kCacheLineBytes) std::atomic<std::uint32_t> bell;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

// Copies past the cache what lies on whole floats.
void copy_bytes_past_cache(std::byte* to, const std::byte* from, std::uint64_t bytes) {
  const auto address = [](const std::byte* at) { return reinterpret_cast<std::uintptr_t>(at); };
  std::uint64_t done = 0;
  if ((address(to) | address(from)) % sizeof(float) == 0) {
    const std::uint64_t floats = bytes / sizeof(float);
    copy_past_cache(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), floats);
    done = floats * sizeof(float);
  }
  std::memcpy(to + done, from + done, bytes - done);
}

constexpr std::uint64_t rounded_up(std::uint64_t bytes, std::uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

std::uint64_t head_bytes(std::uint32_t size) {
  return rounded_up(sizeof(OpeningLengths) + header_bytes_bound(size), kCacheLineBytes);
}
std::uint64_t chunk_stride(std::uint32_t size) { return rounded_up(head_bytes(size) + kChunkBytes, kPageBytes); }
std::uint64_t block_bytes(std::uint32_t size) { return kPageBytes + kChunks * chunk_stride(size); }

class ShmCarrier final : public Carrier {
 public:
  ShmCarrier(std::uint32_t rank, std::uint32_t size, std::byte* memory, const Tuning& tuning)
      : rank_(rank),
        size_(size),
        memory_(memory),
        tuning_(tuning),
        past_cache_(tuning.past_cache && size <= processors()),
        own_(words(rank)),
        headers_(size, std::vector<std::byte>(header_bytes_bound(size))),
        openings_(size) {}

  std::span<const Opening> open(std::span<const std::byte> header, const ConstPieces& small,
                                const Patience& patience) override;
  void release() override { take(opened_ + 1); }
  void move(const Phase& phase, const Patience& patience) override;
  bool reaches_all_at_once() const override { return true; }
  void abort(const Error& why) override;
  std::vector<std::uint32_t> awaited() const override;
  const Breakage& breakage() const override { return breakage_; }

 private:
  enum class Awaited : std::uint32_t { kNothing, kPosted, kTaken };

  Words& words(std::uint32_t rank) const {
    return *reinterpret_cast<Words*>(memory_ + std::uint64_t{rank} * block_bytes(size_));
  }
  std::byte* head(std::uint32_t rank, std::uint64_t step) const {
    return memory_ + std::uint64_t{rank} * block_bytes(size_) + kPageBytes + step % kChunks * chunk_stride(size_);
  }
  std::byte* chunk(std::uint32_t rank, std::uint64_t step) const { return head(rank, step) + head_bytes(size_); }
  bool lacks(std::uint32_t peer, Awaited what, std::uint64_t step) const;

  // Says what this rank sleeps for, as long as it lives.
  class Sleep {
   public:
    Sleep(ShmCarrier& carrier, Awaited what, std::uint64_t step) : carrier_(carrier) {
      carrier.awaited_step_.store(step, std::memory_order_relaxed);
      carrier.awaits_.store(what, std::memory_order_release);  // pairs with awaited()
    }
    Sleep(const Sleep&) = delete;
    Sleep& operator=(const Sleep&) = delete;
    ~Sleep() {
      carrier_.own_.waits_for.store(0, std::memory_order_relaxed);
      carrier_.awaits_.store(Awaited::kNothing, std::memory_order_release);
    }

   private:
    ShmCarrier& carrier_;
  };

  void await(std::uint32_t peer, Awaited what, std::uint64_t step, const Patience& patience);
  void sleep_until(std::uint32_t peer, Awaited what, std::uint64_t step, const Patience& patience);
  void await_room(std::uint64_t step, const Patience& patience);
  void post(std::uint64_t steps);
  void take(std::uint64_t steps);
  void wake_waiters();
  void fill(const Phase& phase, std::uint64_t part, std::uint64_t index, std::uint64_t step) const;
  void read(const Phase& phase, std::uint64_t part, std::uint64_t index, std::uint64_t step, const Patience& patience);
  void hand_out(std::byte* to, const ConstPieces& from, std::uint64_t begin, std::uint64_t bytes) const;
  // Where in a chunk of rank `from` lies what rank `to` reads: its place among the others.
  std::byte* part_of(std::uint32_t from, std::uint32_t to, const Phase& phase, std::uint64_t part,
                     std::uint64_t step) const {
    return chunk(from, step) + (phase.shared ? 0 : part * (to < from ? to : to - 1));
  }
  void read_opening(std::uint32_t peer, std::uint64_t step);

  const std::uint32_t rank_;
  const std::uint32_t size_;
  std::byte* const memory_;
  const Tuning tuning_;
  // Chunks are filled past the cache. The cores of other ranks have the lines of what a chunk held before, and would
  // have to give them up first, one by one. Ranks that share cores read chunks from the cache that they share.
  const bool past_cache_;
  Words& own_;
  std::uint64_t posted_ = 0;  // what our words say
  std::uint64_t taken_ = 0;
  std::uint64_t opened_ = 0;  // the step of the last opening
  std::vector<std::vector<std::byte>> headers_;
  std::vector<Opening> openings_;
  SpinHabit before_openings_;
  SpinHabit between_chunks_;
  bool opening_ = false;
  Breakage breakage_;
  std::atomic<Awaited> awaits_{Awaited::kNothing};  // for awaited()
  std::atomic<std::uint64_t> awaited_step_{0};
};

// ---- waiting ----
bool ShmCarrier::lacks(std::uint32_t peer, Awaited what, std::uint64_t step) const {
  // Pairs with post() and take().
  return what == Awaited::kPosted ? words(peer).posted.load(std::memory_order_seq_cst) <= step
                                  : words(peer).taken.load(std::memory_order_seq_cst) + kChunks <= step;
}

void ShmCarrier::await(std::uint32_t peer, Awaited what, std::uint64_t step, const Patience& patience) {
  if (!lacks(peer, what, step)) {
    return;
  }
  const auto still = [&] { return lacks(peer, what, step) && !breakage_.is_set(); };
  const bool spins = tuning_.spin.count() != 0;
  const auto budget = tuning_.spin + (opening_ || !spins ? std::chrono::microseconds{0} : kChunkTime);
  SpinHabit& habit = opening_ ? before_openings_ : between_chunks_;
  const auto spin = [&](const auto& condition) {
    return spin_while(condition, budget, Cores{own_.core, words(peer).core});
  };
  if (habit.wait_awake(still, spin)) {
    sleep_until(peer, what, step, patience);
  }
  breakage_.check();
}

void ShmCarrier::sleep_until(std::uint32_t peer, Awaited what, std::uint64_t step, const Patience& patience) {
  const Sleep sleep(*this, what, step);
  Deadline next_look = Deadline::after(kInterruptInterval);
  while (true) {
    const std::uint32_t rung = own_.bell.load(std::memory_order_seq_cst);
    own_.waits_for.store(peer + 1, std::memory_order_seq_cst);  // pairs with wake_waiters()
    if (!lacks(peer, what, step) || breakage_.is_set()) {
      break;
    }
    futex_wait(own_.bell, rung, std::min(next_look.left(), patience.deadline.left()));
    if (patience.interrupt && next_look.expired()) {
      patience.interrupt();
    }
    if (next_look.expired()) {
      next_look = Deadline::after(kInterruptInterval);
    }
    if (patience.deadline.expired() && lacks(peer, what, step)) {
      throw late(patience, awaited().empty() ? std::vector{peer} : awaited());
    }
  }
}

std::vector<std::uint32_t> ShmCarrier::awaited() const {
  std::vector<std::uint32_t> ranks;
  const Awaited what = awaits_.load(std::memory_order_acquire);  // pairs with sleep_until()
  const std::uint64_t step = awaited_step_.load(std::memory_order_relaxed);
  for (std::uint32_t peer = 0; what != Awaited::kNothing && peer < size_; ++peer) {
    if (peer != rank_ && lacks(peer, what, step)) {
      ranks.push_back(peer);
    }
  }
  return ranks;
}

void ShmCarrier::abort(const Error& why) {
  if (breakage_.set(why)) {
    own_.bell.fetch_add(1, std::memory_order_seq_cst);  // pairs with sleep_until()
    futex_wake_all(own_.bell);
  }
}

void ShmCarrier::wake_waiters() {
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    Words& other = words(peer);
    if (other.waits_for.load(std::memory_order_seq_cst) == rank_ + 1) {  // pairs with sleep_until()
      other.bell.fetch_add(1, std::memory_order_seq_cst);
      futex_wake_all(other.bell);
    }
  }
}

void ShmCarrier::post(std::uint64_t steps) {
  posted_ = steps;
  own_.posted.store(steps, std::memory_order_seq_cst);  // pairs with lacks()
  wake_waiters();
}

void ShmCarrier::take(std::uint64_t steps) {
  taken_ = steps;
  own_.taken.store(steps, std::memory_order_seq_cst);  // pairs with lacks()
  wake_waiters();
}

// Waits until nobody reads any more what our chunk of this step held before.
void ShmCarrier::await_room(std::uint64_t step, const Patience& patience) {
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    if (peer != rank_) {
      await(peer, Awaited::kTaken, step, patience);
    }
  }
}

// ---- openings ----
std::span<const Opening> ShmCarrier::open(std::span<const std::byte> header, const ConstPieces& small,
                                          const Patience& patience) {
  opening_ = true;
  opened_ = posted_;
  await_room(opened_, patience);
  const OpeningLengths lengths{static_cast<std::uint32_t>(header.size()), static_cast<std::uint32_t>(small.bytes())};
  std::byte* const to = head(rank_, opened_);
  std::memcpy(to, &lengths, sizeof lengths);
  std::memcpy(to + sizeof lengths, header.data(), header.size());
  copy_out(chunk(rank_, opened_), small, 0, small.bytes());
  post(opened_ + 1);
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    if (peer != rank_) {
      await(peer, Awaited::kPosted, opened_, patience);
      read_opening(peer, opened_);
    }
  }
  opening_ = false;
  return openings_;
}

void ShmCarrier::read_opening(std::uint32_t peer, std::uint64_t step) {
  OpeningLengths lengths;
  std::memcpy(&lengths, head(peer, step), sizeof lengths);
  if (lengths.header > headers_[peer].size() || lengths.small > kSmallBytes) {
    throw Error(ErrorCode::kProtocol, "rank " + std::to_string(peer) + " posted a header of " +
                                          std::to_string(lengths.header) + " bytes with " +
                                          std::to_string(lengths.small) + " behind it");
  }
  std::memcpy(headers_[peer].data(), head(peer, step) + sizeof lengths, lengths.header);
  openings_[peer] = {{headers_[peer].data(), lengths.header}, {chunk(peer, step), lengths.small}};
}

// ---- phases ----
void ShmCarrier::fill(const Phase& phase, std::uint64_t part, std::uint64_t index, std::uint64_t step) const {
  const std::uint64_t begin = index * part;
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    const ConstPieces& out = phase.legs[peer].out;
    if (out.bytes() <= begin) {
      continue;
    }
    const std::uint64_t bytes = std::min(part, out.bytes() - begin);
    hand_out(part_of(rank_, peer, phase, part, step), out, begin, bytes);
    if (phase.shared) {
      break;
    }
  }
  end_past_cache();
}

void ShmCarrier::hand_out(std::byte* to, const ConstPieces& from, std::uint64_t begin, std::uint64_t bytes) const {
  if (!past_cache_) {
    copy_out(to, from, begin, bytes);
    return;
  }
  for (std::uint64_t done = 0; done < bytes;) {
    const ConstSpan next = from.from(begin + done, bytes - done);
    copy_bytes_past_cache(to + done, next.data(), next.size());
    done += next.size();
  }
}

void ShmCarrier::read(const Phase& phase, std::uint64_t part, std::uint64_t index, std::uint64_t step,
                      const Patience& patience) {
  const std::uint64_t begin = index * part;
  std::vector<const std::byte*> arrived(size_, nullptr);
  std::uint64_t combined = 0;
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    const Phase::Leg& leg = phase.legs[peer];
    if (std::max(leg.in.bytes(), leg.combine) <= begin) {
      continue;
    }
    await(peer, Awaited::kPosted, step, patience);
    if (leg.combine > begin) {
      arrived[peer] = part_of(peer, rank_, phase, part, step);
      combined = std::min(part, leg.combine - begin);
    } else {
      copy_in(leg.in, begin, part_of(peer, rank_, phase, part, step), std::min(part, leg.in.bytes() - begin));
    }
  }
  if (combined != 0) {
    (*phase.combiner)(begin, combined, arrived);
  }
}

void ShmCarrier::move(const Phase& phase, const Patience& patience) {
  const std::uint64_t part =
      phase.shared || size_ == 1 ? kChunkBytes : kChunkBytes / (size_ - 1) / kCacheLineBytes * kCacheLineBytes;
  const std::uint64_t steps = (phase.longest + part - 1) / part;
  const std::uint64_t first = posted_;
  const bool takes_part = std::any_of(phase.legs.begin(), phase.legs.end(), [](const Phase::Leg& leg) {
    return !leg.out.empty() || !leg.in.empty() || leg.combine != 0;
  });
  if (!takes_part) {
    post(first + steps);
    take(first + steps);
    return;
  }
  std::uint64_t filled = 0;
  for (std::uint64_t index = 0; index < steps; ++index) {
    for (; filled < std::min(index + 1 + kAhead, steps); ++filled) {
      await_room(first + filled, patience);
      fill(phase, part, filled, first + filled);
      post(first + filled + 1);
    }
    read(phase, part, index, first + index, patience);
    take(first + index + 1);
  }
}

}  // namespace

std::size_t shm_lane_bytes(std::uint32_t size) { return block_bytes(size) * size; }

std::unique_ptr<Lane> make_shm_lane(std::uint32_t rank, std::uint32_t size, std::byte* memory, const Tuning& tuning) {
  DISTNET_INVARIANT(rank < size && size <= kMostRanks);
  return std::make_unique<CarrierLane>(rank, size, std::make_unique<ShmCarrier>(rank, size, memory, tuning));
}

}  // namespace distnet
