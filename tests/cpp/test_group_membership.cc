// Who is in a group, and in which order its named operations run, event by event.
#include "base/ranks_text.h"
#include "check.h"
#include "group/membership.h"
#include "group/named_order.h"

namespace {

using namespace distnet;
using Kind = GroupMembership::Admission::Kind;
using State = GroupMembership::State;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Applicant applicant(std::uint32_t rank, std::uint32_t size, GroupTransport transport = GroupTransport::kAuto,
                    bool within_host = true) {
  JoinGroup join;
  join.name = "world";
  join.rank = rank;
  join.size = size;
  join.transport = transport;
  return {join, within_host, ""};
}

// A complete group of so many.
GroupMembership of(std::uint32_t size) {
  GroupMembership group("world");
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    CHECK(group.join(applicant(rank, size)).kind == (rank + 1 == size ? Kind::kFormed : Kind::kWaits));
  }
  return group;
}

template <typename Call>
ErrorCode code_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kNone;
}

std::vector<NamedTurn> turns(std::initializer_list<NamedTurn> all) { return all; }

}  // namespace

TEST(a_group_is_complete_when_all_its_ranks_have_come_in_any_order) {
  GroupMembership group("world");
  CHECK(group.join(applicant(2, 3)).kind == Kind::kWaits);
  CHECK_EQUAL(group.missing_text(), "ranks 0 and 1");
  CHECK(group.join(applicant(0, 3)).kind == Kind::kWaits);
  CHECK_EQUAL(group.missing_text(), "rank 1");
  CHECK(group.state() == State::kForming);
  CHECK(group.join(applicant(1, 3)).kind == Kind::kFormed);
  CHECK(group.state() == State::kComplete);
  CHECK_EQUAL(group.missing_text(), "");
}

TEST(a_group_of_one_is_complete_at_once) { CHECK(of(1).state() == State::kComplete); }

TEST(a_second_member_of_a_rank_is_refused_by_name_and_the_group_goes_on) {
  GroupMembership group("world");
  CHECK(group.join(applicant(0, 2)).kind == Kind::kWaits);
  const GroupMembership::Admission twice = group.join(applicant(0, 2));
  CHECK(twice.kind == Kind::kRefused);
  CHECK_EQUAL(twice.why, "rank 0 of group 'world' is here already; give each member a rank of its own");
  CHECK(group.join(applicant(1, 2)).kind == Kind::kFormed);
  const GroupMembership::Admission late = group.join(applicant(1, 2));
  CHECK(late.kind == Kind::kRefused);
  CHECK(contains(late.why, "rank 1 of group 'world'") && contains(late.why, "complete"));
  CHECK(group.state() == State::kComplete);
}

TEST(members_that_say_different_sizes_are_all_refused_with_both_sides) {
  GroupMembership group("world");
  group.join(applicant(0, 2));
  const GroupMembership::Admission admission = group.join(applicant(1, 3));
  CHECK(admission.kind == Kind::kAllRefused);
  CHECK_EQUAL(admission.why,
              "rank 0 of group 'world' says that it has 2 ranks, rank 1 says 3; give all of them the "
              "same size");
  CHECK(!group.takes_newcomers());
  CHECK(!group.lost(0, "it went"));  // they hear of the refusal, and of nothing else
}

TEST(members_that_say_different_transports_are_all_refused) {
  GroupMembership group("world");
  group.join(applicant(0, 2, GroupTransport::kShm));
  const GroupMembership::Admission admission = group.join(applicant(1, 2, GroupTransport::kTcp));
  CHECK(admission.kind == Kind::kAllRefused);
  CHECK(contains(admission.why, "transport='shm', rank 1 says transport='tcp'"));
}

TEST(shared_memory_is_for_members_of_one_host) {
  CHECK(of(3).transport() == GroupTransport::kShm);
  GroupMembership spread("world");
  spread.join(applicant(0, 2));
  CHECK(spread.join(applicant(1, 2, GroupTransport::kAuto, false)).kind == Kind::kFormed);
  CHECK(spread.transport() == GroupTransport::kTcp);
  GroupMembership asked("world");
  asked.join(applicant(0, 2));
  CHECK(asked.join(applicant(1, 2, GroupTransport::kTcp)).kind == Kind::kFormed);
  CHECK(asked.transport() == GroupTransport::kTcp);
  GroupMembership impossible("world");
  impossible.join(applicant(0, 2, GroupTransport::kShm));
  const GroupMembership::Admission admission = impossible.join(applicant(1, 2, GroupTransport::kAuto, false));
  CHECK(admission.kind == Kind::kAllRefused);
  CHECK(contains(admission.why, "rank 0 of group 'world' says transport='shm', but"));
}

