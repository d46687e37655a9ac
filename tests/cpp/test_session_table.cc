// Sessions by themselves: who is who, who is fenced, who is away.
#include "check.h"
#include "sessions/proof.h"
#include "sessions/session_table.h"

namespace {

using namespace distnet;
using Admission = SessionTable::Admission;

const Clock::time_point kBeginning{std::chrono::hours(1)};

Clock::time_point after(double seconds) {
  return kBeginning + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

Hello worker(std::uint64_t id, std::uint32_t rank, std::uint32_t start = 0) {
  Hello hello;
  hello.id = {id, 1};
  hello.rank = rank;
  hello.start = start;
  hello.transport = TransportKind::kTcp;
  hello.timeout_s = 4.0;  // a heartbeat each second
  return hello;
}

struct Bench {
  explicit Bench(const SessionRules& rules) : table(rules, memory) {}
  Presence presence(const Admission& admission) const { return table.entry(admission.place).presence; }
  ErrorCode refusal(const Hello& hello, double at_s = 0.0) {
    try {
      table.admit(hello, after(at_s));
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kNone;
  }
  Memory memory;
  SessionTable table;
};

constexpr SessionRules kSync{true, true, 2, 0.0};
constexpr SessionRules kAsync{true, false, 2, 0.0};

}  // namespace

TEST(a_new_id_is_a_new_session_with_the_next_incarnation) {
  Bench bench(kAsync);
  const Admission one = bench.table.admit(worker(1, 0), kBeginning);
  const Admission two = bench.table.admit(worker(2, 1), kBeginning);
  CHECK_EQUAL(bench.table.entry(one.place).incarnation, 1U);
  CHECK_EQUAL(bench.table.entry(two.place).incarnation, 2U);
  CHECK(one.place != two.place);
  CHECK(one.warnings.empty() && two.warnings.empty());
}

TEST(an_id_that_returns_is_the_same_session) {
  Bench bench(kAsync);
  const Admission first = bench.table.admit(worker(1, 0), kBeginning);
  bench.table.ledger(first.place).accepted = 7;
  const Admission again = bench.table.admit(worker(1, 0), kBeginning);
  CHECK(again.returning);
  CHECK_EQUAL(again.place, first.place);
  CHECK_EQUAL(bench.table.entry(again.place).incarnation, 1U);
  CHECK_EQUAL(bench.table.ledger(again.place).accepted.load(), 7U);
  // The end of the connection that it had before is no end of the session.
  CHECK(bench.table.connection_ended(first.place, 1, SessionEnd::kDied, true, kBeginning) == Presence::kLive);
  CHECK(bench.refusal(worker(1, 1)) == ErrorCode::kProtocol);  // as another rank
}

TEST(a_session_that_has_ended_does_not_come_back) {
  Bench bench(kAsync);
  const Admission one = bench.table.admit(worker(1, 0), kBeginning);
  CHECK(bench.table.connection_ended(one.place, 1, SessionEnd::kDone, true, kBeginning) == Presence::kEnded);
  bench.table.retire(one.place);
  CHECK(bench.refusal(worker(1, 0)) == ErrorCode::kFenced);
}

TEST(in_a_synchronous_job_the_newer_session_of_a_rank_wins) {
  Bench bench(kSync);
  const Admission older = bench.table.admit(worker(1, 0), kBeginning);
  const Admission newer = bench.table.admit(worker(2, 0), kBeginning);
  CHECK(newer.fenced == std::vector<std::uint32_t>{older.place});
  CHECK(newer.replaces == std::vector<std::uint32_t>{1});
  CHECK(bench.presence(older) == Presence::kEnded && bench.presence(newer) == Presence::kLive);
  CHECK(bench.table.connection_ended(older.place, 1, SessionEnd::kDied, true, kBeginning) == Presence::kEnded);
  CHECK(bench.table.entry(older.place).how == SessionEnd::kFenced);
  CHECK(bench.refusal(worker(1, 0)) == ErrorCode::kFenced);
  CHECK(bench.refusal(worker(3, 2)) == ErrorCode::kConfig);  // out of range
}

TEST(in_an_asynchronous_job_two_live_sessions_of_a_rank_go_on_and_both_are_warned_once) {
  Bench bench(kAsync);
  const Admission one = bench.table.admit(worker(1, 0), kBeginning);
  const Admission two = bench.table.admit(worker(2, 0), after(1));
  CHECK(two.fenced.empty());
  CHECK_EQUAL(two.warnings.size(), 2U);
  const Admission three = bench.table.admit(worker(3, 0), after(1));
  CHECK_EQUAL(three.warnings.size(), 1U);
  CHECK_EQUAL(three.warnings.front().place, three.place);
  CHECK(bench.presence(one) == Presence::kLive && bench.presence(two) == Presence::kLive);
}

TEST(in_an_asynchronous_job_a_rank_that_was_silent_or_started_before_is_replaced) {
  Bench silent(kAsync);
  const Admission hung = silent.table.admit(worker(1, 0), kBeginning);
  CHECK(silent.table.admit(worker(2, 0), after(1.9)).fenced.empty());
  CHECK(silent.table.admit(worker(3, 0), after(2.1)).fenced == std::vector<std::uint32_t>{hung.place});
  Bench restarted(kAsync);
  const Admission first = restarted.table.admit(worker(1, 0, 0), kBeginning);
  CHECK(restarted.table.admit(worker(2, 0, 1), kBeginning).fenced == std::vector<std::uint32_t>{first.place});
}

TEST(a_session_that_replaces_several_replaces_the_same_ones_at_the_other_shards_and_no_other) {
  Bench first(kAsync);
  Bench other(SessionRules{false, false, 2, 0.0});
  const auto at_both = [&](Hello hello, double at_s) {
    const Admission granted = first.table.admit(hello, after(at_s));
    hello.grant.rank = hello.rank;
    hello.grant.incarnation = first.table.entry(granted.place).incarnation;
    hello.grant.replaces = granted.replaces;
    return other.table.admit(Hello::decode(hello.encode()), after(at_s));
  };
  const Admission hung = at_both(worker(1, 0), 0);
  const Admission hung_too = at_both(worker(2, 0), 0);
  const Admission alive = at_both(worker(3, 0), 2);
  const Admission newest = at_both(worker(4, 0), 3);
  CHECK((newest.fenced == std::vector<std::uint32_t>{hung.place, hung_too.place}));
  CHECK(other.presence(alive) == Presence::kLive && other.presence(newest) == Presence::kLive);
}

TEST(a_rank_beyond_the_workers_is_warned_of_where_ranks_are_labels) {
  Bench bench(kAsync);
  CHECK_EQUAL(bench.table.admit(worker(1, 5), kBeginning).warnings.size(), 1U);
}

TEST(a_broken_connection_leaves_its_session_away_for_a_while) {
  SessionRules rules = kSync;
  rules.reconnect_timeout_s = 3.0;
  Bench bench(rules);
  const Admission one = bench.table.admit(worker(1, 0), kBeginning);
  CHECK(bench.table.connection_ended(one.place, 1, SessionEnd::kDied, true, kBeginning) == Presence::kAway);
  CHECK(!bench.table.expire(one.place, after(2.9)));
  const Admission back = bench.table.admit(worker(1, 0), after(2.9));
  CHECK(back.returning && bench.presence(back) == Presence::kLive);
  CHECK(bench.table.connection_ended(one.place, 2, SessionEnd::kDied, true, after(3)) == Presence::kAway);
  CHECK(bench.table.expire(one.place, after(6.1)));
  CHECK(bench.table.entry(one.place).how == SessionEnd::kDied);
  // What is no broken connection ends at once: a goodbye, a timeout, a broken rule, the end of a process.
  for (const SessionEnd how : {SessionEnd::kDone, SessionEnd::kSilent}) {
    const Admission other = bench.table.admit(worker(10 + static_cast<std::uint64_t>(how), 1), kBeginning);
    CHECK(bench.table.connection_ended(other.place, 1, how, true, kBeginning) == Presence::kEnded);
  }
  const Admission other = bench.table.admit(worker(20, 1), kBeginning);
  CHECK(bench.table.connection_ended(other.place, 1, SessionEnd::kDied, false, kBeginning) == Presence::kEnded);
}

TEST(a_session_is_away_for_no_longer_than_its_own_timeout) {
  SessionRules rules = kSync;
  rules.reconnect_timeout_s = 100.0;
  Bench bench(rules);
  const Admission one = bench.table.admit(worker(1, 0), kBeginning);
  bench.table.connection_ended(one.place, 1, SessionEnd::kDied, true, kBeginning);
  CHECK(!bench.table.expire(one.place, after(3.9)));
  CHECK(bench.table.expire(one.place, after(4.1)));
}

TEST(other_shards_take_incarnations_from_the_grant) {
  SessionRules rules = kSync;
  rules.grants = false;
  Bench bench(rules);
  Hello older = worker(1, 0);
  older.grant.incarnation = 5;
  Hello newer = worker(2, 0);
  newer.grant.incarnation = 6;
  const Admission late = bench.table.admit(newer, kBeginning);
  CHECK_EQUAL(bench.table.entry(late.place).incarnation, 6U);
  CHECK(bench.refusal(older) == ErrorCode::kFenced);  // it comes here after the one that replaced it
}

TEST(the_places_of_sessions_that_are_over_are_used_again) {
  Bench bench(kAsync);
  for (std::uint64_t id = 1; id <= 2 * kMaxSessions; ++id) {
    Hello observer = worker(id, 0);
    observer.role = Role::kObserver;
    const Admission admission = bench.table.admit(observer, kBeginning);
    CHECK_EQUAL(bench.table.ledger(admission.place).accepted.load(), 0U);
    bench.table.ledger(admission.place).accepted = 1;
    bench.table.connection_ended(admission.place, 1, SessionEnd::kDone, true, kBeginning);
    bench.table.retire(admission.place);
  }
  Bench full(kAsync);
  for (std::uint64_t id = 1; id <= kMaxSessions; ++id) {
    full.table.admit(worker(id, static_cast<std::uint32_t>(id)), kBeginning);
  }
  CHECK(full.refusal(worker(kMaxSessions + 1, 0)) == ErrorCode::kTransport);
}

TEST(a_proof_holds_for_what_it_was_made_for_and_nothing_else) {
  const JobSecret secret{3, 4};
  Grant grant{1, 2, {}, 9, {}};
  const Proof proof = prove(secret, {5, 6}, Role::kWorker, grant);
  CHECK(same(proof, prove(secret, {5, 6}, Role::kWorker, grant)));
  CHECK(!same(proof, prove({3, 5}, {5, 6}, Role::kWorker, grant)));
  CHECK(!same(proof, prove(secret, {5, 7}, Role::kWorker, grant)));
  CHECK(!same(proof, prove(secret, {5, 6}, Role::kObserver, grant)));
  grant.replaces = {1};
  CHECK(!same(proof, prove(secret, {5, 6}, Role::kWorker, grant)));
  grant.replaces = {};
  grant.incarnation = 3;
  CHECK(!same(proof, prove(secret, {5, 6}, Role::kWorker, grant)));
  CHECK(!same(prove(secret, 1), prove(secret, 2)));
  CHECK(!same(prove(secret, ClientId{1, 1}, 1), prove(secret, 1)));
}
