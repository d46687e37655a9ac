// What becomes of calls that nobody waits for (dropped, interrupted, refused): they settle, and leave no trace.
#include <algorithm>

#include "base/error.h"
#include "client/client.h"

namespace distnet {

// The caller's gradient is not read after this; the rest of what was begun leaves before the next call.
void Client::break_off() {
  outstanding_.back().abandoned = outstanding_.back().broken_off = true;
  half_sent_ = true;
  for (Shard& shard : shards_) {
    shard.link->channel().withdraw();
  }
}

// A call that was to be finished at once and was not, when the next one begins: an interrupt came between the two.
void Client::give_up_unfinished() {
  for (Outstanding& outstanding : outstanding_) {
    if (outstanding.at_once && !outstanding.abandoned) {
      outstanding.abandoned = outstanding.broken_off = true;
    }
  }
}

void Client::mark_dropped() {
  std::vector<std::uint64_t> dropped;
  {
    const std::lock_guard lock(dropped_mutex_);
    dropped.swap(dropped_);
  }
  for (Outstanding& outstanding : outstanding_) {
    outstanding.abandoned = outstanding.abandoned || std::ranges::find(dropped, outstanding.number) != dropped.end();
  }
}

// Calls that nobody waits for leave no trace, once those before them have been received.
void Client::drain_abandoned(const Interrupt& interrupt) {
  mark_dropped();
  if (half_sent_) {
    flush(interrupt);
    half_sent_ = false;
  }
  while (!outstanding_.empty() && outstanding_.front().abandoned) {
    receive_front(interrupt);
    outstanding_.pop_front();
  }
}

// Into flat(), whose contents are nobody's while a call is on its way that nobody waits for.
void Client::receive_front(const Interrupt& interrupt) {
  use_own_targets();
  receive_all(outstanding_.front(), interrupt);
}

// A call that nobody waits for does not use up a place, even behind one whose handle is still out.
void Client::make_room(const Interrupt& interrupt) {
  while (outstanding_.size() >= max_inflight_) {
    const auto abandoned = std::ranges::find_if(outstanding_, [](const auto& one) { return one.abandoned; });
    if (abandoned == outstanding_.end()) {
      throw Error(ErrorCode::kConfig,
                  std::to_string(outstanding_.size()) +
                      " calls are on the way, and max_inflight allows no more; wait() for the oldest first");
    }
    for (auto at = outstanding_.begin(); at != abandoned; ++at) {
      park(*at, interrupt);
    }
    use_own_targets();
    receive_all(*abandoned, interrupt);
    outstanding_.erase(abandoned);
  }
}

// Receives a call before its handle is waited for, into memory of its own.
void Client::park(Outstanding& outstanding, const Interrupt& interrupt) {
  if (outstanding.parked.empty()) {
    outstanding.parked.resize(flat_floats_);
  }
  use_targets(outstanding.parked.data());
  receive_all(outstanding, interrupt);
}

}  // namespace distnet
