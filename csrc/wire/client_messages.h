// What a client has a shard do beside its pushes: set the learning rate, and keep bytes with a push.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/codec.h"
#include "wire/control_messages.h"

namespace distnet {

// The learning rate that replaces the schedule: finite, and not negative.
struct SetLearningRate {
  double learning_rate = 0.0;
  std::vector<std::byte> encode() const;
  static SetLearningRate decode(std::span<const std::byte> bytes);
};

// Bytes that become the rank's saved ones when the session's push `push` is applied. That push has not been sent yet.
struct Save {
  std::uint64_t push = 0;
  std::vector<std::byte> data;  // at most kMaxSavedBytes
  std::vector<std::byte> encode() const;
  static Save decode(std::span<const std::byte> bytes);
};

struct SaveAnswer {
  std::string why_not;  // empty: the bytes wait for their push
  std::vector<std::byte> encode() const;
  static SaveAnswer decode(std::span<const std::byte> bytes);
};

// Returns how long a message of this kind may be from a client whose session stands.
constexpr std::uint32_t most_question_bytes(ControlKind kind) {
  constexpr std::uint32_t kSaveHeadBytes = sizeof(std::uint64_t) + sizeof(std::uint32_t);
  return kind == ControlKind::kSave ? kSaveHeadBytes + kMaxSavedBytes : kMaxQuestionBytes;
}

// Throws Error(kProtocol) where these are more bytes than a rank may have saved.
void check_saved_bytes(std::size_t count);

}  // namespace distnet
