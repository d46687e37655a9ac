#include "kernels/reduction.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "kernels/halves.h"
#include "kernels/multiversion.h"

namespace distnet {
namespace {

// Elements that are combined at once: what lies between the steps stays in the first level of cache.
constexpr std::size_t kBlock = 2048;

// ---- one step of two values ---------------------------------------------------------------------------------------
// A NaN that two others led to would otherwise have the bits of the operand that the compiler put first.
template <typename T>
DISTNET_ALWAYS_INLINE T with_one_nan(T value) {
  return value == value ? value : std::numeric_limits<T>::quiet_NaN();
}

template <typename T>
DISTNET_ALWAYS_INLINE T sum_of(T left, T right) {
  if constexpr (std::is_floating_point_v<T>) {
    return with_one_nan(left + right);
  } else {
    return static_cast<T>(static_cast<std::uint64_t>(left) + static_cast<std::uint64_t>(right));  // wraps
  }
}

template <typename T>
DISTNET_ALWAYS_INLINE T product_of(T left, T right) {
  if constexpr (std::is_floating_point_v<T>) {
    return with_one_nan(left * right);
  } else {
    return static_cast<T>(static_cast<std::uint64_t>(left) * static_cast<std::uint64_t>(right));  // wraps
  }
}

template <typename T>
DISTNET_ALWAYS_INLINE T minimum_of(T left, T right) {
  const T least = left < right || left != left ? left : right;
  if constexpr (std::is_floating_point_v<T>) {
    return with_one_nan(least);
  } else {
    return least;
  }
}

template <typename T>
DISTNET_ALWAYS_INLINE T maximum_of(T left, T right) {
  const T most = left > right || left != left ? left : right;
  if constexpr (std::is_floating_point_v<T>) {
    return with_one_nan(most);
  } else {
    return most;
  }
}

// ---- one step of two vectors --------------------------------------------------------------------------------------
template <typename T, typename Step>
DISTNET_ALWAYS_INLINE void combine_each(T* to, const T* left, const T* right, std::size_t count, const Step& step) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = step(left[i], right[i]);
  }
}

template <typename T>
DISTNET_ALWAYS_INLINE void combine_as(Reduction reduction, T* to, const T* left, const T* right, std::size_t count) {
  switch (reduction) {
    case Reduction::kSum:
    case Reduction::kAverage:
      return combine_each(to, left, right, count, [](T a, T b) DISTNET_INLINE_LAMBDA { return sum_of(a, b); });
    case Reduction::kMin:
      return combine_each(to, left, right, count, [](T a, T b) DISTNET_INLINE_LAMBDA { return minimum_of(a, b); });
    case Reduction::kMax:
      return combine_each(to, left, right, count, [](T a, T b) DISTNET_INLINE_LAMBDA { return maximum_of(a, b); });
    case Reduction::kProduct:
      return combine_each(to, left, right, count, [](T a, T b) DISTNET_INLINE_LAMBDA { return product_of(a, b); });
  }
}

// Each of these is compiled once for each level of vector instructions, with all that it calls.
DISTNET_MULTIVERSION void combine(Reduction how, float* to, const float* left, const float* right, std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, double* to, const double* left, const double* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, std::uint8_t* to, const std::uint8_t* left, const std::uint8_t* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, std::int8_t* to, const std::int8_t* left, const std::int8_t* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, std::int16_t* to, const std::int16_t* left, const std::int16_t* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, std::int32_t* to, const std::int32_t* left, const std::int32_t* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}
DISTNET_MULTIVERSION void combine(Reduction how, std::int64_t* to, const std::int64_t* left, const std::int64_t* right,
                                  std::size_t count) {
  combine_as(how, to, left, right, count);
}

// ---- between what is stored and what is computed ------------------------------------------------------------------
template <typename To, typename From, typename Step>
DISTNET_ALWAYS_INLINE void change_each(std::byte* to, const std::byte* from, std::size_t count, const Step& step) {
  auto* const target = reinterpret_cast<To*>(to);
  const auto* const source = reinterpret_cast<const From*>(from);
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    target[i] = step(source[i]);
  }
}

// Cuts towards zero and to the range of the type; what is not a number becomes 0.
template <typename T>
DISTNET_ALWAYS_INLINE T cut_to(double value) {
  constexpr double kTooLarge = -static_cast<double>(std::numeric_limits<T>::min());  // 2^63 of int64
  constexpr double kLeast = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double kEnd = std::is_signed_v<T> ? kTooLarge : static_cast<double>(std::numeric_limits<T>::max()) + 1.0;
  if (!(value < kEnd)) {
    return value == value ? std::numeric_limits<T>::max() : T{0};
  }
  return value > kLeast ? static_cast<T>(value) : std::numeric_limits<T>::min();
}

