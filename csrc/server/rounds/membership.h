// Who is in a synchronous round. Shard 0 keeps it.
//
// Rounds are numbered from 0. A rank is in a round when its push has arrived at every shard. The open round waits for
// every rank that is live, or has yet to come, and whose first round has begun. It is over when it waits for nobody and
// at least one push has arrived somewhere; a push that did not arrive everywhere is no part of it.
//
// A value: events come in, verdicts go out. It knows no clock, no thread and no push.
// Thread safety: none; its owner guards it.
//
// Invariants
// - A rank's newest incarnation alone decides whether a round waits for the rank. What is said of an older one, however
//   late, changes nothing but the pushes that the older one had sent.
// - The round that came() returns has not ended, and does not end before the newcomer pushed, left or was overdue.
// - The members of a round are fixed when it begins to close.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "server/policy.h"
#include "wire/control_messages.h"

namespace distnet {

// A round that pushes wait in.
struct OpenRound {
  std::uint64_t round = 0;
  std::vector<std::uint32_t> here;     // ranks whose pushes have arrived somewhere
  std::vector<std::uint32_t> awaited;  // ranks that it waits for
};

class Membership {
 public:
  enum class Verdict : std::uint8_t { kGoOn, kClose, kAbort };

  Membership(OnLoss on_loss, std::uint32_t workers, std::uint32_t shards);

  // The first round is this one. Before all events.
  void begin_at(std::uint64_t round) { open_round_ = round; }

  // ---- events ----
  // A session of the rank begins. Returns the first round that waits for it.
  std::uint64_t came(RoundMember who);
  // The session ended.
  void left(RoundMember who, SessionEnd how);
  // Its push of `round` is at one more shard.
  void arrived(RoundMember who, std::uint64_t round);
  // The open round has waited for as long as the policy lets it.
  void overdue();
  // The rank will not come, or not come again: no round waits for it until it does.
  void excuse(std::uint32_t rank);
  // The rounds cannot go on.
  void fail(const std::string& why);

  // ---- what follows ----
  Verdict verdict() const;
  // Fixes the members of the open round, in rank order.
  std::vector<RoundMember> begin_closing();
  void open_next();

  std::uint64_t open_round() const { return open_round_; }
  // The round that a push which comes now can still be in.
  std::uint64_t next_round() const { return open_round_ + (closing_ ? 1 : 0); }
  bool closing() const { return closing_; }
  bool begun() const { return arrivals_.contains(open_round_); }  // a push of the open round has arrived somewhere
  const std::string& failure() const { return failure_; }         // empty while the rounds go on
  std::vector<std::uint32_t> awaited() const;                     // ranks that the open round waits for
  std::vector<std::uint32_t> here() const;                        // ranks with a push of the open round

 private:
  enum class Standing : std::uint8_t { kExpected, kLive, kStuck, kDone, kLost };
  struct Rank {
    Standing standing = Standing::kExpected;
    std::uint32_t incarnation = 0;
    std::uint64_t first_round = 0;  // the first that waits for this incarnation
    bool excused = false;           // its end is no loss, and rounds do not wait for it
  };

  bool is_complete(std::uint32_t rank) const;
  bool counts(RoundMember who, std::uint32_t shards) const;
  bool waits_for(std::uint32_t number, const Rank& rank) const;

  const OnLoss on_loss_;
  const std::uint32_t shards_;
  std::map<std::uint32_t, Rank> ranks_;
  // How many shards have a push: of the open round, and of the few after it that a shard may be ahead by.
  std::map<std::uint64_t, std::map<RoundMember, std::uint32_t>> arrivals_;
  std::uint64_t open_round_ = 0;
  bool closing_ = false;
  std::string failure_;
};

// A push may be for a round so far ahead of the one that its shard has open.
inline constexpr std::uint64_t kMostRoundsAhead = 16;

}  // namespace distnet
