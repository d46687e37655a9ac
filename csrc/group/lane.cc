#include "group/lane.h"

#include <algorithm>
#include <new>
#include <utility>

#include "group/algorithms.h"
#include "group/carrier_lane.h"
#include "group/traffic.h"

namespace distnet {
namespace {

std::string operation_text(const Operation& operation, std::uint64_t number) {
  return std::string(kind_name(operation.kind)) + (operation.name.empty() ? "" : " '" + operation.name + "'") +
         " (operation " + std::to_string(number) + ")";
}

// How many rows this rank gets from each.
std::vector<std::uint64_t> rows_from(std::uint32_t rank, std::span<const Header> headers) {
  const auto size = static_cast<std::uint32_t>(headers.size());
  std::vector<std::uint64_t> rows(size, 0);
  for (std::uint32_t peer = 0; peer < size; ++peer) {
    const Operation& operation = headers[peer].operation;
    if (!headers[peer].joined() && brings_input(operation, peer)) {
      rows[peer] = cuts_rows(operation.kind) ? shares_of(operation, size)[rank] : rows_of(operation.shape);
    }
  }
  return rows;
}

// Says what this rank gets, from the headers alone.
Result describe_result(std::uint32_t rank, std::span<const Header> headers, bool names_outputs) {
  Result result;
  const Operation& own = headers[rank].operation;
  const bool roots_own = own.kind == OperationKind::kBroadcast && own.root == rank && !names_outputs;
  if (!has_array(own.kind) || roots_own || (own.kind == OperationKind::kGather && own.root != rank)) {
    return result;
  }
  const bool from_root = own.kind == OperationKind::kBroadcast || own.kind == OperationKind::kScatter;
  const Operation& source = headers[from_root ? own.root : rank].operation;
  result.has_output = true;
  result.dtype = source.dtype;
  result.shape = source.shape;
  if (own.kind == OperationKind::kAllreduce || own.kind == OperationKind::kBroadcast) {
    return result;
  }
  std::uint64_t rows = 0;
  if (own.kind == OperationKind::kReduceScatter) {
    rows = shares_of(source, static_cast<std::uint32_t>(headers.size()))[rank];
  } else {
    result.rows = rows_from(rank, headers);
    for (const std::uint64_t of_one : result.rows) {
      rows += of_one;
    }
  }
  if (result.shape.empty()) {
    result.shape.push_back(0);
  }
  result.shape.front() = static_cast<std::int64_t>(rows);
  return result;
}

// All ranks know which rank joined last. Where several joined at the same operation, the highest of them counts.
Result joined_result(std::span<const Header> headers) {
  Result result;
  result.all_joined = true;
  for (std::uint32_t rank = 0; rank < headers.size(); ++rank) {
    result.all_joined = result.all_joined && headers[rank].joined();
    if (headers[rank].joined_since >= headers[result.last_rank].joined_since) {
      result.last_rank = rank;
    }
  }
  if (!result.all_joined) {
    result.last_rank = 0;
  }
  return result;
}

std::string misfit_text(const Operation& operation, std::uint64_t given, std::uint64_t expected) {
  return "the outputs of " + describe(operation) + " have " + std::to_string(given) + " bytes, and the result has " +
         std::to_string(expected) + "; give outputs of that size, or none";
}

}  // namespace

CarrierLane::CarrierLane(std::uint32_t rank, std::uint32_t size, std::unique_ptr<Carrier> carrier)
    : rank_(rank), size_(size), carrier_(std::move(carrier)) {}

Result CarrierLane::run(std::uint64_t number, const Operation& operation, const Operands& operands,
                        const Deadline& deadline, const Interrupt& interrupt) {
  check(operation, operands, rank_, size_);
  carrier_->breakage().check();
  Header own{operation, number, 0};
  if (own.joined()) {
    joined_since_ = joined_since_.value_or(number);
    own.joined_since = *joined_since_;
  } else {
    joined_since_.reset();
  }
  const std::string text = operation_text(operation, number);
  Done done;
  try {
    done = operate(own, operands, {deadline, interrupt, text});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCollectiveMismatch) {
      carrier_->abort(error);
    }
    throw;
  } catch (const std::bad_alloc&) {
    // Not kConfig, which is an error that the lane survives: the others must hear that they wait in vain.
    const Error error(ErrorCode::kTransport, "there is no memory for the result of " + text);
    carrier_->abort(error);
    throw Error(error);
  } catch (...) {
    carrier_->abort(Error(ErrorCode::kTransport, text + " was interrupted; the group cannot go on"));
    throw;
  }
  if (!done.misfit.empty()) {
    throw Error(ErrorCode::kConfig, done.misfit);
  }
  if (done.result.all_joined) {
    joined_since_.reset();
  }
  return std::move(done.result);
}

