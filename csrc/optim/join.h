// From the terms of a joined gradient to one block of it, ready for an optimizer.
#pragma once

#include <cstddef>

#include "optim/update_rule.h"

namespace distnet {

// Where a gradient that cannot be used as it lies is put together.
struct GradientScratch {
  alignas(64) float values[kBlockFloats];
  alignas(64) float decoded[2][kBlockFloats + kDecodeStepFloats];  // the first term's, and another's
};

// Elements [begin, begin + count) of the joined gradient, each clamped to ±clip_value (0: not). Returns a term itself
// where it is used as it is, otherwise `scratch`, which `count` must then fit. Encoded terms: within a run of
// kDecodeRunFloats.
const float* join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                           GradientScratch& scratch);

// Whether join_gradient() needs its scratch.
inline bool needs_joining(const JoinedGradient& gradient, float clip_value) {
  return gradient.terms.size() != 1 || gradient.terms.front().is_encoded() || gradient.divisor != 1.0F ||
         clip_value != 0.0F;
}

}  // namespace distnet
