#include "server/rounds/rounds.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/threads.h"

namespace distnet {
namespace {

constexpr int kMemoryRetries = 10;
constexpr auto kMemoryPause = milliseconds{10};

// As few digits as give the same value again.
std::string shortest_text(double value) {
  std::array<char, 32> digits{};
  const std::to_chars_result end = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  return {digits.data(), end.ptr};
}

// NaN, which stands for none, equals itself here.
bool same_rates(const PushSettings& one, const PushSettings& other) {
  const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  return one.learning_rate == other.learning_rate && std::ranges::equal(one.group_rates, other.group_rates, same);
}

}  // namespace

Rounds::Rounds(const UpdatePolicy& policy, Duty duty, std::uint32_t shards, RoundStore& store, RoundPeers& peers)
    : policy_(policy),
      duty_(duty),
      shards_(shards),
      store_(store),
      peers_(peers),
      membership_(policy.on_loss, policy.workers, shards),
      all_follow_(duty == Duty::kFollower || shards == 1) {}

std::uint64_t Rounds::next_round() const {
  const std::lock_guard lock(mutex_);
  return membership_.next_round();
}

std::vector<std::uint32_t> Rounds::awaited() const {
  const std::lock_guard lock(mutex_);
  return membership_.awaited();
}

std::string Rounds::failure() const {
  const std::lock_guard lock(mutex_);
  return membership_.failure();
}

void Rounds::set_learning_rate(double learning_rate) {
  if (duty_ != Duty::kLeader) {
    throw Error(ErrorCode::kProtocol, "the learning rate of a synchronous job is set at shard 0");
  }
  const std::lock_guard lock(mutex_);
  set_rate_ = learning_rate;
}

std::optional<double> Rounds::set_rate() const {
  const std::lock_guard lock(mutex_);
  return set_rate_;
}

std::uint64_t Rounds::came(RoundMember who) {
  Lock lock(mutex_);
  const std::uint64_t first_round = membership_.came(who);
  act(lock);  // an older session's push that arrived in part keeps nobody waiting any more
  return first_round;
}

void Rounds::left(RoundMember who, SessionEnd how) {
  Lock lock(mutex_);
  if (duty_ == Duty::kLeader) {
    membership_.left(who, how);
    act(lock);
    return;
  }
  const RoundEvent event{membership_.open_round(), who.rank, who.incarnation, how};
  lock.unlock();
  if (how != SessionEnd::kStopped) {
    peers_.report(ControlKind::kGone, event);
  }
}

void Rounds::excuse(std::uint32_t rank) {
  Lock lock(mutex_);
  membership_.excuse(rank);
  act(lock);
}

void Rounds::gone_elsewhere(const RoundEvent& event) {
  Lock lock(mutex_);
  membership_.left({event.rank, event.incarnation}, event.how);
  act(lock);
}

void Rounds::arrived_elsewhere(const RoundEvent& event) {
  Lock lock(mutex_);
  membership_.arrived({event.rank, event.incarnation}, event.round);
  act(lock);
  lock.unlock();
  look_();
}

void Rounds::cannot_be_made_elsewhere(const RoundEvent& event) {
  {
    const std::lock_guard lock(mutex_);
    if (!all_follow_) {
      given_up_early_ = event.round;
      return;
    }
  }
  give_up_round(event.round);
  look_();
}

void Rounds::all_follow() {
  Lock lock(mutex_);
  all_follow_ = true;
  overdue_at_.reset();
  act(lock);
  const std::optional<std::uint64_t> given_up = std::exchange(given_up_early_, std::nullopt);
  lock.unlock();
  if (given_up) {
    give_up_round(*given_up);
  }
  look_();
}

std::optional<OpenRound> Rounds::open_round() const {
  const std::lock_guard lock(mutex_);
  if (!all_follow_ || !membership_.begun() || membership_.closing() || !membership_.failure().empty()) {
    return std::nullopt;
  }
  return OpenRound{membership_.open_round(), membership_.here(), membership_.awaited()};
}

void Rounds::give_up_round(std::uint64_t round) {
  Lock lock(mutex_);
  const auto is_past = [&] { return membership_.next_round() > round || !membership_.failure().empty(); };
  changed_.wait(lock, [&] { return is_past() || !cut_is_due(); });  // a cut that is due is made at once
  if (!is_past()) {
    static_cast<void>(membership_.begin_closing());
    close(lock, {});
    act(lock);
  }
}

void Rounds::follow_from(std::uint64_t open_round) {
  const std::lock_guard lock(mutex_);
  while (membership_.open_round() < open_round && !membership_.closing()) {
    membership_.open_next();
  }
  for (const auto& [who, waiting] : waiting_) {
    if (!waiting->outcome && waiting->round < open_round) {
      refuse(*waiting);
    }
  }
  changed_.notify_all();
}

// Does what the membership says after an event.
void Rounds::act(Lock& lock) {
  if (membership_.verdict() == Membership::Verdict::kAbort) {
    refuse_all();
    tell_end(lock);
    return;
  }
  if (duty_ != Duty::kLeader) {
    return;
  }
  if (membership_.begun() && !overdue_at_) {
    overdue_at_ = Deadline::after(all_follow_ ? policy_.round_timeout_s : kFollowSeconds);
  }
  while (all_follow_ && membership_.verdict() == Membership::Verdict::kClose) {
    if (cut_is_due()) {
      held_since_ = held_since_.value_or(now());
      break;  // cut() goes on from here
    }
    close(lock, membership_.begin_closing());
  }
  changed_.notify_all();
}

// The pushes of a round that its update joins; those of the other kind are none of it.
std::vector<PushRecord*> Rounds::join(const std::vector<RoundMember>& members) const {
  std::vector<PushRecord*> joined;
  for (const RoundMember& member : members) {
    PushRecord* const record = waiting_.at(member)->record;
    if (!record->has_gradient()) {
      continue;
    }
    if (joined.empty() || record->view().meaning == joined.front()->view().meaning) {
      joined.push_back(record);
    } else {
      record->misplace();
    }
  }
  return joined;
}

// Names two ranks and their learning rates where the members' are not all one, else returns nothing.
std::string Rounds::differing_rates(const std::vector<RoundMember>& members) const {
  const auto text_of = [&](const RoundMember& member) {
    const PushSettings& settings = waiting_.at(member)->record->view().settings;
    return "rank " + std::to_string(member.rank) + ": " +
           (settings.learning_rate ? shortest_text(*settings.learning_rate) : "none") +
           (settings.group_rates.empty() ? "" : " beside those of groups");
  };
  const RoundMember* first = nullptr;
  for (const RoundMember& member : members) {
    const PushRecord& record = *waiting_.at(member)->record;
    if (!record.has_gradient()) {
      continue;
    }
    first = first == nullptr ? &member : first;
    if (!same_rates(record.view().settings, waiting_.at(*first)->record->view().settings)) {
      return text_of(*first) + ", " + text_of(member);
    }
  }
  return {};
}

// Whether there is memory for the update of a round. Not under the mutex.
bool Rounds::can_be_made() const {
  try {
    store_.prepare_round();
    return true;
  } catch (const std::exception&) {
    return false;  // the members of the round are told
  }
}

// Makes the round's update. The membership says "closing" meanwhile, so nothing else closes a round. The leader gives up
// a round that lacks memory before it is announced: the others hear that it closes with nobody.
void Rounds::close(Lock& lock, std::vector<RoundMember> members, const RoundMembers* told) {
  std::vector<PushRecord*> joined = join(members);
  RoundMembers round{membership_.open_round(), {}, set_rate_};
  std::string differing;
  if (told != nullptr) {
    round.push_rate = told->push_rate;
    round.group_rates = told->group_rates;
  } else if (!joined.empty()) {
    const PushSettings& settings = joined.front()->view().settings;
    round.push_rate = settings.learning_rate;
    round.group_rates.assign(settings.group_rates.begin(), settings.group_rates.end());
    differing = differing_rates(members);
  }
  lock.unlock();
  if (duty_ == Duty::kLeader && !joined.empty() && !can_be_made()) {
    joined.clear();
    members.clear();
  }
  bool failed = false;
  try {
    if (duty_ == Duty::kLeader && shards_ > 1) {
      round.members = members;
      peers_.announce(round);
    }
    if (round.set_rate) {
      store_.use_learning_rate(*round.set_rate);
    }
    if (!joined.empty()) {
      store_.apply_round(joined, {round.push_rate, {}, round.group_rates});
    }
    if (!differing.empty()) {
      store_.rates_differ("the pushes of round " + std::to_string(round.round) + " named different learning rates (" +
                          differing + "); the first of these counted");
    }
  } catch (const std::exception& error) {  // no memory for another version: the other shards may have one more
    failed = true;
    lock.lock();
    membership_.fail(std::string("an update could not be made: ") + error.what());
    lock.unlock();
  }
  lock.lock();
  settle_round(members, failed);
  if (!membership_.failure().empty()) {
    refuse_all();
    tell_end(lock);
  }
}

// Answers the members; whoever else waited for this round was no member of it.
void Rounds::settle_round(const std::vector<RoundMember>& members, bool failed) {
  const std::uint64_t closed = membership_.open_round();
  membership_.open_next();
  overdue_at_.reset();
  if (membership_.begun()) {
    overdue_at_ = Deadline::after(policy_.round_timeout_s);
  }
  for (const RoundMember& member : members) {
    Waiting& waiting = *waiting_.at(member);
    if (failed) {
      continue;
    }
    if (waiting.record->abstains()) {
      waiting.record->abstain();
    } else if (!waiting.record->has_gradient()) {
      waiting.record->refuse();
    }
    const ErrorCode status = waiting.record->misplaced() ? ErrorCode::kConfig : ErrorCode::kNone;
    waiting.outcome = RoundOutcome{status, membership_.open_round(), {}};
    if (status == ErrorCode::kNone) {
      waiting.outcome->pin = store_.pin_newest();
    }
  }
  for (const auto& [who, waiting] : waiting_) {
    if (!waiting->outcome && waiting->round <= closed) {
      refuse(*waiting);
    }
  }
  changed_.notify_all();
}

void Rounds::refuse(Waiting& waiting) const {
  waiting.record->refuse();
  waiting.outcome = refusal();
}

RoundOutcome Rounds::refusal() const { return {ErrorCode::kRoundAborted, membership_.next_round(), {}}; }

// The members of a round that closes are settled by whoever closes it.
void Rounds::refuse_all() {
  if (membership_.closing()) {
    return;
  }
  for (const auto& [who, waiting] : waiting_) {
    if (!waiting->outcome) {
      refuse(*waiting);
    }
  }
  changed_.notify_all();
}

void Rounds::tell_end(Lock& lock) {
  if (std::exchange(end_told_, true)) {
    return;
  }
  const std::string why = membership_.failure();
  lock.unlock();
  peers_.rounds_ended(why);
  lock.lock();
}

RoundOutcome Rounds::take_part(PushRecord& record, RoundMember who) {
  Lock lock(mutex_);
  Waiting waiting{&record, record.round(), {}};
  const bool possible = waiting.round >= membership_.next_round() &&
                        waiting.round <= membership_.next_round() + kMostRoundsAhead && !waiting_.contains(who);
  if (duty_ == Duty::kLeader) {
    membership_.arrived(who, waiting.round);
  }
  if (!possible || !membership_.failure().empty()) {
    record.refuse();
    return refusal();
  }
  waiting_[who] = &waiting;
  if (duty_ == Duty::kLeader) {
    act(lock);
    lock.unlock();
    look_();
  } else {
    tell_leader(lock);
    lock.unlock();
  }
  lock.lock();
  RoundOutcome outcome = wait_for_end(lock, waiting);
  waiting_.erase(who);
  lock.unlock();
  look_();  // a push of the next round may have come early
  return outcome;
}

// The leader's round deadline bounds the wait; a follower hears from the leader, or that it is gone.
RoundOutcome Rounds::wait_for_end(Lock& lock, Waiting& waiting) {
  while (!waiting.outcome) {
    const auto ended = [&] { return waiting.outcome.has_value(); };
    if (duty_ == Duty::kFollower || membership_.closing() || !overdue_at_) {
      changed_.wait(lock, [&] { return ended() || (duty_ == Duty::kLeader && !membership_.closing() && overdue_at_); });
    } else if (!changed_.wait_until(lock, *overdue_at_, [&] { return ended() || membership_.closing(); })) {
      if (all_follow_) {
        membership_.overdue();
      } else {
        membership_.fail("not every other shard came to take part in the rounds of shard 0");
      }
      overdue_at_ = Deadline::after(policy_.round_timeout_s);
      act(lock);
    }
  }
  return std::move(*waiting.outcome);
}

void Rounds::close_as_told(const RoundMembers& round) {
  Lock lock(mutex_);
  if (duty_ != Duty::kFollower || membership_.closing() || !membership_.failure().empty()) {
    return;
  }
  const bool all_here = std::ranges::all_of(round.members, [&](const RoundMember& member) {
    const auto found = waiting_.find(member);
    return found != waiting_.end() && found->second->round == round.round && !found->second->outcome;
  });
  if (round.round != membership_.open_round() || !all_here) {
    membership_.fail("shard 0 closed round " + std::to_string(round.round) +
                     " with a push that is not here; joining without it would part the shards");
    act(lock);
    return;
  }
  static_cast<void>(membership_.begin_closing());
  set_rate_ = round.set_rate;
  close(lock, round.members, &round);
  tell_leader(lock);  // of the pushes that came early for the next one
}

void Rounds::tell_leader_what_waits() {
  Lock lock(mutex_);
  tell_leader(lock);
}

// Only of the open round: the memory for the next one is there once this one has been made.
void Rounds::tell_leader(Lock& lock) {
  if (membership_.closing() || !membership_.failure().empty()) {
    return;
  }
  const std::uint64_t round = membership_.open_round();
  std::vector<RoundMember> untold;
  bool changes_something = false;
  for (const auto& [who, waiting] : waiting_) {
    if (waiting->round == round && !waiting->outcome && !std::exchange(waiting->told, true)) {
      untold.push_back(who);
      changes_something = changes_something || waiting->record->has_gradient();
    }
  }
  if (untold.empty()) {
    return;
  }
  lock.unlock();
  bool possible = !changes_something || can_be_made();
  for (int retry = 0; !possible && retry < kMemoryRetries; ++retry) {
    sleep_for(kMemoryPause);  // versions that replies still read are about to become free
    possible = can_be_made();
  }
  const ControlKind kind = possible ? ControlKind::kArrived : ControlKind::kCannotMake;
  for (const RoundMember& who : untold) {
    peers_.report(kind, {round, who.rank, who.incarnation});
  }
  lock.lock();
}

void Rounds::end_all(const std::string& why) {
  Lock lock(mutex_);
  membership_.fail(why);
  act(lock);
}

// ---- cuts ----

void Rounds::begin_at(std::uint64_t round, std::optional<double> set_rate) {
  const std::lock_guard lock(mutex_);
  membership_.begin_at(round);
  set_rate_ = set_rate;
}

// While this holds, no round begins to close, so the open round stays the one that was asked for.
bool Rounds::cut_is_due() const { return all_follow_ && !membership_.closing() && cut_at_ == membership_.open_round(); }

void Rounds::wait_until_cut_is_due(Lock& lock, const Deadline& deadline, const Interrupt& interrupt) {
  const auto ended = [&] { return !membership_.failure().empty() && !membership_.closing(); };
  while (!cut_is_due() && !ended()) {
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded, "the snapshot was to be taken before round " +
                                                    std::to_string(cut_at_.value_or(0)) +
                                                    ", which did not come within its timeout; round " +
                                                    std::to_string(membership_.next_round()) + " is open");
    }
    const Deadline next_look = Deadline::after(std::min<Clock::duration>(kInterruptInterval, deadline.left()));
    changed_.wait_until(lock, next_look, [&] { return cut_is_due() || ended(); });
    lock.unlock();
    try {
      interrupt();
    } catch (...) {
      lock.lock();
      throw;
    }
    lock.lock();
  }
}

