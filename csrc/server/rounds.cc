#include "server/rounds.h"

#include <string>

#include "base/error.h"

namespace distnet {

Rounds::Rounds(const UpdatePolicy& policy, Part part, std::uint32_t shards, RoundsHooks hooks)
    : policy_(policy), part_(part), shards_(shards), hooks_(std::move(hooks)) {
  for (std::uint32_t rank = 0; rank < policy.workers; ++rank) {
    ranks_[rank];
  }
}

std::uint64_t Rounds::open_round() const {
  const std::lock_guard lock(mutex_);
  return open_round_;
}

std::uint64_t Rounds::next_round(std::uint32_t rank) const {
  const std::lock_guard lock(mutex_);
  const auto found = ranks_.find(rank);
  return open_round_ + (found != ranks_.end() && found->second.record != nullptr ? 1 : 0);
}

void Rounds::rank_came(std::uint32_t rank) {
  const std::lock_guard lock(mutex_);
  const auto found = ranks_.find(rank);
  if (found == ranks_.end()) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(rank) + " of a job of " + std::to_string(policy_.workers) +
                                        " workers; ranks are 0 to workers - 1");
  }
  if (found->second.standing == Standing::kLive || found->second.standing == Standing::kStuck) {
    throw Error(ErrorCode::kConfig,
                "rank " + std::to_string(rank) + " is connected already; give every worker its own rank");
  }
  found->second.standing = Standing::kLive;
}

void Rounds::rank_left(std::uint32_t rank, SessionEnd how) {
  Lock lock(mutex_);
  ranks_.at(rank).standing = how == SessionEnd::kDone ? Standing::kDone : Standing::kLost;
  const RoundEvent event{open_round_, rank};
  if (part_ == Part::kFollower) {
    lock.unlock();
    if (how != SessionEnd::kStopped) {
      hooks_.report(ControlKind::kGone, event);
    }
    return;
  }
  if (how != SessionEnd::kDone && policy_.on_loss == OnLoss::kAbort) {
    abort_locked();
    return;
  }
  close_if_complete(lock);
}

bool Rounds::round_waits_for(const Rank& rank) const {
  switch (rank.standing) {
    case Standing::kExpected:
    case Standing::kLive:
      return true;
    case Standing::kLost:
      return policy_.on_loss == OnLoss::kWait;
    case Standing::kStuck:
    case Standing::kDone:
      return false;
  }
  return false;
}

bool Rounds::everybody_arrived() const {
  bool anybody = false;
  for (const auto& [number, rank] : ranks_) {
    const bool complete = rank.arrivals == shards_;
    if (!complete && round_waits_for(rank)) {
      return false;
    }
    anybody |= complete;
  }
  return anybody;
}

std::vector<std::uint32_t> Rounds::complete_ranks() const {
  std::vector<std::uint32_t> members;
  for (const auto& [number, rank] : ranks_) {
    if (rank.arrivals == shards_) {
      members.push_back(number);
    }
  }
  return members;
}

void Rounds::close_if_complete(Lock& lock) {
  if (part_ == Part::kLeader && !closing_ && !aborted_ && everybody_arrived()) {
    close(lock, complete_ranks());
  }
}

void Rounds::close(Lock& lock, const std::vector<std::uint32_t>& members) {
  closing_ = true;
  std::vector<PushRecord*> joined;
  for (const std::uint32_t number : members) {
    PushRecord* const record = ranks_.at(number).record;
    if (record != nullptr && record->payload != nullptr) {
      joined.push_back(record);
    }
  }
  const std::uint64_t round = open_round_;
  lock.unlock();
  if (part_ == Part::kLeader && shards_ > 1) {
    hooks_.announce({round, members});
  }
  if (!joined.empty()) {
    hooks_.apply(joined);
  }
  lock.lock();
  ++open_round_;
  for (const std::uint32_t number : members) {
    Rank& rank = ranks_.at(number);
    if (rank.record == nullptr) {
      continue;
    }
    if (rank.record->payload == nullptr) {
      rank.record->refuse();
    }
    end(rank, {ErrorCode::kNone, open_round_, hooks_.pin()});
  }
  for (auto& [number, rank] : ranks_) {
    refuse_open(rank);
    rank.arrivals = 0;
  }
  const auto early = early_arrivals_.find(open_round_);
  if (early != early_arrivals_.end()) {
    for (const auto& [number, arrivals] : early->second) {
      ranks_.at(number).arrivals += arrivals;
    }
    early_arrivals_.erase(early);
  }
  closing_ = false;
  timing_ = false;
  changed_.notify_all();
}

