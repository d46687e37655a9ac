// Finding elements of the flat vector in very many slices of the caller's memory.
#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "check.h"
#include "transport/tcp/tcp_slices.h"

namespace {

using namespace distnet;

constexpr std::uint64_t kSliceFloats = 5;
constexpr std::uint64_t kStrideFloats = 16;
constexpr int kRunsAtATime = 32;  // about what one system call moves

std::vector<SourceSlice> slices_in(const std::vector<float>& values, std::size_t count) {
  std::vector<SourceSlice> slices;
  for (std::size_t i = 0; i < count; ++i) {
    slices.push_back({values.data(), i * kStrideFloats, kSliceFloats});
  }
  return slices;
}

// Goes through all elements, some runs at a time as a socket does, and returns how many lay in slices.
std::uint64_t walk(std::span<const SourceSlice> slices, std::uint64_t end) {
  std::uint64_t in_slices = 0;
  for (std::uint64_t at = 0; at < end;) {
    int runs = 0;
    const auto goes_on = [&](std::uint64_t floats) {
      at += floats;
      return ++runs < kRunsAtATime;
    };
    for_each_run<SourceSlice>(
        slices, at, end,
        [&](const float*, std::uint64_t floats) {
          in_slices += floats;
          return goes_on(floats);
        },
        goes_on);
  }
  return in_slices;
}

double seconds_for(std::size_t count) {
  const std::vector<float> values(kSliceFloats);
  const std::vector<SourceSlice> slices = slices_in(values, count);
  double least = std::numeric_limits<double>::max();
  for (int repetition = 0; repetition < 5; ++repetition) {
    const auto before = std::chrono::steady_clock::now();
    CHECK_EQUAL(walk(slices, count * kStrideFloats), count * kSliceFloats);
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count());
  }
  return least;
}

}  // namespace

TEST(runs_and_gaps_come_in_order_and_stay_within_the_range) {
  const std::vector<float> values(kSliceFloats);
  const std::vector<SourceSlice> slices = slices_in(values, 3);
  std::vector<std::uint64_t> lengths;
  const auto note = [&](std::uint64_t floats) {
    lengths.push_back(floats);
    return true;
  };
  for_each_run<SourceSlice>(
      slices, 3, 34,
      [&](const float* from, std::uint64_t floats) {
        CHECK(from >= values.data() && from + floats <= values.data() + values.size());
        return note(floats);
      },
      note);
  CHECK((lengths == std::vector<std::uint64_t>{2, 11, 5, 11, 2}));
  lengths.clear();
  for_each_run<SourceSlice>(slices, 40, 64, [&](const float*, std::uint64_t floats) { return note(floats); }, note);
  CHECK((lengths == std::vector<std::uint64_t>{24}));
}

// Ten times as many slices take about ten times as long; a search from the first one would take a hundred times.
TEST(a_walk_over_very_many_slices_takes_linear_time) {
  const double few = seconds_for(10'000);
  const double many = seconds_for(100'000);
  CHECK(many < 40 * few);
}
