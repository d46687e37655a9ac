// The parameters of one shard behind a guard. There are two guards: versions that never change (mutex_store), and
// updates in place without locks (lockfree_store). A guard is one file and one line of table.cc.
//
// Thread safety: any number of threads may call every method at once.
//
// Invariants
// - Every submitted update is finished exactly once: applied, or refused because its gradient holds NaN or infinity. No
//   such value reaches the parameters, the average or the optimizer's state.
// - version() counts the updates that were applied and are visible to readers.
// - A reader never waits for an update in progress.
// - An update has one learning rate from beginning to end: its gradient's own; where that has none, the one that was
//   set when it began; where none was, the schedule's. An update that begins after set_learning_rate() has returned has
//   the new one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/arrival.h"
#include "base/memory.h"
#include "base/pin.h"
#include "base/region.h"
#include "optim/update_rule.h"
#include "store/cut.h"

namespace distnet {

// An update that a store applies. It and the memory that its gradient's terms point to stay in place, unchanged, until
// it is finished.
class Update {
 public:
  virtual ~Update() = default;

  JoinedGradient gradient;

  // Whether the store pins the version that this update makes for its submitter, in `pin`.
  bool wants_pin = false;
  Pin pin;
  // Whether somebody reads the version while this update makes it. on_drafted() is called only then.
  bool tells_drafts = false;
  // Set by the store when what it told by on_drafted() is not what it published.
  bool redrafted = false;

  // Called as this update makes its version: elements [0, elements) of it lie in `buffer`, and stay as they are if the
  // update is applied. Stores that update in place never call it.
  virtual void on_drafted(std::uint32_t buffer, std::uint64_t elements) {
    static_cast<void>(buffer), static_cast<void>(elements);
  }
  // Called once, when a gradient that was still arriving at its submission has arrived in full. It may wait; the store
  // holds nothing that another update needs.
  virtual void on_arrived() {}
  // The same where the store holds something: it returns false instead of waiting, and nothing has happened then.
  virtual bool try_arrived() { return on_arrived(), true; }
  // Called once by the thread that completed the update, after readers can see it and before finished() turns true.
  // `version_before` is the store's version just before this update. It must neither block nor submit an update.
  virtual void on_applied(std::uint64_t version_before) { (void)version_before; }
  // Called once in place of on_applied() where the gradient holds NaN or infinity. `in_part`: the store updates in
  // place, and has applied what came before the first such strip.
  virtual void on_refused(bool in_part) { (void)in_part; }

  bool finished() const { return done_.load(std::memory_order_acquire) != kPending; }
  bool refused() const { return done_.load(std::memory_order_acquire) == kRefused; }
  void wait_finished() const;                 // blocks
  void finish(std::uint64_t version_before);  // stores call one of the two, once
  void finish_refused(bool in_part);
  void reset();  // makes the object usable for another update

  // Set by the store before it refuses: the first of the gradient's terms that was found not to be finite.
  std::size_t spoilt_term = 0;

  // Owned by the store between submit and finish.
  std::atomic<std::uint64_t> chunks_left{0};
  std::atomic<bool> stopped{false};  // a part was not finite, so nothing more is applied
  std::uint32_t ticket = 0;
  std::optional<double> rate;  // in place of the schedule's, for every part of the update

 private:
  enum Done : std::uint32_t { kPending, kApplied, kRefused };

  void end(Done how);

  std::atomic<std::uint32_t> done_{kPending};
};

// What a store goes on from, in place of its own start. Empty: as at the start.
struct StoreState {
  std::span<const float> ema;
  std::span<const std::vector<float>> state_vectors;
  std::uint64_t version = 0;
  std::optional<double> set_rate = {};  // in place of the schedule's
};

class Store : public PinOwner {
 public:
  virtual ~Store() = default;

  virtual std::uint64_t size() const = 0;     // float32 elements
  virtual std::uint64_t version() const = 0;  // updates visible to readers
  virtual bool versions_can_mix() const = 0;  // whether a read may mix several versions

  // Returns whether the store can begin to apply a gradient that has not arrived or was not looked at in full, and undo
  // it.
  virtual bool applies_arriving() const { return false; }
  // Submits an update before its gradient has arrived; only when applies_arriving(). Returns kHere when the update is
  // finished. Otherwise nothing was applied, and it returns kWithdrawn or kCutOff. A gradient that comes slowly is
  // waited for without keeping other updates waiting.
  virtual Arrival::State submit_arriving(Update& update, Arrival& arrival);

  // Applies the update. The lock-free store leaves chunks that are owned with their owners and does not wait for them.
  // The caller keeps at most kMaxUpdatesInFlight updates submitted and unfinished; with more, the store waits.
  virtual void submit(Update& update) = 0;

