// Versions that never change.
#include <algorithm>
#include <set>

#include <sys/resource.h>

#include "base/error.h"
#include "check.h"
#include "store_case.h"

namespace {

using namespace distnet;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kUpdates = 100;
#else
constexpr int kUpdates = 2000;
#endif

bool all_are(const float* values, std::size_t count, float expected) {
  return std::all_of(values, values + count, [&](float value) { return value == expected; });
}

TEST(a_pin_is_one_version_and_knows_which) {
  constexpr std::size_t kSize = 20'000;
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(kSize, 0.0F));
  std::atomic<int> writers{2};
  run_together(5, [&](int index) {
    if (index < 2) {
      const std::vector<float> gradient(kSize, -1.0F);
      for (int update = 0; update < kUpdates; ++update) {
        store->apply(gradient);
      }
      writers.fetch_sub(1);
      return;
    }
    std::uint64_t newest = 0;
    while (writers.load() > 0) {
      const std::uint64_t published = store->version();
      Pin pin = store->pin();
      CHECK(pin.version() >= newest && pin.version() >= published);
      CHECK(all_are(pin.parameters(), kSize, static_cast<float>(pin.version())));
      newest = pin.version();
      pin.release();
    }
  });
}

TEST(a_pinned_version_survives_later_updates) {
  constexpr std::size_t kSize = 1000;
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(kSize, 0.0F));
  const std::vector<float> gradient(kSize, -1.0F);
  std::vector<Pin> pins;
  for (int update = 0; update < 6; ++update) {
    pins.push_back(store->pin());
    store->apply(gradient);
    store->apply(gradient);
  }
  for (std::size_t i = 0; i < pins.size(); ++i) {
    CHECK_EQUAL(pins[i].version(), 2 * i);
    CHECK(all_are(pins[i].parameters(), kSize, static_cast<float>(2 * i)));
    pins[i].release();
  }
}

TEST(a_version_pinned_twice_is_held_until_both_let_go) {
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(16, 0.0F));
  const std::vector<float> gradient(16, -1.0F);
  Pin first = store->pin(), second = store->pin();
  CHECK_EQUAL(first.buffer(), second.buffer());
  first.release();
  for (int update = 0; update < 5; ++update) {
    store->apply(gradient);
  }
  CHECK(all_are(second.parameters(), 16, 0.0F));
  second.release();
}

TEST(buffers_are_two_more_than_pinned_versions_and_used_again) {
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(16, 0.0F));
  const std::vector<float> gradient(16, -1.0F);
  std::set<std::uint32_t> used;
  for (int update = 0; update < 50; ++update) {
    Pin pin = store->pin();
    used.insert(pin.buffer());
    pin.release();
    store->apply(gradient);
  }
  CHECK_EQUAL(used.size(), 2U);

  Pin old = store->pin();
  store->apply(gradient);
  Pin older = store->pin();
  for (int update = 0; update < 50; ++update) {
    store->apply(gradient);
    Pin pin = store->pin();
    used.insert(pin.buffer());
    pin.release();
  }
  CHECK(used.size() <= 4);
  old.release();
  older.release();
}

TEST(versions_that_may_be_pinned_find_their_descriptors_where_the_process_has_none_left) {
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(16, 0.0F));
  const std::vector<float> gradient(16, -1.0F);
  store->expect_pins(5);
  rlimit limit{};
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  const rlimit none{3, limit.rlim_max};  // none but what is open already
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  CHECK_THROWS(store->expect_pins(1), Error);
  std::vector<Pin> pins;
  for (int update = 0; update < 5; ++update) {
    pins.push_back(store->pin());
    store->apply(gradient);
  }
  const Pin newest = store->pin();
  CHECK_EQUAL(newest.parameters()[0], 5.0F);
  CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  pins.clear();
  store->expect_fewer_pins(5);
}

TEST(a_reader_never_waits_for_an_update) {
  // The update's own callback, which runs before submit() returns, reads: it would hang if readers waited for updates.
  class ReadingUpdate final : public Update {
   public:
    explicit ReadingUpdate(Store& store) : store_(store) {}
    void on_applied(std::uint64_t) override { store_.read(out); }
    std::vector<float> out = std::vector<float>(16);

   private:
    Store& store_;
  };
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(16, 0.0F));
  const std::vector<float> gradient(16, -1.0F);
  const GradientView term = GradientView::dense(gradient.data(), gradient.size());
  ReadingUpdate update(*store);
  update.gradient.terms = {&term, 1};
  store->submit(update);
  CHECK(all_are(update.out.data(), 16, 1.0F));
}

TEST(callbacks_come_in_the_order_of_versions) {
  constexpr std::size_t kSize = 100;
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(kSize, 0.0F));
  std::vector<std::uint64_t> order;  // unguarded: the promise under test is that callbacks never overlap
  class Ordered final : public Update {
   public:
    explicit Ordered(std::vector<std::uint64_t>& all) : order_(all) {}
    void on_applied(std::uint64_t version_before) override { order_.push_back(version_before); }

   private:
    std::vector<std::uint64_t>& order_;
  };
  run_together(4, [&](int) {
    const std::vector<float> gradient(kSize, -1.0F);
    const GradientView term = GradientView::dense(gradient.data(), gradient.size());
    for (int i = 0; i < kUpdates; ++i) {
      Ordered update(order);
      update.gradient.terms = {&term, 1};
      store->submit(update);
    }
  });
  for (std::size_t i = 0; i < order.size(); ++i) {
    CHECK_EQUAL(order[i], i);
  }
}

}  // namespace
