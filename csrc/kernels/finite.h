// NaN and infinity inside vector kernels: how a loop looks for them beside its other work.
//
// A loop collects the marks of what it reads with `|`, and asks all_marks_finite() once at its end. A pass of its own
// over a vector costs about as much as an update, because one stream of reads takes as long as three.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/access.h"

namespace distnet {

inline constexpr std::uint32_t kFloatExponent = 0x7F800000U;  // all ones: infinite, or not a number

// The top bit is set exactly when the value is infinite or not a number.
inline std::uint32_t finite_mark(float value) {
  return (std::bit_cast<std::uint32_t>(value) & kFloatExponent) + 0x00800000U;
}
inline bool all_marks_finite(std::uint32_t marks) { return (marks & 0x80000000U) == 0; }

// What a loop takes for 0: every value that is not finite, or none.
enum class Dropped : std::uint32_t { kNone = 1, kNotFinite = kFloatExponent };  // kNone: no value's exponent bits

inline float value_or_zero(float value, Dropped dropped) {
  return (std::bit_cast<std::uint32_t>(value) & kFloatExponent) == static_cast<std::uint32_t>(dropped) ? 0.0F : value;
}

// A run of a gradient for a loop that uses one run and looks at another of the same length, or at the same one. What is
// looked at may be changed by a peer before it is used; so a value that is not finite then is dropped.
struct WatchedRun {
  const float* values = nullptr;
  const float* watched = nullptr;
  Dropped dropped = Dropped::kNone;

  float used(std::size_t i) const { return value_or_zero(shared_load(values + i), dropped); }
  std::uint32_t mark(std::size_t i) const { return finite_mark(shared_load(watched + i)); }
};

}  // namespace distnet
