// Who waits for whom at a barrier or in finish(), event by event.
#include "check.h"
#include "server/rounds/gathering.h"

namespace {

using namespace distnet;
using Verdicts = std::vector<Gathering::Verdict>;

constexpr GatherKind kBarrier = GatherKind::kBarrier;
constexpr GatherKind kFinish = GatherKind::kFinish;

Gathering::Verdict good(RoundMember who, std::uint64_t number) { return {who, {number, ErrorCode::kNone, "", 0}}; }

// Checks that so many verdicts are there, all of one kind and of one text, and returns the text.
std::string text_of(Gathering& gathering, ErrorCode code, std::size_t count) {
  const Verdicts verdicts = gathering.take_verdicts();
  CHECK_EQUAL(verdicts.size(), count);
  for (const Gathering::Verdict& verdict : verdicts) {
    CHECK(verdict.what.code == code);
    CHECK_EQUAL(verdict.what.text, verdicts.front().what.text);
  }
  return verdicts.empty() ? "" : verdicts.front().what.text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Ranks 0, 1, ... that are present, as incarnations 1, 2, ...
Gathering of(std::uint32_t workers) {
  Gathering gathering(workers);
  for (std::uint32_t rank = 0; rank < workers; ++rank) {
    gathering.came({rank, rank + 1});
  }
  return gathering;
}

}  // namespace

TEST(all_go_on_when_the_last_has_come_and_again_and_again) {
  Gathering gathering = of(2);
  for (std::uint64_t number = 1; number < 4; ++number) {
    gathering.arrived({1, 2}, {number, kBarrier});
    CHECK(gathering.take_verdicts().empty());
    CHECK_EQUAL(gathering.missing(), "rank 0");
    gathering.arrived({0, 1}, {number, kBarrier});
    CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, number), good({1, 2}, number)}));
    CHECK(!gathering.anybody_waits());
    CHECK_EQUAL(gathering.missing(), "");
  }
}

TEST(a_rank_that_has_gone_on_is_waited_for_at_the_next_barrier) {
  Gathering gathering = of(3);
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    gathering.arrived({rank, rank + 1}, {1, kBarrier});
  }
  CHECK_EQUAL(gathering.take_verdicts().size(), 3U);
  gathering.arrived({0, 1}, {2, kBarrier});
  gathering.arrived({1, 2}, {2, kBarrier});
  CHECK(gathering.take_verdicts().empty());
  CHECK_EQUAL(gathering.missing(), "rank 2");
}

TEST(ranks_that_have_yet_to_come_are_waited_for_and_those_that_ended_or_are_excused_are_not) {
  Gathering gathering(4);
  gathering.came({0, 1});
  gathering.came({1, 2});
  gathering.left({1, 2}, SessionEnd::kDone);
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK_EQUAL(gathering.missing(), "ranks 2 and 3 (not connected yet)");
  gathering.came({2, 3});
  CHECK_EQUAL(gathering.missing(), "rank 2, and rank 3 (not connected yet)");
  gathering.excuse(3);
  gathering.excuse(99);
  CHECK(gathering.take_verdicts().empty());
  gathering.left({2, 3}, SessionEnd::kDone);
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 1)}));
}

TEST(an_excused_rank_that_comes_after_all_is_waited_for) {
  Gathering gathering(2);
  gathering.came({0, 1});
  gathering.excuse(1);
  gathering.came({1, 2});
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK(gathering.take_verdicts().empty());
  gathering.excuse(1);
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 1)}));
  gathering.left({1, 2}, SessionEnd::kDied);
  gathering.arrived({0, 1}, {2, kBarrier});
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 2)}));
}

TEST(an_excused_rank_that_pushes_is_waited_for_again) {
  Gathering gathering = of(2);
  gathering.excuse(1);
  CHECK(gathering.an_excused_one_is_here());
  gathering.pushes({1, 1});  // an older session's, heard of late
  CHECK(gathering.an_excused_one_is_here());
  gathering.pushes({1, 2});
  gathering.pushes({7, 1});
  CHECK(!gathering.an_excused_one_is_here());
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK_EQUAL(gathering.missing(), "rank 1");
  gathering.excuse(1);
  gathering.left({1, 2}, SessionEnd::kDied);
  CHECK(!gathering.an_excused_one_is_here());
  gathering.pushes({1, 2});  // its end was heard of first
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 1)}));
}

