// Rounds by themselves: threads whose pushes wait for each other. Who is in a round is test_membership.cc's matter.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/simulation.h"
#include "check.h"
#include "server/rounds/coordinator.h"
#include "server/rounds/rounds.h"
#include "server/settlement.h"

namespace {

using namespace distnet;

constexpr float kGradient = 1.0F;

// The shard, the sessions and the other shards, as rounds see them.
struct Shards final : RoundStore, RoundPeers {
  void prepare_round() override {
    if (lacks_memory) {
      throw Error(ErrorCode::kConfig, "no memory");
    }
  }
  void apply_round(const std::vector<PushRecord*>& members, const PushSettings& settings) override {
    if (apply_fails) {
      throw Error(ErrorCode::kConfig, "no memory");
    }
    applied_with = settings.learning_rate.value_or(used_rate.load());
    group_rates.assign(settings.group_rates.begin(), settings.group_rates.end());
    ++updates;
    applied += static_cast<int>(members.size());
    for (PushRecord* const member : members) {
      member->on_applied(0);
    }
  }
  Pin pin_newest() override { return {}; }
  void use_learning_rate(double learning_rate) override { used_rate = learning_rate; }
  void rates_differ(const std::string& what) override {
    const std::lock_guard lock(cuts_mutex);
    differing.push_back(what);
  }
  void cut_before(std::uint64_t round, std::uint64_t) override {
    const std::lock_guard lock(cuts_mutex);
    cuts.push_back({round, applied.load()});
  }
  void announce_cut(const CutRound&) override { ++cuts_announced; }
  void announce(const RoundMembers& round) override {
    announced_rate = round.set_rate.value_or(kNoRate);
    announced_push_rate = round.push_rate.value_or(kNoRate);
    announced_groups = static_cast<int>(round.group_rates.size());
    announced_members += static_cast<int>(round.members.size());
    ++announced;
  }
  void report(ControlKind kind, const RoundEvent&) override {
    cannot_make += kind == ControlKind::kCannotMake ? 1 : 0;
    ++reported;
  }
  void rounds_ended(const std::string&) override { ++ended; }
  // A follower's push waits for its round before it is reported.
  void await_report(int count) const {
    while (reported < count) {
      std::this_thread::yield();
    }
  }

  static constexpr double kNoRate = -1.0;
  std::atomic<double> used_rate{kNoRate};
  std::atomic<double> applied_with{kNoRate};  // the learning rate of the newest update
  std::atomic<double> announced_rate{kNoRate};
  std::atomic<double> announced_push_rate{kNoRate};
  std::atomic<int> announced_groups{0};
  std::atomic<int> updates{0};
  std::atomic<int> applied{0};  // members of all updates
  std::atomic<int> ended{0};
  std::atomic<int> announced{0};
  std::atomic<int> reported{0};
  std::atomic<int> cannot_make{0};  // of those
  std::atomic<int> announced_members{0};
  std::atomic<int> cuts_announced{0};
  struct Cut {
    std::uint64_t round = 0;
    int applied = 0;  // members of all updates before it
    bool operator==(const Cut&) const = default;
  };
  std::mutex cuts_mutex;
  std::vector<Cut> cuts;
  std::vector<std::string> differing;  // under the same mutex
  std::vector<double> group_rates;     // of the newest update
  bool apply_fails = false;
  std::atomic<bool> lacks_memory{false};
  Memory memory;
  Metrics metrics;
  Outlets outlets;
  SessionTable sessions{SessionRules{}, memory};
  SavedBytes saved{sessions, 0, 0};
  Settlement settlement{sessions, outlets, metrics, saved};
  InFlight in_flight{memory};
};

// A worker's push on its way through take_part(), on a thread of its own.
class Push {
 public:
  Push(Shards& shards, Rounds& rounds, RoundMember who, std::uint64_t round, Brings brings = Brings::kGradient,
       std::optional<double> rate = {}, std::span<const double> group_rates = {},
       GradientView::Meaning meaning = GradientView::Meaning::kGradient)
      : shards_(shards), record_(shards.in_flight.take()) {
    const bool present = brings == Brings::kGradient;
    GradientView view = present ? GradientView::dense(&kGradient, 1) : GradientView::none();
    view.meaning = meaning;
    record_.begin(shards.settlement, {who.rank, brings, 1, 0, round, 0}, view, {rate, {}, group_rates});
    thread_ = std::thread([this, &rounds, who] { outcome_ = rounds.take_part(record_, who); });
  }
  ~Push() {
    if (thread_.joinable()) {
      thread_.join();
    }
    shards_.in_flight.give_back(record_);
  }
  ErrorCode wait() {
    thread_.join();
    return outcome_.status;
  }

