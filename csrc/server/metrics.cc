#include "server/metrics.h"

#include <algorithm>

namespace distnet {
namespace {

void field(std::string& json, const char* name, std::uint64_t value) {
  json += std::string("\"") + name + "\": " + std::to_string(value) + ", ";
}

}  // namespace

std::uint64_t Metrics::unsettled() const {
  // What ended is read first: what is accepted in between counts, rather than too much.
  const std::uint64_t settled = applied_.load(std::memory_order_relaxed) + refused_.load(std::memory_order_relaxed);
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

std::string Metrics::json() const {
  const auto value = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  std::string json;
  field(json, "accepted", value(accepted_));
  field(json, "applied", value(applied_));
  field(json, "refused", value(refused_));
  field(json, "cut_off", value(cut_off_));
  field(json, "pulls", value(pulls_));
  field(json, "workers_done", value(done_));
  field(json, "workers_died", value(died_));
  field(json, "workers_silent", value(silent_));
  std::uint64_t last = 0;
  std::uint64_t count = 0;
  for (std::uint64_t i = 0; i < kBuckets; ++i) {
    count += value(staleness_[i]);
    last = value(staleness_[i]) != 0 ? i + 1 : last;
  }
  json += "\"staleness\": {";
  field(json, "max", value(staleness_max_));
  json += "\"mean\": " +
          std::to_string(count == 0 ? 0.0 : static_cast<double>(value(staleness_sum_)) / static_cast<double>(count));
  json += ", \"counts\": [";
  for (std::uint64_t i = 0; i < last; ++i) {
    json += (i == 0 ? "" : ", ") + std::to_string(value(staleness_[i]));
  }
  json += "]}";
  return json;
}

}  // namespace distnet
