// A gradient on its way into memory that the server owns, first element first.
//
// Whoever works on what is here already must be able to undo it: the rest may never come.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/units.h"

namespace distnet {

class Arrival {
 public:
  enum class State : std::uint8_t {
    kHere,
    kLate,       // not within the patience asked for; it may still come
    kWithdrawn,  // the client found NaN or infinity in it
    kCutOff,     // the session ended
  };

  virtual ~Arrival() = default;

  // Waits until elements [0, floats) are here, for at most `patience`. One thread.
  virtual State wait(std::uint64_t floats, std::chrono::microseconds patience) = 0;
};

inline constexpr std::chrono::microseconds kAnyPatience = std::chrono::hours(24 * 365);

}  // namespace distnet
