// Members of a group with their coordinator: how they come together, run operations, and end.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#include "group_case.h"

namespace {

using namespace group_case;

}  // namespace

TEST(all_ranks_reduce_in_order_again_and_again) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 3, [&](ProcessGroup& group) {
      CHECK_EQUAL(std::string(group.transport()), a_case.transport == GroupTransport::kShm ? "shm" : "tcp");
      for (int i = 0; i < 100; ++i) {
        CHECK_EQUAL(sum_of(group, static_cast<float>(group.rank())), 3.0F);
      }
    });
  }
}

TEST(members_that_say_nothing_of_a_transport_take_shared_memory_where_they_can) {
  for (const char* const address : {"shm://", "tcp://127.0.0.1:0"}) {
    in_group({GroupTransport::kAuto, address}, 2, [](ProcessGroup& group) {
      CHECK_EQUAL(std::string(group.transport()), "shm");
      CHECK_EQUAL(sum_of(group, 1.0F), 2.0F);
    });
  }
}

TEST(a_group_of_one_needs_nobody) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 1, [](ProcessGroup& group) { CHECK_EQUAL(sum_of(group, 4.0F), 4.0F); });
  }
}

TEST(what_is_begun_runs_in_order_on_the_lanes_thread) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 2, [](ProcessGroup& group) {
      const std::vector<float> in(1000, 1.0F);
      std::vector<std::vector<float>> outs(20, std::vector<float>(1000));
      std::vector<std::shared_ptr<Work>> works;
      for (std::vector<float>& out : outs) {
        works.push_back(group.begin(allreduce(in, out, false), {}));
      }
      CHECK_EQUAL(sum_of(group, 1.0F), 2.0F);  // after all of them
      for (std::size_t i = 0; i < works.size(); ++i) {
        CHECK(works[i]->done());
        CHECK_EQUAL(outs[i][999], 2.0F);
      }
    });
  }
}

TEST(a_handle_says_when_it_is_done) {
  in_group(kBoth[0], 2, [](ProcessGroup& group) {
    const std::vector<float> in(10, 1.0F);
    std::vector<float> out(10);
    const auto heard = std::make_shared<std::atomic<int>>(0);
    const auto work = group.begin(allreduce(in, out, false), {});
    work->when_done([heard] { ++*heard; });
    settle(work);
    group.close({});
    CHECK_EQUAL(heard->load(), 1);
    work->when_done([heard] { ++*heard; });  // at once
    CHECK_EQUAL(heard->load(), 2);
  });
}

TEST(named_operations_run_whatever_order_the_ranks_call_them_in) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 3, [](ProcessGroup& group) {
      for (int round = 0; round < 5; ++round) {
        std::vector<std::vector<float>> ins;
        std::vector<std::vector<float>> outs(6, std::vector<float>(10));
        for (int i = 0; i < 6; ++i) {
          ins.emplace_back(10, static_cast<float>(i));
        }
        std::vector<std::shared_ptr<Work>> works;
        for (std::size_t i = 0; i < 6; ++i) {
          const std::size_t which = group.rank() == 1 ? 5 - i : (i + group.rank()) % 6;
          works.push_back(group.begin(allreduce(ins[which], outs[which], false, "op " + std::to_string(which)), {}));
        }
        for (const auto& work : works) {
          settle(work);
        }
        for (std::size_t i = 0; i < 6; ++i) {
          CHECK_EQUAL(outs[i][0], 3.0F * static_cast<float>(i));
        }
      }
    });
  }
}

TEST(a_name_is_under_way_once) {
  Members members(kBoth[0], 2);
  const std::vector<float> in(10, 1.0F);
  std::vector<float> out(10);
  const auto work = members[0].begin(allreduce(in, out, false, "a"), {});
  const Fault fault = fault_of([&] { members[0].begin(allreduce(in, out, false, "a"), {}); });
  CHECK(fault.code == ErrorCode::kConfig);
  CHECK(contains(fault.text, "rank 0 of group 'world' has an operation named 'a' under way already"));
  CHECK_EQUAL(sum_of(members[1], 2.0F, "a"), 3.0F);
  settle(work);
  CHECK_EQUAL(out[0], 3.0F);
}

