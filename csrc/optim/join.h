// Joins the terms of a gradient into one block for an optimizer, and looks for NaN and infinity in them on the way.
#pragma once

#include <cstddef>
#include <optional>

#include "optim/update_rule.h"

namespace distnet {

// Memory in which a gradient is joined when it cannot be used as it lies.
struct GradientScratch {
  alignas(64) float values[kBlockFloats];
  alignas(64) float decoded[2][kBlockFloats + kDecodeStepFloats];  // of the first term and of the one that is added
};

// A block of a joined gradient.
struct JoinedBlock {
  const float* values;
  std::optional<std::size_t> spoilt_term;  // the first that is not finite here; there are no values then
};

// Returns elements [begin, begin + count) of the joined gradient, each clamped to ±clip_value (0: not clamped). They
// are at most kBlockFloats, and stay within a run of kDecodeRunFloats when a term is encoded. They lie in `scratch`.
// The values that are joined are the very ones that were looked at.
JoinedBlock join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                          GradientScratch& scratch);

// The same, with 0 for each value of a term that is not finite. For a gradient that a peer has changed since it was
// checked.
const float* join_zeroed(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                         GradientScratch& scratch);

// Returns where element `begin` of a dense term lies.
const float* dense_run(const JoinedGradient& gradient, std::size_t index, std::size_t begin);

// Returns whether the gradient has to be joined. Otherwise it can be used as its one dense term lies.
inline bool needs_joining(const JoinedGradient& gradient, float clip_value) {
  return gradient.terms.size() != 1 || gradient.terms.front().is_encoded() || gradient.divisor != 1.0F ||
         clip_value != 0.0F || !gradient.weights.empty();
}

}  // namespace distnet
