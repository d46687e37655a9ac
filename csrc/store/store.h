// The parameters of one shard behind a guard. Two guards: versions that never change (mutex_store), in place and
// lock-free (lockfree_store). A guard is one file and one line of table.cc.
//
// Thread safety: every method may be called from any number of threads at once.
// Invariants: every submitted update is applied exactly once; version() counts the updates visible to readers; a reader
// never waits for an update in progress.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/arrival.h"
#include "base/memory.h"
#include "base/pin.h"
#include "base/region.h"
#include "optim/update_rule.h"

namespace distnet {

// An update on its way into a store. It and the memory its gradient terms point to stay in place, unchanged, until
// finished.
class Update {
 public:
  virtual ~Update() = default;

  JoinedGradient gradient;

  // Whether the version that this update makes is to be pinned for its submitter: into `pin`.
  bool wants_pin = false;
  Pin pin;
  // Whether somebody reads the version that this update makes while it is made: on_drafted() is called then.
  bool tells_drafts = false;
  // Set by the store where what on_drafted() told is not what was published.
  bool redrafted = false;

  // Called as the version that this update makes comes to be: elements [0, elements) of it lie in `buffer`, and stay as
  // they are if the update is applied. Stores in place never call it.
  virtual void on_drafted(std::uint32_t buffer, std::uint64_t elements) {
    static_cast<void>(buffer), static_cast<void>(elements);
  }
  // Called once, when a gradient that was still arriving at its submission is here in full.
  virtual void on_arrived() {}
  // Called once, by whichever thread completed the update, after it is visible to readers and before finished() turns
  // true. `version_before`: the store's version just before this update. Must not call the store's submit or block.
  virtual void on_applied(std::uint64_t version_before) { (void)version_before; }

  bool finished() const { return done_.load(std::memory_order_acquire) != 0; }
  void wait_finished() const;                 // blocks; in reply-first semantics only for this session's previous push
  void finish(std::uint64_t version_before);  // stores call it, once
  void reset();                               // makes the record usable for another update

  // Owned by the store between submit and finish.
  std::atomic<std::uint64_t> chunks_left{0};
  std::uint32_t slot = 0;

 private:
  std::atomic<std::uint32_t> done_{0};
};

class Store : public PinOwner {
 public:
  virtual ~Store() = default;

  virtual std::uint64_t size() const = 0;     // float32 elements
  virtual std::uint64_t version() const = 0;  // updates visible to readers
  virtual bool versions_can_mix() const = 0;  // whether a read may hold parts of several versions

  // Whether it can apply a gradient that is still arriving, and leave no trace of one that never does in full.
  virtual bool applies_arriving() const { return false; }
  // submit(), beginning before the gradient is here; only where applies_arriving(). kHere: the update is finished.
  // Else nothing was applied: kWithdrawn or kCutOff, never kLate: a gradient that is slow to come is waited for without
  // keeping other updates waiting.
  virtual Arrival::State submit_arriving(Update& update, Arrival& arrival);

  // Applies the update, or leaves part of it with threads that are applying already (lock-free: never waits for them).
  // At most kMaxUpdatesInFlight submitted and unfinished at once (the caller's bound; beyond it the store waits).
  virtual void submit(Update& update) = 0;

  // Pins the newest version, which stays as it is while pinned (in place: the live vector). Never waits for an update.
  virtual Pin pin() = 0;

  // The memory behind Pin::buffer(): `size()` parameters, padded to 64 bytes, then the average where one is kept.
  // Clients ask by index: throws Error(kProtocol) on one that is none.
  virtual const Region& buffer(std::uint32_t index) const = 0;
  virtual std::uint64_t average_offset_bytes() const = 0;  // 0 where none is kept

  // The optimizer's state vectors, for checkpoints: waits for the updates in progress on what it copies.
  virtual int slots() const = 0;
  virtual void read_slot(int slot, std::span<float> out) = 0;

  // Copies of one call each. `read` copies parameters (or the average) tear-free; returns the version it pinned.
  std::uint64_t read(std::span<float> out, bool average = false);
  // Applies a gradient owned by the caller; on return it may be overwritten. Any number of threads.
  virtual void apply(std::span<const float> gradient) = 0;

 protected:
  // Throws Error(kConfig) unless a vector that `what` names has size() elements, or there is such a slot.
  void check_size(std::size_t elements, const char* what) const;
  void check_slot(int slot) const;
};

inline constexpr std::uint32_t kMaxUpdatesInFlight = 62;

// `initial`: starting parameters. `guard`: "mutex" or "lock-free"; else Error(kConfig). `memory` outlives the store, which
// takes all from it that must one day outlive the process.
std::unique_ptr<Store> make_store(std::string_view guard, const UpdateRuleSpec& rule, std::span<const float> initial,
                                  Memory& memory);

}  // namespace distnet
