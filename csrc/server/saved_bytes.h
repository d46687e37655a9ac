// The bytes that workers have shard 0 keep with their pushes: a worker's place in its data, so that it can go on there.
//
// Bytes come before the push that they are for. When that push is applied, or abstains, they become the rank's saved ones;
// when it is refused, they are dropped. So a cut, which no push is half in, has exactly the bytes whose push is in it.
//
// Thread safety: all methods, from any number of threads. settled() is called by whoever settles a push, before that
// push leaves the accept gate, and waits for a few instructions at most.
//
// Invariants
// - Of a session at most `most_waiting` bytes wait, each for a push of its own that has yet to be settled.
// - A ledger's `saves_with` is the oldest push that bytes of the session wait for, or 0. It is written under the mutex,
//   and bytes wait before their push is sent, so whoever settles the push sees them.
// - Of a rank one is saved. Saved bytes never change, so a cut shares them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/waiting.h"
#include "server/shard_settings.h"
#include "sessions/session_table.h"

namespace distnet {

// Returns how many ranks a shard keeps bytes for: none but at shard 0. Where ranks are labels, it knows no last one.
std::uint32_t saved_ranks(const ShardSettings& settings);
// Returns how many bytes of a session may wait: for a push that has been answered and not settled, for those that have
// not been answered, and for the next one.
std::uint32_t most_waiting_saves(const ShardSettings& settings);

class SavedBytes {
 public:
  using Data = std::shared_ptr<const std::vector<std::byte>>;  // at most kMaxSavedBytes
  using ByRank = std::map<std::uint32_t, Data>;

  // Keeps bytes for ranks below `ranks`.
  SavedBytes(SessionTable& sessions, std::uint32_t ranks, std::uint32_t most_waiting)
      : sessions_(sessions), ranks_(ranks), most_waiting_(most_waiting) {}

  struct Kept {
    bool replaced = false;  // other bytes waited for the same push
    std::string why_not;    // empty: the bytes wait for their push
  };
  // Has bytes wait for push `push` of a worker's session, in place of others for the same push. Throws Error(kProtocol)
  // where the push has been accepted already, or where too many wait.
  Kept keep(std::uint32_t session, std::uint64_t push, std::vector<std::byte> data);
  // Push `push` of the session has been settled.
  void settled(std::uint32_t session, std::uint64_t push, bool applied) {
    // Acquire pairs with the release in note_oldest(). Where nobody saves, this load is all it costs.
    const std::uint64_t oldest = sessions_.ledger(session).saves_with.load(std::memory_order_acquire);
    if (oldest != 0 && oldest <= push) [[unlikely]] {
      take(session, push, applied);
    }
  }
  // A connection of the session has ended, and every push that came over it is settled: what waits for a later one goes.
  void forget(std::uint32_t session);

  Data of(std::uint32_t rank) const;  // null: none
  ByRank all() const;
  // Before everything else. Bytes of other ranks than those below `ranks` are left out.
  void put_back(const ByRank& saved);

 private:
  using Waiting = std::map<std::uint64_t, Data>;  // by the push

  void take(std::uint32_t session, std::uint64_t push, bool applied);
  void note_oldest(std::uint32_t session, const Waiting& waiting);

  SessionTable& sessions_;
  const std::uint32_t ranks_;
  const std::uint32_t most_waiting_;

  mutable Mutex mutex_;
  std::map<std::uint32_t, Waiting> waiting_;  // by session
  ByRank saved_;
};

}  // namespace distnet
