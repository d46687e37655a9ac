// A 64-byte aligned piece of memory: private, or a sealed memfd that other processes can map.
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

  // Zeroed, page aligned. Throws Error(kConfig) when the memory is not to be had.
  static Region private_memory(std::size_t bytes);
  // A memfd of that size, allocated at once and sealed against resizing. `writable_by_peers` false: also against
  // writable mappings made after this one.
  static Region shared_memory(std::size_t bytes, bool writable_by_peers);
  // Maps a memfd received from a peer; takes ownership of `fd`. Throws Error(kProtocol) unless it is exactly `bytes`
  // long and sealed against shrinking.
  static Region map(int fd, std::size_t bytes, bool writable);

  // Maps all of a memfd, writable, over memory that the caller has at `at`, which begins a page; that memory's owner
  // unmaps it. Takes ownership of `fd`. Throws as map() does.
  static void map_over(void* at, int fd, std::size_t bytes);

  // Counts the bytes of this region in `held_bytes` for as long as it lives. Once.
  void count_in(std::shared_ptr<std::atomic<std::uint64_t>> held_bytes);

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  int fd() const { return fd_; }  // -1 for private memory

  template <typename T>
  T* as(std::size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(data_ + offset_bytes);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  int fd_ = -1;
  std::shared_ptr<std::atomic<std::uint64_t>> held_bytes_;  // null: nobody counts
};

}  // namespace distnet