TEST(a_death_fails_the_gathering_for_all_and_for_who_comes_late_once) {
  for (const GatherKind kind : {kBarrier, kFinish}) {
    for (const SessionEnd how : {SessionEnd::kDied, SessionEnd::kSilent}) {
      Gathering gathering = of(4);
      gathering.arrived({0, 1}, {1, kind});
      gathering.arrived({1, 2}, {1, kind});
      gathering.left({3, 4}, how);
      CHECK(contains(text_of(gathering, ErrorCode::kPeerClosed, 2), "rank 3"));
      gathering.arrived({2, 3}, {1, kind});
      CHECK(contains(text_of(gathering, ErrorCode::kPeerClosed, 1), "rank 3"));
      CHECK(!gathering.anybody_waits());
      for (std::uint32_t rank = 0; rank < 3; ++rank) {
        gathering.arrived({rank, rank + 1}, {2, kind});
      }
      CHECK_EQUAL(text_of(gathering, ErrorCode::kNone, 3), "");
    }
  }
}

TEST(a_death_while_nobody_waits_fails_nothing) {
  Gathering gathering = of(2);
  gathering.left({1, 2}, SessionEnd::kDied);
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 1)}));
}

TEST(the_death_of_a_rank_that_waits_itself_fails_the_others) {
  Gathering gathering = of(3);
  gathering.arrived({0, 1}, {1, kBarrier});
  gathering.arrived({1, 2}, {1, kBarrier});
  gathering.left({0, 1}, SessionEnd::kDied);
  const Verdicts verdicts = gathering.take_verdicts();
  CHECK_EQUAL(verdicts.size(), 1U);
  CHECK(verdicts.front().who == (RoundMember{1, 2}));
  CHECK(contains(verdicts.front().what.text, "rank 0 died while rank 1 waits"));
}

TEST(a_rank_that_gives_up_hears_who_was_missing_and_is_missing_itself) {
  Gathering gathering = of(3);
  gathering.arrived({0, 1}, {1, kBarrier});
  gathering.gave_up({0, 1}, 1);
  CHECK_EQUAL(text_of(gathering, ErrorCode::kDeadlineExceeded, 1), "ranks 1 and 2");
  gathering.gave_up({0, 1}, 1);  // it has had its verdict
  CHECK(gathering.take_verdicts().empty());
  gathering.arrived({1, 2}, {1, kBarrier});
  gathering.arrived({2, 3}, {1, kBarrier});
  CHECK(gathering.take_verdicts().empty());
  CHECK_EQUAL(gathering.missing(), "rank 0");
  gathering.arrived({0, 1}, {2, kBarrier});
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 2), good({1, 2}, 1), good({2, 3}, 1)}));
}

TEST(giving_up_an_older_call_leaves_the_newer_one_alone) {
  Gathering gathering = of(2);
  gathering.arrived({0, 1}, {2, kBarrier});
  gathering.gave_up({0, 1}, 1);
  gathering.gave_up({7, 1}, 2);
  CHECK(gathering.take_verdicts().empty());
  gathering.arrived({1, 2}, {1, kBarrier});
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 2), good({1, 2}, 1)}));
}

TEST(only_the_newest_incarnation_of_a_rank_counts) {
  Gathering gathering = of(2);
  gathering.arrived({1, 2}, {1, kBarrier});
  gathering.came({1, 5});
  CHECK(contains(text_of(gathering, ErrorCode::kFenced, 1), "rank 1"));
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK_EQUAL(gathering.missing(), "rank 1");
  gathering.came({1, 4});  // heard of late, like all that follows of older ones
  gathering.left({1, 2}, SessionEnd::kDied);
  gathering.left({1, 2}, SessionEnd::kDone);
  gathering.gave_up({1, 2}, 1);
  gathering.withdrew({1, 2});
  CHECK(gathering.take_verdicts().empty());
  gathering.arrived({1, 2}, {2, kBarrier});
  CHECK(contains(text_of(gathering, ErrorCode::kFenced, 1), "newer session of rank 1"));
  gathering.arrived({1, 5}, {1, kBarrier});
  CHECK(gathering.take_verdicts() == (Verdicts{good({0, 1}, 1), good({1, 5}, 1)}));
}

