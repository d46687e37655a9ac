// The messages of gatherings: ranks that wait for each other at shard 0, on their control connections.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/codec.h"

namespace distnet {

// What a rank waits for the others at.
enum class GatherKind : std::uint8_t {
  kBarrier = 1,
  kFinish = 2,  // it pushes no more
};

// All that the client pushed before is settled at every shard.
struct GatherAsk {
  std::uint64_t number = 0;  // of the client's gatherings, by its own count
  GatherKind kind = GatherKind::kBarrier;
  std::vector<std::byte> encode() const;
  static GatherAsk decode(std::span<const std::byte> bytes);
  bool operator==(const GatherAsk&) const = default;
};

// How the wait ended. A client gets at most one for each of its numbers.
struct GatherVerdict {
  std::uint64_t number = 0;
  ErrorCode code = ErrorCode::kNone;  // kNone: all are here; kDeadlineExceeded: the answer to kLeaveGathering
  std::string text;                   // why not; who is missing
  std::uint64_t round = 0;            // the client's next push is for this round or a later one
  std::vector<std::byte> encode() const;
  static GatherVerdict decode(std::span<const std::byte> bytes);
  bool operator==(const GatherVerdict&) const = default;
};

// A message that holds one number alone, or one text.
std::vector<std::byte> encode_number(std::uint64_t number);
std::uint64_t decode_number(std::span<const std::byte> bytes);
std::vector<std::byte> encode_text(const std::string& text);
std::string decode_text(std::span<const std::byte> bytes);

}  // namespace distnet
