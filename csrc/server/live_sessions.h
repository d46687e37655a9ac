// The sessions of a shard with the connections that carry them now.
//
// The end of a connection and the end of a session are two events: a connection that ended without a goodbye leaves its
// session away for a while, and another connection may take it up.
//
// Thread safety: all methods, from any number of threads. No lock is held while a peer is told something.
//
// Invariants
// - A session is carried by one connection at a time: a newer one waits until the older has let go.
// - An entry's place is not used anew before its last connection has let go.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/waiting.h"
#include "server/settlement.h"
#include "sessions/session_table.h"
#include "transport/control.h"
#include "wire/statistics.h"

namespace distnet {

// One connection's hold on a session.
struct Carrying {
  std::shared_ptr<ControlConnection> control;
  std::uint32_t place = 0;
  std::uint32_t connection = 0;  // counts the connections of the session
  bool returning = false;
  bool ended = false;                   // connection_ended() has been called
  std::vector<std::uint32_t> replaces;  // incarnations
  std::vector<std::string> warnings;    // for this client
  // The connections of the sessions that this one fences, and what they are told.
  std::vector<std::pair<std::shared_ptr<ControlConnection>, std::string>> fenced;
};

class LiveSessions {
 public:
  LiveSessions(const SessionRules& rules, Memory& memory) : table_(rules, memory) {}

  // A client asks to begin or to go on, over this connection. The caller takes the session up, says when the connection
  // ended, and lets go. Throws as SessionTable::admit() does.
  Carrying admit(const Hello& hello, const std::shared_ptr<ControlConnection>& control);
  // Tells the sessions that this one fenced, and ends their connections. After the rounds know of this one.
  static void tell_fenced(Carrying& carrying);
  // Waits until an older connection of the session has let it go, which ends for that. Throws Error(kDeadlineExceeded)
  // where it does not.
  void take_up(const Carrying& carrying);
  // The connection ended. `may_return`: it broke, and the client may come back over another. Only the first call counts.
  Presence connection_ended(Carrying& carrying, SessionEnd how, bool may_return);
  // Waits for as long as the session is away. Returns how it ended, or nothing where another connection carries it on.
  std::optional<SessionEnd> wait_for_end(const Carrying& carrying);
  // The connection lets the session go: nothing of it touches the session any more.
  void let_go(const Carrying& carrying);
  void heard(const Carrying& carrying);

  // From now on connections end because the server stops.
  void stop();
  bool stopping() const;
  void notify_all_clients(const Notice& notice);
  // The client of the session alone; does nothing where no connection carries it now.
  void notify_client(std::uint32_t place, const Notice& notice);

  SessionTable& table() { return table_; }
  const SessionEntry& entry(std::uint32_t place) const { return table_.entry(place); }
  // A session that is live or away.
  struct Present {
    std::uint32_t place = 0;
    std::uint64_t number = 0;
    std::uint64_t accepted = 0;
  };
  std::vector<Present> present() const;
  // Whether the session that had `number` at `place` has settled push `push`, or has gone.
  bool is_settled(std::uint32_t place, std::uint64_t number, std::uint64_t push) const;
  // The most workers and observers that were present at one time, those included whose last connection has yet to go.
  struct Most {
    std::uint32_t workers = 0;
    std::uint32_t observers = 0;
  };
  Most most_present() const;
  std::vector<SessionStatistics> statistics() const;
  std::vector<EndedSession> ended() const;  // of workers, newest last

 private:
  using Controls = std::vector<std::pair<std::shared_ptr<ControlConnection>, std::string>>;

  std::shared_ptr<ControlConnection> control_of(std::uint32_t place) const;
  void remember_end(const SessionEntry& entry);
  void count_carrier(Role role);
  std::uint32_t& carried(Role role) { return role == Role::kWorker ? carried_.workers : carried_.observers; }

  mutable Mutex mutex_;
  Condition changed_;
  SessionTable table_;
  std::map<std::uint32_t, std::shared_ptr<ControlConnection>> carriers_;  // by place
  Most carried_;                                                          // now
  Most most_carried_;
  std::vector<EndedSession> ended_;  // at most kMostEnded
  bool stopping_ = false;
};

}  // namespace distnet
