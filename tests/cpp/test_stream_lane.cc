#include "group/carrier.h"
#include "lane_case.h"

namespace {
lanes::Group make_group(std::uint32_t size) { return lanes::stream_group(size); }
}  // namespace

#include "lane_suite.h"

namespace {

TEST(both_transports_give_the_same_bits) {
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group streams = stream_group(size);
    Group memory = shm_group(size);
    for (const auto how : {Reduction::kSum, Reduction::kAverage, Reduction::kMin, Reduction::kProduct}) {
      std::vector<Bytes> of_streams(size);
      std::vector<Bytes> of_memory(size);
      const auto run = [&](std::vector<Bytes>& results) {
        return [&, how](std::uint32_t rank, Lane& lane) {
          const Bytes array = array_of(rank, 4 * 123457);
          results[rank] = content(call(lane, static_cast<std::uint64_t>(how), allreduce(123457, how), {{array}, {}}));
        };
      };
      run_all(streams, run(of_streams));
      run_all(memory, run(of_memory));
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        CHECK(of_streams[rank] == of_streams[0] && of_memory[rank] == of_streams[0]);
      }
    }
  }
}

TEST(nothing_deadlocks_when_streams_hold_little) {
  for (const std::uint32_t size : {2U, 3U, 5U}) {
    Group group = stream_group(size, 4096);
    std::vector<Bytes> arrays;
    for (std::uint32_t rank = 0; rank < size; ++rank) {
      arrays.push_back(array_of(rank, 4 * 300000));
    }
    const Bytes expected = reduced({}, arrays);
    run_all(group, [&](std::uint32_t rank, Lane& lane) {
      Bytes array = arrays[rank];
      call(lane, 0, allreduce(300000), {{array}, {array}});
      CHECK(array == expected);
      const Result turned = call(lane, 1, of_kind(OperationKind::kAlltoall, {300000}), {{array}, {}});
      CHECK_EQUAL(turned.rows.size(), std::size_t{size});
      call(lane, 2, of_kind(OperationKind::kAllgather, {300000}), {{array}, {}});
      Bytes own = rank == 1 ? arrays[1] : Bytes(array.size());
      call(lane, 3, of_kind(OperationKind::kBroadcast, {300000}, 1), {{own}, {own}});
      CHECK(own == arrays[1]);
    });
  }
}

TEST(a_rank_whose_stream_ends_is_named) {
  for (const bool half_way : {false, true}) {
    auto streams = connected(3);
    auto lane = make_stream_lane(0, std::move(streams[0]));
    if (half_way) {  // rank 1 sends the beginning of a header
      const Bytes few(5);
      streams[1][0].send_all(few);
    }
    streams[1].clear();
    const Bytes array(40);
    try {
      call(*lane, 0, allreduce(10), {{array}, {}});
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kPeerClosed);
      CHECK(std::string(error.what()).find("rank 1") != std::string::npos);
    }
  }
}

TEST(a_header_that_cannot_be_is_a_protocol_error) {
  for (const int fill : {0x00, 0x08, 0x7F, 0xFF}) {
    auto streams = connected(2);
    auto lane = make_stream_lane(0, std::move(streams[0]));
    const Bytes rubbish(200, static_cast<std::byte>(fill));
    streams[1][0].send_all(rubbish);
    const Bytes array(40);
    try {
      call(*lane, 0, allreduce(10), {{array}, {}}, 5.0);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kProtocol);
    }
  }
}

// Returns what an allreduce of ten floats on rank 0 throws when rank 1 says this.
Outcome answer_to(const Header& header, std::size_t small_bytes) {
  auto streams = connected(2);
  Group group;
  group.lanes.push_back(make_stream_lane(0, std::move(streams[0])));
  const Bytes encoded = encode(header);
  const OpeningLengths lengths{static_cast<std::uint32_t>(encoded.size()), static_cast<std::uint32_t>(small_bytes)};
  streams[1][0].send_all(std::as_bytes(std::span(&lengths, 1)));
  streams[1][0].send_all(encoded);
  streams[1][0].send_all(Bytes(small_bytes));
  return attempt(group, [](std::uint32_t, Lane& lane) {
    const Bytes array(40);
    call(lane, 3, allreduce(10), {{array}, {}});
  })[0];
}

TEST(a_peer_that_says_one_thing_and_sends_another_breaks_the_lane) {
  CHECK_EQUAL(answer_to({allreduce(10), 3, 0}, 40).text, "");
  const Outcome other_number = answer_to({allreduce(10), 4, 0}, 40);
  CHECK(other_number.code == ErrorCode::kProtocol && other_number.text.find("operation 4") != std::string::npos);
  for (const std::size_t bytes : {0U, 8U, 48U}) {
    const Outcome other_size = answer_to({allreduce(10), 3, 0}, bytes);
    CHECK(other_size.code == ErrorCode::kProtocol && other_size.text.find("expected 40") != std::string::npos);
  }
  Operation huge = of_kind(OperationKind::kAllgather, {std::int64_t{1} << 60});
  CHECK(answer_to({huge, 3, 0}, 0).code == ErrorCode::kProtocol);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end a process that asks for so much
TEST(memory_that_nobody_has_for_a_result_breaks_the_lane_with_its_reason) {
  auto streams = connected(2);
  Group group;
  group.lanes.push_back(make_stream_lane(0, std::move(streams[0])));
  const Bytes encoded = encode({of_kind(OperationKind::kAllgather, {std::int64_t{1} << 42}), 0, 0});
  const OpeningLengths lengths{static_cast<std::uint32_t>(encoded.size()), 0};
  streams[1][0].send_all(std::as_bytes(std::span(&lengths, 1)));
  streams[1][0].send_all(encoded);
  const Outcome outcome = attempt(group, [](std::uint32_t, Lane& lane) {
    const Bytes array(40);
    call(lane, 0, of_kind(OperationKind::kAllgather, {10}), {{array}, {}}, 0.5);
  })[0];
  // A system that promises memory it does not have leaves the deadline.
  CHECK(outcome.code == ErrorCode::kTransport || outcome.code == ErrorCode::kDeadlineExceeded);
}
#endif

}  // namespace
