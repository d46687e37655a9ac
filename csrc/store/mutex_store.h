// Versions that never change: an update reads the newest buffer, writes a free one, and publishes it.
//
// Thread safety: any number of threads may call all methods.
//
// Invariants
// - One update runs at a time (apply_mutex_), so buffers hold whole versions and on_applied() comes in the order of
//   versions.
// - A buffer is written only while nobody pins it and it is not the newest; a pinned or newest buffer never changes.
// - pins_mutex_ guards which buffer is newest and all pin counts. It is never held across an apply, an allocation or a
//   callback, so a reader waits for a few instructions at most.
// - An update that is still arriving is drafted under apply_mutex_ as its elements come. A draft that waits for
//   elements while other updates wait for it is dropped. Its buffer was never the newest, so it is free again. The
//   optimizer's state has one copy only, so only rules without state are drafted.
// - The learning rate is set under apply_mutex_, so between two versions: a draft begins and is published with one. That
//   of a gradient's own comes with it, so a draft that is made anew has the same.
// - A gradient with NaN or infinity changes nothing. The draft that meets such a block is dropped. A rule with state
//   looks at the whole gradient before it touches the state, unless that was done as the gradient arrived.
// - A cut pins its version, and copies or reads the optimizer's state under apply_mutex_, a chunk at a time.
// - There are at most (pinned versions + 2) buffers: they are made when first needed and kept. The descriptors of those
//   that may yet be needed are kept ready (spare_files_), so a client that is admitted never lacks one later.
// - spare_mutex_ guards which descriptors are ready and how many are promised. No other mutex is taken under it.
#pragma once

#include <deque>
#include <mutex>

#include "base/spare_files.h"
#include "base/waiting.h"
#include "store/store.h"
#include "store/vectors.h"

namespace distnet {

class MutexStore final : public Store {
 public:
  MutexStore(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory);

  std::uint64_t size() const override { return layout_.size; }
  std::uint64_t version() const override { return version_.load(std::memory_order_acquire); }
  bool versions_can_mix() const override { return false; }
  void submit(Update& update) override;
  bool applies_arriving() const override;
  Arrival::State submit_arriving(Update& update, Arrival& arrival) override;
  void set_learning_rate(double learning_rate) override;
  void prepare() override;
  void expect_pins(std::uint32_t more) override;
  void expect_fewer_pins(std::uint32_t fewer) noexcept override;
  Pin pin() override;
  void unpin(std::uint32_t buffer) noexcept override;
  const Region& buffer(std::uint32_t index) const override;
  std::uint64_t ema_offset_bytes() const override { return layout_.ema_offset_bytes; }
  int state_vectors() const override { return rule_.state_vectors(); }
  void reserve_cut() override;
  std::uint64_t begin_cut() override;
  void read_cut(std::size_t chunk, float* out) override;
  void end_cut() noexcept override;

 private:
  struct Buffer {
    Region memory;
    std::uint64_t pins = 0;  // under pins_mutex_
  };

  // A version that is being made, in a buffer that nobody else can see yet. Guarded by apply_mutex_.
  struct Draft {
    std::uint32_t buffer = 0;
    std::uint64_t version_before = 0;
    std::optional<double> rate;  // in place of the schedule's
    ParameterVectors vectors;
  };
  void apply_alone(const GradientView& term) override;
  void put_back(const StoreState& state) override;
  double scheduled_rate(std::uint64_t update) const override { return rule_.rate(update); }
  std::unique_lock<Mutex> lock_to_apply();
  std::uint32_t free_buffer();
  Region make_buffer();
  void keep_spare_files();
  Draft draft_version(const Update& update);
  bool write_piece(const Draft& draft, Update& update, std::uint64_t begin);
  bool write_all(const Draft& draft, Update& update);
  Arrival::State write_arriving(const Draft& draft, Update& update, Arrival& arrival);
  bool may_begin(Update& update) const;
  void publish(const Draft& draft, Update& update);

  Memory& memory_;
  const UpdateRule rule_;
  const BufferLayout layout_;
  const OptimizerState state_;

  Mutex apply_mutex_;
  std::atomic<std::uint32_t> waiting_{0};  // threads that are on their way to apply_mutex_: a hint for drafts
  mutable Mutex pins_mutex_;
  std::deque<Buffer> buffers_;  // grows under both mutexes, never moves what it holds
  std::uint32_t newest_ = 0;    // changes under both mutexes
  std::atomic<std::uint64_t> version_{0};
  Pin cut_pin_;  // the cut's version: only the optimizer's state changes in place

  Mutex spare_mutex_;
  SpareFiles spare_files_;
  std::uint64_t expected_pins_ = 0;
  std::uint64_t made_ = 0;  // buffers that have taken their descriptor
};

}  // namespace distnet
