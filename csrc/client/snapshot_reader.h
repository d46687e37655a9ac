// Takes a snapshot of all shards: has them cut at one moment, then reads the pieces of all in turn.
//
// Thread safety: one thread uses a reader.
//
// Invariants
// - Each shard in order gives this snapshot its turn before the next is asked, so two snapshots never wait for each other.
// - The shards that are still sending when the reader ends are told to stop.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "client/link.h"
#include "wire/manifest.h"
#include "wire/snapshot_messages.h"

namespace distnet {

struct SnapshotShape {
  std::vector<std::uint64_t> versions;  // of each shard
  std::optional<std::uint64_t> round;   // that was open; none where an update joins one push
  bool ema = false;
  std::uint32_t state_vectors = 0;
  std::optional<double> set_rate;  // the learning rate in place of the schedule's, where one was set

  std::size_t vectors() const { return 1U + (ema ? 1U : 0U) + state_vectors; }
};

using SavedByRank = std::map<std::uint32_t, std::vector<std::byte>>;

class SnapshotReader {
 public:
  // Has the shards cut. `timeout_s`: how long that may take. Throws Error: kConfig for a round that cannot be asked for,
  // kUnauthorized, kDeadlineExceeded, kRoundAborted where the shards had parted, and what ended a connection.
  SnapshotReader(std::span<Link* const> links, std::optional<std::uint64_t> at_round, double timeout_s,
                 const Interrupt& interrupt);
  SnapshotReader(const SnapshotReader&) = delete;
  SnapshotReader& operator=(const SnapshotReader&) = delete;
  ~SnapshotReader();

  const SnapshotShape& shape() const { return shape_; }
  // Reads all pieces, once: parameters, average where one is kept, each state vector. One pointer a tensor in each.
  void read(std::span<const std::vector<float*>> vectors, const Interrupt& interrupt);
  // What ranks had saved, once all is read.
  SavedByRank take_saved() { return std::move(saved_); }

 private:
  struct Shard {
    Link* link = nullptr;
    std::vector<TensorSlice> slices;
    std::size_t next_slice = 0;  // the first that a later piece can reach
    std::uint64_t floats = 0;
    std::uint64_t read = 0;
    std::uint32_t asked = 0;       // pieces asked for and not received
    std::uint32_t saved_left = 0;  // pieces with saved bytes that come first
    bool complete() const { return read == floats && saved_left == 0; }
  };

  ControlMessage expect(Shard& shard, ControlKind kind, const Deadline& deadline, const Interrupt& interrupt) const;
  void take_turns(const Deadline& deadline, const Interrupt& interrupt);
  void cut(std::optional<std::uint64_t> at_round, const Deadline& deadline, const Interrupt& interrupt);
  void learn_shape(const std::vector<CutMade>& made, bool joins_all);
  void ask_for_more(Shard& shard) const;
  void take_piece(Shard& shard, const ControlMessage& message, std::span<const std::vector<float*>> vectors) const;
  void take_saved_piece(Shard& shard, const ControlMessage& message);
  void give_up() noexcept;

  const std::uint64_t key_;
  std::vector<Shard> shards_;
  SnapshotShape shape_;
  SavedByRank saved_;
};

}  // namespace distnet
