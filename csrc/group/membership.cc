#include "group/membership.h"

#include "base/ranks_text.h"

namespace distnet {
namespace {

const char* transport_text(GroupTransport transport) { return transport == GroupTransport::kShm ? "shm" : "tcp"; }

}  // namespace

GroupMembership::Admission GroupMembership::join(const Applicant& applicant) {
  const JoinGroup& join = applicant.join;
  const std::string who = "rank " + std::to_string(join.rank) + " of group '" + name_ + "'";
  if (state_ != State::kForming) {
    return {Admission::Kind::kRefused, who + " is refused: the group is complete, and has a rank " +
                                           std::to_string(join.rank) +
                                           "; give another group another name, or wait until this one has ended"};
  }
  if (present_.contains(join.rank)) {
    return {Admission::Kind::kRefused, who + " is here already; give each member a rank of its own"};
  }
  if (const std::string why = contradiction(applicant); !why.empty()) {
    return refuse_all(why);
  }
  size_ = join.size;
  present_.emplace(join.rank, applicant);
  if (present_.size() < size_) {
    return {};
  }
  all_within_host_ = true;
  for (const auto& [rank, member] : present_) {
    all_within_host_ = all_within_host_ && member.within_host;
  }
  if (const std::string why = impossible(); !why.empty()) {
    return refuse_all(why);
  }
  state_ = State::kComplete;
  return {Admission::Kind::kFormed, ""};
}

GroupMembership::Admission GroupMembership::refuse_all(const std::string& why) {
  state_ = State::kRefused;
  return {Admission::Kind::kAllRefused, why};
}

// What two members say differently.
std::string GroupMembership::contradiction(const Applicant& newcomer) const {
  for (const auto& [rank, member] : present_) {
    const std::string between = "rank " + std::to_string(rank) + " of group '" + name_ + "' says ";
    const std::string and_rank = ", rank " + std::to_string(newcomer.join.rank) + " says ";
    if (member.join.size != newcomer.join.size) {
      return between + "that it has " + std::to_string(member.join.size) + " ranks" + and_rank +
             std::to_string(newcomer.join.size) + "; give all of them the same size";
    }
    const GroupTransport one = member.join.transport;
    const GroupTransport other = newcomer.join.transport;
    if (one != GroupTransport::kAuto && other != GroupTransport::kAuto && one != other) {
      return between + "transport='" + transport_text(one) + "'" + and_rank + "transport='" + transport_text(other) +
             "'; give all of them the same, or 'auto'";
    }
  }
  return "";
}

// Why the members that have come cannot be a group.
std::string GroupMembership::impossible() const {
  for (const auto& [rank, member] : present_) {
    if (member.join.transport == GroupTransport::kShm && !all_within_host_) {
      return "rank " + std::to_string(rank) + " of group '" + name_ +
             "' says transport='shm', but not all members are on the coordinator's host; use 'tcp' or 'auto'";
    }
  }
  if (transport() == GroupTransport::kTcp && size_ > kMostMeshRanks) {
    return "group '" + name_ + "' has " + std::to_string(size_) + " ranks; over TCP a group has at most " +
           std::to_string(kMostMeshRanks);
  }
  return "";
}

GroupTransport GroupMembership::transport() const {
  if (!all_within_host_) {
    return GroupTransport::kTcp;
  }
  for (const auto& [rank, member] : present_) {
    if (member.join.transport == GroupTransport::kTcp) {
      return GroupTransport::kTcp;
    }
  }
  return GroupTransport::kShm;
}

std::optional<GroupEnd> GroupMembership::lost(std::uint32_t rank, const std::string& how) {
  return end({rank, ErrorCode::kPeerClosed,
              "rank " + std::to_string(rank) + " of group '" + name_ + "' is gone: " + how +
                  "; the group has ended, form a new one"});
}

std::optional<GroupEnd> GroupMembership::failed(const GroupEnd& why) {
  return end({why.rank, ErrorCode::kPeerClosed,
              "rank " + std::to_string(why.rank) + " of group '" + name_ + "' cannot go on: " + why.text +
                  "; the group has ended, form a new one"});
}

std::optional<GroupEnd> GroupMembership::end(GroupEnd why) {
  present_.erase(why.rank);
  if (state_ != State::kComplete && state_ != State::kEnding) {
    return std::nullopt;
  }
  state_ = State::kDead;
  return why;
}

std::optional<GroupProgress> GroupMembership::left(GroupProgress progress) {
  present_.erase(progress.rank);
  if (state_ == State::kComplete) {
    state_ = State::kEnding;
  }
  return state_ == State::kEnding ? std::optional(progress) : std::nullopt;
}

std::vector<std::uint32_t> GroupMembership::missing() const {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t rank = 0; state_ == State::kForming && rank < size_; ++rank) {
    if (!present_.contains(rank)) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

std::string GroupMembership::missing_text() const {
  const std::vector<std::uint32_t> ranks = missing();
  return ranks.empty() ? "" : ranks_text(ranks);
}

}  // namespace distnet
