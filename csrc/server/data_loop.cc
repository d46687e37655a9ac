#include "server/data_loop.h"

#include "front/door.h"

namespace distnet {

DataLoop::DataLoop(Shard& shard, std::uint32_t session, ServerChannel& channel, ControlConnection& control)
    : shard_(shard), session_(session), channel_(channel), control_(control) {}

DataLoop::~DataLoop() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

void DataLoop::start() {
  running_ = true;
  try {
    thread_ = Thread("serves requests", [this] { run(); });
  } catch (...) {
    running_ = false;
    throw;
  }
}

bool DataLoop::wait_until_ended(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return !running_; });
}

void DataLoop::run() {
  try {
    while (const std::optional<Request> request = channel_.next()) {
      if (!shard_.serve(session_, *request, channel_)) {
        break;
      }
    }
  } catch (const std::exception& error) {
    failed_.store(true, std::memory_order_release);  // pairs with failed(), which is asked once the connection ended
    refuse(control_, error);
  }
  if (!let_end_.load(std::memory_order_acquire)) {  // pairs with let_end()
    control_.shutdown();
  }
  const std::lock_guard lock(mutex_);
  running_ = false;
  changed_.notify_all();
}

}  // namespace distnet
