// Elements of a gradient that does not lie there as floats.
//
// Thread safety: immutable; any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distnet {

inline constexpr std::size_t kDecodeRunFloats = 16384;  // one decode() stays between two multiples of this
inline constexpr std::size_t kDecodeStepFloats = 1024;  // … and begins at a multiple of this

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Elements [begin, begin + count) of the vector that `encoded` stands for, to `to[0]` and on.
  virtual void decode(float* to, const void* encoded, std::uint64_t begin, std::size_t count) const = 0;
};

}  // namespace distnet
