// bfloat16, the upper half of a float32; kernels/halves.h has the conversions.
#include "kernels/access.h"
#include "kernels/halves.h"
#include "kernels/multiversion.h"
#include "wire/formats/two_byte_format.h"

namespace distnet {
namespace {

constexpr std::uint32_t kExponent = 0x7F80;  // of a bfloat16
constexpr std::uint32_t kExponentUnit = 0x0080;
constexpr std::uint32_t kTopBit = 0x8000;

// The top bit is set exactly when the value is infinite or not a number.
inline std::uint32_t finite_mark(std::uint32_t half) { return (half & kExponent) + kExponentUnit; }

DISTNET_MULTIVERSION bool encode_values(std::uint16_t* to, const float* from, float scale, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t half = Bfloat16::rounded(shared_load(from + i) * scale);
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
    const std::uint32_t half = Bfloat16::rounded(value);
    marks |= finite_mark(half);
    to[i] = static_cast<std::uint16_t>(half);
    left[i] = value - Bfloat16::widened(half);
  }
  return (marks & kTopBit) == 0;
}

DISTNET_MULTIVERSION bool decode_values(float* to, const std::uint16_t* from, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t half = from[i];
    marks |= finite_mark(half);
    to[i] = Bfloat16::widened(half);
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

extern const FormatEntry bfloat16_entry;
const FormatEntry bfloat16_entry = {"bfloat16", {}, [](const FormatSettings&) -> std::unique_ptr<WireFormat> {
                                      return std::make_unique<TwoByteFormat>(kKernels);
                                    }};

}  // namespace distnet
