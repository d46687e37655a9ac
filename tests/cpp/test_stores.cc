// What both guards promise.
#include <algorithm>
#include <cstring>
#include <memory>

#include <unistd.h>

#include "base/error.h"
#include "base/simulation.h"
#include "base/threads.h"
#include "check.h"
#include "random_floats.h"
#include "store_case.h"

namespace {

using namespace distnet;

constexpr const char* kGuards[] = {"mutex", "lock-free"};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kUpdates = 20;
#else
constexpr int kUpdates = 400;
#endif
constexpr std::size_t kChunk = 16 * 1024;

TEST(one_thread_gets_the_bits_of_the_bare_rule) {
  constexpr std::size_t kSize = 2 * kChunk + 1234;
  for (const char* guard : kGuards) {
    UpdateRuleSpec spec;
    spec.optimizer = {"adam", {{"weight_decay", 0.01}}};
    spec.schedule = {.kind = ScheduleSpec::Kind::kCosine, .learning_rate = 0.1, .period_updates = 20};
    spec.ema_decay = 0.9;
    const auto initial = random_floats(kSize, 1);
    const auto store = make_test_store(guard, spec, initial);
    std::vector<float> expected = initial, ema = initial, first(kSize), second(kSize), got(kSize);
    const UpdateRule rule(spec, kSize);
    for (std::uint64_t update = 0; update < 30; ++update) {
      const auto gradient = random_floats(kSize, 50 + update);
      const GradientView term = GradientView::dense(gradient.data(), gradient.size());
      store->apply(gradient);
      rule.apply({expected.data(), expected.data(), {first.data(), second.data()}, ema.data(), ema.data()},
                 {.terms = {&term, 1}}, 0, kSize, update);
    }
    CHECK_EQUAL(store->read(got), 30U);
    CHECK(got == expected);
    store->read(got, true);
    CHECK(got == ema);
  }
}

TEST(no_update_of_many_threads_is_lost_or_applied_twice) {
  constexpr std::size_t kSize = 3 * kChunk + 17;
  for (const char* guard : kGuards) {
    for (const int threads : {2, 4, 16}) {
      const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
      run_together(threads, [&](int index) {
        // One shared cell in each stretch and one of the thread's own.
        std::vector<float> gradient(kSize, 0.0F);
        for (std::size_t i = 0; i < kSize; ++i) {
          if (i % 32 == 0 || i % 32 == 1 + static_cast<std::size_t>(index)) {
            gradient[i] = -1.0F;
          }
        }
        for (int update = 0; update < kUpdates; ++update) {
          store->apply(gradient);
        }
      });
      std::vector<float> out(kSize);
      CHECK_EQUAL(store->read(out), static_cast<std::uint64_t>(threads * kUpdates));
      for (std::size_t i = 0; i < kSize; ++i) {
        const std::size_t kind = i % 32;
        const int expected = kind == 0 ? threads * kUpdates : kind <= static_cast<std::size_t>(threads) ? kUpdates : 0;
        CHECK_EQUAL(out[i], static_cast<float>(expected));
      }
    }
  }
}

// Also where the lock-free store leaves copies of them with the owner of a chunk.
TEST(changes_and_gradients_of_many_threads_keep_their_meaning) {
  constexpr std::size_t kSize = 3 * kChunk + 17;
  constexpr int kThreads = 8;
  UpdateRuleSpec rule;
  rule.schedule.learning_rate = 1.0;
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, rule, std::vector<float>(kSize, 0.0F));
    run_together(kThreads, [&](int) {
      const std::vector<float> values(kSize, 1.0F);
      for (int update = 0; update < kUpdates; ++update) {
        store->add(values);
        store->apply(values);
        store->add(values);
      }
    });
    std::vector<float> out(kSize);
    CHECK_EQUAL(store->read(out), static_cast<std::uint64_t>(3 * kThreads * kUpdates));
    for (const float value : out) {
      CHECK_EQUAL(value, static_cast<float>(kThreads * kUpdates));
    }
  }
}

TEST(a_gradient_may_be_overwritten_as_soon_as_apply_returns) {
  constexpr std::size_t kSize = kChunk + 5;
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
    run_together(4, [&](int) {
      std::vector<float> gradient(kSize);
      for (int update = 0; update < kUpdates; ++update) {
        std::fill(gradient.begin(), gradient.end(), -1.0F);
        store->apply(gradient);
        std::fill(gradient.begin(), gradient.end(), 1000.0F);
      }
    });
    std::vector<float> out(kSize);
    store->read(out);
    for (const float value : out) {
      CHECK_EQUAL(value, static_cast<float>(4 * kUpdates));
    }
  }
}

TEST(on_applied_runs_once_after_the_update_is_visible_and_before_it_is_finished) {
  constexpr std::size_t kSize = kChunk + 5;
  constexpr int kThreads = 4;
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
    std::vector<std::atomic<int>> versions(static_cast<std::size_t>(kThreads * kUpdates));
    run_together(kThreads, [&](int) {
      const std::vector<float> gradient(kSize, -1.0F);
      CountingUpdate update(gradient.data(), gradient.size());
      update.store = store.get();
      for (int i = 0; i < kUpdates; ++i) {
        store->submit(update);
        update.wait_finished();
        CHECK_EQUAL(update.calls.load(), i + 1);
        CHECK(update.visible_version > update.seen_version_before);
        versions.at(update.seen_version_before).fetch_add(1);
        update.reset();
      }
    });
    for (const auto& times : versions) {
      CHECK_EQUAL(times.load(), 1);
    }
    CHECK_EQUAL(store->version(), static_cast<std::uint64_t>(kThreads * kUpdates));
  }
}

