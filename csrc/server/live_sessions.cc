#include "server/live_sessions.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "transport/registry.h"

namespace distnet {
namespace {

constexpr std::size_t kMostEnded = 64;

void tell(const std::shared_ptr<ControlConnection>& control, ControlKind kind, const std::vector<std::byte>& message) {
  if (control == nullptr) {
    return;
  }
  try {
    control->send(kind, message, {}, Deadline::after(1.0));
  } catch (const Error&) {
    // It is gone, or does not read: there is nobody to tell.
  }
}

}  // namespace

std::shared_ptr<ControlConnection> LiveSessions::control_of(std::uint32_t place) const {
  const auto found = carriers_.find(place);
  return found == carriers_.end() ? nullptr : found->second;
}

Carrying LiveSessions::admit(const Hello& hello, const std::shared_ptr<ControlConnection>& control) {
  Controls warned;
  Carrying carrying;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      throw Error(ErrorCode::kPeerClosed, "the server stops");
    }
    const SessionTable::Admission admission = table_.admit(hello, now());
    carrying.control = control;
    carrying.place = admission.place;
    carrying.connection = table_.entry(admission.place).connections;
    carrying.returning = admission.returning;
    carrying.replaces = admission.replaces;
    const SessionEntry& own = table_.entry(admission.place);
    for (const std::uint32_t place : admission.fenced) {
      carrying.fenced.emplace_back(control_of(place),
                                   "rank " + std::to_string(own.rank) + " was taken over by incarnation " +
                                       std::to_string(own.incarnation) + "; this one was incarnation " +
                                       std::to_string(table_.entry(place).incarnation));
    }
    for (const SessionTable::Warning& warning : admission.warnings) {
      if (warning.place == admission.place) {
        carrying.warnings.push_back(warning.text);
      } else {
        warned.emplace_back(control_of(warning.place), warning.text);
      }
    }
    if (!admission.returning) {
      carriers_[admission.place] = control;
      count_carrier(hello.role);
    }
    if (!admission.fenced.empty()) {
      changed_.notify_all();  // one of them may be away
    }
  }
  for (const auto& [other, text] : warned) {
    tell(other, ControlKind::kNotice, Notice{Notice::Kind::kWarning, text}.encode());
  }
  return carrying;
}

void LiveSessions::tell_fenced(Carrying& carrying) {
  for (const auto& [other, why] : std::exchange(carrying.fenced, {})) {
    tell(other, ControlKind::kRefused, Refusal{ErrorCode::kFenced, why}.encode());
    if (other != nullptr) {
      other->shutdown();
    }
  }
}

void LiveSessions::take_up(const Carrying& carrying) {
  if (!carrying.returning) {
    return;
  }
  std::unique_lock lock(mutex_);
  const Deadline deadline = Deadline::after(kHandshakeSeconds);
  changed_.notify_all();  // an older one may wait for the session to come back
  const SessionEntry& entry = table_.entry(carrying.place);
  const auto check_hold = [&] {
    if (entry.presence != Presence::kLive || entry.connections != carrying.connection) {
      throw Error(ErrorCode::kFenced, "the session has ended, or a newer connection carries it");
    }
  };
  check_hold();
  while (const auto older = control_of(carrying.place)) {
    older->shutdown();
    const auto gone = [&] { return control_of(carrying.place) != older; };
    if (!changed_.wait_until(lock, deadline, gone)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the session's older connection has not ended yet; try again");
    }
    check_hold();
  }
  carriers_[carrying.place] = carrying.control;
  count_carrier(entry.role);
}

void LiveSessions::count_carrier(Role role) {
  ++carried(role);
  most_carried_.workers = std::max(most_carried_.workers, carried_.workers);
  most_carried_.observers = std::max(most_carried_.observers, carried_.observers);
}

Presence LiveSessions::connection_ended(Carrying& carrying, SessionEnd how, bool may_return) {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(carrying.ended, true)) {
    table_.connection_ended(carrying.place, carrying.connection, how, may_return, now());
  }
  return table_.entry(carrying.place).presence;
}

