// Reads elements of a gradient that is stored in another form than float32.
//
// Thread safety: a decoder is immutable; any number of threads may use it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace distnet {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Writes elements [begin, begin + count) of the vector that `encoded` stands for to to[0], to[1], .... They lie
  // between two multiples of kDecodeRunFloats, and `begin` is a multiple of kDecodeStepFloats. Returns whether all of
  // them are finite.
  virtual bool decode(float* to, const void* encoded, std::uint64_t begin, std::size_t count) const = 0;
  // Returns whether everything decodes to finite values between multiples `begin` and `end` of kDecodeRunFloats. `end`
  // may also be the vector's. Costs less than decode().
  virtual bool finite(const void* encoded, std::uint64_t begin, std::uint64_t end) const = 0;
};

}  // namespace distnet
