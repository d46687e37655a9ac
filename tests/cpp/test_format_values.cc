// What each wire format makes of a value, against slow references in float64.
#include <bit>
#include <cmath>
#include <random>

#include "check.h"
#include "format_case.h"
#include "random_floats.h"

namespace {

using namespace distnet;

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

// Random bits: all exponents alike, no infinity, no NaN.
std::vector<float> random_patterns(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> floats(count);
  for (float& value : floats) {
    do {
      value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    } while (!std::isfinite(value));
  }
  return floats;
}

// ---- the 16-bit formats --------------------------------------------------------------------------------------------
// What a format of 16 bits with so many bits of mantissa is, in float64.
struct Half {
  const char* name;
  int mantissa_bits;
  int bias;
  std::vector<double> magnitudes = {};  // of patterns 0 to infinity, which stands for the next power of two

  Half(const char* format, int bits) : name(format), mantissa_bits(bits), bias((1 << (14 - bits)) - 1) {
    const int infinity = ((1 << (15 - bits)) - 1) << bits;
    for (int pattern = 0; pattern <= infinity; ++pattern) {
      const int exponent = pattern >> bits;
      const int mantissa = pattern & ((1 << bits) - 1);
      magnitudes.push_back(exponent == 0 ? std::ldexp(mantissa, 1 - bias - bits)
                                         : std::ldexp((1 << bits) + mantissa, exponent - bias - bits));
    }
  }
  std::uint16_t infinity() const { return static_cast<std::uint16_t>(magnitudes.size() - 1); }
  // The pattern nearest to a finite value; of two, the even one.
  std::uint16_t nearest(float value) const {
    const double magnitude = std::abs(static_cast<double>(value));
    const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), magnitude);
    auto pattern = static_cast<std::size_t>(above - magnitudes.begin());
    if (above == magnitudes.end()) {
      pattern = infinity();
    } else if (pattern > 0) {
      const double to_lower = magnitude - magnitudes[pattern - 1];
      const double to_upper = *above - magnitude;
      if (to_lower < to_upper || (to_lower == to_upper && pattern % 2 == 1)) {
        --pattern;
      }
    }
    return static_cast<std::uint16_t>(pattern | (std::signbit(value) ? 0x8000U : 0U));
  }
  float decoded(std::uint16_t pattern) const {
    const std::uint16_t magnitude = pattern & 0x7FFFU;
    const float value = magnitude < infinity()    ? static_cast<float>(magnitudes[magnitude])
                        : magnitude == infinity() ? kInfinity
                                                  : kNotANumber;
    return (pattern & 0x8000U) != 0 ? -value : value;
  }
};

const std::vector<Half>& halves() {
  static const std::vector<Half> all = {{"bfloat16", 7}, {"float16", 10}};
  return all;
}

void check_rounding(const Half& half, const std::vector<float>& floats) {
  const auto format = make_format({half.name, {}});
  for (std::size_t begin = 0; begin < floats.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, floats.size() - begin);
    ChunkBytes bytes(format->chunk_bytes(count));
    std::vector<float> left(count);
    std::vector<float> carried(count, -0.0F);
    bool finite = true;
    for (int with_residual = 0; with_residual < 2; ++with_residual) {
      const bool good = format->encode(bytes.data(), floats.data() + begin, count, 1.0F,
                                       with_residual == 0 ? Residual{} : Residual{carried.data(), left.data()});
      finite = true;
      for (std::size_t i = 0; i < count; ++i) {
        const float value = floats[begin + i];
        const std::uint16_t pattern = bytes.as<std::uint16_t>()[i];
        CHECK_EQUAL(pattern, half.nearest(value));
        const float decoded = half.decoded(pattern);
        finite = finite && std::isfinite(decoded);
        if (with_residual != 0 && std::isfinite(decoded)) {
          CHECK_EQUAL(left[i], value - decoded);
        }
      }
      CHECK_EQUAL(good, finite);
    }
    CHECK(bytes.guards_are_whole());
  }
}

}  // namespace

