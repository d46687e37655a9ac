// What an operation's kind and header say about the bytes that a rank brings and gets.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "group/operation.h"

namespace distnet {

inline bool is_reduction(OperationKind kind) {
  return kind == OperationKind::kAllreduce || kind == OperationKind::kReduceScatter;
}
inline bool has_root(OperationKind kind) {
  return kind == OperationKind::kBroadcast || kind == OperationKind::kGather || kind == OperationKind::kScatter;
}
inline bool has_array(OperationKind kind) { return kind < OperationKind::kBarrier; }
// Whether ranks get rows of an array, as splits say.
inline bool cuts_rows(OperationKind kind) {
  return kind == OperationKind::kReduceScatter || kind == OperationKind::kAlltoall || kind == OperationKind::kScatter;
}

// Returns how a message lists numbers, at most the first eight.
std::string listed(std::span<const std::uint64_t> values);

// Checks all that can be said of a rank's operation without its memory. Throws Error(kConfig).
void check_values(const Operation& operation, std::uint32_t rank, std::uint32_t size);

inline Combination combination_of(const Operation& operation) {
  return {operation.dtype, operation.reduction, operation.prescale, operation.postscale};
}

// Whether a rank's own array matters: not that of a receiver in broadcast and scatter.
inline bool brings_input(const Operation& operation, std::uint32_t rank) {
  const bool from_root = operation.kind == OperationKind::kBroadcast || operation.kind == OperationKind::kScatter;
  return has_array(operation.kind) && (!from_root || operation.root == rank);
}

inline std::uint64_t row_bytes(const Operation& operation) {
  return row_elements(operation.shape) * item_bytes(operation.dtype);
}

inline std::uint64_t input_bytes(const Operation& operation, std::uint32_t rank) {
  return brings_input(operation, rank) ? rows_of(operation.shape) * row_bytes(operation) : 0;
}

// What a rank gets of a reduction.
inline std::uint64_t reduced_bytes(const Operation& operation, std::uint32_t rank, std::uint32_t size) {
  return operation.kind == OperationKind::kAllreduce ? input_bytes(operation, rank)
                                                     : shares_of(operation, size)[rank] * row_bytes(operation);
}

}  // namespace distnet
