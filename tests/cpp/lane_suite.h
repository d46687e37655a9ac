// What holds for a lane over any transport. A test that includes this defines make_group(size) first.
#pragma once

#include <atomic>
#include <chrono>

#include "lane_case.h"

namespace {

using namespace lanes;
using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kSizes[] = {1, 2, 3, 5};
// Nothing, one element, a few, just within and just beyond what travels with a header, several chunks, many.
constexpr std::int64_t kCounts[] = {0, 1, 10, 8192, 8193, 200000, 600001};

Operation of_kind(OperationKind kind, std::vector<std::int64_t> shape, std::uint32_t root = 0) {
  Operation operation;
  operation.kind = kind;
  operation.shape = std::move(shape);
  operation.root = root;
  return operation;
}

Bytes joined(const std::vector<Bytes>& parts) {
  Bytes all;
  for (const Bytes& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

Bytes part_of(const Bytes& all, std::size_t begin, std::size_t bytes) {
  return {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(begin + bytes)};
}

TEST(an_allreduce_gives_all_ranks_the_reduction_in_rank_order) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::int64_t count : kCounts) {
      std::vector<Bytes> arrays;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        arrays.push_back(array_of(rank, static_cast<std::size_t>(count) * 4));
      }
      const Bytes expected = reduced({}, arrays);
      for (int repeat = 0; repeat < 2; ++repeat, ++number) {
        run_all(group, [&](std::uint32_t rank, Lane& lane) {
          const Result result = call(lane, number, allreduce(count), {{arrays[rank]}, {}});
          CHECK(result.has_output && content(result) == expected);
          CHECK(result.shape == std::vector<std::int64_t>{count});
        });
      }
    }
  }
}

TEST(an_allreduce_takes_every_dtype_and_reduction) {
  for (const std::uint32_t size : {2U, 3U}) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (int type = 1; type <= static_cast<int>(kLastDType); ++type) {
      for (int how = 1; how <= static_cast<int>(kLastReduction); ++how) {
        const Combination combination{static_cast<DType>(type), static_cast<Reduction>(how)};
        if (!is_defined(combination)) {
          continue;
        }
        for (const std::int64_t count : {33, 50001}) {
          std::vector<Bytes> arrays;
          for (std::uint32_t rank = 0; rank < size; ++rank) {
            arrays.push_back(array_of(rank, static_cast<std::size_t>(count) * item_bytes(combination.dtype)));
          }
          const Bytes expected = reduced(combination, arrays);
          run_all(group, [&](std::uint32_t rank, Lane& lane) {
            const Operation operation = allreduce(count, combination.reduction, combination.dtype);
            const Result result = call(lane, number, operation, {{arrays[rank]}, {}});
            CHECK(content(result) == expected);
            CHECK(result.dtype == combination.dtype);
          });
          ++number;
        }
      }
    }
  }
}

TEST(scales_go_before_and_after_the_reduction) {
  Group group = make_group(3);
  for (const std::int64_t count : {5, 100000}) {
    std::vector<Bytes> arrays;
    for (std::uint32_t rank = 0; rank < 3; ++rank) {
      arrays.push_back(array_of(rank, static_cast<std::size_t>(count) * 4));
    }
    Operation operation = allreduce(count, Reduction::kAverage);
    operation.prescale = 0.3;
    operation.postscale = 7.0;
    const Bytes expected = reduced({DType::kFloat32, Reduction::kAverage, 0.3, 7.0}, arrays);
    run_all(group, [&](std::uint32_t rank, Lane& lane) {
      CHECK(content(call(lane, static_cast<std::uint64_t>(count), operation, {{arrays[rank]}, {}})) == expected);
    });
  }
}