TEST(every_16_bit_pattern_comes_back_as_it_was) {
  for (const Half& half : halves()) {
    const auto format = make_format({half.name, {}});
    for (std::uint32_t first = 0; first < 65536; first += kChunk) {
      ChunkBytes bytes(format->chunk_bytes(kChunk));
      for (std::uint32_t i = 0; i < kChunk; ++i) {
        bytes.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(first + i);
      }
      std::vector<float> floats(kChunk);
      format->decode(floats.data(), bytes.data(), kChunk, 0, kChunk);
      ChunkBytes again(format->chunk_bytes(kChunk));
      static_cast<void>(format->encode(again.data(), floats.data(), kChunk, 1.0F, {}));
      for (std::uint32_t i = 0; i < kChunk; ++i) {
        const auto pattern = static_cast<std::uint16_t>(first + i);
        const float expected = half.decoded(pattern);
        if (std::isnan(expected)) {
          CHECK(std::isnan(floats[i]));
          CHECK(std::isnan(half.decoded(again.as<std::uint16_t>()[i])));
        } else {
          CHECK_EQUAL(bits_of(floats[i]), bits_of(expected));
          CHECK_EQUAL(again.as<std::uint16_t>()[i], pattern);
        }
      }
    }
  }
}

TEST(sixteen_bits_round_to_the_nearest_and_of_two_to_the_even_one) {
  for (const Half& half : halves()) {
    std::vector<float> floats = {0.0F, -0.0F, kLargest, -kLargest, kSmallest, -kSmallest};
    // Each value, each middle between two, and what lies right beside the middle.
    for (std::size_t pattern = 0; pattern + 1 < half.magnitudes.size(); ++pattern) {
      const double middle = (half.magnitudes[pattern] + half.magnitudes[pattern + 1]) / 2;
      const float value = static_cast<float>(middle);
      if (pattern % 7 == 0) {
        floats.push_back(static_cast<float>(half.magnitudes[pattern]));
      }
      for (const float near : {value, std::nextafter(value, 0.0F), std::nextafter(value, kLargest)}) {
        floats.push_back(pattern % 3 == 0 ? -near : near);
      }
    }
    check_rounding(half, floats);
  }
}

TEST(sixteen_bits_round_random_values_of_every_size) {
  for (const Half& half : halves()) {
    check_rounding(half, random_patterns(3 * kChunk, 1));
    auto floats = random_floats(3 * kChunk, 2);
    for (std::size_t i = 0; i < floats.size(); ++i) {
      floats[i] = std::ldexp(floats[i], static_cast<int>(i % 48) - 28);
    }
    check_rounding(half, floats);
  }
}

TEST(a_value_too_large_for_a_format_is_told_and_arrives_as_infinite) {
  const std::vector<float> fits = {65519.996F, -65519.996F};
  CHECK(same_bits(through(*make_format({"float16", {}}), fits), std::vector<float>{65504.0F, -65504.0F}));
  CHECK(
      same_bits(through(*make_format({"float16", {}}), {65520.0F, 1.0F}, false), std::vector<float>{kInfinity, 1.0F}));
  CHECK(same_bits(through(*make_format({"float16", {}}), {-1e30F}, false), std::vector<float>{-kInfinity}));
  CHECK(same_bits(through(*make_format({"bfloat16", {}}), {kLargest}, false), std::vector<float>{kInfinity}));
  CHECK(same_bits(through(*make_format({"int8", {}}), {kLargest}, false), std::vector<float>{kInfinity}));
  CHECK(std::isfinite(through(*make_format({"int8", {}}), {std::nextafter(kLargest, 0.0F)}).front()));
}

