// What vectors held at one moment, while later updates change them in place: a chunk is copied before its first later
// update, or read before that.
//
// Thread safety: before_update() from the thread that excludes all others from the chunk; read_live() likewise;
// read_copy() from one thread, beside updates; begin() and end() while no other method but before_update() is called,
// and begin() while no update is in flight.
//
// Invariants
// - A chunk is untouched, then copied or read, once each. Only an untouched chunk's live values are those of the cut.
// - Who changes a chunk from untouched to anything else is decided by one compare-and-swap: the updater or end().
// - The copies' memory lives from reserve() to end(). end() waits for a copy in progress, so nothing writes it later.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <span>

#include "base/memory.h"
#include "base/units.h"
#include "optim/optimizer.h"

namespace distnet {

// Parameters, average, and what the optimizer keeps.
inline constexpr std::size_t kMaxCutVectors = 2 + kMaxStateVectors;

class Cut {
 public:
  // Makes a cut for vectors of `floats` elements each.
  explicit Cut(std::uint64_t floats);

  std::size_t chunks() const { return chunk_count_; }
  static std::uint64_t begin_of(std::size_t chunk) { return chunk * kStoreChunkFloats; }
  std::uint64_t floats_of(std::size_t chunk) const;

  // Takes memory for copies of these vectors; pages of it are used as chunks are copied. Throws Error(kConfig).
  void reserve(Memory& memory, std::span<const float* const> live);
  // This is the moment.
  void begin();
  // Drops what is left of the cut.
  void end() noexcept;

  // The chunk is about to be changed.
  void before_update(std::size_t chunk) {
    // Acquire pairs with begin(), so that the vectors to copy are known. Without a cut this load is all it costs.
    if (states_[chunk].load(std::memory_order_acquire) == kUntouched) [[unlikely]] {
      save(chunk);
    }
  }

  // Reads the chunk as it was, all vectors one after another, where it has been copied. Returns false where it is still
  // untouched.
  bool read_copy(std::size_t chunk, float* out);
  // Reads an untouched chunk itself. Returns false where it has been copied meanwhile.
  bool read_live(std::size_t chunk, float* out);

 private:
  enum State : std::uint32_t { kNone, kUntouched, kSaving, kSaved };

  void save(std::size_t chunk);
  float* copy_of(std::size_t vector) const { return copies_.as<float>() + vector * floats_; }

  const std::uint64_t floats_;
  const std::size_t chunk_count_;
  const std::unique_ptr<std::atomic<std::uint32_t>[]> states_;
  std::array<const float*, kMaxCutVectors> live_{};
  std::size_t vectors_ = 0;
  Region copies_;
};

}  // namespace distnet
