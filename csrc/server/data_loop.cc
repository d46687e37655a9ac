#include "server/data_loop.h"

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
      return;
    }
    if (thread_.joinable()) {
      thread_.join();  // it needs the mutex no more
    }
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
  try {
    while (const std::optional<Request> request = channel_.next()) {
      if (!shard_.serve(session_, *request, channel_)) {
        break;
      }
    }
    dormant = channel_.is_dormant();
  } catch (const std::exception& error) {
    failed_.store(true, std::memory_order_release);  // pairs with failed(), which is asked once the connection ended
    refuse(control_, error);
  }
  if (!dormant && !let_end_.load(std::memory_order_acquire)) {  // pairs with let_end()
    control_.shutdown();
  }
  {
    const std::lock_guard lock(mutex_);
    running_ = false;
    over_ = over_ || !dormant;
    changed_.notify_all();
  }
  if (dormant) {
    rest();
  }
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