CarrierLane::Done CarrierLane::operate(const Header& own, const Operands& operands, const Patience& patience) {
  const Operation& operation = own.operation;
  const std::vector<std::byte> encoded = encode(own);
  ConstPieces input = brings_input(operation, rank_) ? ConstPieces(operands.inputs) : ConstPieces();
  const std::span<const Opening> openings =
      carrier_->open(encoded, input.bytes() <= kSmallBytes ? input : ConstPieces(), patience);
  const std::vector<Header> headers = read_headers(own, encoded, openings);
  Done done;
  if (own.joined()) {
    done.result = joined_result(headers);
    if (done.result.all_joined) {
      carrier_->release();
      return done;
    }
  }
  if (const auto text = mismatch(headers)) {
    carrier_->release();
    throw Error(ErrorCode::kCollectiveMismatch, *text);
  }
  MutablePieces output;
  if (!own.joined()) {
    done = prepare(headers, operands, output);
  }
  OwnedBytes copied;
  const bool may_be_same = operation.kind == OperationKind::kAllreduce || operation.kind == OperationKind::kBroadcast;
  if (overlap(input, output) && !(may_be_same && is_same_memory(input, output))) {
    copied = OwnedBytes(input.bytes());
    copy_out(copied.data(), input, 0, input.bytes());
    input = ConstPieces(ConstSpan(copied.data(), copied.size()));
  }
  Exchange(rank_, *carrier_, patience, headers, openings, std::move(input)).run(output);
  return done;
}

// Finds the memory of the result. Outputs that do not fit are left alone, so that the operation goes on for all others.
CarrierLane::Done CarrierLane::prepare(std::span<const Header> headers, const Operands& operands,
                                       MutablePieces& output) const {
  Done done;
  done.result = describe_result(rank_, headers, !operands.outputs.empty());
  if (!done.result.has_output) {
    return done;
  }
  const std::uint64_t bytes = elements_of(done.result.shape) * item_bytes(done.result.dtype);
  const MutablePieces outputs(operands.outputs);
  if (!operands.outputs.empty() && outputs.bytes() == bytes) {
    output = outputs;
    return done;
  }
  if (!operands.outputs.empty()) {
    done.misfit = misfit_text(headers[rank_].operation, outputs.bytes(), bytes);
  }
  done.result.output = OwnedBytes(bytes);
  output = MutablePieces(MutableSpan(done.result.output.data(), bytes));
  return done;
}

std::vector<Header> CarrierLane::read_headers(const Header& own, std::span<const std::byte> encoded,
                                              std::span<const Opening> openings) const {
  std::vector<Header> headers(size_, own);
  for (std::uint32_t rank = 0; rank < size_; ++rank) {
    const auto [bytes, small] = openings[rank];
    if (rank == rank_) {
      continue;
    }
    if (!std::equal(bytes.begin(), bytes.end(), encoded.begin(), encoded.end())) {
      headers[rank] = decode_header(bytes, rank, size_);
    }
    const Header& header = headers[rank];
    if (header.number != own.number) {
      throw Error(ErrorCode::kProtocol, "rank " + std::to_string(rank) + " is at operation " +
                                            std::to_string(header.number) + " while rank " + std::to_string(rank_) +
                                            " is at operation " + std::to_string(own.number));
    }
    const std::uint64_t brought = input_bytes(header.operation, rank);
    const std::uint64_t expected = brought <= kSmallBytes ? brought : 0;
    if (small.size() != expected) {
      throw Error(ErrorCode::kProtocol, "rank " + std::to_string(rank) + " sent " + std::to_string(small.size()) +
                                            " bytes with its header of " + describe(header.operation) + "; expected " +
                                            std::to_string(expected));
    }
  }
  return headers;
}

}  // namespace distnet
