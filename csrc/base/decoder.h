// Elements of a gradient that does not lie there as floats.
//
// Thread safety: immutable; any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace distnet {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Writes elements [begin, begin + count) of the vector that `encoded` stands for to `to[0]` and on. They lie between
  // two multiples of kDecodeRunFloats, and `begin` is a multiple of kDecodeStepFloats.
  virtual void decode(float* to, const void* encoded, std::uint64_t begin, std::size_t count) const = 0;
};

}  // namespace distnet
