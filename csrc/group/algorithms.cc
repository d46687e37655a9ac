#include "group/algorithms.h"

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "group/traffic.h"

namespace distnet {
namespace {

constexpr std::uint64_t kSliceBytes = kCacheLineBytes;  // slices begin on lines, and so between elements

}  // namespace

Exchange::Exchange(std::uint32_t rank, Carrier& carrier, const Patience& patience, std::span<const Header> headers,
                   std::span<const Opening> openings, ConstPieces own)
    : rank_(rank),
      size_(static_cast<std::uint32_t>(headers.size())),
      carrier_(carrier),
      patience_(patience),
      headers_(headers),
      openings_(openings),
      own_(std::move(own)) {
  for (std::uint32_t i = 0; i < size_; ++i) {
    if (!headers[i].joined()) {
      contributors_.push_back(i);
    }
  }
}

void Exchange::run(const MutablePieces& output) {
  const OperationKind kind = call(contributors_.front()).kind;
  if (is_reduction(kind)) {
    reduce_into(output);
  } else if (kind == OperationKind::kAlltoall || kind == OperationKind::kScatter) {
    scatter_into(output);
  } else if (is_dealt()) {
    deal_into(output);
  } else if (has_array(kind)) {
    gather_into(output);
  } else {
    carrier_.release();
  }
}

bool Exchange::is_small(std::uint32_t rank) const { return input_bytes(call(rank), rank) <= kSmallBytes; }

bool Exchange::gets(std::uint32_t rank) const {
  return contributes(rank) && (call(rank).kind != OperationKind::kGather || call(rank).root == rank);
}

void Exchange::move(const Phase& phase) {
  if (phase.longest != 0) {
    carrier_.move(phase, patience_);
  }
}

// ---- reductions ----
// The slice of an allreduce is an even part, cut at lines; that of a reduce_scatter is the rank's share.
Exchange::Range Exchange::slice_of(std::uint32_t rank) const {
  const Operation& operation = call(contributors_.front());
  if (operation.kind == OperationKind::kReduceScatter) {
    return handed(contributors_.front(), rank);
  }
  if (!contributes(rank)) {
    return {};
  }
  const auto place = std::lower_bound(contributors_.begin(), contributors_.end(), rank) - contributors_.begin();
  return even_slice(input_bytes(operation, contributors_.front()), static_cast<std::uint64_t>(place),
                    contributors_.size());
}

// Returns one of `slices` of `bytes`, cut at lines.
Exchange::Range Exchange::even_slice(std::uint64_t bytes, std::uint64_t place, std::uint64_t slices) {
  const std::uint64_t lines = (bytes + kSliceBytes - 1) / kSliceBytes;
  const auto begin_of = [&](std::uint64_t k) { return std::min(bytes, lines * k / slices * kSliceBytes); };
  return {begin_of(place), begin_of(place + 1) - begin_of(place)};
}

// Combines `bytes` that begin at `begin` of the output, and at own_begin + begin of our own array, in the order of the
// ranks. `arrived` is what the others sent for that place.
void Exchange::combine(const MutablePieces& output, std::uint64_t own_begin, std::uint64_t begin, std::uint64_t bytes,
                       std::span<const std::byte* const> arrived) const {
  const Combination combination = combination_of(call(rank_));
  const std::size_t item = item_bytes(combination.dtype);
  std::vector<const std::byte*> inputs(contributors_.size());
  for (std::uint64_t done = 0; done < bytes;) {
    const MutableSpan to = output.from(begin + done, bytes - done);
    const ConstSpan own = own_.from(own_begin + begin + done, to.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = contributors_[i] == rank_ ? own.data() : arrived[contributors_[i]] + done;
    }
    reduce(combination, inputs, to.data(), own.size() / item);
    done += own.size();
  }
}

// Everybody has everything already.
void Exchange::reduce_small(const MutablePieces& output) {
  const Range range = call(rank_).kind == OperationKind::kAllreduce ? Range{0, own_.bytes()} : slice_of(rank_);
  std::vector<const std::byte*> arrived(size_);
  for (const std::uint32_t peer : contributors_) {
    if (peer != rank_) {
      arrived[peer] = openings_[peer].small.data() + range.begin;
    }
  }
  combine(output, range.begin, 0, range.bytes, arrived);
}

// Each rank's slice, from all, into `own_slice`, which is as long; `sharing` may follow.
void Exchange::reduce_slices(const MutablePieces& own_slice, const Phase* sharing) {
  const Range own = slice_of(rank_);
  const Combine combiner = [&](std::uint64_t begin, std::uint64_t bytes, std::span<const std::byte* const> arrived) {
    combine(own_slice, own.begin, begin, bytes, arrived);
  };
  if (contributors_.size() == 1) {
    if (contributes(rank_)) {
      combiner(0, own.bytes, {});
    }
    return;
  }
  Phase phase(size_);
  phase.combiner = &combiner;
  for (const std::uint32_t peer : contributors_) {
    const Range slice = slice_of(peer);
    phase.longest = std::max(phase.longest, slice.bytes);
    if (peer != rank_ && contributes(rank_)) {
      phase.legs[peer] = {own_.range(slice.begin, slice.bytes), {}, own.bytes};
    }
  }
  if (sharing != nullptr) {
    carrier_.move_both(phase, *sharing, patience_);
  } else {
    move(phase);
  }
}

// Each rank hands its own slice of the output to all.
Phase Exchange::share_slices(const MutablePieces& output) const {
  Phase phase(size_);
  phase.shared = true;
  const Range own = slice_of(rank_);
  for (const std::uint32_t peer : contributors_) {
    const Range slice = slice_of(peer);
    phase.longest = std::max(phase.longest, slice.bytes);
    if (peer != rank_ && contributes(rank_)) {
      phase.legs[peer] = {read_only(output.range(own.begin, own.bytes)), output.range(slice.begin, slice.bytes), 0};
    }
  }
  return phase;
}

void Exchange::reduce_into(const MutablePieces& output) {
  const std::uint32_t first = contributors_.front();
  if (is_small(first)) {
    if (contributes(rank_)) {
      reduce_small(output);
    }
    carrier_.release();
    return;
  }
  carrier_.release();
  if (call(first).kind == OperationKind::kReduceScatter) {
    reduce_slices(output, nullptr);
    return;
  }
  const Range own = slice_of(rank_);
  const Phase sharing = share_slices(output);
  reduce_slices(contributes(rank_) ? output.range(own.begin, own.bytes) : MutablePieces(), &sharing);
}

// ---- copies ----
Exchange::Range Exchange::handed(std::uint32_t from, std::uint32_t to) const {
  const Operation& operation = call(from);
  if (!contributes(from) || !brings_input(operation, from)) {
    return {};
  }
  if (!cuts_rows(operation.kind)) {
    return {0, input_bytes(operation, from)};
  }
  const std::vector<std::uint64_t> shares = shares_of(operation, size_);
  std::uint64_t rows = 0;
  for (std::uint32_t rank = 0; rank < to; ++rank) {
    rows += shares[rank];
  }
  return {rows * row_bytes(operation), shares[to] * row_bytes(operation)};
}

// Returns the most bytes that a rank hands to another in a phase.
std::uint64_t Exchange::most_handed(std::uint32_t from) const {
  if (!brings_input(call(from), from) || is_small(from)) {
    return 0;
  }
  const std::vector<std::uint64_t> shares = shares_of(call(from), size_);
  std::uint64_t most = 0;
  for (const std::uint32_t to : contributors_) {
    most = std::max(most, to == from ? 0 : shares[to] * row_bytes(call(from)));
  }
  return most;
}

// Allgather, gather and broadcast: the whole array of each rank that brings one, one after another.
void Exchange::gather_into(const MutablePieces& output) {
  Phase phase(size_);
  phase.shared = true;
  std::uint64_t begin = 0;
  for (const std::uint32_t peer : contributors_) {
    const std::uint64_t bytes = handed(peer, rank_).bytes;
    const MutablePieces to = gets(rank_) && !output.empty() ? output.range(begin, bytes) : MutablePieces();
    begin += bytes;
    if (!is_small(peer)) {
      phase.longest = std::max(phase.longest, bytes);
    }
    if (peer != rank_ && gets(peer) && contributes(rank_) && !is_small(rank_)) {
      phase.legs[peer].out = own_;
    }
    if (!gets(rank_)) {
      continue;
    }
    if (peer == rank_) {
      if (!output.empty()) {  // the root of a broadcast has its array already
        copy_pieces(to, own_);
      }
    } else if (is_small(peer)) {
      copy_in(to, 0, openings_[peer].small.data(), bytes);
    } else {
      phase.legs[peer].in = to;
    }
  }
  carrier_.release();
  move(phase);
}

// A large broadcast, where a rank must send what it hands to many to each of them. The root deals a slice to each
// receiver, which hands it on to the others: no rank sends more than the array.
bool Exchange::is_dealt() const {
  const Operation& operation = call(contributors_.front());
  return operation.kind == OperationKind::kBroadcast && !carrier_.reaches_all_at_once() && contributors_.size() > 2 &&
         !is_small(operation.root);
}

void Exchange::deal_into(const MutablePieces& output) {
  const std::uint32_t root = call(contributors_.front()).root;
  const std::uint64_t bytes = handed(root, rank_).bytes;
  std::vector<std::uint32_t> receivers = contributors_;
  std::erase(receivers, root);
  const auto slice_for = [&](std::uint64_t place) { return even_slice(bytes, place, receivers.size()); };
  const auto own_place =
      static_cast<std::uint64_t>(std::lower_bound(receivers.begin(), receivers.end(), rank_) - receivers.begin());
  Phase dealing(size_);
  Phase sharing(size_);
  sharing.shared = true;
  for (std::uint64_t place = 0; place < receivers.size(); ++place) {
    const std::uint32_t peer = receivers[place];
    const Range slice = slice_for(place);
    dealing.longest = sharing.longest = std::max(sharing.longest, slice.bytes);
    if (rank_ == root) {
      dealing.legs[peer].out = own_.range(slice.begin, slice.bytes);
    } else if (peer == rank_) {
      dealing.legs[root].in = output.range(slice.begin, slice.bytes);
    } else if (contributes(rank_)) {
      const Range own = slice_for(own_place);
      sharing.legs[peer] = {read_only(output.range(own.begin, own.bytes)), output.range(slice.begin, slice.bytes), 0};
    }
  }
  if (rank_ == root && !output.empty()) {
    copy_pieces(output, own_);
  }
  carrier_.release();
  carrier_.move_both(dealing, sharing, patience_);
}

// Alltoall and scatter: of each rank that brings an array, the rows that are for us, one after another.
void Exchange::scatter_into(const MutablePieces& output) {
  Phase phase(size_);
  std::uint64_t begin = 0;
  for (const std::uint32_t peer : contributors_) {
    phase.longest = std::max(phase.longest, most_handed(peer));
    if (!contributes(rank_)) {
      continue;
    }
    const Range here = handed(peer, rank_);
    const Range there = handed(rank_, peer);
    const MutablePieces to = output.range(begin, here.bytes);
    begin += here.bytes;
    if (peer == rank_) {
      copy_pieces(to, own_.range(here.begin, here.bytes));
      continue;
    }
    if (!is_small(rank_)) {
      phase.legs[peer].out = own_.range(there.begin, there.bytes);
    }
    if (is_small(peer)) {
      copy_in(to, 0, openings_[peer].small.data() + here.begin, here.bytes);
    } else {
      phase.legs[peer].in = to;
    }
  }
  carrier_.release();
  move(phase);
}

}  // namespace distnet
