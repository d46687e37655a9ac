#include "group/coordinator.h"

#include <array>
#include <cstdio>

#include "base/error.h"
#include "base/random.h"
#include "base/ranks_text.h"
#include "group/lane.h"
#include "group/process_number.h"
#include "wire/gathering_messages.h"

namespace distnet {
namespace {

// A member that does not take a small message for so long reads nothing, and would wait for ever for what it cannot
// hear. The thread that tells the others is that of one member, which must not fall silent meanwhile.
constexpr double kTellSeconds = 0.5;
constexpr milliseconds kLeastForEach{50};  // also where others, which read nothing, have used up that time

// Returns whether the member took it; its connection ends otherwise.
bool tell(ControlConnection& control, ControlKind kind, std::span<const std::byte> payload, std::span<const int> fds,
          const Deadline& deadline) {
  try {
    control.send(kind, payload, fds, deadline.left() < kLeastForEach ? Deadline::after(kLeastForEach) : deadline);
    return true;
  } catch (const Error&) {
    control.shutdown();
    return false;
  }
}

template <typename Words>
void say(const Words& words) {
  const Deadline deadline = Deadline::after(kTellSeconds);
  for (const auto& word : words) {
    tell(*word.to, word.kind, word.payload, {}, deadline);
  }
}

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", seconds);
  return text.data();
}

}  // namespace

void Coordinator::serve(Visitor& visitor) {
  JoinGroup join = JoinGroup::decode(visitor.message.payload);
  join.timeout_s = session_timeout_s(join.timeout_s);
  visitor.control->stream().give_up_after(join.timeout_s);
  const Member member = enter(visitor, join);
  const auto end = [&](const std::string& how) { lose(member, how); };
  try {
    converse(member, *visitor.control);
  } catch (const Error& error) {
    end(error.code() == ErrorCode::kPeerClosed ? "its connection ended without a goodbye" : error.what());
    throw;
  } catch (const std::exception& error) {
    end(std::string("the coordinator is out of resources: ") + error.what());
    throw;
  }
}

// ---- how a group begins ----

Coordinator::Member Coordinator::enter(const Visitor& visitor, const JoinGroup& join) {
  const Applicant applicant{join, visitor.within_host,
                            visitor.within_host ? "" : visitor.control->stream().peer_host()};
  std::vector<Control> refused;
  std::unique_lock lock(mutex_);
  if (why_stopped_) {
    throw Error(ErrorCode::kPeerClosed, "the coordinator of groups has ended: " + *why_stopped_);
  }
  const std::shared_ptr<Room> room = room_for(join.name);
  const GroupMembership::Admission admission = room->membership.join(applicant);
  switch (admission.kind) {
    case GroupMembership::Admission::Kind::kRefused:
      throw Error(ErrorCode::kConfig, admission.why);
    case GroupMembership::Admission::Kind::kAllRefused:
      rooms_.erase(join.name);
      for (const auto& [rank, control] : room->controls) {
        refused.push_back(control);
      }
      lock.unlock();
      for (const Control& control : refused) {
        refuse(*control, Error(ErrorCode::kConfig, admission.why));
        control->shutdown();
      }
      throw Error(ErrorCode::kConfig, admission.why);
    case GroupMembership::Admission::Kind::kWaits:
    case GroupMembership::Admission::Kind::kFormed:
      break;
  }
  ++members_;
  room->controls[join.rank] = visitor.control;
  const Member member{room, join.rank, join.timeout_s};
  if (admission.kind == GroupMembership::Admission::Kind::kFormed) {
    try {
      form(*room);
      lock.unlock();
      tell_formed(*room);
    } catch (const std::exception& error) {
      if (lock.owns_lock()) {
        lock.unlock();
      }
      lose(member, error.what());
      throw;
    }
  }
  return member;
}

