#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "kernels/halves.h"
#include "kernels/reduction.h"
#include "random_floats.h"

namespace {

using namespace distnet;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
std::vector<T> reduced(const Combination& combination, const std::vector<std::vector<T>>& inputs) {
  std::vector<const std::byte*> pointers;
  for (const auto& input : inputs) {
    pointers.push_back(reinterpret_cast<const std::byte*>(input.data()));
  }
  std::vector<T> output(inputs.front().size());
  reduce(combination, pointers, reinterpret_cast<std::byte*>(output.data()), output.size());
  return output;
}

template <typename T>
bool same_bits(const std::vector<T>& left, const std::vector<T>& right) {
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(T)) == 0);
}

template <typename T>
void check_exact(const Combination& combination, const std::vector<std::vector<T>>& inputs,
                 const std::vector<T>& expected) {
  const std::vector<T> output = reduced(combination, inputs);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK_EQUAL(+output[i], +expected[i]);
  }
}

TEST(float32_is_combined_in_the_order_of_the_inputs) {
  for (const std::size_t inputs : {1U, 2U, 3U, 5U}) {
    for (const std::size_t count : {0U, 1U, 15U, 17U, 2047U, 2048U, 2049U, 10000U}) {
      std::vector<std::vector<float>> vectors;
      for (std::size_t k = 0; k < inputs; ++k) {
        vectors.push_back(random_floats(count, static_cast<unsigned>(k + 1)));
      }
      std::vector<float> sum(count);
      std::vector<float> average(count);
      std::vector<float> scaled(count);
      for (std::size_t i = 0; i < count; ++i) {
        float total = vectors[0][i];
        float of_scaled = vectors[0][i] * 0.3F;
        for (std::size_t k = 1; k < inputs; ++k) {
          total += vectors[k][i];
          of_scaled += vectors[k][i] * 0.3F;
        }
        sum[i] = total;
        average[i] = total / static_cast<float>(inputs);
        scaled[i] = of_scaled * 0.7F;
      }
      CHECK(same_bits(reduced({DType::kFloat32, Reduction::kSum}, vectors), sum));
      CHECK(same_bits(reduced({DType::kFloat32, Reduction::kAverage}, vectors), average));
      CHECK(same_bits(reduced({DType::kFloat32, Reduction::kSum, 0.3F, 0.7F}, vectors), scaled));
    }
  }
}

// A vector that is cut anywhere gives the bits of the whole: the two transports cut differently.
template <typename T>
void check_cuts(DType dtype, const std::vector<std::vector<T>>& vectors) {
  for (const auto reduction :
       {Reduction::kSum, Reduction::kAverage, Reduction::kMin, Reduction::kMax, Reduction::kProduct}) {
    const Combination combination{dtype, reduction, 1.0, dtype == DType::kInt64 ? 1.0 : 0.5};
    const std::vector<T> whole = reduced(combination, vectors);
    for (const std::size_t cut : {1U, 3U, 16U, 31U, 100U, 2048U}) {
      std::vector<T> output(whole.size());
      for (std::size_t begin = 0; begin < whole.size(); begin += cut) {
        std::vector<const std::byte*> pointers;
        for (const auto& vector : vectors) {
          pointers.push_back(reinterpret_cast<const std::byte*>(vector.data() + begin));
        }
        reduce(combination, pointers, reinterpret_cast<std::byte*>(output.data() + begin),
               std::min(cut, whole.size() - begin));
      }
      CHECK(same_bits(output, whole));
    }
  }
}

TEST(the_bits_do_not_depend_on_how_a_vector_is_cut) {
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<std::int64_t>> integers;
  std::vector<std::vector<std::uint16_t>> halves;
  for (unsigned k = 0; k < 3; ++k) {
    floats.push_back(random_floats(5000, k + 1));
    for (std::size_t i = k; i < 5000; i += 7) {  // NaNs that differ in sign and payload, and infinities
      floats.back()[i] = std::bit_cast<float>(0x7F800001U + static_cast<std::uint32_t>(i) + (k << 31U));
      floats.back()[i + 1 < 5000 ? i + 1 : i] = k % 2 == 0 ? kInfinity : -kInfinity;
    }
    integers.emplace_back();
    halves.emplace_back();
    for (const float value : random_floats(5000, k + 9)) {
      integers.back().push_back(static_cast<std::int64_t>(value * 1e6F));
      halves.back().push_back(static_cast<std::uint16_t>(Float16::rounded(value).half));
    }
  }
  check_cuts(DType::kFloat32, floats);
  check_cuts(DType::kInt64, integers);
  check_cuts(DType::kFloat16, halves);
  check_cuts(DType::kBfloat16, halves);
}

TEST(the_output_may_be_any_of_the_inputs) {
  for (std::size_t in_place = 0; in_place < 3; ++in_place) {
    for (const double postscale : {1.0, 2.0}) {
      std::vector<std::vector<float>> vectors = {random_floats(5000, 1), random_floats(5000, 2),
                                                 random_floats(5000, 3)};
      const Combination combination{DType::kFloat32, Reduction::kSum, 1.0, postscale};
      const std::vector<float> expected = reduced(combination, vectors);
      std::vector<const std::byte*> pointers;
      for (const auto& vector : vectors) {
        pointers.push_back(reinterpret_cast<const std::byte*>(vector.data()));
      }
      reduce(combination, pointers, reinterpret_cast<std::byte*>(vectors[in_place].data()), 5000);
      CHECK(same_bits(vectors[in_place], expected));
    }
  }
}

