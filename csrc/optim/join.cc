#include "optim/join.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/multiversion.h"

namespace distnet {
namespace {

DISTNET_MULTIVERSION void sum_of_two(float* to, const float* left, const float* right, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = left[i] + right[i];
  }
}

DISTNET_MULTIVERSION void divide(float* to, const float* from, float divisor, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = from[i] / divisor;
  }
}

DISTNET_MULTIVERSION void clamp(float* to, const float* from, float limit, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float not_above = from[i] > limit ? limit : from[i];
    to[i] = not_above < -limit ? -limit : not_above;
  }
}

// Returns elements of one term, decoded where necessary.
const float* term_at(const JoinedGradient& gradient, std::size_t index, std::size_t begin, std::size_t count,
                     GradientScratch& scratch) {
  const GradientView& term = gradient.terms[index];
  if (!term.is_encoded()) {
    return term.floats() + (begin - static_cast<std::size_t>(gradient.first));
  }
  float* const to = scratch.decoded[index == 0 ? 0 : 1];
  const std::size_t ahead = begin % kDecodeStepFloats;
  term.decoder->decode(to, term.data, begin - ahead, ahead + count);
  return to + ahead;
}

}  // namespace

const float* join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                           GradientScratch& scratch) {
  DISTNET_INVARIANT(count <= kBlockFloats || !needs_joining(gradient, clip_value));
  const float* joined = term_at(gradient, 0, begin, count, scratch);
  if (!needs_joining(gradient, clip_value)) {
    return joined;
  }
  for (std::size_t term = 1; term < gradient.terms.size(); ++term) {
    sum_of_two(scratch.values, joined, term_at(gradient, term, begin, count, scratch), count);
    joined = scratch.values;
  }
  if (gradient.divisor != 1.0F) {
    divide(scratch.values, joined, gradient.divisor, count);
    joined = scratch.values;
  }
  if (clip_value != 0.0F) {
    clamp(scratch.values, joined, clip_value, count);
    joined = scratch.values;
  }
  return joined;
}

}  // namespace distnet