std::shared_ptr<Coordinator::Room> Coordinator::room_for(const std::string& name) {
  const auto found = rooms_.find(name);
  if (found != rooms_.end() && found->second->membership.takes_newcomers()) {
    return found->second;
  }
  if (rooms_.size() >= kMostGroups) {
    throw Error(ErrorCode::kConfig,
                "the coordinator has " + std::to_string(rooms_.size()) + " groups and takes no more; close some");
  }
  return rooms_[name] = std::make_shared<Room>(name);
}

// All are there.
void Coordinator::form(Room& room) {
  const GroupMembership& membership = room.membership;
  GroupFormed& formed = room.formed;
  formed.generation = ++generations_;
  formed.transport = membership.transport();
  formed.secret[0] = random_number();
  formed.secret[1] = random_number();
  for (const auto& [rank, member] : membership.present()) {
    formed.members.push_back({member.host, member.join.port, member.join.local_name});
    if (member.join.process == process_number()) {
      formed.hosted_by = std::min(formed.hosted_by, rank);
    }
  }
  room.order.emplace(membership.size());
  if (formed.transport == GroupTransport::kShm) {
    formed.memory_bytes = 2 * shm_lane_bytes(membership.size());
    room.memory = Region::shared_memory(formed.memory_bytes, true);
  }
}

std::uint64_t Coordinator::formed() const {
  const std::lock_guard lock(mutex_);
  return generations_;
}

void Coordinator::tell_formed(Room& room) {
  const Deadline deadline = Deadline::after(kHandshakeSeconds);
  std::vector<std::pair<Control, double>> members;
  GroupFormed formed;
  Region memory;
  {
    const std::lock_guard lock(mutex_);
    formed = room.formed;
    memory = std::move(room.memory);
    for (const auto& [rank, member] : room.membership.present()) {
      members.emplace_back(room.controls.at(rank), member.join.timeout_s);
    }
  }
  const int fd = memory.fd();
  for (const auto& [control, timeout_s] : members) {
    formed.timeout_s = timeout_s;
    tell(*control, ControlKind::kGroupFormed, formed.encode(), fd < 0 ? std::span<const int>{} : std::span(&fd, 1),
         deadline);
  }
  {
    const std::lock_guard lock(mutex_);
    room.told = true;
  }
  changed_.notify_all();
}

// ---- while it goes on ----

void Coordinator::converse(const Member& member, ControlConnection& control) {
  const FileDescriptor process = control.stream().watch_peer_process();
  std::array<pollfd, 2> polled = {{{control.stream().poll_fd(), POLLIN, 0}, {process.get(), POLLIN, 0}}};
  while (true) {
    const Deadline deadline = Deadline::after(member.timeout_s);
    while (poll_until(polled, deadline) == 0) {
      if (deadline.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded, "it was silent for " + seconds_text(member.timeout_s));
      }
    }
    if (polled[0].revents == 0) {  // what the member left behind comes before its end
      throw Error(ErrorCode::kPeerClosed, "the member's process has ended");
    }
    const ControlMessage message = control.receive(Deadline::after(member.timeout_s), {}, kMaxMemberBytes);
    if (!answer(member, control, message)) {
      return;
    }
  }
}

bool Coordinator::answer(const Member& member, ControlConnection& control, const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kHeartbeat:
      control.send(ControlKind::kGroupAwaited, encode_text(awaited(member)));
      return true;
    case ControlKind::kAnnounce:
    case ControlKind::kJoinOperations:
      order(member, message);
      return true;
    case ControlKind::kWithdraw:
      withdraw(member, control, decode_name(message.payload));
      return true;
    case ControlKind::kLeaveGroup:
      leave(member, message);
      return false;
    case ControlKind::kFailGroup: {
      GroupEnd why = GroupEnd::decode(message.payload);
      why.rank = member.rank;
      Words words;
      {
        const std::lock_guard lock(mutex_);
        ended(member, member.room->membership.failed(why), words);
      }
      say(words);
      return false;
    }
    default:
      throw Error(ErrorCode::kProtocol, "a control message of an unknown kind from a member of a group");
  }
}

std::string Coordinator::awaited(const Member& member) {
  const std::lock_guard lock(mutex_);
  const Room& room = *member.room;
  return room.order ? room.order->awaited_by(member.rank) : room.membership.missing_text();
}

