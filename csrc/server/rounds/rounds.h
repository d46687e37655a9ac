// Synchronous rounds at one shard: pushes wait here until the update that joins them is made.
//
// Shard 0 leads: it keeps the membership, decides when a round closes and with whom, and tells the other shards, which
// report what arrives and who is gone, and join exactly the pushes that it names. Where one shard gives the rounds up,
// all do, and every push that waits or comes later is refused.
//
// Invariant: a round that closes with members can be made at every shard. Each has the memory for it before: shard 0
// before it closes the round, another before it reports a push of it. A shard that lacks memory ends that round alone.
//
// Invariant: a push that is refused because the rounds have ended finds the reason in failure(). Its client is told that
// before it is told that the push is refused. Shards hand each other the reason as their last word; two shards that end
// the rounds at the same moment for different causes each keep their own.
//
// A rank that abstains is a member like any other, and brings nothing. A round of abstentions alone, or of those and of
// gradients that were withdrawn, makes no update, and ends without an error. Where a push names a learning rate, that of
// the lowest rank that brought a gradient counts, for this round alone; the leader names it to the other shards. A round
// joins gradients or changes of the parameters, as its lowest rank with either brings; pushes of the other kind are
// refused, at every shard alike.
//
// A live rank that keeps a round open longer than the round deadline is not waited for in that round; its late push is
// refused by name, and it is waited for again from the round then open.
//
// Thread safety: all methods, from any number of threads. The mutex is not held while an update is applied, nor while
// another shard is told.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/pin.h"
#include "base/waiting.h"
#include "server/in_flight.h"
#include "server/policy.h"
#include "server/rounds/membership.h"
#include "wire/snapshot_messages.h"

namespace distnet {

// What rounds ask of their shard.
class RoundStore {
 public:
  virtual ~RoundStore() = default;
  // Takes what the next update needs, so that it cannot fail for want of it. Throws Error where there is no memory.
  virtual void prepare_round() {}
  // Makes one update of the members' gradients, joined in this order, with the learning rates of these settings, where
  // there are some, in place of the one that was set and of the schedule's. On return it is visible and they are settled. One whose
  // gradient holds NaN or infinity is withdrawn instead, takes no part in the update, and is not settled.
  virtual void apply_round(const std::vector<PushRecord*>& members, const PushSettings& settings) = 0;
  virtual Pin pin_newest() = 0;
  // The pushes of a round named different learning rates; `what` says which. At the leader, under no lock.
  virtual void rates_differ(const std::string& what) { static_cast<void>(what); }
  // The learning rate of every update from now on. No update is made meanwhile.
  virtual void use_learning_rate(double learning_rate) { static_cast<void>(learning_rate); }
  // Marks the state as it is now, before round `round`, for the snapshot named by `key`. No update is made meanwhile.
  virtual void cut_before(std::uint64_t round, std::uint64_t key) = 0;
};

// What rounds say to the other shards of the job. Never called under the rounds' mutex; throws nothing.
class RoundPeers {
 public:
  virtual ~RoundPeers() = default;
  virtual void announce(const RoundMembers& round) { static_cast<void>(round); }  // the leader to the others
  // The others to the leader: a push is here, a session ended, or a round cannot be made (whose rank counts for nothing).
  virtual void report(ControlKind kind, const RoundEvent& event) { static_cast<void>(kind), static_cast<void>(event); }
  virtual void rounds_ended(const std::string& why) { static_cast<void>(why); }  // to all, once
  virtual void announce_cut(const CutRound& cut) { static_cast<void>(cut); }     // the leader to the others
};

// How a round ended for one push.
struct RoundOutcome {
  ErrorCode status = ErrorCode::kNone;
  std::uint64_t next_round = 0;  // that the session's next push is for
  Pin pin;                       // of the version that the round made; only where status is kNone
};

class Rounds {
 public:
  enum class Duty : std::uint8_t { kLeader, kFollower };

  Rounds(const UpdatePolicy& policy, Duty duty, std::uint32_t shards, RoundStore& store, RoundPeers& peers);

  // Returns the first round that waits for the session; what counts is what shard 0 returns.
  std::uint64_t came(RoundMember who);
  void left(RoundMember who, SessionEnd how);
  void excuse(std::uint32_t rank);

  // Takes part with this push and waits for the end of its round. The record is settled on return.
  RoundOutcome take_part(PushRecord& record, RoundMember who);

