#include "server/rounds/membership.h"

#include <algorithm>

#include "base/error.h"
#include "base/ranks_text.h"

namespace distnet {

Membership::Membership(OnLoss on_loss, std::uint32_t workers, std::uint32_t shards)
    : on_loss_(on_loss), shards_(shards) {
  for (std::uint32_t rank = 0; rank < workers; ++rank) {
    ranks_[rank];
  }
}

std::uint64_t Membership::came(RoundMember who) {
  DISTNET_INVARIANT(ranks_.contains(who.rank));
  Rank& rank = ranks_.at(who.rank);
  if (who.incarnation <= rank.incarnation) {
    return rank.first_round;  // an older session, heard of late
  }
  bool earlier_push = closing_;
  if (begun()) {
    for (const auto& [member, shards] : arrivals_.at(open_round_)) {
      earlier_push = earlier_push || member.rank == who.rank;
    }
  }
  rank.standing = Standing::kLive;
  rank.excused = false;
  rank.incarnation = who.incarnation;
  rank.first_round = open_round_ + (earlier_push ? 1 : 0);
  return rank.first_round;
}

void Membership::left(RoundMember who, SessionEnd how) {
  const auto found = ranks_.find(who.rank);
  const bool ends = how != SessionEnd::kStopped && how != SessionEnd::kFenced;  // whoever fenced it is in its place
  if (found == ranks_.end() || found->second.incarnation != who.incarnation || !ends) {
    return;
  }
  if (found->second.standing == Standing::kDone) {
    return;  // it took its leave of shard 0; what another shard then saw of it is no loss
  }
  found->second.standing = how == SessionEnd::kDone ? Standing::kDone : Standing::kLost;
  if (how != SessionEnd::kDone && on_loss_ == OnLoss::kAbort && !found->second.excused) {
    fail("rank " + std::to_string(who.rank) + " was lost, and on_loss is 'abort'");
  }
}

void Membership::arrived(RoundMember who, std::uint64_t round) {
  const auto found = ranks_.find(who.rank);
  if (found == ranks_.end() || round > open_round_ + kMostRoundsAhead) {
    return;
  }
  Rank& rank = found->second;
  const bool too_late = round < next_round();
  if (rank.incarnation == who.incarnation) {
    if (rank.standing == Standing::kStuck) {
      rank.standing = Standing::kLive;
    }
    rank.excused = rank.excused && rank.standing != Standing::kLive;  // it is there after all, unless it has gone
    if (too_late) {
      rank.first_round = std::max(rank.first_round, next_round());
    }
  }
  if (!too_late) {
    ++arrivals_[round][who];
  }
}

void Membership::overdue() {
  if (awaited().empty()) {
    return;  // the round is complete: something else keeps it open
  }
  if (on_loss_ == OnLoss::kAbort) {
    fail(ranks_text(awaited()) + " kept the round waiting for longer than the round timeout, and on_loss is 'abort'");
  }
  if (on_loss_ != OnLoss::kShrink) {
    return;
  }
  for (auto& [number, rank] : ranks_) {
    if (waits_for(number, rank)) {
      rank.standing = rank.standing == Standing::kLive ? Standing::kStuck : Standing::kLost;
    }
  }
}

void Membership::excuse(std::uint32_t rank) {
  if (const auto found = ranks_.find(rank); found != ranks_.end()) {
    found->second.excused = true;
  }
}

void Membership::fail(const std::string& why) {
  if (failure_.empty()) {
    failure_ = why;
  }
}

bool Membership::is_complete(std::uint32_t rank) const {
  const auto open = arrivals_.find(open_round_);
  return open != arrivals_.end() && std::ranges::any_of(open->second, [&](const auto& arrival) {
           return arrival.first.rank == rank && counts(arrival.first, arrival.second);
         });
}

// Whether a push of the open round is part of it. Where the round was promised to a newcomer, an older incarnation's
// push that came to light late is none.
bool Membership::counts(RoundMember who, std::uint32_t shards) const {
  const Rank& rank = ranks_.at(who.rank);
  const bool superseded = who.incarnation < rank.incarnation && rank.first_round <= open_round_;
  return shards == shards_ && !superseded;
}

bool Membership::waits_for(std::uint32_t number, const Rank& rank) const {
  const bool lost = rank.standing == Standing::kLost && on_loss_ == OnLoss::kWait;
  const bool present = rank.standing == Standing::kExpected || rank.standing == Standing::kLive;
  return (lost || present) && !rank.excused && rank.first_round <= open_round_ && !is_complete(number);
}

std::vector<std::uint32_t> Membership::awaited() const {
  std::vector<std::uint32_t> awaited;
  for (const auto& [number, rank] : ranks_) {
    if (!closing_ && waits_for(number, rank)) {
      awaited.push_back(number);
    }
  }
  return awaited;
}

std::vector<std::uint32_t> Membership::here() const {
  std::vector<std::uint32_t> here;
  if (const auto open = arrivals_.find(open_round_); open != arrivals_.end()) {
    for (const auto& [member, shards] : open->second) {
      if (here.empty() || here.back() != member.rank) {
        here.push_back(member.rank);
      }
    }
  }
  return here;
}

Membership::Verdict Membership::verdict() const {
  if (!failure_.empty()) {
    return Verdict::kAbort;
  }
  return begun() && !closing_ && awaited().empty() ? Verdict::kClose : Verdict::kGoOn;
}

std::vector<RoundMember> Membership::begin_closing() {
  closing_ = true;
  std::vector<RoundMember> members;
  for (const auto& [member, shards] : arrivals_[open_round_]) {
    if (!counts(member, shards)) {
      continue;
    }
    if (!members.empty() && members.back().rank == member.rank) {
      members.back() = member;  // an older incarnation's push came to light late: the newer one's counts
    } else {
      members.push_back(member);
    }
  }
  return members;
}

void Membership::open_next() {
  arrivals_.erase(open_round_);
  ++open_round_;
  closing_ = false;
}

}  // namespace distnet
