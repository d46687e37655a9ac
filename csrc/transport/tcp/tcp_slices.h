// Finds a range of elements in slices of the caller's memory.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "transport/channel.h"

namespace distnet {

// Goes through the elements [begin, end) in order. Calls `run(pointer, floats)` for those that lie in a slice, and
// `gap(floats)` for the others, for as long as both return true. It looks only at slices that reach into the range: a
// model may have a million, and each system call goes on where the last one ended.
template <typename Slice, typename Run, typename Gap>
void for_each_run(std::span<const Slice> slices, std::uint64_t begin, std::uint64_t end, const Run& run,
                  const Gap& gap) {
  const auto ends_before = [begin](const Slice& slice) { return slice.offset + slice.count <= begin; };
  auto at = std::ranges::partition_point(slices, ends_before);
  for (; at != slices.end() && at->offset < end; ++at) {
    const std::uint64_t first = std::max(at->offset, begin);
    const std::uint64_t last = std::min(at->offset + at->count, end);
    if (first > begin && !gap(first - begin)) {
      return;
    }
    bool more = true;
    if constexpr (std::is_same_v<Slice, SourceSlice>) {
      more = run(at->from + (first - at->offset), last - first);
    } else {
      more = run(at->to + (first - at->offset), last - first);
    }
    if (!more) {
      return;
    }
    begin = last;
  }
  if (begin < end) {
    gap(end - begin);
  }
}

}  // namespace distnet
