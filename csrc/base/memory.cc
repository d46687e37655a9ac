#include "base/memory.h"

namespace distnet {

Region Memory::allocate(std::size_t bytes) {
  Region region = Region::private_memory(bytes);
  region.count_in(held_bytes_);
  return region;
}

Region Memory::allocate_shared(std::size_t bytes, bool writable_by_peers) {
  Region region = Region::shared_memory(bytes, writable_by_peers);
  region.count_in(held_bytes_);
  return region;
}

Region Memory::allocate_in_file(int fd, std::size_t bytes, bool writable_by_peers) {
  Region region = Region::in_memory_file(fd, bytes, writable_by_peers);
  region.count_in(held_bytes_);
  return region;
}

}  // namespace distnet
