// A learning rate in a message: a float64, NaN where none was set.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "wire/codec.h"

namespace distnet {

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

}  // namespace distnet
