// A learning rate that is set while updates are made: an update has one from beginning to end.
#include <atomic>
#include <cmath>
#include <deque>
#include <optional>
#include <vector>

#include "check.h"
#include "store_case.h"

namespace {

using namespace distnet;

constexpr std::size_t kChunk = 16 * 1024;
constexpr std::size_t kChunks = 6;
constexpr const char* kGuards[] = {"mutex", "lock-free"};

std::vector<float> ones_in_column(std::size_t column) {
  std::vector<float> gradient(kChunks * kChunk, 0.0F);
  for (std::size_t chunk = 0; chunk < kChunks; ++chunk) {
    gradient[chunk * kChunk + column] = -1.0F;
  }
  return gradient;
}

std::vector<float> read(Store& store) {
  std::vector<float> out(store.size());
  store.read(out);
  return out;
}

}  // namespace

TEST(the_next_update_has_the_learning_rate_that_was_set_and_groups_multiply_it) {
  for (const char* const guard : kGuards) {
    UpdateRuleSpec rule = adding_rule();
    rule.schedule.kind = ScheduleSpec::Kind::kPiecewise;
    rule.schedule.boundaries = {1};
    rule.schedule.values = {8.0, 16.0};
    rule.groups = {{0, 64, 1.0, 0.0}, {64, 128, 0.5, 0.0}};
    const auto store = make_test_store(guard, rule, std::vector<float>(128, 0.0F));
    const std::vector<float> gradient(128, -1.0F);
    CHECK(!store->set_rate() && store->next_learning_rate() == 8.0);
    store->apply(gradient);
    CHECK_EQUAL(store->next_learning_rate(), 16.0);
    double expected = 8.0;
    for (const double rate : {2.0, 0.0, 4.0}) {
      store->set_learning_rate(rate);
      CHECK(store->set_rate() == rate && store->next_learning_rate() == rate);
      store->apply(gradient);
      expected += rate;
      CHECK_EQUAL(read(*store)[0], static_cast<float>(expected));
      CHECK_EQUAL(read(*store)[127], static_cast<float>(expected / 2));
    }
  }
}

TEST(the_learning_rate_of_a_gradient_goes_before_one_that_was_set_and_counts_for_its_update_alone) {
  for (const char* const guard : kGuards) {
    UpdateRuleSpec rule = adding_rule();
    rule.schedule.learning_rate = 8.0;
    rule.groups = {{0, 64, 1.0, 0.0}, {64, 128, 0.5, 0.0}};
    const auto store = make_test_store(guard, rule, std::vector<float>(128, 0.0F));
    const std::vector<float> gradient(128, -1.0F);
    double expected = 0.0;
    const auto push = [&](std::optional<double> rate, double counts) {
      CountingUpdate update(gradient.data(), gradient.size());
      update.gradient.rate = rate;
      store->submit(update);
      update.wait_finished();
      expected += counts;
      CHECK_EQUAL(read(*store)[0], static_cast<float>(expected));
      CHECK_EQUAL(read(*store)[127], static_cast<float>(expected / 2));
    };
    push(2.0, 2.0);
    push({}, 8.0);
    store->set_learning_rate(4.0);
    push(0.0, 0.0);
    push(16.0, 16.0);
    push({}, 4.0);
    CHECK(store->set_rate() == 4.0);
    CHECK_EQUAL(store->version(), 5U);
  }
}

TEST(a_store_goes_on_with_the_learning_rate_of_the_state_that_is_put_back) {
  for (const char* const guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(8, 0.0F));
    StoreState state;
    state.version = 3;
    state.set_rate = 0.25;
    store->start_from(state);
    store->apply(std::vector<float>(8, -1.0F));
    CHECK_EQUAL(read(*store)[7], 0.25F);
    CHECK_EQUAL(store->version(), 4U);
  }
}

// Update n adds its learning rate to column n of every chunk. Chunks of one update are applied by several threads.
TEST(an_update_has_one_learning_rate_in_all_chunks) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr std::size_t kUpdates = 20;
#else
  constexpr std::size_t kUpdates = 300;
#endif
  constexpr std::size_t kThreads = 4;
  for (const char* const guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kChunks * kChunk, 0.0F));
    std::atomic<int> working{kThreads};
    run_together(kThreads + 1, [&](int thread) {
      if (thread == kThreads) {
        for (double rate = 2.0; working.load() != 0; rate = std::fmod(rate, 1000.0) + 1.0) {
          store->set_learning_rate(rate);
        }
        return;
      }
      for (std::size_t i = 0; i < kUpdates; ++i) {
        const std::vector<float> gradient = ones_in_column(static_cast<std::size_t>(thread) * kUpdates + i);
        if (i % 3 == 0) {
          store->apply(gradient);
        } else {
          CountingUpdate update(gradient.data(), gradient.size());
          if (i % 3 == 1) {
            update.gradient.rate = static_cast<double>(i % 50 + 1);
          }
          store->submit(update);
          update.wait_finished();
        }
      }
      --working;
    });
    const std::vector<float> out = read(*store);
    for (std::size_t column = 0; column < kThreads * kUpdates; ++column) {
      CHECK(out[column] >= 1.0F);
      for (std::size_t chunk = 1; chunk < kChunks; ++chunk) {
        CHECK_EQUAL(out[chunk * kChunk + column], out[column]);
      }
    }
  }
}
