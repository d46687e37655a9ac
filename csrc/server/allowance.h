// How often a client may ask. A client that asks more often is not read for a while, so its questions wait with it.
//
// A value: it knows no clock.
// Thread safety: none; its owner uses it.
#pragma once

#include <algorithm>

#include "base/time.h"

namespace distnet {

class Allowance {
 public:
  // `burst` questions at once, and `per_second` in the long run.
  Allowance(double burst, double per_second, Clock::time_point now)
      : burst_(burst), per_second_(per_second), left_(burst), counted_at_(now) {}

  // Counts a question. Returns how long the next one is to wait.
  Clock::duration spend(Clock::time_point now) {
    const double passed_s = std::chrono::duration<double>(now - counted_at_).count();
    counted_at_ = now;
    left_ = std::min(burst_, left_ + passed_s * per_second_) - 1.0;
    if (left_ >= 0.0) {
      return {};
    }
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(-left_ / per_second_));
  }

 private:
  const double burst_;
  const double per_second_;
  double left_;
  Clock::time_point counted_at_;
};

}  // namespace distnet
