#include "wire/snapshot_messages.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "wire/client_messages.h"
#include "wire/learning_rate.h"

namespace distnet {
namespace {

constexpr std::uint64_t kAnyRound = std::numeric_limits<std::uint64_t>::max();

double read_wait(Reader& reader) {
  const auto wait_s = reader.number<double>();
  if (!(wait_s > 0.0)) {
    throw Error(ErrorCode::kProtocol, "a snapshot that may take no time");
  }
  return std::min(wait_s, kLongestSnapshotWaitSeconds);
}

}  // namespace

std::vector<std::byte> SnapshotAsk::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(wait_s);
  return writer.take();
}

SnapshotAsk SnapshotAsk::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  SnapshotAsk ask;
  ask.key = reader.number<std::uint64_t>();
  ask.wait_s = read_wait(reader);
  reader.expect_end();
  return ask;
}

std::vector<std::byte> CutAsk::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(at_round.value_or(kAnyRound));
  writer.number(wait_s);
  return writer.take();
}

CutAsk CutAsk::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  CutAsk ask;
  ask.key = reader.number<std::uint64_t>();
  const auto round = reader.number<std::uint64_t>();
  if (round != kAnyRound) {
    ask.at_round = round;
  }
  ask.wait_s = read_wait(reader);
  reader.expect_end();
  return ask;
}

std::vector<std::byte> CutMade::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(version);
  writer.number(round);
  writer.number(static_cast<std::uint8_t>(ema));
  writer.number(state_vectors);
  write_rate(writer, set_rate);
  writer.number(saved);
  return writer.take();
}

CutMade CutMade::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  CutMade made;
  made.key = reader.number<std::uint64_t>();
  made.version = reader.number<std::uint64_t>();
  made.round = reader.number<std::uint64_t>();
  made.ema = reader.number<std::uint8_t>() != 0;
  made.state_vectors = reader.number<std::uint32_t>();
  made.set_rate = read_rate(reader);
  made.saved = reader.number<std::uint32_t>();
  reader.expect_end();
  if (made.saved > kMaxSavedRanks) {
    throw Error(ErrorCode::kProtocol, "a snapshot with saved bytes of more ranks than a shard keeps them for");
  }
  return made;
}

std::vector<std::byte> MorePieces::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(pieces);
  return writer.take();
}

MorePieces MorePieces::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  MorePieces more;
  more.key = reader.number<std::uint64_t>();
  more.pieces = reader.number<std::uint32_t>();
  reader.expect_end();
  return more;
}

void PieceHeader::write(std::byte* to) const {
  Writer writer;
  writer.number(key);
  writer.number(offset);
  writer.number(count);
  const std::vector<std::byte> bytes = writer.take();
  std::memcpy(to, bytes.data(), kBytes);
}

PieceHeader PieceHeader::decode(std::span<const std::byte> piece, std::size_t vectors, std::uint64_t shard_floats) {
  Reader reader(piece);
  PieceHeader header;
  header.key = reader.number<std::uint64_t>();
  header.offset = reader.number<std::uint64_t>();
  header.count = reader.number<std::uint32_t>();
  const bool fits = header.offset < shard_floats && header.count <= shard_floats - header.offset;
  if (!fits || header.count == 0 || reader.left() != vectors * header.count * sizeof(float)) {
    throw Error(ErrorCode::kProtocol,
                "a piece of a snapshot that has another size than it says, or lies outside of its "
                "shard");
  }
  return header;
}

std::vector<std::byte> SavedPiece::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(rank);
  writer.bytes(data);
  return writer.take();
}

SavedPiece SavedPiece::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  SavedPiece piece;
  piece.key = reader.number<std::uint64_t>();
  piece.rank = reader.number<std::uint32_t>();
  piece.data = reader.bytes();
  reader.expect_end();
  check_saved_bytes(piece.data.size());
  return piece;
}

std::vector<std::byte> SnapshotFailure::encode() const {
  Writer writer;
  writer.number(key);
  writer.number(static_cast<std::uint16_t>(code));
  writer.text(message);
  return writer.take();
}

SnapshotFailure SnapshotFailure::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  SnapshotFailure failure;
  failure.key = reader.number<std::uint64_t>();
  const auto code = reader.number<std::uint16_t>();
  failure.message = reader.text();
  reader.expect_end();
  const bool known = code > 0 && code <= static_cast<std::uint16_t>(kLastErrorCode);
  failure.code = known ? static_cast<ErrorCode>(code) : ErrorCode::kProtocol;
  return failure;
}

std::vector<std::byte> CutRound::encode() const {
  Writer writer;
  writer.number(round);
  writer.number(key);
  return writer.take();
}

CutRound CutRound::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  CutRound cut;
  cut.round = reader.number<std::uint64_t>();
  cut.key = reader.number<std::uint64_t>();
  reader.expect_end();
  return cut;
}

std::vector<std::byte> encode_key(std::uint64_t key) {
  Writer writer;
  writer.number(key);
  return writer.take();
}

std::uint64_t key_of(std::span<const std::byte> bytes) { return Reader(bytes).number<std::uint64_t>(); }

}  // namespace distnet