TEST(a_mismatch_is_the_same_error_on_all_ranks_and_the_group_goes_on) {
  for (const Case& a_case : kBoth) {
    std::vector<Fault> faults(3);
    in_group(a_case, 3, [&](ProcessGroup& group) {
      const std::vector<float> in(group.rank() == 2 ? 12 : 10);
      std::vector<float> out(in.size());
      faults[group.rank()] = fault_of([&] { settle(group.begin(allreduce(in, out), {})); });
      CHECK_EQUAL(sum_of(group, 1.0F), 3.0F);
      CHECK_EQUAL(sum_of(group, 1.0F, "named"), 3.0F);
    });
    for (const Fault& fault : faults) {
      CHECK(fault.code == ErrorCode::kCollectiveMismatch);
      CHECK_EQUAL(fault.text, faults[0].text);
      CHECK(contains(fault.text, "(12,)") && contains(fault.text, "(10,)"));
    }
  }
}

TEST(a_member_that_dies_is_named_to_all_in_every_pending_and_later_operation) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 3);
    on_threads(3, [&](std::uint32_t rank) {
      if (rank == 1) {
        members[1].abandon();
        return;
      }
      for (const char* const name : {"", "", "a"}) {
        const Fault fault = fault_of([&] { sum_of(members[rank], 1.0F, name); });
        CHECK(fault.code == ErrorCode::kPeerClosed);
        CHECK(contains(fault.text, "rank 1 of group 'world' is gone"));
      }
    });
  }
}

TEST(an_operation_whose_peer_does_not_come_names_it_and_all_hear_of_it) {
  for (const Case& a_case : kBoth) {
    Members members(a_case, 3);
    std::vector<Fault> faults(3);
    on_threads(2, [&](std::uint32_t rank) {
      ProcessGroup::Call call = call_of(OperationKind::kBarrier, rank == 0 ? 0.2 : 20.0);
      faults[rank] = fault_of([&] { settle(members[rank].begin(std::move(call), {})); });
    });
    CHECK(faults[0].code == ErrorCode::kDeadlineExceeded);
    CHECK(contains(faults[0].text, "rank 2"));
    CHECK(faults[1].code == ErrorCode::kPeerClosed);
    CHECK(contains(faults[1].text, "rank 0 of group 'world' cannot go on"));
    for (int i = 0; i < 2; ++i) {  // the first may yet meet what the others left behind
      faults[2] = fault_of([&] { settle(members[2].begin(call_of(OperationKind::kBarrier), {})); });
    }
    CHECK(faults[2].code == ErrorCode::kPeerClosed);
  }
}

TEST(a_named_operation_that_others_do_not_call_is_withdrawn_and_the_group_goes_on) {
  Members members(kBoth[0], 2);
  ProcessGroup::Call call = call_of(OperationKind::kBarrier, 0.2);
  call.operation.name = "lonely";
  const Fault fault = fault_of([&] { settle(members[0].begin(std::move(call), {})); });
  CHECK(fault.code == ErrorCode::kDeadlineExceeded);
  CHECK(contains(fault.text, "rank 1 to call 'lonely'"));
  on_threads(2, [&](std::uint32_t rank) { CHECK_EQUAL(sum_of(members[rank], 1.0F, "lonely"), 2.0F); });
}

TEST(a_member_that_leaves_ends_nothing_that_it_has_done_with) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 3, [](ProcessGroup& group) {
      for (int i = 0; i < 20; ++i) {
        CHECK_EQUAL(sum_of(group, 1.0F), 3.0F);
      }
    });
    Members members(a_case, 2);
    on_threads(2, [&](std::uint32_t rank) {
      CHECK_EQUAL(sum_of(members[rank], 1.0F), 2.0F);
      if (rank == 0) {
        members[0].close({});
      } else {
        const Fault fault = fault_of([&] { sum_of(members[1], 1.0F); });
        CHECK(fault.code == ErrorCode::kPeerClosed);
        CHECK(contains(fault.text, "rank 0 of group 'world' has left"));
      }
    });
    CHECK(fault_of([&] { sum_of(members[0], 1.0F); }).code == ErrorCode::kConfig);
  }
}

