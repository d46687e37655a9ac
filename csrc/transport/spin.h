// Spins for a little while before a wait goes to sleep, for what the other end is about to do on another core.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/platform.h"
#include "base/threads.h"
#include "base/time.h"

namespace distnet {

// The cores on which the two ends of a channel last ran. Each is written by its own end.
struct Cores {
  std::atomic<std::uint32_t>& own;
  const std::atomic<std::uint32_t>& peer;
};

// Spins while `still` holds, for about `budget` at most. Returns whether it still holds.
//
// It does not spin when the other end last ran on this core. Two ends that spin in turns on one core keep each other
// from running, and from being moved apart; an end that sleeps is woken on a core that is free. It does not yield either:
// base/waiting.h says why. SpinHabit sees to it that little is spun in vain.
template <typename Condition>
bool spin_while(const Condition& still, std::chrono::microseconds budget, const Cores& cores) {
  if (!still()) {
    return false;
  }
  if (simulated()) {
    return true;
  }
  const auto until = now() + budget;
  while (now() < until) {
    const std::uint32_t core = current_core();
    cores.own.store(core, std::memory_order_relaxed);  // a hint: it orders nothing
    if (cores.peer.load(std::memory_order_relaxed) == core) {
      return still();
    }
    for (int i = 0; i < 64; ++i) {
      if (!still()) {
        return false;
      }
      pause_briefly();
    }
  }
  return still();
}

// Does the same for an end whose peer may run anywhere.
template <typename Condition>
bool spin_while(const Condition& still, std::chrono::microseconds budget) {
  const auto until = now() + (simulated() ? std::chrono::microseconds{0} : budget);
  while (still()) {
    if (now() >= until) {
      return true;
    }
    pause_briefly();
  }
  return false;
}

// Decides whether spinning is worth it at one place. After a spin in vain some waits sleep at once, and twice as many
// after the next one. So nobody spins when threads outnumber cores, or when requests come seldom.
//
// Thread safety: one thread uses it.
class SpinHabit {
 public:
  // `spin(still)` calls spin_while() and returns whether `still` still holds. Returns the same.
  template <typename Condition, typename Spin>
  bool wait_awake(const Condition& still, const Spin& spin) {
    if (!still()) {
      return false;
    }
    if (to_skip_ > 0) {
      --to_skip_;
      return true;
    }
    const bool in_vain = spin(still);
    vain_ = in_vain ? std::min(2 * vain_ + 1, kMostSkipped) : 0;
    to_skip_ = vain_;
    return in_vain;
  }

 private:
  static constexpr int kMostSkipped = 63;
  int vain_ = 0;
  int to_skip_ = 0;
};

}  // namespace distnet
