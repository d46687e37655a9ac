#include "server/saved_bytes.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

constexpr std::uint32_t kLeastLabels = 64;  // that bytes are kept for where a rank is a label

}  // namespace

std::uint32_t saved_ranks(const ShardSettings& settings) {
  if (settings.shard != 0) {
    return 0;
  }
  const std::uint32_t workers = std::min(settings.policy.workers, kMaxSavedRanks);
  return settings.joins_all() ? workers : std::max(workers, kLeastLabels);
}

std::uint32_t most_waiting_saves(const ShardSettings& settings) { return settings.policy.max_inflight + 2; }

SavedBytes::Kept SavedBytes::keep(std::uint32_t session, std::uint64_t push, std::vector<std::byte> data) {
  const SessionEntry& entry = sessions_.entry(session);
  if (entry.rank >= ranks_) {
    return {false, "rank " + std::to_string(entry.rank) + " cannot save bytes: the server keeps them for ranks below " +
                       std::to_string(ranks_) + "; start it with more workers="};
  }
  // Relaxed: the client names a push that it has not sent, so the count can only be lower.
  if (push <= entry.ledger.accepted.load(std::memory_order_relaxed)) {
    throw Error(ErrorCode::kProtocol, "bytes to save with push " + std::to_string(push) + ", which has come already");
  }
  Data kept = std::make_shared<const std::vector<std::byte>>(std::move(data));
  const std::lock_guard lock(mutex_);
  Waiting& waiting = waiting_[session];
  const bool replaces = waiting.contains(push);
  if (!replaces && waiting.size() >= most_waiting_) {
    throw Error(ErrorCode::kProtocol, "bytes to save with more pushes than a session may have on the way");
  }
  waiting[push] = std::move(kept);
  note_oldest(session, waiting);
  return {replaces, {}};
}

// Called under the mutex.
void SavedBytes::note_oldest(std::uint32_t session, const Waiting& waiting) {
  const std::uint64_t oldest = waiting.empty() ? 0 : waiting.begin()->first;
  sessions_.ledger(session).saves_with.store(oldest, std::memory_order_release);  // pairs with settled()
}

void SavedBytes::take(std::uint32_t session, std::uint64_t push, bool applied) {
  const std::lock_guard lock(mutex_);
  Waiting& waiting = waiting_[session];
  if (const auto found = waiting.find(push); applied && found != waiting.end()) {
    saved_[sessions_.entry(session).rank] = std::move(found->second);
  }
  waiting.erase(waiting.begin(), waiting.upper_bound(push));
  note_oldest(session, waiting);
}

void SavedBytes::forget(std::uint32_t session) {
  const std::lock_guard lock(mutex_);
  if (waiting_.erase(session) != 0) {
    note_oldest(session, {});
  }
}

SavedBytes::Data SavedBytes::of(std::uint32_t rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = saved_.find(rank);
  return found == saved_.end() ? nullptr : found->second;
}

SavedBytes::ByRank SavedBytes::all() const {
  const std::lock_guard lock(mutex_);
  return saved_;
}

void SavedBytes::put_back(const ByRank& saved) {
  const std::lock_guard lock(mutex_);
  for (const auto& [rank, data] : saved) {
    if (rank < ranks_) {
      saved_[rank] = data;
    }
  }
}

}  // namespace distnet
