// In place, one writer a chunk, no locks.
//
// The vector is cut into chunks. Each has one 64-bit word: bit 63 says that a thread owns the chunk, bit s that the
// update in slot s still has to touch it and was left with the owner. Whoever finds a chunk unowned takes it, applies
// its own gradient and every one left there meanwhile, and gives it up by a compare-and-swap that succeeds only when
// none is left. Whoever finds it owned goes on to the next chunk, comes back once, and then leaves its gradient with
// the owner.
//
// Thread safety: all methods, from any number of threads.
//
// Invariants
// - Only the thread that set a word's owned bit writes that chunk's parameters, average, optimizer state and update
// count.
// - An update touches each chunk exactly once: applied by its own thread, or by the owner it was left with.
// - A chunk counts its own updates, so schedules see 0, 1, 2, ... in every chunk, in whatever order updates arrive.
// - Every access to a chunk happens after the release of its former owner: the word passes ownership on.
// - A bit leaves a word before its update can finish, so a slot is never used anew while an old bit of it stands.
// - An owner serves at most one gradient of each slot before it gives the chunk up: slots finish only after that.
// - The thread that brings an update's chunks_left to 0 finishes it: version counts up, the slot is free, on_applied()
// runs.
// - submit() waits for nobody as long as at most kMaxUpdatesInFlight are in flight. apply() waits only for a free slot,
// or a
//   free staging buffer, where it meets an owned chunk; both are given back by owners, who never wait.
//
// Readers read in place: no float is torn, but a read may hold parts of several versions.
#pragma once

#include <array>
#include <type_traits>

#include "base/units.h"
#include "store/bit_pool.h"
#include "store/store.h"
#include "store/vectors.h"

namespace distnet {

class LockFreeStore final : public Store {
 public:
  LockFreeStore(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory);

  std::uint64_t size() const override { return layout_.size; }
  std::uint64_t version() const override { return version_.load(std::memory_order_acquire); }
  bool versions_can_mix() const override { return true; }
  void submit(Update& update) override;
  Pin pin() override;
  void unpin(std::uint32_t) noexcept override {}
  const Region& buffer(std::uint32_t index) const override;
  std::uint64_t average_offset_bytes() const override { return layout_.average_offset_bytes; }
  int slots() const override { return rule_.slots(); }
  void read_slot(int slot, std::span<float> out) override;
  void apply(std::span<const float> gradient) override;

 private:
  static constexpr std::uint64_t kOwned = std::uint64_t{1} << 63;
  static constexpr std::uint32_t kStagingBuffers = 64;

  // Lies in a region, which may be mapped elsewhere one day: numbers only, and all zero at the start.
  struct alignas(kCacheLineBytes) Chunk {
    std::atomic<std::uint64_t> word;
    std::uint64_t updates;  // of the owner
  };
  static_assert(sizeof(Chunk) == kCacheLineBytes && std::is_standard_layout_v<Chunk>);
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

  // What a bit of a word stands for. Written by the slot's holder before its bit enters any word, then only read.
  struct Slot {
    Update* update = nullptr;
    Update standalone;               // `update` while an apply() holds the slot
    std::uint8_t* staged = nullptr;  // of an apply(): the staging buffer of each chunk that it left
  };

  std::uint64_t chunk_begin(std::size_t chunk) const { return chunk * kChunkFloats; }
  std::uint64_t chunk_end(std::size_t chunk) const;
  float* staging(std::uint32_t index) const;
  std::size_t first_chunk();

  bool try_own(std::size_t chunk);
  void apply_to_owned(std::size_t chunk, const JoinedGradient& gradient);
  void apply_left(std::size_t chunk, std::uint32_t slot);
  void serve_and_give_up(std::size_t chunk);
  void leave(std::size_t chunk, std::uint32_t slot);
  void stage(std::size_t chunk, std::uint32_t slot, std::uint32_t staging_buffer, const float* gradient);
  void complete(std::uint32_t slot, std::uint64_t chunks);

  template <typename Revisit>
  std::uint64_t visit_all(const JoinedGradient& gradient, const Revisit& revisit);

  const UpdateRule rule_;
  const BufferLayout layout_;
  const OptimizerState state_;
  const Region live_;
  const std::size_t chunk_count_;
  const Region chunk_memory_;
  Chunk* const chunks_;
  const Region staging_;         // of standalone gradients, a chunk each
  const Region staged_numbers_;  // of each slot, a byte a chunk
  ParameterVectors vectors_;
  std::array<Slot, kMaxUpdatesInFlight> slots_;

  alignas(64) std::atomic<std::uint64_t> version_{0};
  alignas(64) std::atomic<std::uint64_t> visits_{0};
  alignas(64) BitPool free_slots_{kMaxUpdatesInFlight};
  alignas(64) BitPool free_staging_{kStagingBuffers};
};

}  // namespace distnet
