// Rounds by themselves: the hooks stand in for the store and for the other shards.
#include <atomic>
#include <deque>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "server/metrics.h"
#include "server/rounds/rounds.h"

namespace {

using namespace distnet;

constexpr float kGradient = 1.0F;

struct Shards {
  UpdatePolicy policy;
  Statistics statistics;
  std::atomic<int> applied{0};  // members of all updates
  std::atomic<int> parted{0};
  std::atomic<int> announced{0};
  bool apply_fails = false;
  RoundsHooks hooks() {
    return {[this](const std::vector<PushRecord*>& members) {
              if (apply_fails) {
                throw Error(ErrorCode::kConfig, "no memory");
              }
              applied += static_cast<int>(members.size());
              for (PushRecord* const member : members) {
                member->on_applied(0);
              }
            },
            [] { return Pin{}; }, [this](const RoundMembers&) { ++announced; }, [](ControlKind, const RoundEvent&) {},
            [this] { ++parted; }};
  }
};

// A worker's push on its way through take_part(), on a thread of its own.
class Push {
 public:
  Push(Shards& shards, Rounds& rounds, std::uint32_t rank, std::uint64_t round) {
    session_.rank = rank;
    session_.on_settled = [this](std::uint64_t) { ++settled_; };
    record_.session = &session_;
    record_.statistics = &shards.statistics;
    record_.push = 1;
    record_.round = round;
    record_.payload = GradientView::dense(&kGradient, 1);
    thread_ = std::thread([this, &rounds] { outcome_ = rounds.take_part(record_); });
  }
  ~Push() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  ErrorCode wait() {
    thread_.join();
    CHECK_EQUAL(settled_.load(), 1);  // exactly once
    return outcome_.status;
  }

 private:
  Session session_;
  PushRecord record_;
  RoundOutcome outcome_;
  std::atomic<int> settled_{0};
  std::thread thread_;
};

UpdatePolicy policy_of(std::uint32_t workers, OnLoss on_loss = OnLoss::kShrink, double deadline_s = 300.0) {
  UpdatePolicy policy;
  policy.joins = Joins::kAll;
  policy.workers = workers;
  policy.on_loss = on_loss;
  policy.round_deadline_s = deadline_s;
  return policy;
}

// Until the rank's push stands in the open round.
void await_arrival(const Rounds& rounds, std::uint32_t rank) {
  const std::uint64_t open = rounds.open_round();
  while (rounds.next_round(rank) == open) {
    std::this_thread::yield();
  }
}

}  // namespace

TEST(a_round_joins_every_worker_once) {
  Shards shards;
  Rounds rounds(policy_of(3), Rounds::Part::kLeader, 1, shards.hooks());
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    rounds.rank_came(rank);
  }
  for (std::uint64_t round = 0; round < 50; ++round) {
    Push a(shards, rounds, 0, round);
    Push b(shards, rounds, 1, round);
    Push c(shards, rounds, 2, round);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone && c.wait() == ErrorCode::kNone);
    CHECK_EQUAL(rounds.open_round(), round + 1);
  }
  CHECK_EQUAL(shards.applied.load(), 150);
}