void Coordinator::order(const Member& member, const ControlMessage& message) {
  const std::lock_guard in_order(member.room->ordering);
  Words words;
  {
    const std::lock_guard lock(mutex_);
    Room& room = *member.room;
    if (!room.order) {
      throw Error(ErrorCode::kProtocol, "a named operation of a group that is not complete");
    }
    const NamedOrder::Outcome outcome = message.kind == ControlKind::kAnnounce
                                            ? room.order->announced(member.rank, decode_name(message.payload))
                                            : room.order->joined(member.rank);
    for (const NamedTurn& turn : outcome.turns) {
      tell_all(room, ControlKind::kRunNamed, turn.encode(), words);
    }
    if (outcome.all_joined) {
      Writer writer;
      writer.number(*outcome.all_joined);
      tell_all(room, ControlKind::kAllJoined, writer.take(), words);
    }
  }
  say(words);
}

void Coordinator::withdraw(const Member& member, ControlConnection& control, const std::string& name) {
  std::optional<std::vector<std::uint32_t>> awaited;
  {
    const std::lock_guard lock(mutex_);
    if (member.room->order) {
      awaited = member.room->order->withdrew(member.rank, name);
    }
  }
  if (awaited) {  // else its turn is on the way
    control.send(ControlKind::kWithdrawn, NamedNotice{name, ranks_text(*awaited)}.encode());
  }
}

// ---- how it ends ----

void Coordinator::leave(const Member& member, const ControlMessage& message) {
  GroupProgress progress = GroupProgress::decode(message.payload);
  progress.rank = member.rank;
  Words words;
  {
    std::unique_lock lock(mutex_);
    // One may leave before others have heard that the group is there, and they must hear of that first.
    changed_.wait_until(lock, Deadline::after(kHandshakeSeconds), [&] { return member.room->told; });
    const Control own = member.room->controls.at(member.rank);
    const std::optional<GroupProgress> heard = member.room->membership.left(progress);
    forget(member.room, member.rank);
    if (heard) {
      tell_all(*member.room, ControlKind::kLeftGroup, heard->encode(), words);
    }
    words.push_back({own, ControlKind::kLeftGroup, progress.encode()});
  }
  say(words);
}

void Coordinator::lose(const Member& member, const std::string& how) {
  Words words;
  {
    const std::lock_guard lock(mutex_);
    if (!member.room->controls.contains(member.rank)) {
      return;
    }
    ended(member, member.room->membership.lost(member.rank, how), words);
  }
  say(words);
}

void Coordinator::ended(const Member& member, const std::optional<GroupEnd>& why, Words& words) {
  forget(member.room, member.rank);
  if (why) {
    tell_all(*member.room, ControlKind::kGroupEnded, why->encode(), words);
  }
}

void Coordinator::forget(const std::shared_ptr<Room>& room, std::uint32_t rank) {
  room->controls.erase(rank);
  --members_;
  const auto found = rooms_.find(room->name);
  const bool over = room->membership.empty() || !room->membership.takes_newcomers();
  if (found != rooms_.end() && found->second == room && over) {
    rooms_.erase(found);
  }
  changed_.notify_all();
}

void Coordinator::tell_all(const Room& room, ControlKind kind, const std::vector<std::byte>& payload,
                           Words& words) const {
  for (const auto& [rank, control] : room.controls) {
    words.push_back({control, kind, payload});
  }
}

void Coordinator::stop(const std::string& why) {
  Words words;
  {
    const std::lock_guard lock(mutex_);
    if (why_stopped_) {
      return;
    }
    why_stopped_ = why;
    for (const auto& [name, room] : rooms_) {
      const GroupEnd end{~0U, ErrorCode::kPeerClosed, "the coordinator of group '" + name + "' has ended: " + why};
      tell_all(*room, ControlKind::kGroupEnded, end.encode(), words);
    }
  }
  say(words);
}

bool Coordinator::wait_until_empty(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return members_ == 0; });
}

}  // namespace distnet
