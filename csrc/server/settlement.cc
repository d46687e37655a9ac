#include "server/settlement.h"

#include <algorithm>

namespace distnet {

void Outlets::attach(std::uint32_t session, Outlet& outlet) {
  const std::lock_guard lock(mutex_);
  outlets_[session].store(&outlet, std::memory_order_release);  // pairs with of()
  attached_.push_back(session);
}

void Outlets::detach(std::uint32_t session) {
  const std::lock_guard lock(mutex_);
  outlets_[session].store(nullptr, std::memory_order_release);
  std::erase(attached_, session);
}

void Outlets::collect_released() {
  const std::lock_guard lock(mutex_);
  for (const std::uint32_t session : attached_) {
    of(session)->collect_released();
  }
}

void Settlement::accept(PushEntry& push) {
  gate_.pass();
  enter(push);
}

bool Settlement::try_accept(PushEntry& push) {
  if (!gate_.try_pass()) {
    return false;
  }
  enter(push);
  return true;
}

void Settlement::enter(PushEntry& push) {
  push.order = orders_.fetch_add(1, std::memory_order_relaxed);                         // a ticket: it orders nothing
  sessions_.ledger(push.session).accepted.store(push.push, std::memory_order_release);  // pairs with readers' acquire
  metrics_.accepted();
}

void Settlement::draft(const PushEntry& push, std::uint32_t buffer, std::uint64_t elements) {
  if (Outlet* const outlet = outlets_.of(push.session)) {
    outlet->drafted(push.push, buffer, elements);
  }
}

void Settlement::apply(const PushEntry& push, std::uint64_t version_before) {
  const std::uint64_t staleness = version_before > push.base_version ? version_before - push.base_version : 0;
  metrics_.applied(staleness);
  Ledger& ledger = sessions_.ledger(push.session);
  ledger.staleness.store(staleness, std::memory_order_relaxed);  // published by `applied`
  ledger.applied.store(push.push, std::memory_order_release);    // pairs with the ledger's readers
  saved_.settled(push.session, push.push, true);
  settle(push, ledger);
}

void Settlement::abstain(const PushEntry& push) {
  metrics_.abstained();
  Ledger& ledger = sessions_.ledger(push.session);
  ledger.staleness.store(0, std::memory_order_relaxed);        // published by `applied`
  ledger.applied.store(push.push, std::memory_order_release);  // pairs with the ledger's readers
  saved_.settled(push.session, push.push, true);
  settle(push, ledger);
}

void Settlement::refuse(const PushEntry& push) {
  metrics_.refused();
  Ledger& ledger = sessions_.ledger(push.session);
  ledger.refused.fetch_add(1, std::memory_order_relaxed);
  saved_.settled(push.session, push.push, false);
  settle(push, ledger);
}

void Settlement::refuse_not_finite(const PushEntry& push, bool in_part, bool replied) {
  if (in_part) {
    metrics_.refused_in_part();
  }
  if (replied) {
    sessions_.ledger(push.session).unheard.store(push.push, std::memory_order_relaxed);  // published by `settled`
  }
  refuse(push);
}

void Settlement::settle(const PushEntry& push, Ledger& ledger) {
  ledger.settled.store(push.push, std::memory_order_seq_cst);  // pairs with settle_previous() and wait_until()
  wake_all(ledger.settled);
  if (Outlet* const outlet = outlets_.of(push.session)) {
    outlet->settled(push.push);
  }
  if (waiters_.load(std::memory_order_seq_cst) != 0) {  // pairs with wait_until()
    settlements_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(settlements_);
  }
  gate_.leave();
}

}  // namespace distnet
