// What a shard does about a request, without any wire: pins that come back, drafts that are told of at the right time.
#include <cmath>
#include <csignal>
#include <limits>
#include <string>
#include <vector>

#include <sys/resource.h>

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

// What a shard tells a session's channel.
struct Heard final : ServerChannel {
  std::optional<Request> next() override { return std::nullopt; }
  void reply(Reply given) override {
    ++replies;
    version_at_reply = store == nullptr ? 0 : store->version();
    header = given.header;
    brought_parameters = given.data != nullptr;
  }
  void settled(std::uint64_t push) override { settled_push = push; }
  void drafted(std::uint64_t, std::uint32_t, std::uint64_t elements) override { drafted_elements = elements; }
  void client_left() override {}
  void stop_taking() override {}
  void close() override {}
  Progress progress() const override { return {}; }
  std::uint64_t bytes_received() const override { return 0; }
  std::uint64_t bytes_sent() const override { return 0; }

  Store* store = nullptr;
  int replies = 0;
  std::uint64_t version_at_reply = 0;
  ReplyHeader header;
  bool brought_parameters = false;
  std::uint64_t settled_push = 0;
  std::uint64_t drafted_elements = 0;
};

struct NoPeers final : RoundPeers {};

// One shard, and one session that asks it to put replies into its replica.
struct Bench {
  explicit Bench(const char* semantics)
      : shard(settings_of(semantics), make_manifest(false, {{"0", {kSize}}}), {0, kSize},
              std::vector<float>(kSize, 0.0F), memory, sessions, peers) {
    Hello hello;
    hello.id = {1, 2};
    carrying = sessions.admit(hello, nullptr);
    channel.store = &shard.store();
    shard.attach(carrying.place, channel);
  }
  ~Bench() { shard.detach(carrying.place); }

  static ShardSettings settings_of(const char* semantics) {
    served::Case a_case;
    a_case.semantics = semantics;
    ShardSettings settings;
    settings.policy = served::policy_of(a_case);
    settings.schedule.learning_rate = 1.0;
    return settings;
  }

  Request request(Arrival& arrival) {
    Request asked;
    asked.header.kind = RequestKind::kGradient;
    asked.header.flags = kWantParameters | kDeliver;
    asked.header.push = ledger().accepted.load() + 1;
    asked.header.incarnation = sessions.entry(carrying.place).incarnation;
    asked.gradient = GradientView::dense(gradient.data(), kSize);
    asked.arriving = &arrival;
    asked.replica = replica.data();
    return asked;
  }
  bool push(Arrival& arrival) { return shard.serve(carrying.place, request(arrival), channel); }
  const Ledger& ledger() { return sessions.table().ledger(carrying.place); }

  std::vector<float> gradient = std::vector<float>(kSize, -1.0F);
  std::vector<float> replica = std::vector<float>(kSize, -7.0F);
  Memory memory;
  NoPeers peers;
  LiveSessions sessions{SessionRules{true, false, 1, 0.0}, memory};
  Shard shard;
  Heard channel;
  Carrying carrying;
};

}  // namespace

TEST(a_push_that_is_cut_off_while_its_reply_sets_out_gives_its_pin_back) {
  Bench bench("async-locked");
  Ends cut_off(State::kCutOff);
  for (int i = 0; i < 5; ++i) {
    CHECK(!bench.push(cut_off));
    bench.shard.store().apply(bench.gradient);
  }
  CHECK(served::code_of([&] { bench.shard.store().buffer(2); }) == ErrorCode::kProtocol);  // the newest, and one more
  CHECK_EQUAL(bench.ledger().accepted.load(), 0U);
  CHECK_EQUAL(bench.channel.replies, 0);
}

TEST(a_withdrawn_push_is_refused_and_its_reply_brings_parameters_whole_or_not_at_all) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree"}) {
    Bench bench(semantics);
    Ends withdrawn(State::kWithdrawn);
    CHECK(bench.push(withdrawn));
    const bool begun = bench.replica[0] != -7.0F;
    CHECK(bench.channel.brought_parameters || (bench.channel.header.flags & kDeliver) != 0 || !begun);
    CHECK_EQUAL(bench.channel.replies, 1);
    CHECK_EQUAL(bench.ledger().refused.load(), 1U);
    CHECK_EQUAL(bench.ledger().settled.load(), 1U);
    CHECK_EQUAL(bench.channel.settled_push, 1U);
    CHECK_EQUAL(bench.shard.store().version(), 0U);
  }
}