Clock::duration Rounds::cut(std::uint64_t key, std::optional<std::uint64_t> at_round, const Deadline& deadline,
                            const Interrupt& interrupt) {
  Lock lock(mutex_);
  const std::uint64_t next = membership_.next_round();
  if (at_round && *at_round < next) {
    throw Error(ErrorCode::kConfig, "at_round is " + std::to_string(*at_round) + ", which is past: round " +
                                        std::to_string(next) + " is open; ask for that one or a later one");
  }
  cut_at_ = at_round.value_or(next);
  const auto go_on = [&] {
    cut_at_.reset();
    const Clock::duration held = held_since_ ? now() - *held_since_ : Clock::duration{0};
    held_since_.reset();
    if (duty_ == Duty::kLeader) {
      act(lock);
    }
    return held;
  };
  try {
    wait_until_cut_is_due(lock, deadline, interrupt);
  } catch (...) {
    go_on();
    throw;
  }
  const std::uint64_t round = membership_.open_round();
  const bool ended = !membership_.failure().empty();
  if (ended && at_round && *at_round != round) {
    go_on();
    throw Error(ErrorCode::kRoundAborted,
                "the rounds have ended before round " + std::to_string(*at_round) + ": " + membership_.failure());
  }
  lock.unlock();
  if (duty_ == Duty::kLeader && shards_ > 1 && !ended) {
    peers_.announce_cut({round, key});
  }
  store_.cut_before(round, key);
  lock.lock();
  return go_on();
}

// In this thread alone rounds of a follower close, so the state is that between two rounds.
void Rounds::cut_as_told(const CutRound& cut) {
  {
    const std::lock_guard lock(mutex_);
    if (duty_ != Duty::kFollower || cut.round != membership_.open_round() || !membership_.failure().empty()) {
      return;  // the asker learns that the rounds have ended
    }
  }
  store_.cut_before(cut.round, cut.key);
}

}  // namespace distnet