 private:
  Shards& shards_;
  PushRecord& record_;
  RoundOutcome outcome_;
  std::thread thread_;
};

UpdatePolicy policy_of(std::uint32_t workers, OnLoss on_loss = OnLoss::kShrink, double deadline_s = 300.0) {
  UpdatePolicy policy;
  policy.joins = Joins::kAll;
  policy.workers = workers;
  policy.on_loss = on_loss;
  policy.round_timeout_s = deadline_s;
  return policy;
}

}  // namespace

TEST(a_round_joins_every_worker_once) {
  Shards shards;
  Rounds rounds(policy_of(3), Rounds::Duty::kLeader, 1, shards, shards);
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    rounds.came({rank, rank + 1});
  }
  for (std::uint64_t round = 0; round < 50; ++round) {
    Push a(shards, rounds, {0, 1}, round);
    Push b(shards, rounds, {1, 2}, round);
    Push c(shards, rounds, {2, 3}, round);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone && c.wait() == ErrorCode::kNone);
    CHECK_EQUAL(rounds.next_round(), round + 1);
  }
  CHECK_EQUAL(shards.applied.load(), 150);
}

TEST(an_update_that_fails_ends_the_rounds_and_nobody_hangs) {
  Shards shards;
  shards.apply_fails = true;
  Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  rounds.came({1, 2});
  rounds.arrived_elsewhere({0, 0, 1});
  rounds.arrived_elsewhere({0, 1, 2});
  Push a(shards, rounds, {0, 1}, 0);
  Push b(shards, rounds, {1, 2}, 0);
  CHECK(a.wait() == ErrorCode::kRoundAborted);
  CHECK(b.wait() == ErrorCode::kRoundAborted);
  CHECK_EQUAL(shards.ended.load(), 1);
  Push later(shards, rounds, {0, 1}, 1);
  CHECK(later.wait() == ErrorCode::kRoundAborted);
}

TEST(a_round_that_lacks_memory_fails_before_it_is_announced_and_alone) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  rounds.came({1, 2});
  for (std::uint64_t round = 0; round < 3; ++round) {
    shards.lacks_memory = round == 1;
    rounds.arrived_elsewhere({round, 0, 1});
    rounds.arrived_elsewhere({round, 1, 2});
    Push a(shards, rounds, {0, 1}, round);
    Push b(shards, rounds, {1, 2}, round);
    const ErrorCode expected = round == 1 ? ErrorCode::kRoundAborted : ErrorCode::kNone;
    CHECK(a.wait() == expected && b.wait() == expected);
    CHECK_EQUAL(rounds.next_round(), round + 1);
  }
  CHECK_EQUAL(shards.applied.load(), 4);
  CHECK_EQUAL(shards.announced.load(), 3);
  CHECK_EQUAL(shards.announced_members.load(), 4);  // the others hear of the failed round that it closes with nobody
  CHECK_EQUAL(shards.ended.load(), 0);
  CHECK(rounds.failure().empty());
}

