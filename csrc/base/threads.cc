#include "base/threads.h"

#include <string>
#include <utility>

#include <pthread.h>

#include "base/error.h"
#include "base/simulation.h"

namespace distnet {
namespace {

constexpr std::size_t kNameLimit = 15;  // on Linux

void name_this_thread(const char* name) {
  pthread_setname_np(pthread_self(), std::string(name).substr(0, kNameLimit).c_str());
}

}  // namespace

Thread::Thread(const char* name, std::function<void()> run) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulated_ = simulation->add_thread(name);
    thread_ =
        std::thread([simulation, thread = simulated_, body = std::move(run)] { simulation->run_thread(thread, body); });
    simulation->maybe_switch("to start a thread");
    return;
  }
  thread_ = std::thread([name, body = std::move(run)] {
    name_this_thread(name);
    body();
  });
}

void Thread::join() {
  if (simulated_ != nullptr) {
    if (Simulation* const simulation = Simulation::of_this_thread()) {
      simulation->wait_for_end(*std::exchange(simulated_, nullptr));
    }
  }
  thread_.join();
}

void run_detached(const char* name, std::function<void()> run) {
  DISTNET_INVARIANT(!simulated());
  std::thread([name, body = std::move(run)] {
    name_this_thread(name);
    body();
  }).detach();
}

void sleep_for(Clock::duration duration) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulation->wait("for time to pass", [] { return false; }, Deadline::after(duration).at());
    return;
  }
  std::this_thread::sleep_for(duration);
}

unsigned processors() { return std::thread::hardware_concurrency(); }

}  // namespace distnet
