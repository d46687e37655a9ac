// Counters of one shard: written with relaxed atomics on the way, read as a value.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "wire/control_messages.h"
#include "wire/statistics.h"

namespace distnet {

class Metrics {
 public:
  static constexpr std::uint64_t kBuckets = 256;  // staleness 0 … 254 exactly; the last holds all above

  void accepted() { add(accepted_); }
  // Pushes accepted and not settled.
  std::uint64_t unsettled() const;
  void applied(std::uint64_t staleness);
  void refused() { add(refused_); }
  void abstained() { add(abstained_); }
  void rates_differed() { add(rates_differed_); }    // the pushes of a round named different learning rates
  void refused_in_part() { add(refused_in_part_); }  // beside refused()
  void pulled() { add(pulls_); }
  void session_ended(SessionEnd how, Role role);
  void cut_off() { add(cut_off_); }

  // Fills in the fields that are counted here.
  void fill(ShardStatistics& statistics) const;

 private:
  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t by = 1) {
    counter.fetch_add(by, std::memory_order_relaxed);
  }

  std::atomic<std::uint64_t> accepted_{0};
  std::atomic<std::uint64_t> applied_{0};
  std::atomic<std::uint64_t> refused_{0};
  std::atomic<std::uint64_t> refused_in_part_{0};
  std::atomic<std::uint64_t> abstained_{0};
  std::atomic<std::uint64_t> rates_differed_{0};
  std::atomic<std::uint64_t> cut_off_{0};
  std::atomic<std::uint64_t> pulls_{0};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<std::uint64_t> died_{0};
  std::atomic<std::uint64_t> silent_{0};
  std::atomic<std::uint64_t> staleness_sum_{0};
  std::atomic<std::uint64_t> staleness_max_{0};
  std::array<std::atomic<std::uint64_t>, kBuckets> staleness_{};
};

}  // namespace distnet
