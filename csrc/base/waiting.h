// Every wait of the engine: for a mutex, a condition, a word of memory, a descriptor.
//
// No wait yields. Linux 6.18 charges a thread that yields for the rest of its time slice, so one that yields while it
// spins is not run again for seconds where other threads of its session are busy.
//
// Outside a simulation each costs as much as in the standard library or the system, and one predictable branch. In a
// simulation each is a point where another thread may get its turn, and time passes only while all wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>

#include <poll.h>

#include "base/time.h"

namespace distnet {

// Meets the requirements of Lockable, so that std::lock_guard and std::unique_lock take it.
class Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  ~Mutex() = default;

  void lock() {
    if (simulated()) [[unlikely]] {
      lock_simulated();
      return;
    }
    mutex_.lock();
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() {
    mutex_.unlock();
    if (simulated()) [[unlikely]] {
      tell_unlocked();
    }
  }

 private:
  friend class Condition;
  void lock_simulated();
  void tell_unlocked();

  std::mutex mutex_;
};

// A condition variable. As in the standard library, waits may wake early, and the notifying thread need not hold the
// mutex.
class Condition {
 public:
  Condition() = default;
  Condition(const Condition&) = delete;
  Condition& operator=(const Condition&) = delete;
  ~Condition() = default;

  template <typename Predicate>
  void wait(std::unique_lock<Mutex>& lock, Predicate predicate) {
    while (!predicate()) {
      wait_once(lock);
    }
  }

  // Returns predicate(), which is false only when the deadline passed.
  template <typename Predicate>
  bool wait_until(std::unique_lock<Mutex>& lock, const Deadline& deadline, Predicate predicate) {
    while (!predicate()) {
      if (!wait_until(lock, deadline)) {
        return predicate();
      }
    }
    return true;
  }

  // Waits for one wake-up. Returns false when the deadline passed.
  bool wait_until(std::unique_lock<Mutex>& lock, const Deadline& deadline);

  void notify_all();
  void notify_one();

 private:
  void wait_once(std::unique_lock<Mutex>& lock);

  std::condition_variable condition_;
};

// ---- words of this process ----------------------------------------------------------------------------------------
// In place of the waits of std::atomic, which yield before they sleep.
using WordChanged = bool (*)(const void* word, const void* seen);
void sleep_while_unchanged(WordChanged changed, const void* word, const void* seen);
void wake_sleepers_of(const void* word);

// Sleeps while `word` holds `seen`. The load that sees another value is an acquire. It pairs with the release store of
// that value, which comes before wake_all().
template <typename T>
void wait_while(const std::atomic<T>& word, T seen) {
  constexpr WordChanged kChanged = [](const void* at, const void* old) {
    return static_cast<const std::atomic<T>*>(at)->load(std::memory_order_acquire) != *static_cast<const T*>(old);
  };
  sleep_while_unchanged(kChanged, &word, &seen);
}

// Wakes all threads that sleep in wait_while() on this word. Uses only its address, because the word may be gone by
// then.
template <typename T>
void wake_all(const std::atomic<T>& word) {
  wake_sleepers_of(&word);
}

// ---- words that processes share -----------------------------------------------------------------------------------
// Sleeps while `word` holds `expected`, for at most `timeout`. It works across processes, unlike std::atomic::wait, and
// may wake early.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds timeout);
void futex_wake_all(const std::atomic<std::uint32_t>& word);

// ---- descriptors --------------------------------------------------------------------------------------------------
// Waits until one of the descriptors is ready, and fills in `revents`. Returns how many are ready: 0 when the deadline
// passed or a signal came. Throws Error(kTransport) when the system cannot wait.
int poll_until(std::span<pollfd> entries, const Deadline& deadline);
int poll_until(std::span<pollfd> entries, Clock::duration at_most);

}  // namespace distnet
