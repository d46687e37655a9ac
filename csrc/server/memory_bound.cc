#include "server/memory_bound.h"

#include <algorithm>

#include "base/units.h"
#include "server/in_flight.h"
#include "server/saved_bytes.h"
#include "sessions/session_table.h"

namespace distnet {
namespace {

// What a session takes beside its slots and its replica: 64 KiB while it asks for nothing, most of it the stack of one
// thread. A session that asks has two threads more and, over TCP, the bounce of its replies.
constexpr std::uint64_t kSessionBytes = std::uint64_t{640} << 10U;
constexpr std::uint64_t kTensorBytes = 512;  // of a tensor's place in a manifest and its groups, beside its name

std::uint64_t pages(std::uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

std::uint64_t slots_bytes(const ShardSettings& settings, std::uint64_t floats, bool over_tcp) {
  const std::uint64_t shard_bytes = pages(floats * sizeof(float));
  const std::uint64_t replica_bytes = settings.tuning.deliver ? shard_bytes : 0;
  const std::uint64_t shm_bytes = settings.policy.max_inflight * shard_bytes + replica_bytes;
  if (!over_tcp) {
    return shm_bytes;
  }
  const std::uint64_t payload_bytes = make_format(settings.push_format)->encoded_bytes(floats);
  return std::max(shm_bytes, pages(settings.policy.max_inflight * payload_bytes));
}

std::uint64_t table_bytes(const Store& store, const Manifest& manifest) {
  return pages(kMaxSessions * sizeof(SessionEntry)) + InFlight::memory_bytes() + store.table_bytes() +
         pages(manifest.tensors.size() * kTensorBytes + 4 * manifest_bytes(manifest));
}

}  // namespace

std::string MemoryBound::json() const {
  std::string json;
  const auto add = [&json](const char* name, std::uint64_t bytes) {
    json.append(json.empty() ? "{\"" : ", \"").append(name).append("\": ").append(std::to_string(bytes));
  };
  add("versions", versions);
  add("optimizer", optimizer);
  add("snapshot", snapshot);
  add("in_flight", in_flight);
  add("sessions", sessions);
  add("tables", tables);
  return json.append("}");
}

MemoryTerms memory_terms(const ShardSettings& settings, const Store& store, const Manifest& manifest, bool over_tcp) {
  const std::uint64_t buffer_bytes = pages(store.buffer(0).bytes());
  const bool versioned = !store.versions_can_mix();
  MemoryTerms terms;
  terms.fixed.versions = (versioned ? 3 : 1) * buffer_bytes;
  terms.fixed.optimizer = static_cast<std::uint64_t>(store.state_vectors()) * pages(store.size() * sizeof(float));
  terms.fixed.snapshot = buffer_bytes + terms.fixed.optimizer;
  terms.fixed.tables = table_bytes(store, manifest);
  const std::uint64_t saved_bytes = std::uint64_t{saved_ranks(settings)} * kMaxSavedBytes;
  terms.fixed.snapshot += saved_bytes;
  terms.fixed.tables += saved_bytes;
  terms.observer.versions = versioned ? (settings.policy.max_inflight + 1) * buffer_bytes : 0;
  terms.observer.sessions = kSessionBytes;
  terms.worker = terms.observer;
  if (settings.shard == 0) {
    terms.worker.sessions += std::uint64_t{most_waiting_saves(settings) + 2} * kMaxSavedBytes;
  }
  terms.worker.in_flight = slots_bytes(settings, store.size(), over_tcp);
  return terms;
}

}  // namespace distnet
