// In place, one writer a chunk.
#include <algorithm>
#include <cmath>
#include <deque>
#include <latch>

#include "check.h"
#include "store_case.h"

namespace {

using namespace distnet;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kUpdates = 60;
#else
constexpr int kUpdates = 3000;
#endif
constexpr std::size_t kChunk = 16 * 1024;

// Holds up the thread that completes it, in on_applied().
class HoldingUpdate final : public Update {
 public:
  void on_applied(std::uint64_t) override {
    held.count_down();
    release.wait();
  }
  std::latch held{1}, release{1};
};

TEST(a_thread_held_up_in_its_callback_holds_up_nobody) {
  const std::vector<float> gradient(2 * kChunk, -1.0F);
  const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(2 * kChunk, 0.0F));
  const GradientView term = GradientView::dense(gradient.data(), gradient.size());
  HoldingUpdate holding;
  holding.gradient.terms = {&term, 1};
  std::thread holder([&] { store->submit(holding); });
  holding.held.wait();
  for (int i = 0; i < 100; ++i) {
    store->apply(gradient);
    CountingUpdate update(gradient.data(), gradient.size());
    store->submit(update);
    CHECK(update.finished());
  }
  std::vector<float> out(2 * kChunk);
  CHECK_EQUAL(store->read(out), 201U);
  holding.release.count_down();
  holder.join();
}

// Many updates of one thread in flight at once, as the server's sessions have them, on a vector of one chunk and of
// several.
TEST(updates_left_with_an_owner_are_applied_exactly_once) {
  for (const std::size_t size : {std::size_t{500}, 5 * kChunk + 3}) {
    const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(size, 0.0F));
    const int rounds = size > kChunk ? kUpdates / 20 : kUpdates;
    constexpr int kThreads = 8, kInFlight = 7;
    run_together(kThreads, [&](int) {
      const std::vector<float> gradient(size, -1.0F);
      std::deque<CountingUpdate> updates;
      for (int i = 0; i < kInFlight; ++i) {
        updates.emplace_back(gradient.data(), gradient.size());
      }
      for (int round = 0; round < rounds; ++round) {
        for (CountingUpdate& update : updates) {
          store->submit(update);
        }
        for (CountingUpdate& update : updates) {
          update.wait_finished();
          update.reset();
        }
      }
      for (const CountingUpdate& update : updates) {
        CHECK_EQUAL(update.calls.load(), rounds);
      }
    });
    std::vector<float> out(size);
    CHECK_EQUAL(store->read(out), static_cast<std::uint64_t>(kThreads * kInFlight * rounds));
    for (const float value : out) {
      CHECK_EQUAL(value, static_cast<float>(kThreads * kInFlight * rounds));
    }
  }
}

TEST(standalone_and_server_updates_mix) {
  constexpr std::size_t kSize = 2 * kChunk;
  const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(kSize, 0.0F));
  const int rounds = kUpdates / 10;
  run_together(12, [&](int index) {
    std::vector<float> gradient(kSize, -1.0F);
    for (int round = 0; round < rounds; ++round) {
      if (index % 2 == 0) {
        std::fill(gradient.begin(), gradient.end(), -1.0F);
        store->apply(gradient);
        std::fill(gradient.begin(), gradient.end(), NAN);
      } else {
        CountingUpdate update(gradient.data(), gradient.size());
        store->submit(update);
        update.wait_finished();
      }
    }
  });
  std::vector<float> out(kSize);
  CHECK_EQUAL(store->read(out), static_cast<std::uint64_t>(12 * rounds));
  for (const float value : out) {
    CHECK_EQUAL(value, static_cast<float>(12 * rounds));
  }
}

TEST(versions_and_cells_never_go_back_and_never_miss_what_was_published) {
  constexpr std::size_t kSize = kChunk + 100;
  const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(kSize, 0.0F));
  std::atomic<int> writers{3};
  run_together(5, [&](int index) {
    if (index < 3) {
      const std::vector<float> gradient(kSize, -1.0F);
      for (int update = 0; update < kUpdates; ++update) {
        store->apply(gradient);
      }
      writers.fetch_sub(1);
      return;
    }
    std::vector<float> before(kSize, 0.0F), out(kSize);
    while (writers.load() > 0) {
      const std::uint64_t published = store->read(out);
      for (std::size_t i = 0; i < kSize; ++i) {
        CHECK(out[i] >= before[i]);
        CHECK(out[i] >= static_cast<float>(published));
      }
      before.swap(out);
    }
  });
}

}  // namespace
