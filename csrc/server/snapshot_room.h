// Where a shard's snapshots are taken, one at a time: whose turn it is, the moment of the cut, its memory, its pause.
//
// Thread safety: all methods, from any number of threads.
//
// Invariants
// - A turn goes from free to reserved (the memory is there) to cutting to cut to ending, and back to free. Its holder is
//   named by the key of the snapshot; nobody else changes it.
// - While it is cutting, it is not given back.
// - The gate is closed for kDrainTime at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "base/waiting.h"
#include "server/accept_gate.h"
#include "server/rounds/rounds.h"
#include "server/saved_bytes.h"
#include "store/store.h"
#include "wire/statistics.h"

namespace distnet {

class SnapshotRoom {
 public:
  SnapshotRoom(Store& store, AcceptGate& gate, const SavedBytes& saved) : store_(store), gate_(gate), saved_(saved) {}

  struct Moment {
    std::uint64_t version = 0;
    std::uint64_t round = 0;         // the one that was open; 0 where an update joins one push
    std::optional<double> set_rate;  // the learning rate of the next update, where it is not the schedule's
    SavedBytes::ByRank saved;        // with the pushes that are in the cut
  };

  // Waits for the turn, and takes the memory. Throws Error: kDeadlineExceeded, kConfig where there is no memory, and
  // what `interrupt` throws.
  void take_turn(std::uint64_t key, const Deadline& deadline, const Interrupt& interrupt);
  void give_turn_back(std::uint64_t key);
  // Cuts, in the holder's turn. `rounds`: null where an update joins one push. Throws Error: kConfig for a round that
  // cannot be asked for, kDeadlineExceeded, kRoundAborted, and what `interrupt` throws.
  Moment cut(std::uint64_t key, Rounds* rounds, std::optional<std::uint64_t> at_round, const Deadline& deadline,
             const Interrupt& interrupt);
  // Called between rounds. Does nothing unless it is this snapshot's turn.
  void cut_before(std::uint64_t round, std::uint64_t key, std::optional<double> set_rate);

  void fill(ShardStatistics& statistics) const;

 private:
  static constexpr milliseconds kDrainTime{10'000};  // for accepted pushes to be applied: an apply takes well under 1 s

  enum class Turn : std::uint8_t { kFree, kReserved, kCutting, kCut, kEnding };

  void cut_by_gate(const Deadline& deadline);
  void cut_with_leader(std::uint64_t key, Rounds& rounds, const Deadline& deadline, const Interrupt& interrupt);
  bool begin_to_cut(std::uint64_t key);
  void has_cut(Moment moment, Clock::duration pause);
  void note_pause(Clock::duration pause);

  Store& store_;
  AcceptGate& gate_;
  const SavedBytes& saved_;
  Mutex mutex_;
  Condition changed_;
  Turn turn_ = Turn::kFree;
  std::uint64_t key_ = 0;
  Moment moment_;

  // Statistics.
  std::atomic<std::uint64_t> cuts_{0};
  std::atomic<std::int64_t> last_pause_ns_{0};
  std::atomic<std::int64_t> longest_pause_ns_{0};
};

// Gives the turn back, whatever happens.
class SnapshotTurn {
 public:
  SnapshotTurn(SnapshotRoom& room, std::uint64_t key, const Deadline& deadline, const Interrupt& interrupt)
      : room_(room), key_(key) {
    room_.take_turn(key, deadline, interrupt);
  }
  SnapshotTurn(const SnapshotTurn&) = delete;
  SnapshotTurn& operator=(const SnapshotTurn&) = delete;
  ~SnapshotTurn() { room_.give_turn_back(key_); }

 private:
  SnapshotRoom& room_;
  const std::uint64_t key_;
};

}  // namespace distnet