TEST(a_round_that_another_shard_lacks_memory_for_ends_alone) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, shards);
  rounds.came({0, 1});
  int reported = 0;
  for (std::uint64_t round = 0; round < 3; ++round) {
    shards.lacks_memory = round == 1;
    Push push(shards, rounds, {0, 1}, round);
    shards.await_report(++reported);
    CHECK_EQUAL(shards.cannot_make.load(), round == 0 ? 0 : 1);
    rounds.close_as_told({round, round == 1 ? std::vector<RoundMember>{} : std::vector<RoundMember>{{0, 1}}});
    CHECK(push.wait() == (round == 1 ? ErrorCode::kRoundAborted : ErrorCode::kNone));
  }
  CHECK_EQUAL(shards.applied.load(), 2);
  CHECK_EQUAL(shards.ended.load(), 0);
}

TEST(a_round_that_another_shard_cannot_make_is_given_up_once_all_follow) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 3, shards, shards);
  rounds.came({0, 1});
  rounds.cannot_be_made_elsewhere({0, 0, 1});
  CHECK_EQUAL(rounds.next_round(), 0U);
  rounds.all_follow();
  CHECK_EQUAL(rounds.next_round(), 1U);
  CHECK_EQUAL(shards.announced.load(), 1);
  CHECK_EQUAL(shards.announced_members.load(), 0);
}

TEST(a_push_of_a_round_that_was_over_before_its_shard_followed_is_refused) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 3, shards, shards);
  Push push(shards, rounds, {0, 1}, 0);
  shards.await_report(1);
  rounds.follow_from(1);
  CHECK(push.wait() == ErrorCode::kRoundAborted);
}

TEST(a_push_that_came_early_is_reported_when_its_round_is_open) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kFollower, 2, shards, shards);
  Push early(shards, rounds, {1, 2}, 1);
  Push push(shards, rounds, {0, 1}, 0);
  shards.await_report(1);
  rounds.close_as_told({0, {{0, 1}}});
  CHECK(push.wait() == ErrorCode::kNone);
  shards.await_report(2);
  rounds.close_as_told({1, {{1, 2}}});
  CHECK(early.wait() == ErrorCode::kNone);
}

TEST(no_round_closes_before_every_other_shard_follows) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.came({0, 1});
  rounds.arrived_elsewhere({0, 0, 1});
  rounds.left({0, 1}, SessionEnd::kDied);  // nobody is awaited any more
  CHECK_EQUAL(rounds.next_round(), 0U);
  rounds.all_follow();
  CHECK_EQUAL(rounds.next_round(), 1U);
  CHECK_EQUAL(shards.announced.load(), 1);
}

TEST(a_follower_begins_with_the_round_that_shard_0_has_open) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, shards);
  rounds.follow_from(7);
  Push early(shards, rounds, {0, 1}, 6);
  CHECK(early.wait() == ErrorCode::kRoundAborted);
  Push push(shards, rounds, {0, 1}, 7);
  shards.await_report(1);
  CHECK_EQUAL(rounds.next_round(), 7U);
  rounds.end_all("the test is over");
  CHECK(push.wait() == ErrorCode::kRoundAborted);
}

TEST(a_push_waits_half_a_minute_for_a_shard_that_never_follows) {
  Simulation simulation(1);
  simulation.run([] {
    Shards shards;
    Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 2, shards, shards);
    rounds.came({0, 1});
    PushRecord& record = shards.in_flight.take();
    record.begin(shards.settlement, {0, Brings::kGradient, 1, 0, 0, 0}, GradientView::dense(&kGradient, 1));
    const Clock::time_point begun = now();
    const RoundOutcome outcome = rounds.take_part(record, {0, 1});
    CHECK(outcome.status == ErrorCode::kRoundAborted);
    CHECK(now() - begun >= std::chrono::seconds(30) && now() - begun < std::chrono::seconds(31));
    CHECK(rounds.failure().find("not every other shard came") != std::string::npos);
    CHECK_EQUAL(shards.ended.load(), 1);
    shards.in_flight.give_back(record);
  });
}

