// Whether the headers of all ranks fit together.
#include <algorithm>
#include <string>

#include "group/operation.h"
#include "group/traffic.h"

namespace distnet {
namespace {

bool same_from(std::span<const std::int64_t> left, std::span<const std::int64_t> right, std::size_t first) {
  return left.size() == right.size() &&
         (left.size() <= first || std::equal(left.begin() + static_cast<std::ptrdiff_t>(first), left.end(),
                                             right.begin() + static_cast<std::ptrdiff_t>(first)));
}

bool same_call(const Operation& left, const Operation& right) {
  if (left.kind != right.kind || (has_root(left.kind) && left.root != right.root)) {
    return false;
  }
  return !is_reduction(left.kind) ||
         (left.reduction == right.reduction && left.prescale == right.prescale && left.postscale == right.postscale);
}

// `reference` is the root's array where there is a root that brings one, else the first rank's.
bool arrays_fit(const Operation& reference, const Operation& other, std::uint32_t rank, std::uint32_t size) {
  const bool receives = !brings_input(other, rank);
  if (receives && other.takes_any) {
    return true;
  }
  if (reference.dtype != other.dtype) {
    return false;
  }
  switch (other.kind) {
    case OperationKind::kAllreduce:
    case OperationKind::kBroadcast:
      return reference.shape == other.shape;
    case OperationKind::kReduceScatter:
      return reference.shape == other.shape && shares_of(reference, size) == shares_of(other, size);
    case OperationKind::kScatter:
      return !receives ||
             (same_from(reference.shape, other.shape, 1) && rows_of(other.shape) == shares_of(reference, size)[rank]);
    default:
      return same_from(reference.shape, other.shape, 1);
  }
}

std::string both_sides(std::span<const Header> headers, std::size_t one, std::size_t other) {
  const Operation& right = headers[other].operation;
  std::string text = "rank " + std::to_string(one) + " calls " + describe(headers[one].operation) + ", rank " +
                     std::to_string(other) + " calls " + describe(right);
  if (right.kind == OperationKind::kScatter && headers[one].operation.kind == OperationKind::kScatter) {
    const auto shares = shares_of(headers[right.root].operation, static_cast<std::uint32_t>(headers.size()));
    text += ", and the shares of rank " + std::to_string(right.root) + "'s rows are " + listed(shares);
  }
  return text + "; all ranks of a group call the same operations in the same order, with arrays that fit";
}

}  // namespace

std::optional<std::string> mismatch(std::span<const Header> headers) {
  const auto size = static_cast<std::uint32_t>(headers.size());
  std::uint32_t first = 0;
  while (first < size && headers[first].joined()) {
    ++first;
  }
  if (first == size) {
    return std::nullopt;
  }
  for (std::uint32_t rank = first + 1; rank < size; ++rank) {
    if (!headers[rank].joined() && !same_call(headers[first].operation, headers[rank].operation)) {
      return both_sides(headers, first, rank);
    }
  }
  const Operation& call = headers[first].operation;
  if (!has_array(call.kind)) {
    return std::nullopt;
  }
  if (has_root(call.kind) && headers[call.root].joined()) {
    return "rank " + std::to_string(first) + " calls " + describe(call) + ", and rank " + std::to_string(call.root) +
           " has joined, so it takes part in nothing more; choose a root that has not";
  }
  const bool from_root = call.kind == OperationKind::kBroadcast || call.kind == OperationKind::kScatter;
  const std::uint32_t reference = from_root ? call.root : first;
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    if (!headers[rank].joined() && !arrays_fit(headers[reference].operation, headers[rank].operation, rank, size)) {
      return both_sides(headers, std::min(reference, rank), std::max(reference, rank));
    }
  }
  return std::nullopt;
}

}  // namespace distnet
