// Who has the conversations with members of groups at a door that also serves others.
#pragma once

#include <cstdint>
#include <string>

#include "front/door.h"

namespace distnet {

class GroupHost {
 public:
  GroupHost() = default;
  GroupHost(const GroupHost&) = delete;
  GroupHost& operator=(const GroupHost&) = delete;
  virtual ~GroupHost() = default;

  // A member's whole conversation, on its thread. What it throws is told to the member.
  virtual void serve(Visitor& visitor) = 0;
  // Returns how many groups have come together here so far. Any thread.
  virtual std::uint64_t formed() const = 0;
  // Tells all members why there will be no more of it. Their conversations end as the door closes. Any thread.
  virtual void stop(const std::string& why) = 0;
};

}  // namespace distnet
