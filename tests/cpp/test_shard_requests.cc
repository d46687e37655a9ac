// What a shard does about a request, without any wire: pins that come back, drafts that are told of at the right time.
#include <vector>

#include "check.h"
#include "served_case.h"
#include "server/shard.h"

namespace {

using namespace distnet;
using State = Arrival::State;

constexpr std::size_t kSize = 70'000;  // several pieces

struct Ends final : Arrival {
  explicit Ends(State how) : how_(how) {}
  State wait(std::uint64_t, std::chrono::microseconds) override { return how_; }

 private:
  const State how_;
};

// One shard, and one session that asks it to put replies into its replica.
struct Bench {
  explicit Bench(const char* semantics)
      : shard(settings_of(semantics), make_manifest(false, {{"0", {kSize}}}), {0, kSize},
              std::vector<float>(kSize, 0.0F), {}) {
    session.on_settled = [](std::uint64_t) {};
    session.collect_released = [] {};
    session.on_drafted = [this](std::uint64_t, std::uint32_t, std::uint64_t elements) { drafted = elements; };
    shard.session_came(session);
  }
  ~Bench() { shard.session_left(session); }

  static ShardSettings settings_of(const char* semantics) {
    served::Case a_case;
    a_case.semantics = semantics;
    ShardSettings settings;
    settings.policy = served::policy_of(a_case);
    settings.schedule.rate = 1.0;
    return settings;
  }

  std::optional<Shard::Answer> push(Arrival& arrival) {
    Shard::Asked asked;
    asked.header.kind = RequestKind::kPush;
    asked.header.flags = kWantParameters | kDeliver;
    asked.header.push = session.accepted.load() + 1;
    asked.gradient = gradient.data();
    asked.arriving = &arrival;
    asked.replica = replica.data();
    return shard.handle(session, asked);
  }

  std::vector<float> gradient = std::vector<float>(kSize, -1.0F);
  std::vector<float> replica = std::vector<float>(kSize, -7.0F);
  std::uint64_t drafted = 0;
  Session session;
  Shard shard;
};

TEST(a_push_that_is_cut_off_while_its_reply_sets_out_gives_its_pin_back) {
  Bench bench("async-locked");
  Ends cut_off(State::kCutOff);
  for (int i = 0; i < 5; ++i) {
    CHECK(!bench.push(cut_off));
    bench.shard.store().apply(bench.gradient);
  }
  CHECK(served::code_of([&] { bench.shard.store().buffer(2); }) == ErrorCode::kProtocol);  // the newest, and one more
  CHECK_EQUAL(bench.session.accepted.load(), 0U);
}

TEST(a_withdrawn_push_is_refused_and_its_reply_brings_parameters_whole_or_not_at_all) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree"}) {
    Bench bench(semantics);
    Ends withdrawn(State::kWithdrawn);
    const auto answer = bench.push(withdrawn);
    CHECK(answer.has_value());
    const bool begun = bench.replica[0] != -7.0F;
    CHECK(answer->pinned || answer->delivered || !begun);
    CHECK_EQUAL(bench.session.refused.load(), 1U);
    CHECK_EQUAL(bench.session.settled.load(), 1U);
    CHECK_EQUAL(bench.shard.store().version(), 0U);
  }
}

TEST(a_draft_is_told_of_only_where_the_reply_waits_for_it) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree"}) {
    Bench bench(semantics);
    Ends here(State::kHere);
    const auto answer = bench.push(here);
    CHECK(answer.has_value());
    const bool applies_first = answer->apply_after_reply == nullptr;
    if (!applies_first) {
      bench.shard.apply(*answer->apply_after_reply);
    }
    CHECK_EQUAL(bench.drafted, applies_first ? kSize : 0U);
    CHECK_EQUAL(answer->drafted, applies_first);
    CHECK_EQUAL(bench.shard.store().version(), 1U);
  }
}

}  // namespace
