// Updates the parameters in place, with one writer for each chunk and no locks.
//
// The vector is cut into chunks. Each chunk has one 64-bit word. Its bit 63 says that a thread owns the chunk. Its bit
// t says that the update with ticket t still has to touch the chunk and was left with the owner. A thread that finds a
// chunk unowned takes it and applies its own gradient and every one that is left there meanwhile. It gives the chunk up
// by a compare-and-swap that succeeds only when none is left. A thread that finds a chunk owned goes on to the next
// chunk, comes back once, and then leaves its gradient with the owner.
//
// Thread safety: any number of threads may call all methods.
//
// Invariants
// - Only the thread that set a word's owned bit writes that chunk's parameters, average, optimizer state and update
//   count.
// - An update touches each chunk exactly once: its own thread applies it, or the owner with whom it was left.
// - A chunk counts its own updates, so schedules see 0, 1, 2, ... in every chunk, in whatever order updates arrive.
// - An update takes the learning rate that was set, if one was, when it is submitted, and has it in every chunk, whichever
//   thread applies it there. Where none was set, each chunk's own count says which of the schedule's it is.
// - Every access to a chunk happens after the release of its former owner: the word passes ownership on.
// - A bit leaves a word before its update can finish, so a ticket is never used anew while an old bit of it stands.
// - An owner serves each ticket at most once before it gives the chunk up, because updates finish only after that.
// - The thread that brings an update's chunks_left to 0 finishes it: version is counted up, the ticket becomes free,
//   on_applied() runs.
// - A strip of a gradient (a block, where it is joined first) that holds NaN or infinity is never applied. Whoever meets
//   one stops the update: chunks that were not begun by then are counted off without it, and the update is refused. A
//   chunk counts it all the same, so that all chunks count alike.
// - submit() waits for nobody as long as at most kMaxUpdatesInFlight are in flight. apply() waits only where it meets
//   an owned chunk, for a free ticket or a free copy buffer. Owners give back both and never wait.
//
// - After a cut an owner copies its chunk before it first changes it. The cut's reader owns a chunk while it reads the
//   chunk itself, and meanwhile takes what is left with it, as every owner does.
//
// Readers read in place: no float is torn, but a read may mix several versions.
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
  std::uint64_t ema_offset_bytes() const override { return layout_.ema_offset_bytes; }
  std::uint64_t table_bytes() const override;
  int state_vectors() const override { return rule_.state_vectors(); }
  void reserve_cut() override;
  std::uint64_t begin_cut() override;
  void read_cut(std::size_t chunk, float* out) override;
  void end_cut() noexcept override { cut_.end(); }

 private:
  static constexpr std::uint64_t kOwned = std::uint64_t{1} << 63;
  static constexpr std::uint32_t kCopyBuffers = 64;
  static constexpr std::uint32_t kNoCopy = 255;  // in place of a copy buffer: the update applies nothing to the chunk
  static_assert(kCopyBuffers <= kNoCopy);

  // Lies in a region, which may be mapped elsewhere one day. So it holds numbers only, and all are zero at the start.
  struct alignas(kCacheLineBytes) Chunk {
    std::atomic<std::uint64_t> word;
    std::uint64_t updates;  // written by the owner
  };
  static_assert(sizeof(Chunk) == kCacheLineBytes && std::is_standard_layout_v<Chunk>);
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

  // What an update does in every chunk.
  struct Share {
    const JoinedGradient& gradient;
    std::optional<double> rate;  // in place of the schedule's
    std::atomic<bool>& stopped;
  };

  // What a bit of a word stands for. Its holder writes it before the bit enters any word; from then on it is only read.
  struct Ticket {
    Update* update = nullptr;
    Update standalone;               // `update` while an apply() holds the ticket
    std::uint8_t* copies = nullptr;  // the copy buffer of each chunk that an apply() left
    GradientView::Meaning meaning = GradientView::Meaning::kGradient;  // of the copies
  };

  void apply_alone(const GradientView& term) override;
  void put_back(const StoreState& state) override;
  double scheduled_rate(std::uint64_t update) const override { return rule_.rate(update); }
  std::uint64_t chunk_begin(std::size_t chunk) const { return chunk * kStoreChunkFloats; }
  std::uint64_t chunk_end(std::size_t chunk) const;
  float* copy_buffer(std::uint32_t index) const;
  std::size_t first_chunk();

  bool try_own(std::size_t chunk);
  void apply_to_owned(std::size_t chunk, const Share& share);
  void apply_left(std::size_t chunk, std::uint32_t ticket);
  void serve_and_give_up(std::size_t chunk);
  void leave(std::size_t chunk, std::uint32_t ticket);
  void leave_copy(std::size_t chunk, std::uint32_t ticket, std::uint32_t copy_index, const float* gradient,
                  std::atomic<bool>& stopped);
  void complete(std::uint32_t ticket, std::uint64_t chunks);

  template <typename Revisit>
  std::uint64_t visit_all(const Share& share, const Revisit& revisit);

  Memory& memory_;
  const UpdateRule rule_;
  const BufferLayout layout_;
  const OptimizerState state_;
  const Region live_;
  const std::size_t chunk_count_;
  const Region chunk_memory_;
  Chunk* const chunks_;
  const Region copies_;        // gradients that apply() left, one chunk in each copy buffer
  const Region copy_numbers_;  // for each ticket, one byte for each chunk
  ParameterVectors vectors_;
  std::array<Ticket, kMaxUpdatesInFlight> tickets_;

  alignas(64) std::atomic<std::uint64_t> version_{0};
  alignas(64) std::atomic<std::uint64_t> visits_{0};
  alignas(64) BitPool free_tickets_{kMaxUpdatesInFlight};
  alignas(64) BitPool free_copies_{kCopyBuffers};
};

}  // namespace distnet
