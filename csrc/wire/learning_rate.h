// A learning rate in a message: a float64, NaN where none was set.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "wire/codec.h"
#include "wire/protocol.h"

namespace distnet {

// A rate that is given to a server is not above it: a step in float32 would be infinity. One that is too small for float32
// counts as 0, as it does in other libraries.
inline constexpr double kMostLearningRate = std::numeric_limits<float>::max();

inline bool can_be_rate(double rate) { return rate >= 0.0 && rate <= kMostLearningRate; }

inline void write_rate(Writer& writer, std::optional<double> rate) {
  writer.number(rate.value_or(std::numeric_limits<double>::quiet_NaN()));
}

// Throws Error(kProtocol) unless it is NaN, or finite and not negative.
inline std::optional<double> read_rate(Reader& reader) {
  const auto rate = reader.number<double>();
  if (std::isnan(rate)) {
    return std::nullopt;
  }
  if (!std::isfinite(rate) || rate < 0.0) {
    throw Error(ErrorCode::kProtocol, "a learning rate that is not finite, or negative");
  }
  return rate;
}

// How many groups follow. Throws Error(kProtocol) for more than can have learning rates of their own.
inline std::uint32_t read_group_count(Reader& reader) {
  const auto count = reader.number<std::uint32_t>();
  if (count > kMaxRatedGroups) {
    throw Error(ErrorCode::kProtocol, std::to_string(count) + " groups with learning rates of their own; at most " +
                                          std::to_string(kMaxRatedGroups) + " can have some");
  }
  return count;
}

}  // namespace distnet
