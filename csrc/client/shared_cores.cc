// Shards whose threads come to serve this client from one core.
#include <bitset>

#include "base/platform.h"
#include "client/client.h"

namespace distnet {
namespace {

constexpr std::size_t kCoresTold = 1024;  // apart from each other

}  // namespace

// Threads of two shards that come to run on one core keep each other from running where they spin there. They may stay
// there for good: a client that spins on another core leaves the system no reason to move one of them. So the later one
// is asked to go.
void Client::part_those_that_share_a_core() {
  static const std::size_t cores = usable_cores();
  if (shards_.size() == 1 || shards_.size() > cores) {
    return;
  }
  std::bitset<kCoresTold> seen;
  for (const Shard& shard : shards_) {
    if (const auto core = shard.link->channel().server_core()) {
      if (seen[*core % kCoresTold]) {
        shard.link->channel().ask_to_leave(*core);
      }
      seen.set(*core % kCoresTold);
    }
  }
}

}  // namespace distnet
