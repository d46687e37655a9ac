// Threads as in the standard library, except that a simulation can run them one at a time.
#pragma once

#include <functional>
#include <thread>

#include "base/time.h"

namespace distnet {

struct SimulatedThread;

// A thread that must be joined before its handle is destroyed or assigned to.
//
// Thread safety: one thread uses a handle.
class Thread {
 public:
  Thread() = default;
  // Starts a thread that calls `run`, which throws nothing. Debuggers show the first 15 characters of `name`, and a
  // simulation that hangs shows all of it. `name` must outlive the thread, as string literals do.
  Thread(const char* name, std::function<void()> run);
  Thread(Thread&&) noexcept = default;
  Thread& operator=(Thread&&) noexcept = default;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() = default;

  bool joinable() const { return thread_.joinable(); }
  void join();
  // Returns whether the caller is this thread.
  bool is_this_thread() const { return thread_.get_id() == std::this_thread::get_id(); }

 private:
  std::thread thread_;
  SimulatedThread* simulated_ = nullptr;  // owned by the simulation; null outside one
};

// Starts a thread that nobody waits for. It may still run when its starter has gone, and the process may end before it
// does, so `run` owns all that it touches and throws nothing. Not in a simulation, which could not see its end.
void run_detached(const char* name, std::function<void()> run);

void sleep_for(Clock::duration duration);

// Returns how many threads can run at the same time on this host; 0 where that is not known.
unsigned processors();

// Tells the core that this thread spins, which saves power and leaves room to the core's other thread.
inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace distnet
