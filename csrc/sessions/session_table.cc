#include "sessions/session_table.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

std::int64_t nanoseconds(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

std::string rank_text(std::uint32_t rank, std::uint32_t incarnation) {
  return "rank " + std::to_string(rank) + " (incarnation " + std::to_string(incarnation) + ")";
}

bool is_present(const SessionEntry& entry) {
  return entry.presence == Presence::kLive || entry.presence == Presence::kAway;
}

void reset_ledger(Ledger& ledger) {
  for (std::atomic<std::uint64_t>* const count : {&ledger.accepted, &ledger.applied, &ledger.settled, &ledger.refused,
                                                  &ledger.staleness, &ledger.unheard, &ledger.saves_with}) {
    count->store(0, std::memory_order_relaxed);  // nobody else knows of the session yet
  }
  ledger.fenced.store(false, std::memory_order_relaxed);
}

}  // namespace

const char* end_name(SessionEnd how) {
  switch (how) {
    case SessionEnd::kDone:
      return "done";
    case SessionEnd::kDied:
      return "died";
    case SessionEnd::kSilent:
      return "silent";
    case SessionEnd::kFenced:
      return "fenced";
    case SessionEnd::kStopped:
      return "stopped";
  }
  return "stopped";
}

SessionTable::SessionTable(const SessionRules& rules, Memory& memory)
    : rules_(rules),
      memory_(memory.allocate(kMaxSessions * sizeof(SessionEntry))),
      entries_(memory_.as<SessionEntry>()) {}

SessionEntry* SessionTable::find(const ClientId& id) const {
  for (std::uint32_t place = 0; place < used_; ++place) {
    if (entries_[place].presence != Presence::kFree && entries_[place].id == id) {
      return &entries_[place];
    }
  }
  return nullptr;
}

// A place never used, else that of the session that ended longest ago.
std::uint32_t SessionTable::free_place() {
  if (used_ < kMaxSessions) {
    new (&entries_[used_]) SessionEntry();
    return used_++;
  }
  std::optional<std::uint32_t> oldest;
  for (std::uint32_t place = 0; place < used_; ++place) {
    const SessionEntry& entry = entries_[place];
    const bool over = entry.presence == Presence::kEnded && entry.connections == 0;
    if (over && (!oldest || entry.number < entries_[*oldest].number)) {
      oldest = place;
    }
  }
  if (!oldest) {
    throw Error(ErrorCode::kTransport, "the server has " + std::to_string(kMaxSessions) +
                                           " sessions, and no room for another; end some, or use more servers");
  }
  return *oldest;
}

SessionTable::Admission SessionTable::returning(SessionEntry& entry, const Hello& hello, Clock::time_point now) {
  if (!is_present(entry)) {
    throw Error(ErrorCode::kFenced, "the session of " + rank_text(entry.rank, entry.incarnation) + " has ended (" +
                                        end_name(entry.how) + ") and does not come back; connect with a new client");
  }
  if (entry.rank != hello.rank || entry.role != hello.role || entry.transport != hello.transport) {
    throw Error(ErrorCode::kProtocol, "a client came back as another rank, in another role or over another transport");
  }
  entry.presence = Presence::kLive;
  ++entry.connections;
  entry.last_heard_ns = nanoseconds(now);
  Admission admission;
  admission.place = static_cast<std::uint32_t>(&entry - entries_);
  admission.returning = true;
  return admission;
}

// Whether a newcomer takes the rank from a session that is still present.
bool SessionTable::replaces(const Hello& hello, const SessionEntry& entry, Clock::time_point now) const {
  if (rules_.newest_wins || entry.presence == Presence::kAway) {
    return true;
  }
  if (!rules_.grants) {
    return std::ranges::find(hello.grant.replaces, entry.incarnation) != hello.grant.replaces.end();
  }
  const double silent_s = static_cast<double>(nanoseconds(now) - entry.last_heard_ns) * 1e-9;
  return hello.start > entry.start || silent_s > 2 * heartbeat_interval_s(entry.timeout_s);
}

