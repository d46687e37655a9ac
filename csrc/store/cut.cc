#include "store/cut.h"

#include <algorithm>

#include "base/error.h"
#include "base/waiting.h"
#include "kernels/kernels.h"

namespace distnet {

Cut::Cut(std::uint64_t floats)
    : floats_(floats),
      chunk_count_((floats + kStoreChunkFloats - 1) / kStoreChunkFloats),
      states_(std::make_unique<std::atomic<std::uint32_t>[]>(chunk_count_)) {}

std::uint64_t Cut::floats_of(std::size_t chunk) const { return std::min(kStoreChunkFloats, floats_ - begin_of(chunk)); }

void Cut::reserve(Memory& memory, std::span<const float* const> live) {
  DISTNET_INVARIANT(live.size() <= kMaxCutVectors);
  if (!live.empty()) {
    copies_ = memory.allocate(live.size() * floats_ * sizeof(float));
  }
  std::ranges::copy(live, live_.begin());
  vectors_ = live.size();
}

void Cut::begin() {
  if (vectors_ == 0) {
    return;
  }
  for (std::size_t chunk = 0; chunk < chunk_count_; ++chunk) {
    states_[chunk].store(kUntouched, std::memory_order_release);  // pairs with before_update()
  }
}

void Cut::save(std::size_t chunk) {
  std::uint32_t expected = kUntouched;
  // Acquire pairs with begin(); against end(), which may drop the chunk at the same time, one of the two wins.
  if (!states_[chunk].compare_exchange_strong(expected, kSaving, std::memory_order_acquire,
                                              std::memory_order_relaxed)) {
    return;
  }
  for (std::size_t vector = 0; vector < vectors_; ++vector) {
    copy(copy_of(vector) + begin_of(chunk), live_[vector] + begin_of(chunk), floats_of(chunk));
  }
  states_[chunk].store(kSaved, std::memory_order_release);  // pairs with read_copy() and end()
  wake_all(states_[chunk]);
}

bool Cut::read_copy(std::size_t chunk, float* out) {
  std::atomic<std::uint32_t>& state = states_[chunk];
  if (state.load(std::memory_order_acquire) == kUntouched) {  // pairs with save()
    return false;
  }
  wait_while<std::uint32_t>(state, kSaving);  // a copy of one chunk
  DISTNET_INVARIANT(state.load(std::memory_order_acquire) == kSaved);
  for (std::size_t vector = 0; vector < vectors_; ++vector, out += floats_of(chunk)) {
    copy(out, copy_of(vector) + begin_of(chunk), floats_of(chunk));
  }
  state.store(kNone, std::memory_order_release);
  return true;
}

// No update of the chunk runs meanwhile, so none copies it.
bool Cut::read_live(std::size_t chunk, float* out) {
  std::atomic<std::uint32_t>& state = states_[chunk];
  if (state.load(std::memory_order_acquire) != kUntouched) {  // pairs with save()
    return false;
  }
  for (std::size_t vector = 0; vector < vectors_; ++vector, out += floats_of(chunk)) {
    copy(out, live_[vector] + begin_of(chunk), floats_of(chunk));
  }
  state.store(kNone, std::memory_order_release);
  return true;
}

void Cut::end() noexcept {
  for (std::size_t chunk = 0; chunk < chunk_count_; ++chunk) {
    std::atomic<std::uint32_t>& state = states_[chunk];
    std::uint32_t expected = kUntouched;
    // Against save() one of the two wins.
    if (!state.compare_exchange_strong(expected, kNone, std::memory_order_acq_rel, std::memory_order_acquire)) {
      wait_while<std::uint32_t>(state, kSaving);
      state.store(kNone, std::memory_order_relaxed);  // nobody else writes it now
    }
  }
  vectors_ = 0;
  copies_ = {};
}

}  // namespace distnet
