// float16 (IEEE 754 binary16): 11 bits of precision between 6.1e-5 and 65504, subnormals down to 6.0e-8. Values are
// rounded to nearest even; larger values become infinite.
//
// The conversions use integer arithmetic that any vector unit has. The compiler's own are function calls on machines
// without F16C.
#include <bit>
#include <limits>

#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "wire/formats/two_byte_format.h"

namespace distnet {
namespace {

constexpr std::int32_t kSign = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kMagnitude = 0x7FFFFFFF;
constexpr std::int32_t kInfinity = 0x7F800000;     // also the mask of a float32's exponent
constexpr std::int32_t kTooLarge = 0x47800000;     // 2^16: from here on a number rounds to infinity
constexpr std::int32_t kSmallNormal = 0x38800000;  // 2^-14: below it a float16 is subnormal
constexpr std::int32_t kRebias = 112 << 23;        // from the exponents of float32 to those of float16
constexpr std::int32_t kPrecisionLost = 13 << 23;  // float32 has 13 bits of precision more
constexpr std::uint32_t kExponent = 0x7C00;        // of a float16
constexpr std::uint32_t kExponentUnit = 0x0400;
constexpr std::uint32_t kTopBit = 0x8000;

struct Rounded {
  std::uint32_t half;
  float number;  // what it decodes to, where that is finite
};

// Adds 2^(13 + exponent) to the magnitude, where the exponent is at least the smallest of a float16. The last bit of
// the sum then has the value of the last bit of the float16. So the addition rounds to it, and the sum's mantissa is
// the float16's.
inline Rounded rounded(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  const std::int32_t magnitude = bits & kMagnitude;
  const std::int32_t bounded = magnitude < kTooLarge ? magnitude : kTooLarge;
  const std::int32_t own_exponent = bounded & kInfinity;
  const std::int32_t exponent = own_exponent > kSmallNormal ? own_exponent : kSmallNormal;
  const auto raise = std::bit_cast<float>(exponent + kPrecisionLost);
  const float raised = std::bit_cast<float>(bounded) + raise;
  const std::int32_t mantissa = std::bit_cast<std::int32_t>(raised) - exponent;
  const std::int32_t number = mantissa + (exponent >> 13) - (kPrecisionLost + (kSmallNormal >> 13));
  const std::int32_t quiet_nan = 0x7E00 | ((magnitude >> 13) & 0x3FF);
  const std::int32_t half = magnitude > kInfinity ? quiet_nan : number;
  return {static_cast<std::uint32_t>(half | ((bits >> 16) & 0x8000)),
          std::bit_cast<float>(std::bit_cast<std::int32_t>(raised - raise) | (bits & kSign))};
}

inline float widened(std::uint32_t half) {
  const auto magnitude = static_cast<std::int32_t>(half & 0x7FFFU) << 13;
  const std::int32_t normal = magnitude + kRebias;
  // Computed as 2^-14 plus the value, whose last bit is worth 2^-24; the difference is exact.
  const float subnormal = std::bit_cast<float>(normal + (1 << 23)) - 0x1p-14F;
  const std::int32_t number = magnitude < (1 << 23) ? std::bit_cast<std::int32_t>(subnormal) : normal;
  const std::int32_t all = magnitude >= (0x1F << 23) ? normal + kRebias : number;
  return std::bit_cast<float>(static_cast<std::uint32_t>(all) | (half & 0x8000U) << 16U);
}

// The top bit is set exactly when the value is infinite or not a number.
inline std::uint32_t finite_mark(std::uint32_t half) { return (half & kExponent) + kExponentUnit; }

DISTNET_MULTIVERSION bool encode_values(std::uint16_t* to, const float* from, float scale, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t half = rounded(shared_load(from + i) * scale).half;
    marks |= finite_mark(half);
    to[i] = static_cast<std::uint16_t>(half);
  }
  return (marks & kTopBit) == 0;
}

DISTNET_MULTIVERSION bool encode_with_residual(std::uint16_t* to, float* left, const float* from, const float* carried,
                                               float scale, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i) * scale + carried[i];
    const auto [half, number] = rounded(value);
    marks |= finite_mark(half);
    to[i] = static_cast<std::uint16_t>(half);
    left[i] = value - number;
  }
  return (marks & kTopBit) == 0;
}

DISTNET_MULTIVERSION bool decode_values(float* to, const std::uint16_t* from, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t half = from[i];
    marks |= finite_mark(half);
    to[i] = widened(half);
  }
  return (marks & kTopBit) == 0;
}

DISTNET_MULTIVERSION bool all_finite_values(const std::uint16_t* from, std::size_t count) {
  std::uint16_t marks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    marks = static_cast<std::uint16_t>(marks | finite_mark(from[i]));
  }
  return (marks & kTopBit) == 0;
}

constexpr TwoByteKernels kKernels = {encode_values, encode_with_residual, decode_values, all_finite_values};

}  // namespace

extern const FormatEntry float16_entry;
const FormatEntry float16_entry = {"float16", {}, [](const FormatSettings&) -> std::unique_ptr<WireFormat> {
                                     return std::make_unique<TwoByteFormat>(kKernels);
                                   }};

}  // namespace distnet
