#include "base/region.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/platform.h"

namespace distnet {
namespace {

std::byte* map_memory(std::size_t bytes, int protection, int flags, int fd, void* at = nullptr) {
  void* const data = mmap(at, bytes, protection, flags, fd, 0);
  if (data == MAP_FAILED) {
    throw Error(ErrorCode::kConfig, "cannot map " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
  }
  return static_cast<std::byte*>(data);
}

void check_sealed(int fd, std::size_t bytes) {
  if (bytes == 0 || !is_sealed_memory_file(fd, bytes)) {
    throw Error(ErrorCode::kProtocol,
                "the server passed memory that is not " + std::to_string(bytes) + " sealed bytes");
  }
}

}  // namespace

Region::Region(Region&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      fd_(std::exchange(other.fd_, -1)),
      held_bytes_(std::move(other.held_bytes_)) {}

Region& Region::operator=(Region&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(fd_, other.fd_);
  std::swap(held_bytes_, other.held_bytes_);
  return *this;
}

Region::~Region() {
  if (data_ != nullptr) {
    munmap(data_, bytes_);
  }
  close_file();
  if (held_bytes_) {
    held_bytes_->fetch_sub(bytes_, std::memory_order_relaxed);  // a statistic
  }
}

void Region::close_file() {
  if (fd_ >= 0) {
    close(std::exchange(fd_, -1));
  }
}

Region Region::private_memory(std::size_t bytes) {
  Region region;
  region.data_ = map_memory(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  region.bytes_ = bytes;
  return region;
}

Region Region::shared_memory(std::size_t bytes, bool writable_by_peers) {
  return in_memory_file(create_memory_file(), bytes, writable_by_peers);
}

Region Region::in_memory_file(int fd, std::size_t bytes, bool writable_by_peers) {
  Region region;
  region.fd_ = fd;
  allocate_memory_file(fd, bytes);
  region.data_ = map_memory(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, region.fd_);
  region.bytes_ = bytes;
  seal_memory_file(region.fd_, writable_by_peers);
  return region;
}

void Region::count_in(std::shared_ptr<std::atomic<std::uint64_t>> held_bytes) {
  held_bytes->fetch_add(bytes_, std::memory_order_relaxed);  // a statistic
  held_bytes_ = std::move(held_bytes);
}

Region Region::map(int fd, std::size_t bytes, bool writable) {
  Region region;
  region.fd_ = fd;
  check_sealed(fd, bytes);
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  region.data_ = map_memory(bytes, protection, MAP_SHARED | MAP_POPULATE, fd);
  region.bytes_ = bytes;
  region.close_file();
  return region;
}

void Region::map_over(void* at, int fd, std::size_t bytes) {
  Region owner;  // closes the descriptor
  owner.fd_ = fd;
  check_sealed(fd, bytes);
  map_memory(bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, at);
}

}  // namespace distnet
