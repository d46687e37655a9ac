// The loop of every optimizer. Strip by strip it reads a gradient, looks for NaN and infinity in what it has read, and
// applies that. A peer may write the gradient meanwhile: what is applied are the very values that were checked.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/units.h"
#include "kernels/access.h"
#include "kernels/multiversion.h"

namespace distnet {

// What ends the loop: a strip holds a value whose bits, without the sign, are at least this number.
enum class StopAt : std::uint32_t { kNotFinite = 0x7F800000U, kNothing = 0x80000000U };

namespace strips {

template <typename Update>
DISTNET_ALWAYS_INLINE bool apply_strip(const float* gradient, std::size_t begin, std::size_t count, StopAt stop_at,
                                       const Update& update) {
  float values[kStripFloats];  // compilers keep a whole strip in registers
  std::uint32_t largest = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(gradient + begin + i);
    values[i] = value;
    largest = std::max(largest, std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU);
  }
  if (largest >= static_cast<std::uint32_t>(stop_at)) {
    return false;
  }
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    update(begin + i, values[i]);
  }
  return true;
}

}  // namespace strips

// Calls update(i, gradient[i]) for each of `count` elements, up to the first strip that ends the loop. Returns for how
// many it did. The calls must not depend on each other. The caller is DISTNET_NO_MEMCPY, and its update a
// DISTNET_INLINE_LAMBDA.
template <typename Update>
DISTNET_ALWAYS_INLINE std::size_t apply_strips(const float* gradient, std::size_t count, StopAt stop_at,
                                               const Update& update) {
  std::size_t done = 0;
  for (; count - done >= kStripFloats; done += kStripFloats) {
    if (!strips::apply_strip(gradient, done, kStripFloats, stop_at, update)) {
      return done;
    }
  }
  return done == count || strips::apply_strip(gradient, done, count - done, stop_at, update) ? count : done;
}

}  // namespace distnet
