// Ranks that have left, callbacks that do not return or wait for their own group, and lanes that throw what nobody expects.
#include <atomic>
#include <new>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "group_case.h"

namespace {

using namespace group_case;

constexpr std::uint32_t kAnyRank = PointToPoint::kAnyRank;
constexpr auto kSoon = std::chrono::seconds(5);  // the calls' own timeouts are longer

ProcessGroup::Call message(OperationKind kind, std::uint32_t peer, std::vector<float>& memory) {
  ProcessGroup::Call call = call_of(kind);
  call.operation.root = peer;
  call.operation.dtype = DType::kFloat32;
  call.operation.shape = {static_cast<std::int64_t>(memory.size())};
  call.operands = {{bytes_of(std::as_const(memory))}, {bytes_of(memory)}};
  return call;
}

Fault fault_of_work(const std::shared_ptr<Work>& work) {
  return fault_of([&] { settle(work); });
}

// A lane whose operations end by what a test throws.
struct ThrowingLane final : Lane {
  explicit ThrowingLane(std::function<void()> throws) : throws_it(std::move(throws)) {}
  Result run(std::uint64_t, const Operation&, const Operands&, const Deadline&, const Interrupt&) override {
    throws_it();
    return {};
  }
  void abort(const Error&) override {}
  std::vector<std::uint32_t> awaited() const override { return {}; }
  std::function<void()> throws_it;
};

struct Owner final : LaneOwner {
  Error broken(const Error& why, std::optional<std::uint32_t>) override {
    ++broke;
    return why;
  }
  void given_up(const Error&) override { ++gave_up; }
  std::atomic<int> broke{0};
  std::atomic<int> gave_up{0};
};

LaneJob barrier_job() {
  LaneJob job;
  job.operation.kind = OperationKind::kBarrier;
  job.work = std::make_shared<Work>();
  return job;
}

}  // namespace

TEST(what_waits_for_a_rank_that_leaves_ends_at_once_and_names_it) {
  for (const Case& a_case : kBoth) {
    for (const OperationKind kind : {OperationKind::kReceive, OperationKind::kSend}) {
      for (const std::uint32_t leaves : {0U, 1U}) {  // who connects to whom
        Members members(a_case, 3);
        ProcessGroup& stays = members[1 - leaves];
        std::vector<float> memory(5);
        const auto before = stays.begin(message(kind, leaves, memory), {});
        const Clock::time_point began = now();
        members[leaves].close({});
        const auto after = stays.begin(message(kind, leaves, memory), {});
        for (const auto& work : {before, after}) {
          const Fault fault = fault_of_work(work);
          CHECK(fault.code == ErrorCode::kPeerClosed);
          CHECK_EQUAL(fault.text, "rank " + std::to_string(leaves) +
                                      " of group 'world' has left the group; close it on all ranks after the last "
                                      "operation");
        }
        CHECK(now() - began < kSoon);
        std::vector<float> sent(5, 3.0F);  // the others go on
        const auto goes = stays.begin(message(OperationKind::kSend, 2, sent), {});
        settle(members[2].begin(message(OperationKind::kReceive, 1 - leaves, memory), {}));
        settle(goes);
        CHECK_EQUAL(memory[4], 3.0F);
      }
    }
  }
}

TEST(what_a_rank_sent_before_it_left_still_comes) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 2);
    std::vector<float> sent(1'000'000, 2.0F);
    std::vector<float> came(sent.size());
    const auto receiving = members[1].begin(message(OperationKind::kReceive, 0, came), {});
    const auto sending = members[0].begin(message(OperationKind::kSend, 1, sent), {});
    members[0].close({});
    settle(sending);
    settle(receiving);
    CHECK_EQUAL(came.back(), 2.0F);
  }
}

TEST(a_receive_from_any_rank_ends_once_nobody_is_left_who_could_send) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 3);
    std::vector<float> memory(5);
    const auto receiving = members[1].begin(message(OperationKind::kReceive, kAnyRank, memory), {});
    members[0].close({});
    std::vector<float> sent(5, 4.0F);
    const auto sending = members[2].begin(message(OperationKind::kSend, 1, sent), {});
    settle(receiving);  // one who could is left
    settle(sending);
    CHECK_EQUAL(memory[0], 4.0F);
    const Clock::time_point began = now();
    const auto pending = members[1].begin(message(OperationKind::kReceive, kAnyRank, memory), {});
    members[2].close({});
    const auto later = members[1].begin(message(OperationKind::kReceive, kAnyRank, memory), {});
    for (const auto& work : {pending, later}) {
      const Fault fault = fault_of_work(work);
      CHECK(fault.code == ErrorCode::kPeerClosed);
      CHECK(contains(fault.text, "rank 1 of group 'world' waits for any rank to send (tag 0), and nobody is left"));
      CHECK(contains(fault.text, "ranks 0 and 2 have left the group"));
    }
    CHECK(now() - began < kSoon);
  }
}

