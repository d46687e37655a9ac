#include "server/in_flight.h"

#include "base/waiting.h"
#include "server/metrics.h"

namespace distnet {

void PushRecord::accept() {
  order = orders->fetch_add(1, std::memory_order_relaxed);
  session->accepted.store(push, std::memory_order_release);
  statistics->accepted();
}

void PushRecord::on_drafted(std::uint32_t buffer, std::uint64_t elements) {
  if (session->on_drafted) {
    session->on_drafted(push, buffer, elements);
  }
}

void PushRecord::on_applied(std::uint64_t version_before) {
  const std::uint64_t staleness = version_before > base_version ? version_before - base_version : 0;
  statistics->applied(staleness);
  session->staleness.store(staleness, std::memory_order_relaxed);
  session->applied.store(push, std::memory_order_release);  // pairs with the ledger's readers
  settle();
}

void PushRecord::refuse() {
  statistics->refused();
  session->refused.fetch_add(1, std::memory_order_relaxed);
  settle();
}

void PushRecord::settle() {
  session->settled.store(push, std::memory_order_release);
  wake_all(session->settled);
  session->on_settled(push);
}

InFlight::InFlight() : records_(std::make_unique<PushRecord[]>(kPlaces)) {
  for (std::uint32_t pool = 0; pool < kPlaces / kPoolPlaces; ++pool) {
    pools_.push_back(std::make_unique<BitPool>(kPoolPlaces));
  }
}

PushRecord& InFlight::take() {
  while (true) {
    for (std::uint32_t pool = 0; pool < pools_.size(); ++pool) {
      if (const auto bit = pools_[pool]->try_take()) {
        PushRecord& record = records_[pool * kPoolPlaces + *bit];
        record.place = pool * kPoolPlaces + *bit;
        record.reset();
        record.outcome.reset();
        return record;
      }
    }
    pools_.front()->wait_for_free();
  }
}

void InFlight::give_back(PushRecord& record) {
  pools_[record.place / kPoolPlaces]->give_back(record.place % kPoolPlaces);
}

}  // namespace distnet
