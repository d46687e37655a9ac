// Who is in a round, event by event.
#include "check.h"
#include "server/rounds/membership.h"

namespace {

using namespace distnet;
using Verdict = Membership::Verdict;
using Members = std::vector<RoundMember>;

constexpr std::uint32_t kShards = 2;

// A push of the round is at every shard.
void push(Membership& membership, RoundMember who, std::uint64_t round) {
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    membership.arrived(who, round);
  }
}

Members close(Membership& membership) {
  CHECK(membership.verdict() == Verdict::kClose);
  const Members members = membership.begin_closing();
  membership.open_next();
  return members;
}

}  // namespace

TEST(the_first_round_waits_for_ranks_that_have_yet_to_come) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  CHECK_EQUAL(membership.came({0, 1}), 0U);
  push(membership, {0, 1}, 0);
  CHECK(membership.verdict() == Verdict::kGoOn);
  CHECK(membership.awaited() == std::vector<std::uint32_t>{1});
  CHECK_EQUAL(membership.came({1, 2}), 0U);
  push(membership, {1, 2}, 0);
  CHECK(close(membership) == (Members{{0, 1}, {1, 2}}));
}

TEST(a_push_is_in_a_round_only_where_it_is_at_every_shard) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  push(membership, {0, 1}, 0);
  membership.arrived({1, 2}, 0);
  CHECK(membership.verdict() == Verdict::kGoOn);
  membership.left({1, 2}, SessionEnd::kDied);
  CHECK(close(membership) == (Members{{0, 1}}));
}

TEST(a_rank_that_joins_while_a_round_closes_is_waited_for_from_the_next) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  membership.left({1, 2}, SessionEnd::kDone);
  push(membership, {0, 1}, 0);
  CHECK(membership.verdict() == Verdict::kClose);
  CHECK(membership.begin_closing() == (Members{{0, 1}}));
  CHECK_EQUAL(membership.came({1, 3}), 1U);
  membership.open_next();
  push(membership, {0, 1}, 1);
  CHECK(membership.verdict() == Verdict::kGoOn);
  push(membership, {1, 3}, 1);
  CHECK(close(membership) == (Members{{0, 1}, {1, 3}}));
}

TEST(a_rank_that_joins_an_open_round_is_waited_for_in_it) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  membership.left({1, 2}, SessionEnd::kDone);
  membership.arrived({0, 1}, 0);
  CHECK_EQUAL(membership.came({1, 3}), 0U);
  membership.arrived({0, 1}, 0);
  CHECK(membership.verdict() == Verdict::kGoOn);
}

TEST(what_is_heard_late_of_an_older_incarnation_changes_nothing) {
  for (const OnLoss on_loss : {OnLoss::kShrink, OnLoss::kWait, OnLoss::kAbort}) {
    for (const SessionEnd how : {SessionEnd::kDone, SessionEnd::kDied, SessionEnd::kSilent}) {
      Membership membership(on_loss, 2, kShards);
      membership.came({0, 1});
      membership.came({1, 2});
      membership.left({1, 2}, SessionEnd::kDone);
      membership.came({1, 3});
      membership.left({1, 2}, how);  // as another shard reports it
      push(membership, {0, 1}, 0);
      CHECK(membership.verdict() == Verdict::kGoOn);
      push(membership, {1, 3}, 0);
      CHECK(close(membership) == (Members{{0, 1}, {1, 3}}));
    }
  }
}

TEST(a_session_that_was_fenced_is_not_lost) {
  Membership membership(OnLoss::kAbort, 1, kShards);
  membership.came({0, 1});
  membership.left({0, 1}, SessionEnd::kFenced);
  CHECK(membership.verdict() != Verdict::kAbort);
  membership.came({0, 2});
  push(membership, {0, 2}, 0);
  CHECK(close(membership) == (Members{{0, 2}}));
}

TEST(a_newcomer_goes_on_after_half_a_push_of_the_one_before_it) {
  Membership membership(OnLoss::kWait, 1, kShards);
  membership.came({0, 1});
  membership.arrived({0, 1}, 0);
  membership.left({0, 1}, SessionEnd::kDied);
  CHECK(membership.verdict() == Verdict::kGoOn);  // on_loss waits for the rank
  CHECK_EQUAL(membership.came({0, 2}), 1U);
  CHECK(close(membership).empty());
  push(membership, {0, 2}, 1);
  CHECK(close(membership) == (Members{{0, 2}}));
}

TEST(of_two_pushes_of_one_rank_the_newer_incarnations_counts) {
  Membership membership(OnLoss::kShrink, 1, kShards);
  membership.came({0, 1});
  membership.left({0, 1}, SessionEnd::kDied);
  CHECK_EQUAL(membership.came({0, 2}), 0U);
  push(membership, {0, 1}, 0);  // heard of late
  membership.arrived({0, 2}, 0);
  membership.arrived({0, 2}, 0);
  CHECK(close(membership) == (Members{{0, 2}}));
}

