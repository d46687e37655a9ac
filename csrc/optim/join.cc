#include "optim/join.h"

#include <algorithm>

#include "base/error.h"
#include "base/multiversion.h"

namespace distnet {
namespace {

DISTNET_MULTIVERSION void sum_of_two(float* to, const float* left, const float* right, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) to[i] = left[i] + right[i];
}

DISTNET_MULTIVERSION void divide(float* to, const float* from, float divisor, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) to[i] = from[i] / divisor;
}

DISTNET_MULTIVERSION void clamp(float* to, const float* from, float limit, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float not_above = from[i] > limit ? limit : from[i];
    to[i] = not_above < -limit ? -limit : not_above;
  }
}

}  // namespace

const float* join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                           GradientScratch& scratch) {
  const std::size_t offset = begin - static_cast<std::size_t>(gradient.first);
  const float* joined = gradient.terms[0] + offset;
  if (!needs_joining(gradient, clip_value)) return joined;
  DISTNET_INVARIANT(count <= kBlockFloats);
  for (const float* const term : gradient.terms.subspan(1)) {
    sum_of_two(scratch.values, joined, term + offset, count);
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
