// The clock of the engine, deadlines after which a wait gives up, and the callback that interrupts a waiting call.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>

#include "base/simulated.h"

namespace distnet {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Returns the virtual time of the simulation that the calling thread belongs to.
Clock::time_point simulated_now();

// Returns the time that everything in the engine goes by. It is virtual in a simulation.
inline Clock::time_point now() { return simulated() ? simulated_now() : Clock::now(); }

class Deadline {
 public:
  // Infinity and durations of more than a hundred years mean forever().
  static Deadline after(double seconds) {
    constexpr double kHundredYearsSeconds = 100.0 * 366.0 * 24.0 * 3600.0;
    if (!(seconds < kHundredYearsSeconds)) {
      return forever();
    }
    return Deadline(now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }
  static Deadline after(Clock::duration duration) {
    const Clock::time_point at = now();
    return duration < Clock::time_point::max() - at ? Deadline(at + duration) : forever();
  }
  static Deadline forever() { return Deadline(Clock::time_point::max()); }

  bool is_forever() const { return at_ == Clock::time_point::max(); }
  bool expired() const { return now() >= at_; }
  Clock::duration left() const { return std::max(at_ - now(), Clock::duration{0}); }
  milliseconds remaining() const {
    const auto left = std::chrono::ceil<milliseconds>(at_ - now());
    return std::max(left, milliseconds{0});
  }
  Clock::time_point at() const { return at_; }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

// Called about once an interval while a call waits; throws to end the wait (Ctrl-C). May be empty.
using Interrupt = std::function<void()>;
inline constexpr milliseconds kInterruptInterval{100};

}  // namespace distnet
