#include "base/simulation.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace distnet {

struct SimulatedThread {
  std::string name;
  std::uint64_t number = 0;
  bool ended = false;

  // What the thread waits for while another thread has the turn.
  const char* what = "to start";
  const std::function<bool()>* ready = nullptr;  // null: it has not started, or may take its turn at any time
  Clock::time_point until = Clock::time_point::max();
  const void* place = nullptr;  // where it waits for a notification
  bool notified = false;

  bool was_ready = false;  // whether the wait was over when the thread got the turn
  std::condition_variable turn;
};

namespace {

constexpr Clock::duration kTurnTime = std::chrono::microseconds(1);  // else a loop that waits for the time never ends
constexpr std::uint64_t kTurnLimit = 50'000'000;
constexpr std::uint64_t kSwitchOneIn = 4;

struct Place {
  Simulation* simulation = nullptr;
  SimulatedThread* thread = nullptr;
};
thread_local Place this_place;

// SplitMix64: one chain of multiplications for each number, and good enough for draws.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31U);
  }
  std::uint64_t below(std::uint64_t count) { return next() % count; }

 private:
  std::uint64_t state_;
};

}  // namespace

// Only the thread that has the turn touches anything here, and each turn is passed on under `mutex`.
struct Simulation::State {
  explicit State(std::uint64_t seed) : order(seed), numbers(~seed) {}

  std::mutex mutex;
  std::vector<std::unique_ptr<SimulatedThread>> threads;
  SimulatedThread* running = nullptr;
  Clock::time_point now = Clock::time_point(std::chrono::hours(1));
  Draws order;    // draws whose turn it is
  Draws numbers;  // draws what the simulated code asks for
  std::uint64_t digest = 0;
  std::uint64_t turns = 0;
  std::uint64_t turn_limit = kTurnLimit;
  std::exception_ptr failure;
  std::string hang;
  bool over = false;
  std::condition_variable is_over;

  void pass_turn();
  void take_turn(std::unique_lock<std::mutex>& lock, SimulatedThread& self);
  std::vector<SimulatedThread*> candidates();
  void jump_to_earliest_deadline();
  void finish(const char* why);
  std::string describe(const char* why) const;
};

// Returns the threads whose wait is over or whose time has come, and marks which of the two it was.
std::vector<SimulatedThread*> Simulation::State::candidates() {
  std::vector<SimulatedThread*> found;
  for (const auto& thread : threads) {
    if (thread->ended) {
      continue;
    }
    thread->was_ready = thread->ready == nullptr || (*thread->ready)();
    if (thread->was_ready || thread->until <= now) {
      found.push_back(thread.get());
    }
  }
  return found;
}

void Simulation::State::jump_to_earliest_deadline() {
  Clock::time_point earliest = Clock::time_point::max();
  for (const auto& thread : threads) {
    if (!thread->ended) {
      earliest = std::min(earliest, thread->until);
    }
  }
  if (earliest != Clock::time_point::max()) {
    now = std::max(now, earliest);
  }
}

void Simulation::State::pass_turn() {
  running = nullptr;
  now += kTurnTime;
  std::vector<SimulatedThread*> ready = candidates();
  if (ready.empty()) {
    jump_to_earliest_deadline();
    ready = candidates();
  }
  if (ready.empty() || ++turns > turn_limit) {
    finish(ready.empty() ? "no thread can go on" : "the limit of turns is reached");
    return;
  }
  running = ready[order.below(ready.size())];
  const auto time = static_cast<std::uint64_t>(now.time_since_epoch().count());
  digest = Draws(digest ^ (running->number << 48U) ^ time).next();
  running->turn.notify_one();
}

void Simulation::State::finish(const char* why) {
  for (const auto& thread : threads) {
    if (!thread->ended) {
      hang = describe(why);
      break;
    }
  }
  over = true;
  is_over.notify_all();
}

std::string Simulation::State::describe(const char* why) const {
  std::string text = std::string("the simulation hangs: ") + why + " after " + std::to_string(turns) + " turns";
  for (const auto& thread : threads) {
    if (!thread->ended) {
      text += "\n  thread " + std::to_string(thread->number) + " (" + thread->name + ") waits " + thread->what;
    }
  }
  return text;
}

