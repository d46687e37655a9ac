#include "store/vectors.h"

#include <algorithm>

#include "base/units.h"
#include "kernels/kernels.h"

namespace distnet {

BufferLayout::BufferLayout(std::uint64_t elements, bool with_ema) : size(elements) {
  const std::uint64_t vector_bytes =
      (elements * sizeof(float) + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  ema_offset_bytes = with_ema ? vector_bytes : 0;
  bytes = with_ema ? 2 * vector_bytes : vector_bytes;
}

Region BufferLayout::make_buffer(Memory& memory) const { return memory.allocate_shared(bytes, false); }

Region BufferLayout::make_buffer(Memory& memory, int file) const { return memory.allocate_in_file(file, bytes, false); }

void BufferLayout::fill(const Region& buffer, std::span<const float> initial) const {
  copy(parameters(buffer), initial.data(), initial.size());
  if (ema_offset_bytes != 0) {
    copy(ema(buffer), initial.data(), initial.size());
  }
}

OptimizerState::OptimizerState(const UpdateRule& rule, std::uint64_t size, Memory& memory) {
  for (int index = 0; index < rule.state_vectors(); ++index) {
    vectors_.push_back(memory.allocate(size * sizeof(float)));
    const float initial = rule.initial_state_value(index);
    if (initial != 0.0F) {
      std::fill_n(vectors_.back().as<float>(), size, initial);
    }
  }
}

void OptimizerState::put_back(std::span<const std::vector<float>> vectors) const {
  for (std::size_t index = 0; index < vectors_.size(); ++index) {
    copy(vectors_[index].as<float>(), vectors[index].data(), vectors[index].size());
  }
}

void OptimizerState::attach(ParameterVectors& vectors) const {
  for (std::size_t index = 0; index < vectors_.size(); ++index) {
    vectors.state[index] = vectors_[index].as<float>();
  }
}

}  // namespace distnet
