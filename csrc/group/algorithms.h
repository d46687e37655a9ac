// How each kind of operation is put together from an opening and phases, over any carrier.
//
// Reductions are direct exchanges in the order of the ranks. A small array goes to everybody with the header, and each
// rank reduces all of it. Of a larger one each rank is handed its own slice by every other, reduces it, and hands the
// result to all. An element is reduced once for all, or by the same code from the same inputs in the same order. So the
// bits are the same on all ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "group/carrier.h"
#include "group/operation.h"

namespace distnet {

// One operation of one rank, once the headers of all ranks are known and fit. What it refers to outlives it.
class Exchange {
 public:
  // `own` is this rank's array, where it brings one.
  Exchange(std::uint32_t rank, Carrier& carrier, const Patience& patience, std::span<const Header> headers,
           std::span<const Opening> openings, ConstPieces own);

  // Moves the operation's bytes, and releases the openings. `output` is as long as this rank's result, or empty where
  // it has none. It may be the same memory as `own` in an allreduce or a broadcast; otherwise it does not overlap it.
  void run(const MutablePieces& output);

 private:
  // A part of a rank's array, in bytes.
  struct Range {
    std::uint64_t begin = 0;
    std::uint64_t bytes = 0;
  };

  const Operation& call(std::uint32_t rank) const { return headers_[rank].operation; }
  bool contributes(std::uint32_t rank) const { return !headers_[rank].joined(); }
  bool is_small(std::uint32_t rank) const;
  bool gets(std::uint32_t rank) const;
  Range handed(std::uint32_t from, std::uint32_t to) const;
  std::uint64_t most_handed(std::uint32_t from) const;
  Range slice_of(std::uint32_t rank) const;
  static Range even_slice(std::uint64_t bytes, std::uint64_t place, std::uint64_t slices);

  void reduce_into(const MutablePieces& output);
  void reduce_small(const MutablePieces& output);
  Phase share_slices(const MutablePieces& output) const;
  void reduce_slices(const MutablePieces& own_slice, const Phase* sharing);
  void gather_into(const MutablePieces& output);
  bool is_dealt() const;
  void deal_into(const MutablePieces& output);
  void scatter_into(const MutablePieces& output);
  void combine(const MutablePieces& output, std::uint64_t own_begin, std::uint64_t begin, std::uint64_t bytes,
               std::span<const std::byte* const> arrived) const;
  void move(const Phase& phase);

  const std::uint32_t rank_;
  const std::uint32_t size_;
  Carrier& carrier_;
  const Patience& patience_;
  const std::span<const Header> headers_;
  const std::span<const Opening> openings_;
  const ConstPieces own_;
  std::vector<std::uint32_t> contributors_;  // the ranks that have not joined, in order
};

}  // namespace distnet
