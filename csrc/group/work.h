// One operation that was begun: whether it is done, its result, or its error.
//
// Thread safety: any number of threads may call all methods.
#pragma once

#include <functional>
#include <optional>

#include "base/error.h"
#include "base/waiting.h"
#include "group/operation.h"

namespace distnet {

class Work {
 public:
  // `group`: what tells the works of one group from those of others.
  explicit Work(const void* group = nullptr) : group_(group) {}
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  ~Work() = default;

  // Returns whether it has a result or an error. Its operands are not used any more then.
  bool done() const;
  // Waits for that. Returns false when the deadline passed first; the operation goes on. Throws what `interrupt` throws,
  // and as check_may_wait() does where it would have to wait.
  bool wait(const Deadline& deadline, const Interrupt& interrupt);
  // Once it is done: throws its error, or returns what the lane did.
  const Result& result() const;
  // Calls this once when it is done: at once where it is, else on the thread that ran it. At most once. It throws nothing.
  void when_done(std::function<void()> hear_of_it);

  // Throws Error(kConfig) where this thread is in a callback of an operation of the group, which it holds up: nothing
  // that the group is yet to do may come to an end before the callback returns.
  void check_may_wait() const { check_may_wait(group_); }
  static void check_may_wait(const void* group);

  // For whoever runs it: the first counts.
  void finish(Result result);
  void fail(const Error& why);

 private:
  template <typename Set>
  void conclude(const Set& set);

  const void* const group_;
  mutable Mutex mutex_;
  Condition changed_;
  bool done_ = false;
  Result result_;
  std::optional<Error> why_;
  std::function<void()> when_done_;
};

}  // namespace distnet
