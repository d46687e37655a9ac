#include "server/rounds/gathering.h"

#include <algorithm>

#include "base/ranks_text.h"

namespace distnet {
namespace {

std::string waits(const std::vector<std::uint32_t>& ranks) {
  return ranks_text(ranks) + (ranks.size() == 1 ? " waits" : " wait");
}

}  // namespace

bool Gathering::is_newest(RoundMember who) const {
  return who.rank < ranks_.size() && ranks_[who.rank].incarnation == who.incarnation;
}

// ---- events ----

void Gathering::came(RoundMember who) {
  if (who.rank >= ranks_.size() || who.incarnation <= ranks_[who.rank].incarnation) {
    return;  // nobody waits for ranks beyond the job's; an older session is heard of late
  }
  if (const auto found = waiting_.find(who.rank); found != waiting_.end()) {
    tell({who.rank, ranks_[who.rank].incarnation}, found->second.number, ErrorCode::kFenced,
         "a newer session of rank " + std::to_string(who.rank) + " has begun, and counts in its place");
    waiting_.erase(found);
  }
  ranks_[who.rank] = {Standing::kPresent, who.incarnation, false, {}};
}

void Gathering::left(RoundMember who, SessionEnd how) {
  if (!is_newest(who) || ranks_[who.rank].standing != Standing::kPresent) {
    return;
  }
  waiting_.erase(who.rank);
  if (how == SessionEnd::kFenced || how == SessionEnd::kStopped) {
    return;  // whoever fenced it is in its place, or the whole server stops
  }
  ranks_[who.rank].standing = Standing::kEnded;
  if (how != SessionEnd::kDone && !ranks_[who.rank].excused) {
    fail_for_death_of(who.rank, how);
  }
  look_whether_all_are_here();
}

void Gathering::fail_for_death_of(std::uint32_t rank, SessionEnd how) {
  if (waiting_.empty()) {
    return;
  }
  const std::string name = "rank " + std::to_string(rank);
  std::vector<std::uint32_t> waiting;
  waiting.reserve(waiting_.size());
  for (const auto& [number, ask] : waiting_) {
    waiting.push_back(number);
  }
  const std::string why = name + (how == SessionEnd::kSilent ? " fell silent and was given up" : " died") + " while " +
                          waits(waiting) + " for all ranks";
  for (std::uint32_t number = 0; number < ranks_.size(); ++number) {
    if (ranks_[number].standing == Standing::kPresent && !waiting_.contains(number)) {
      ranks_[number].failed_before = why;
    }
  }
  tell_all(ErrorCode::kPeerClosed, why);
}

void Gathering::excuse(std::uint32_t rank) {
  if (rank < ranks_.size()) {
    ranks_[rank].excused = true;
    look_whether_all_are_here();
  }
}

void Gathering::pushes(RoundMember who) {
  if (is_newest(who) && ranks_[who.rank].standing == Standing::kPresent) {
    ranks_[who.rank].excused = false;
  }
}

void Gathering::arrived(RoundMember who, const GatherAsk& ask) {
  if (who.rank >= ranks_.size()) {
    tell(who, ask.number, ErrorCode::kConfig,
         "rank " + std::to_string(who.rank) + " of a job of " + std::to_string(ranks_.size()) +
             " workers: ranks 0 to workers - 1 wait for each other; start the server with more workers");
    return;
  }
  if (!is_newest(who)) {
    tell(who, ask.number, ErrorCode::kFenced,
         "a newer session of rank " + std::to_string(who.rank) +
             " counts at barriers and in finish(); give every worker its own rank");
    return;
  }
  Rank& rank = ranks_[who.rank];
  rank.excused = false;
  if (!rank.failed_before.empty()) {
    tell(who, ask.number, ErrorCode::kPeerClosed, std::exchange(rank.failed_before, {}));
    return;
  }
  waiting_[who.rank] = ask;
  look_whether_all_wait_at_the_same();
  look_whether_all_are_here();
}

void Gathering::gave_up(RoundMember who, std::uint64_t number) {
  const auto found = waiting_.find(who.rank);
  if (is_newest(who) && found != waiting_.end() && found->second.number == number) {
    tell(who, number, ErrorCode::kDeadlineExceeded, missing());
    waiting_.erase(found);
  }
}

void Gathering::withdrew(RoundMember who) {
  if (is_newest(who)) {
    waiting_.erase(who.rank);
  }
}

std::string Gathering::met(const OpenRound& round) {
  std::vector<std::uint32_t> at_barrier;
  for (const std::uint32_t rank : round.awaited) {
    const auto found = waiting_.find(rank);
    if (found != waiting_.end() && found->second.kind == GatherKind::kBarrier) {
      at_barrier.push_back(rank);
    }
  }
  if (at_barrier.empty() || round.here.empty()) {
    return {};
  }
  std::string why = waits(round.here) + " in round " + std::to_string(round.round) + " for " + ranks_text(at_barrier) +
                    ", which " + (at_barrier.size() == 1 ? "waits" : "wait") +
                    " at a barrier: all ranks must call barrier() between the same two rounds";
  tell_all(ErrorCode::kRoundAborted, why, round.round + 1);
  return why;
}

// ---- what follows ----

bool Gathering::is_missing(std::uint32_t rank) const {
  return ranks_[rank].standing != Standing::kEnded && !ranks_[rank].excused && !waiting_.contains(rank);
}

bool Gathering::an_excused_one_is_here() const {
  return std::ranges::any_of(ranks_,
                             [](const Rank& rank) { return rank.excused && rank.standing == Standing::kPresent; });
}

std::string Gathering::missing() const {
  std::vector<std::uint32_t> yet_to_come;
  std::vector<std::uint32_t> elsewhere;
  for (std::uint32_t rank = 0; rank < ranks_.size() && !waiting_.empty(); ++rank) {
    if (is_missing(rank)) {
      (ranks_[rank].standing == Standing::kExpected ? yet_to_come : elsewhere).push_back(rank);
    }
  }
  std::string text = elsewhere.empty() ? "" : ranks_text(elsewhere);
  if (!yet_to_come.empty()) {
    text += (text.empty() ? "" : ", and ") + ranks_text(yet_to_come) + " (not connected yet)";
  }
  return text;
}

void Gathering::tell(RoundMember who, std::uint64_t number, ErrorCode code, const std::string& text) {
  verdicts_.push_back({who, {number, code, text, 0}});
}

void Gathering::tell_all(ErrorCode code, const std::string& text, std::uint64_t round) {
  for (const auto& [rank, ask] : std::exchange(waiting_, {})) {
    verdicts_.push_back({{rank, ranks_[rank].incarnation}, {ask.number, code, text, round}});
  }
}

void Gathering::look_whether_all_are_here() {
  for (std::uint32_t rank = 0; rank < ranks_.size(); ++rank) {
    if (is_missing(rank)) {
      return;
    }
  }
  tell_all(ErrorCode::kNone, "");
}

void Gathering::look_whether_all_wait_at_the_same() {
  std::vector<std::uint32_t> at_barrier;
  std::vector<std::uint32_t> in_finish;
  for (const auto& [rank, ask] : waiting_) {
    (ask.kind == GatherKind::kBarrier ? at_barrier : in_finish).push_back(rank);
  }
  if (!at_barrier.empty() && !in_finish.empty()) {
    tell_all(ErrorCode::kRoundAborted, waits(at_barrier) + " at a barrier, and " + waits(in_finish) +
                                           " in finish(): all ranks must call the same, in the same order");
  }
}

}  // namespace distnet
