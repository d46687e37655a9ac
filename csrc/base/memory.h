// The one allocator of a shard: all that must one day outlive the process comes from here.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/region.h"

namespace distnet {

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Zeroed, page aligned, for this process only. Throws Error(kConfig) when the memory is not to be had.
  Region allocate(std::size_t bytes);
  // For other processes of this host, too: see Region::shared_memory().
  Region allocate_shared(std::size_t bytes, bool writable_by_peers);

  // The bytes of all regions from here that live. Regions may outlive this object.
  std::uint64_t held_bytes() const { return held_bytes_->load(std::memory_order_relaxed); }  // a statistic

 private:
  std::shared_ptr<std::atomic<std::uint64_t>> held_bytes_ = std::make_shared<std::atomic<std::uint64_t>>(0);
};

}  // namespace distnet