// ---- int8 ----------------------------------------------------------------------------------------------------------
namespace {

constexpr std::size_t kBlock = 256;
constexpr std::size_t kStepBytes = 256;

void check_int8(const std::vector<float>& floats) {
  const auto format = make_format({"int8", {}});
  const std::size_t count = floats.size();
  ChunkBytes bytes(format->chunk_bytes(count));
  ChunkBytes with_residual(format->chunk_bytes(count));
  std::vector<float> left(count);
  const std::vector<float> carried(count, -0.0F);
  CHECK(format->encode(bytes.data(), floats.data(), count, 1.0F, {}));
  CHECK(format->encode(with_residual.data(), floats.data(), count, 1.0F, {carried.data(), left.data()}));
  CHECK(std::ranges::equal(bytes.bytes(), with_residual.bytes()));
  std::vector<float> decoded(count);
  format->decode(decoded.data(), bytes.data(), count, 0, count);
  for (std::size_t i = 0; i < count; ++i) {
    float largest = 0.0F;
    const std::size_t begin = i / kBlock * kBlock;
    for (std::size_t j = begin; j < std::min(begin + kBlock, count); ++j) {
      largest = std::max(largest, std::abs(floats[j]));
    }
    float step = static_cast<float>(static_cast<double>(largest) / 127.0);
    if (largest < 127.0F * std::numeric_limits<float>::min()) {
      step = 0.0F;
    }
    const double quotient = static_cast<double>(floats[i]) / static_cast<double>(step);
    const double q = step == 0.0F ? 0.0 : std::nearbyint(static_cast<double>(static_cast<float>(quotient)));
    CHECK_EQUAL(bytes.as<float>()[i / kBlock], step);
    CHECK_EQUAL(bytes.as<std::int8_t>()[kStepBytes + i], static_cast<int>(q));
    CHECK_EQUAL(decoded[i], static_cast<float>(q) * step);
    CHECK_EQUAL(left[i], floats[i] - decoded[i]);
  }
}

}  // namespace

TEST(int8_rounds_to_the_nearest_step_of_its_group) {
  for (const std::size_t count : kLengths) {
    check_int8(random_floats(count, 11));
  }
  check_int8({127.0F, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 126.5F, -126.5F, 0.4999F, -0.0F});
  for (const float size : {1e-30F, 1e30F, 1.3e-36F, 1.5e-36F, 1e-38F, 1e-44F, 0.0F}) {
    auto floats = random_floats(1000, 12);
    for (float& value : floats) {
      value *= size;
    }
    check_int8(floats);
  }
}

TEST(int8_rounds_what_lies_in_the_middle_of_two_steps) {
  std::vector<float> floats = random_floats(kChunk, 18);
  for (std::size_t begin = 0; begin < kChunk; begin += kBlock) {
    const float largest = 1.0F + std::abs(floats[begin]);
    for (std::size_t i = 1; i < kBlock - 1; ++i) {
      const float middle = (static_cast<float>(i) - 127.5F) * (largest / 127.0F);
      floats[begin + i] = std::nextafter(middle, i % 3 == 0 ? middle : i % 3 == 1 ? kInfinity : -kInfinity);
    }
    floats[begin] = largest;
    floats[begin + kBlock - 1] = 0.0F;
  }
  check_int8(floats);
}

TEST(a_largest_value_survives_int8_wherever_it_lies) {
  const auto format = make_format({"int8", {}});
  for (std::size_t at = 0; at < 600; at += 13) {
    std::vector<float> floats(600, 0.01F);
    floats[at] = -12.7F;
    const auto decoded = through(*format, floats);
    CHECK(std::abs(decoded[at] + 12.7F) < 1e-5F);
  }
  CHECK_EQUAL(through(*format, {3e38F, 1.0F})[1], 0.0F);
}

TEST(a_value_that_is_not_finite_takes_its_int8_group_with_it_and_no_other) {
  const auto format = make_format({"int8", {}});
  for (const float bad : {kInfinity, -kInfinity, kNotANumber}) {
    auto floats = random_floats(1000, 13);
    floats[300] = bad;
    const auto decoded = through(*format, floats, false);
    for (std::size_t i = 0; i < floats.size(); ++i) {
      CHECK_EQUAL(std::isfinite(decoded[i]), i / kBlock != 1);
    }
  }
}

