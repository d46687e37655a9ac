#include "optim/join.h"

#include <cstdint>

#include "base/error.h"
#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"

namespace distnet {
namespace {

// Whether the operands were finite as they lay there.
struct Looked {
  bool left;
  bool right;
};

DISTNET_MULTIVERSION Looked sum_of_two(float* to, const float* left, const float* right, std::size_t count) {
  std::uint32_t left_marks = 0;
  std::uint32_t right_marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float of_left = shared_load(left + i);
    const float of_right = shared_load(right + i);
    left_marks |= finite_mark(of_left);
    right_marks |= finite_mark(of_right);
    to[i] = of_left + of_right;
  }
  return {all_marks_finite(left_marks), all_marks_finite(right_marks)};
}

// Returns whether what was multiplied was finite; the products may overflow.
DISTNET_MULTIVERSION bool weigh(float* to, const float* from, float weight, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    to[i] = value * weight;
  }
  return all_marks_finite(marks);
}

// The same for what is added to `to`.
DISTNET_MULTIVERSION bool add_weighted(float* to, const float* from, float weight, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    to[i] += value * weight;
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool divide(float* to, const float* from, float divisor, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    to[i] = value / divisor;
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool clamp(float* to, const float* from, float limit, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    const float not_above = value > limit ? limit : value;
    to[i] = not_above < -limit ? -limit : not_above;
  }
  return all_marks_finite(marks);
}

void copy_zeroed(float* to, const float* from, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    to[i] = all_marks_finite(finite_mark(value)) ? value : 0.0F;
  }
}

// Elements of one term.
struct TermRun {
  const float* values;
  bool finite;  // of a dense term as it lies: not looked at yet
};

enum class Take : std::uint8_t { kAsItLies, kZeroed };  // kZeroed: a copy with 0 for each value that is not finite

TermRun term_at(const JoinedGradient& gradient, std::size_t index, std::size_t begin, std::size_t count,
                GradientScratch& scratch, Take take) {
  const GradientView& term = gradient.terms[index];
  float* const decoded = scratch.decoded[index == 0 ? 0 : 1];
  TermRun run{nullptr, true};
  if (term.is_encoded()) {
    const std::size_t ahead = begin % kDecodeStepFloats;
    run.finite = term.decoder->decode(decoded, term.data, begin - ahead, ahead + count);
    run.values = decoded + ahead;
  } else {
    run.values = dense_run(gradient, index, begin);
  }
  if (take == Take::kZeroed) {
    copy_zeroed(decoded, run.values, count);
    return {decoded, true};
  }
  return run;
}

// The weighted sum of the terms by the divisor.
JoinedBlock join_weighted(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                          GradientScratch& scratch, Take take) {
  DISTNET_INVARIANT(gradient.weights.size() == gradient.terms.size());
  for (std::size_t index = 0; index < gradient.terms.size(); ++index) {
    const TermRun term = term_at(gradient, index, begin, count, scratch, take);
    const auto join = index == 0 ? &weigh : &add_weighted;
    if (!term.finite || !join(scratch.values, term.values, gradient.weights[index], count)) {
      return {nullptr, index};
    }
  }
  divide(scratch.values, scratch.values, gradient.divisor, count);
  if (clip_value != 0.0F) {
    clamp(scratch.values, scratch.values, clip_value, count);
  }
  return {scratch.values, {}};
}

JoinedBlock join_terms(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                       GradientScratch& scratch, Take take) {
  DISTNET_INVARIANT(count <= kBlockFloats);
  if (!gradient.weights.empty()) {
    return join_weighted(gradient, begin, count, clip_value, scratch, take);
  }
  const TermRun first = term_at(gradient, 0, begin, count, scratch, take);
  if (!first.finite) {
    return {nullptr, 0};
  }
  const float* joined = first.values;
  for (std::size_t index = 1; index < gradient.terms.size(); ++index) {
    const TermRun term = term_at(gradient, index, begin, count, scratch, take);
    const Looked looked = sum_of_two(scratch.values, joined, term.values, count);
    if (index == 1 && !looked.left) {
      return {nullptr, 0};
    }
    if (!term.finite || !looked.right) {
      return {nullptr, index};
    }
    joined = scratch.values;
  }
  // Only a term has to be finite: a sum or a quotient of finite values may overflow.
  bool finite = true;
  if (gradient.divisor != 1.0F) {
    finite = divide(scratch.values, joined, gradient.divisor, count) || joined != first.values;
    joined = scratch.values;
  }
  if (clip_value != 0.0F) {
    finite = (clamp(scratch.values, joined, clip_value, count) || joined != first.values) && finite;
    joined = scratch.values;
  }
  if (!finite) {
    return {nullptr, 0};
  }
  return {joined, {}};
}

}  // namespace

const float* dense_run(const JoinedGradient& gradient, std::size_t index, std::size_t begin) {
  return gradient.terms[index].floats() + (begin - static_cast<std::size_t>(gradient.first));
}

JoinedBlock join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                          GradientScratch& scratch) {
  return join_terms(gradient, begin, count, clip_value, scratch, Take::kAsItLies);
}

const float* join_zeroed(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                         GradientScratch& scratch) {
  return join_terms(gradient, begin, count, clip_value, scratch, Take::kZeroed).values;
}

}  // namespace distnet
