// A bounded pool of up to 64 numbers, as the bits of one word.
//
// Thread safety: any number of threads may call all methods. All are lock-free except take(), which sleeps while
// nothing is free. What the last holder of a number did happens before what its next holder does.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <optional>

#include "base/waiting.h"

namespace distnet {

class BitPool {
 public:
  explicit BitPool(std::uint32_t count) : free_(count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) {}

  std::optional<std::uint32_t> try_take() {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    while (free != 0) {
      // Acquire pairs with the release in give_back().
      if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire, std::memory_order_relaxed)) {
        return static_cast<std::uint32_t>(std::countr_zero(free));
      }
    }
    return std::nullopt;
  }

  std::uint32_t take() {
    while (true) {
      if (const auto taken = try_take()) {
        return *taken;
      }
      wait_for_free();
    }
  }

  // Sleeps while nothing is free. Another thread may then be first to take what is free.
  void wait_for_free() const { wait_while(free_, std::uint64_t{0}); }

  void give_back(std::uint32_t index) {
    // Release pairs with the acquire in try_take().
    free_.fetch_or(std::uint64_t{1} << index, std::memory_order_release);
    wake_all(free_);
  }

 private:
  std::atomic<std::uint64_t> free_;
};

}  // namespace distnet
