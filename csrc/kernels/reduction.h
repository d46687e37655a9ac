// Combines the vectors of several ranks into one, element by element, in the order of the ranks.
//
// The result of an element depends on its inputs, their order and the settings alone: not on the length of the vectors,
// on how they are cut into blocks, or on the instruction set. A result that is not a number has one bit pattern, so it
// does not depend on which operand a processor takes it from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace distnet {

enum class DType : std::uint8_t {
  kUint8 = 1,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kBfloat16,
  kFloat32,
  kFloat64,
  kBool,  // a byte; every value but 0 is true
};
inline constexpr DType kLastDType = DType::kBool;

enum class Reduction : std::uint8_t { kSum = 1, kAverage, kMin, kMax, kProduct };
inline constexpr Reduction kLastReduction = Reduction::kProduct;

std::size_t item_bytes(DType dtype);

// How elements are combined: post * reduce(pre * x[0], pre * x[1], ...).
//
// - float32 and float64 are computed in their own precision, float16 and bfloat16 in float32, rounded once at the end.
// - Integers are computed in their own type, and a sum or product that does not fit wraps. Where they are averaged or
//   scaled, they are computed in float64, and the result is cut towards zero and to the range of the type.
// - Of bool the sum and the maximum are "or", the product and the minimum are "and"; it is neither averaged nor scaled.
// - The average divides by the number of inputs.
// - The minimum and maximum of a value that is not a number are not a number.
struct Combination {
  DType dtype = DType::kFloat32;
  Reduction reduction = Reduction::kSum;
  double prescale = 1.0;
  double postscale = 1.0;
};

// Returns whether the combination is defined: false for bool that is averaged or scaled.
bool is_defined(const Combination& combination);

// Combines `count` elements of each of the inputs, at least one, into `output`. Every array starts at a multiple of its
// item's size. `output` may be one of the inputs; it does not overlap them otherwise.
void reduce(const Combination& combination, std::span<const std::byte* const> inputs, std::byte* output,
            std::size_t count);

}  // namespace distnet
