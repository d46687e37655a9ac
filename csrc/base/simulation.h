// A deterministic scheduler for tests: runs all threads of a server and its clients one at a time, in an order drawn
// from a seed, in virtual time.
//
// A simulated thread keeps the turn until it waits (see waiting.h and threads.h) or, at random, when it locks a mutex,
// wakes somebody or starts a thread. The turn then goes to a thread drawn from those whose wait is over: notified, the
// word changed, the descriptor ready, or the deadline passed. Where there is none, time jumps to the earliest deadline.
// Where there is no deadline either, the simulation hangs, which run() reports.
//
// Threads and everything that they wait for must be made inside run(); what other threads of the process do is not
// seen. Two runs with one seed go the same way as long as all that the threads wait for does: Unix socket pairs and
// memory do; a peer outside of the simulation does not.
//
// Thread safety: one simulation runs at a time; run() from any thread, the rest as each method says.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/time.h"

namespace distnet {

struct SimulatedThread;

// Names each thread that was left and what it waited for.
class SimulationHung : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Simulation {
 public:
  explicit Simulation(std::uint64_t seed);
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;
  ~Simulation();

  // Runs `main_thread` and all that it starts until the last thread ended. Throws what a thread threw first, or
  // SimulationHung. The threads of a simulation that hung are stopped where they are, for good: what they hold stays.
  void run(std::function<void()> main_thread);

  // After run(), or within. Two runs that gave the turn to the same threads at the same times have the same digest.
  std::uint64_t digest() const;
  std::uint64_t turns() const;
  // run() reports a hang after so many turns: threads that only yield to each other never get anywhere.
  void limit_turns(std::uint64_t turns);

  // ---- for base/, on a thread of a simulation -----------------------------------------------------------------------
  // Null on a thread that no simulation started.
  static Simulation* of_this_thread();

  Clock::time_point now() const;
  std::uint64_t random_number();

  // Gives up the turn until `ready` returns true or the time has come; returns whether it was ready. `ready` is called
  // on any thread of the simulation, and neither waits nor throws. `what` completes "waits", for the report of a hang.
  bool wait(const char* what, const std::function<bool()>& ready, Clock::time_point until);
  // Gives up the turn until notified at `place`; returns false when the time came first.
  bool wait_for_notice(const char* what, const void* place, Clock::time_point until);
  void notify_all(const void* place);
  void notify_one(const void* place);
  // Gives up the turn or not, at random.
  void maybe_switch(const char* what);

  // A new thread is added by the thread that starts it, and then runs itself.
  SimulatedThread* add_thread(const char* name);
  void run_thread(SimulatedThread* thread, const std::function<void()>& body);
  void wait_for_end(const SimulatedThread& thread);

 private:
  struct State;
  std::shared_ptr<State> state_;  // also held by the threads of a simulation that hung
};

}  // namespace distnet
