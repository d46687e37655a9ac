#include "server/rounds/coordinator.h"

#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "wire/gathering_messages.h"

namespace distnet {
namespace {

constexpr double kConnectSeconds = 30.0;  // in which a follower must reach shard 0, and either host answer
constexpr auto kRetryPause = milliseconds{50};
constexpr double kTellSeconds = 1.0;

// Says to the other end why the rounds have ended at this one, and ends the connection.
void say_over(ControlConnection& control, const std::string& why) {
  try {
    control.send(ControlKind::kRoundsOver, encode_text(why), {}, Deadline::after(kTellSeconds));
  } catch (const Error& error) {
    static_cast<void>(error);  // the end of the connection says enough
  }
  control.shutdown();
}

// Throws what the other end has said of the end of the rounds, in its words: all shards give the same reason.
[[noreturn]] void hear_over(const ControlMessage& message) {
  throw Error(ErrorCode::kRoundAborted, decode_text(message.payload));
}

// Why the rounds end at this shard with the conversation that threw this.
std::string why_over(const std::exception& error, std::uint32_t shard) {
  const auto* const known = dynamic_cast<const Error*>(&error);
  if (known != nullptr && known->code() == ErrorCode::kRoundAborted) {
    return known->what();
  }
  return "the connection of shard " + std::to_string(shard) + " to shard 0 ended: " + error.what();
}

}  // namespace

// ---- shard 0 ----

void RoundLeader::check(const Follow& follow) const {
  const bool other = follow.shard > 0 && follow.shard < shards_;
  if (!other || !secret_.known() || !same(follow.proof, prove(secret_, follow.shard))) {
    throw Error(ErrorCode::kUnauthorized, "only the other shards of this job take part in its rounds");
  }
}

void RoundLeader::admit(const Follow& follow, const std::shared_ptr<ControlConnection>& control, Rounds& rounds) {
  control->stream().give_up_after(kConnectSeconds);
  Writer writer;
  writer.number(rounds.next_round());  // no round closes before all follow, so this one stays open
  control->send(ControlKind::kFollowing, writer.take());
  std::unique_lock lock(mutex_);
  if (why_ended_) {
    throw Error(ErrorCode::kRoundAborted, *why_ended_);
  }
  if (!followers_.emplace(follow.shard, control).second) {
    throw Error(ErrorCode::kProtocol, "shard " + std::to_string(follow.shard) + " follows already");
  }
  const bool all = followers_.size() + 1 == shards_;
  lock.unlock();
  if (all) {
    rounds.all_follow();
  }
}

void RoundLeader::serve(const Follow& follow, const std::shared_ptr<ControlConnection>& control, Rounds& rounds) {
  admit(follow, control, rounds);
  std::string why;
  try {
    while (true) {
      const ControlMessage message = control->receive(Deadline::forever());
      if (message.kind == ControlKind::kRoundsOver) {
        hear_over(message);
      }
      const RoundEvent event = RoundEvent::decode(message.payload);
      if (message.kind == ControlKind::kArrived) {
        rounds.arrived_elsewhere(event);
      } else if (message.kind == ControlKind::kGone) {
        rounds.gone_elsewhere(event);
      } else if (message.kind == ControlKind::kCannotMake) {
        rounds.cannot_be_made_elsewhere(event);
      } else {
        throw Error(ErrorCode::kProtocol, "a shard sent a message that is none of a follower's");
      }
    }
  } catch (const std::exception& error) {
    why = why_over(error, follow.shard);
  }
  rounds.end_all(why);
}

void RoundLeader::announce(const RoundMembers& round) { tell_followers(ControlKind::kCloseRound, round.encode()); }

void RoundLeader::announce_cut(const CutRound& cut) { tell_followers(ControlKind::kCutRound, cut.encode()); }

void RoundLeader::tell_followers(ControlKind kind, const std::vector<std::byte>& message) {
  std::vector<std::shared_ptr<ControlConnection>> followers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [shard, control] : followers_) {
      followers.push_back(control);
    }
  }
  for (const auto& follower : followers) {
    try {
      follower->send(kind, message);
    } catch (const Error&) {
      follower->shutdown();  // the thread that serves it ends the rounds
    }
  }
}

