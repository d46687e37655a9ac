#include "store/lockfree_store.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/threads.h"
#include "kernels/kernels.h"

namespace distnet {
namespace {

// The chunks that an update found owned, until it comes back to them.
struct BusyChunks {
  static constexpr std::size_t kCapacity = 32;
  std::size_t chunks[kCapacity];
  std::size_t count = 0;
};

// Calls `visit` with the index of each bit that is set.
template <typename Visit>
void for_each_bit(std::uint64_t bits, const Visit& visit) {
  for (; bits != 0; bits &= bits - 1) {
    visit(static_cast<std::uint32_t>(std::countr_zero(bits)));
  }
}

}  // namespace

static_assert(kMaxUpdatesInFlight <= 63, "bit 63 of a chunk's word says that it is owned");

LockFreeStore::LockFreeStore(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory)
    : rule_(rule, initial.size()),
      layout_(initial.size(), rule_.averages()),
      state_(rule_, initial.size(), memory),
      live_(layout_.make_buffer(memory)),
      chunk_count_((initial.size() + kChunkFloats - 1) / kChunkFloats),
      chunk_memory_(memory.allocate(chunk_count_ * sizeof(Chunk))),
      chunks_(chunk_memory_.as<Chunk>()),
      staging_(memory.allocate(kStagingBuffers * kChunkFloats * sizeof(float))),
      staged_numbers_(memory.allocate(slots_.size() * chunk_count_)) {
  layout_.fill(live_, initial);
  vectors_.in = vectors_.out = layout_.parameters(live_);
  vectors_.average_in = vectors_.average_out = layout_.average(live_);
  state_.attach(vectors_);
  std::uninitialized_value_construct_n(chunks_, chunk_count_);
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].staged = staged_numbers_.as<std::uint8_t>(slot * chunk_count_);
  }
}

std::uint64_t LockFreeStore::chunk_end(std::size_t chunk) const {
  return std::min<std::uint64_t>(chunk_begin(chunk + 1), layout_.size);
}

float* LockFreeStore::staging(std::uint32_t index) const { return staging_.as<float>() + index * kChunkFloats; }

// Updates start at chunks far from each other, so that they seldom meet and never follow each other in a convoy.
std::size_t LockFreeStore::first_chunk() {
  const std::uint64_t visit = visits_.fetch_add(1, std::memory_order_relaxed);  // a ticket, it orders nothing
  const std::uint64_t spread = (visit * 0x9E3779B97F4A7C15U) >> 32;             // multiples of the golden ratio
  return static_cast<std::size_t>((spread * chunk_count_) >> 32);
}

bool LockFreeStore::try_own(std::size_t chunk) {
  std::atomic<std::uint64_t>& word = chunks_[chunk].word;
  std::uint64_t expected = 0;
  // The plain look first keeps the line shared while another thread works on the chunk. Acquire pairs with the release
  // in serve_and_give_up(): the former owner's writes are ours to build on.
  return word.load(std::memory_order_relaxed) == 0 &&
         word.compare_exchange_strong(expected, kOwned, std::memory_order_acquire, std::memory_order_relaxed);
}

void LockFreeStore::apply_to_owned(std::size_t chunk, const JoinedGradient& gradient) {
  rule_.apply(vectors_, gradient, chunk_begin(chunk), chunk_end(chunk), chunks_[chunk].updates++);
}

void LockFreeStore::apply_left(std::size_t chunk, std::uint32_t index) {
  const Slot& slot = slots_[index];
  if (slot.update != &slot.standalone) {
    apply_to_owned(chunk, slot.update->gradient);
    return;
  }
  const std::uint32_t staged = slot.staged[chunk];
  const std::uint64_t begin = chunk_begin(chunk);
  const GradientView term = GradientView::dense(staging(staged), chunk_end(chunk) - begin);
  apply_to_owned(chunk, {.terms = {&term, 1}, .first = begin});
  free_staging_.give_back(staged);
}

// Called by the owner. Bits stay in the word until it is given up, so that none of their slots can be used anew.
void LockFreeStore::serve_and_give_up(std::size_t chunk) {
  std::atomic<std::uint64_t>& word = chunks_[chunk].word;
  std::uint64_t served = 0;
  std::uint64_t seen = kOwned;
  // Release pairs with the acquire of the next owner, in try_own() or leave(). Acquire on failure pairs with the
  // release in leave(): the slot, the gradient and the staged copy behind each new bit are complete.
  while (!word.compare_exchange_strong(seen, 0, std::memory_order_release, std::memory_order_acquire)) {
    for_each_bit(seen & ~kOwned & ~served, [&](std::uint32_t slot) { apply_left(chunk, slot); });
    served = seen & ~kOwned;
  }
  for_each_bit(served, [&](std::uint32_t slot) { complete(slot, 1); });
}

// Puts the chunk's share of the slot's update into the hands of the chunk's owner, who may turn out to be this thread.
void LockFreeStore::leave(std::size_t chunk, std::uint32_t slot) {
  const std::uint64_t bit = std::uint64_t{1} << slot;
  // Release pairs with the owner's acquire in serve_and_give_up(), acquire with the former owner's release there.
  const std::uint64_t before = chunks_[chunk].word.fetch_or(kOwned | bit, std::memory_order_acq_rel);
  if ((before & kOwned) == 0) {
    serve_and_give_up(chunk);
  }
}

