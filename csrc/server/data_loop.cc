#include "server/data_loop.h"

#include <utility>

#include "front/door.h"

namespace distnet {

DataLoop::DataLoop(Shard& shard, std::uint32_t session, ServerChannel& channel, ControlConnection& control,
                   DormantStreams& dormant)
    : shard_(shard), session_(session), channel_(channel), control_(control), dormant_(dormant) {}

// The channel takes no more requests, so its thread ends by itself.
DataLoop::~DataLoop() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  if (thread_.joinable()) {
    thread_.join();
  }
  dormant_.remove(*this);
}

void DataLoop::start() { rest(); }

void DataLoop::wake() {
  try {
    const std::lock_guard lock(mutex_);
    if (running_ || over_) {
      woken_ = true;  // its thread may be about to end
      return;
    }
    if (thread_.joinable()) {
      thread_.join();  // it needs the mutex no more
    }
    woken_ = false;
    thread_ = Thread("serves requests", [this] { run(); });
    running_ = true;
  } catch (const std::exception& error) {
    refuse(control_, error);
    control_.shutdown();
  }
}

bool DataLoop::wait_until_ended(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return !running_; });
}

void DataLoop::run() {
  bool dormant = false;
  do {
    dormant = serve_requests();
    if (!dormant && !let_end_.load(std::memory_order_acquire)) {  // pairs with let_end()
      control_.shutdown();
    }
  } while (!end(dormant));
  if (dormant) {
    rest();
  }
}

// Returns whether the channel fell dormant; else no request comes any more.
bool DataLoop::serve_requests() {
  try {
    while (const std::optional<Request> request = channel_.next()) {
      if (!shard_.serve(session_, *request, channel_)) {
        return false;
      }
    }
    return channel_.is_dormant();
  } catch (const std::exception& error) {
    failed_.store(true, std::memory_order_release);  // pairs with failed(), which is asked once the connection ended
    refuse(control_, error);
    return false;
  }
}

// The thread ends, unless the loop was woken after its channel fell dormant. Returns whether it ends.
bool DataLoop::end(bool dormant) {
  const std::lock_guard lock(mutex_);
  if (dormant && !over_ && std::exchange(woken_, false)) {
    return false;
  }
  running_ = false;
  over_ = over_ || !dormant;
  changed_.notify_all();
  return true;
}

// Once the loop counts as ended: a stream that is readable by now wakes it at once.
void DataLoop::rest() {
  if (channel_.wake_fd() < 0) {
    return;  // its client says when it goes on
  }
  try {
    dormant_.add(*this, channel_.wake_fd());
  } catch (const std::exception& error) {
    refuse(control_, error);
    control_.shutdown();
  }
}

}  // namespace distnet
