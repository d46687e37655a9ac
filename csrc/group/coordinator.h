// Brings the members of groups together, watches them, and decides in which order named operations run. It needs no
// parameters, and no payload passes through it.
//
// Each member keeps one control connection to it for life; its conversation has a thread, which is the door's. What a
// member's event means for the others is decided under the mutex, by GroupMembership and NamedOrder, and told to
// them without it, on the connections that they keep.
//
// Thread safety: any number of threads may call all methods.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/region.h"
#include "base/waiting.h"
#include "front/group_host.h"
#include "group/membership.h"
#include "group/named_order.h"

namespace distnet {

class Coordinator final : public GroupHost {
 public:
  static constexpr std::size_t kMostGroups = 4096;

  Coordinator() = default;
  ~Coordinator() override = default;

  void serve(Visitor& visitor) override;
  std::uint64_t formed() const override;
  void stop(const std::string& why) override;
  // Returns whether no member is left before the deadline.
  bool wait_until_empty(const Deadline& deadline);

 private:
  using Control = std::shared_ptr<ControlConnection>;

  // One generation of a group.
  struct Room {
    explicit Room(std::string group) : name(std::move(group)), membership(name) {}

    const std::string name;
    GroupMembership membership;
    std::optional<NamedOrder> order;  // once it is complete
    GroupFormed formed;               // the same
    Region memory;                    // until all have been told where it is
    bool told = false;                // whether that has been said to all
    Mutex ordering;  // held by who orders operations until all have heard of it: turns come before "all have joined"
    std::map<std::uint32_t, Control> controls;
  };
  struct Member {
    std::shared_ptr<Room> room;
    std::uint32_t rank = 0;
    double timeout_s = 0.0;
  };
  // What others are to hear, once the mutex is free.
  struct Word {
    Control to;
    ControlKind kind{};
    std::vector<std::byte> payload;
  };
  using Words = std::vector<Word>;

  Member enter(const Visitor& visitor, const JoinGroup& join);
  std::shared_ptr<Room> room_for(const std::string& name);
  void form(Room& room);
  void tell_formed(Room& room);
  void converse(const Member& member, ControlConnection& control);
  // Returns false after a goodbye.
  bool answer(const Member& member, ControlConnection& control, const ControlMessage& message);
  void leave(const Member& member, const ControlMessage& message);
  void lose(const Member& member, const std::string& how);
  void ended(const Member& member, const std::optional<GroupEnd>& why, Words& words);
  void order(const Member& member, const ControlMessage& message);
  void withdraw(const Member& member, ControlConnection& control, const std::string& name);
  std::string awaited(const Member& member);
  void tell_all(const Room& room, ControlKind kind, const std::vector<std::byte>& payload, Words& words) const;
  void forget(const std::shared_ptr<Room>& room, std::uint32_t rank);

  mutable Mutex mutex_;  // guards what follows, and what is in the rooms
  Condition changed_;
  std::map<std::string, std::shared_ptr<Room>> rooms_;  // those that newcomers of a name come to
  std::size_t members_ = 0;                             // with a conversation
  std::uint64_t generations_ = 0;                       // that were formed
  std::optional<std::string> why_stopped_;
};

}  // namespace distnet
