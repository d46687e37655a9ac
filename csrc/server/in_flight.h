// The one accept point's record, and the bounded set of those in flight.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "base/gradient_view.h"
#include "base/memory.h"
#include "store/bit_pool.h"
#include "store/store.h"

namespace distnet {

class Settlement;

// What a push brings.
enum class Brings : std::uint32_t {
  kNothing,     // a gradient that was withdrawn, or is not finite: the push is refused
  kGradient,    // one to apply
  kAbstention,  // the worker has none this time, and says so
  kMisplaced,   // a change in a round of gradients, or the other way round: the push is refused
};

// What outlives the process of a push: plain numbers. Written by the accept point; read by appliers, rounds and
// statistics.
struct PushEntry {
  std::uint32_t session = 0;  // its place in the session table
  Brings brings = Brings::kNothing;
  std::uint64_t push = 0;          // its sequence number in the session
  std::uint64_t base_version = 0;  // the version its gradient was computed from
  std::uint64_t round = 0;
  std::uint64_t order = 0;  // of acceptance, over all sessions of the shard
};

// One push on its way through the shard.
class PushRecord final : public Update {
 public:
  void begin(Settlement& settlement, const PushEntry& entry, const GradientView& gradient,
             const PushSettings& settings = {});

  std::uint64_t round() const { return entry_->round; }
  std::uint64_t push() const { return entry_->push; }
  std::uint32_t session() const { return entry_->session; }
  bool has_gradient() const { return entry_->brings == Brings::kGradient; }
  bool abstains() const { return entry_->brings == Brings::kAbstention; }
  const GradientView& view() const { return term_; }
  bool misplaced() const { return entry_->brings == Brings::kMisplaced; }
  // It is another kind of push than those that its round joins.
  void misplace() { entry_->brings = Brings::kMisplaced; }
  // The client took its gradient back, or it is not finite.
  void withdraw() { entry_->brings = Brings::kNothing; }
  // The reply leaves now. What becomes of the push after that, the client hears with its next call.
  void reply_leaves() { replied_ = true; }

  // The accept point: its last byte is in memory that the server owns.
  void accept();
  // Settles it without an update.
  void refuse();
  void abstain();

  void on_arrived() override { accept(); }
  bool try_arrived() override;
  void on_drafted(std::uint32_t buffer, std::uint64_t elements) override;
  void on_applied(std::uint64_t version_before) override;
  void on_refused(bool in_part) override;

 private:
  friend class InFlight;
  PushEntry* entry_ = nullptr;  // in the shard's memory
  std::uint32_t place_ = 0;
  Settlement* settlement_ = nullptr;
  GradientView term_;
  bool replied_ = false;
};

// Places for pushes in flight.
//
// Thread safety: any number of threads; take() and give_back() are lock-free while a place is free.
class InFlight {
 public:
  static constexpr std::uint32_t kPlaces = 8192;  // twice as many as sessions: a push that arrives holds one, too

  explicit InFlight(Memory& memory);
  // That an object of this class takes.
  static constexpr std::uint64_t memory_bytes() { return kPlaces * (sizeof(PushEntry) + sizeof(PushRecord)); }
  PushRecord& take();  // waits for a free place
  void give_back(PushRecord& record);

 private:
  static constexpr std::uint32_t kPoolPlaces = 64;

  Region memory_;
  std::vector<std::unique_ptr<BitPool>> pools_;
  std::unique_ptr<PushRecord[]> records_;
};

}  // namespace distnet
