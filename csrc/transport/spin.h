// Waiting a little while awake, before going to sleep: for what the other end is about to do on another core.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/platform.h"
#include "base/threads.h"
#include "base/time.h"

namespace distnet {

// Where the two ends of a channel last ran, each written by its own end.
struct Cores {
  std::atomic<std::uint32_t>& own;
  const std::atomic<std::uint32_t>& peer;
};

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  yield();
#endif
}

// Spins while `still` holds, for about `budget` at most; says whether it still does.
//
// Not where the other end ran on this core last: two ends that spin in turns on one core keep each other from getting
// on, and from being moved apart. Asleep, this one is woken on a core that is free. Yields, too: the other end may have
// been woken here, or more threads may be runnable than there are cores.
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
    yield();
  }
  return still();
}

// The same for an end whose peer may be anywhere.
template <typename Condition>
bool spin_while(const Condition& still, std::chrono::microseconds budget) {
  if (simulated()) {
    return still();
  }
  const auto until = now() + budget;
  while (still()) {
    if (now() >= until) {
      return true;
    }
    yield();
  }
  return false;
}

// Whether spinning is worth it at one place, by what came of it there: after a time in vain some waits go to sleep at
// once, twice as many after the next. So where threads outnumber cores, or requests come seldom, nobody spins.
//
// Thread safety: one thread.
class SpinHabit {
 public:
  // `spin(still)` is a spin_while(): it says whether `still` holds yet.
  template <typename Condition, typename Spin>
  bool wait(const Condition& still, const Spin& spin) {
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