TEST(a_mesh_of_streams_has_a_bound) {
  GroupMembership group("world");
  for (std::uint32_t rank = 0; rank < kMostMeshRanks; ++rank) {
    CHECK(group.join(applicant(rank, kMostMeshRanks + 1, GroupTransport::kTcp)).kind == Kind::kWaits);
  }
  const auto admission = group.join(applicant(kMostMeshRanks, kMostMeshRanks + 1));
  CHECK(admission.kind == Kind::kAllRefused);
  CHECK(contains(admission.why, "at most 256"));
}

TEST(a_member_that_goes_while_the_group_forms_leaves_room_for_another) {
  GroupMembership group("world");
  group.join(applicant(0, 2));
  CHECK(!group.lost(0, "its process ended"));
  CHECK(group.empty());
  CHECK(group.join(applicant(1, 2)).kind == Kind::kWaits);
  CHECK_EQUAL(group.missing_text(), "rank 0");
  CHECK(group.join(applicant(0, 2)).kind == Kind::kFormed);
}

TEST(a_lost_member_ends_a_complete_group_once_and_is_named) {
  GroupMembership group = of(3);
  const std::optional<GroupEnd> end = group.lost(1, "its process ended");
  CHECK(end.has_value());
  CHECK_EQUAL(end->rank, 1U);
  CHECK(end->code == ErrorCode::kPeerClosed);
  CHECK_EQUAL(end->text, "rank 1 of group 'world' is gone: its process ended; the group has ended, form a new one");
  CHECK(group.state() == State::kDead);
  CHECK(!group.takes_newcomers());  // a new generation does
  CHECK(!group.lost(2, "its process ended"));
  CHECK(!group.left({0, 1, 1}));
  CHECK(group.empty());
}

TEST(a_member_that_cannot_go_on_ends_the_group_with_its_reason) {
  GroupMembership group = of(2);
  const std::optional<GroupEnd> end = group.failed({1, ErrorCode::kDeadlineExceeded, "it waited for rank 0"});
  CHECK(end.has_value());
  CHECK(end->code == ErrorCode::kPeerClosed);
  CHECK(contains(end->text, "rank 1 of group 'world' cannot go on: it waited for rank 0"));
}

TEST(members_that_leave_in_order_end_nothing_that_they_have_done_with) {
  GroupMembership group = of(3);
  const std::optional<GroupProgress> left = group.left({2, 7, 3});
  CHECK(left == (GroupProgress{2, 7, 3}));
  CHECK(group.state() == State::kEnding);
  CHECK(!group.takes_newcomers());
  CHECK(group.left({0, 7, 3}).has_value());
  CHECK(group.lost(1, "its process ended").has_value());  // others would have to hear it, if there were any
  CHECK(group.empty());
}

// ---- named operations ----

TEST(a_named_operation_has_its_turn_when_all_are_ready_in_any_order) {
  NamedOrder order(2);
  CHECK(order.announced(0, "a").turns.empty());
  CHECK(order.announced(0, "b").turns.empty());
  CHECK_EQUAL(order.awaited_by(0), "operation 'a' waits for rank 1");
  CHECK_EQUAL(order.awaited_by(1), "");
  CHECK(order.announced(1, "b").turns == turns({{1, "b"}}));
  CHECK(order.announced(1, "a").turns == turns({{2, "a"}}));
  CHECK_EQUAL(order.awaited_by(0), "");
}

TEST(a_name_is_under_way_once_on_each_rank_and_free_after_its_turn) {
  NamedOrder order(2);
  order.announced(0, "a");
  CHECK(code_of([&] { order.announced(0, "a"); }) == ErrorCode::kConfig);
  CHECK(order.announced(1, "a").turns == turns({{1, "a"}}));
  CHECK(order.announced(0, "a").turns.empty());  // before rank 1 has done with the first
  CHECK(order.announced(1, "a").turns == turns({{2, "a"}}));
}

