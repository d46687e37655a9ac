// Waiting a little while awake, before going to sleep: for what the other end is about to do on another core.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "base/deadline.h"
#include "base/platform.h"

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
  std::this_thread::yield();
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
  const auto until = Clock::now() + budget;
  while (Clock::now() < until) {
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
    std::this_thread::yield();
  }
  return still();
}

// The same for an end whose peer may be anywhere.
template <typename Condition>
bool spin_while(const Condition& still, std::chrono::microseconds budget) {
  const auto until = Clock::now() + budget;
  while (still()) {
    if (Clock::now() >= until) {
      return true;
    }
    std::this_thread::yield();
  }
  return false;
}

}  // namespace distnet