TEST(a_push_that_finds_no_memory_for_a_version_is_settled_as_refused_and_named) {
  std::signal(SIGXFSZ, SIG_IGN);  // of a file that may not grow; the call then fails
  rlimit before{};
  CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
  for (const char* const semantics : {"async-apply", "async-locked"}) {
    Bench bench(semantics);
    Ends here(State::kHere);
    CHECK(bench.push(here));
    const Pin newest = bench.shard.store().pin();
    CHECK(bench.push(here));
    const Pin next = bench.shard.store().pin();  // both buffers are read: another update needs a third
    const rlimit small{4096, before.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    const ErrorCode code = served::code_of([&] { bench.push(here); });
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(code == ErrorCode::kConfig);
    // One that is applied while it arrives is not accepted before its last byte: then there is nothing to settle.
    const std::uint64_t accepted = std::string(semantics) == "async-locked" ? 3 : 2;
    CHECK_EQUAL(bench.ledger().accepted.load(), accepted);
    CHECK_EQUAL(bench.ledger().settled.load(), accepted);
    CHECK_EQUAL(bench.channel.settled_push, accepted);
    CHECK_EQUAL(bench.ledger().refused.load(), accepted - 2);
    CHECK_EQUAL(bench.ledger().applied.load(), 2U);
    CHECK_EQUAL(bench.shard.store().version(), 2U);
    CHECK_EQUAL(bench.shard.metrics().unsettled(), 0U);
    CHECK(bench.push(here));  // once there is memory again
    CHECK_EQUAL(bench.shard.store().version(), 3U);
  }
}

TEST(a_draft_is_told_of_only_where_the_reply_waits_for_it) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree"}) {
    Bench bench(semantics);
    Ends here(State::kHere);
    CHECK(bench.push(here));
    const bool applies_first = std::string(semantics) == "async-apply";
    CHECK_EQUAL(bench.channel.version_at_reply, applies_first ? 1U : 0U);
    CHECK_EQUAL(bench.channel.drafted_elements, applies_first ? kSize : 0U);
    CHECK_EQUAL((bench.channel.header.flags & kDrafted) != 0, applies_first);
    CHECK_EQUAL(bench.shard.store().version(), 1U);
    CHECK_EQUAL(bench.ledger().settled.load(), 1U);
  }
}

TEST(a_gradient_that_is_not_finite_is_refused_in_its_reply_or_in_the_next) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree"}) {
    Bench bench(semantics);
    Ends here(State::kHere);
    const bool replies_first = std::string(semantics) != "async-apply";
    const bool in_place = std::string(semantics) == "async-lockfree";
    bench.gradient[20'000] = std::numeric_limits<float>::quiet_NaN();
    CHECK(bench.push(here));
    const auto status = [&] { return static_cast<ErrorCode>(bench.channel.header.status); };
    const auto of_push_before = [&] { return (bench.channel.header.flags & kOfPushBefore) != 0; };
    CHECK(status() == (replies_first ? ErrorCode::kNone : ErrorCode::kNonFiniteGradient));
    CHECK(!of_push_before());
    CHECK(replies_first || !bench.channel.brought_parameters);
    CHECK_EQUAL(bench.shard.store().version(), 0U);
    CHECK_EQUAL(bench.channel.settled_push, 1U);
    const ShardStatistics statistics = bench.shard.statistics();
    CHECK_EQUAL(statistics.accepted, 1U);
    CHECK_EQUAL(statistics.applied, 0U);
    CHECK_EQUAL(statistics.refused, 1U);
    CHECK_EQUAL(statistics.refused_in_part, in_place ? 1U : 0U);

    bench.gradient[20'000] = -1.0F;
    CHECK(bench.push(here));
    CHECK(status() == (replies_first ? ErrorCode::kNonFiniteGradient : ErrorCode::kNone));
    CHECK_EQUAL(of_push_before(), replies_first);
    CHECK(bench.channel.brought_parameters || (bench.channel.header.flags & kDeliver) != 0);
    CHECK(bench.push(here));
    CHECK(status() == ErrorCode::kNone && !of_push_before());  // it is told once
    CHECK_EQUAL(bench.shard.store().version(), 2U);
    CHECK_EQUAL(bench.ledger().refused.load(), 1U);
  }
}

