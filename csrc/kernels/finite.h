// NaN and infinity inside vector kernels: how a loop looks for them beside its other work.
//
// A loop collects the marks of what it reads with `|`, and asks all_marks_finite() once at its end. A pass of its own
// over a vector costs about as much as an update, because one stream of reads takes as long as three. What must not be
// used before it is known to be finite goes by strips (strips.h).
#pragma once

#include <bit>
#include <cstdint>

namespace distnet {

inline constexpr std::uint32_t kFloatExponent = 0x7F800000U;  // all ones: infinite, or not a number

// The top bit is set exactly when the value is infinite or not a number.
inline std::uint32_t finite_mark(float value) {
  return (std::bit_cast<std::uint32_t>(value) & kFloatExponent) + 0x00800000U;
}
inline bool all_marks_finite(std::uint32_t marks) { return (marks & 0x80000000U) == 0; }

}  // namespace distnet
