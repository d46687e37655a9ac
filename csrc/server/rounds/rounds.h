// Synchronous rounds: an update joins one push of every member, in rank order.
//
// Rounds are numbered from 0; a push names the round it is for, so a fast worker cannot pass one twice. Ranks are
// 0 … workers-1 and the first round waits for all of them; a rank that finishes or dies leaves later rounds (shrink),
// keeps them waiting (wait) or ends them (abort). A live rank that keeps a round open longer than the round deadline is
// treated as lost for that round; its late push is refused by name, and it is a member again from the round then open.
//
// Several shards: shard 0 leads. A rank is a member of a round when its push has arrived at every shard; the others
// report arrivals and losses to shard 0 and apply what it announces, so that all shards join the same pushes. Where one
// shard gives the rounds up, all do.
//
// A round that nobody can complete any more (a worker died between two shards) ends without members: its pushes are
// refused, and the next one opens.
//
// Thread safety: all methods, from any number of threads. `mutex_` is not held while the update is applied.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "base/time.h"
#include "server/in_flight.h"
#include "server/policy.h"

namespace distnet {

struct RoundsHooks {
  // Applies the members' gradients joined as they come, in rank order; on return all are visible and settled.
  std::function<void(const std::vector<PushRecord*>& members)> apply;
  std::function<Pin()> pin;
  // Leader: tells the other shards. Followers: tell the leader. Never called under the mutex.
  std::function<void(const RoundMembers&)> announce;
  std::function<void(ControlKind, const RoundEvent&)> report;
  // Tells the other shards that the rounds are over, by ending the connections to them. Once, not under the mutex.
  std::function<void()> part;
};

class Rounds {
 public:
  enum class Part : std::uint8_t { kLeader, kFollower };

  Rounds(const UpdatePolicy& policy, Part part, std::uint32_t shards, RoundsHooks hooks);

  std::uint64_t open_round() const;
  // The round that this rank's next push is for: after the open one where an earlier session of the rank is in that.
  std::uint64_t next_round(std::uint32_t rank) const;

  // Throws Error(kConfig) on a rank out of range or one that is connected already.
  void rank_came(std::uint32_t rank);
  void rank_left(std::uint32_t rank, SessionEnd how);

  // Takes part in the open round with this push and waits for its end. The record is settled when it returns.
  RoundOutcome take_part(PushRecord& record);

  // From the other shards.
  void arrived_elsewhere(const RoundEvent& event);
  void gone_elsewhere(const RoundEvent& event);
  void close_as_told(const RoundMembers& members);

  bool aborted() const;
  // Every push that waits, and every later one, is refused; also at the other shards.
  void abort_all();

 private:
  enum class Standing : std::uint8_t { kExpected, kLive, kStuck, kDone, kLost };
  struct Rank {
    Standing standing = Standing::kExpected;
    bool connected = false;        // a session of this rank is here
    bool sits_out = false;         // … whose pushes begin with the round after the open one
    PushRecord* record = nullptr;  // its push of the open round, here
    std::uint32_t arrivals = 0;    // shards at which its push of the open round has arrived
  };

  using Lock = std::unique_lock<std::mutex>;
  bool round_waits_for(const Rank& rank) const;
  bool nobody_is_awaited() const;
  bool anybody_arrived() const;
  std::vector<std::uint32_t> complete_ranks() const;
  void close_if_over(Lock& lock);
  void close(Lock& lock, const std::vector<std::uint32_t>& members);
  void end(Rank& rank, RoundOutcome outcome) const;
  void refuse_open(Rank& rank);
  void open_next_round();
  void wait_for_turn(Lock& lock, Rank& rank, const PushRecord& record);
  void give_up_on_stuck(Lock& lock);
  void lose(Lock& lock, Rank& rank, SessionEnd how);
  void abort(Lock& lock);

  const UpdatePolicy policy_;
  const Part part_;
  const std::uint32_t shards_;
  const RoundsHooks hooks_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, Rank> ranks_;
  std::map<std::uint64_t, std::map<std::uint32_t, std::uint32_t>> early_arrivals_;  // of rounds not open yet, elsewhere
  std::uint64_t open_round_ = 0;
  bool closing_ = false;
  bool aborted_ = false;
  bool timing_ = false;  // the open round has its first push
  Deadline round_deadline_ = Deadline::after(0);
};

}  // namespace distnet