TEST(a_rank_that_has_joined_counts_as_ready) {
  NamedOrder order(3);
  order.announced(0, "later");
  order.announced(0, "sooner");
  order.announced(1, "sooner");
  order.announced(1, "later");
  const NamedOrder::Outcome joined = order.joined(2);
  CHECK(joined.turns == turns({{1, "later"}, {2, "sooner"}}));  // the oldest first
  CHECK(!joined.all_joined);
  CHECK(order.announced(1, "next").turns.empty());
  CHECK(order.announced(0, "next").turns == turns({{3, "next"}}));
  CHECK(code_of([&] { order.joined(2); }) == ErrorCode::kProtocol);
}

TEST(once_all_have_joined_the_last_is_named_and_nobody_counts_as_joined) {
  NamedOrder order(2);
  CHECK(!order.joined(1).all_joined);
  const NamedOrder::Outcome all = order.joined(0);
  CHECK(all.all_joined == 0U);
  CHECK(order.announced(0, "a").turns.empty());
  CHECK(order.announced(1, "a").turns == turns({{1, "a"}}));
  CHECK(!order.joined(0).all_joined);
}

TEST(a_rank_that_waits_no_longer_is_told_for_whom_it_waited_unless_its_turn_has_come) {
  NamedOrder order(3);
  order.announced(0, "a");
  order.announced(1, "a");
  CHECK(order.withdrew(0, "a") == std::vector<std::uint32_t>({2}));
  CHECK(!order.withdrew(0, "a"));
  CHECK(order.announced(2, "a").turns.empty());
  CHECK(order.announced(0, "a").turns == turns({{1, "a"}}));
  CHECK(!order.withdrew(1, "a"));
}

// ---- words ----

TEST(ranks_are_named_as_one_says_them) {
  CHECK_EQUAL(ranks_text({}), "no rank");
  CHECK_EQUAL(ranks_text(std::vector<std::uint32_t>{3}), "rank 3");
  CHECK_EQUAL(ranks_text(std::vector<std::uint32_t>{0, 2, 5}), "ranks 0, 2 and 5");
  std::vector<std::uint32_t> many(40);
  CHECK(contains(ranks_text(many), " and 24 others"));
}

TEST(messages_of_groups_are_bounded_and_come_back_as_they_were) {
  JoinGroup join;
  join.name = "world";
  join.rank = 1;
  join.size = 2;
  join.local_name = "distnet-1";
  join.port = 70;
  CHECK(JoinGroup::decode(join.encode()) == join);
  const auto refused = [](const JoinGroup& wrong) {
    return code_of([&] { static_cast<void>(JoinGroup::decode(wrong.encode())); });
  };
  JoinGroup wrong = join;
  wrong.rank = 2;
  CHECK(refused(wrong) == ErrorCode::kConfig);
  wrong = join;
  wrong.size = kMostGroupRanks + 1;
  CHECK(refused(wrong) == ErrorCode::kConfig);
  wrong = join;
  wrong.name = std::string(kMaxGroupNameBytes + 1, 'x');
  CHECK(refused(wrong) == ErrorCode::kProtocol);
  wrong = join;
  wrong.name.clear();
  CHECK(refused(wrong) == ErrorCode::kProtocol);
  wrong = join;
  wrong.timeout_s = 0.0 / 0.0;
  CHECK(refused(wrong) == ErrorCode::kProtocol);
  wrong = join;
  wrong.transport = static_cast<GroupTransport>(3);
  CHECK(refused(wrong) == ErrorCode::kProtocol);
  std::vector<std::byte> cut = join.encode();
  for (std::size_t bytes = 0; bytes < cut.size(); ++bytes) {
    CHECK(code_of([&] { static_cast<void>(JoinGroup::decode(std::span(cut).first(bytes))); }) == ErrorCode::kProtocol);
  }
  GroupFormed formed;
  formed.members = {{"10.0.0.1", 80, ""}, {"", 0, "distnet-2"}};
  CHECK(GroupFormed::decode(formed.encode()).members == formed.members);
  formed.transport = GroupTransport::kAuto;
  CHECK(code_of([&] { static_cast<void>(GroupFormed::decode(formed.encode())); }) == ErrorCode::kProtocol);
  CHECK(GroupProgress::decode(GroupProgress{1, 2, 3}.encode()) == (GroupProgress{1, 2, 3}));
  CHECK(NamedTurn::decode(NamedTurn{4, "a"}.encode()) == (NamedTurn{4, "a"}));
  CHECK(code_of([&] { static_cast<void>(decode_name(encode_name(""))); }) == ErrorCode::kProtocol);
}