TEST(a_nan_of_any_input_is_a_nan_of_one_bit_pattern) {
  const float other_nan = std::bit_cast<float>(0xFFC12345U);
  const auto canonical = std::bit_cast<std::uint32_t>(kNan);
  for (const auto reduction :
       {Reduction::kSum, Reduction::kAverage, Reduction::kMin, Reduction::kMax, Reduction::kProduct}) {
    for (const std::size_t count : {1U, 40U}) {
      const std::vector<std::vector<float>> cases[] = {
          {std::vector<float>(count, other_nan), std::vector<float>(count, 1.0F)},
          {std::vector<float>(count, 1.0F), std::vector<float>(count, other_nan)},
          {std::vector<float>(count, kNan), std::vector<float>(count, other_nan)}};
      for (const auto& inputs : cases) {
        for (const float value : reduced({DType::kFloat32, reduction}, inputs)) {
          CHECK_EQUAL(std::bit_cast<std::uint32_t>(value), canonical);
        }
      }
    }
  }
  CHECK(std::isnan(reduced<double>({DType::kFloat64, Reduction::kMax}, {{1.0}, {std::nan("")}, {2.0}})[0]));
}

TEST(halves_are_summed_in_float32_and_rounded_once) {
  // 1 + 2^-11 + 2^-11 is 1 + 2^-10, a float16; rounded after each step it would be 1.
  const auto half = [](float value) { return static_cast<std::uint16_t>(Float16::rounded(value).half); };
  check_exact<std::uint16_t>({DType::kFloat16, Reduction::kSum}, {{half(1.0F)}, {half(0x1p-11F)}, {half(0x1p-11F)}},
                             {half(1.0F + 0x1p-10F)});
  const auto brain = [](float value) { return static_cast<std::uint16_t>(Bfloat16::rounded(value)); };
  check_exact<std::uint16_t>({DType::kBfloat16, Reduction::kSum}, {{brain(1.0F)}, {brain(0x1p-8F)}, {brain(0x1p-8F)}},
                             {brain(1.0F + 0x1p-7F)});
  // 60000 + 60000 does not fit a float16, its average does.
  check_exact<std::uint16_t>({DType::kFloat16, Reduction::kAverage}, {{half(60000.0F)}, {half(60000.0F)}},
                             {half(60000.0F)});
  check_exact<std::uint16_t>({DType::kFloat16, Reduction::kMax}, {{half(-3.0F)}, {half(-2.0F)}}, {half(-2.0F)});
}

TEST(integers_wrap_and_their_averages_are_cut_towards_zero) {
  check_exact<std::uint8_t>({DType::kUint8, Reduction::kSum}, {{200, 255}, {100, 1}}, {44, 0});
  check_exact<std::int8_t>({DType::kInt8, Reduction::kSum}, {{127, -128}, {1, -1}}, {-128, 127});
  check_exact<std::int16_t>({DType::kInt16, Reduction::kProduct}, {{300, -7}, {300, 3}},
                            {static_cast<std::int16_t>(90000 - 65536), -21});
  check_exact<std::int32_t>({DType::kInt32, Reduction::kAverage}, {{7, -7, 2147483647}, {0, 0, 2147483647}},
                            {3, -3, 2147483647});
  check_exact<std::uint8_t>({DType::kUint8, Reduction::kAverage}, {{200}, {201}, {255}}, {218});
  check_exact<std::int64_t>({DType::kInt64, Reduction::kSum}, {{std::numeric_limits<std::int64_t>::max()}, {1}},
                            {std::numeric_limits<std::int64_t>::min()});
  check_exact<std::int64_t>({DType::kInt64, Reduction::kMin}, {{5, -9}, {-5, 9}}, {-5, -9});
}

TEST(a_scaled_integer_is_cut_to_the_range_of_its_type) {
  check_exact<std::int8_t>({DType::kInt8, Reduction::kSum, 1.0, 10.0}, {{100, -100, 3}, {0, 0, -1}}, {127, -128, 20});
  check_exact<std::uint8_t>({DType::kUint8, Reduction::kSum, -1.0, 1.0}, {{1, 0}, {2, 0}}, {0, 0});
  check_exact<std::int64_t>({DType::kInt64, Reduction::kSum, 1.0, 1e30}, {{1, -1, 0}, {0, 0, 0}},
                            {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min(), 0});
}

TEST(bool_is_or_and_and_for_bytes_of_any_value) {
  const std::vector<std::vector<std::uint8_t>> inputs = {{0, 2, 0, 255}, {0, 0, 7, 1}};
  check_exact<std::uint8_t>({DType::kBool, Reduction::kSum}, inputs, {0, 1, 1, 1});
  check_exact<std::uint8_t>({DType::kBool, Reduction::kMax}, inputs, {0, 1, 1, 1});
  check_exact<std::uint8_t>({DType::kBool, Reduction::kProduct}, inputs, {0, 0, 0, 1});
  check_exact<std::uint8_t>({DType::kBool, Reduction::kMin}, inputs, {0, 0, 0, 1});
  check_exact<std::uint8_t>({DType::kBool, Reduction::kSum}, {{0, 2}}, {0, 1});
  CHECK(!is_defined({DType::kBool, Reduction::kAverage}));
  CHECK(!is_defined({DType::kBool, Reduction::kSum, 2.0, 1.0}));
  CHECK(is_defined({DType::kBool, Reduction::kProduct}));
}

TEST(float64_keeps_its_precision) {
  check_exact<double>({DType::kFloat64, Reduction::kSum}, {{1.0}, {0x1p-52}}, {1.0 + 0x1p-52});
  check_exact<double>({DType::kFloat64, Reduction::kAverage}, {{1.0}, {2.0}, {4.0}}, {7.0 / 3.0});
  check_exact<double>({DType::kFloat64, Reduction::kProduct, 2.0, 0.5}, {{1.5}, {3.0}}, {9.0});
}

}  // namespace