TEST(a_follower_that_cannot_reach_shard_0_ends_its_rounds_and_says_so) {
  struct Listener final : RoundsEnded {
    void rounds_ended(const std::string& reason) override { why = reason; }
    std::string why;
  };
  Simulation simulation(1);
  simulation.run([] {
    Shards shards;
    Listener listener;
    RoundFollower follower(1, JobSecret{}, listener);
    Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, follower);
    PushRecord& record = shards.in_flight.take();
    record.begin(shards.settlement, {0, Brings::kGradient, 1, 0, 0, 0}, GradientView::dense(&kGradient, 1));
    const Clock::time_point begun = now();
    follower.start({Address::Kind::kUnix, "distnet-test-that-nobody-listens-at", 0}, rounds);
    const RoundOutcome outcome = rounds.take_part(record, {0, 1});
    CHECK(outcome.status == ErrorCode::kRoundAborted);
    CHECK(now() - begun < std::chrono::seconds(31));
    follower.stop();
    CHECK(listener.why.find("the connection of shard 1 to shard 0 ended") != std::string::npos);
    shards.in_flight.give_back(record);
  });
}

TEST(a_push_that_broke_off_between_two_shards_is_refused_when_nobody_is_left_to_wait_for) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  Push half(shards, rounds, {0, 1}, 0);  // it never arrives at the other shard
  rounds.left({0, 1}, SessionEnd::kDied);
  CHECK(half.wait() == ErrorCode::kRoundAborted);
}

TEST(a_stuck_rank_is_left_behind_and_comes_back) {
  Shards shards;
  Rounds rounds(policy_of(2, OnLoss::kShrink, 0.05), Rounds::Duty::kLeader, 1, shards, shards);
  rounds.came({0, 1});
  rounds.came({1, 2});
  Push quick(shards, rounds, {0, 1}, 0);
  CHECK(quick.wait() == ErrorCode::kNone);
  Push late(shards, rounds, {1, 2}, 0);
  CHECK(late.wait() == ErrorCode::kRoundAborted);
  Push next(shards, rounds, {1, 2}, 1);
  Push with(shards, rounds, {0, 1}, 1);
  const ErrorCode first = next.wait();
  CHECK(with.wait() == ErrorCode::kNone || first == ErrorCode::kNone);
}

TEST(a_follower_joins_what_the_leader_says_and_ends_where_it_cannot) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kFollower, 2, shards, shards);
  Push a(shards, rounds, {0, 1}, 0);
  shards.await_report(1);
  rounds.close_as_told({0, {{0, 1}}});
  CHECK(a.wait() == ErrorCode::kNone);
  Push b(shards, rounds, {0, 1}, 1);
  shards.await_report(2);
  rounds.close_as_told({1, {{0, 1}, {1, 2}}});  // rank 1's push is not here
  CHECK(b.wait() == ErrorCode::kRoundAborted);
  CHECK_EQUAL(shards.ended.load(), 1);
}

TEST(a_cut_comes_before_the_round_that_was_asked_for_and_no_push_of_an_open_round_is_in_it) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  rounds.came({1, 2});
  rounds.cut(1, std::nullopt, Deadline::after(60.0), [] {});
  rounds.cut(2, 0, Deadline::after(60.0), [] {});
  std::atomic<bool> waits{false};
  std::thread asker([&] {
    rounds.cut(3, 3, Deadline::after(60.0), [&] {
      waits.store(true);
      waits.notify_all();
    });
  });
  waits.wait(false);
  for (std::uint64_t round = 0; round < 6; ++round) {
    rounds.arrived_elsewhere({round, 0, 1});
    rounds.arrived_elsewhere({round, 1, 2});
    Push a(shards, rounds, {0, 1}, round);
    Push b(shards, rounds, {1, 2}, round);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone);
  }
  asker.join();
  CHECK(shards.cuts == (std::vector<Shards::Cut>{{0, 0}, {0, 0}, {3, 6}}));
  CHECK_EQUAL(shards.cuts_announced.load(), 3);
}

