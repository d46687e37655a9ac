// A member of a group of ranks: its operations with the others, from the moment that all are there.
//
// Two lanes run operations: unnamed ones in the order of the calls, named ones in the order that the coordinator gives.
// docs/design/groups.md has the whole.
//
// Thread safety: any number of threads may call all methods; one destroys it. Unnamed operations of several threads run
// in the order in which they were begun, which must be the same on all ranks.
//
// Invariants
// - A thread that calls back is one that other operations need, so what would wait in a callback for another operation of
//   the group is refused.
// - Every operation that was begun ends: by its result, its own error, or the error that ended the group.
// - Once the group has ended, every later operation throws the same error.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/threads.h"
#include "group/joining.h"
#include "group/lane_queue.h"
#include "group/mesh.h"
#include "group/point_to_point.h"
#include "group/work.h"

namespace distnet {

class ProcessGroup final : private LaneOwner {
 public:
  static constexpr double kStopSeconds = 30.0;  // in which the threads of a group that is closed end

  struct Call {
    Operation operation;    // its name, where it has one, is the operation's in the group
    Operands operands;      // stay as they are until the work is done
    std::uint64_t tag = 0;  // of send and receive
    double timeout_s = 30.0;
    bool at_once = false;  // the caller waits for it anyway: it may run on this thread
  };

  // Waits until all ranks are there. Throws as join_group() does.
  ProcessGroup(const GroupOptions& options, const Interrupt& interrupt);
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;
  ~ProcessGroup() override;

  std::uint32_t rank() const { return rank_; }
  std::uint32_t size() const { return size_; }
  const std::string& name() const { return name_; }
  std::uint64_t generation() const { return joined_.formed.generation; }
  const char* transport() const { return joined_.formed.transport == GroupTransport::kShm ? "shm" : "tcp"; }

  // Throws Error(kConfig) for an operation that cannot be, or a name that is under way; what has ended the group; what
  // `interrupt` throws, which ends the group where the operation ran on this thread. All else is the work's.
  std::shared_ptr<Work> begin(Call call, const Interrupt& interrupt);

  // Returns, once for each wait that lasts, what this member has waited for; else nothing.
  std::optional<std::string> take_notice();

  // Waits for what was begun, at most as long as the timeout, and leaves in order. Nothing can be begun afterwards. What
  // `interrupt` throws ends the group. Throws Error(kDeadlineExceeded) where its threads have not ended kStopSeconds later.
  void close(const Interrupt& interrupt);
  // Ends it at once: the other ranks see this one die. Any thread.
  void abandon();
  // Ends it at once, and its threads by the deadline. Returns nothing, or what has not come to its end, such as a callback:
  // it may be called again then, and until it has returned nothing the destructor would wait.
  std::optional<std::string> stop(const Deadline& deadline);
  bool closed() const { return closed_.load(std::memory_order_acquire); }

 private:
  struct NamedCall {
    LaneJob job;
    Deadline deadline = Deadline::forever();
    Clock::time_point since;
    bool withdrawing = false;
  };
  using Lock = std::unique_lock<Mutex>;

  void check_usable() const;
  void make_lanes(const Interrupt& interrupt);
  void begin_named(LaneJob job);
  void begin_join(LaneJob job, bool at_once, const Interrupt& interrupt);
  template <typename Done>
  bool wait_for(const Done& done, const Deadline& deadline, const Interrupt& interrupt);
  void wait_until_all_joined(const Deadline& deadline);
  // LaneOwner
  Error broken(const Error& why, std::optional<std::uint32_t> rank) override;
  void given_up(const Error& why) override;

  void watch();
  void watch_until_stopped();
  bool stopping() const;
  Deadline next_look(const Deadline& next_heartbeat) const;
  void withdraw_overdue();
  void hear(const ControlMessage& message);
  void hear_left(const GroupProgress& progress);
  void hear_turn(const NamedTurn& turn);
  void hear_withdrawn(const NamedNotice& notice);
  void give_turn(const NamedTurn& turn);
  // The first reason counts. `told`: the other ranks know it.
  void end(const Error& why, bool told);
  void fail_named(const Error& why);
  Error coordinator_lost(const Error& why) const;
  void leave(const Deadline& deadline, const Interrupt& interrupt);
  std::optional<std::string> shut_down(const Deadline& deadline);
  void shut_down_or_say(const Interrupt& interrupt);
  std::string who() const;

  const std::string name_;
  const std::uint32_t rank_;
  const std::uint32_t size_;
  const std::uint32_t fork_number_;  // of the process that made this
  double timeout_s_;
  Joined joined_;
  std::unique_ptr<Arrivals> arrivals_;
  FileDescriptor wake_;  // readable when the watcher has something else to do
  std::unique_ptr<LaneQueue> ordered_;
  std::unique_ptr<LaneQueue> named_;
  std::unique_ptr<PointToPoint> messages_;
  std::atomic<bool> closed_{false};
  std::atomic<bool> has_ended_{false};

  mutable Mutex mutex_;  // guards what follows
  Condition changed_;
  std::optional<Error> why_ended_;
  std::map<std::uint32_t, Error> left_ranks_;       // in order, and how each says so
  std::uint64_t left_ordered_ = ~std::uint64_t{0};  // what lanes may run since then
  std::uint64_t left_named_ = ~std::uint64_t{0};
  std::map<std::string, NamedCall> pending_;                // named operations without a turn yet
  std::map<std::string, std::shared_ptr<Work>> under_way_;  // these, and those that run; done ones go now and then
  std::size_t sweep_at_ = 64;
  std::map<std::uint64_t, NamedTurn> turns_;  // that came before the one that is next
  std::uint64_t next_turn_ = 1;
  bool joining_ = false;  // it announces no more
  bool all_joined_ = false;
  bool left_ = false;  // the coordinator has let this member go
  bool stopping_ = false;
  bool watching_ = false;   // the watcher may still use this
  std::string stopped_by_;  // what shut_down() has waited for since then
  Clock::time_point stopped_since_;
  std::string noticed_stop_;
  std::string awaited_;                // by a named operation, as the coordinator last said
  std::uint64_t noticed_ordered_ = 0;  // the operation that a notice was about
  std::uint64_t noticed_named_ = 0;
  std::uint64_t noticed_message_ = 0;
  std::string noticed_pending_;

  Thread watcher_;
};

}  // namespace distnet
