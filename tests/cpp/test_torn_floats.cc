// The shipped build reads and writes shared floats with plain vector instructions, of which no language says that they
// keep a float whole. This is what shows it, on the machine at hand.
#include <bit>

#include "check.h"
#include "kernels/kernels.h"
#include "store_case.h"

namespace {

using namespace distnet;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 100;
#else
constexpr int kRounds = 20'000;
#endif

// Bit patterns without a byte in common, nor one with 0: any mixture of their bytes is none of the three.
const float kLeft = std::bit_cast<float>(0x40111111U);
const float kRight = std::bit_cast<float>(0xAFEEEEEEU);
constexpr std::size_t kSize = 2048;

struct Seen {
  std::atomic<std::uint64_t> left{0}, right{0};

  bool both() const { return left.load() > 0 && right.load() > 0; }

  void check(const float* values) {
    std::uint64_t lefts = 0, rights = 0;
    for (std::size_t i = 0; i < kSize; ++i) {
      CHECK(values[i] == 0.0F || values[i] == kLeft || values[i] == kRight);
      lefts += values[i] == kLeft ? 1 : 0;
      rights += values[i] == kRight ? 1 : 0;
    }
    left += lefts;
    right += rights;
  }
};

// One writer and two readers; goes on until the readers saw both values, or the test would be blind.
template <typename Write, typename Read>
void race(const Write& write, const Read& read) {
  Seen seen;
  std::atomic<bool> writing{true};
  std::atomic<int> failed{0};
  run_together(3, [&](int index) {
    if (index == 0) {
      for (int round = 0; failed == 0 && (round < kRounds || !seen.both()); ++round) {
        write();
      }
      writing.store(false);
      return;
    }
    std::vector<float> out(kSize);
    try {
      while (writing.load()) {
        read(out.data());
        seen.check(out.data());
      }
    } catch (...) {
      failed.fetch_add(1);
      throw;
    }
  });
}

TEST(a_store_written_in_place_shows_no_torn_float) {
  const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(kSize, 0.0F));
  const auto filled = [](float value) { return std::vector<float>(kSize, value); };
  // From 0 to each value and back: at rate 1 these differences are exact.
  const std::vector<float> gradients[] = {filled(-kLeft), filled(kLeft), filled(-kRight), filled(kRight)};
  race(
      [&] {
        for (const auto& gradient : gradients) {
          store->apply(gradient);
        }
      },
      [&](float* out) { store->read({out, kSize}); });
}

TEST(copies_across_cache_lines_tear_no_float) {
  const std::vector<float> left(kSize, kLeft), right(kSize, kRight);
  std::vector<float> memory(kSize + 16, 0.0F);
  // Off by one, so that vectors straddle cache lines wherever the allocation lies.
  for (const std::size_t offset : {std::size_t{1}, std::size_t{3}, std::size_t{5}}) {
    float* const shared = memory.data() + offset;
    race(
        [&] {
          copy(shared, left.data(), kSize);
          copy_finite(shared, right.data(), kSize);
        },
        [&](float* out) { copy(out, shared, kSize); });
  }
}

}  // namespace
