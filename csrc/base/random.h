// Random numbers for names, secrets and nonces.
//
// Thread safety: any number of threads may call it.
#pragma once

#include <cstdint>

namespace distnet {

// Returns a number that no other process can guess. In a simulation it comes from the simulation's seed. Throws
// Error(kConfig) when the system gives none.
std::uint64_t random_number();

}  // namespace distnet
