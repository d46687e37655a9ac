#include "server/rounds/rounds.h"

#include <algorithm>
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
  if (found->second.connected) {
    throw Error(ErrorCode::kConfig,
                "rank " + std::to_string(rank) + " is connected already; give every worker its own rank");
  }
  found->second.standing = Standing::kLive;
  found->second.connected = true;
}

void Rounds::rank_left(std::uint32_t number, SessionEnd how) {
  Lock lock(mutex_);
  Rank& rank = ranks_.at(number);
  rank.connected = false;
  const RoundEvent event{open_round_, number};
  lose(lock, rank, how);
  changed_.notify_all();
  if (part_ == Part::kFollower && how != SessionEnd::kStopped) {
    lock.unlock();
    hooks_.report(ControlKind::kGone, event);
  }
}

void Rounds::lose(Lock& lock, Rank& rank, SessionEnd how) {
  rank.standing = how == SessionEnd::kDone ? Standing::kDone : Standing::kLost;
  if (part_ == Part::kFollower) {
    return;  // shard 0 decides
  }
  if (how != SessionEnd::kDone && policy_.on_loss == OnLoss::kAbort) {
    abort(lock);
  } else {
    close_if_over(lock);
  }
}

bool Rounds::round_waits_for(const Rank& rank) const {
  if (rank.sits_out) {
    return false;
  }
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

bool Rounds::nobody_is_awaited() const {
  return std::ranges::none_of(
      ranks_, [this](const auto& entry) { return entry.second.arrivals != shards_ && round_waits_for(entry.second); });
}

bool Rounds::anybody_arrived() const {
  return std::ranges::any_of(ranks_, [](const auto& entry) { return entry.second.arrivals != 0; });
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

void Rounds::close_if_over(Lock& lock) {
  if (part_ == Part::kLeader && !closing_ && !aborted_ && nobody_is_awaited() && anybody_arrived()) {
    close(lock, complete_ranks());
  }
}

void Rounds::close(Lock& lock, const std::vector<std::uint32_t>& members) {
  closing_ = true;
  std::vector<PushRecord*> joined;
  for (const std::uint32_t number : members) {
    PushRecord* const record = ranks_.at(number).record;
    if (record != nullptr && record->payload.present()) {
      joined.push_back(record);
    }
  }
  const std::uint64_t round = open_round_;
  lock.unlock();
  bool failed = false;
  try {
    if (part_ == Part::kLeader && shards_ > 1) {
      hooks_.announce({round, members});
    }
    if (!joined.empty()) {
      hooks_.apply(joined);
    }
  } catch (const std::exception&) {  // no memory for another version: the other shards may have one more than this
    failed = true;
  }
  lock.lock();
  ++open_round_;
  for (const std::uint32_t number : members) {
    Rank& rank = ranks_.at(number);
    if (rank.record == nullptr || failed) {
      continue;
    }
    if (!rank.record->payload.present()) {
      rank.record->refuse();
    }
    end(rank, {ErrorCode::kNone, open_round_, hooks_.pin()});
  }
  open_next_round();
  if (failed) {
    abort(lock);
  }
}

// Who is still in the round that just ended was no member of it.
void Rounds::open_next_round() {
  for (auto& [number, rank] : ranks_) {
    refuse_open(rank);
    rank.arrivals = 0;
    rank.sits_out = false;
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

void Rounds::end(Rank& rank, RoundOutcome outcome) const {
  rank.record->outcome = std::move(outcome);
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
  wait_for_turn(lock, rank, record);
  if (rank.connected) {
    rank.standing = Standing::kLive;  // it was stuck, or a loss was reported late, of an earlier session
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
    close_if_over(lock);
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
  return std::move(*record.outcome);
}

// Until no earlier session of the rank is in the open round, and no round is being closed.
void Rounds::wait_for_turn(Lock& lock, Rank& rank, const PushRecord& record) {
  while (closing_ || rank.record != nullptr || (record.round == open_round_ + 1 && rank.connected && !aborted_)) {
    if (!closing_ && record.round == open_round_ + 1 && !rank.sits_out) {
      rank.sits_out = true;  // an earlier session's push of the open round may have broken off between two shards
      close_if_over(lock);
    } else {
      changed_.wait(lock);
    }
  }
}

void Rounds::give_up_on_stuck(Lock& lock) {
  if (policy_.on_loss == OnLoss::kAbort) {
    abort(lock);
    return;
  }
  round_deadline_ = Deadline::after(policy_.round_deadline_s);
  if (policy_.on_loss == OnLoss::kWait) {
    return;
  }
  for (auto& [number, rank] : ranks_) {
    if (rank.arrivals != shards_ && round_waits_for(rank)) {
      rank.standing = rank.connected ? Standing::kStuck : Standing::kLost;
    }
  }
  close_if_over(lock);
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
  if (found->second.connected) {
    found->second.standing = Standing::kLive;
  }
  close_if_over(lock);
}

void Rounds::gone_elsewhere(const RoundEvent& event) {
  Lock lock(mutex_);
  const auto found = ranks_.find(event.rank);
  if (found != ranks_.end() && found->second.standing == Standing::kLive && found->second.arrivals != shards_) {
    lose(lock, found->second, SessionEnd::kDied);
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
      abort(lock);  // shard 0 counted a push that is not here: joining without it would part the shards
      return;
    }
  }
  close(lock, members.ranks);
}

bool Rounds::aborted() const {
  const std::lock_guard lock(mutex_);
  return aborted_;
}

void Rounds::abort_all() {
  Lock lock(mutex_);
  abort(lock);
}

void Rounds::abort(Lock& lock) {
  if (aborted_) {
    return;
  }
  aborted_ = true;
  if (!closing_) {
    for (auto& [number, rank] : ranks_) {
      refuse_open(rank);
    }
  }
  changed_.notify_all();
  if (shards_ > 1) {
    lock.unlock();
    hooks_.part();
    lock.lock();
  }
}

}  // namespace distnet
