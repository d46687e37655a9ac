#include "server/metrics.h"

#include <algorithm>

namespace distnet {
std::uint64_t Metrics::unsettled() const {
  // What ended is read first: what is accepted in between counts, rather than too much.
  const std::uint64_t settled = applied_.load(std::memory_order_relaxed) + refused_.load(std::memory_order_relaxed) +
                                abstained_.load(std::memory_order_relaxed);
  const std::uint64_t accepted = accepted_.load(std::memory_order_relaxed);
  return accepted > settled ? accepted - settled : 0;
}

void Metrics::applied(std::uint64_t staleness) {
  add(applied_);
  add(staleness_sum_, staleness);
  add(staleness_[std::min(staleness, kBuckets - 1)]);
  std::uint64_t seen = staleness_max_.load(std::memory_order_relaxed);
  while (seen < staleness && !staleness_max_.compare_exchange_weak(seen, staleness, std::memory_order_relaxed)) {
  }
}

void Metrics::session_ended(SessionEnd how, Role role) {
  if (role != Role::kWorker) {
    return;
  }
  if (how == SessionEnd::kDone) {
    add(done_);
  } else if (how == SessionEnd::kDied) {
    add(died_);
  } else if (how == SessionEnd::kSilent) {
    add(silent_);
  }
}

void Metrics::fill(ShardStatistics& statistics) const {
  const auto value = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  statistics.queue_depth = unsettled();
  statistics.accepted = value(accepted_);
  statistics.applied = value(applied_);
  statistics.refused = value(refused_);
  statistics.refused_in_part = value(refused_in_part_);
  statistics.abstained = value(abstained_);
  statistics.rates_differed = value(rates_differed_);
  statistics.cut_off = value(cut_off_);
  statistics.pulls = value(pulls_);
  statistics.workers_done = value(done_);
  statistics.workers_died = value(died_);
  statistics.workers_silent = value(silent_);
  StalenessStatistics& staleness = statistics.staleness;
  std::uint64_t last = 0;
  std::uint64_t count = 0;
  for (std::uint64_t i = 0; i < kBuckets; ++i) {
    staleness.counts.push_back(value(staleness_[i]));
    count += staleness.counts.back();
    last = staleness.counts.back() != 0 ? i + 1 : last;
  }
  staleness.counts.resize(last);
  staleness.max = value(staleness_max_);
  staleness.mean = count == 0 ? 0.0 : static_cast<double>(value(staleness_sum_)) / static_cast<double>(count);
}

}  // namespace distnet