TEST(a_rank_that_has_joined_contributes_nothing_until_all_have) {
  for (const Case& a_case : kBoth) {
    std::atomic<int> joined{0};
    in_group(a_case, 3, [&](ProcessGroup& group) {
      const int steps = 2 + static_cast<int>(group.rank());
      for (int i = 0; i < steps; ++i) {
        const float present = i < 2 ? 3.0F : i < 3 ? 2.0F : 1.0F;
        CHECK_EQUAL(sum_of(group, 1.0F), present);
        CHECK_EQUAL(sum_of(group, 1.0F, "named " + std::to_string(i)), present);
      }
      const std::shared_ptr<Work> join = group.begin(call_of(OperationKind::kJoin), {});
      settle(join);
      CHECK_EQUAL(join->result().last_rank, 2U);
      ++joined;
      CHECK_EQUAL(sum_of(group, 1.0F), 3.0F);
      CHECK_EQUAL(sum_of(group, 1.0F, "again"), 3.0F);
    });
    CHECK_EQUAL(joined.load(), 3);
  }
}

TEST(duplicates_and_differing_sizes_are_refused_by_name) {
  CoordinatorServer coordinator(parse_address("shm://"));
  std::vector<Fault> faults(2);
  on_threads(2, [&](std::uint32_t rank) {
    faults[rank] = fault_of([&] { ProcessGroup(options_of(coordinator.address(), rank, 2 + rank), {}); });
  });
  for (const Fault& fault : faults) {
    CHECK(fault.code == ErrorCode::kConfig);
    CHECK(contains(fault.text, "has 2 ranks") || contains(fault.text, "has 3 ranks"));
  }
  Members members(kBoth[0], 2);
  const Fault twice = fault_of([&] { ProcessGroup(options_of(members.coordinator.address(), 1, 2), {}); });
  CHECK(twice.code == ErrorCode::kConfig);
  CHECK(contains(twice.text, "rank 1 of group 'world' is refused"));
  on_threads(2, [&](std::uint32_t rank) { CHECK_EQUAL(sum_of(members[rank], 1.0F), 2.0F); });
}

TEST(a_group_whose_ranks_do_not_come_names_them) {
  CoordinatorServer coordinator(parse_address("shm://"));
  const Fault fault =
      fault_of([&] { ProcessGroup(options_of(coordinator.address(), 1, 3, GroupTransport::kAuto, 1.0), {}); });
  CHECK(fault.code == ErrorCode::kDeadlineExceeded);
  CHECK(contains(fault.text, "rank 1 of group 'world' has waited 1 s for ranks 0 and 2"));
}

TEST(a_name_is_free_for_a_new_generation_when_a_member_has_left_or_died) {
  CoordinatorServer coordinator(parse_address("shm://"));
  std::uint64_t last = 0;
  for (int i = 0; i < 3; ++i) {
    std::vector<std::unique_ptr<ProcessGroup>> members(2);
    on_threads(2, [&](std::uint32_t rank) {
      members[rank] = std::make_unique<ProcessGroup>(options_of(coordinator.address(), rank, 2), Interrupt{});
      CHECK_EQUAL(sum_of(*members[rank], 1.0F), 2.0F);
    });
    CHECK_EQUAL(members[0]->generation(), members[1]->generation());
    CHECK(members[0]->generation() > last);
    last = members[0]->generation();
    // Both are through with the sum by now: a death ends whatever the other is still in the middle of.
    on_threads(2, [&](std::uint32_t rank) {
      if (i == 1) {
        members[rank]->abandon();
      } else {
        members[rank]->close({});
      }
    });
  }
}