TEST(an_abstention_is_settled_before_its_reply_and_changes_nothing) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree", "sync"}) {
    Bench bench(semantics);
    Ends here(State::kHere);
    const auto abstain = [&](std::uint64_t round) {
      Request request = bench.request(here);
      request.header.kind = RequestKind::kAbstention;
      request.header.round = round;
      request.gradient = GradientView::none();
      request.arriving = nullptr;
      CHECK(bench.shard.serve(bench.carrying.place, request, bench.channel));
    };
    if (bench.shard.rounds() != nullptr) {
      bench.shard.rounds()->came({0, 1});
    }
    abstain(0);
    CHECK(bench.channel.brought_parameters && bench.channel.header.status == 0);
    CHECK((bench.channel.header.flags & kDrafted) == 0);
    CHECK_EQUAL(bench.channel.header.version, 0U);
    CHECK_EQUAL(bench.channel.header.accepted, 1U);
    CHECK_EQUAL(bench.channel.header.applied, 1U);
    CHECK_EQUAL(bench.channel.settled_push, 1U);
    Request push = bench.request(here);
    push.header.round = 1;
    push.header.fields = kHasLearningRate;
    push.header.learning_rate = 0.25;
    CHECK(bench.shard.serve(bench.carrying.place, push, bench.channel));
    abstain(2);
    CHECK_EQUAL(bench.channel.header.applied, 3U);
    CHECK_EQUAL(bench.channel.header.version, 1U);
    std::vector<float> now(kSize);
    bench.shard.store().read(now);
    CHECK(now.front() == 0.25F && now.back() == 0.25F);
    const ShardStatistics statistics = bench.shard.statistics();
    CHECK_EQUAL(statistics.abstained, 2U);
    CHECK_EQUAL(statistics.accepted, 3U);
    CHECK_EQUAL(statistics.applied, 1U);
    CHECK_EQUAL(statistics.refused, 0U);
    CHECK_EQUAL(statistics.queue_depth, 0U);
    CHECK_EQUAL(statistics.pulls, 0U);
  }
}

TEST(a_change_is_added_to_the_parameters_without_a_learning_rate) {
  for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree", "sync"}) {
    Bench bench(semantics);
    if (bench.shard.rounds() != nullptr) {
      bench.shard.rounds()->came({0, 1});
    }
    bench.shard.set_learning_rate(64.0);
    Ends here(State::kHere);
    for (const RequestKind kind : {RequestKind::kChange, RequestKind::kGradient, RequestKind::kChange}) {
      Request request = bench.request(here);
      request.header.kind = kind;
      request.header.round = bench.ledger().accepted.load();
      CHECK(bench.shard.serve(bench.carrying.place, request, bench.channel));
      CHECK_EQUAL(bench.channel.header.status, 0U);
    }
    std::vector<float> now(kSize);
    bench.shard.store().read(now);
    CHECK(now.front() == 62.0F && now.back() == 62.0F);  // -1 + 64 - 1
    CHECK_EQUAL(bench.shard.store().version(), 3U);
  }
}

TEST(a_request_that_breaks_a_rule_is_refused_by_name_and_changes_nothing) {
  Bench bench("async-apply");
  Ends here(State::kHere);
  const auto refused = [&](const auto& spoil, const char* names) {
    Request request = bench.request(here);
    spoil(request);
    try {
      bench.shard.serve(bench.carrying.place, request, bench.channel);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kProtocol && std::string(error.what()).find(names) != std::string::npos;
    }
    return false;
  };
  const auto with_rate = [](double rate) {
    return [rate](Request& request) {
      request.header.fields = kHasLearningRate;
      request.header.learning_rate = rate;
    };
  };
  const auto with_weight = [](float weight) {
    return [weight](Request& request) {
      request.header.fields = kHasWeight;
      request.header.weight = weight;
    };
  };
  for (const double rate :
       {-1.0, 1e39, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(refused(with_rate(rate), "learning rate that is negative, or that float32 cannot hold"));
  }
  for (const float weight : {0.0F, -1.0F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    CHECK(refused(with_weight(weight), "weight that is not finite, or not above 0"));
  }
  CHECK(refused(with_weight(1.0F), "no mean"));
  const std::vector<double> bad_rates = {1.0, -1.0};
  CHECK(refused(
      [&](Request& request) {
        request.header.fields = kHasGroupRates;
        request.group_rates = bad_rates;
      },
      "group's learning rate"));
  CHECK(refused([](Request& request) { request.header.fields = kHasGroupRates; }, "group's learning rate"));
  for (const RequestKind kind : {RequestKind::kNone, RequestKind::kAbstention, RequestKind::kChange}) {
    CHECK(refused(
        [&](Request& request) {
          with_rate(1.0)(request);
          request.header.kind = kind;
          request.gradient = kind == RequestKind::kChange ? request.gradient : GradientView::none();
        },
        "without a gradient"));
  }
  CHECK(refused([](Request& request) { request.header.kind = RequestKind::kAbstention; }, "gradient"));
  CHECK(refused([](Request& request) { request.header.kind = static_cast<RequestKind>(5); }, "unknown kind"));
  CHECK(refused([](Request& request) { request.header.fields = 64; }, "unknown field"));
  CHECK(refused([](Request& request) { ++request.header.incarnation; }, "incarnation"));
  CHECK(refused([](Request& request) { request.header.push += 1; }, "push number 2"));
  CHECK(refused([](Request& request) { request.gradient.elements -= 1; }, "gradient"));
  CHECK(refused([](Request& request) { request.header.kind = RequestKind::kNone; }, "gradient"));
  CHECK(refused(
      [](Request& request) {
        request.header.kind = RequestKind::kNone;
        request.gradient = GradientView::none();
      },
      "a pull with the number of a push"));
  CHECK_EQUAL(bench.shard.store().version(), 0U);
  CHECK(bench.push(here));
}
