// Who is in one generation of a group, from the first member that comes to the last that goes. A value: an event comes
// in, what others are to hear of it goes out. What it returns goes to all members that are present, unless said
// otherwise.
//
// Thread safety: none; its owner guards it.
//
// Invariants
// - A group is complete once, when all its ranks are there, and never again.
// - A member that is lost before that leaves no trace. Afterwards its loss ends the group.
// - A member that has left in order ends nothing that it has done with: see GroupProgress.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "wire/group_messages.h"

namespace distnet {

// A member that wants in, as the coordinator sees it.
struct Applicant {
  JoinGroup join;
  bool within_host = false;  // it came by a Unix socket
  std::string host;          // where its connection comes from; empty: the coordinator's own
};

class GroupMembership {
 public:
  enum class State : std::uint8_t {
    kForming,
    kComplete,
    kEnding,   // a member has left in order
    kDead,     // a member was lost, or could not go on
    kRefused,  // members contradicted each other before it was complete
  };
  struct Admission {
    enum class Kind : std::uint8_t { kWaits, kFormed, kRefused, kAllRefused };
    Kind kind = Kind::kWaits;
    std::string why;  // the newcomer is refused, or all that are present and the newcomer
  };

  explicit GroupMembership(std::string name) : name_(std::move(name)) {}

  Admission join(const Applicant& applicant);
  // The connection of a member ended without a goodbye. Returns what ends the group; nothing where the member's going
  // changes nothing for the others.
  std::optional<GroupEnd> lost(std::uint32_t rank, const std::string& how);
  // A member leaves in order. Returns what to tell the others; nothing where the group has ended, or never began.
  std::optional<GroupProgress> left(GroupProgress progress);
  // A member cannot go on.
  std::optional<GroupEnd> failed(const GroupEnd& why);

  State state() const { return state_; }
  // Newcomers of its name join this generation, or are refused by it.
  bool takes_newcomers() const { return state_ == State::kForming || state_ == State::kComplete; }
  bool empty() const { return present_.empty(); }
  std::uint32_t size() const { return size_; }
  GroupTransport transport() const;  // once it is complete
  const std::map<std::uint32_t, Applicant>& present() const { return present_; }
  std::vector<std::uint32_t> missing() const;
  std::string missing_text() const;  // whom those that are present wait for; empty where all have come

 private:
  Admission refuse_all(const std::string& why);
  std::string contradiction(const Applicant& newcomer) const;
  std::string impossible() const;
  std::optional<GroupEnd> end(GroupEnd why);

  const std::string name_;
  State state_ = State::kForming;
  std::uint32_t size_ = 0;  // as the first member says
  bool all_within_host_ = true;
  std::map<std::uint32_t, Applicant> present_;  // by rank
};

}  // namespace distnet
