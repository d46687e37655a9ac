// A gradient on its way into memory that the server owns. Its elements arrive in order.
//
// A caller that uses the elements that have arrived must be able to undo its work, because the rest may never come.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/units.h"

namespace distnet {

class Arrival {
 public:
  enum class State : std::uint8_t {
    kHere,
    kLate,       // it did not arrive within the patience asked for; it may still come
    kWithdrawn,  // the client found NaN or infinity in it
    kCutOff,     // the session ended
  };

  virtual ~Arrival() = default;

  // Waits until elements [0, floats) have arrived, for at most `patience`. One thread calls it.
  virtual State wait(std::uint64_t floats, std::chrono::microseconds patience) = 0;
};

inline constexpr std::chrono::microseconds kAnyPatience = std::chrono::hours(24 * 365);

}  // namespace distnet