template <typename Stored>
DISTNET_ALWAYS_INLINE void widen_integers(double* to, const std::byte* from, double scale, std::size_t count) {
  change_each<double, Stored>(reinterpret_cast<std::byte*>(to), from, count,
                              [scale](Stored value)
                                  DISTNET_INLINE_LAMBDA { return static_cast<double>(value) * scale; });
}

template <typename Stored>
DISTNET_ALWAYS_INLINE void narrow_integers(std::byte* to, const double* from, double divisor, double scale,
                                           std::size_t count) {
  change_each<Stored, double>(to, reinterpret_cast<const std::byte*>(from), count,
                              [=](double value)
                                  DISTNET_INLINE_LAMBDA { return cut_to<Stored>(value / divisor * scale); });
}

DISTNET_MULTIVERSION void widen(DType dtype, float* to, const std::byte* from, double prescale, std::size_t count) {
  const auto scale = static_cast<float>(prescale);
  auto* const target = reinterpret_cast<std::byte*>(to);
  if (dtype == DType::kFloat32) {
    change_each<float, float>(target, from, count, [=](float x) DISTNET_INLINE_LAMBDA { return x * scale; });
  } else if (dtype == DType::kFloat16) {
    change_each<float, std::uint16_t>(
        target, from, count, [=](std::uint16_t x) DISTNET_INLINE_LAMBDA { return Float16::widened(x) * scale; });
  } else {
    change_each<float, std::uint16_t>(
        target, from, count, [=](std::uint16_t x) DISTNET_INLINE_LAMBDA { return Bfloat16::widened(x) * scale; });
  }
}

DISTNET_MULTIVERSION void narrow(DType dtype, std::byte* to, const float* from, double inputs, double postscale,
                                 std::size_t count) {
  const auto divisor = static_cast<float>(inputs);
  const auto scale = static_cast<float>(postscale);
  const auto* const source = reinterpret_cast<const std::byte*>(from);
  if (dtype == DType::kFloat32) {
    change_each<float, float>(to, source, count, [=](float x) DISTNET_INLINE_LAMBDA { return x / divisor * scale; });
  } else if (dtype == DType::kFloat16) {
    change_each<std::uint16_t, float>(to, source, count, [=](float x) DISTNET_INLINE_LAMBDA {
      return static_cast<std::uint16_t>(Float16::rounded(x / divisor * scale).half);
    });
  } else {
    change_each<std::uint16_t, float>(to, source, count, [=](float x) DISTNET_INLINE_LAMBDA {
      return static_cast<std::uint16_t>(Bfloat16::rounded(x / divisor * scale));
    });
  }
}

DISTNET_MULTIVERSION void widen(DType dtype, double* to, const std::byte* from, double scale, std::size_t count) {
  switch (dtype) {
    case DType::kUint8:
      return widen_integers<std::uint8_t>(to, from, scale, count);
    case DType::kInt8:
      return widen_integers<std::int8_t>(to, from, scale, count);
    case DType::kInt16:
      return widen_integers<std::int16_t>(to, from, scale, count);
    case DType::kInt32:
      return widen_integers<std::int32_t>(to, from, scale, count);
    case DType::kInt64:
      return widen_integers<std::int64_t>(to, from, scale, count);
    default:
      return widen_integers<double>(to, from, scale, count);
  }
}

DISTNET_MULTIVERSION void narrow(DType dtype, std::byte* to, const double* from, double divisor, double scale,
                                 std::size_t count) {
  switch (dtype) {
    case DType::kUint8:
      return narrow_integers<std::uint8_t>(to, from, divisor, scale, count);
    case DType::kInt8:
      return narrow_integers<std::int8_t>(to, from, divisor, scale, count);
    case DType::kInt16:
      return narrow_integers<std::int16_t>(to, from, divisor, scale, count);
    case DType::kInt32:
      return narrow_integers<std::int32_t>(to, from, divisor, scale, count);
    case DType::kInt64:
      return narrow_integers<std::int64_t>(to, from, divisor, scale, count);
    default:
      return change_each<double, double>(to, reinterpret_cast<const std::byte*>(from), count,
                                         [=](double x) DISTNET_INLINE_LAMBDA { return x / divisor * scale; });
  }
}

// ---- all inputs ---------------------------------------------------------------------------------------------------
// Computes in the stored type, without a scale or a division.
template <typename T>
void reduce_as_stored(Reduction reduction, std::span<const std::byte* const> inputs, std::byte* output,
                      std::size_t count) {
  alignas(64) T sums[kBlock];
  auto* const to = reinterpret_cast<T*>(output);
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t block = std::min(kBlock, count - begin);
    const T* left = reinterpret_cast<const T*>(inputs.front()) + begin;
    if (inputs.size() == 1) {
      std::memmove(to + begin, left, block * sizeof(T));
    }
    for (std::size_t i = 1; i < inputs.size(); ++i) {
      // Only the last step writes the output, which may be one of the inputs.
      T* const sum = i + 1 == inputs.size() ? to + begin : sums;
      combine(reduction, sum, left, reinterpret_cast<const T*>(inputs[i]) + begin, block);
      left = sum;
    }
  }
}

