#include "client/snapshot_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/random.h"

namespace distnet {
namespace {

constexpr std::uint32_t kPiecesAtATime = 4;
constexpr std::uint32_t kPiecesAhead = 8;  // that are on the way while one is read: about 2 MiB
constexpr double kAnswerSeconds = 30.0;    // beyond what the server was allowed; between two pieces, too
static_assert(kPiecesAhead + kPiecesAtATime <= kMostPieces);

double left_s(const Deadline& deadline) {
  return std::max(std::chrono::duration<double>(deadline.left()).count(), 0.001);
}

Deadline answer_by(const Deadline& deadline) {
  return Deadline::after(deadline.left() +
                         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kAnswerSeconds)));
}

}  // namespace

SnapshotReader::SnapshotReader(std::span<Link* const> links, std::optional<std::uint64_t> at_round, double timeout_s,
                               const Interrupt& interrupt)
    : key_(random_number()) {
  for (Link* const link : links) {
    const Welcome& welcome = link->welcome();
    Shard shard;
    shard.link = link;
    shard.slices = slices_of(welcome.manifest, welcome.range);
    shard.floats = welcome.range.size();
    shards_.push_back(std::move(shard));
  }
  const Deadline deadline = Deadline::after(std::min(timeout_s, kLongestSnapshotWaitSeconds));
  try {
    take_turns(deadline, interrupt);
    cut(at_round, deadline, interrupt);
  } catch (...) {
    give_up();
    throw;
  }
}

SnapshotReader::~SnapshotReader() { give_up(); }

void SnapshotReader::give_up() noexcept {
  for (const Shard& shard : shards_) {
    if (shard.complete()) {
      continue;
    }
    try {
      shard.link->say(ControlKind::kSnapshotEnd, encode_key(key_));
    } catch (...) {
      // The connection has ended, and the snapshot with it.
      continue;
    }
  }
}

ControlMessage SnapshotReader::expect(Shard& shard, ControlKind kind, const Deadline& deadline,
                                      const Interrupt& interrupt) const {
  ControlMessage message = shard.link->next_of_snapshot(key_, deadline, interrupt);
  if (message.kind != kind) {
    throw Error(ErrorCode::kProtocol, "the server sent the messages of a snapshot out of order");
  }
  return message;
}

void SnapshotReader::take_turns(const Deadline& deadline, const Interrupt& interrupt) {
  for (Shard& shard : shards_) {
    shard.link->say(ControlKind::kSnapshot, SnapshotAsk{key_, left_s(deadline)}.encode());
    expect(shard, ControlKind::kSnapshotReady, answer_by(deadline), interrupt);
  }
}

// Shard 0 of a synchronous job names the round; the others hear it from there.
void SnapshotReader::cut(std::optional<std::uint64_t> at_round, const Deadline& deadline, const Interrupt& interrupt) {
  for (Shard& shard : shards_) {
    const bool names_round = &shard == &shards_.front();
    shard.link->say(ControlKind::kCut, CutAsk{key_, names_round ? at_round : std::nullopt, left_s(deadline)}.encode());
  }
  std::vector<CutMade> made;
  made.reserve(shards_.size());
  for (Shard& shard : shards_) {
    made.push_back(CutMade::decode(expect(shard, ControlKind::kCutMade, answer_by(deadline), interrupt).payload));
  }
  learn_shape(made, shards_.front().link->welcome().joins_all);
}

void SnapshotReader::learn_shape(const std::vector<CutMade>& made, bool joins_all) {
  const CutMade& first = made.front();
  for (const CutMade& shard : made) {
    if (shard.ema != first.ema || shard.state_vectors != first.state_vectors) {
      throw Error(ErrorCode::kProtocol, "the shards do not keep the same vectors");
    }
    // Their versions may differ: a round whose gradients were all bad at one shard made none there.
    if (joins_all && shard.round != first.round) {
      throw Error(ErrorCode::kRoundAborted, "the shards had parted when their rounds ended: one has joined " +
                                                std::to_string(first.round) + " rounds, another " +
                                                std::to_string(shard.round) + "; no snapshot holds both");
    }
    shape_.versions.push_back(shard.version);
  }
  if (std::ranges::any_of(made.begin() + 1, made.end(), [](const CutMade& shard) { return shard.saved != 0; })) {
    throw Error(ErrorCode::kProtocol, "saved bytes from another shard than the first");
  }
  shards_.front().saved_left = first.saved;
  shape_.set_rate = first.set_rate;  // where shards are cut by themselves, the first decides for all
  shape_.ema = first.ema;
  shape_.state_vectors = first.state_vectors;
  if (joins_all) {
    shape_.round = first.round;
  }
}

void SnapshotReader::ask_for_more(Shard& shard) const {
  std::uint32_t more = 0;
  while (shard.asked + more < kPiecesAhead) {
    more += kPiecesAtATime;
  }
  if (more != 0) {
    shard.link->say(ControlKind::kMorePieces, MorePieces{key_, more}.encode());
    shard.asked += more;
  }
}

// The shards take turns, so that none waits for long for its next reader.
void SnapshotReader::read(std::span<const std::vector<float*>> vectors, const Interrupt& interrupt) {
  bool any = true;
  while (any) {
    any = false;
    for (Shard& shard : shards_) {
      if (shard.complete()) {
        continue;
      }
      ask_for_more(shard);
      const Deadline deadline = Deadline::after(kAnswerSeconds);
      if (shard.saved_left != 0) {
        take_saved_piece(shard, expect(shard, ControlKind::kSavedPiece, deadline, interrupt));
      } else {
        take_piece(shard, expect(shard, ControlKind::kPiece, deadline, interrupt), vectors);
      }
      any = true;
    }
  }
}

void SnapshotReader::take_saved_piece(Shard& shard, const ControlMessage& message) {
  const SavedPiece piece = SavedPiece::decode(message.payload);
  saved_[piece.rank].assign(piece.data.begin(), piece.data.end());
  --shard.saved_left;
  --shard.asked;
}

void SnapshotReader::take_piece(Shard& shard, const ControlMessage& message,
                                std::span<const std::vector<float*>> vectors) const {
  const PieceHeader piece = PieceHeader::decode(message.payload, vectors.size(), shard.floats);
  if (piece.offset != shard.read) {
    throw Error(ErrorCode::kProtocol, "the server sent the pieces of a snapshot out of order");
  }
  const std::uint64_t end = piece.offset + piece.count;
  const std::byte* from = message.payload.data() + PieceHeader::kBytes;
  std::size_t next = shard.next_slice;
  for (const std::vector<float*>& tensors : vectors) {
    for (next = shard.next_slice; next < shard.slices.size(); ++next) {
      const TensorSlice& slice = shard.slices[next];
      const std::uint64_t first = std::max(slice.shard_offset, piece.offset);
      const std::uint64_t last = std::min(slice.shard_offset + slice.count, end);
      if (first < last) {
        float* const to = tensors[slice.tensor] + slice.tensor_offset + (first - slice.shard_offset);
        std::memcpy(to, from + (first - piece.offset) * sizeof(float), (last - first) * sizeof(float));
      }
      if (slice.shard_offset + slice.count >= end) {
        break;  // it may reach into the next piece
      }
    }
    from += piece.count * sizeof(float);
  }
  shard.next_slice = next;
  shard.read = end;
  --shard.asked;
}

}  // namespace distnet