TEST(arrays_may_lie_in_pieces_and_be_reduced_in_place) {
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::size_t floats : {100U, 400000U}) {
      std::vector<Bytes> arrays;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        arrays.push_back(array_of(rank, floats * 4));
      }
      const Bytes expected = reduced({}, arrays);
      run_all(group, [&](std::uint32_t rank, Lane& lane) {
        Bytes array = arrays[rank];
        const std::size_t first = 4 * (floats / 3 + rank);  // cut at another place on each rank
        const MutableSpan all(array);
        const Operands operands{{all.first(first), all.subspan(first)}, {all.first(8), all.subspan(8)}};
        call(lane, number, allreduce(static_cast<std::int64_t>(floats)), operands);
        CHECK(array == expected);
      });
      ++number;
    }
  }
}

TEST(outputs_that_overlap_inputs_get_the_same_result) {
  Group group = make_group(3);
  const std::size_t bytes = 4 * 90000;
  std::vector<Bytes> arrays;
  for (std::uint32_t rank = 0; rank < 3; ++rank) {
    arrays.push_back(array_of(rank, bytes));
  }
  const Bytes expected = reduced({}, arrays);
  run_all(group, [&](std::uint32_t rank, Lane& lane) {
    Bytes memory(bytes + 64);
    std::copy(arrays[rank].begin(), arrays[rank].end(), memory.begin());
    const MutableSpan all(memory);
    call(lane, 0, allreduce(90000), {{all.first(bytes)}, {all.subspan(64)}});
    CHECK(part_of(memory, 64, bytes) == expected);
    // Each rank's rows go where another's came from.
    Operation exchange = of_kind(OperationKind::kAlltoall, {90000});
    std::copy(arrays[rank].begin(), arrays[rank].end(), memory.begin());
    call(lane, 1, exchange, {{all.first(bytes)}, {all.first(bytes)}});
    for (std::uint32_t from = 0; from < 3; ++from) {
      CHECK(part_of(memory, from * bytes / 3, bytes / 3) == part_of(arrays[from], rank * bytes / 3, bytes / 3));
    }
  });
}

TEST(an_allgather_and_a_gather_join_rows_of_any_number) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::uint64_t unit : {0U, 1U, 1500U, 30000U}) {  // of them some ranks have none, and some are small
      std::vector<Bytes> arrays;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        arrays.push_back(array_of(rank, unit * (rank % 3) * 12));
      }
      const Bytes expected = joined(arrays);
      for (std::uint32_t root = 0; root < size; ++root, number += 2) {
        run_all(group, [&](std::uint32_t rank, Lane& lane) {
          const auto rows = static_cast<std::int64_t>(unit * (rank % 3));
          const Result all = call(lane, number, of_kind(OperationKind::kAllgather, {rows, 3}), {{arrays[rank]}, {}});
          CHECK(content(all) == expected);
          CHECK_EQUAL(all.rows.size(), std::size_t{size});
          CHECK_EQUAL(all.rows[rank], static_cast<std::uint64_t>(rows));
          CHECK_EQUAL(all.shape.size(), 2U);
          const Operation gather = of_kind(OperationKind::kGather, {rows, 3}, root);
          const Result result = call(lane, number + 1, gather, {{arrays[rank]}, {}});
          CHECK_EQUAL(result.has_output, rank == root);
          CHECK(content(result) == (rank == root ? expected : Bytes()));
        });
      }
    }
  }
}

TEST(an_allgather_of_scalars_has_a_row_for_each_rank) {
  Group group = make_group(3);
  run_all(group, [&](std::uint32_t rank, Lane& lane) {
    const std::vector<float> value = {static_cast<float>(rank)};
    const Result result = call(lane, 0, of_kind(OperationKind::kAllgather, {}), {{bytes_of(value)}, {}});
    CHECK(content(result) == content(std::vector<float>{0.0F, 1.0F, 2.0F}));
    CHECK(result.shape == std::vector<std::int64_t>{3});
  });
}

