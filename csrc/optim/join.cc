#include "optim/join.h"

#include <algorithm>

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

DISTNET_MULTIVERSION Looked sum_of_two(float* to, const float* left, Dropped left_dropped, const float* right,
                                       std::size_t count) {
  std::uint32_t left_marks = 0;
  std::uint32_t right_marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float of_left = shared_load(left + i);
    const float of_right = shared_load(right + i);
    left_marks |= finite_mark(of_left);
    right_marks |= finite_mark(of_right);
    to[i] = value_or_zero(of_left, left_dropped) + value_or_zero(of_right, Dropped::kNotFinite);
  }
  return {all_marks_finite(left_marks), all_marks_finite(right_marks)};
}

DISTNET_MULTIVERSION bool divide(float* to, const float* from, Dropped dropped, float divisor, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    to[i] = value_or_zero(value, dropped) / divisor;
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool clamp(float* to, const float* from, Dropped dropped, float limit, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    const float used = value_or_zero(value, dropped);
    const float not_above = used > limit ? limit : used;
    to[i] = not_above < -limit ? -limit : not_above;
  }
  return all_marks_finite(marks);
}

// Elements of one term as they lie there, or decoded.
struct TermRun {
  const float* values;
  bool finite;  // of a dense term: not looked at yet
};

TermRun term_at(const JoinedGradient& gradient, std::size_t index, std::size_t begin, std::size_t count,
                GradientScratch& scratch) {
  const GradientView& term = gradient.terms[index];
  if (!term.is_encoded()) {
    return {dense_run(gradient, index, begin), true};
  }
  float* const to = scratch.decoded[index == 0 ? 0 : 1];
  const std::size_t ahead = begin % kDecodeStepFloats;
  const bool finite = term.decoder->decode(to, term.data, begin - ahead, ahead + count);
  return {to + ahead, finite || gradient.checked};
}

}  // namespace

const float* dense_run(const JoinedGradient& gradient, std::size_t index, std::size_t begin) {
  return gradient.terms[index].floats() + (begin - static_cast<std::size_t>(gradient.first));
}

JoinedBlock join_gradient(const JoinedGradient& gradient, std::size_t begin, std::size_t count, float clip_value,
                          GradientScratch& scratch) {
  DISTNET_INVARIANT(count <= kBlockFloats);
  const auto spoilt = [&](bool finite) { return !finite && !gradient.checked; };
  const TermRun first = term_at(gradient, 0, begin, count, scratch);
  if (!first.finite) {
    return {{}, 0};
  }
  const float* joined = first.values;
  Dropped dropped = Dropped::kNotFinite;  // of a term, but not of a sum, which may overflow
  for (std::size_t index = 1; index < gradient.terms.size(); ++index) {
    const TermRun term = term_at(gradient, index, begin, count, scratch);
    const Looked looked = sum_of_two(scratch.values, joined, dropped, term.values, count);
    if (index == 1 && spoilt(looked.left)) {
      return {{}, 0};
    }
    if (!term.finite || spoilt(looked.right)) {
      return {{}, index};
    }
    joined = scratch.values;
    dropped = Dropped::kNone;
  }
  bool finite = true;
  if (gradient.divisor != 1.0F) {
    finite = divide(scratch.values, joined, dropped, gradient.divisor, count);
    joined = scratch.values;
  }
  if (clip_value != 0.0F) {
    finite = clamp(scratch.values, joined, dropped, clip_value, count) && finite;
    joined = scratch.values;
  }
  if (gradient.terms.size() == 1 && spoilt(finite)) {
    return {{}, 0};
  }
  return {{joined, joined, dropped}, {}};
}

}  // namespace distnet
