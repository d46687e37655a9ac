// What workers save with their pushes: saved where the push is applied, dropped where it is refused, and bounded.
#include "check.h"
#include "server/saved_bytes.h"

namespace {

using namespace distnet;

constexpr std::uint32_t kRanks = 2;
constexpr std::uint32_t kMostWaiting = 3;

struct Bench {
  std::uint32_t worker(std::uint64_t id, std::uint32_t rank) {
    Hello hello;
    hello.id = {id, 1};
    hello.rank = rank;
    return table.admit(hello, now()).place;
  }
  std::string saved_of(std::uint32_t rank) const {
    const SavedBytes::Data data = saved.of(rank);
    return data == nullptr ? "nothing" : std::string(reinterpret_cast<const char*>(data->data()), data->size());
  }

  Memory memory;
  SessionTable table{SessionRules{true, false, 2, 0.0}, memory};
  SavedBytes saved{table, kRanks, kMostWaiting};
};

std::vector<std::byte> bytes(const std::string& text) {
  const std::span<const std::byte> data = std::as_bytes(std::span(text));
  return {data.begin(), data.end()};
}

}  // namespace

TEST(bytes_are_saved_when_their_push_is_applied_and_not_before) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 1);
  bench.saved.keep(session, 2, bytes("two"));
  bench.saved.settled(session, 1, true);
  CHECK_EQUAL(bench.saved_of(1), "nothing");
  bench.saved.settled(session, 2, true);
  CHECK_EQUAL(bench.saved_of(1), "two");
  bench.saved.settled(session, 3, true);  // a push that saves nothing leaves what is saved
  CHECK_EQUAL(bench.saved_of(1), "two");
  CHECK_EQUAL(bench.saved_of(0), "nothing");
  CHECK_EQUAL(bench.saved.all().size(), 1U);
}

TEST(a_push_that_is_refused_drops_its_bytes_and_a_later_one_keeps_its_own) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 0);
  bench.saved.keep(session, 1, bytes("one"));
  bench.saved.keep(session, 2, bytes("two"));
  bench.saved.settled(session, 1, false);
  CHECK_EQUAL(bench.saved_of(0), "nothing");
  bench.saved.settled(session, 2, true);
  CHECK_EQUAL(bench.saved_of(0), "two");
}

TEST(before_their_push_later_bytes_replace_earlier_ones) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 0);
  CHECK(!bench.saved.keep(session, 1, bytes("one")).replaced);
  CHECK(bench.saved.keep(session, 1, bytes("")).replaced);
  bench.saved.settled(session, 1, true);
  CHECK_EQUAL(bench.saved_of(0), "");
}

TEST(a_cut_keeps_what_was_saved_then) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 0);
  bench.saved.keep(session, 1, bytes("one"));
  bench.saved.settled(session, 1, true);
  const SavedBytes::ByRank cut = bench.saved.all();
  bench.saved.keep(session, 2, bytes("two"));
  bench.saved.settled(session, 2, true);
  CHECK(*cut.at(0) == bytes("one"));
  Bench later;
  later.saved.put_back({{0, cut.at(0)}, {kRanks, cut.at(0)}});
  CHECK_EQUAL(later.saved_of(0), "one");
  CHECK_EQUAL(later.saved_of(kRanks), "nothing");
}

TEST(what_waits_for_a_push_goes_with_the_connection) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 0);
  bench.saved.keep(session, 1, bytes("one"));
  bench.saved.forget(session);
  bench.saved.settled(session, 1, true);
  CHECK_EQUAL(bench.saved_of(0), "nothing");
  bench.saved.forget(session);
}

TEST(what_a_session_can_have_kept_is_bounded) {
  Bench bench;
  const std::uint32_t session = bench.worker(1, 0);
  bench.table.ledger(session).accepted = 4;
  CHECK_THROWS(bench.saved.keep(session, 4, bytes("it has come")), Error);
  for (std::uint64_t push = 5; push < 5 + kMostWaiting; ++push) {
    bench.saved.keep(session, push, bytes("x"));
  }
  bench.saved.keep(session, 5, bytes("in place of another"));
  CHECK_THROWS(bench.saved.keep(session, 5 + kMostWaiting, bytes("one too many")), Error);
  const std::uint32_t beyond = bench.worker(2, kRanks);
  CHECK(bench.saved.keep(beyond, 1, bytes("x")).why_not.find("ranks below 2") != std::string::npos);
  ShardSettings settings;
  settings.policy.workers = 3;
  CHECK_EQUAL(saved_ranks(settings), 64U);  // where a rank is a label
  settings.policy.joins = Joins::kAll;
  CHECK_EQUAL(saved_ranks(settings), 3U);
  settings.shard = 1;
  CHECK_EQUAL(saved_ranks(settings), 0U);
}
