#include "server/accept_gate.h"

namespace distnet {

void AcceptGate::pass() {
  while (!try_pass()) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_open(); });
  }
}

// Acquire pairs with open().
bool AcceptGate::is_open() const { return (word_.load(std::memory_order_acquire) & kClosed) == 0; }

void AcceptGate::close() {
  // Acquire and release: each push either counted itself before, and is waited for, or finds the bit.
  word_.fetch_or(kClosed, std::memory_order_acq_rel);
}

void AcceptGate::open() {
  const std::lock_guard lock(mutex_);
  word_.fetch_and(~kClosed, std::memory_order_release);  // pairs with try_pass() and pass(): the cut has been made
  changed_.notify_all();
}

void AcceptGate::tell_empty() {
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

bool AcceptGate::wait_until_empty(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  // Acquire pairs with leave().
  return changed_.wait_until(lock, deadline, [this] { return word_.load(std::memory_order_acquire) == kClosed; });
}

}  // namespace distnet