TEST(a_rank_that_was_fenced_is_waited_for_until_its_successor_has_come) {
  Gathering gathering = of(2);
  gathering.left({1, 2}, SessionEnd::kFenced);
  gathering.arrived({0, 1}, {1, kBarrier});
  CHECK(gathering.take_verdicts().empty());
  gathering.came({1, 3});
  gathering.arrived({1, 3}, {1, kBarrier});
  CHECK_EQUAL(gathering.take_verdicts().size(), 2U);
}

TEST(a_replacement_has_nothing_to_hear_of_an_older_failure) {
  Gathering gathering = of(3);
  gathering.arrived({0, 1}, {1, kBarrier});
  gathering.left({2, 3}, SessionEnd::kDied);
  CHECK_EQUAL(gathering.take_verdicts().size(), 1U);
  gathering.came({1, 4});
  gathering.came({2, 5});
  for (const RoundMember who : {RoundMember{0, 1}, RoundMember{1, 4}, RoundMember{2, 5}}) {
    gathering.arrived(who, {2, kBarrier});
  }
  CHECK_EQUAL(text_of(gathering, ErrorCode::kNone, 3), "");
}

TEST(a_connection_that_ended_waits_no_more) {
  Gathering gathering = of(2);
  gathering.arrived({0, 1}, {1, kBarrier});
  gathering.withdrew({0, 1});
  gathering.arrived({1, 2}, {1, kBarrier});
  CHECK(gathering.take_verdicts().empty());
  CHECK_EQUAL(gathering.missing(), "rank 0");
}

TEST(a_barrier_and_finish_that_wait_for_each_other_fail_for_all) {
  Gathering gathering = of(3);
  gathering.arrived({0, 1}, {1, kBarrier});
  gathering.arrived({1, 2}, {1, kFinish});
  const std::string text = text_of(gathering, ErrorCode::kRoundAborted, 2);
  CHECK(contains(text, "rank 0 waits at a barrier, and rank 1 waits in finish()"));
  CHECK(!gathering.anybody_waits());
}

TEST(a_barrier_fails_where_a_round_waits_for_one_of_its_ranks) {
  Gathering gathering = of(3);
  gathering.arrived({1, 2}, {1, kBarrier});
  CHECK_EQUAL(gathering.met({7, {0}, {2}}), "");  // the round waits for another
  CHECK_EQUAL(gathering.met({7, {}, {1}}), "");   // nobody waits in it
  CHECK(gathering.take_verdicts().empty());
  const std::string why = gathering.met({7, {0, 2}, {1}});
  CHECK(contains(why, "ranks 0 and 2 wait in round 7 for rank 1, which waits at a barrier"));
  const Verdicts verdicts = gathering.take_verdicts();
  CHECK(verdicts == (Verdicts{{{1, 2}, {1, ErrorCode::kRoundAborted, why, 8}}}));
  CHECK_EQUAL(gathering.met({7, {0, 2}, {1}}), "");
}

TEST(a_rank_in_finish_is_in_no_rounds_way) {
  Gathering gathering = of(2);
  gathering.arrived({1, 2}, {1, kFinish});
  CHECK_EQUAL(gathering.met({7, {0}, {1}}), "");
  CHECK(gathering.anybody_waits());
}

TEST(a_rank_beyond_the_job_is_refused_and_long_lists_are_cut) {
  Gathering gathering(100);
  gathering.came({100, 1});
  gathering.came({0, 2});
  gathering.arrived({100, 1}, {1, kBarrier});
  CHECK(contains(text_of(gathering, ErrorCode::kConfig, 1), "rank 100"));
  gathering.arrived({0, 2}, {1, kBarrier});
  CHECK(contains(gathering.missing(), "15, 16 and 83 others (not connected yet)"));
}