TEST(a_finished_update_can_be_destroyed_at_once) {
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(64, 0.0F));
    run_together(4, [&](int) {
      for (int i = 0; i < 10 * kUpdates; ++i) {
        const auto gradient = std::make_unique<std::vector<float>>(64, -1.0F);
        const auto update = std::make_unique<CountingUpdate>(gradient->data(), gradient->size());
        store->submit(*update);
        update->wait_finished();
      }
    });
    std::vector<float> out(64);
    store->read(out);
    for (const float value : out) {
      CHECK_EQUAL(value, static_cast<float>(40 * kUpdates));
    }
  }
}

TEST(every_part_sees_the_schedule_count_from_zero) {
  // Rates 1, 1/2, 1/4, ...: their sum over n updates is exactly 2 - 2^(1-n), in every cell, whatever the order.
  constexpr std::size_t kSize = 4 * kChunk;
  for (const char* guard : kGuards) {
    UpdateRuleSpec spec;
    spec.schedule = {.kind = ScheduleSpec::Kind::kExponential, .learning_rate = 1.0, .factor = 0.5};
    const auto store = make_test_store(guard, spec, std::vector<float>(kSize, 0.0F));
    run_together(4, [&](int) {
      const std::vector<float> gradient(kSize, -1.0F);
      for (int update = 0; update < 5; ++update) {
        store->apply(gradient);
      }
    });
    std::vector<float> out(kSize);
    store->read(out);
    for (const float value : out) {
      CHECK_EQUAL(value, 2.0F - 0x1p-19F);
    }
  }
}

TEST(several_terms_are_one_update) {
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(100, 0.0F));
    const std::vector<float> left(100, -1.0F), right(100, -3.0F);
    const GradientView terms[] = {GradientView::dense(left.data(), 100), GradientView::dense(right.data(), 100)};
    Update update;
    update.gradient = {.terms = terms, .divisor = 2.0F};
    store->submit(update);
    CHECK(update.finished());
    std::vector<float> out(100);
    CHECK_EQUAL(store->read(out), 1U);
    for (const float value : out) {
      CHECK_EQUAL(value, 2.0F);
    }
  }
}

TEST(buffers_hold_parameters_then_the_ema_on_64_bytes) {
  for (const char* guard : kGuards) {
    UpdateRuleSpec spec = adding_rule();
    spec.ema_decay = 0.5;
    const auto initial = random_floats(19, 1);
    const auto store = make_test_store(guard, spec, initial);
    CHECK_EQUAL(store->ema_offset_bytes(), 128U);
    Pin pin = store->pin();
    const Region& buffer = store->buffer(pin.buffer());
    CHECK(buffer.fd() >= 0);
    CHECK_EQUAL(buffer.bytes(), 256U);
    CHECK(buffer.as<float>() == pin.parameters());
    CHECK(buffer.as<float>(128) == pin.ema());
    CHECK(std::memcmp(pin.parameters(), initial.data(), 19 * sizeof(float)) == 0);
    CHECK(std::memcmp(pin.ema(), initial.data(), 19 * sizeof(float)) == 0);
    CHECK_THROWS(Region::map(dup(buffer.fd()), 256, true), Error);
    const Region peer = Region::map(dup(buffer.fd()), 256, false);
    CHECK(std::memcmp(peer.data(), initial.data(), 19 * sizeof(float)) == 0);
    pin.release();
  }
}

TEST(updates_in_flight_of_simulated_threads_are_applied_once_in_any_order) {
  constexpr std::size_t kSize = kChunk + 5;
  constexpr int kThreads = 3, kRounds = 4;
  const std::vector<float> gradient(kSize, -1.0F);
  for (const char* guard : kGuards) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      Simulation(seed).run([&] {
        const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
        std::vector<Thread> threads;
        for (int thread = 0; thread < kThreads; ++thread) {
          threads.emplace_back("pusher", [&] {
            for (int round = 0; round < kRounds; ++round) {
              CountingUpdate update(gradient.data(), gradient.size());
              store->submit(update);
              const Pin pin = store->pin();
              update.wait_finished();
              CHECK_EQUAL(update.calls.load(), 1);
            }
          });
        }
        for (Thread& thread : threads) {
          thread.join();
        }
        std::vector<float> out(kSize);
        CHECK_EQUAL(store->read(out), std::uint64_t{kThreads * kRounds});
        CHECK(out == std::vector<float>(kSize, static_cast<float>(kThreads * kRounds)));
      });
    }
  }
}

TEST(wrong_sizes_and_missing_averages_are_refused) {
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(10, 0.0F));
    std::vector<float> out(10), other(11);
    CHECK_THROWS(store->apply(other), Error);
    CHECK_THROWS(store->read(other), Error);
    CHECK_THROWS(store->read(out, true), Error);
    CHECK_THROWS(make_test_store(guard, adding_rule(), {}), Error);
    CHECK_EQUAL(store->read(out), 0U);
  }
  CHECK_THROWS(make_test_store("lockfree", adding_rule(), std::vector<float>(10, 0.0F)), Error);
}

}  // namespace
