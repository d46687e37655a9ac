// int8: groups of 256 values. Each value is a multiple of its group's step, -127 to 127 steps, rounded to nearest even.
//
//   step = max |v| / 127        q = v / step        v' = q * step
//
// The steps of 64 groups come first, then one byte for each value. A group that holds a NaN or an infinity has a step
// that is not finite, and decodes to NaN as a whole.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"
#include "wire/formats/format_entry.h"

namespace distnet {
namespace {

constexpr std::size_t kSteps = kFormatChunkFloats / kInt8GroupFloats;  // room for all, whatever the chunk's length
constexpr float kMaxSteps = 127.0F;
constexpr float kSmallestLargest = 0x1.FCp-120F;  // 127 * 2^-126: with less, the step would be subnormal
constexpr std::int32_t kMagnitude = 0x7FFFFFFF;
constexpr float kRound =
    0x1.8p23F;  // its last bit is worth 1: adding it rounds, and leaves the integer in the mantissa

// Returns the greater magnitude as bits, which order like the magnitudes, with any NaN above infinity.
inline std::int32_t greater(std::int32_t largest, float value) {
  return std::max(largest, std::bit_cast<std::int32_t>(value) & kMagnitude);
}

// Copies a group aside, because it is read twice and may change in between.
DISTNET_MULTIVERSION std::int32_t load(float* values, const float* from, float scale, std::size_t count) {
  std::int32_t largest = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i) * scale;
    largest = greater(largest, value);
    values[i] = value;
  }
  return largest;
}

DISTNET_MULTIVERSION std::int32_t load_with_carried(float* values, const float* from, const float* carried, float scale,
                                                    std::size_t count) {
  std::int32_t largest = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i) * scale + carried[i];
    largest = greater(largest, value);
    values[i] = value;
  }
  return largest;
}

DISTNET_MULTIVERSION void quantise(std::int8_t* to, const float* values, float step, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float raised = values[i] / step + kRound;
    to[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(raised));
  }
}

DISTNET_MULTIVERSION void quantise_with_residual(std::int8_t* to, float* left, const float* values, float step,
                                                 std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float raised = values[i] / step + kRound;
    to[i] = static_cast<std::int8_t>(std::bit_cast<std::int32_t>(raised));
    left[i] = values[i] - (raised - kRound) * step;
  }
}

DISTNET_MULTIVERSION bool decode_groups(float* to, const std::int8_t* from, const float* steps, std::size_t count) {
  std::uint32_t marks = 0;
  for (std::size_t begin = 0; begin < count; begin += kInt8GroupFloats) {
    const float step = steps[begin / kInt8GroupFloats];
    const std::size_t end = std::min(begin + kInt8GroupFloats, count);
    DISTNET_INDEPENDENT
    for (std::size_t i = begin; i < end; ++i) {
      const float value = static_cast<float>(from[i]) * step;
      marks |= finite_mark(value);
      to[i] = value;
    }
  }
  return all_marks_finite(marks);
}

// No encoder makes -128.
DISTNET_MULTIVERSION bool within_steps(const std::int8_t* from, std::size_t count) {
  std::int8_t least = 0;
  for (std::size_t i = 0; i < count; ++i) {
    least = std::min(least, from[i]);
  }
  return least >= -127;
}

bool is_finite(float value) { return value <= std::numeric_limits<float>::max(); }  // of a value that is not negative

// Encodes the values of a group; returns its step.
float encode_group(std::int8_t* to, const float* values, std::int32_t largest_bits, float* left, std::size_t count) {
  const auto largest = std::bit_cast<float>(largest_bits);
  const float step = largest < kSmallestLargest ? 0.0F : largest / kMaxSteps;
  if (step == 0.0F || !is_finite(step)) {
    std::fill_n(to, count, std::int8_t{0});
    if (left != nullptr) {
      std::copy_n(values, count, left);
    }
  } else if (left != nullptr) {
    quantise_with_residual(to, left, values, step, count);
  } else {
    quantise(to, values, step, count);
  }
  return step;
}

class Int8 final : public WireFormat {
 public:
  std::size_t chunk_bytes(std::size_t chunk) const override { return padded_bytes(kStepBytes + chunk); }

  bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
              const Residual& residual) const override {
    alignas(64) float values[kInt8GroupFloats];
    auto* const steps = reinterpret_cast<float*>(to);
    auto* const bytes = reinterpret_cast<std::int8_t*>(to + kStepBytes);
    clear_padding(to, kStepBytes + chunk);
    std::fill_n(steps, kSteps, 0.0F);
    bool finite = true;
    for (std::size_t begin = 0; begin < chunk; begin += kInt8GroupFloats) {
      const std::size_t count = std::min(kInt8GroupFloats, chunk - begin);
      const bool feeds_back = residual.left != nullptr;
      const std::int32_t largest = feeds_back
                                       ? load_with_carried(values, from + begin, residual.carried + begin, scale, count)
                                       : load(values, from + begin, scale, count);
      const float step =
          encode_group(bytes + begin, values, largest, feeds_back ? residual.left + begin : nullptr, count);
      steps[begin / kInt8GroupFloats] = step;
      finite = finite && is_finite(kMaxSteps * step);
    }
    return finite;
  }

  bool decode(float* to, const std::byte* from, std::size_t /*chunk*/, std::size_t begin,
              std::size_t count) const override {
    return decode_groups(to, bytes_of(from) + begin, steps_of(from) + begin / kInt8GroupFloats, count);
  }

  bool valid(const std::byte* from, std::size_t chunk) const override {
    const auto is_step = [](float step) { return std::bit_cast<std::int32_t>(step) >= 0; };
    return std::all_of(steps_of(from), steps_of(from) + groups(chunk), is_step) && within_steps(bytes_of(from), chunk);
  }

  bool finite(const std::byte* from, std::size_t chunk) const override {
    const auto all_stay_finite = [&](float most) {
      return std::all_of(steps_of(from), steps_of(from) + groups(chunk),
                         [=](float step) { return is_finite(std::fabs(most * step)); });
    };
    // -128 steps, which only a hostile peer sends, may overflow where 127 do not.
    return all_stay_finite(kMaxSteps + 1.0F) || (all_stay_finite(kMaxSteps) && within_steps(bytes_of(from), chunk));
  }

 private:
  static constexpr std::size_t kStepBytes = kSteps * sizeof(float);

  static std::size_t groups(std::size_t chunk) { return (chunk + kInt8GroupFloats - 1) / kInt8GroupFloats; }
  static const float* steps_of(const std::byte* from) { return reinterpret_cast<const float*>(from); }
  static const std::int8_t* bytes_of(const std::byte* from) {
    return reinterpret_cast<const std::int8_t*>(from + kStepBytes);
  }
};

}  // namespace

extern const FormatEntry int8_entry;
const FormatEntry int8_entry = {
    "int8", {}, [](const FormatSettings&) -> std::unique_ptr<WireFormat> { return std::make_unique<Int8>(); }};

}  // namespace distnet
