// The ledger of one session: what its client pushed, and what became of it.
//
// Thread safety: `accepted` belongs to the session's data thread; the others are written by whoever settles a push. All
// may be read by anyone.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "wire/protocol.h"

namespace distnet {

enum class SessionEnd : std::uint8_t { kConnected, kDone, kDied, kSilent, kStopped };

struct Session {
  std::uint64_t id = 0;
  Role role = Role::kWorker;
  std::uint32_t rank = 0;
  TransportKind transport = TransportKind::kShm;

  // Sequence numbers of pushes: newest accepted, newest applied, newest settled (applied or refused).
  // Invariant: applied <= settled <= accepted.
  std::atomic<std::uint64_t> accepted{0};
  std::atomic<std::uint64_t> applied{0};
  std::atomic<std::uint64_t> settled{0};
  std::atomic<std::uint64_t> refused{0};    // how many
  std::atomic<std::uint64_t> staleness{0};  // of push number `applied`

  std::function<void(std::uint64_t push)> on_settled;  // frees the push's slot; called by whoever settled it
  // Tells the client how much of the version that its push makes lies in a buffer already; empty: it cannot look there.
  std::function<void(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements)> on_drafted;
  std::function<void()> collect_released;  // unpins versions that the client has let go; any thread
};

}  // namespace distnet