TEST(a_rank_that_dies_is_named_even_though_another_has_left_before) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 3);
    std::vector<float> memory(5);
    std::vector<float> sent(5);
    const auto receiving = members[1].begin(message(OperationKind::kReceive, 2, memory), {});
    const auto sending = members[2].begin(message(OperationKind::kSend, 1, sent), {});
    settle(sending);  // so there is a connection between the two
    settle(receiving);
    members[0].close({});
    const auto pending = members[1].begin(message(OperationKind::kReceive, 2, memory), {});
    members[2].abandon();
    const Fault fault = fault_of_work(pending);
    CHECK(fault.code == ErrorCode::kPeerClosed);
    CHECK(contains(fault.text, "rank 2 of "));
    CHECK(!contains(fault.text, "rank 0"));
  }
}

TEST(a_group_whose_callback_does_not_return_says_so_and_ends_when_it_does) {
  for (const bool message_thread : {false, true}) {
    Members members(kBoth[0], 2);
    std::atomic<bool> in_callback{false};
    std::atomic<bool> may_return{false};
    std::vector<std::vector<float>> memories(2, std::vector<float>(5));
    const auto begin = [&](std::uint32_t rank) {
      return message_thread ? members[rank].begin(message(rank == 0 ? OperationKind::kSend : OperationKind::kReceive,
                                                          1 - rank, memories[rank]),
                                                  {})
                            : members[rank].begin(allreduce(memories[rank], memories[rank], false), {});
    };
    const auto work = begin(0);
    work->when_done([&] {
      in_callback = true;
      while (!may_return) {
        sleep_for(milliseconds{1});
      }
    });
    settle(begin(1));
    const Deadline deadline = Deadline::after(20.0);
    while (!in_callback && !deadline.expired()) {
      sleep_for(milliseconds{1});
    }
    CHECK(in_callback);
    for (int again = 0; again < 2; ++again) {
      const Clock::time_point began = now();
      const std::optional<std::string> waits_for = members[0].stop(Deadline::after(0.05));
      CHECK(waits_for.has_value());
      CHECK_EQUAL(*waits_for, message_thread ? "a callback of a send or receive" : "a callback of an operation");
      CHECK(now() - began < kSoon);
    }
    may_return = true;
    CHECK(!members[0].stop(Deadline::after(20.0)).has_value());
  }
}

TEST(callbacks_of_queued_operations_follow_what_failed_before_them_and_keep_no_rank_waiting) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 3);
    std::vector<std::vector<float>> memories(4, std::vector<float>(5));
    std::atomic<int> first_was_done{-1};
    std::atomic<bool> may_return{false};
    std::vector<float> received(5);
    const auto elsewhere = members[1].begin(message(OperationKind::kReceive, 2, received), {});
    ProcessGroup::Call overdue = allreduce(memories[0], memories[1], false);
    overdue.timeout_s = 0.2;
    const auto first = members[0].begin(std::move(overdue), {});
    const auto second = members[0].begin(allreduce(memories[2], memories[3], false), {});
    second->when_done([&] {
      first_was_done = first->done() ? 1 : 0;
      const Deadline at_most = Deadline::after(20.0);
      while (!may_return && !at_most.expired()) {
        sleep_for(milliseconds{1});
      }
    });
    const Clock::time_point began = now();
    CHECK(fault_of_work(first).code == ErrorCode::kDeadlineExceeded);
    CHECK(contains(fault_of_work(elsewhere).text, "rank 0"));  // while the callback goes on
    CHECK(now() - began < kSoon);
    const Deadline deadline = Deadline::after(10.0);
    while (first_was_done < 0 && !deadline.expired()) {
      sleep_for(milliseconds{1});
    }
    CHECK_EQUAL(first_was_done.load(), 1);
    may_return = true;
    CHECK(fault_of_work(second).code == ErrorCode::kDeadlineExceeded);
    CHECK(!members[0].stop(Deadline::after(20.0)).has_value());  // the callback has returned
  }
}

