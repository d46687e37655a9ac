// The memory of a store: buffers that readers may map, and the optimizer's state, which they cannot.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/memory.h"
#include "optim/update_rule.h"

namespace distnet {

// The layout of a buffer: parameters, padding to 64 bytes, then the moving average where one is kept.
struct BufferLayout {
  BufferLayout(std::uint64_t elements, bool with_ema);

  std::uint64_t size;
  std::uint64_t bytes;
  std::uint64_t ema_offset_bytes;  // 0: no average

  float* parameters(const Region& buffer) const { return buffer.as<float>(); }
  float* ema(const Region& buffer) const {
    return ema_offset_bytes == 0 ? nullptr : buffer.as<float>(ema_offset_bytes);
  }

  // Returns a new buffer that processes of this host may map, read-only.
  Region make_buffer(Memory& memory) const;
  // The same in an empty memory file, which it takes.
  Region make_buffer(Memory& memory, int file) const;
  // Fills a buffer with the starting parameters, which the average starts from, too.
  void fill(const Region& buffer, std::span<const float> initial) const;
};

// The optimizer's state vectors. The thread that owns a range of elements writes them in place.
class OptimizerState {
 public:
  OptimizerState(const UpdateRule& rule, std::uint64_t size, Memory& memory);

  // Puts the state vectors into `vectors`, which an update reads and writes.
  void attach(ParameterVectors& vectors) const;
  void put_back(std::span<const std::vector<float>> vectors) const;
  const float* vector(int index) const { return vectors_.at(static_cast<std::size_t>(index)).as<float>(); }

 private:
  std::vector<Region> vectors_;
};

}  // namespace distnet