TEST(a_round_that_could_close_is_held_until_the_cut_is_made) {
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  rounds.came({1, 2});
  rounds.arrived_elsewhere({0, 0, 1});
  Push push(shards, rounds, {0, 1}, 0);
  while (rounds.awaited().size() != 1) {
    std::this_thread::yield();  // the push is on its way to its round
  }
  rounds.arrived_elsewhere({1, 0, 1});
  std::atomic<bool> waits{false};
  ErrorCode code = ErrorCode::kNone;
  std::thread asker([&] {
    try {
      rounds.cut(1, 1, Deadline::after(10.0), [&] {
        waits.store(true);
        waits.notify_all();
      });
    } catch (const Error& error) {
      code = error.code();
    }
  });
  waits.wait(false);
  rounds.left({0, 1}, SessionEnd::kDone);
  rounds.left({1, 2}, SessionEnd::kDone);  // rounds 0 and 1 can close now, one right after the other
  asker.join();
  CHECK(code == ErrorCode::kNone && push.wait() == ErrorCode::kNone);
  CHECK(shards.cuts == (std::vector<Shards::Cut>{{1, 1}}));
  CHECK_EQUAL(rounds.next_round(), 2U);
}

TEST(a_cut_that_cannot_come_ends_and_lets_the_rounds_go_on) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 1, shards, shards);
  rounds.begin_at(5, {});
  CHECK_EQUAL(rounds.came({0, 1}), 5U);
  const auto cut_at = [&](std::uint64_t round, double seconds) {
    try {
      rounds.cut(1, round, Deadline::after(seconds), [] {});
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kNone;
  };
  CHECK(cut_at(4, 60.0) == ErrorCode::kConfig);  // past
  CHECK(cut_at(6, 0.01) == ErrorCode::kDeadlineExceeded);
  Push push(shards, rounds, {0, 1}, 5);
  CHECK(push.wait() == ErrorCode::kNone);
  CHECK(cut_at(6, 60.0) == ErrorCode::kNone);
  rounds.end_all("the test is over");
  CHECK(cut_at(7, 60.0) == ErrorCode::kRoundAborted);
  CHECK(cut_at(6, 60.0) == ErrorCode::kNone);  // nothing changes any more
  CHECK_EQUAL(shards.cuts.size(), 2U);
}

TEST(a_follower_cuts_when_the_leader_says_so) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, shards);
  Push push(shards, rounds, {0, 1}, 0);
  shards.await_report(1);
  rounds.cut_as_told({0, 1});
  rounds.close_as_told({0, {{0, 1}}});
  CHECK(push.wait() == ErrorCode::kNone);
  rounds.cut_as_told({1, 1});
  CHECK(shards.cuts == (std::vector<Shards::Cut>{{0, 0}, {1, 1}}));
}

TEST(the_leader_names_a_learning_rate_with_the_round_that_closes_next) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  for (const double rate : {Shards::kNoRate, 0.5, 0.25}) {
    const std::uint64_t round = rounds.next_round();
    if (rate != Shards::kNoRate) {
      rounds.set_learning_rate(rate);
    }
    CHECK(rounds.set_rate().value_or(Shards::kNoRate) == rate);
    rounds.arrived_elsewhere({round, 0, 1});
    Push push(shards, rounds, {0, 1}, round);
    CHECK(push.wait() == ErrorCode::kNone);
    CHECK_EQUAL(shards.announced_rate.load(), rate);
    CHECK_EQUAL(shards.applied_with.load(), rate);
  }
}

TEST(a_follower_applies_a_round_with_the_learning_rate_that_comes_with_it) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, shards);
  CHECK_THROWS(rounds.set_learning_rate(0.5), Error);
  Push push(shards, rounds, {0, 1}, 0);
  shards.await_report(1);
  rounds.close_as_told({0, {{0, 1}}, 0.5});
  CHECK(push.wait() == ErrorCode::kNone);
  CHECK_EQUAL(shards.applied_with.load(), 0.5);
  CHECK_EQUAL(rounds.set_rate().value_or(0.0), 0.5);
}

