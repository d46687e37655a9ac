#include "sessions/proof.h"

#include <array>
#include <bit>
#include <span>
#include <vector>

namespace distnet {
namespace {

struct SipState {
  std::uint64_t v0, v1, v2, v3;

  void round() {
    v0 += v1;
    v2 += v3;
    v1 = std::rotl(v1, 13) ^ v0;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 = std::rotl(v0, 32);
    v2 += v1;
    v0 += v3;
    v1 = std::rotl(v1, 17) ^ v2;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 = std::rotl(v2, 32);
  }
};

// Returns SipHash-2-4 of whole 64-bit words.
std::uint64_t siphash(const JobSecret& key, std::span<const std::uint64_t> words) {
  SipState state{key.low ^ 0x736f6d6570736575U, key.high ^ 0x646f72616e646f6dU, key.low ^ 0x6c7967656e657261U,
                 key.high ^ 0x7465646279746573U};
  const auto absorb = [&](std::uint64_t word) {
    state.v3 ^= word;
    state.round();
    state.round();
    state.v0 ^= word;
  };
  for (const std::uint64_t word : words) {
    absorb(word);
  }
  absorb(std::uint64_t{words.size() * 8 % 256} << 56U);
  state.v2 ^= 0xFF;
  for (int i = 0; i < 4; ++i) {
    state.round();
  }
  return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

// The first word of each kind of statement, so that none can pass for another.
enum Statement : std::uint64_t { kAdmitted = 1, kBrings = 2, kIsShard = 3, kIsMember = 4 };

}  // namespace

Proof prove(const JobSecret& secret, const ClientId& id, Role role, const Grant& grant) {
  const auto half = [&](std::uint64_t which) {
    std::vector<std::uint64_t> words = {
        kAdmitted,         which,      id.high, id.low, static_cast<std::uint64_t>(role), grant.rank,
        grant.incarnation, grant.model};
    words.insert(words.end(), grant.replaces.begin(), grant.replaces.end());
    return siphash(secret, words);
  };
  return {half(0), half(1)};
}

Proof prove(const JobSecret& secret, const ClientId& id, std::uint64_t model) {
  const auto half = [&](std::uint64_t which) {
    return siphash(secret, std::array<std::uint64_t, 5>{kBrings, which, id.high, id.low, model});
  };
  return {half(0), half(1)};
}

Proof prove(const JobSecret& secret, std::uint32_t shard) {
  const auto half = [&](std::uint64_t which) {
    return siphash(secret, std::array<std::uint64_t, 3>{kIsShard, which, shard});
  };
  return {half(0), half(1)};
}

Proof prove(const JobSecret& secret, std::uint64_t generation, std::uint16_t stream, std::uint32_t from,
            std::uint32_t to) {
  const auto half = [&](std::uint64_t which) {
    return siphash(secret, std::array<std::uint64_t, 6>{kIsMember, which, generation, stream, from, to});
  };
  return {half(0), half(1)};
}

bool same(const Proof& one, const Proof& other) { return ((one.high ^ other.high) | (one.low ^ other.low)) == 0; }

}  // namespace distnet
