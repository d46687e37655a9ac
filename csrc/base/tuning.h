// The fast paths, each of which can be switched off, so that its worth can be measured.
#pragma once

#include <chrono>
#include <string>

namespace distnet {

struct Tuning {
  std::chrono::microseconds spin{50};       // before a wait goes to sleep; 0: at once
  bool announce_early = true;               // client: wake the server before a gradient is staged, not after
  bool apply_arriving = true;               // server: apply a gradient while it arrives, where the policy allows
  bool read_drafts = true;                  // client: read the version that a push makes while it is made
  bool deliver = true;                      // the server writes replies into the client's own arrays (shared memory)
  bool past_cache = true;                   // vectors larger than the cache are written past it
  bool duplex = true;                       // replies that need not wait for a gradient overlap its arrival (TCP)
  std::string congestion_control = "reno";  // of TCP within a host; empty: the system's
};

}  // namespace distnet
