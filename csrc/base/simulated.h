// Tells the waits, clocks and random numbers of the engine whether a simulation drives them (see simulation.h).
#pragma once

#include <atomic>

namespace distnet {

// True while a simulation runs in this process. It is set before the first simulated thread starts and cleared after
// the last one has ended, so relaxed loads are enough.
inline std::atomic<bool> simulation_runs{false};

// Returns whether the calling thread was started by the simulation that runs.
bool on_simulated_thread();

// Returns whether the calling thread is a simulated one. Without a simulation this costs one predictable branch. Spin
// loops ask it and return at once, because nobody else runs while a simulated thread spins.
inline bool simulated() {
  if (!simulation_runs.load(std::memory_order_relaxed)) [[likely]] {
    return false;
  }
  return on_simulated_thread();
}

}  // namespace distnet