TEST(a_reduce_scatter_gives_each_rank_its_rows) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::size_t rows : {0U, 1U, 7U, 4000U, 50000U}) {
      std::vector<Bytes> arrays;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        arrays.push_back(array_of(rank, rows * 12));
      }
      const Bytes expected = reduced({}, arrays);
      Operation operation = of_kind(OperationKind::kReduceScatter, {static_cast<std::int64_t>(rows), 3});
      for (const bool uneven : {false, true}) {
        if (uneven) {  // all rows but one to the last rank
          operation.splits.assign(size, 0);
          operation.splits.back() = rows - std::min<std::size_t>(rows, 1);
          operation.splits.front() += rows - operation.splits.back() - (size > 1 ? 0 : operation.splits.front());
          operation.splits.front() = size > 1 ? rows - operation.splits.back() : rows;
        }
        const auto shares = shares_of(operation, size);
        run_all(group, [&](std::uint32_t rank, Lane& lane) {
          std::size_t begin = 0;
          for (std::uint32_t before = 0; before < rank; ++before) {
            begin += shares[before] * 12;
          }
          const Result result = call(lane, number, operation, {{arrays[rank]}, {}});
          CHECK(content(result) == part_of(expected, begin, shares[rank] * 12));
          CHECK_EQUAL(result.shape.front(), static_cast<std::int64_t>(shares[rank]));
        });
        ++number;
      }
    }
  }
}

TEST(an_alltoall_hands_each_rank_what_its_splits_say) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::uint64_t unit : {1U, 900U, 40000U}) {
      const auto splits_of = [&](std::uint32_t rank) {
        std::vector<std::uint64_t> splits;
        for (std::uint32_t to = 0; to < size; ++to) {
          splits.push_back((rank + 2 * to) % 4 * unit);  // some are empty
        }
        return splits;
      };
      const auto total = [&](std::uint32_t rank, std::uint32_t up_to) {
        std::uint64_t rows = 0;
        for (std::uint32_t to = 0; to < up_to; ++to) {
          rows += splits_of(rank)[to];
        }
        return rows;
      };
      std::vector<Bytes> arrays;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        arrays.push_back(array_of(rank, total(rank, size) * 4));
      }
      run_all(group, [&](std::uint32_t rank, Lane& lane) {
        Operation operation = of_kind(OperationKind::kAlltoall, {static_cast<std::int64_t>(total(rank, size))});
        operation.splits = splits_of(rank);
        std::vector<Bytes> parts;
        for (std::uint32_t from = 0; from < size; ++from) {
          parts.push_back(part_of(arrays[from], total(from, rank) * 4, splits_of(from)[rank] * 4));
        }
        const Result result = call(lane, number, operation, {{arrays[rank]}, {}});
        CHECK(content(result) == joined(parts));
        for (std::uint32_t from = 0; from < size; ++from) {
          CHECK_EQUAL(result.rows[from], splits_of(from)[rank]);
        }
      });
      ++number;
    }
  }
}

TEST(a_broadcast_and_a_scatter_hand_out_the_roots_array) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    for (const std::int64_t rows : {0, 11, 30000}) {
      const Bytes array = array_of(9, static_cast<std::size_t>(rows) * 8);
      for (std::uint32_t root = 0; root < size; ++root, number += 3) {
        run_all(group, [&](std::uint32_t rank, Lane& lane) {
          Operation operation = of_kind(OperationKind::kBroadcast, {rows, 2}, root);
          Bytes own = rank == root ? array : Bytes(array.size());
          call(lane, number, operation, {{own}, {own}});
          CHECK(own == array);
          operation.takes_any = rank != root;
          operation.dtype = rank == root ? DType::kInt64 : DType::kBool;
          operation.shape = {rank == root ? rows : 3};
          const Result any = call(lane, number + 1, operation, {{array}, {}});
          CHECK_EQUAL(any.has_output, rank != root);
          CHECK(rank == root || (content(any) == array && any.dtype == DType::kInt64));
          operation.kind = OperationKind::kScatter;
          const Result part = call(lane, number + 2, operation, {{array}, {}});
          operation.shape = {rows};
          const auto shares = shares_of(operation, size);
          std::size_t begin = 0;
          for (std::uint32_t before = 0; before < rank; ++before) {
            begin += shares[before] * 8;
          }
          CHECK(content(part) == part_of(array, begin, shares[rank] * 8));
        });
      }
    }
  }
}