void SessionTable::meet_others_of_the_rank(const Hello& hello, Admission& admission, Clock::time_point now) {
  const SessionEntry& own = entries_[admission.place];
  for (std::uint32_t place = 0; place < used_; ++place) {
    const SessionEntry& other = entries_[place];
    if (place == admission.place || !is_present(other) || other.role != Role::kWorker || other.rank != hello.rank) {
      continue;
    }
    if (admission.replaces.size() < kMostReplaced && replaces(hello, other, now)) {
      end(place, SessionEnd::kFenced);
      admission.fenced.push_back(place);
      admission.replaces.push_back(other.incarnation);
    } else if (rules_.grants) {
      for (const std::uint32_t warned : {place, admission.place}) {
        if (!std::exchange(entries_[warned].warned_of_another, true)) {
          admission.warnings.push_back(
              {warned, "two live workers call themselves rank " + std::to_string(hello.rank) + " (incarnations " +
                           std::to_string(other.incarnation) + " and " + std::to_string(own.incarnation) +
                           "); both go on, but they may work on the same data: give every worker its own rank"});
        }
      }
    }
  }
}

void refuse_beyond(const Hello& hello, std::uint32_t workers) {
  if (hello.role == Role::kWorker && hello.rank >= workers) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(hello.rank) + " of a job of " + std::to_string(workers) +
                                        " workers; ranks are 0 to workers - 1");
  }
}

SessionTable::Admission SessionTable::admit(const Hello& hello, Clock::time_point now) {
  if (SessionEntry* const known = find(hello.id)) {
    return returning(*known, hello, now);
  }
  const bool works = hello.role == Role::kWorker;
  const bool beyond = works && hello.rank >= rules_.workers;
  if (rules_.newest_wins) {
    refuse_beyond(hello, rules_.workers);
  }
  if (!rules_.grants && works) {
    for (std::uint32_t place = 0; place < used_; ++place) {
      const SessionEntry& other = entries_[place];
      if (rules_.newest_wins && is_present(other) && other.role == Role::kWorker && other.rank == hello.rank &&
          other.incarnation > hello.grant.incarnation) {
        throw Error(ErrorCode::kFenced, rank_text(other.rank, other.incarnation) + " has taken over already");
      }
    }
  }
  Admission admission;
  admission.place = free_place();
  SessionEntry& entry = entries_[admission.place];
  entry.id = hello.id;
  entry.number = ++numbers_;
  entry.rank = hello.rank;
  entry.incarnation = rules_.grants ? ++granted_ : hello.grant.incarnation;
  entry.start = hello.start;
  entry.connections = 1;
  entry.role = hello.role;
  entry.transport = hello.transport;
  entry.presence = Presence::kLive;
  entry.how = SessionEnd::kStopped;
  entry.warned_of_another = false;
  entry.timeout_s = hello.timeout_s;
  entry.last_heard_ns = nanoseconds(now);
  reset_ledger(entry.ledger);
  if (works) {
    meet_others_of_the_rank(hello, admission, now);
  }
  if (beyond && rules_.grants) {
    admission.warnings.push_back({admission.place, "rank " + std::to_string(hello.rank) + " of a job that expects " +
                                                       std::to_string(rules_.workers) +
                                                       " workers; it goes on, but its share of the data may be wrong"});
  }
  return admission;
}

Presence SessionTable::connection_ended(std::uint32_t place, std::uint32_t connection, SessionEnd how, bool may_return,
                                        Clock::time_point now) {
  SessionEntry& entry = entries_[place];
  if (entry.connections != connection) {
    return Presence::kLive;
  }
  if (entry.presence == Presence::kLive) {
    const double away_s = std::min(rules_.reconnect_timeout_s, entry.timeout_s);
    if (may_return && how == SessionEnd::kDied && away_s > 0.0) {
      entry.presence = Presence::kAway;
      entry.away_until_ns = nanoseconds(now) + static_cast<std::int64_t>(away_s * 1e9);
    } else {
      end(place, how);
    }
  }
  return entry.presence;
}

bool SessionTable::expire(std::uint32_t place, Clock::time_point now) {
  if (entries_[place].presence == Presence::kAway && nanoseconds(now) >= entries_[place].away_until_ns) {
    end(place, SessionEnd::kDied);
  }
  return entries_[place].presence == Presence::kEnded;
}

void SessionTable::end(std::uint32_t place, SessionEnd how) {
  if (is_present(entries_[place])) {
    entries_[place].presence = Presence::kEnded;
    entries_[place].how = how;
    entries_[place].ledger.fenced.store(how == SessionEnd::kFenced, std::memory_order_release);  // pairs with check()
  }
}

void SessionTable::retire(std::uint32_t place) {
  if (entries_[place].presence == Presence::kEnded) {
    entries_[place].connections = 0;
  }
}

void SessionTable::heard(std::uint32_t place, Clock::time_point now) {
  entries_[place].last_heard_ns = nanoseconds(now);
}

}  // namespace distnet
