// Points in time after which a wait gives up, and the callback that lets a waiting call be interrupted.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>

namespace distnet {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

class Deadline {
 public:
  static Deadline after(double seconds) {
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }

  bool expired() const { return Clock::now() >= at_; }
  Clock::duration left() const { return std::max(at_ - Clock::now(), Clock::duration{0}); }
  milliseconds remaining() const {
    const auto left = std::chrono::ceil<milliseconds>(at_ - Clock::now());
    return std::max(left, milliseconds{0});
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

// Called between slices of a wait; throws to end it (Ctrl-C). May be empty.
using Interrupt = std::function<void()>;
inline constexpr milliseconds kWaitSlice{100};

}  // namespace distnet