TEST(int8_bytes_that_no_encoder_makes_are_refused) {
  const auto format = make_format({"int8", {}});
  const auto floats = random_floats(1000, 14);
  ChunkBytes bytes(format->chunk_bytes(1000));
  CHECK(format->encode(bytes.data(), floats.data(), 1000, 1.0F, {}));
  float* const steps = bytes.as<float>();
  const float good = steps[3];
  for (const float bad : {-1.0F, -0.0F, -kInfinity}) {
    steps[3] = bad;
    CHECK(!format->valid(bytes.data(), 1000));
  }
  for (const float bad : {kInfinity, kNotANumber, kLargest}) {
    steps[3] = bad;
    CHECK(!format->finite(bytes.data(), 1000));
  }
  steps[3] = good;
  CHECK(format->valid(bytes.data(), 1000));
  for (const std::size_t at : {0U, 500U, 999U}) {
    std::int8_t& byte = bytes.as<std::int8_t>()[kStepBytes + at];
    const std::int8_t before = byte;
    byte = -128;
    CHECK(!format->valid(bytes.data(), 1000));
    byte = before;
  }
}

// ---- topk ----------------------------------------------------------------------------------------------------------
namespace {

// What of each chunk travels, by sorting all of it.
void check_topk(double ratio, const std::vector<float>& floats) {
  const auto format = make_format({"topk", {{"ratio", ratio}}});
  const std::size_t count = floats.size();
  std::vector<std::size_t> order(count);
  for (std::size_t i = 0; i < count; ++i) {
    order[i] = i;
  }
  std::ranges::stable_sort(order, [&](auto i, auto j) { return std::abs(floats[i]) > std::abs(floats[j]); });
  const auto k = std::max(1L, std::lround(ratio * static_cast<double>(count)));
  std::vector<float> expected(count, 0.0F);
  std::vector<float> rest = floats;
  for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
    expected[order[i]] = floats[order[i]];
    rest[order[i]] = 0.0F;
  }
  const auto decoded = through(*format, floats);
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_EQUAL(decoded[i], expected[i]);
  }
  ChunkBytes bytes(format->chunk_bytes(count));
  std::vector<float> left(count, 0.0F);
  CHECK(format->encode(bytes.data(), floats.data(), count, 1.0F, {left.data(), left.data()}));
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_EQUAL(left[i], rest[i]);
  }
}

}  // namespace

TEST(topk_keeps_the_largest_and_of_equal_ones_the_first) {
  for (const double ratio : {1e-6, 0.001, 0.01, 0.06, 0.0626, 0.3, 1.0}) {
    for (const std::size_t count : kLengths) {
      auto floats = random_floats(count, 15);
      check_topk(ratio, floats);
      for (float& value : floats) {
        value = std::round(value * 8.0F);  // nearly all have equals
      }
      check_topk(ratio, floats);
      for (float& value : floats) {
        value *= kSmallest;
      }
      check_topk(ratio, floats);
    }
    check_topk(ratio, std::vector<float>(kChunk, 0.0F));
    check_topk(ratio, std::vector<float>(kChunk, -kLargest));
    auto rising = random_floats(kChunk, 16);
    std::ranges::sort(rising);
    check_topk(ratio, rising);
  }
}

TEST(topk_bytes_that_no_encoder_makes_are_refused) {
  const auto format = make_format({"topk", {{"ratio", 0.01}}});
  const auto floats = random_floats(1000, 17);
  ChunkBytes bytes(format->chunk_bytes(1000));
  CHECK(format->encode(bytes.data(), floats.data(), 1000, 1.0F, {}));
  CHECK(format->valid(bytes.data(), 1000));
  auto* const places = bytes.as<std::uint16_t>();
  const std::vector<std::uint16_t> good(places, places + 10);
  const auto refused = [&](std::size_t at, std::uint16_t place) {
    std::ranges::copy(good, places);
    places[at] = place;
    CHECK(!format->valid(bytes.data(), 1000));
    std::vector<float> decoded(1002, 7.0F);
    format->decode(decoded.data() + 1, bytes.data(), 1000, 0, 1000);
    CHECK_EQUAL(decoded.front(), 7.0F);
    CHECK_EQUAL(decoded.back(), 7.0F);
  };
  refused(9, 1000);
  refused(9, 65535);
  refused(0, 65535);
  refused(5, good[4]);
  refused(5, good[3]);
  std::ranges::copy(good, places);
  CHECK(format->finite(bytes.data(), 1000));
  bytes.as<float>()[5 + 9] = kNotANumber;  // the last value
  CHECK(format->valid(bytes.data(), 1000));
  CHECK(!format->finite(bytes.data(), 1000));
}
