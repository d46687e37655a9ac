// Ranks that wait for each other: at a barrier, or in finish(). Shard 0 keeps it, in every semantics.
//
// A gathering is over when every rank that it waits for has arrived. It waits for the ranks 0 to workers - 1: for those
// that are present and for those that have yet to come, but not for a rank that has ended or is excused. Where a rank
// dies while others wait, it fails for all. A rank that arrives only after that fails once, too, so that its calls
// stay in step with those of the others. A rank that stops waiting (its own timeout, Ctrl-C) is missing again: the
// gathering goes on, and the rank may arrive anew.
//
// A value: events come in, verdicts go out. It knows no clock, no thread and no connection.
// Thread safety: none; its owner guards it.
//
// Invariants
// - A rank's newest incarnation alone counts. What is said of an older one, however late, changes nothing.
// - An arrival gets one verdict, and is forgotten with it: it counts for one gathering and for no later one.
// - All who wait for a gathering get their verdicts at once.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/rounds/membership.h"
#include "wire/gathering_messages.h"

namespace distnet {

class Gathering {
 public:
  struct Verdict {
    RoundMember who;
    GatherVerdict what;
    bool operator==(const Verdict&) const = default;
  };

  explicit Gathering(std::uint32_t workers) : ranks_(workers) {}

  // ---- events ----
  // A session of the rank begins.
  void came(RoundMember who);
  // The session ended.
  void left(RoundMember who, SessionEnd how);
  // The rank will not come, or not come again: nobody waits for it until it comes, pushes or arrives.
  void excuse(std::uint32_t rank);
  // The rank pushes: it is there after all, where it was excused.
  void pushes(RoundMember who);
  void arrived(RoundMember who, const GatherAsk& ask);
  // Its call `number` waits no longer. The verdict says who was missing, unless the call has had its own already.
  void gave_up(RoundMember who, std::uint64_t number);
  // The connection that it said so over has ended.
  void withdrew(RoundMember who);
  // Pushes wait in this round. Where they wait for a rank that waits for them at a barrier, the barrier fails for all,
  // and the round is to be given up. Returns why, or an empty text where it is not so.
  std::string met(const OpenRound& round);

  // ---- what follows ----
  std::vector<Verdict> take_verdicts() { return std::exchange(verdicts_, {}); }
  bool anybody_waits() const { return !waiting_.empty(); }
  bool an_excused_one_is_here() const;
  std::string missing() const;  // whom those who wait are waiting for: empty where nobody waits

 private:
  enum class Standing : std::uint8_t { kExpected, kPresent, kEnded };
  struct Rank {
    Standing standing = Standing::kExpected;
    std::uint32_t incarnation = 0;
    bool excused = false;
    std::string failed_before;  // why the gathering failed that it has not arrived at; empty: it has nothing to hear
  };

  bool is_newest(RoundMember who) const;
  bool is_missing(std::uint32_t rank) const;
  void tell(RoundMember who, std::uint64_t number, ErrorCode code, const std::string& text);
  void tell_all(ErrorCode code, const std::string& text, std::uint64_t round = 0);
  void fail_for_death_of(std::uint32_t rank, SessionEnd how);
  void look_whether_all_are_here();
  void look_whether_all_wait_at_the_same();

  std::vector<Rank> ranks_;
  std::map<std::uint32_t, GatherAsk> waiting_;  // by rank
  std::vector<Verdict> verdicts_;
};

}  // namespace distnet