std::optional<SessionEnd> LiveSessions::wait_for_end(const Carrying& carrying) {
  std::unique_lock lock(mutex_);
  const SessionEntry& entry = table_.entry(carrying.place);
  while (entry.presence == Presence::kAway && entry.connections == carrying.connection) {
    const double left_s = static_cast<double>(entry.away_until_ns) * 1e-9 -
                          std::chrono::duration<double>(now().time_since_epoch()).count();
    changed_.wait_until(lock, Deadline::after(std::max(left_s, 0.0)),
                        [&] { return stopping_ || entry.presence != Presence::kAway; });
    if (stopping_) {
      table_.end(carrying.place, SessionEnd::kStopped);
    }
    table_.expire(carrying.place, now());
  }
  if (entry.presence != Presence::kEnded || entry.connections != carrying.connection) {
    return std::nullopt;
  }
  remember_end(entry);
  return entry.how;
}

void LiveSessions::remember_end(const SessionEntry& entry) {
  if (entry.role != Role::kWorker) {
    return;
  }
  ended_.push_back({entry.rank, entry.incarnation, end_name(entry.how)});
  if (ended_.size() > kMostEnded) {
    ended_.erase(ended_.begin());
  }
}

std::vector<EndedSession> LiveSessions::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

void LiveSessions::let_go(const Carrying& carrying) {
  const std::lock_guard lock(mutex_);
  if (control_of(carrying.place) == carrying.control) {
    carriers_.erase(carrying.place);
    --carried(table_.entry(carrying.place).role);
  }
  if (!carriers_.contains(carrying.place) && table_.entry(carrying.place).connections == carrying.connection) {
    table_.retire(carrying.place);
  }
  changed_.notify_all();
}

LiveSessions::Most LiveSessions::most_present() const {
  const std::lock_guard lock(mutex_);
  return most_carried_;
}

void LiveSessions::heard(const Carrying& carrying) {
  const std::lock_guard lock(mutex_);
  table_.heard(carrying.place, now());
}

void LiveSessions::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

bool LiveSessions::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void LiveSessions::notify_all_clients(const Notice& notice) {
  std::vector<std::shared_ptr<ControlConnection>> controls;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [place, control] : carriers_) {
      controls.push_back(control);
    }
  }
  for (const auto& control : controls) {
    tell(control, ControlKind::kNotice, notice.encode());
  }
}

void LiveSessions::notify_client(std::uint32_t place, const Notice& notice) {
  std::shared_ptr<ControlConnection> control;
  {
    const std::lock_guard lock(mutex_);
    control = control_of(place);
  }
  tell(control, ControlKind::kNotice, notice.encode());
}

std::vector<LiveSessions::Present> LiveSessions::present() const {
  const std::lock_guard lock(mutex_);
  std::vector<Present> present;
  present.reserve(carriers_.size());
  for (const auto& [place, control] : carriers_) {
    const SessionEntry& entry = table_.entry(place);
    // Acquire pairs with Settlement::accept().
    present.push_back({place, entry.number, entry.ledger.accepted.load(std::memory_order_acquire)});
  }
  return present;
}

bool LiveSessions::is_settled(std::uint32_t place, std::uint64_t number, std::uint64_t push) const {
  const std::lock_guard lock(mutex_);
  return !carriers_.contains(place) || table_.entry(place).number != number ||
         table_.ledger(place).settled.load(std::memory_order_seq_cst) >= push;  // pairs with settle()
}

std::vector<SessionStatistics> LiveSessions::statistics() const {
  const std::lock_guard lock(mutex_);
  std::vector<SessionStatistics> sessions;
  for (const auto& [place, control] : carriers_) {
    const SessionEntry& entry = table_.entry(place);
    if (entry.presence == Presence::kEnded) {
      continue;
    }
    const auto value = [](const std::atomic<std::uint64_t>& count) { return count.load(std::memory_order_relaxed); };
    SessionStatistics& session = sessions.emplace_back();
    session.id = entry.number;
    session.role = entry.role == Role::kWorker ? "worker" : "observer";
    if (entry.role == Role::kWorker) {
      session.rank = entry.rank;
    }
    session.incarnation = entry.incarnation;
    session.presence = entry.presence == Presence::kAway ? "away" : "live";
    session.transport = transport_of(entry.transport).name;
    session.accepted = value(entry.ledger.accepted);
    session.applied = value(entry.ledger.applied);
    session.refused = value(entry.ledger.refused);
    session.staleness = value(entry.ledger.staleness);
  }
  return sessions;
}

}  // namespace distnet
