// Joins the terms of a gradient into one block for an optimizer.
#pragma once

#include <cstddef>

#include "optim/update_rule.h"

namespace distnet {

// Memory in which a gradient is joined when it cannot be used as it lies.
struct GradientScratch {
  alignas(64) float values[kBlockFloats];
  alignas(64) float decoded[2][kBlockFloats + kDecodeStepFloats];  // of the first term and of the one that is added
};

// Returns elements [begin, begin + count) of the joined gradient, each clamped to ±clip_value (0: not clamped). They
// lie in a term that can be used as it is, otherwise in `scratch`, which then must hold `count`. The range stays within
// a run of kDecodeRunFloats when a term is encoded.
const float* join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                           GradientScratch& scratch);

// Returns whether join_gradient() needs its scratch.
inline bool needs_joining(const JoinedGradient& gradient, float clip_value) {
  return gradient.terms.size() != 1 || gradient.terms.front().is_encoded() || gradient.divisor != 1.0F ||
         clip_value != 0.0F;
}

}  // namespace distnet
