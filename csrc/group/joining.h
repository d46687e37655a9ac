// How a member comes to its group: the way to the coordinator, and the wait until all are there.
//
// Thread safety: one thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/region.h"
#include "transport/control.h"
#include "transport/listener.h"
#include "wire/group_messages.h"

namespace distnet {

struct GroupOptions {
  std::string address;  // of the coordinator; of several addresses, comma-joined, the first
  std::string name = "world";
  std::uint32_t rank = 0;
  std::uint32_t size = 1;
  double timeout_s = 30.0;  // for all to come; and of silence afterwards
  GroupTransport transport = GroupTransport::kAuto;
  std::function<void(const std::string&)> heard;  // what it has waited for, for a while. May be empty, and may throw
};

// What a member has when all are there.
struct Joined {
  Address coordinator;
  std::unique_ptr<ControlConnection> control;
  GroupFormed formed;
  Region memory;                       // of both lanes, within a host; else empty
  std::unique_ptr<Listener> listener;  // where other members connect to this one
};

// For so long a wait is quiet.
inline constexpr double kQuietSeconds = 10.0;

// Tries again while nobody listens at the address. Throws Error(kConfig) where members contradict each other or the
// rank is taken, Error(kDeadlineExceeded) that names who has not come.
Joined join_group(const GroupOptions& options, const Interrupt& interrupt);

// Returns where the member of that rank listens, for this one.
Address address_of(const Joined& joined, std::uint32_t rank);

}  // namespace distnet