TEST(a_round_of_abstentions_alone_makes_no_update_and_ends_for_all) {
  for (const Brings other : {Brings::kAbstention, Brings::kNothing}) {
    Shards shards;
    shards.lacks_memory = true;  // which such a round needs none of
    Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
    rounds.all_follow();
    rounds.came({0, 1});
    rounds.came({1, 2});
    rounds.arrived_elsewhere({0, 0, 1});
    rounds.arrived_elsewhere({0, 1, 2});
    Push a(shards, rounds, {0, 1}, 0, Brings::kAbstention, 0.5);
    Push b(shards, rounds, {1, 2}, 0, other);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone);
    CHECK_EQUAL(rounds.next_round(), 1U);
    CHECK_EQUAL(shards.updates.load(), 0);
    CHECK_EQUAL(shards.announced_members.load(), 2);
    CHECK_EQUAL(shards.announced_push_rate.load(), Shards::kNoRate);
    ShardStatistics counted;
    shards.metrics.fill(counted);
    CHECK_EQUAL(counted.abstained, other == Brings::kAbstention ? 2U : 1U);
    CHECK_EQUAL(counted.refused, other == Brings::kAbstention ? 0U : 1U);
    CHECK_EQUAL(counted.applied, 0U);
  }
}

TEST(a_round_has_the_learning_rate_of_the_lowest_rank_that_brought_a_gradient) {
  struct Case {
    std::vector<std::pair<Brings, std::optional<double>>> pushes;
    double counts;
    const char* said;
  };
  constexpr Brings kOne = Brings::kGradient;
  constexpr Brings kNone = Brings::kAbstention;
  const std::vector<Case> cases = {
      {{{kOne, 0.5}, {kOne, 0.5}, {kOne, 0.5}}, 0.5, ""},
      {{{kOne, 0.5}, {kNone, {}}, {kOne, 0.25}}, 0.5, "rank 0: 0.5, rank 2: 0.25"},
      {{{kNone, {}}, {kOne, 0.125}, {kOne, {}}}, 0.125, "rank 1: 0.125, rank 2: none"},
      {{{kOne, {}}, {kOne, {}}, {kOne, 2.0}}, 7.0, "rank 0: none, rank 2: 2"},
      {{{Brings::kNothing, 3.0}, {kOne, 0.0}, {kNone, {}}}, 0.0, ""},
  };
  Shards shards;
  Rounds rounds(policy_of(3), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.set_learning_rate(7.0);
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    rounds.came({rank, rank + 1});
  }
  for (std::uint64_t round = 0; round < cases.size(); ++round) {
    const Case& one = cases[round];
    shards.differing.clear();
    for (std::uint32_t rank = 0; rank < 3; ++rank) {
      rounds.arrived_elsewhere({round, rank, rank + 1});
    }
    Push a(shards, rounds, {0, 1}, round, one.pushes[0].first, one.pushes[0].second);
    Push b(shards, rounds, {1, 2}, round, one.pushes[1].first, one.pushes[1].second);
    Push c(shards, rounds, {2, 3}, round, one.pushes[2].first, one.pushes[2].second);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone && c.wait() == ErrorCode::kNone);
    CHECK_EQUAL(shards.applied_with.load(), one.counts);
    CHECK_EQUAL(shards.announced_rate.load(), 7.0);
    CHECK_EQUAL(shards.announced_push_rate.load(), one.counts == 7.0 ? Shards::kNoRate : one.counts);
    const std::string said = shards.differing.empty() ? "" : shards.differing.front();
    CHECK(one.said[0] == 0 ? said.empty() : said.find(one.said) != std::string::npos);
  }
}