void Rounds::end(Rank& rank, const RoundOutcome& outcome) const {
  rank.record->outcome = outcome;
  rank.record = nullptr;
}

void Rounds::refuse_open(Rank& rank) {
  if (rank.record != nullptr) {
    rank.record->refuse();
    end(rank, {ErrorCode::kRoundAborted, open_round_, {}});
  }
}

RoundOutcome Rounds::take_part(PushRecord& record) {
  Lock lock(mutex_);
  Rank& rank = ranks_.at(record.session->rank);
  changed_.wait(lock, [&] { return !closing_ && rank.record == nullptr; });
  if (rank.standing == Standing::kStuck) {
    rank.standing = Standing::kLive;
  }
  if (aborted_ || record.round != open_round_) {
    record.refuse();
    return {ErrorCode::kRoundAborted, open_round_, {}};
  }
  if (!timing_) {
    timing_ = true;
    round_deadline_ = Deadline::after(policy_.round_deadline_s);
  }
  rank.record = &record;
  ++rank.arrivals;
  const RoundEvent event{open_round_, record.session->rank};
  if (part_ == Part::kFollower) {
    lock.unlock();
    hooks_.report(ControlKind::kArrived, event);
    lock.lock();
  } else {
    close_if_complete(lock);
  }
  while (!record.outcome) {
    if (part_ == Part::kFollower) {
      changed_.wait(lock);
    } else if (closing_) {
      changed_.wait(lock);
    } else if (round_deadline_.expired()) {
      give_up_on_stuck(lock);
    } else {
      changed_.wait_for(lock, std::min(round_deadline_.remaining(), milliseconds{60'000}));
    }
  }
  return *record.outcome;
}

void Rounds::give_up_on_stuck(Lock& lock) {
  if (policy_.on_loss == OnLoss::kAbort) {
    abort_locked();
    return;
  }
  if (policy_.on_loss == OnLoss::kWait) {
    round_deadline_ = Deadline::after(policy_.round_deadline_s);
    return;
  }
  for (auto& [number, rank] : ranks_) {
    if (rank.arrivals != shards_ && round_waits_for(rank)) {
      rank.standing = rank.standing == Standing::kLive ? Standing::kStuck : Standing::kLost;
    }
  }
  round_deadline_ = Deadline::after(policy_.round_deadline_s);
  close_if_complete(lock);
}

void Rounds::arrived_elsewhere(const RoundEvent& event) {
  Lock lock(mutex_);
  const auto found = ranks_.find(event.rank);
  if (found == ranks_.end() || event.round < open_round_ || event.round > open_round_ + 1) {
    return;
  }
  if (event.round > open_round_ || closing_) {
    const std::uint64_t round = event.round;
    if (round > open_round_) {
      ++early_arrivals_[round][event.rank];
    }
    return;
  }
  ++found->second.arrivals;
  close_if_complete(lock);
}

void Rounds::gone_elsewhere(const RoundEvent& event) {
  Lock lock(mutex_);
  const auto found = ranks_.find(event.rank);
  if (found != ranks_.end() && found->second.standing == Standing::kLive && found->second.arrivals != shards_) {
    lock.unlock();
    rank_left(event.rank, SessionEnd::kDied);
  }
}

void Rounds::close_as_told(const RoundMembers& members) {
  Lock lock(mutex_);
  if (part_ != Part::kFollower || members.round != open_round_ || closing_ || aborted_) {
    return;
  }
  for (const std::uint32_t number : members.ranks) {
    const auto found = ranks_.find(number);
    if (found == ranks_.end() || found->second.record == nullptr) {
      abort_locked();  // shard 0 counted a push that is not here: joining without it would part the shards
      return;
    }
  }
  close(lock, members.ranks);
}

void Rounds::abort_all() {
  const std::lock_guard lock(mutex_);
  abort_locked();
}

void Rounds::abort_locked() {
  aborted_ = true;
  if (!closing_) {
    for (auto& [number, rank] : ranks_) {
      refuse_open(rank);
    }
  }
  changed_.notify_all();
}

}  // namespace distnet
