// The fast paths. Each can be switched off, so that its worth can be measured.
#pragma once

#include <chrono>
#include <string>

namespace distnet {

struct Tuning {
  std::chrono::microseconds spin{50};  // how long a wait spins before it sleeps; 0: not at all
  bool announce_early = true;          // client: wake the server before a gradient is copied into its slot, not after
  bool apply_arriving = true;          // server: apply a gradient while it arrives, where the policy allows
  bool read_drafts = true;             // client: read the version that a push makes while it is made
  bool deliver = true;                 // the server writes replies into the client's own arrays (shared memory)
  bool past_cache = true;              // vectors larger than the cache are written past it
  bool duplex = true;                  // replies that need not wait for a gradient overlap its arrival (TCP)
  std::string congestion_control = "reno";  // for TCP within a host; empty: the system's own
};

}  // namespace distnet
