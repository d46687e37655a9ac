// The only allocator of a shard. All memory that must one day outlive the process comes from here.
//
// Thread safety: any number of threads may call all methods.
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
  ~Memory() = default;

  // Returns zeroed, page-aligned memory for this process only. Throws Error(kConfig) when there is not enough memory.
  Region allocate(std::size_t bytes);
  // Returns memory that other processes of this host can map, too: see Region::shared_memory().
  Region allocate_shared(std::size_t bytes, bool writable_by_peers);
  // The same in an empty memory file that exists already: see SpareFiles. Takes ownership of `fd`.
  Region allocate_in_file(int fd, std::size_t bytes, bool writable_by_peers);

  // Returns the bytes of all regions from here that still exist. Regions may outlive this object.
  std::uint64_t held_bytes() const { return held_bytes_->load(std::memory_order_relaxed); }  // a statistic

 private:
  std::shared_ptr<std::atomic<std::uint64_t>> held_bytes_ = std::make_shared<std::atomic<std::uint64_t>>(0);
};

}  // namespace distnet
