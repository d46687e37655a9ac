// What the tests of both stores share: rules, and threads that start together.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "store/store.h"

// Returns plain SGD at rate 1. A gradient of -1 adds exactly 1, so counts stay exact integers in float32.
inline distnet::UpdateRuleSpec adding_rule() {
  distnet::UpdateRuleSpec rule;
  rule.schedule.learning_rate = 1.0;
  return rule;
}

// Makes a store in memory that the tests of one executable share.
inline std::unique_ptr<distnet::Store> make_test_store(std::string_view guard, const distnet::UpdateRuleSpec& rule,
                                                       std::span<const float> initial) {
  static distnet::Memory memory;
  return distnet::make_store(guard, rule, initial, memory);
}

// Runs work(0) ... work(count - 1), each on its own thread, all released at once. Throws what one of them threw.
template <typename Work>
void run_together(int count, const Work& work) {
  std::atomic<bool> go{false};
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  for (int index = 0; index < count; ++index) {
    threads.emplace_back([&, index] {
      go.wait(false, std::memory_order_acquire);
      try {
        work(index);
      } catch (...) {
        errors[static_cast<std::size_t>(index)] = std::current_exception();
      }
    });
  }
  go.store(true, std::memory_order_release);
  go.notify_all();
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

// An update of one term that notes how on_applied() was called.
class CountingUpdate final : public distnet::Update {
 public:
  CountingUpdate(const float* term, std::uint64_t elements) : term_(distnet::GradientView::dense(term, elements)) {
    gradient.terms = {&term_, 1};
  }

  void on_applied(std::uint64_t version_before) override {
    calls.fetch_add(1, std::memory_order_relaxed);
    seen_version_before = version_before;
    if (store != nullptr) {
      visible_version = store->version();
    }
  }

  std::atomic<int> calls{0};
  std::uint64_t seen_version_before = 0;
  std::uint64_t visible_version = 0;
  distnet::Store* store = nullptr;

 private:
  const distnet::GradientView term_;
};