  // The round that a push which comes now can still be in.
  std::uint64_t next_round() const;
  std::vector<std::uint32_t> awaited() const;
  std::string failure() const;  // empty while the rounds go on

  bool leads() const { return duty_ == Duty::kLeader; }

  // ---- beside the rounds, at the leader ----
  // Calls this whenever a push waits in the open round, or has left one; under no lock. Before anything else.
  void when_pushes_wait(std::function<void()> look) { look_ = std::move(look); }
  // The round that is open. Nothing while no push waits in it, while it closes, and before all shards follow.
  std::optional<OpenRound> open_round() const;
  // Ends this round without an update, at all shards: its pushes are refused. Does nothing where it is not open.
  void give_up_round(std::uint64_t round);

  // ---- from the other shards ----
  void arrived_elsewhere(const RoundEvent& event);
  void gone_elsewhere(const RoundEvent& event);
  void cannot_be_made_elsewhere(const RoundEvent& event);
  void close_as_told(const RoundMembers& round);
  // A follower learns from the leader which round is open when it begins to follow.
  void follow_from(std::uint64_t open_round);
  // A follower can reach the leader now: tells it of the pushes that wait.
  void tell_leader_what_waits();
  // The leader closes no round before every other shard follows.
  void all_follow();

  // ---- the learning rate
  // At the leader: the round that closes next, and every later one, has this learning rate, which is checked. The leader
  // names it to the other shards with each round, so all have the same one in the same round.
  void set_learning_rate(double learning_rate);
  // What was set last, as far as this shard has heard; none: the schedule counts.
  std::optional<double> set_rate() const;

  // ---- cuts
  // Rounds begin at this one, in place of 0, with this learning rate. Before anything else.
  void begin_at(std::uint64_t round, std::optional<double> set_rate);
  // The leader has all shards cut before round `at_round` closes, or before the next that can; a follower may be asked
  // only once the rounds have ended, and cuts by itself. Returns for how long a round was kept from closing. Throws
  // Error: kConfig for a round already past, kDeadlineExceeded, kRoundAborted where the rounds end before that one.
  Clock::duration cut(std::uint64_t key, std::optional<std::uint64_t> at_round, const Deadline& deadline,
                      const Interrupt& interrupt);
  void cut_as_told(const CutRound& cut);

  // Every push that waits, and every later one, is refused; also at the other shards.
  void end_all(const std::string& why);

 private:
  static constexpr double kFollowSeconds = 30.0;  // that a push waits for the other shards to take part in rounds

  using Lock = std::unique_lock<Mutex>;
  struct Waiting {
    PushRecord* record = nullptr;
    std::uint64_t round = 0;
    std::optional<RoundOutcome> outcome;
    bool told = false;  // at a follower: shard 0 has been told of it
  };

  void act(Lock& lock);
  void close(Lock& lock, std::vector<RoundMember> members, const RoundMembers* told = nullptr);
  void tell_leader(Lock& lock);
  bool can_be_made() const;
  std::vector<PushRecord*> join(const std::vector<RoundMember>& members) const;
  std::string differing_rates(const std::vector<RoundMember>& members) const;
  void settle_round(const std::vector<RoundMember>& members, bool failed);
  void refuse(Waiting& waiting) const;
  RoundOutcome refusal() const;
  void refuse_all();
  void tell_end(Lock& lock);
  RoundOutcome wait_for_end(Lock& lock, Waiting& waiting);
  bool cut_is_due() const;
  void wait_until_cut_is_due(Lock& lock, const Deadline& deadline, const Interrupt& interrupt);

  const UpdatePolicy policy_;
  const Duty duty_;
  const std::uint32_t shards_;
  RoundStore& store_;
  RoundPeers& peers_;
  std::function<void()> look_ = [] {};

  mutable Mutex mutex_;
  Condition changed_;
  Membership membership_;  // of a follower: only which round is open, and whether it closes
  std::map<RoundMember, Waiting*> waiting_;
  bool all_follow_;
  bool end_told_ = false;
  std::optional<std::uint64_t> given_up_early_;  // the round that another shard cannot make, before all follow
  std::optional<double> set_rate_;               // in place of the schedule's
  std::optional<Deadline> overdue_at_;           // of the open round, once a push has arrived
  std::optional<std::uint64_t> cut_at_;          // the round that does not close before the cut is made
  std::optional<Clock::time_point> held_since_;  // it could have closed
};

}  // namespace distnet
