// Finds a range of elements in slices of the caller's memory.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "transport/channel.h"

namespace distnet {

// Goes through the elements [begin, end) in order. Calls `run(pointer, floats)` for those that lie in a slice, and
// `gap(floats)` for the others.
template <typename Slice, typename Run, typename Gap>
void for_each_run(std::span<const Slice> slices, std::uint64_t begin, std::uint64_t end, const Run& run,
                  const Gap& gap) {
  for (const Slice& slice : slices) {
    const std::uint64_t slice_end = std::min(slice.offset + slice.count, end);
    if (slice.offset >= end) {
      break;
    }
    if (slice_end <= begin) {
      continue;
    }
    if (slice.offset > begin) {
      gap(slice.offset - begin);
      begin = slice.offset;
    }
    if constexpr (std::is_same_v<Slice, SourceSlice>) {
      run(slice.from + (begin - slice.offset), slice_end - begin);
    } else {
      run(slice.to + (begin - slice.offset), slice_end - begin);
    }
    begin = slice_end;
  }
  if (begin < end) {
    gap(end - begin);
  }
}

}  // namespace distnet