TEST(bytes_may_start_and_end_anywhere) {
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group group = make_group(size);
    constexpr std::size_t kBytes = 300007;
    const Bytes array = array_of(3, kBytes);
    run_all(group, [&](std::uint32_t rank, Lane& lane) {
      Operation operation = of_kind(OperationKind::kBroadcast, {kBytes}, 1);
      operation.dtype = DType::kUint8;
      Bytes memory(kBytes + 2 * size + 4);
      const auto begin = memory.begin() + 1 + rank;
      if (rank == 1) {
        std::copy(array.begin(), array.end(), begin);
      }
      const std::size_t cut = 70001 + rank;
      const MutableSpan all(memory.data() + 1 + rank, kBytes);
      const MutableSpan front = all.first(cut);
      const MutableSpan rest = all.subspan(cut);
      call(lane, 0, operation, {{front, rest}, {front, rest}});
      CHECK(std::equal(array.begin(), array.end(), begin));
    });
  }
}

TEST(no_rank_leaves_a_barrier_before_all_have_come) {
  for (const std::uint32_t size : kSizes) {
    Group group = make_group(size);
    std::atomic<std::uint32_t> came{0};
    run_all(group, [&](std::uint32_t, Lane& lane) {
      for (std::uint64_t number = 0; number < 200; ++number) {
        came.fetch_add(1);
        call(lane, number, Operation{}, {});
        CHECK(came.load() >= (number + 1) * size);
      }
    });
  }
}

TEST(a_mismatch_is_the_same_error_on_all_ranks_and_the_lane_goes_on) {
  std::vector<Operation> others(9, allreduce(12000));
  others[0].shape = {12001};
  others[1].dtype = DType::kInt32;
  others[2].reduction = Reduction::kMax;
  others[3].postscale = 2.0;
  others[4] = of_kind(OperationKind::kAllgather, {12000});
  others[5] = Operation{};  // a barrier
  others[6].shape = {3, 4000};
  others[7].shape = {5};  // small, where the others are not
  others[8] = of_kind(OperationKind::kReduceScatter, {12000});
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group group = make_group(size);
    std::uint64_t number = 0;
    const Bytes array = array_of(0, 12001 * 8);
    for (const Operation& other : others) {
      const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
        const Operation operation = rank == size - 1 ? other : allreduce(12000);
        const auto bytes = operation.shape.empty() ? 0 : elements_of(operation.shape) * item_bytes(operation.dtype);
        call(lane, number, operation, {{ConstSpan(array).first(bytes)}, {}});
      });
      for (const Outcome& outcome : outcomes) {
        CHECK(outcome.code == ErrorCode::kCollectiveMismatch);
        CHECK_EQUAL(outcome.text, outcomes.front().text);
      }
      CHECK(outcomes.front().text.find(describe(other)) != std::string::npos);
      CHECK(outcomes.front().text.find("rank 0 calls allreduce (sum) of float32 (12000,)") != std::string::npos);
      ++number;
      run_all(group, [&](std::uint32_t, Lane& lane) {
        const Result result = call(lane, number, allreduce(1), {{ConstSpan(array).first(4)}, {}});
        CHECK(content(result).size() == 4);
      });
      ++number;
    }
  }
}

TEST(roots_splits_and_expected_rows_are_compared) {
  Group group = make_group(3);
  const Bytes array(4 * 9);
  std::uint64_t number = 0;
  const auto mismatched = [&](const std::function<Operation(std::uint32_t)>& operation_of) {
    for (const Outcome& outcome : attempt(
             group, [&](std::uint32_t rank, Lane& lane) { call(lane, number, operation_of(rank), {{array}, {}}); })) {
      CHECK(outcome.code == ErrorCode::kCollectiveMismatch);
    }
    ++number;
  };
  mismatched([](std::uint32_t rank) { return of_kind(OperationKind::kBroadcast, {9}, rank == 2 ? 1 : 0); });
  mismatched([](std::uint32_t rank) {
    Operation operation = of_kind(OperationKind::kReduceScatter, {9});
    operation.splits = rank == 1 ? std::vector<std::uint64_t>{1, 1, 7} : std::vector<std::uint64_t>{3, 3, 3};
    return operation;
  });
  mismatched([](std::uint32_t rank) { return of_kind(OperationKind::kScatter, {rank == 0 ? 9 : 4}); });
  mismatched([](std::uint32_t rank) {
    return of_kind(OperationKind::kAllgather,
                   rank == 1 ? std::vector<std::int64_t>{3, 3} : std::vector<std::int64_t>{9});
  });
}