void RoundLeader::rounds_ended(const std::string& why) {
  std::vector<std::shared_ptr<ControlConnection>> followers;
  {
    const std::lock_guard lock(mutex_);
    why_ended_ = why;
    for (const auto& [shard, control] : followers_) {
      followers.push_back(control);
    }
  }
  for (const auto& follower : followers) {
    say_over(*follower, why);
  }
  listener_.rounds_ended(why);
}

// ---- the others ----

RoundFollower::~RoundFollower() { stop(); }

void RoundFollower::start(const Address& leader, Rounds& rounds) {
  thread_ = Thread("follows shard 0", [this, leader, &rounds] { follow(leader, rounds); });
}

bool RoundFollower::stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

std::shared_ptr<ControlConnection> RoundFollower::connect(const Address& leader, const Interrupt& until_stop) const {
  const Deadline deadline = Deadline::after(kConnectSeconds);
  while (true) {
    try {
      auto control = std::make_shared<ControlConnection>(Stream::connect(leader, deadline, until_stop));
      control->stream().give_up_after(kConnectSeconds);
      control->send(ControlKind::kFollow, Follow{shard_, prove(secret_, shard_)}.encode());
      return control;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kConnect || deadline.expired()) {
        throw;
      }
    }
    until_stop();
    sleep_for(kRetryPause);  // shard 0 may not listen yet
  }
}

void RoundFollower::follow(const Address& leader, Rounds& rounds) {
  std::string why;
  try {
    const Interrupt until_stop = [this] {
      if (stopping()) {
        throw Error(ErrorCode::kPeerClosed, "the server stops");
      }
    };
    const std::shared_ptr<ControlConnection> control = connect(leader, until_stop);
    const ControlMessage answer = control->receive(Deadline::after(kConnectSeconds), until_stop);
    Reader reader(answer.payload);
    if (answer.kind != ControlKind::kFollowing) {
      throw Error(ErrorCode::kProtocol, "shard 0 did not answer a shard that follows");
    }
    rounds.follow_from(reader.number<std::uint64_t>());
    std::optional<std::string> over;
    {
      const std::lock_guard lock(mutex_);
      leader_ = control;
      over = stopping_ ? why_ended_.value_or("the server stops") : why_ended_;
      changed_.notify_all();
    }
    if (over) {
      say_over(*control, *over);
    }
    rounds.tell_leader_what_waits();
    while (true) {
      const ControlMessage message = control->receive(Deadline::forever());
      if (message.kind == ControlKind::kRoundsOver) {
        hear_over(message);
      } else if (message.kind == ControlKind::kCutRound) {
        rounds.cut_as_told(CutRound::decode(message.payload));
      } else if (message.kind == ControlKind::kCloseRound) {
        rounds.close_as_told(RoundMembers::decode(message.payload));
      } else {
        throw Error(ErrorCode::kProtocol, "shard 0 sent a message that is none of a leader's");
      }
    }
  } catch (const std::exception& error) {
    why = why_over(error, shard_);
  }
  rounds.end_all(why);
}

void RoundFollower::report(ControlKind kind, const RoundEvent& event) {
  std::shared_ptr<ControlConnection> leader;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return leader_ != nullptr || why_ended_ || stopping_; });
    leader = leader_;
  }
  if (leader == nullptr) {
    return;  // the rounds are over
  }
  try {
    leader->send(kind, event.encode());
  } catch (const std::exception&) {
    leader->shutdown();  // the thread that hears the leader ends the rounds
  }
}

void RoundFollower::rounds_ended(const std::string& why) {
  std::shared_ptr<ControlConnection> leader;
  {
    const std::lock_guard lock(mutex_);
    why_ended_ = why;
    changed_.notify_all();
    leader = leader_;
  }
  if (leader != nullptr) {
    say_over(*leader, why);
  }
  listener_.rounds_ended(why);
}

void RoundFollower::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    if (leader_) {
      leader_->shutdown();
    }
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

}  // namespace distnet