// Counts off chunks of an update. Whoever counts off the last one finishes it; nobody touches it afterwards.
void LockFreeStore::complete(std::uint32_t index, std::uint64_t chunks) {
  Slot& slot = slots_[index];
  Update& update = *slot.update;
  // Each release pairs with the acquire of the last: all chunks' writes happen before the new version.
  if (update.chunks_left.fetch_sub(chunks, std::memory_order_acq_rel) != chunks) {
    return;
  }
  const bool standalone = &update == &slot.standalone;
  // Release pairs with the acquire in version(): who reads this number sees this update.
  const std::uint64_t version_before = version_.fetch_add(1, std::memory_order_release);
  free_slots_.give_back(index);
  if (!standalone) {
    update.finish(version_before);
  }
}

// Applies the gradient to every chunk that is not owned. `revisit` deals with the others, and says of each whether this
// thread applied it after all. Returns how many chunks this thread applied and has yet to count off.
template <typename Revisit>
std::uint64_t LockFreeStore::visit_all(const JoinedGradient& gradient, const Revisit& revisit) {
  std::uint64_t applied = 0;
  const auto apply_if_unowned = [&](std::size_t chunk) {
    if (!try_own(chunk)) {
      return false;
    }
    apply_to_owned(chunk, gradient);
    serve_and_give_up(chunk);
    ++applied;
    return true;
  };
  BusyChunks busy;
  const auto come_back = [&] {
    for (std::size_t i = 0; i < busy.count; ++i) {
      if (!apply_if_unowned(busy.chunks[i])) {
        applied += revisit(busy.chunks[i]) ? 1 : 0;
      }
    }
    busy.count = 0;
  };
  const std::size_t first = first_chunk();
  for (std::size_t i = 0; i < chunk_count_; ++i) {
    const std::size_t chunk = first + i < chunk_count_ ? first + i : first + i - chunk_count_;
    if (apply_if_unowned(chunk)) {
      continue;
    }
    if (busy.count == BusyChunks::kCapacity) {
      come_back();
    }
    busy.chunks[busy.count++] = chunk;
  }
  come_back();
  return applied;
}

void LockFreeStore::submit(Update& update) {
  const std::uint32_t slot = free_slots_.take();
  slots_[slot].update = &update;
  update.slot = slot;
  update.chunks_left.store(chunk_count_, std::memory_order_relaxed);  // published by the words, in leave()
  // The update can finish, and be gone, as soon as its last chunk is left or counted off: nothing below touches it
  // then.
  const std::uint64_t applied = visit_all(update.gradient, [&](std::size_t chunk) {
    leave(chunk, slot);
    return false;
  });
  if (applied != 0) {
    complete(slot, applied);
  }
}

void LockFreeStore::stage(std::size_t chunk, std::uint32_t slot, std::uint32_t staging_buffer, const float* gradient) {
  const std::uint64_t begin = chunk_begin(chunk);
  copy(staging(staging_buffer), gradient + begin, chunk_end(chunk) - begin);
  slots_[slot].staged[chunk] = static_cast<std::uint8_t>(staging_buffer);
  leave(chunk, slot);
}

void LockFreeStore::read_slot(int slot, std::span<float> out) {
  check_slot(slot);
  check_size(out.size(), "the target of a read");
  const float* const state = state_.slot(slot);
  for (std::size_t chunk = 0; chunk < chunk_count_; ++chunk) {
    while (!try_own(chunk)) {
      yield();  // rare, and an owner keeps a chunk for microseconds
    }
    const std::uint64_t begin = chunk_begin(chunk);
    copy(out.data() + begin, state + begin, chunk_end(chunk) - begin);
    serve_and_give_up(chunk);
  }
}

void LockFreeStore::apply(std::span<const float> gradient) {
  check_size(gradient.size(), "a gradient");
  const GradientView term = GradientView::dense(gradient.data(), gradient.size());
  const JoinedGradient joined{.terms = {&term, 1}};
  std::optional<std::uint32_t> slot;  // taken when the first chunk has to be left
  const std::uint64_t applied = visit_all(joined, [&](std::size_t chunk) {
    if (!slot) {
      slot = free_slots_.take();
      slots_[*slot].update = &slots_[*slot].standalone;
      slots_[*slot].standalone.chunks_left.store(chunk_count_, std::memory_order_relaxed);  // published in leave()
    }
    while (true) {
      if (const auto buffer = free_staging_.try_take()) {
        stage(chunk, *slot, *buffer, gradient.data());
        return false;
      }
      free_staging_.wait_for_free();
      if (!try_own(chunk)) {
        continue;
      }
      apply_to_owned(chunk, joined);
      serve_and_give_up(chunk);
      return true;
    }
  });
  if (!slot) {
    version_.fetch_add(1, std::memory_order_release);  // pairs with version()
  } else if (applied != 0) {
    complete(*slot, applied);
  }
}

Pin LockFreeStore::pin() { return Pin(*this, 0, version(), vectors_.out, vectors_.average_out); }

const Region& LockFreeStore::buffer(std::uint32_t index) const {
  if (index != 0) {
    throw Error(ErrorCode::kProtocol, "there is no parameter buffer " + std::to_string(index));
  }
  return live_;
}

}  // namespace distnet
