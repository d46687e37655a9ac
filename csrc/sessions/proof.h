// The shards of one job, and the members of one group, know each other's word by a keyed hash: SipHash-2-4 of what is
// said, under their secret.
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
#pragma once

#include "wire/control_messages.h"

namespace distnet {

struct JobSecret {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool known() const { return high != 0 || low != 0; }
};

// That shard 0 admitted this client as the grant says. The grant's own proof does not enter.
Proof prove(const JobSecret& secret, const ClientId& id, Role role, const Grant& grant);
// That shard 0 has this client bring the model.
Proof prove(const JobSecret& secret, const ClientId& id, std::uint64_t model);
// That this is shard number `shard` of the job.
Proof prove(const JobSecret& secret, std::uint32_t shard);

// That rank `from` of a group connects to rank `to`, for the stream of that number.
Proof prove(const JobSecret& secret, std::uint64_t generation, std::uint16_t stream, std::uint32_t from,
            std::uint32_t to);

// Whether two proofs are equal, in a time that does not tell where they differ.
bool same(const Proof& one, const Proof& other);

}  // namespace distnet
