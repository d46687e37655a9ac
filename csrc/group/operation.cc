#include "group/operation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "group/traffic.h"

namespace distnet {
namespace {

constexpr std::uint8_t kTakesAny = 1;    // a flag of the header
constexpr std::size_t kFixedBytes = 48;  // of a header without shape and splits

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kConfig, why); }

// An empty dimension counts as one here, so that the size of a row is bounded even where there is no row.
void check_shape(const Operation& operation, std::uint32_t rank) {
  if (operation.shape.size() > kMostDimensions) {
    refuse("an array has " + std::to_string(operation.shape.size()) + " dimensions; an operation takes at most " +
           std::to_string(kMostDimensions));
  }
  std::uint64_t bytes = item_bytes(operation.dtype);
  for (const std::int64_t dimension : operation.shape) {
    if (dimension < 0) {
      refuse("an array has the shape " + shape_text(operation.shape) + ", in which a dimension is negative");
    }
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(dimension, 1));
    if (factor > kMostVectorBytes / bytes) {
      refuse("an array of shape " + shape_text(operation.shape) + " has more than 2^44 bytes");
    }
    bytes *= factor;
  }
  if (operation.shape.empty() && cuts_rows(operation.kind) && brings_input(operation, rank)) {
    refuse(std::string(kind_name(operation.kind)) + " cuts an array along its first dimension, and a scalar has none");
  }
}

void check_splits(const Operation& operation, std::uint32_t rank, std::uint32_t size) {
  if (operation.splits.empty()) {
    return;
  }
  if (!cuts_rows(operation.kind) || !brings_input(operation, rank)) {
    refuse(std::string(kind_name(operation.kind)) + " takes no splits on this rank");
  }
  if (operation.splits.size() != size) {
    refuse("there are " + std::to_string(operation.splits.size()) + " splits; expected one for each of " +
           std::to_string(size) + " ranks");
  }
  const std::uint64_t rows = rows_of(operation.shape);
  std::uint64_t left = rows;
  for (const std::uint64_t split : operation.splits) {
    if (split > left) {
      refuse("the splits " + listed(operation.splits) + " have more than the " + std::to_string(rows) +
             " rows of the array");
    }
    left -= split;
  }
  if (left != 0) {
    refuse("the splits " + listed(operation.splits) + " leave " + std::to_string(left) + " of the " +
           std::to_string(rows) + " rows of the array");
  }
}

template <typename Span>
std::uint64_t total_bytes(const std::vector<Span>& pieces) {
  std::uint64_t bytes = 0;
  for (const Span& piece : pieces) {
    bytes += piece.size();
  }
  return bytes;
}

template <typename Span>
void check_pieces(const std::vector<Span>& pieces, std::size_t item) {
  for (const Span& piece : pieces) {
    if (piece.size() % item != 0 || reinterpret_cast<std::uintptr_t>(piece.data()) % item != 0) {
      refuse("an array starts or ends between two elements of " + std::to_string(item) + " bytes");
    }
  }
}

}  // namespace

const char* kind_name(OperationKind kind) {
  static constexpr std::array kNames = {"allreduce", "allgather", "reduce_scatter", "alltoall", "broadcast", "gather",
                                        "scatter",   "barrier",   "join",           "send",     "receive"};
  return kNames.at(static_cast<std::size_t>(kind) - 1);
}

const char* dtype_name(DType dtype) {
  static constexpr std::array kNames = {"uint8",   "int8",     "int16",   "int32",   "int64",
                                        "float16", "bfloat16", "float32", "float64", "bool"};
  return kNames.at(static_cast<std::size_t>(dtype) - 1);
}

const char* reduction_name(Reduction reduction) {
  static constexpr std::array kNames = {"sum", "average", "min", "max", "product"};
  return kNames.at(static_cast<std::size_t>(reduction) - 1);
}