TEST(members_hear_that_their_coordinator_has_ended) {
  Members members(kBoth[0], 2);
  members.coordinator.stop(0.0);
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    const Fault fault = fault_of([&] { sum_of(members[rank], 1.0F); });
    CHECK_EQUAL(static_cast<int>(fault.code), static_cast<int>(ErrorCode::kPeerClosed));
    CHECK(contains(fault.text, "coordinator of group 'world'"));
  }
}

TEST(sends_and_receives_meet_by_peer_and_tag) {
  for (const Case& a_case : kBoth) {
    in_group(a_case, 3, [](ProcessGroup& group) {
      const std::uint32_t next = (group.rank() + 1) % 3;
      const std::uint32_t before = (group.rank() + 2) % 3;
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{300'000}}) {
        std::vector<std::vector<float>> ins;
        std::vector<std::vector<float>> outs(3, std::vector<float>(count));
        std::vector<std::shared_ptr<Work>> works;
        for (std::uint64_t tag = 0; tag < 3; ++tag) {
          ins.emplace_back(count, static_cast<float>(10 * group.rank() + tag));
        }
        for (const bool sends : {true, false}) {
          for (std::uint64_t i = 0; i < 3; ++i) {
            ProcessGroup::Call call = call_of(sends ? OperationKind::kSend : OperationKind::kReceive);
            call.tag = sends ? i : 2 - i;
            call.operation.root = sends ? next : before;
            call.operation.shape = {static_cast<std::int64_t>(count)};
            if (sends) {
              call.operands.inputs = {bytes_of(std::as_const(ins[call.tag]))};
            } else {
              call.operands.outputs = {bytes_of(outs[call.tag])};
            }
            works.push_back(group.begin(std::move(call), {}));
          }
        }
        for (const auto& work : works) {
          settle(work);
        }
        for (std::uint64_t tag = 0; tag < 3 && count != 0; ++tag) {
          CHECK_EQUAL(outs[tag].back(), static_cast<float>(10 * before + tag));
        }
      }
    });
  }
}

TEST(a_receive_that_expects_something_else_is_a_mismatch_on_both_sides) {
  for (const Case& a_case : kBoth) {
    std::vector<Fault> faults(2);
    in_group(a_case, 2, [&](ProcessGroup& group) {
      std::vector<float> memory(group.rank() == 0 ? 4 : 5);
      for (const bool right : {false, true}) {
        memory.resize(right ? 4 : memory.size());
        ProcessGroup::Call call = call_of(group.rank() == 0 ? OperationKind::kSend : OperationKind::kReceive);
        call.operation.root = 1 - group.rank();
        call.operation.shape = {static_cast<std::int64_t>(memory.size())};
        call.operands = {{bytes_of(std::as_const(memory))}, {bytes_of(memory)}};
        const Fault fault = fault_of([&] { settle(group.begin(std::move(call), {})); });
        if (right) {
          CHECK(fault.code == ErrorCode::kNone);
        } else {
          faults[group.rank()] = fault;
        }
      }
    });
    CHECK(faults[0].code == ErrorCode::kCollectiveMismatch);
    CHECK_EQUAL(faults[0].text, faults[1].text);
    CHECK(contains(faults[0].text, "rank 0 sends 16 bytes of float32") && contains(faults[0].text, "20 bytes"));
  }
}

TEST(a_receive_whose_peer_does_not_send_names_it_and_the_group_goes_on) {
  Members members(kBoth[1], 2);
  ProcessGroup::Call call = call_of(OperationKind::kReceive, 0.2);
  call.operation.root = 1;
  const Fault fault = fault_of([&] { settle(members[0].begin(std::move(call), {})); });
  CHECK(fault.code == ErrorCode::kDeadlineExceeded);
  CHECK(contains(fault.text, "rank 1 to send (tag 0)"));
  on_threads(2, [&](std::uint32_t rank) { CHECK_EQUAL(sum_of(members[rank], 1.0F), 2.0F); });
}

