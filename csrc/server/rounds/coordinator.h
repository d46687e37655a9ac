// The shards of a synchronous job keep each other in step: shard 0 leads, the others follow.
//
// A follower connects to shard 0, proves that it is a shard of the job, and learns which round is open. From then on it
// reports which pushes arrived at it and which sessions ended, and hears which round closes with whom. The end of the
// connection ends the rounds on both sides: without one of its shards the model cannot be updated as a whole. Where the
// rounds end at one shard, its last word to the other says why, so that all shards give the same reason.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/threads.h"
#include "base/waiting.h"
#include "server/rounds/rounds.h"
#include "sessions/proof.h"
#include "transport/control.h"

namespace distnet {

// Hears that the rounds of this shard have ended, and why. Called once, under no lock.
class RoundsEnded {
 public:
  virtual ~RoundsEnded() = default;
  virtual void rounds_ended(const std::string& why) = 0;
};

class RoundLeader final : public RoundPeers {
 public:
  RoundLeader(std::uint32_t shards, const JobSecret& secret, RoundsEnded& listener)
      : shards_(shards), secret_(secret), listener_(listener) {}

  // Throws Error(kUnauthorized) unless the peer is another shard of this job.
  void check(const Follow& follow) const;
  // A follower's conversation, on the thread of its connection, from its first message to its end.
  void serve(const Follow& follow, const std::shared_ptr<ControlConnection>& control, Rounds& rounds);

  void announce(const RoundMembers& round) override;
  void announce_cut(const CutRound& cut) override;
  void rounds_ended(const std::string& why) override;

 private:
  void admit(const Follow& follow, const std::shared_ptr<ControlConnection>& control, Rounds& rounds);
  void tell_followers(ControlKind kind, const std::vector<std::byte>& message);

  const std::uint32_t shards_;
  const JobSecret secret_;
  RoundsEnded& listener_;
  Mutex mutex_;
  std::map<std::uint32_t, std::shared_ptr<ControlConnection>> followers_;
  std::optional<std::string> why_ended_;
};

class RoundFollower final : public RoundPeers {
 public:
  RoundFollower(std::uint32_t shard, const JobSecret& secret, RoundsEnded& listener)
      : shard_(shard), secret_(secret), listener_(listener) {}
  RoundFollower(const RoundFollower&) = delete;
  RoundFollower& operator=(const RoundFollower&) = delete;
  ~RoundFollower() override;

  // Begins to follow shard 0 at `leader`, on a thread of its own.
  void start(const Address& leader, Rounds& rounds);
  void stop();

  void report(ControlKind kind, const RoundEvent& event) override;
  void rounds_ended(const std::string& why) override;

 private:
  void follow(const Address& leader, Rounds& rounds);
  std::shared_ptr<ControlConnection> connect(const Address& leader, const Interrupt& until_stop) const;
  bool stopping();

  const std::uint32_t shard_;
  const JobSecret secret_;
  RoundsEnded& listener_;
  Mutex mutex_;
  Condition changed_;
  std::shared_ptr<ControlConnection> leader_;  // null until it has answered
  std::optional<std::string> why_ended_;
  bool stopping_ = false;
  Thread thread_;
};

}  // namespace distnet
