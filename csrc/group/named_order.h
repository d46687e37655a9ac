// The order in which the named operations of a group run. A value at the coordinator: members announce what they are
// ready for, in any order, and an operation has its turn when all are ready for it. A member that has joined counts as
// ready for whatever the others announce, until all have joined.
//
// Thread safety: none; its owner guards it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "wire/group_messages.h"

namespace distnet {

class NamedOrder {
 public:
  static constexpr std::size_t kMostPending = 65536;  // announced, without a turn yet

  explicit NamedOrder(std::uint32_t size) : size_(size) {}

  // What comes of an event: the turns of operations, numbered from 1 without gaps, and the rank that joined last, once
  // all have.
  struct Outcome {
    std::vector<NamedTurn> turns;
    std::optional<std::uint32_t> all_joined;
  };

  // Throws Error(kConfig) where the rank has announced this name already, and Error(kProtocol) beyond kMostPending.
  Outcome announced(std::uint32_t rank, const std::string& name);
  // Throws Error(kProtocol) where it has joined already.
  Outcome joined(std::uint32_t rank);
  // A member waits no longer. Returns whom it waited for; nothing where the operation has had its turn.
  std::optional<std::vector<std::uint32_t>> withdrew(std::uint32_t rank, const std::string& name);
  // Whom the oldest operation that this rank is ready for waits for, as a sentence; empty where there is none.
  std::string awaited_by(std::uint32_t rank) const;

 private:
  struct Pending {
    std::uint64_t since = 0;  // a count of announcements: which is older
    std::set<std::uint32_t> ready;
  };

  bool complete(const Pending& pending) const;
  std::vector<std::uint32_t> awaited(const Pending& pending) const;
  void give_turns(Outcome& outcome);

  const std::uint32_t size_;
  std::map<std::string, Pending> pending_;
  std::set<std::uint32_t> joined_;
  std::uint64_t turns_ = 0;
  std::uint64_t announcements_ = 0;
};

}  // namespace distnet