TEST(outputs_of_another_size_are_refused_on_their_rank_alone) {
  Group group = make_group(2);
  const Bytes array = array_of(1, 4 * 20000);
  for (std::uint64_t number = 0; number < 3; ++number) {
    const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
      Bytes output(rank == 1 ? 12 : 8 * 20000);
      call(lane, number, of_kind(OperationKind::kAllgather, {20000}), {{array}, {output}});
      CHECK(output == joined({array, array}));
    });
    CHECK_EQUAL(outcomes[0].text, "");
    CHECK(outcomes[1].code == ErrorCode::kConfig && outcomes[1].text.find("12 bytes") != std::string::npos);
  }
}

TEST(what_a_rank_knows_to_be_wrong_is_refused_before_the_others_hear_of_it) {
  Group group = make_group(2);
  run_all(group, [&](std::uint32_t rank, Lane& lane) {
    const Bytes array(40);
    if (rank == 0) {
      CHECK_THROWS(call(lane, 0, allreduce(11), {{array}, {}}), Error);
      CHECK_THROWS(call(lane, 0, of_kind(OperationKind::kBroadcast, {10}, 2), {{array}, {}}), Error);
    }
    call(lane, 0, allreduce(10), {{array}, {}});
  });
}

TEST(a_rank_that_has_joined_contributes_nothing_and_the_last_to_join_is_named) {
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group group = make_group(size);
    for (int again = 0; again < 2; ++again) {
      run_all(group, [&](std::uint32_t rank, Lane& lane) {
        // Rank r takes part in r + 1 rounds of operations and joins then: the last rank joins last.
        std::uint64_t number = static_cast<std::uint64_t>(again) * 100;
        for (std::uint32_t round = 0; round <= rank; ++round) {
          std::vector<Bytes> arrays;
          for (std::uint32_t left = round; left < size; ++left) {
            arrays.push_back(array_of(left, 4 * 60000));
          }
          const Operation average = allreduce(60000, Reduction::kAverage);
          CHECK(content(call(lane, number++, average, {{arrays[rank - round]}, {}})) ==
                reduced({DType::kFloat32, Reduction::kAverage}, arrays));
          const Result rows =
              call(lane, number++, of_kind(OperationKind::kAllgather, {60000}), {{arrays[rank - round]}, {}});
          CHECK(content(rows) == joined(arrays));
          const Result turned =
              call(lane, number++, of_kind(OperationKind::kAlltoall, {60000}), {{arrays[rank - round]}, {}});
          CHECK_EQUAL(turned.rows.front(), round == 0 ? (60000 + size - 1) / size : 0);
          CHECK_EQUAL(
              call(lane, number++, of_kind(OperationKind::kReduceScatter, {60000}), {{arrays[rank - round]}, {}})
                  .shape.front(),
              static_cast<std::int64_t>(60000 / size));
          Bytes own = rank + 1 == size ? arrays.back() : Bytes(arrays.back().size());
          call(lane, number++, of_kind(OperationKind::kBroadcast, {60000}, size - 1), {{own}, {own}});
          CHECK(own == arrays.back());
          call(lane, number++, Operation{}, {});
        }
        Result result;
        while (!result.all_joined) {
          result = call(lane, number++, of_kind(OperationKind::kJoin, {}), {});
        }
        CHECK_EQUAL(result.last_rank, size - 1);
        CHECK_EQUAL(number, static_cast<std::uint64_t>(again) * 100 + 6 * size + 1);
      });
    }
  }
}