TEST(an_update_that_fails_ends_the_rounds_and_nobody_hangs) {
  Shards shards;
  shards.apply_fails = true;
  Rounds rounds(policy_of(2), Rounds::Part::kLeader, 2, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  rounds.arrived_elsewhere({0, 0});
  rounds.arrived_elsewhere({0, 1});
  Push a(shards, rounds, 0, 0);
  Push b(shards, rounds, 1, 0);
  CHECK(a.wait() == ErrorCode::kRoundAborted);
  CHECK(b.wait() == ErrorCode::kRoundAborted);
  CHECK_EQUAL(shards.parted.load(), 1);
  Push later(shards, rounds, 0, 1);
  CHECK(later.wait() == ErrorCode::kRoundAborted);
}

TEST(a_lost_worker_aborts_all_shards_where_the_policy_says_so) {
  Shards shards;
  Rounds rounds(policy_of(2, OnLoss::kAbort), Rounds::Part::kLeader, 3, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  Push waiting(shards, rounds, 0, 0);
  await_arrival(rounds, 0);
  rounds.rank_left(1, SessionEnd::kDied);
  CHECK(waiting.wait() == ErrorCode::kRoundAborted);
  rounds.abort_all();
  CHECK_EQUAL(shards.parted.load(), 1);  // they are told once
}

TEST(a_worker_that_is_done_leaves_later_rounds_and_aborts_none) {
  Shards shards;
  Rounds rounds(policy_of(2, OnLoss::kAbort), Rounds::Part::kLeader, 1, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  Push waiting(shards, rounds, 0, 0);
  await_arrival(rounds, 0);
  rounds.rank_left(1, SessionEnd::kDone);
  CHECK(waiting.wait() == ErrorCode::kNone);
}

TEST(a_push_that_broke_off_between_two_shards_is_refused_when_nobody_is_left_to_wait_for) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Part::kLeader, 2, shards.hooks());
  rounds.rank_came(0);
  Push half(shards, rounds, 0, 0);  // it never arrives at the other shard
  await_arrival(rounds, 0);
  rounds.rank_left(0, SessionEnd::kDied);
  CHECK(half.wait() == ErrorCode::kRoundAborted);
  CHECK_EQUAL(shards.announced.load(), 1);
  CHECK_EQUAL(rounds.open_round(), 1U);
}

TEST(a_worker_that_comes_back_after_half_a_push_goes_on_with_the_next_round) {
  Shards shards;
  Rounds rounds(policy_of(1, OnLoss::kWait), Rounds::Part::kLeader, 2, shards.hooks());
  rounds.rank_came(0);
  rounds.arrived_elsewhere({0, 0});  // its push reached the other shard alone
  rounds.rank_left(0, SessionEnd::kDied);
  rounds.rank_came(0);
  Push again(shards, rounds, 0, 1);  // the other shard said that round 0 has its push already
  while (rounds.open_round() == 0) {
    std::this_thread::yield();
  }
  rounds.arrived_elsewhere({1, 0});
  CHECK(again.wait() == ErrorCode::kNone);
  CHECK_EQUAL(shards.applied.load(), 1);
}

TEST(a_loss_that_is_reported_late_does_not_drop_the_rank_that_came_back) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Part::kLeader, 2, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  rounds.rank_left(1, SessionEnd::kDied);
  rounds.rank_came(1);
  rounds.gone_elsewhere({0, 1});     // of its first session
  rounds.arrived_elsewhere({0, 1});  // of its second: the round waits for it again
  rounds.arrived_elsewhere({0, 0});
  Push other(shards, rounds, 0, 0);
  await_arrival(rounds, 0);
  CHECK_EQUAL(rounds.open_round(), 0U);
  Push back(shards, rounds, 1, 0);
  CHECK(other.wait() == ErrorCode::kNone);
  CHECK(back.wait() == ErrorCode::kNone);
  CHECK_EQUAL(shards.applied.load(), 2);
}

TEST(a_stuck_rank_is_left_behind_and_comes_back) {
  Shards shards;
  Rounds rounds(policy_of(2, OnLoss::kShrink, 0.05), Rounds::Part::kLeader, 1, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  Push quick(shards, rounds, 0, 0);
  CHECK(quick.wait() == ErrorCode::kNone);
  Push late(shards, rounds, 1, 0);
  CHECK(late.wait() == ErrorCode::kRoundAborted);
  CHECK_THROWS(rounds.rank_came(1), Error);  // it is connected still
  Push next(shards, rounds, 1, 1);
  Push with(shards, rounds, 0, 1);
  const ErrorCode first = next.wait();
  CHECK(with.wait() == ErrorCode::kNone || first == ErrorCode::kNone);
}

TEST(a_follower_joins_what_the_leader_says_and_parts_where_it_cannot) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Part::kFollower, 2, shards.hooks());
  rounds.rank_came(0);
  rounds.rank_came(1);
  Push a(shards, rounds, 0, 0);
  await_arrival(rounds, 0);
  rounds.close_as_told({0, {0}});
  CHECK(a.wait() == ErrorCode::kNone);
  Push b(shards, rounds, 0, 1);
  await_arrival(rounds, 0);
  rounds.close_as_told({1, {0, 1}});  // rank 1's push is not here
  CHECK(b.wait() == ErrorCode::kRoundAborted);
  CHECK_EQUAL(shards.parted.load(), 1);
}

TEST(ranks_come_and_go_in_any_order_and_nobody_hangs) {
  Shards shards;
  constexpr std::uint32_t kWorkers = 4;
  Rounds rounds(policy_of(kWorkers), Rounds::Part::kLeader, 1, shards.hooks());
  std::vector<std::thread> workers;
  std::atomic<int> done{0};
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    rounds.rank_came(rank);
  }
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    workers.emplace_back([&, rank] {
      for (int session = 0; session < 20; ++session) {
        for (int i = 0; i < 5; ++i) {
          Push push(shards, rounds, rank, rounds.next_round(rank));
          push.wait();
        }
        rounds.rank_left(rank, session % 2 == 0 ? SessionEnd::kDied : SessionEnd::kDone);
        if (session != 19) {
          rounds.rank_came(rank);
        }
      }
      ++done;
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  CHECK_EQUAL(done.load(), static_cast<int>(kWorkers));
}
