// The weighted mean of a round: its bits, and what is not finite in it.
#include <limits>
#include <vector>

#include "check.h"
#include "random_floats.h"
#include "store_case.h"

namespace {

using namespace distnet;

constexpr std::size_t kSize = 20'003;  // more than a block, and no multiple of a strip
constexpr const char* kGuards[] = {"mutex", "lock-free"};

// An update of several terms with a weight each.
class WeightedUpdate final : public Update {
 public:
  WeightedUpdate(const std::vector<std::vector<float>>& terms, const std::vector<float>& weights, float divisor)
      : weights_(weights) {
    for (const auto& term : terms) {
      terms_.push_back(GradientView::dense(term.data(), term.size()));
    }
    gradient.terms = terms_;
    gradient.weights = weights_;
    gradient.divisor = divisor;
  }

 private:
  std::vector<GradientView> terms_;
  const std::vector<float> weights_;
};

std::vector<float> read(Store& store) {
  std::vector<float> out(store.size());
  store.read(out);
  return out;
}

}  // namespace

TEST(terms_are_multiplied_by_their_weights_summed_in_their_order_and_divided) {
  const std::vector<std::vector<float>> terms = {random_floats(kSize, 1), random_floats(kSize, 2),
                                                 random_floats(kSize, 3)};
  for (const char* const guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
    WeightedUpdate update(terms, {0.25F, 1.0F / 3.0F, 0.7F}, 1.3F);
    store->submit(update);
    update.wait_finished();
    const std::vector<float> out = read(*store);
    for (std::size_t i = 0; i < kSize; ++i) {
      const float sum = (terms[0][i] * 0.25F + terms[1][i] * (1.0F / 3.0F)) + terms[2][i] * 0.7F;
      CHECK_EQUAL(out[i], 0.0F - sum / 1.3F);
    }
  }
}

TEST(a_weighted_term_that_is_not_finite_is_named_and_a_product_that_overflows_is_none) {
  for (const char* const guard : kGuards) {
    for (std::size_t bad = 0; bad < 3; ++bad) {
      std::vector<std::vector<float>> terms(3, std::vector<float>(kSize, 1.0F));
      terms[bad][kSize - 1] = std::numeric_limits<float>::quiet_NaN();
      const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
      WeightedUpdate update(terms, {0.5F, 0.25F, 0.125F}, 0.875F);
      store->submit(update);
      update.wait_finished();
      CHECK(update.refused());
      CHECK_EQUAL(update.spoilt_term, guard == kGuards[0] ? bad : 0U);
    }
    const std::vector<std::vector<float>> large(2, std::vector<float>(kSize, 3e38F));
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
    WeightedUpdate update(large, {1.5F, 2.0F}, 3.5F);
    store->submit(update);
    update.wait_finished();
    CHECK(!update.refused());
  }
}
