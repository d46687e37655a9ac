#include "base/random.h"

#include "base/platform.h"
#include "base/simulation.h"

namespace distnet {

std::uint64_t random_number() {
  Simulation* const simulation = Simulation::of_this_thread();
  return simulation != nullptr ? simulation->random_number() : system_random_number();
}

}  // namespace distnet
