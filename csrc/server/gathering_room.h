// Where ranks wait for each other, at shard 0: the gathering, with the connections of those who wait, beside the rounds.
//
// A push that waits in a round for a rank, and this rank at a barrier for that push, would wait for ever. Both events
// come through here, whichever is later, and end both waits.
//
// Thread safety: all methods, from any number of threads. No lock is held while a client is told something. The rounds
// may be asked while the lock is held; they call this room under no lock of theirs.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "base/waiting.h"
#include "server/rounds/gathering.h"
#include "server/rounds/rounds.h"
#include "transport/control.h"

namespace distnet {

class GatheringRoom {
 public:
  // `rounds`: null where an update joins one push; outlives the room.
  GatheringRoom(std::uint32_t workers, Rounds* rounds);

  void came(RoundMember who);
  void left(RoundMember who, SessionEnd how);
  void excuse(std::uint32_t rank);
  // A push of the rank comes in. Without a lock unless a rank that is here has been excused.
  void pushes(RoundMember who);

  // The client hears the verdict over this connection.
  void arrive(RoundMember who, const GatherAsk& ask, const std::shared_ptr<ControlConnection>& control);
  void give_up(RoundMember who, std::uint64_t number);
  // The connection has ended: whoever waits over it does so no more.
  void withdraw(RoundMember who, const std::shared_ptr<ControlConnection>& control);
  std::string missing();
  // Why a round ended without an update; empty where this room has not ended it.
  std::string why_aborted(std::uint64_t round);

 private:
  using Lock = std::unique_lock<Mutex>;

  void look_at_rounds();
  void look_at_rounds(Lock& lock);
  void tell_verdicts(Lock& lock);

  Rounds* const rounds_;
  std::atomic<bool> anybody_waits_{false};           // written under the mutex
  std::atomic<bool> an_excused_one_is_here_{false};  // likewise

  Mutex mutex_;  // guards what follows
  Gathering gathering_;
  std::map<RoundMember, std::shared_ptr<ControlConnection>> controls_;  // of those who wait
  std::uint64_t aborted_round_ = 0;                                     // the last that was ended here
  std::string why_aborted_;
};

// One client's part in gatherings, for as long as its connection lasts.
//
// Thread safety: the control loop's thread.
class GatheringGuest {
 public:
  // `room`: null at the shards where nobody gathers.
  GatheringGuest(GatheringRoom* room, RoundMember who, Role role, const std::shared_ptr<ControlConnection>& control)
      : room_(room), who_(who), role_(role), control_(control) {}
  GatheringGuest(const GatheringGuest&) = delete;
  GatheringGuest& operator=(const GatheringGuest&) = delete;
  ~GatheringGuest();

  // Returns false where the message is none about gatherings. Throws Error(kProtocol) on a broken rule.
  bool take(const ControlMessage& message);

 private:
  GatheringRoom& room() const;
  void arrive(const GatherAsk& ask);

  GatheringRoom* const room_;
  const RoundMember who_;
  const Role role_;
  const std::shared_ptr<ControlConnection> control_;
};

}  // namespace distnet