std::string listed(std::span<const std::uint64_t> values) {
  constexpr std::size_t kMostShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(values.size(), kMostShown); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  }
  return values.size() > kMostShown ? text + ", ..." : text;
}

std::string describe(const Operation& operation) {
  std::string text = kind_name(operation.kind);
  if (is_reduction(operation.kind)) {
    text += std::string(" (") + reduction_name(operation.reduction);
    text += operation.prescale == 1.0 ? "" : ", prescale " + std::to_string(operation.prescale);
    text += operation.postscale == 1.0 ? "" : ", postscale " + std::to_string(operation.postscale);
    text += ')';
  }
  if (has_array(operation.kind)) {
    text += operation.takes_any ? std::string(" of anything")
                                : std::string(" of ") + dtype_name(operation.dtype) + " " + shape_text(operation.shape);
  }
  if (!operation.splits.empty()) {
    text += " split into " + listed(operation.splits);
  }
  if (has_root(operation.kind)) {
    text += (operation.kind == OperationKind::kGather ? " to rank " : " from rank ") + std::to_string(operation.root);
  }
  return text;
}

std::uint64_t elements_of(std::span<const std::int64_t> shape) { return rows_of(shape) * row_elements(shape); }

std::uint64_t rows_of(std::span<const std::int64_t> shape) {
  return shape.empty() ? 1 : static_cast<std::uint64_t>(shape.front());
}

std::uint64_t row_elements(std::span<const std::int64_t> shape) {
  std::uint64_t elements = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) {
    elements *= static_cast<std::uint64_t>(shape[i]);
  }
  return elements;
}

std::vector<std::uint64_t> shares_of(const Operation& operation, std::uint32_t size) {
  if (!operation.splits.empty()) {
    return operation.splits;
  }
  const std::uint64_t rows = rows_of(operation.shape);
  std::vector<std::uint64_t> shares(size, rows / size);
  for (std::uint64_t rank = 0; rank < rows % size; ++rank) {
    ++shares[rank];
  }
  return shares;
}

void check_values(const Operation& operation, std::uint32_t rank, std::uint32_t size) {
  if (operation.kind >= OperationKind::kSend) {
    refuse(std::string(kind_name(operation.kind)) + " is not an operation of all ranks");
  }
  if (has_root(operation.kind) && operation.root >= size) {
    refuse("the root is rank " + std::to_string(operation.root) + "; the group has the ranks 0 to " +
           std::to_string(size - 1));
  }
  if (is_reduction(operation.kind)) {
    if (!std::isfinite(operation.prescale) || !std::isfinite(operation.postscale)) {
      refuse("the prescale and the postscale of a reduction are finite numbers");
    }
    if (!is_defined(combination_of(operation))) {
      refuse("bool is neither averaged nor scaled; its sum is \"or\", its product \"and\"");
    }
  }
  if (has_array(operation.kind)) {
    check_shape(operation, rank);
  }
  check_splits(operation, rank, size);
}

void check(const Operation& operation, const Operands& operands, std::uint32_t rank, std::uint32_t size) {
  check_values(operation, rank, size);
  if (!has_array(operation.kind)) {
    return;
  }
  const std::uint64_t expected = input_bytes(operation, rank);
  const std::uint64_t given = total_bytes(operands.inputs);
  if (brings_input(operation, rank) && given != expected) {
    refuse("the inputs of " + describe(operation) + " have " + std::to_string(given) + " bytes; expected " +
           std::to_string(expected));
  }
  if (is_reduction(operation.kind)) {
    check_pieces(operands.inputs, item_bytes(operation.dtype));
    check_pieces(operands.outputs, item_bytes(operation.dtype));
    const std::uint64_t result = reduced_bytes(operation, rank, size);
    if (!operands.outputs.empty() && total_bytes(operands.outputs) != result) {
      refuse("the outputs of " + describe(operation) + " have " + std::to_string(total_bytes(operands.outputs)) +
             " bytes; expected " + std::to_string(result));
    }
  }
}

}  // namespace distnet
