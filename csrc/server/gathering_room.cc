#include "server/gathering_room.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

// A verdict is small: a client that it does not reach reads nothing. The thread that tells all the others is that of
// one session, which must not fall silent meanwhile; its timeout is at least a second.
constexpr double kTellSeconds = 0.5;       // in which all of them hear it
constexpr milliseconds kLeastForEach{50};  // also where others, which read nothing, have used up that time

void tell(ControlConnection& control, const GatherVerdict& verdict, const Deadline& deadline) {
  try {
    control.send(ControlKind::kGathered, verdict.encode(), {}, deadline);
  } catch (const Error&) {
    control.shutdown();  // it would wait for ever for what it cannot hear
  }
}

}  // namespace

GatheringRoom::GatheringRoom(std::uint32_t workers, Rounds* rounds) : rounds_(rounds), gathering_(workers) {
  if (rounds_ != nullptr) {
    rounds_->when_pushes_wait([this] { look_at_rounds(); });
  }
}

void GatheringRoom::came(RoundMember who) {
  Lock lock(mutex_);
  gathering_.came(who);
  tell_verdicts(lock);
}

void GatheringRoom::left(RoundMember who, SessionEnd how) {
  Lock lock(mutex_);
  gathering_.left(who, how);
  tell_verdicts(lock);
}

void GatheringRoom::excuse(std::uint32_t rank) {
  Lock lock(mutex_);
  gathering_.excuse(rank);
  tell_verdicts(lock);
}

// Relaxed: a push that begins at the moment of excuse() may count as one before it.
void GatheringRoom::pushes(RoundMember who) {
  if (an_excused_one_is_here_.load(std::memory_order_relaxed)) {
    Lock lock(mutex_);
    gathering_.pushes(who);
    tell_verdicts(lock);
  }
}

// A rank that finishes leaves the rounds first, for good: those of the others do not wait for it.
void GatheringRoom::arrive(RoundMember who, const GatherAsk& ask, const std::shared_ptr<ControlConnection>& control) {
  if (rounds_ != nullptr && ask.kind == GatherKind::kFinish) {
    rounds_->left(who, SessionEnd::kDone);
  }
  Lock lock(mutex_);
  controls_[who] = control;
  gathering_.arrived(who, ask);
  look_at_rounds(lock);
}

void GatheringRoom::give_up(RoundMember who, std::uint64_t number) {
  Lock lock(mutex_);
  gathering_.gave_up(who, number);
  tell_verdicts(lock);
}

void GatheringRoom::withdraw(RoundMember who, const std::shared_ptr<ControlConnection>& control) {
  Lock lock(mutex_);
  const auto found = controls_.find(who);
  if (found != controls_.end() && found->second == control) {
    controls_.erase(found);
    gathering_.withdrew(who);
    tell_verdicts(lock);
  }
}

std::string GatheringRoom::missing() {
  const std::lock_guard lock(mutex_);
  return gathering_.missing();
}

std::string GatheringRoom::why_aborted(std::uint64_t round) {
  const std::lock_guard lock(mutex_);
  return round == aborted_round_ ? why_aborted_ : "";
}

// A rank that arrives says so before it asks the rounds, and a push is in its round before it asks here. So the later
// of the two sees the other, also where this asks for nothing but the flag.
void GatheringRoom::look_at_rounds() {
  if (anybody_waits_.load(std::memory_order_relaxed)) {  // ordered by the mutex of the rounds, which both have held
    Lock lock(mutex_);
    look_at_rounds(lock);
  }
}

void GatheringRoom::look_at_rounds(Lock& lock) {
  anybody_waits_.store(gathering_.anybody_waits(), std::memory_order_relaxed);
  const std::optional<OpenRound> round = rounds_ != nullptr ? rounds_->open_round() : std::nullopt;
  const std::string why = round ? gathering_.met(*round) : "";
  if (round && !why.empty()) {
    aborted_round_ = round->round;
    why_aborted_ = why;  // before any of its pushes is answered
  }
  tell_verdicts(lock);
  if (round && !why.empty()) {
    rounds_->give_up_round(round->round);
  }
}

void GatheringRoom::tell_verdicts(Lock& lock) {
  anybody_waits_.store(gathering_.anybody_waits(), std::memory_order_relaxed);
  an_excused_one_is_here_.store(gathering_.an_excused_one_is_here(), std::memory_order_relaxed);
  std::vector<std::pair<std::shared_ptr<ControlConnection>, GatherVerdict>> told;
  for (Gathering::Verdict& verdict : gathering_.take_verdicts()) {
    if (const auto found = controls_.find(verdict.who); found != controls_.end()) {
      told.emplace_back(std::move(found->second), std::move(verdict.what));
      controls_.erase(found);
    }
  }
  lock.unlock();
  const Deadline for_all = Deadline::after(kTellSeconds);
  for (const auto& [control, verdict] : told) {
    tell(*control, verdict, Deadline::after(std::max(for_all.remaining(), kLeastForEach)));
  }
}

// ---- one client ----

GatheringGuest::~GatheringGuest() {
  if (room_ != nullptr) {
    room_->withdraw(who_, control_);
  }
}

GatheringRoom& GatheringGuest::room() const {
  if (room_ == nullptr) {
    throw Error(ErrorCode::kProtocol, "ranks wait for each other at shard 0, and this is another shard");
  }
  return *room_;
}

bool GatheringGuest::take(const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kGather:
      arrive(GatherAsk::decode(message.payload));
      return true;
    case ControlKind::kLeaveGathering:
      room().give_up(who_, decode_number(message.payload));
      return true;
    case ControlKind::kAwaited:
      control_->send(ControlKind::kAwaitedReply, encode_text(room().missing()));
      return true;
    case ControlKind::kWhyAborted: {
      const std::uint64_t round = decode_number(message.payload);
      const std::string why = room_ != nullptr ? room_->why_aborted(round) : "";
      control_->send(ControlKind::kWhyAbortedReply, encode_text(why));
      return true;
    }
    default:
      return false;
  }
}

void GatheringGuest::arrive(const GatherAsk& ask) {
  GatheringRoom& at = room();
  if (role_ != Role::kWorker) {
    tell(*control_, {ask.number, ErrorCode::kConfig, "an observer is no rank, and nobody waits for it", 0},
         Deadline::after(kTellSeconds));
    return;
  }
  at.arrive(who_, ask, control_);
}

}  // namespace distnet
