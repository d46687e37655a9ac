// A client's waits for the other ranks, at a barrier or in finish(): asked of shard 0, one at a time.
//
// Thread safety: the client's thread.
#pragma once

#include <string>

#include "client/link.h"
#include "wire/gathering_messages.h"

namespace distnet {

class Gatherer {
 public:
  explicit Gatherer(Link& shard_0) : link_(shard_0) {}

  // Says that this rank waits from now on. Everything that it pushed is settled by then.
  void arrive(GatherKind kind);
  // Waits for the others, and returns whether all have come before the deadline. Throws Error where the wait has failed
  // for all: kPeerClosed, kRoundAborted; where it failed for this one: kConfig, kFenced; and those of the connection.
  bool wait(const Deadline& deadline, const Interrupt& interrupt);
  // Waits no longer. Throws Error(kDeadlineExceeded), which says who is missing, unless all had come just before, and
  // what wait() throws.
  void leave(const Interrupt& interrupt);
  // The same for a call that was broken off: nobody is told. Waits a moment until shard 0 has heard it.
  void give_up() noexcept;

  // A round that a gathering failed for is past: the next push is for this one or a later one.
  std::uint64_t least_round() const { return least_round_; }

 private:
  static constexpr double kGiveUpSeconds = 2.0;
  static constexpr double kAnswerSeconds = 30.0;

  Link& link_;
  GatherAsk ask_;  // the newest
  bool waits_ = false;
  std::uint64_t least_round_ = 0;
};

}  // namespace distnet
