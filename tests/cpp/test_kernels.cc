#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/kernels.h"
#include "random_floats.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();

// Every length around the widths of vectors, at every 4-byte offset of a 64-byte line.
template <typename Check>
void at_all_lengths_and_offsets(const Check& check) {
  for (std::size_t count : {0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1000}) {
    for (std::size_t offset = 0; offset < 16; ++offset) {
      check(count, offset);
    }
  }
}

TEST(copy_copies_exactly_what_it_is_told_to) {
  at_all_lengths_and_offsets([](std::size_t count, std::size_t offset) {
    const auto from = random_floats(count + 32, 1);
    std::vector<float> to(count + 32, 7.0F);
    distnet::copy(to.data() + offset, from.data() + 1, count);
    for (std::size_t i = 0; i < to.size(); ++i) {
      const bool inside = i >= offset && i < offset + count;
      CHECK_EQUAL(to[i], inside ? from[i - offset + 1] : 7.0F);
    }
  });
}

TEST(copy_finite_copies_and_finds_a_nan_or_infinity_anywhere) {
  at_all_lengths_and_offsets([](std::size_t count, std::size_t offset) {
    auto from = random_floats(count + 16, 2);
    std::vector<float> to(count + 1);
    CHECK(distnet::copy_finite(to.data(), from.data() + offset, count));
    for (std::size_t i = 0; i < count; ++i) {
      CHECK_EQUAL(to[i], from[offset + i]);
    }
    for (const float bad : {kInfinity, -kInfinity, kNotANumber, -kNotANumber}) {
      for (std::size_t at = 0; at < count; at += count / 5 + 1) {
        auto spoilt = from;
        spoilt[offset + at] = bad;
        CHECK(!distnet::copy_finite(to.data(), spoilt.data() + offset, count));
        CHECK(!distnet::all_finite(spoilt.data() + offset, count));
      }
    }
  });
}

TEST(extreme_finite_values_count_as_finite) {
  const std::vector<float> extremes(50, kLargest);
  const std::vector<float> tiny(50, -kSmallest);
  CHECK(distnet::all_finite(extremes.data(), extremes.size()));
  CHECK(distnet::all_finite(tiny.data(), tiny.size()));
}

TEST(a_nan_outside_the_range_is_not_seen) {
  std::vector<float> values(40, 1.0F);
  values.front() = values.back() = kNotANumber;
  CHECK(distnet::all_finite(values.data() + 1, values.size() - 2));
}

TEST(copy_scaled_multiplies_and_checks_the_products) {
  at_all_lengths_and_offsets([](std::size_t count, std::size_t offset) {
    auto from = random_floats(count + 16, 3);
    std::vector<float> to(count + 1);
    CHECK(distnet::copy_scaled_finite(to.data(), from.data() + offset, 0.37F, count));
    for (std::size_t i = 0; i < count; ++i) {
      CHECK_EQUAL(to[i], from[offset + i] * 0.37F);
    }
    if (count == 0) {
      return;
    }
    from[offset + count - 1] = kLargest;
    CHECK(distnet::all_finite(from.data() + offset, count));
    CHECK(!distnet::copy_scaled_finite(to.data(), from.data() + offset, 2.0F, count));
  });
}

TEST(the_sum_of_squares_has_one_order_everywhere) {
  at_all_lengths_and_offsets([](std::size_t count, std::size_t offset) {
    const auto from = random_floats(count + 16, 4);
    double lanes[16] = {};
    for (std::size_t i = 0; i < count; ++i) {
      const double value = static_cast<double>(from[offset + i]);
      lanes[i % 16] += value * value;
    }
    double expected = 0.0;
    for (const double lane : lanes) {
      expected += lane;
    }
    CHECK_EQUAL(distnet::sum_of_squares(from.data() + offset, count), expected);
  });
}

}  // namespace
