// A page-aligned range of memory: private, or a sealed memory file that other processes can map.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace distnet {

class Region {
 public:
  Region() = default;
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region();

  // Returns zeroed memory. Throws Error(kConfig) when there is not enough.
  static Region private_memory(std::size_t bytes);
  // Returns a memory file that is allocated at once and sealed against resizing. Unless `writable_by_peers`, it is also
  // sealed against writable mappings made after this one.
  static Region shared_memory(std::size_t bytes, bool writable_by_peers);
  // The same in an empty memory file that exists already. Takes ownership of `fd`.
  static Region in_memory_file(int fd, std::size_t bytes, bool writable_by_peers);
  // Maps a memory file received from a peer and takes ownership of `fd`, which is closed once the memory is mapped. Throws Error(kProtocol) unless the file is
  // exactly `bytes` long and sealed against shrinking.
  static Region map(int fd, std::size_t bytes, bool writable);

  // Maps all of a memory file, writable, over the caller's memory at `at`, which begins a page. The owner of that
  // memory unmaps it. Takes ownership of `fd`. Throws as map() does.
  static void map_over(void* at, int fd, std::size_t bytes);

  // Closes the descriptor, which cannot be passed to peers any more. The memory stays.
  void close_file();

  // Adds the bytes of this region to `held_bytes` for as long as the region lives. Called at most once.
  void count_in(std::shared_ptr<std::atomic<std::uint64_t>> held_bytes);

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  int fd() const { return fd_; }  // -1 for private memory, and where the file is closed

  template <typename T>
  T* as(std::size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(data_ + offset_bytes);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  int fd_ = -1;
  std::shared_ptr<std::atomic<std::uint64_t>> held_bytes_;  // null when nobody counts
};

}  // namespace distnet
