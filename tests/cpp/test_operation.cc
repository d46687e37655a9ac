#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "group/operation.h"
#include "random_floats.h"

namespace {

using namespace distnet;

Operation of_kind(OperationKind kind, std::vector<std::int64_t> shape) {
  Operation operation;
  operation.kind = kind;
  operation.shape = std::move(shape);
  return operation;
}

Operation with_splits(OperationKind kind, std::vector<std::int64_t> shape, std::vector<std::uint64_t> splits) {
  Operation operation = of_kind(kind, std::move(shape));
  operation.splits = std::move(splits);
  return operation;
}

// What the error of one rank's operation says, with an input of the given bytes; empty when there is none.
std::string refusal(const Operation& operation, std::size_t bytes, std::uint32_t rank = 0, std::uint32_t size = 3) {
  alignas(8) static std::byte memory[256];
  try {
    distnet::check(operation, {{ConstSpan(memory, bytes)}, {}}, rank, size);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kConfig);
    return error.what();
  }
  return "";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(a_header_says_what_was_encoded) {
  Header header;
  header.operation = with_splits(OperationKind::kReduceScatter, {6, 2, 0, 5}, {1, 2, 3});
  header.operation.dtype = DType::kBfloat16;
  header.operation.reduction = Reduction::kAverage;
  header.operation.prescale = 0.1;
  header.operation.postscale = -3.5;
  header.number = std::numeric_limits<std::uint64_t>::max();
  header.joined_since = 17;
  const auto bytes = encode(header);
  CHECK(bytes.size() <= header_bytes_bound(3) && bytes.size() % 8 == 0);
  const Header read = decode_header(bytes, 0, 3);
  CHECK(encode(read) == bytes);
  CHECK(read.operation.shape == header.operation.shape && read.operation.splits == header.operation.splits);
  CHECK(read.operation.dtype == DType::kBfloat16 && read.operation.reduction == Reduction::kAverage);
  CHECK(read.operation.prescale == 0.1 && read.operation.postscale == -3.5);
  CHECK(read.number == header.number && read.joined_since == 17 && !read.joined());
}

TEST(the_longest_header_keeps_to_the_bound) {
  Header header;
  header.operation = with_splits(OperationKind::kAlltoall, std::vector<std::int64_t>(kMostDimensions, 1),
                                 std::vector<std::uint64_t>(kMostRanks, 0));
  header.operation.splits.front() = 1;
  CHECK_EQUAL(encode(header).size(), header_bytes_bound(kMostRanks));
  decode_header(encode(header), 5, kMostRanks);
}

TEST(a_header_cut_short_or_longer_is_refused) {
  Header header;
  header.operation = of_kind(OperationKind::kAllgather, {3, 4});
  auto bytes = encode(header);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CHECK_THROWS(decode_header(std::span(bytes).first(length), 0, 3), Error);
  }
  bytes.push_back(std::byte{0});
  CHECK_THROWS(decode_header(bytes, 0, 3), Error);
}

// Whatever a peer sends, decoding ends with a header that check() would let pass, or with kProtocol.
TEST(a_header_with_any_changed_byte_is_read_or_refused) {
  Header header;
  header.operation = with_splits(OperationKind::kReduceScatter, {6, 2}, {1, 2, 3});
  const auto bytes = encode(header);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (const int value : {0, 1, 7, 8, 9, 10, 11, 12, 0x3F, 0x7F, 0x80, 0xF0, 0xFF}) {
      auto changed = bytes;
      changed[at] = static_cast<std::byte>(value);
      try {
        const Header read = decode_header(changed, 1, 3);
        CHECK(elements_of(read.operation.shape) <= kMostVectorBytes);
        CHECK(read.operation.splits.empty() || read.operation.splits.size() == 3);
        CHECK(encode(read).size() == bytes.size());
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kProtocol);
        CHECK(says(error.what(), "rank 1 sent a header that cannot be"));
      }
    }
  }
}

TEST(sizes_that_overflow_are_refused) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{most},
                                                                  {most, most},
                                                                  {0, most, most},
                                                                  {std::int64_t{1} << 32, std::int64_t{1} << 32},
                                                                  {-1},
                                                                  {3, -4},
                                                                  {std::int64_t{1} << 43},
                                                                  std::vector<std::int64_t>(9, 1)}) {
    CHECK(!refusal(of_kind(OperationKind::kAllreduce, shape), 0).empty());
    Header header;
    header.operation = of_kind(OperationKind::kAllreduce, shape);
    CHECK_THROWS(decode_header(encode(header), 0, 3), Error);
  }
  CHECK_EQUAL(refusal(of_kind(OperationKind::kAllreduce, {0, 5}), 0), "");
}

TEST(splits_are_the_rows_no_more_and_no_less) {
  const auto refused = [](std::vector<std::uint64_t> splits) {
    return refusal(with_splits(OperationKind::kAlltoall, {6}, std::move(splits)), 24);
  };
  CHECK_EQUAL(refused({1, 2, 3}), "");
  CHECK(says(refused({1, 2}), "one for each of 3 ranks"));
  CHECK(says(refused({1, 2, 2}), "leave 1 of the 6 rows"));
  CHECK(says(refused({1, 2, 4}), "more than the 6 rows"));
  CHECK(says(refused({2, std::numeric_limits<std::uint64_t>::max(), 5}), "more than the 6 rows"));
  CHECK(says(refusal(with_splits(OperationKind::kAllreduce, {6}, {1, 2, 3}), 24), "takes no splits"));
  CHECK(says(refusal(with_splits(OperationKind::kScatter, {6}, {1, 2, 3}), 24, 1), "takes no splits on this rank"));
}

