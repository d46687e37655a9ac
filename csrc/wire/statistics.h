// The counters of a server as values, and the one encoder that passes them on as JSON.
//
// A counter that is added is one field here, one line of the encoder, and one field of distnet/stats.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace distnet {

// How many updates came between the version that a push was computed from and its own.
struct StalenessStatistics {
  std::uint64_t max = 0;
  double mean = 0.0;
  std::vector<std::uint64_t> counts;  // pushes of staleness 0, 1, 2, ...; the last bucket holds all above
};

struct SessionStatistics {
  std::uint64_t id = 0;
  std::string role;                   // "worker" or "observer"
  std::optional<std::uint32_t> rank;  // of a worker
  std::uint32_t incarnation = 0;
  std::string presence;   // "live" or "away"
  std::string transport;  // "shm" or "tcp"
  std::uint64_t accepted = 0;
  std::uint64_t applied = 0;
  std::uint64_t refused = 0;
  std::uint64_t staleness = 0;
};

// A worker's session that has ended.
struct EndedSession {
  std::uint32_t rank = 0;
  std::uint32_t incarnation = 0;
  std::string how;  // as end_name() says
};

// What the connections of a shard moved, those that have ended included.
struct ConnectionStatistics {
  std::uint64_t bytes_received = 0;
  std::uint64_t bytes_sent = 0;
};

struct ShardStatistics {
  std::uint64_t updates = 0;
  std::uint64_t version = 0;
  std::uint64_t floats = 0;  // 0 while the shard has no parameters
  std::uint64_t state_vectors = 0;
  double learning_rate = 0.0;  // of the next update, before the groups multiply it
  std::uint64_t queue_depth = 0;
  std::uint64_t round = 0;
  std::vector<std::uint32_t> awaited;  // ranks that the open round waits for
  std::uint64_t accepted = 0;
  std::uint64_t applied = 0;
  std::uint64_t refused = 0;
  std::uint64_t refused_in_part = 0;  // of those refused
  std::uint64_t abstained = 0;
  std::uint64_t rates_differed = 0;  // rounds whose pushes named different learning rates
  std::uint64_t cut_off = 0;
  std::uint64_t pulls = 0;
  std::uint64_t snapshots = 0;         // that were cut
  double snapshot_pause_last_s = 0.0;  // for which one held pushes
  double snapshot_pause_longest_s = 0.0;
  std::uint64_t workers_done = 0;
  std::uint64_t workers_died = 0;
  std::uint64_t workers_silent = 0;
  StalenessStatistics staleness;
  std::vector<SessionStatistics> sessions;
  std::vector<EndedSession> ended;
  std::uint64_t groups = 0;  // of ranks that have come together here
  ConnectionStatistics connections;

  std::string json() const;
};

}  // namespace distnet