// Never returns when the simulation ends while this thread still waits.
void Simulation::State::take_turn(std::unique_lock<std::mutex>& lock, SimulatedThread& self) {
  self.turn.wait(lock, [&] { return running == &self; });
  self.ready = nullptr;
  self.place = nullptr;
  self.until = Clock::time_point::max();
  self.what = "for nothing: it runs";
}

Simulation::Simulation(std::uint64_t seed) : state_(std::make_shared<State>(seed)) {}

Simulation::~Simulation() = default;

void Simulation::run(std::function<void()> main_thread) {
  DISTNET_INVARIANT(!simulation_runs.exchange(true, std::memory_order_relaxed));
  const std::shared_ptr<State> state = state_;
  SimulatedThread* const first = add_thread("main");
  std::thread main([this, first, body = std::move(main_thread)] { run_thread(first, body); });
  {
    std::unique_lock lock(state->mutex);
    state->pass_turn();
    state->is_over.wait(lock, [&] { return state->over; });
  }
  simulation_runs.store(false, std::memory_order_relaxed);
  if (state->hang.empty()) {
    main.join();
  } else {
    main.detach();  // its thread keeps the state, as the others do
  }
  if (state->failure) {
    std::rethrow_exception(state->failure);
  }
  if (!state->hang.empty()) {
    throw SimulationHung(state->hang);
  }
}

std::uint64_t Simulation::digest() const { return state_->digest; }
std::uint64_t Simulation::turns() const { return state_->turns; }
void Simulation::limit_turns(std::uint64_t turns) { state_->turn_limit = turns; }

Simulation* Simulation::of_this_thread() {
  return simulation_runs.load(std::memory_order_relaxed) ? this_place.simulation : nullptr;
}

Clock::time_point Simulation::now() const { return state_->now; }
std::uint64_t Simulation::random_number() { return state_->numbers.next(); }

bool Simulation::wait(const char* what, const std::function<bool()>& ready, Clock::time_point until) {
  SimulatedThread& self = *this_place.thread;
  std::unique_lock lock(state_->mutex);
  self.what = what;
  self.ready = &ready;
  self.until = until;
  state_->pass_turn();
  state_->take_turn(lock, self);
  return self.was_ready;
}

bool Simulation::wait_for_notice(const char* what, const void* place, Clock::time_point until) {
  SimulatedThread& self = *this_place.thread;
  self.place = place;
  self.notified = false;
  return wait(what, [&self] { return self.notified; }, until);
}

void Simulation::notify_all(const void* place) {
  for (const auto& thread : state_->threads) {
    thread->notified = thread->notified || thread->place == place;
  }
}

void Simulation::notify_one(const void* place) {
  std::vector<SimulatedThread*> waiting;
  for (const auto& thread : state_->threads) {
    if (thread->place == place && !thread->notified) {
      waiting.push_back(thread.get());
    }
  }
  if (!waiting.empty()) {
    waiting[state_->order.below(waiting.size())]->notified = true;
  }
}

void Simulation::maybe_switch(const char* what) {
  if (state_->order.below(kSwitchOneIn) == 0) {
    wait(what, [] { return true; }, Clock::time_point::max());
  }
}

SimulatedThread* Simulation::add_thread(const char* name) {
  const std::lock_guard lock(state_->mutex);
  auto thread = std::make_unique<SimulatedThread>();
  thread->name = name;
  thread->number = state_->threads.size();
  return state_->threads.emplace_back(std::move(thread)).get();
}

void Simulation::run_thread(SimulatedThread* thread, const std::function<void()>& body) {
  const std::shared_ptr<State> state = state_;
  this_place = {this, thread};
  {
    std::unique_lock lock(state->mutex);
    state->take_turn(lock, *thread);
  }
  try {
    body();
  } catch (...) {
    if (!state->failure) {
      state->failure = std::current_exception();
    }
  }
  const std::lock_guard lock(state->mutex);
  thread->ended = true;
  this_place = {};
  state->pass_turn();
}

void Simulation::wait_for_end(const SimulatedThread& thread) {
  wait("for a thread to end", [&thread] { return thread.ended; }, Clock::time_point::max());
}

bool on_simulated_thread() { return Simulation::of_this_thread() != nullptr; }

Clock::time_point simulated_now() { return Simulation::of_this_thread()->now(); }

}  // namespace distnet