TEST(strangers_at_the_coordinator_disturb_nobody) {
  CoordinatorServer coordinator(parse_address("tcp://127.0.0.1:0"));
  ControlConnection control(Stream::connect(parse_address(coordinator.address()), Deadline::after(5.0), {}));
  JoinGroup join;
  join.name = "hostile";
  join.size = 2;
  join.timeout_s = 5.0;
  control.send(ControlKind::kJoinGroup, join.encode());
  control.send(ControlKind::kAnnounce, encode_name("too early"));
  CHECK(fault_of([&] { control.receive(Deadline::after(5.0)); }).code == ErrorCode::kProtocol);
  ControlConnection longer(Stream::connect(parse_address(coordinator.address()), Deadline::after(5.0), {}));
  longer.send(ControlKind::kJoinGroup, std::vector<std::byte>(kMaxStrangerBytes));
  CHECK(fault_of([&] { longer.receive(Deadline::after(5.0)); }).code == ErrorCode::kProtocol);
  in_group(kBoth[1], 2, [](ProcessGroup& group) { CHECK_EQUAL(sum_of(group, 1.0F), 2.0F); });
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end a process that asks for so much
TEST(a_rank_without_memory_for_a_result_ends_the_group_for_all_at_once) {
  constexpr std::size_t kBytes = std::size_t{1} << 43U;
  if (std::unique_ptr<void, decltype(&std::free)>(std::malloc(kBytes), &std::free)) {
    return;  // this system promises memory that it does not have
  }
  void* const mapped = mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    return;  // this one promises nothing that it does not have
  }
  for (const Case& a_case : kBoth) {
    Members members(a_case, 2);
    std::vector<Fault> faults(2);
    on_threads(2, [&](std::uint32_t rank) {
      ProcessGroup::Call call = call_of(OperationKind::kBroadcast);
      call.operation.dtype = DType::kUint8;
      call.operation.takes_any = rank == 1;
      if (rank == 0) {
        call.operation.shape = {static_cast<std::int64_t>(kBytes)};
        call.operands.inputs = {{static_cast<const std::byte*>(mapped), kBytes}};
      }
      faults[rank] = fault_of([&] { settle(members[rank].begin(std::move(call), {})); });
    });
    CHECK(faults[1].code == ErrorCode::kTransport && contains(faults[1].text, "no memory for the result"));
    CHECK(faults[0].code == ErrorCode::kPeerClosed && contains(faults[0].text, "no memory for the result"));
  }
  munmap(mapped, kBytes);
}
#endif

TEST(a_named_operation_that_was_begun_while_the_group_closes_ends) {
  for (int round = 0; round < 200; ++round) {
    CoordinatorServer coordinator(parse_address("shm://"));
    ProcessGroup group(options_of(coordinator.address(), 0, 1), {});
    std::atomic<bool> begins{false};
    std::vector<std::shared_ptr<Work>> works;
    on_threads(2, [&](std::uint32_t which) {
      if (which == 0) {
        while (!begins) {
          sleep_for(milliseconds{0});
        }
        group.close({});
        return;
      }
      fault_of([&] {
        for (int i = 0; true; ++i) {
          ProcessGroup::Call call = call_of(OperationKind::kBarrier);
          call.operation.name = std::to_string(i);
          works.push_back(group.begin(std::move(call), {}));
          begins = true;
        }
      });
    });
    for (const std::shared_ptr<Work>& work : works) {
      CHECK(work->done());
    }
    coordinator.stop(0.0);
  }
}

TEST(ranks_that_join_at_once_hear_of_turns_before_all_have_joined) {
  in_group(kBoth[0], 2, [](ProcessGroup& group) {
    for (int round = 0; round < 2000; ++round) {
      std::shared_ptr<Work> named;
      if (group.rank() == 1) {
        ProcessGroup::Call call = call_of(OperationKind::kBarrier);
        call.operation.name = std::to_string(round);
        named = group.begin(std::move(call), {});
      }
      settle(group.begin(call_of(OperationKind::kJoin), {}));
      if (named) {
        settle(named);
      }
    }
  });
}
