// The sessions of a shard, apart from the connections that carry them.
//
// A session is one client's numbered conversation with one shard. It begins with an id that the shard has not seen, may
// change its connection, and ends once. A client is known by its id alone; its rank says which part of the work is its,
// and the incarnation counts the sessions that shard 0 granted.
//
// A value: events come in, verdicts go out. It knows no clock, no thread and no connection.
// Thread safety: none; its owner guards it. The ledger of an entry may be read and written by anyone at any time.
//
// Invariants
// - An id has one entry, and one incarnation for ever: an id that returns is the same session, never a newer one.
// - Of the live sessions of a rank in a synchronous job, the newest alone counts: the others are fenced at once.
// - A session that has ended stays ended. Its entry is kept until the place is needed, so that its client can be told.
// - An entry is plain memory: numbers, no pointers.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/time.h"
#include "wire/control_messages.h"

namespace distnet {

inline constexpr std::uint32_t kMaxSessions = 4096;

enum class Presence : std::uint8_t { kFree, kLive, kAway, kEnded };

// What a client pushed, by its sequence numbers, and what became of it.
// Invariant: applied <= settled <= accepted. `accepted` has one writer, the session's data loop; the others are written
// by whoever settles a push, one push of a session at a time.
struct Ledger {
  std::atomic<std::uint64_t> accepted{0};    // newest accepted push
  std::atomic<std::uint64_t> applied{0};     // newest push that was applied or abstained
  std::atomic<std::uint64_t> settled{0};     // newest settled push: applied, refused or abstained
  std::atomic<std::uint64_t> refused{0};     // how many were refused
  std::atomic<std::uint64_t> staleness{0};   // of push number `applied`; 0 for an abstention
  std::atomic<std::uint64_t> unheard{0};     // a push that was refused after its reply had left, until the client hears
  std::atomic<std::uint64_t> saves_with{0};  // the oldest push that bytes to save wait for, or 0
  std::atomic<bool> fenced{false};           // nothing more is accepted: a newer session took over
};

struct SessionEntry {
  ClientId id;
  std::uint64_t number = 0;  // of the session at this shard, from 1; names it in an Attach
  std::uint32_t rank = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t start = 0;
  std::uint32_t connections = 0;  // that have carried it: the newest is the one that counts; 0: none is left
  Role role = Role::kWorker;
  TransportKind transport = TransportKind::kShm;
  Presence presence = Presence::kFree;
  SessionEnd how = SessionEnd::kStopped;  // once it has ended
  bool warned_of_another = false;
  double timeout_s = 0.0;
  std::int64_t last_heard_ns = 0;
  std::int64_t away_until_ns = 0;
  Ledger ledger;
};

struct SessionRules {
  bool grants = true;       // shard 0: gives out incarnations; the others take them from a grant
  bool newest_wins = true;  // synchronous: a newer session of a rank fences the older
  std::uint32_t workers = 1;
  double reconnect_timeout_s = 0.0;
};

// Throws kConfig for a worker of a synchronous job whose rank is none of its `workers`.
void refuse_beyond(const Hello& hello, std::uint32_t workers);

class SessionTable {
 public:
  SessionTable(const SessionRules& rules, Memory& memory);

  struct Warning {
    std::uint32_t place = 0;
    std::string text;
  };
  struct Admission {
    std::uint32_t place = 0;
    bool returning = false;               // the session goes on, with a new connection; an older one has to end
    std::vector<std::uint32_t> replaces;  // the incarnations of those in `fenced`
    std::vector<std::uint32_t> fenced;    // places of sessions that have ended now
    std::vector<Warning> warnings;
  };

  // A client asks to begin or to go on. At shards other than the first its grant has been proved. Throws Error:
  // kFenced for a session that has ended, kConfig for a rank out of range, kTransport where there is no place.
  Admission admit(const Hello& hello, Clock::time_point now);

  // The connection that was number `connection` of the session ended; `may_return`: it broke. Returns what the session
  // is now: live where another connection carries it already, away where the client may come back, else ended.
  Presence connection_ended(std::uint32_t place, std::uint32_t connection, SessionEnd how, bool may_return,
                            Clock::time_point now);
  // An away session whose time is over ends. Returns whether it has ended.
  bool expire(std::uint32_t place, Clock::time_point now);
  void end(std::uint32_t place, SessionEnd how);
  void heard(std::uint32_t place, Clock::time_point now);
  // The last connection of an ended session is gone: its place may be taken again.
  void retire(std::uint32_t place);

  const SessionEntry& entry(std::uint32_t place) const { return entries_[place]; }
  Ledger& ledger(std::uint32_t place) const { return entries_[place].ledger; }
  // Places that have ever been used are below this.
  std::uint32_t used() const { return used_; }

 private:
  SessionEntry* find(const ClientId& id) const;
  Admission returning(SessionEntry& entry, const Hello& hello, Clock::time_point now);
  bool replaces(const Hello& hello, const SessionEntry& entry, Clock::time_point now) const;
  void meet_others_of_the_rank(const Hello& hello, Admission& admission, Clock::time_point now);
  std::uint32_t free_place();

  const SessionRules rules_;
  Region memory_;
  SessionEntry* const entries_;
  std::uint32_t used_ = 0;
  std::uint32_t granted_ = 0;
  std::uint64_t numbers_ = 0;
};

// "done", "died", "silent", "fenced" or "stopped".
const char* end_name(SessionEnd how);

}  // namespace distnet
