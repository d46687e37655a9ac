// Seeded floats for tests, the same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Returns floats that are uniform in [-1, 1), from a 64-bit linear congruential generator (Knuth's MMIX constants).
inline std::vector<float> random_floats(std::size_t count, std::uint64_t seed) {
  std::vector<float> floats(count);
  std::uint64_t state = seed * 2862933555777941757U + 3037000493U;
  for (float& value : floats) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    value = static_cast<float>(static_cast<double>(state >> 40) / static_cast<double>(1U << 23) - 1.0);
  }
  return floats;
}