TEST(a_root_that_has_joined_is_a_mismatch_for_all) {
  Group group = make_group(3);
  const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
    const Bytes array(40);
    call(lane, 0, of_kind(rank == 1 ? OperationKind::kJoin : OperationKind::kBroadcast, {10}, 1), {{array}, {}});
  });
  for (const Outcome& outcome : outcomes) {
    CHECK(outcome.code == ErrorCode::kCollectiveMismatch);
    CHECK(outcome.text.find("rank 1 has joined") != std::string::npos);
  }
}

TEST(a_rank_that_does_not_come_is_named_when_the_deadline_passes) {
  Group group = make_group(3);
  for (int again = 0; again < 2; ++again) {  // the second time at once: the lane is broken
    const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
      if (rank == 0) {
        Operation operation = allreduce(1);
        operation.name = "loss";
        const Bytes array(4);
        call(lane, 7, operation, {{array}, {}}, again == 0 ? 0.2 : kTestSeconds);
      }
    });
    CHECK(outcomes[0].code == ErrorCode::kDeadlineExceeded);
    CHECK(outcomes[0].text.find("'loss' (operation 7)") != std::string::npos);
    CHECK(outcomes[0].text.find("1") != std::string::npos);
  }
  CHECK(group.lanes[0]->awaited().empty());
}

TEST(an_abort_ends_a_wait_and_every_later_operation) {
  for (const std::int64_t count : {1, 600000}) {
    Group group = make_group(2);
    const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
      const Bytes array(static_cast<std::size_t>(count) * 4);
      if (rank == 1) {
        while (group.lanes[0]->awaited() != std::vector<std::uint32_t>{1}) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        group.lanes[0]->abort(Error(ErrorCode::kPeerClosed, "rank 1 has died"));
        group.lanes[0]->abort(Error(ErrorCode::kTransport, "a later reason"));
        return;
      }
      call(lane, 0, allreduce(count), {{array}, {}});
    });
    CHECK_EQUAL(outcomes[0].text, "rank 1 has died");
    CHECK_EQUAL(outcomes[1].text, "");
    const auto later = attempt(group, [&](std::uint32_t rank, Lane& lane) {
      if (rank == 0) {
        call(lane, 1, Operation{}, {});
      }
    });
    CHECK_EQUAL(later[0].text, "rank 1 has died");
  }
}

TEST(an_interrupt_ends_a_wait) {
  Group group = make_group(2);
  const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) {
    if (rank == 0) {
      lane.run(0, Operation{}, {}, Deadline::after(kTestSeconds), [] { throw std::runtime_error("Ctrl-C"); });
    }
  });
  CHECK_EQUAL(outcomes[0].text, "Ctrl-C");
  CHECK_THROWS(call(*group.lanes[0], 1, Operation{}, {}), Error);
}

TEST(ranks_at_different_operations_find_out) {
  Group group = make_group(2);
  const auto outcomes = attempt(group, [&](std::uint32_t rank, Lane& lane) { call(lane, rank, Operation{}, {}); });
  for (const Outcome& outcome : outcomes) {
    CHECK(outcome.code == ErrorCode::kProtocol || outcome.code == ErrorCode::kPeerClosed);
  }
}

TEST(many_operations_of_all_kinds_follow_each_other) {
  for (const std::uint32_t size : {2U, 3U}) {
    Group group = make_group(size);
    run_all(group, [&](std::uint32_t rank, Lane& lane) {
      for (std::uint64_t number = 0; number < 300; ++number) {
        const std::int64_t count = number % 7 == 0 ? 70000 : static_cast<std::int64_t>(number * 37 % 1000);
        const Bytes array = array_of(rank, static_cast<std::size_t>(count) * 4, static_cast<std::uint32_t>(number));
        const auto kind = static_cast<OperationKind>(number % 8 + 1);
        Operation operation = of_kind(kind, {count}, static_cast<std::uint32_t>(number % size));
        operation.takes_any = kind == OperationKind::kScatter && rank != operation.root;
        const Result result = call(lane, number, operation, {{array}, {}});
        if (kind == OperationKind::kAllgather) {
          CHECK(part_of(content(result), rank * array.size(), array.size()) == array);
        }
      }
    });
  }
}

}  // namespace