TEST(a_callback_may_begin_an_operation_of_its_group_and_not_wait_for_it) {
  Members members(kBoth[0], 2);
  std::vector<float> in(5, 1.0F);
  std::vector<float> outs(5);
  std::vector<float> others(5);
  std::shared_ptr<Work> first = members[0].begin(allreduce(in, outs, false), {});
  std::vector<Fault> faults;
  std::shared_ptr<Work> second;
  std::atomic<bool> called{false};
  const std::vector<std::function<void()>> waits = {
      [&] { second->wait(Deadline::after(1.0), {}); },
      [&] { members[0].begin(allreduce(in, others, true), {}); },
      [&] { members[0].begin(call_of(OperationKind::kJoin), {}); },
  };
  first->when_done([&] {
    second = members[0].begin(allreduce(in, others, false), {});
    for (const auto& wait : waits) {
      faults.push_back(fault_of(wait));
    }
    first->wait(Deadline::after(1.0), {});  // it is done
    called = true;
  });
  std::vector<float> own(5);
  settle(members[1].begin(allreduce(in, own), {}));
  settle(members[1].begin(allreduce(in, own), {}));
  const Deadline deadline = Deadline::after(20.0);
  while (!called && !deadline.expired()) {
    sleep_for(milliseconds{1});
  }
  CHECK_EQUAL(faults.size(), waits.size());
  for (const Fault& fault : faults) {
    CHECK(fault.code == ErrorCode::kConfig);
    CHECK(contains(fault.text, "begin the other one there, and wait for it elsewhere"));
  }
  settle(second);
  CHECK_EQUAL(others[0], 2.0F);
}

TEST(a_callback_within_a_callback_of_another_group_waits_for_neither) {
  const int one = 0;
  const int other = 0;
  Work outer(&one);
  Work inner(&other);
  Work pending(&one);
  Fault within;
  Fault after;
  inner.when_done([&] { within = fault_of([&] { pending.wait(Deadline::after(0.0), {}); }); });
  outer.when_done([&] {
    inner.finish({});
    after = fault_of([&] { pending.wait(Deadline::after(0.0), {}); });
  });
  outer.finish({});
  CHECK(within.code == ErrorCode::kConfig);
  CHECK(after.code == ErrorCode::kConfig);
  CHECK(!pending.wait(Deadline::after(0.0), {}));  // the thread holds nothing up any more
}

TEST(a_callback_may_wait_for_another_group) {
  Members members(kBoth[0], 1);
  Members other(kBoth[0], 1);
  std::vector<float> in(5, 1.0F);
  std::vector<float> out(5);
  std::vector<float> others(5);
  std::atomic<int> outcome{-1};
  const auto work = members[0].begin(allreduce(in, out, false), {});
  work->when_done(
      [&] { outcome = static_cast<int>(fault_of([&] { settle(other[0].begin(allreduce(in, others), {})); }).code); });
  const Deadline deadline = Deadline::after(20.0);
  while (outcome < 0 && !deadline.expired()) {
    sleep_for(milliseconds{1});
  }
  CHECK_EQUAL(outcome.load(), 0);
}

TEST(whatever_a_lane_throws_is_the_error_of_its_operation_and_of_the_group) {
  const std::vector<std::pair<std::function<void()>, std::string>> cases = {
      {[] { throw std::bad_alloc(); }, "no memory for barrier"},
      {[] { throw std::length_error("too long"); }, "barrier cannot go on: too long"},
      {[] { throw std::system_error(EAGAIN, std::generic_category(), "no thread"); },
       "barrier cannot go on: no thread"},
      {[] { throw 5; }, "barrier cannot go on"},  // NOLINT(hicpp-exception-baseclass): nobody expects it
  };
  for (const auto& [throws_it, text] : cases) {
    for (const bool at_once : {false, true}) {
      Owner owner;
      LaneQueue queue(std::make_unique<ThrowingLane>(throws_it), owner, "runs operations");
      const LaneJob first = barrier_job();
      const LaneJob second = barrier_job();
      queue.submit(first, at_once, {});
      queue.submit(second, at_once, {});
      for (const auto& work : {first.work, second.work}) {
        const Fault fault = fault_of_work(work);
        CHECK(fault.code == ErrorCode::kTransport);
        CHECK(contains(fault.text, text));
      }
      CHECK_EQUAL(owner.broke.load(), 1);
    }
  }
}

TEST(what_an_interrupt_throws_reaches_its_caller_whatever_it_is) {
  struct Odd {};
  struct LookingLane final : Lane {
    Result run(std::uint64_t, const Operation&, const Operands&, const Deadline&, const Interrupt& looks) override {
      looks();
      return {};
    }
    void abort(const Error&) override {}
    std::vector<std::uint32_t> awaited() const override { return {}; }
  };
  Owner owner;
  LaneQueue queue(std::make_unique<LookingLane>(), owner, "runs operations");
  const LaneJob job = barrier_job();
  bool thrown = false;
  try {
    queue.submit(job, true, [] { throw Odd(); });
  } catch (const Odd&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK_EQUAL(owner.gave_up.load(), 1);
  CHECK(contains(fault_of_work(job.work).text, "it was interrupted in barrier"));
}
