#include "server/snapshot_room.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

// Waits for a wake-up, and not for longer than until the next look at `interrupt` is due.
void wait_a_while(Condition& changed, std::unique_lock<Mutex>& lock, const Deadline& deadline,
                  const Interrupt& interrupt) {
  changed.wait_until(lock, Deadline::after(std::min<Clock::duration>(kInterruptInterval, deadline.left())));
  lock.unlock();
  interrupt();
  lock.lock();
}

double seconds(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9; }

}  // namespace

void SnapshotRoom::take_turn(std::uint64_t key, const Deadline& deadline, const Interrupt& interrupt) {
  {
    std::unique_lock lock(mutex_);
    while (turn_ != Turn::kFree) {
      if (deadline.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded,
                    "another snapshot of this shard was still being read when the timeout passed; take one at a time, "
                    "or allow more time");
      }
      wait_a_while(changed_, lock, deadline, interrupt);
    }
    turn_ = Turn::kReserved;
    key_ = key;
  }
  try {
    store_.reserve_cut();
  } catch (...) {
    give_turn_back(key);
    throw;
  }
}

void SnapshotRoom::give_turn_back(std::uint64_t key) {
  std::unique_lock lock(mutex_);
  DISTNET_INVARIANT(turn_ != Turn::kFree && key_ == key);
  changed_.wait(lock, [this] { return turn_ != Turn::kCutting; });  // a few microseconds, between rounds
  turn_ = Turn::kEnding;
  lock.unlock();
  store_.end_cut();
  lock.lock();
  moment_ = {};
  turn_ = Turn::kFree;
  changed_.notify_all();
}

bool SnapshotRoom::begin_to_cut(std::uint64_t key) {
  const std::lock_guard lock(mutex_);
  if (turn_ != Turn::kReserved || key_ != key) {
    return false;
  }
  turn_ = Turn::kCutting;
  return true;
}

void SnapshotRoom::has_cut(Moment moment, Clock::duration pause) {
  cuts_.fetch_add(1, std::memory_order_relaxed);
  note_pause(pause);
  const std::lock_guard lock(mutex_);
  moment_ = std::move(moment);
  turn_ = Turn::kCut;
  changed_.notify_all();
}

void SnapshotRoom::cut_before(std::uint64_t round, std::uint64_t key, std::optional<double> set_rate) {
  if (!begin_to_cut(key)) {
    return;  // the asker has gone
  }
  const Clock::time_point began = now();
  const std::uint64_t version = store_.begin_cut();
  has_cut({version, round, set_rate, saved_.all()}, now() - began);
}

void SnapshotRoom::cut_by_gate(const Deadline& deadline) {
  const Clock::time_point began = now();
  std::optional<Moment> moment;
  {
    AcceptGate::Closed closed(gate_);
    if (closed.wait_until_empty(Deadline::after(std::min<Clock::duration>(kDrainTime, deadline.left())))) {
      moment = Moment{store_.begin_cut(), 0, store_.set_rate(), saved_.all()};
    }
  }
  if (!moment) {
    note_pause(now() - began);
    const std::lock_guard lock(mutex_);
    turn_ = Turn::kReserved;
    throw Error(ErrorCode::kDeadlineExceeded,
                "pushes that had been accepted were not applied within the timeout of the snapshot, or within 10 s");
  }
  has_cut(std::move(*moment), now() - began);
}

// Shard 0's word comes between two rounds, by cut_before(). Where the rounds have ended, it comes no more.
void SnapshotRoom::cut_with_leader(std::uint64_t key, Rounds& rounds, const Deadline& deadline,
                                   const Interrupt& interrupt) {
  std::unique_lock lock(mutex_);
  while (turn_ != Turn::kCut) {
    lock.unlock();
    const bool ended = !rounds.failure().empty();
    if (ended) {
      rounds.cut(key, std::nullopt, deadline, interrupt);
    }
    lock.lock();
    if (turn_ == Turn::kCut) {
      return;
    }
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded, "shard 0 named no round to cut at within the timeout of the snapshot");
    }
    wait_a_while(changed_, lock, deadline, interrupt);
  }
}

SnapshotRoom::Moment SnapshotRoom::cut(std::uint64_t key, Rounds* rounds, std::optional<std::uint64_t> at_round,
                                       const Deadline& deadline, const Interrupt& interrupt) {
  if (rounds == nullptr) {
    if (at_round) {
      throw Error(ErrorCode::kConfig, "at_round is " + std::to_string(*at_round) +
                                          ", but this server has no rounds: each push is an update; leave it out");
    }
    if (begin_to_cut(key)) {
      cut_by_gate(deadline);
    }
  } else if (rounds->leads()) {
    note_pause(rounds->cut(key, at_round, deadline, interrupt));  // in place of what cut_before() noted
  } else {
    cut_with_leader(key, *rounds, deadline, interrupt);
  }
  const std::lock_guard lock(mutex_);
  DISTNET_INVARIANT(turn_ == Turn::kCut);
  return moment_;
}

void SnapshotRoom::note_pause(Clock::duration pause) {
  const std::int64_t pause_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(pause).count();
  last_pause_ns_.store(pause_ns, std::memory_order_relaxed);
  std::int64_t seen = longest_pause_ns_.load(std::memory_order_relaxed);
  while (seen < pause_ns && !longest_pause_ns_.compare_exchange_weak(seen, pause_ns, std::memory_order_relaxed)) {
  }
}

void SnapshotRoom::fill(ShardStatistics& statistics) const {
  statistics.snapshots = cuts_.load(std::memory_order_relaxed);
  statistics.snapshot_pause_last_s = seconds(last_pause_ns_.load(std::memory_order_relaxed));
  statistics.snapshot_pause_longest_s = seconds(longest_pause_ns_.load(std::memory_order_relaxed));
}

}  // namespace distnet