TEST(a_round_joins_what_its_lowest_rank_brings_and_refuses_the_other_kind_at_every_shard) {
  using Meaning = GradientView::Meaning;
  for (const auto duty : {Rounds::Duty::kLeader, Rounds::Duty::kFollower}) {
    for (const Meaning of_lowest : {Meaning::kGradient, Meaning::kChange}) {
      const Meaning other = of_lowest == Meaning::kGradient ? Meaning::kChange : Meaning::kGradient;
      Shards shards;
      Rounds rounds(policy_of(3), duty, 2, shards, shards);
      Push b(shards, rounds, {1, 2}, 0, Brings::kGradient, {}, {}, of_lowest);
      Push c(shards, rounds, {2, 3}, 0, Brings::kGradient, {}, {}, other);
      Push a(shards, rounds, {0, 1}, 0, Brings::kAbstention, {}, {}, other);
      if (duty == Rounds::Duty::kLeader) {
        for (std::uint32_t rank = 0; rank < 3; ++rank) {
          rounds.came({rank, rank + 1});
          rounds.arrived_elsewhere({0, rank, rank + 1});
        }
        rounds.all_follow();
      } else {
        shards.await_report(3);
        rounds.close_as_told({0, {{0, 1}, {1, 2}, {2, 3}}});
      }
      CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone);
      CHECK(c.wait() == ErrorCode::kConfig);
      CHECK_EQUAL(shards.applied.load(), 1);
      ShardStatistics counted;
      shards.metrics.fill(counted);
      CHECK(counted.refused == 1 && counted.abstained == 1);
      CHECK_EQUAL(rounds.next_round(), 1U);
    }
  }
}

TEST(learning_rates_by_groups_go_along_with_the_round_and_are_compared_too) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> of_first = {0.5, nan};
  const std::vector<double> of_second = {0.5, 0.25};
  Shards shards;
  Rounds rounds(policy_of(2), Rounds::Duty::kLeader, 2, shards, shards);
  rounds.all_follow();
  rounds.came({0, 1});
  rounds.came({1, 2});
  for (std::uint64_t round = 0; round < 2; ++round) {
    rounds.arrived_elsewhere({round, 0, 1});
    rounds.arrived_elsewhere({round, 1, 2});
    Push a(shards, rounds, {0, 1}, round, Brings::kGradient, {}, of_first);
    Push b(shards, rounds, {1, 2}, round, Brings::kGradient, {}, round == 0 ? of_first : of_second);
    CHECK(a.wait() == ErrorCode::kNone && b.wait() == ErrorCode::kNone);
    CHECK(shards.group_rates.size() == 2 && shards.group_rates[0] == 0.5 && std::isnan(shards.group_rates[1]));
    CHECK_EQUAL(shards.announced_groups.load(), 2);
    CHECK_EQUAL(shards.differing.size(), round);  // NaN is the same as NaN
  }
  CHECK(shards.differing.front().find("beside those of groups") != std::string::npos);
}

TEST(a_follower_takes_the_learning_rate_of_a_rounds_pushes_from_the_leader_and_forgets_it) {
  Shards shards;
  Rounds rounds(policy_of(1), Rounds::Duty::kFollower, 2, shards, shards);
  Push push(shards, rounds, {0, 1}, 0, Brings::kGradient, 0.75);
  shards.await_report(1);
  rounds.close_as_told({0, {{0, 1}}, 0.5, 0.25, {1.0, 2.0}});
  CHECK(shards.group_rates == std::vector({1.0, 2.0}));
  CHECK(push.wait() == ErrorCode::kNone);
  CHECK_EQUAL(shards.applied_with.load(), 0.25);
  CHECK_EQUAL(rounds.set_rate().value_or(0.0), 0.5);
}

TEST(ranks_come_and_go_in_any_order_and_nobody_hangs) {
  Shards shards;
  constexpr std::uint32_t kWorkers = 4;
  Rounds rounds(policy_of(kWorkers), Rounds::Duty::kLeader, 1, shards, shards);
  std::atomic<std::uint32_t> incarnations{0};
  std::vector<std::thread> workers;
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    workers.emplace_back([&, rank] {
      for (int session = 0; session < 20; ++session) {
        const RoundMember who{rank, ++incarnations};
        std::uint64_t round = rounds.came(who);
        for (int i = 0; i < 5; ++i, ++round) {
          Push push(shards, rounds, who, round);
          CHECK(push.wait() == ErrorCode::kNone);  // whoever has joined is waited for
        }
        rounds.left(who, session % 2 == 0 ? SessionEnd::kDied : SessionEnd::kDone);
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
}
