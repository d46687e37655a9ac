#include "group/named_order.h"

#include <algorithm>
#include <utility>

#include "base/ranks_text.h"

namespace distnet {

NamedOrder::Outcome NamedOrder::announced(std::uint32_t rank, const std::string& name) {
  const auto found = pending_.find(name);
  if (found != pending_.end() && found->second.ready.contains(rank)) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(rank) + " has an operation named '" + name +
                                        "' under way already; wait for it, or give the other one another name");
  }
  if (found == pending_.end() && pending_.size() >= kMostPending) {
    throw Error(ErrorCode::kProtocol, std::to_string(pending_.size()) + " named operations wait for their turn");
  }
  Pending& pending = pending_[name];
  if (pending.ready.empty()) {
    pending.since = ++announcements_;
  }
  pending.ready.insert(rank);
  Outcome outcome;
  if (complete(pending)) {
    pending_.erase(name);
    outcome.turns.push_back({++turns_, name});
  }
  return outcome;
}

NamedOrder::Outcome NamedOrder::joined(std::uint32_t rank) {
  if (!joined_.insert(rank).second) {
    throw Error(ErrorCode::kProtocol, "rank " + std::to_string(rank) + " joins twice");
  }
  Outcome outcome;
  give_turns(outcome);
  if (joined_.size() == size_) {
    joined_.clear();
    outcome.all_joined = rank;
  }
  return outcome;
}

// Those that are complete, the oldest first.
void NamedOrder::give_turns(Outcome& outcome) {
  std::vector<std::pair<std::uint64_t, std::string>> ready;
  for (const auto& [name, pending] : pending_) {
    if (complete(pending)) {
      ready.emplace_back(pending.since, name);
    }
  }
  std::ranges::sort(ready);
  for (auto& [since, name] : ready) {
    pending_.erase(name);
    outcome.turns.push_back({++turns_, std::move(name)});
  }
}

bool NamedOrder::complete(const Pending& pending) const {
  if (pending.ready.size() + joined_.size() < size_) {
    return false;
  }
  return awaited(pending).empty();
}

std::vector<std::uint32_t> NamedOrder::awaited(const Pending& pending) const {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t rank = 0; rank < size_; ++rank) {
    if (!pending.ready.contains(rank) && !joined_.contains(rank)) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

std::optional<std::vector<std::uint32_t>> NamedOrder::withdrew(std::uint32_t rank, const std::string& name) {
  const auto found = pending_.find(name);
  if (found == pending_.end() || !found->second.ready.contains(rank)) {
    return std::nullopt;
  }
  std::vector<std::uint32_t> ranks = awaited(found->second);
  found->second.ready.erase(rank);
  if (found->second.ready.empty()) {
    pending_.erase(found);
  }
  return ranks;
}

std::string NamedOrder::awaited_by(std::uint32_t rank) const {
  const std::pair<const std::string, Pending>* oldest = nullptr;
  for (const auto& entry : pending_) {
    if (entry.second.ready.contains(rank) && (oldest == nullptr || entry.second.since < oldest->second.since)) {
      oldest = &entry;
    }
  }
  return oldest == nullptr ? "" : "operation '" + oldest->first + "' waits for " + ranks_text(awaited(oldest->second));
}

}  // namespace distnet
