// What waits for one lane, in order, and who runs it.
//
// A blocking call on an idle lane runs its operation on the caller's own thread. All else is queued, and run by a
// thread of the queue's own, which starts with the first such job.
//
// Thread safety: any number of threads may call all methods; one destroys it, after stop().
//
// Invariants
// - One operation runs at a time. Numbers are given as operations begin to run, so they have no gaps and the same order
//   on all ranks, as long as all ranks submit the same operations in the same order.
// - After an error that breaks the lane, everything that is queued or comes later fails with that error.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "base/threads.h"
#include "base/waiting.h"
#include "group/lane.h"
#include "group/work.h"

namespace distnet {

struct LaneJob {
  Operation operation;
  Operands operands;
  double timeout_s = 30.0;  // in which its peers come, once it is its turn
  std::shared_ptr<Work> work;
  // For a join. Null: it is over with one operation of the others. Else it goes on until all ranks have joined, and
  // then calls this before it is done.
  std::function<void(const Deadline&)> all_joined;
};

// What a lane's thread is about.
struct LaneWait {
  std::uint64_t number = 0;
  Clock::time_point since;
  std::string operation;
  std::vector<std::uint32_t> awaited;
};

// Whom a broken lane concerns.
class LaneOwner {
 public:
  virtual ~LaneOwner() = default;
  // An operation broke its lane. Returns the error that counts, which says more where the group has ended meanwhile. It
  // waits a moment for word of that. `rank`: whose connection ended, where that is known; another that has left in order
  // is no reason then.
  virtual Error broken(const Error& why, std::optional<std::uint32_t> rank) = 0;
  // The same for an operation that this rank itself gave up.
  virtual void given_up(const Error& why) = 0;
};

class LaneQueue {
 public:
  LaneQueue(std::unique_ptr<Lane> lane, LaneOwner& owner, const char* thread_name)
      : lane_(std::move(lane)), owner_(owner), thread_name_(thread_name) {}
  LaneQueue(const LaneQueue&) = delete;
  LaneQueue& operator=(const LaneQueue&) = delete;
  ~LaneQueue() { stop(Deadline::forever()); }

  // `on_this_thread`: runs the job at once where the lane is idle. Throws what `interrupt` throws, having broken the
  // lane; all other errors are the work's.
  void submit(LaneJob job, bool on_this_thread, const Interrupt& interrupt);
  // Operations beyond this number fail with `why`, because a rank that they need has left.
  void end_at(std::uint64_t number, const Error& why);
  // Breaks the lane from outside.
  void abort(const Error& why);
  // Waits until nothing is queued and nothing runs. Returns false when the deadline passed first.
  bool drain(const Deadline& deadline, const Interrupt& interrupt);
  // Breaks the lane, unless that has been done, and ends the thread. Returns false where something has not come to its
  // end by the deadline; it may be called again.
  bool stop(const Deadline& deadline);
  // What stop() waits for; empty where that is nothing.
  std::string stopped_by() const;

  std::uint64_t number() const;  // of operations that have run
  std::optional<LaneWait> waiting() const;

 private:
  using Lock = std::unique_lock<Mutex>;

  void run_all();
  void start_thread();
  void run(LaneJob& job, const Interrupt& interrupt);
  Result run_operation(const LaneJob& job, const Interrupt& interrupt);
  void break_by(const Error& why);
  std::optional<Error> why_broken() const;

  const std::unique_ptr<Lane> lane_;
  LaneOwner& owner_;
  const char* const thread_name_;

  mutable Mutex mutex_;  // guards what follows
  Condition changed_;
  std::deque<LaneJob> jobs_;
  bool busy_ = false;                   // somebody runs an operation
  const Operation* running_ = nullptr;  // the same
  Clock::time_point since_;
  std::uint64_t number_ = 0;
  std::uint64_t last_allowed_ = ~std::uint64_t{0};
  std::optional<Error> why_no_more_;  // beyond that number
  std::optional<Error> broken_;
  bool stopping_ = false;
  bool has_thread_ = false;  // which may still use this
  Thread thread_;
};

}  // namespace distnet
