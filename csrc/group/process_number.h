// Tells processes apart, also on different hosts.
#pragma once

#include <cstdint>

namespace distnet {

// Returns a number that no other process has, as far as chance allows. A child of fork() has another one.
std::uint64_t process_number();

}  // namespace distnet
