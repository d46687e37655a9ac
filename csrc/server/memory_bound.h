// How much memory a shard takes at most, by what it is for. All is in bytes, rounded up to whole pages.
//
// What a session can hold is bounded by the shard's settings and by nothing that its client does:
// - It has max_inflight slots for gradients and, in shared memory, a replica.
// - It keeps at most max_inflight + 1 versions from being written over: those of the replies that it has not let go.
//   A channel takes no request beyond that.
// - A versioned store has one buffer more for the newest version, one for the version that is made next, and one for
//   what the server itself reads.
// - Of what it has the shard save with its pushes, max_inflight + 2 wait for their push, and one is being received, of
//   which there are two copies for a moment. For each rank one is saved, and a cut keeps another.
#pragma once

#include <cstdint>
#include <string>

#include "server/shard_settings.h"
#include "store/store.h"
#include "wire/manifest.h"

namespace distnet {

struct MemoryBound {
  std::uint64_t versions = 0;   // parameters, and their average
  std::uint64_t optimizer = 0;  // its state vectors
  std::uint64_t snapshot = 0;   // what a cut keeps for its reader
  std::uint64_t in_flight = 0;  // gradients on their way, and replicas
  std::uint64_t sessions = 0;   // threads, rings, and what passes through on its way to the wire
  std::uint64_t tables = 0;     // of sessions, of pushes in flight, of the store's chunks, and the manifest

  std::string json() const;  // an object
};

// The bound is `fixed` + workers * `worker` + observers * `observer`. A session counts from its admission until its last
// connection has gone.
struct MemoryTerms {
  MemoryBound fixed;
  MemoryBound worker;
  MemoryBound observer;
};

// `over_tcp`: clients of other hosts may come.
MemoryTerms memory_terms(const ShardSettings& settings, const Store& store, const Manifest& manifest, bool over_tcp);

}  // namespace distnet
