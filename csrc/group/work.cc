#include "group/work.h"

#include <algorithm>
#include <utility>

namespace distnet {
namespace {

// A group that this thread holds up, because it is in a callback of one of its operations. A callback may end operations of
// another group, and be in their callbacks then.
class HoldingUp {
 public:
  explicit HoldingUp(const void* group) : group_(group), before_(std::exchange(innermost, this)) {}
  HoldingUp(const HoldingUp&) = delete;
  HoldingUp& operator=(const HoldingUp&) = delete;
  ~HoldingUp() { innermost = before_; }

  static bool holds_up(const void* group) {
    const HoldingUp* at = innermost;
    while (at != nullptr && at->group_ != group) {
      at = at->before_;
    }
    return at != nullptr;
  }

 private:
  static thread_local const HoldingUp* innermost;

  const void* const group_;
  const HoldingUp* const before_;
};
thread_local const HoldingUp* HoldingUp::innermost = nullptr;

}  // namespace

void Work::check_may_wait(const void* group) {
  if (group != nullptr && HoldingUp::holds_up(group)) {
    throw Error(ErrorCode::kConfig,
                "a callback of an operation waits for another operation of the same group, which cannot go on before "
                "the callback has returned: begin the other one there, and wait for it elsewhere");
  }
}

bool Work::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

bool Work::wait(const Deadline& deadline, const Interrupt& interrupt) {
  std::unique_lock lock(mutex_);
  if (!done_) {
    check_may_wait();
  }
  while (!done_) {
    const Deadline next_look = Deadline::after(std::min<Clock::duration>(kInterruptInterval, deadline.left()));
    if (changed_.wait_until(lock, interrupt ? next_look : deadline, [this] { return done_; })) {
      return true;
    }
    if (interrupt) {
      lock.unlock();
      interrupt();
      lock.lock();
    }
    if (!done_ && deadline.expired()) {
      return false;
    }
  }
  return true;
}

const Result& Work::result() const {
  const std::lock_guard lock(mutex_);
  DISTNET_INVARIANT(done_);
  if (why_) {
    throw Error(*why_);
  }
  return result_;  // it does not change any more
}

void Work::when_done(std::function<void()> hear_of_it) {
  {
    const std::lock_guard lock(mutex_);
    if (!done_) {
      when_done_ = std::move(hear_of_it);
      return;
    }
  }
  hear_of_it();
}

template <typename Set>
void Work::conclude(const Set& set) {
  std::function<void()> hear_of_it;
  {
    const std::lock_guard lock(mutex_);
    if (done_) {
      return;
    }
    set();
    done_ = true;
    hear_of_it = std::exchange(when_done_, nullptr);
    changed_.notify_all();
  }
  if (hear_of_it) {
    const HoldingUp holding(group_);
    hear_of_it();
  }
}

void Work::finish(Result result) {
  conclude([&] { result_ = std::move(result); });
}

void Work::fail(const Error& why) {
  conclude([&] { why_ = why; });
}

}  // namespace distnet
