// The messages of a snapshot, on control connections. Each names its snapshot by the key that the asker chose.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "wire/codec.h"

namespace distnet {

// The asker may be sent this many pieces that it has not read.
inline constexpr std::uint32_t kMostPieces = 64;
// A longer wait for a cut is taken as this one.
inline constexpr double kLongestSnapshotWaitSeconds = 24.0 * 3600.0;

// A wait that an asker allows.
struct SnapshotAsk {
  std::uint64_t key = 0;
  double wait_s = 0.0;
  std::vector<std::byte> encode() const;
  static SnapshotAsk decode(std::span<const std::byte> bytes);
};

struct CutAsk {
  std::uint64_t key = 0;
  std::optional<std::uint64_t> at_round;  // on the wire all ones where there is none
  double wait_s = 0.0;
  std::vector<std::byte> encode() const;
  static CutAsk decode(std::span<const std::byte> bytes);
};

struct CutMade {
  std::uint64_t key = 0;
  std::uint64_t version = 0;  // updates of the shard that are in the cut
  std::uint64_t round = 0;    // the round that was open; 0 where an update joins one push
  bool ema = false;
  std::uint32_t state_vectors = 0;
  std::optional<double> set_rate;  // the learning rate in place of the schedule's, where one was set
  std::uint32_t saved = 0;         // pieces with a rank's saved bytes that come before the others
  std::vector<std::byte> encode() const;
  static CutMade decode(std::span<const std::byte> bytes);
};

struct MorePieces {
  std::uint64_t key = 0;
  std::uint32_t pieces = 0;
  std::vector<std::byte> encode() const;
  static MorePieces decode(std::span<const std::byte> bytes);
};

// What comes before the floats of a piece.
struct PieceHeader {
  std::uint64_t key = 0;
  std::uint64_t offset = 0;  // floats from the shard's first
  std::uint32_t count = 0;   // floats of each vector
  static constexpr std::size_t kBytes = 20;
  void write(std::byte* to) const;
  // Throws Error(kProtocol) unless `count` floats of each of `vectors` vectors follow, and lie in a shard of
  // `shard_floats`.
  static PieceHeader decode(std::span<const std::byte> piece, std::size_t vectors, std::uint64_t shard_floats);
};

// The bytes that a rank had saved. To the asker's count it is a piece.
struct SavedPiece {
  std::uint64_t key = 0;
  std::uint32_t rank = 0;
  std::span<const std::byte> data;  // at most kMaxSavedBytes, in the message that it was decoded from
  std::vector<std::byte> encode() const;
  static SavedPiece decode(std::span<const std::byte> bytes);
};

struct SnapshotFailure {
  std::uint64_t key = 0;
  ErrorCode code = ErrorCode::kProtocol;
  std::string message;
  std::vector<std::byte> encode() const;
  static SnapshotFailure decode(std::span<const std::byte> bytes);
};

// Shard 0 has the other shards cut before this round.
struct CutRound {
  std::uint64_t round = 0;
  std::uint64_t key = 0;
  std::vector<std::byte> encode() const;
  static CutRound decode(std::span<const std::byte> bytes);
};

// A message that holds a key alone, and the key that begins every message of a snapshot.
std::vector<std::byte> encode_key(std::uint64_t key);
std::uint64_t key_of(std::span<const std::byte> bytes);

}  // namespace distnet