TEST(a_round_that_was_promised_to_a_newcomer_does_not_close_on_the_push_of_the_one_before_it) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  push(membership, {1, 2}, 0);
  CHECK_EQUAL(membership.came({0, 3}), 0U);
  push(membership, {0, 1}, 0);  // it was still arriving when its session was fenced
  CHECK(membership.verdict() == Verdict::kGoOn);
  push(membership, {0, 3}, 0);
  CHECK(close(membership) == (Members{{0, 3}, {1, 2}}));
}

TEST(a_worker_that_took_its_leave_of_shard_0_and_died_before_the_next_is_done) {
  for (const OnLoss on_loss : {OnLoss::kShrink, OnLoss::kWait, OnLoss::kAbort}) {
    Membership membership(on_loss, 2, kShards);
    membership.came({0, 1});
    membership.came({1, 2});
    membership.left({1, 2}, SessionEnd::kDone);
    membership.left({1, 2}, SessionEnd::kDied);
    push(membership, {0, 1}, 0);
    CHECK(close(membership) == (Members{{0, 1}}));
  }
}

TEST(the_policy_decides_what_a_loss_means) {
  for (const OnLoss on_loss : {OnLoss::kShrink, OnLoss::kWait, OnLoss::kAbort}) {
    Membership membership(on_loss, 2, kShards);
    membership.came({0, 1});
    membership.came({1, 2});
    push(membership, {0, 1}, 0);
    membership.left({1, 2}, SessionEnd::kDied);
    const Verdict expected = on_loss == OnLoss::kShrink  ? Verdict::kClose
                             : on_loss == OnLoss::kAbort ? Verdict::kAbort
                                                         : Verdict::kGoOn;
    CHECK(membership.verdict() == expected);
  }
}

TEST(an_overdue_rank_is_left_behind_and_waited_for_again_once_it_pushes) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  push(membership, {0, 1}, 0);
  membership.overdue();
  CHECK(close(membership) == (Members{{0, 1}}));
  push(membership, {0, 1}, 1);
  CHECK(close(membership) == (Members{{0, 1}}));
  membership.arrived({1, 2}, 0);  // its late push is refused, but it is back
  push(membership, {0, 1}, 2);
  CHECK(membership.verdict() == Verdict::kGoOn);
  push(membership, {1, 2}, 2);
  CHECK(close(membership) == (Members{{0, 1}, {1, 2}}));
}

TEST(a_shard_that_is_ahead_by_a_round_is_heard) {
  Membership membership(OnLoss::kShrink, 1, kShards);
  membership.came({0, 1});
  push(membership, {0, 1}, 0);
  CHECK(membership.verdict() == Verdict::kClose);
  static_cast<void>(membership.begin_closing());
  membership.arrived({0, 1}, 1);  // the other shard has closed round 0 already
  membership.open_next();
  membership.arrived({0, 1}, 1);
  CHECK(close(membership) == (Members{{0, 1}}));
}

TEST(a_rank_that_is_excused_is_not_waited_for_until_it_comes) {
  for (const OnLoss on_loss : {OnLoss::kShrink, OnLoss::kWait, OnLoss::kAbort}) {
    Membership membership(on_loss, 2, kShards);
    membership.came({0, 1});
    push(membership, {0, 1}, 0);
    CHECK(membership.verdict() == Verdict::kGoOn);
    membership.excuse(1);
    membership.excuse(9);  // no rank of this job
    CHECK(close(membership) == (Members{{0, 1}}));
    CHECK_EQUAL(membership.came({1, 2}), 1U);
    push(membership, {0, 1}, 1);
    CHECK(membership.awaited() == std::vector<std::uint32_t>{1});
  }
}

TEST(the_end_of_a_rank_that_is_excused_is_no_loss) {
  for (const OnLoss on_loss : {OnLoss::kShrink, OnLoss::kWait, OnLoss::kAbort}) {
    Membership membership(on_loss, 2, kShards);
    membership.came({0, 1});
    membership.came({1, 2});
    push(membership, {0, 1}, 0);
    membership.excuse(1);
    membership.left({1, 2}, SessionEnd::kDied);
    CHECK(close(membership) == (Members{{0, 1}}));
  }
}

TEST(a_rank_that_was_excused_and_pushes_is_waited_for_again) {
  Membership membership(OnLoss::kShrink, 2, kShards);
  membership.came({0, 1});
  membership.came({1, 2});
  membership.excuse(1);
  push(membership, {1, 2}, 0);
  push(membership, {0, 1}, 0);
  CHECK(membership.here() == (std::vector<std::uint32_t>{0, 1}));
  CHECK(close(membership) == (Members{{0, 1}, {1, 2}}));
  push(membership, {0, 1}, 1);
  CHECK(membership.verdict() == Verdict::kGoOn);
}

TEST(rounds_far_ahead_and_ranks_out_of_range_leave_no_trace) {
  Membership membership(OnLoss::kShrink, 1, kShards);
  membership.came({0, 1});
  membership.arrived({0, 1}, 1'000'000);
  membership.arrived({9, 9}, 0);
  membership.left({9, 9}, SessionEnd::kDied);
  CHECK(!membership.begun());
  CHECK(membership.verdict() == Verdict::kGoOn);
}
