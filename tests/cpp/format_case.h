// What tests of wire formats share: chunks that notice a write beside them, and lengths and values worth trying.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <vector>

#include "check.h"
#include "wire/format.h"

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kLargest = std::numeric_limits<float>::max();
inline constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
inline constexpr std::size_t kChunk = distnet::kFormatChunkFloats;

inline const std::vector<std::size_t> kLengths = {1,   2,   3,    15,   16,   17,   31,   64,   100,        255,
                                                  256, 257, 1000, 1024, 4095, 4096, 4097, 5000, kChunk - 1, kChunk};

// An encoded chunk between guard bytes that nobody may touch.
class ChunkBytes {
 public:
  explicit ChunkBytes(std::size_t size) : size_(size), all_(new (kAlign) std::byte[size + 2 * kGuard]) {
    std::fill(all_, all_ + size_ + 2 * kGuard, kMark);
  }
  ChunkBytes(const ChunkBytes&) = delete;
  ChunkBytes& operator=(const ChunkBytes&) = delete;
  ~ChunkBytes() { ::operator delete[](all_, kAlign); }

  std::byte* data() { return all_ + kGuard; }
  std::span<const std::byte> bytes() { return {data(), size_}; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  bool guards_are_whole() const {
    const auto whole = [](const std::byte* from) {
      return std::all_of(from, from + kGuard, [](std::byte byte) { return byte == kMark; });
    };
    return whole(all_) && whole(all_ + kGuard + size_);
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr std::align_val_t kAlign{64};
  static constexpr std::byte kMark{0xA5};
  std::size_t size_;
  std::byte* all_;
};

inline bool same_bits(std::span<const float> left, std::span<const float> right) {
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size_bytes()) == 0;
}

// Returns what floats become when they pass through a format as one chunk.
inline std::vector<float> through(const distnet::WireFormat& format, const std::vector<float>& floats,
                                  bool expected = true) {
  ChunkBytes bytes(format.chunk_bytes(floats.size()));
  CHECK_EQUAL(format.encode(bytes.data(), floats.data(), floats.size(), 1.0F, {}), expected);
  CHECK(format.valid(bytes.data(), floats.size()));
  if (format.for_pulls() || expected) {
    CHECK_EQUAL(format.finite(bytes.data(), floats.size()), expected);
  }
  std::vector<float> decoded(floats.size());
  format.decode(decoded.data(), bytes.data(), floats.size(), 0, floats.size());
  return decoded;
}
