// float16 and bfloat16: how their bits become a float32, and back, rounded to nearest even.
//
// float16 is IEEE 754 binary16: 11 bits of precision between 6.1e-5 and 65504, subnormals down to 6.0e-8; larger values
// become infinite. bfloat16 is the upper half of a float32: it has its range, and 8 bits of precision. The conversions
// use integer arithmetic that any vector unit has; the compiler's own are function calls on machines without F16C.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/multiversion.h"

namespace distnet {

inline constexpr std::int32_t kFloatSign = std::numeric_limits<std::int32_t>::min();
inline constexpr std::int32_t kFloatMagnitude = 0x7FFFFFFF;
inline constexpr std::int32_t kFloatInfinity = 0x7F800000;  // also the mask of a float32's exponent

struct Float16 {
  static constexpr std::int32_t kTooLarge = 0x47800000;     // 2^16: from here on a number rounds to infinity
  static constexpr std::int32_t kSmallNormal = 0x38800000;  // 2^-14: below it a float16 is subnormal
  static constexpr std::int32_t kRebias = 112 << 23;        // from the exponents of float32 to those of float16
  static constexpr std::int32_t kPrecisionLost = 13 << 23;  // float32 has 13 bits of precision more

  struct Rounded {
    std::uint32_t half;
    float number;  // what it decodes to, where that is finite
  };

  // Adds 2^(13 + exponent) to the magnitude, where the exponent is at least the smallest of a float16. The last bit of
  // the sum then has the value of the last bit of the float16. So the addition rounds to it, and the sum's mantissa is
  // the float16's.
  static DISTNET_ALWAYS_INLINE Rounded rounded(float value) {
    const auto bits = std::bit_cast<std::int32_t>(value);
    const std::int32_t magnitude = bits & kFloatMagnitude;
    const std::int32_t bounded = magnitude < kTooLarge ? magnitude : kTooLarge;
    const std::int32_t own_exponent = bounded & kFloatInfinity;
    const std::int32_t exponent = own_exponent > kSmallNormal ? own_exponent : kSmallNormal;
    const auto raise = std::bit_cast<float>(exponent + kPrecisionLost);
    const float raised = std::bit_cast<float>(bounded) + raise;
    const std::int32_t mantissa = std::bit_cast<std::int32_t>(raised) - exponent;
    const std::int32_t number = mantissa + (exponent >> 13) - (kPrecisionLost + (kSmallNormal >> 13));
    const std::int32_t quiet_nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
    const std::int32_t half = magnitude > kFloatInfinity ? quiet_nan : number;
    return {static_cast<std::uint32_t>(half | ((bits >> 16) & 0x8000)),
            std::bit_cast<float>(std::bit_cast<std::int32_t>(raised - raise) | (bits & kFloatSign))};
  }

  static DISTNET_ALWAYS_INLINE float widened(std::uint32_t half) {
    const auto magnitude = static_cast<std::int32_t>(half & 0x7FFFU) << 13;
    const std::int32_t normal = magnitude + kRebias;
    // Computed as 2^-14 plus the value, whose last bit is worth 2^-24; the difference is exact.
    const float subnormal = std::bit_cast<float>(normal + (1 << 23)) - 0x1p-14F;
    const std::int32_t number = magnitude < (1 << 23) ? std::bit_cast<std::int32_t>(subnormal) : normal;
    const std::int32_t all = magnitude >= (0x1F << 23) ? normal + kRebias : number;
    return std::bit_cast<float>(static_cast<std::uint32_t>(all) | (half & 0x8000U) << 16U);
  }
};

struct Bfloat16 {
  // A NaN is made quiet: rounding it could carry into the exponent, and cutting it could leave an infinity.
  static DISTNET_ALWAYS_INLINE std::uint32_t rounded(float value) {
    constexpr std::uint32_t kQuiet = 0x0040;
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t nearest = (bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U;
    const std::uint32_t quiet = (bits >> 16U) | kQuiet;
    return (static_cast<std::int32_t>(bits) & kFloatMagnitude) > kFloatInfinity ? quiet : nearest;
  }

  static DISTNET_ALWAYS_INLINE float widened(std::uint32_t half) { return std::bit_cast<float>(half << 16U); }
};

}  // namespace distnet
