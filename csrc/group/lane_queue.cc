#include "group/lane_queue.h"

#include <algorithm>
#include <new>
#include <utility>

namespace distnet {
namespace {

// Errors of one operation alone: see Lane::run().
bool lane_goes_on(const Error& error) {
  return error.code() == ErrorCode::kConfig || error.code() == ErrorCode::kCollectiveMismatch;
}

}  // namespace

void LaneQueue::submit(LaneJob job, bool on_this_thread, const Interrupt& interrupt) {
  Lock lock(mutex_);
  if (broken_ || stopping_) {
    const Error why = broken_.value_or(Error(ErrorCode::kPeerClosed, "the group is closed"));
    lock.unlock();
    job.work->fail(why);
    return;
  }
  if (!on_this_thread || busy_ || !jobs_.empty()) {
    try {
      start_thread();
      jobs_.push_back(std::move(job));
      changed_.notify_all();
    } catch (const std::exception& error) {
      lock.unlock();
      const Error why(ErrorCode::kTransport, describe(job.operation) + " cannot begin: " + error.what());
      owner_.given_up(why);  // the other ranks count on it
      abort(why);
      job.work->fail(why);
    }
    return;
  }
  busy_ = true;
  lock.unlock();
  const auto let_others = [&] {
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  };
  try {
    run(job, interrupt);
  } catch (...) {
    let_others();
    throw;
  }
  let_others();
}

// Under the mutex.
void LaneQueue::start_thread() {
  if (!has_thread_) {
    thread_ = Thread(thread_name_, [this] { run_all(); });
    has_thread_ = true;
  }
}

void LaneQueue::run_all() {
  Lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !busy_ && (stopping_ || !jobs_.empty()); });
    if (jobs_.empty()) {
      has_thread_ = false;
      changed_.notify_all();
      return;
    }
    LaneJob job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    run(job, {});  // throws nothing, because there is no interrupt
    job = {};      // before others hear that the lane is idle
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

// Called while busy_ is this thread's. Throws what `interrupt` throws, and nothing else: any other exception, such as one of
// the standard library's for want of memory or threads, is the operation's error, and the group's.
void LaneQueue::run(LaneJob& job, const Interrupt& interrupt) {
  std::exception_ptr interrupted;
  const Interrupt noting = [&] {
    try {
      interrupt();
    } catch (...) {
      interrupted = std::current_exception();
      throw;
    }
  };
  std::optional<Error> why;
  try {
    job.work->finish(run_operation(job, interrupt ? noting : interrupt));
    return;
  } catch (const Error& error) {
    why = error;
  } catch (const std::bad_alloc&) {
    why = Error(ErrorCode::kTransport, "there is no memory for " + describe(job.operation));
  } catch (const std::exception& error) {
    why = Error(ErrorCode::kTransport, describe(job.operation) + " cannot go on: " + error.what());
  } catch (...) {
    why = Error(ErrorCode::kTransport, describe(job.operation) + " cannot go on");
  }
  if (interrupted) {
    why = Error(ErrorCode::kPeerClosed, "it was interrupted in " + describe(job.operation));
    owner_.given_up(*why);
    abort(*why);
    job.work->fail(*why);
    std::rethrow_exception(interrupted);
  }
  if (!lane_goes_on(*why)) {
    if (const std::optional<Error> broken = why_broken()) {
      why = broken;
    } else {
      why = owner_.broken(*why, std::nullopt);
      abort(*why);
    }
  }
  job.work->fail(*why);
}

Result LaneQueue::run_operation(const LaneJob& job, const Interrupt& interrupt) {
  while (true) {
    std::uint64_t number = 0;
    {
      const Lock lock(mutex_);
      if (!broken_ && why_no_more_ && number_ >= last_allowed_) {
        break_by(*why_no_more_);
      }
      if (broken_) {
        throw Error(*broken_);
      }
      number = ++number_;
      running_ = &job.operation;
      since_ = now();
    }
    const Deadline deadline = Deadline::after(job.timeout_s);
    std::exception_ptr failed;
    Result result;
    try {
      result = lane_->run(number, job.operation, job.operands, deadline, interrupt);
    } catch (...) {
      failed = std::current_exception();
    }
    {
      const Lock lock(mutex_);
      running_ = nullptr;
    }
    if (failed) {
      std::rethrow_exception(failed);
    }
    if (!job.all_joined) {
      return result;
    }
    if (result.all_joined) {
      job.all_joined(Deadline::after(job.timeout_s));
      return result;
    }
  }
}

void LaneQueue::end_at(std::uint64_t number, const Error& why) {
  const Lock lock(mutex_);
  if (number >= last_allowed_) {
    return;
  }
  last_allowed_ = number;
  why_no_more_ = why;
  if (running_ != nullptr && number_ > number) {
    break_by(why);
  }
}

std::optional<Error> LaneQueue::why_broken() const {
  const Lock lock(mutex_);
  return broken_;
}

void LaneQueue::abort(const Error& why) {
  const Lock lock(mutex_);
  break_by(why);
}

// Under the mutex. What is queued fails on the queue's thread, after what runs: whoever breaks the lane meets no callback,
// which may not return, before the others have heard.
void LaneQueue::break_by(const Error& why) {
  if (broken_) {
    return;
  }
  broken_ = why;
  lane_->abort(why);
  changed_.notify_all();
}

bool LaneQueue::drain(const Deadline& deadline, const Interrupt& interrupt) {
  Lock lock(mutex_);
  while (busy_ || !jobs_.empty()) {
    const auto step = std::min<Clock::duration>(kInterruptInterval, deadline.left());
    changed_.wait_until(lock, Deadline::after(step), [this] { return !busy_ && jobs_.empty(); });
    if (interrupt) {
      lock.unlock();
      interrupt();
      lock.lock();
    }
    if (deadline.expired()) {
      return !busy_ && jobs_.empty();
    }
  }
  return true;
}

// The lane is broken, so what runs in it ends soon. What hears of the end of an operation is somebody else's, and may not.
bool LaneQueue::stop(const Deadline& deadline) {
  {
    Lock lock(mutex_);
    break_by(Error(ErrorCode::kPeerClosed, "the group is closed"));
    stopping_ = true;
    changed_.notify_all();
    if (!changed_.wait_until(lock, deadline, [this] { return !busy_ && !has_thread_; })) {
      return false;
    }
  }
  if (thread_.joinable()) {
    thread_.join();
  }
  return true;
}

std::string LaneQueue::stopped_by() const {
  const Lock lock(mutex_);
  if (!busy_ && !has_thread_) {
    return "";
  }
  return running_ != nullptr ? describe(*running_) : "a callback of an operation";
}

std::uint64_t LaneQueue::number() const {
  const Lock lock(mutex_);
  return number_;
}

std::optional<LaneWait> LaneQueue::waiting() const {
  const Lock lock(mutex_);
  if (running_ == nullptr) {
    return std::nullopt;
  }
  return LaneWait{number_, since_, describe(*running_), lane_->awaited()};
}

}  // namespace distnet