  // Replaces the schedule by this learning rate, which is checked, for every update that begins later.
  virtual void set_learning_rate(double learning_rate) { set_rate_.store(learning_rate, std::memory_order_release); }
  // What was set last; none: the schedule counts.
  std::optional<double> set_rate() const;
  // What counts in place of the schedule for an update that begins now.
  std::optional<double> rate_of(const JoinedGradient& gradient) const {
    return gradient.rate ? gradient.rate : set_rate();
  }
  // The learning rate of the next update, before the groups multiply it, unless its gradient has one of its own.
  double next_learning_rate() const { return set_rate().value_or(scheduled_rate(version())); }

  // Takes what the next update needs, so that it cannot fail for want of it. Throws Error(kConfig) when there is no
  // memory for it. Called where updates are made one after another.
  virtual void prepare() {}

  // From now on so many more versions may be pinned at once, and so many fewer. expect_pins() throws Error(kTransport),
  // having changed nothing, when the process has no descriptors for them.
  virtual void expect_pins(std::uint32_t more) { static_cast<void>(more); }
  virtual void expect_fewer_pins(std::uint32_t fewer) noexcept { static_cast<void>(fewer); }

  // Pins the newest version, which stays as it is while pinned (stores that update in place give the live vector).
  // Never waits for an update.
  virtual Pin pin() = 0;

  // Returns the memory behind Pin::buffer(): `size()` parameters, padded to 64 bytes, then the average where one is
  // kept. Clients choose the index, so it throws Error(kProtocol) when there is no such buffer.
  virtual const Region& buffer(std::uint32_t index) const = 0;
  virtual std::uint64_t ema_offset_bytes() const = 0;  // 0 when none is kept

  // Returns the bytes of what it keeps beside its buffers and the optimizer's state.
  virtual std::uint64_t table_bytes() const { return 0; }

  virtual int state_vectors() const = 0;  // that the optimizer keeps

  // Puts a state back, before the first update. Throws Error(kConfig) where it has another shape.
  void start_from(const StoreState& state);

  // ---- a cut: parameters, average and state vectors at one moment, read while later updates are made. One at a time.
  std::size_t cut_chunks() const { return cut_.chunks(); }
  std::uint64_t cut_chunk_floats(std::size_t chunk) const { return cut_.floats_of(chunk); }
  std::size_t cut_vectors() const;
  // Takes the memory that copies may need: at most as much as the vectors have. Throws Error(kConfig).
  virtual void reserve_cut() = 0;
  // The moment. No update is in flight during the call. Returns how many updates are in it.
  virtual std::uint64_t begin_cut() = 0;
  // Reads one chunk of all vectors, one after another, in the order above. Once each, from one thread.
  virtual void read_cut(std::size_t chunk, float* out) = 0;
  // Frees what the cut took, whatever has been read. Also before begin_cut().
  virtual void end_cut() noexcept = 0;

  // Copies the parameters, or the average, without torn floats. Returns the version that it pinned.
  std::uint64_t read(std::span<float> out, bool ema = false);
  // Applies a gradient that the caller owns and may overwrite on return. Any number of threads may call it. Throws
  // Error(kNonFiniteGradient) where it refuses the gradient.
  void apply(std::span<const float> gradient) { apply_alone(GradientView::dense(gradient.data(), gradient.size())); }
  // The same for a change of the parameters, which counts as an update.
  void add(std::span<const float> change) {
    GradientView term = GradientView::dense(change.data(), change.size());
    term.meaning = GradientView::Meaning::kChange;
    apply_alone(term);
  }

 protected:
  explicit Store(std::uint64_t floats);
  // What apply() throws; `what` says what became of the gradient.
  [[noreturn]] static void throw_refused(const char* what);
  // Throws Error(kConfig) unless the vector that `what` names has size() elements.
  void check_size(std::size_t elements, const char* what) const;
  // What apply() and add() do, with a dense term.
  virtual void apply_alone(const GradientView& term) = 0;
  virtual void put_back(const StoreState& state) = 0;
  virtual double scheduled_rate(std::uint64_t update) const = 0;

  Cut cut_;  // of the vectors that are updated in place

 private:
  std::atomic<double> set_rate_;  // NaN: none; release pairs with the acquire in set_rate()
};

inline constexpr std::uint32_t kMaxUpdatesInFlight = 62;

// `initial` holds the starting parameters. Throws Error(kConfig) unless `guard` is "mutex" or "lock-free". `memory`
// outlives the store, which takes from it all that must one day outlive the process.
std::unique_ptr<Store> make_store(std::string_view guard, const UpdateRuleSpec& rule, std::span<const float> initial,
                                  Memory& memory);

}  // namespace distnet
