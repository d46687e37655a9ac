// One client's conversation about a snapshot: its turn, its cut, and the pieces, as many as it asked for.
//
// The conversation has a thread of its own for as long as it lasts, so that the control loop answers heartbeats
// meanwhile and notices the client's end.
//
// Thread safety: the control loop's thread calls the methods.
//
// Invariants
// - The turn is given back when the last piece has left, and in any other case before the destructor returns.
// - Of a snapshot one piece is in memory, and at most kMostPieces are on the way.
// - A client that asks for no more pieces for its timeout, at most kLongestSilenceSeconds, loses the snapshot.
#pragma once

#include <optional>
#include <vector>

#include "base/threads.h"
#include "base/waiting.h"
#include "server/shard.h"
#include "transport/control.h"
#include "wire/snapshot_messages.h"

namespace distnet {

class SnapshotStream {
 public:
  SnapshotStream(Shard& shard, ControlConnection& control, bool is_owner, double timeout_s);
  SnapshotStream(const SnapshotStream&) = delete;
  SnapshotStream& operator=(const SnapshotStream&) = delete;
  ~SnapshotStream();

  // Returns false where the message is none about a snapshot. Throws Error(kProtocol) on a broken rule.
  bool take(const ControlMessage& message);

 private:
  static constexpr double kLongestSilenceSeconds = 30.0;
  static constexpr double kLastPieceSeconds = 1.0;  // that a piece on its way may take to leave, once all is over

  void begin(const SnapshotAsk& ask);
  void give_up();
  void run(const SnapshotAsk& ask);
  void converse(const SnapshotAsk& ask);
  void send_saved(std::uint64_t key, const SavedBytes::ByRank& saved);
  void send_pieces(std::uint64_t key);
  void wait_for_room();
  void send_piece(ControlKind kind, const std::vector<std::byte>& piece);
  void fail(std::uint64_t key, ErrorCode code, const std::string& message);
  template <typename Ready>
  void wait_for_client(double at_most_s, const Ready& ready);
  bool given_up();

  Shard& shard_;
  ControlConnection& control_;
  const bool is_owner_;
  const double silence_s_;

  Mutex mutex_;  // guards what follows
  Condition changed_;
  std::uint64_t key_ = 0;
  std::optional<CutAsk> cut_;
  std::uint64_t room_ = 0;  // pieces that the client can take
  bool given_up_ = false;
  bool running_ = false;

  Thread thread_;
};

}  // namespace distnet
