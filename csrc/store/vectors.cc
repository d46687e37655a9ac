#include "store/vectors.h"

#include <algorithm>

#include "base/units.h"
#include "kernels/kernels.h"

namespace distnet {

BufferLayout::BufferLayout(std::uint64_t elements, bool with_average) : size(elements) {
  const std::uint64_t vector_bytes =
      (elements * sizeof(float) + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  average_offset_bytes = with_average ? vector_bytes : 0;
  bytes = with_average ? 2 * vector_bytes : vector_bytes;
}

Region BufferLayout::make_buffer(Memory& memory) const { return memory.allocate_shared(bytes, false); }

void BufferLayout::fill(const Region& buffer, std::span<const float> initial) const {
  copy(parameters(buffer), initial.data(), initial.size());
  if (average_offset_bytes != 0) {
    copy(average(buffer), initial.data(), initial.size());
  }
}

OptimizerState::OptimizerState(const UpdateRule& rule, std::uint64_t size, Memory& memory) {
  for (int slot = 0; slot < rule.slots(); ++slot) {
    slots_.push_back(memory.allocate(size * sizeof(float)));
    const float initial = rule.initial_slot_value(slot);
    if (initial != 0.0F) {
      std::fill_n(slots_.back().as<float>(), size, initial);
    }
  }
}

void OptimizerState::attach(ParameterVectors& vectors) const {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    vectors.slots[slot] = slots_[slot].as<float>();
  }
}

}  // namespace distnet
