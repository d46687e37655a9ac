// A deterministic scheduler for tests. It runs all threads of a server and its clients one at a time, in an order drawn
// from a seed, in virtual time.
//
// A simulated thread keeps its turn until it waits (see waiting.h and threads.h). It may also lose it, at random, when
// it locks a mutex, wakes somebody or starts a thread. The turn then goes to a thread drawn from those whose wait is
// over: it was notified, the word changed, the descriptor is ready, or the deadline passed. When there is none, time
// jumps to the earliest deadline. When there is no deadline either, the simulation hangs, and run() reports it.
//
// Threads and all that they wait for must be made inside run(); the simulation does not see other threads of the
// process. Two runs with one seed take the same turns as long as all that the threads wait for is deterministic. Memory
// and Unix socket pairs are; a peer outside the simulation is not.
//
// Thread safety: one simulation runs at a time. Any thread may call run(); each other method says who may call it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/time.h"

namespace distnet {

struct SimulatedThread;

// Thrown when a simulation hangs. The message names each thread that is left and what it waits for.
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

  // Runs `main_thread` and the threads that it starts until the last one has ended. Throws what a thread threw first,
  // or SimulationHung. The threads of a simulation that hung stay stopped for good, and what they hold is never freed.
  void run(std::function<void()> main_thread);

  // May be called during run() and after it. Two runs that gave the turn to the same threads at the same times have the
  // same digest.
  std::uint64_t digest() const;
  std::uint64_t turns() const;
  // run() reports a hang after this many turns, because threads that only give each other the turn would go on for ever.
  void limit_turns(std::uint64_t turns);

  // ---- for base/, on a thread of a simulation -----------------------------------------------------------------------
  // Returns null on a thread that no simulation started.
  static Simulation* of_this_thread();

  Clock::time_point now() const;
  std::uint64_t random_number();

  // Gives up the turn until `ready` returns true or the time has come; returns whether it was ready. `ready` is called
  // on any thread of the simulation, and neither waits nor throws. The report of a hang says that the thread "waits"
  // `what`.
  bool wait(const char* what, const std::function<bool()>& ready, Clock::time_point until);
  // Gives up the turn until `place` is notified; returns false when the time came first.
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
