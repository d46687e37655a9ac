#include "server/rounds/coordinator.h"

#include <vector>

#include "base/error.h"
#include "base/threads.h"

namespace distnet {
namespace {

constexpr double kConnectSeconds = 30.0;  // in which a follower must reach shard 0, and either host answer
constexpr auto kRetryPause = milliseconds{50};

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
  if (ended_) {
    throw Error(ErrorCode::kRoundAborted, "the rounds are over");
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
  std::string why = "it left";
  try {
    while (true) {
      const ControlMessage message = control->receive(Deadline::forever());
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
    why = error.what();
  }
  rounds.end_all("the connection of shard " + std::to_string(follow.shard) + " to shard 0 ended: " + why);
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
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    for (const auto& [shard, control] : followers_) {
      control->shutdown();
    }
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
    bool over = false;
    {
      const std::lock_guard lock(mutex_);
      leader_ = control;
      over = ended_ || stopping_;
      changed_.notify_all();
    }
    if (over) {
      control->shutdown();
    }
    rounds.tell_leader_what_waits();
    while (true) {
      const ControlMessage message = control->receive(Deadline::forever());
      if (message.kind == ControlKind::kCutRound) {
        rounds.cut_as_told(CutRound::decode(message.payload));
      } else if (message.kind == ControlKind::kCloseRound) {
        rounds.close_as_told(RoundMembers::decode(message.payload));
      } else {
        throw Error(ErrorCode::kProtocol, "shard 0 sent a message that is none of a leader's");
      }
    }
  } catch (const std::exception& error) {
    why = error.what();
  }
  rounds.end_all("the connection of shard " + std::to_string(shard_) + " to shard 0 ended: " + why);
}

void RoundFollower::report(ControlKind kind, const RoundEvent& event) {
  std::shared_ptr<ControlConnection> leader;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return leader_ != nullptr || ended_ || stopping_; });
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
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
    if (leader_) {
      leader_->shutdown();
    }
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