TEST(what_cannot_be_is_refused_with_what_was_expected) {
  CHECK(says(refusal(of_kind(OperationKind::kAllreduce, {10}), 36), "36 bytes; expected 40"));
  CHECK(says(refusal(of_kind(OperationKind::kReduceScatter, {}), 4), "a scalar has none"));
  CHECK(says(refusal(of_kind(OperationKind::kSend, {1}), 4), "not an operation of all ranks"));
  Operation operation = of_kind(OperationKind::kGather, {1});
  operation.root = 3;
  CHECK(says(refusal(operation, 4), "the ranks 0 to 2"));
  operation = of_kind(OperationKind::kAllreduce, {4});
  operation.dtype = DType::kBool;
  operation.reduction = Reduction::kAverage;
  CHECK(says(refusal(operation, 4), "bool"));
  operation = of_kind(OperationKind::kAllreduce, {1});
  operation.prescale = std::numeric_limits<double>::quiet_NaN();
  CHECK(says(refusal(operation, 4), "finite"));
  // A receiver's input says nothing.
  CHECK_EQUAL(refusal(of_kind(OperationKind::kBroadcast, {10}), 0, 1), "");
}

TEST(pieces_lie_between_elements_in_a_reduction) {
  alignas(8) std::byte memory[32];
  const Operation operation = of_kind(OperationKind::kAllreduce, {4});
  const ConstSpan all(memory, 17);
  CHECK_THROWS(distnet::check(operation, {{all.subspan(1)}, {}}, 0, 2), Error);
  CHECK_THROWS(distnet::check(operation, {{all.first(6), all.subspan(6, 10)}, {}}, 0, 2), Error);
  CHECK_THROWS(distnet::check(operation, {{all.first(16)}, {MutableSpan(memory, 20)}}, 0, 2), Error);
  distnet::check(operation, {{all.first(4), all.subspan(4, 12)}, {MutableSpan(memory, 16)}}, 0, 2);
}

TEST(rows_are_shared_out_evenly_where_there_are_no_splits) {
  const auto shares = [](std::int64_t rows, std::uint32_t size) {
    return shares_of(of_kind(OperationKind::kReduceScatter, {rows, 2}), size);
  };
  CHECK(shares(7, 3) == (std::vector<std::uint64_t>{3, 2, 2}));
  CHECK(shares(2, 3) == (std::vector<std::uint64_t>{1, 1, 0}));
  CHECK(shares(0, 2) == (std::vector<std::uint64_t>{0, 0}));
}

std::vector<Header> headers_of(const std::vector<Operation>& operations) {
  std::vector<Header> headers;
  for (const Operation& operation : operations) {
    headers.push_back({operation, 0, 0});
  }
  return headers;
}

TEST(a_mismatch_says_both_sides) {
  const Operation ten = of_kind(OperationKind::kAllreduce, {10});
  const Operation twelve = of_kind(OperationKind::kAllreduce, {12});
  const auto text = mismatch(headers_of({ten, ten, twelve}));
  CHECK(text.has_value());
  CHECK(says(*text, "rank 0 calls allreduce (sum) of float32 (10,), rank 2 calls allreduce (sum) of float32 (12,)"));
  CHECK(!mismatch(headers_of({ten, ten, ten})).has_value());
}

TEST(names_are_not_compared) {
  Operation named = of_kind(OperationKind::kAllreduce, {10});
  named.name = "loss";
  CHECK(!mismatch(headers_of({named, of_kind(OperationKind::kAllreduce, {10})})).has_value());
}

TEST(what_a_kind_does_not_use_is_not_compared) {
  Operation left = of_kind(OperationKind::kAllgather, {1, 4});
  Operation right = of_kind(OperationKind::kAllgather, {9, 4});
  right.reduction = Reduction::kMax;
  right.postscale = 2.0;
  right.root = 1;
  CHECK(!mismatch(headers_of({left, right})).has_value());
  left = of_kind(OperationKind::kBarrier, {});
  right = of_kind(OperationKind::kBarrier, {5});
  right.dtype = DType::kBool;
  CHECK(!mismatch(headers_of({left, right})).has_value());
}

TEST(ranks_that_have_joined_fit_to_anything) {
  const Operation join = of_kind(OperationKind::kJoin, {});
  const Operation sum = of_kind(OperationKind::kAllreduce, {10});
  CHECK(!mismatch(headers_of({join, sum, sum})).has_value());
  CHECK(!mismatch(headers_of({join, join, join})).has_value());
  CHECK(mismatch(headers_of({join, sum, of_kind(OperationKind::kAllreduce, {11})})).has_value());
  CHECK(says(*mismatch(headers_of({join, of_kind(OperationKind::kBroadcast, {2})})), "rank 0 has joined"));
}

TEST(an_operation_is_described_with_all_that_matters) {
  Operation operation = with_splits(OperationKind::kReduceScatter, {6, 2}, {1, 2, 3});
  operation.reduction = Reduction::kAverage;
  operation.postscale = 0.5;
  CHECK_EQUAL(describe(operation), "reduce_scatter (average, postscale 0.500000) of float32 (6, 2) split into 1, 2, 3");
  operation = of_kind(OperationKind::kGather, {});
  operation.root = 2;
  CHECK_EQUAL(describe(operation), "gather of float32 () to rank 2");
  CHECK_EQUAL(describe(of_kind(OperationKind::kBarrier, {})), "barrier");
}

}  // namespace