// Returns the values to compute with: as they are stored, or widened and scaled in `buffer`.
template <typename T>
const T* computed(const Combination& combination, const std::byte* from, T* buffer, std::size_t count) {
  constexpr DType kOwn = std::is_same_v<T, float> ? DType::kFloat32 : DType::kFloat64;
  if (combination.dtype == kOwn && combination.prescale == 1.0) {
    return reinterpret_cast<const T*>(from);
  }
  widen(combination.dtype, buffer, from, combination.prescale, count);
  return buffer;
}

// Computes in float32 or float64 what is stored in any type.
template <typename T>
void reduce_widened(const Combination& combination, std::span<const std::byte* const> inputs, std::byte* output,
                    std::size_t count) {
  alignas(64) T sums[kBlock];
  alignas(64) T next[kBlock];
  const std::size_t item = item_bytes(combination.dtype);
  const double divisor = combination.reduction == Reduction::kAverage ? static_cast<double>(inputs.size()) : 1.0;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t block = std::min(kBlock, count - begin);
    const T* left = computed(combination, inputs.front() + begin * item, sums, block);
    for (const std::byte* const input : inputs.subspan(1)) {
      combine(combination.reduction, sums, left, computed(combination, input + begin * item, next, block), block);
      left = sums;
    }
    narrow(combination.dtype, output + begin * item, left, divisor, combination.postscale, block);
  }
}

DISTNET_MULTIVERSION void normalize(std::byte* values, std::size_t count) {
  change_each<std::uint8_t, std::uint8_t>(values, values, count, [](std::uint8_t x) DISTNET_INLINE_LAMBDA {
    return static_cast<std::uint8_t>(x != 0 ? 1 : 0);
  });
}

// The bytes of the inputs may be any: they are made 0 and 1 a block at a time.
void reduce_bool(Reduction reduction, std::span<const std::byte* const> inputs, std::byte* output, std::size_t count) {
  const bool any = reduction == Reduction::kSum || reduction == Reduction::kMax;
  alignas(64) std::byte sums[kBlock];
  alignas(64) std::byte next[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t block = std::min(kBlock, count - begin);
    std::memcpy(sums, inputs.front() + begin, block);
    normalize(sums, block);
    for (const std::byte* const input : inputs.subspan(1)) {
      std::memcpy(next, input + begin, block);
      normalize(next, block);
      auto* const to = reinterpret_cast<std::uint8_t*>(sums);
      combine(any ? Reduction::kMax : Reduction::kMin, to, to, reinterpret_cast<const std::uint8_t*>(next), block);
    }
    std::memcpy(output + begin, sums, block);
  }
}

}  // namespace

std::size_t item_bytes(DType dtype) {
  switch (dtype) {
    case DType::kUint8:
    case DType::kInt8:
    case DType::kBool:
      return 1;
    case DType::kInt16:
    case DType::kFloat16:
    case DType::kBfloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    case DType::kInt64:
    case DType::kFloat64:
      return 8;
  }
  return 1;  // values from elsewhere are checked before they become a DType
}

bool is_defined(const Combination& combination) {
  const bool scaled = combination.prescale != 1.0 || combination.postscale != 1.0;
  return combination.dtype != DType::kBool || (!scaled && combination.reduction != Reduction::kAverage);
}

void reduce(const Combination& combination, std::span<const std::byte* const> inputs, std::byte* output,
            std::size_t count) {
  DISTNET_INVARIANT(!inputs.empty() && is_defined(combination));
  const bool scaled = combination.prescale != 1.0 || combination.postscale != 1.0;
  const bool as_stored = !scaled && combination.reduction != Reduction::kAverage;
  const DType dtype = combination.dtype;
  const Reduction reduction = combination.reduction;
  if (dtype == DType::kFloat16 || dtype == DType::kBfloat16 || (dtype == DType::kFloat32 && !as_stored)) {
    return reduce_widened<float>(combination, inputs, output, count);
  }
  if (!as_stored) {
    return reduce_widened<double>(combination, inputs, output, count);
  }
  switch (dtype) {
    case DType::kUint8:
      return reduce_as_stored<std::uint8_t>(reduction, inputs, output, count);
    case DType::kInt8:
      return reduce_as_stored<std::int8_t>(reduction, inputs, output, count);
    case DType::kInt16:
      return reduce_as_stored<std::int16_t>(reduction, inputs, output, count);
    case DType::kInt32:
      return reduce_as_stored<std::int32_t>(reduction, inputs, output, count);
    case DType::kInt64:
      return reduce_as_stored<std::int64_t>(reduction, inputs, output, count);
    case DType::kFloat64:
      return reduce_as_stored<double>(reduction, inputs, output, count);
    case DType::kBool:
      return reduce_bool(reduction, inputs, output, count);
    default:
      return reduce_as_stored<float>(reduction, inputs, output, count);
  }
}

}  // namespace distnet
