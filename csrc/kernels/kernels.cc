#include "kernels/kernels.h"

#include <algorithm>
#include <cstdint>

#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"

#if defined(__SSE2__) && !defined(DISTNET_STRICT_ATOMICS)
#include <immintrin.h>
#endif

namespace distnet {

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION void copy(float* to, const float* from, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    shared_store(to + i, shared_load(from + i));
  }
}

#if defined(__SSE2__) && !defined(DISTNET_STRICT_ATOMICS)
namespace {

// Both return how many floats they wrote. They write whole lines, because a line written in part goes to memory in
// several writes.
constexpr std::size_t kLineFloats = 16;

std::size_t stream_quarter_lines(float* to, const float* from, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLineFloats <= count; i += kLineFloats) {
    for (std::size_t lane = 0; lane < kLineFloats; lane += 4) {
      _mm_stream_ps(to + i + lane, _mm_loadu_ps(from + i + lane));
    }
  }
  return i;
}

__attribute__((target("avx512f"))) std::size_t stream_whole_lines(float* to, const float* from, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLineFloats <= count; i += kLineFloats) {
    _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
  }
  return i;
}

}  // namespace

void copy_past_cache(float* to, const float* from, std::size_t count) {
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) / sizeof(float) % kLineFloats;
  std::size_t done = misaligned == 0 ? 0 : std::min(count, kLineFloats - misaligned);
  if (done != 0) {
    copy(to, from, done);
  }
  done += has_avx512 ? stream_whole_lines(to + done, from + done, count - done)
                     : stream_quarter_lines(to + done, from + done, count - done);
  if (done != count) {
    copy(to + done, from + done, count - done);
  }
}

void end_past_cache() { _mm_sfence(); }
#else
void copy_past_cache(float* to, const float* from, std::size_t count) { copy(to, from, count); }
void end_past_cache() {}
#endif

void copy_whole(float* to, const float* from, std::size_t count, bool past_cache) {
  if (!past_cache) {
    copy(to, from, count);
    return;
  }
  copy_past_cache(to, from, count);
  end_past_cache();
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION bool copy_finite(float* to, const float* from, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i);
    marks |= finite_mark(value);
    shared_store(to + i, value);
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool copy_scaled_finite(float* to, const float* from, float scale, std::size_t count) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float value = shared_load(from + i) * scale;
    marks |= finite_mark(value);
    shared_store(to + i, value);
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool all_finite(const float* from, std::size_t count) {
  std::uint32_t marks = 0;
  // Several runs at once: the processor fetches ahead in each, and one alone would wait for memory.
  constexpr std::size_t kRuns = 8;
  const std::size_t run = count / kRuns;
  for (std::size_t i = 0; i < run; ++i) {
    for (std::size_t k = 0; k < kRuns; ++k) {
      marks |= finite_mark(shared_load(from + k * run + i));
    }
  }
  for (std::size_t i = kRuns * run; i < count; ++i) {
    marks |= finite_mark(shared_load(from + i));
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION double sum_of_squares(const float* from, std::size_t count) {
  // Element i goes to lane i % 16, whatever the machine's width; the product of two floats is exact in float64.
  constexpr std::size_t kLanes = 16;
  double lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(shared_load(from + i + lane));
      lanes[lane] += value * value;
    }
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) {
    const double value = static_cast<double>(shared_load(from + i));
    lanes[lane] += value * value;
  }
  double sum = 0.0;
  for (const double lane : lanes) {
    sum += lane;
  }
  return sum;
}

}  // namespace distnet
