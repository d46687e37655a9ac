#include "server/snapshot_stream.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace distnet {

static_assert(PieceHeader::kBytes + kMaxCutVectors * kStoreChunkFloats * sizeof(float) <= kMaxControlBytes);

SnapshotStream::SnapshotStream(Shard& shard, ControlConnection& control, bool is_owner, double timeout_s)
    : shard_(shard), control_(control), is_owner_(is_owner), silence_s_(std::min(timeout_s, kLongestSilenceSeconds)) {}

SnapshotStream::~SnapshotStream() { give_up(); }

// ---- the control loop's side ----

bool SnapshotStream::take(const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kSnapshot:
      begin(SnapshotAsk::decode(message.payload));
      return true;
    case ControlKind::kCut: {
      const CutAsk ask = CutAsk::decode(message.payload);
      const std::lock_guard lock(mutex_);
      if (ask.key == key_ && !cut_) {
        cut_ = ask;
        changed_.notify_all();
      }
      return true;
    }
    case ControlKind::kMorePieces: {
      const MorePieces more = MorePieces::decode(message.payload);
      const std::lock_guard lock(mutex_);
      if (more.key == key_) {
        room_ = std::min<std::uint64_t>(room_ + more.pieces, kMostPieces);
        changed_.notify_all();
      }
      return true;
    }
    case ControlKind::kSnapshotEnd:
      if (key_of(message.payload) == key_) {  // written by this thread
        give_up();
      }
      return true;
    default:
      return false;
  }
}

void SnapshotStream::begin(const SnapshotAsk& ask) {
  give_up();  // of an older one, which this client no longer reads
  if (!is_owner_) {
    fail(ask.key, ErrorCode::kUnauthorized,
         "only the owner of the server takes snapshots; call snapshot() of the ParameterServer itself");
    return;
  }
  const std::lock_guard lock(mutex_);
  key_ = ask.key;
  cut_.reset();
  room_ = 0;
  given_up_ = false;
  running_ = true;
  try {
    thread_ = Thread("sends a snapshot", [this, ask] { run(ask); });
  } catch (...) {
    running_ = false;
    throw;
  }
}

// A piece that the client does not take keeps the thread until the connection goes.
void SnapshotStream::give_up() {
  if (!thread_.joinable()) {
    return;
  }
  {
    std::unique_lock lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
    if (!changed_.wait_until(lock, Deadline::after(kLastPieceSeconds), [this] { return !running_; })) {
      control_.shutdown();
    }
  }
  thread_.join();
}

// ---- the snapshot's own thread ----

bool SnapshotStream::given_up() {
  const std::lock_guard lock(mutex_);
  return given_up_;
}

void SnapshotStream::fail(std::uint64_t key, ErrorCode code, const std::string& message) {
  try {
    control_.send(ControlKind::kSnapshotFailed, SnapshotFailure{key, code, message}.encode());
  } catch (const Error&) {
    // It is gone, or does not read: there is nobody to tell.
  }
}

void SnapshotStream::run(const SnapshotAsk& ask) {
  ErrorCode code = ErrorCode::kNone;
  std::string why;
  try {
    converse(ask);
  } catch (const Error& error) {
    code = error.code();
    why = error.what();
  } catch (const std::exception& error) {
    code = ErrorCode::kConfig;
    why = std::string("the server cannot take a snapshot: ") + error.what();
  }
  if (code != ErrorCode::kNone && !given_up()) {
    fail(ask.key, code, why);
  }
  const std::lock_guard lock(mutex_);
  running_ = false;
  changed_.notify_all();
}

// Waits until the client has said something. Throws where it does not, or gives the snapshot up.
template <typename Ready>
void SnapshotStream::wait_for_client(double at_most_s, const Ready& ready) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, Deadline::after(at_most_s), [&] { return given_up_ || ready(); })) {
    throw Error(ErrorCode::kDeadlineExceeded,
                "the snapshot was dropped: nobody asked for its pieces for " + std::to_string(at_most_s) + " s");
  }
  if (given_up_) {
    throw Error(ErrorCode::kPeerClosed, "the client has given the snapshot up");
  }
}

void SnapshotStream::converse(const SnapshotAsk& ask) {
  const Interrupt until_given_up = [this] {
    if (given_up()) {
      throw Error(ErrorCode::kPeerClosed, "the client has given the snapshot up");
    }
  };
  SnapshotRoom& room = shard_.snapshots();
  const SnapshotTurn turn(room, ask.key, Deadline::after(ask.wait_s), until_given_up);
  control_.send(ControlKind::kSnapshotReady, encode_key(ask.key));
  // The client asks the other shards for their turns now.
  wait_for_client(ask.wait_s + silence_s_, [this] { return cut_.has_value(); });
  const CutAsk cut = cut_.value_or(CutAsk{});  // it stays as it is while this thread runs
  const SnapshotRoom::Moment moment =
      room.cut(ask.key, shard_.rounds(), cut.at_round, Deadline::after(cut.wait_s), until_given_up);
  const Store& store = shard_.store();
  control_.send(ControlKind::kCutMade, CutMade{ask.key, moment.version, moment.round, store.ema_offset_bytes() != 0,
                                               static_cast<std::uint32_t>(store.state_vectors()), moment.set_rate,
                                               static_cast<std::uint32_t>(moment.saved.size())}
                                           .encode());
  send_saved(ask.key, moment.saved);
  send_pieces(ask.key);
}

void SnapshotStream::send_piece(ControlKind kind, const std::vector<std::byte>& piece) {
  try {
    control_.send(kind, piece, {}, Deadline::after(silence_s_));
  } catch (const Error&) {
    control_.shutdown();  // half a message may have left: nothing can follow it
    throw;
  }
}

// Returns once the client can take a piece more.
void SnapshotStream::wait_for_room() {
  wait_for_client(silence_s_, [this] { return room_ != 0; });
  const std::lock_guard lock(mutex_);
  --room_;
}

void SnapshotStream::send_saved(std::uint64_t key, const SavedBytes::ByRank& saved) {
  for (const auto& [rank, data] : saved) {
    wait_for_room();
    send_piece(ControlKind::kSavedPiece, SavedPiece{key, rank, *data}.encode());
  }
}

void SnapshotStream::send_pieces(std::uint64_t key) {
  Store& store = shard_.store();
  std::vector<float> values(store.cut_vectors() * store.cut_chunk_floats(0));
  std::vector<std::byte> payload;
  std::uint64_t offset = 0;
  for (std::size_t chunk = 0; chunk < store.cut_chunks(); ++chunk) {
    wait_for_room();
    const std::uint64_t count = store.cut_chunk_floats(chunk);
    const std::size_t bytes = store.cut_vectors() * count * sizeof(float);
    store.read_cut(chunk, values.data());
    payload.resize(PieceHeader::kBytes + bytes);
    PieceHeader{key, offset, static_cast<std::uint32_t>(count)}.write(payload.data());
    std::memcpy(payload.data() + PieceHeader::kBytes, values.data(), bytes);
    send_piece(ControlKind::kPiece, payload);
    offset += count;
  }
}

}  // namespace distnet
