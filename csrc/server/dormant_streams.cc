#include "server/dormant_streams.h"

#include <vector>

#include "base/error.h"
#include "base/platform.h"
#include "base/threads.h"

namespace distnet {
namespace {

constexpr double kUndisturbedSeconds = 3600.0;
constexpr auto kPauseWithoutMemory = milliseconds{50};

}  // namespace

DormantStreams::DormantStreams() : rung_(FileDescriptor::open(create_event_file)) {
  if (!rung_) {
    throw Error(ErrorCode::kConfig, "the process has no descriptor left for a server; raise its limit (ulimit -n)");
  }
}

DormantStreams::~DormantStreams() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ring_event_file(rung_.get());
  if (thread_.joinable()) {
    thread_.join();
  }
}

void DormantStreams::add(Sleeper& sleeper, int fd) {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) {
    thread_ = Thread("watches idle sessions", [this] { watch(); });
  }
  sleepers_[&sleeper] = fd;
  ring_event_file(rung_.get());
}

void DormantStreams::remove(Sleeper& sleeper) {
  std::unique_lock lock(mutex_);
  sleepers_.erase(&sleeper);
  changed_.wait(lock, [&] { return waking_ != &sleeper; });
}

void DormantStreams::watch() {
  std::vector<pollfd> polled;
  std::vector<Sleeper*> sleepers;
  while (true) {
    try {
      polled.assign(1, {rung_.get(), POLLIN, 0});
      sleepers.clear();
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) {
          return;
        }
        for (const auto& [sleeper, fd] : sleepers_) {
          sleepers.push_back(sleeper);
          polled.push_back({fd, POLLIN, 0});
        }
      }
      poll_until(polled, Deadline::after(kUndisturbedSeconds));
    } catch (const std::exception& error) {  // no memory, or more descriptors than the system will poll
      static_cast<void>(error);
      sleep_for(kPauseWithoutMemory);
      continue;
    }
    if (polled.front().revents != 0) {
      drain_event_file(rung_.get());
    }
    for (std::size_t i = 0; i < sleepers.size(); ++i) {
      if (polled[i + 1].revents != 0) {
        wake(*sleepers[i]);
      }
    }
  }
}

// A sleeper that was removed meanwhile may be gone; one that is still in the list waits in remove() until it is awake.
void DormantStreams::wake(Sleeper& sleeper) {
  {
    const std::lock_guard lock(mutex_);
    if (sleepers_.erase(&sleeper) == 0) {
      return;
    }
    waking_ = &sleeper;
  }
  sleeper.wake();
  const std::lock_guard lock(mutex_);
  waking_ = nullptr;
  changed_.notify_all();
}

}  // namespace distnet
