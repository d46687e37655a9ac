#include "base/waiting.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>

#include "base/error.h"
#include "base/platform.h"
#include "base/simulation.h"
#include "base/threads.h"

namespace distnet {
namespace {

// Lets Condition wait once on the std::mutex inside a Mutex that the caller has locked.
class BorrowedLock {
 public:
  explicit BorrowedLock(std::mutex& locked) : lock_(locked, std::adopt_lock) {}
  BorrowedLock(const BorrowedLock&) = delete;
  BorrowedLock& operator=(const BorrowedLock&) = delete;
  ~BorrowedLock() { lock_.release(); }
  std::unique_lock<std::mutex>& get() { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

bool wait_simulated(Simulation& simulation, std::unique_lock<Mutex>& lock, const void* condition,
                    Clock::time_point until) {
  lock.unlock();  // no other thread runs before wait_for_notice() gives up the turn, so no notification is missed
  const bool notified = simulation.wait_for_notice("for a condition", condition, until);
  lock.lock();
  return notified;
}

int poll_once(std::span<pollfd> entries, const timespec* timeout) {
  const int ready = ::ppoll(entries.data(), static_cast<nfds_t>(entries.size()), timeout, nullptr);
  if (ready >= 0) {
    return ready;
  }
  if (errno != EINTR && errno != EAGAIN) {
    throw Error(ErrorCode::kTransport, std::string("the system cannot wait for descriptors: ") + std::strerror(errno));
  }
  for (pollfd& entry : entries) {
    entry.revents = 0;
  }
  return 0;
}

timespec timespec_of(Clock::duration duration) {
  const auto nanoseconds = std::chrono::nanoseconds(duration).count();
  timespec time{};
  time.tv_sec = static_cast<time_t>(nanoseconds / 1'000'000'000);
  time.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
  return time;
}

// Where threads sleep that wait for a word. Words may share a bucket, and then wake each other's threads now and then.
struct alignas(64) Bucket {
  std::atomic<std::uint32_t> calls{0};     // how often its sleepers were woken
  std::atomic<std::uint32_t> sleepers{0};  // threads that sleep here, or are about to
};

constexpr std::size_t kBuckets = 64;
constexpr int kLooksBeforeSleep = 16;
constexpr auto kLongestSleep = std::chrono::hours{1};

Bucket& bucket_of(const void* word) {
  static std::array<Bucket, kBuckets> buckets;
  const auto address = reinterpret_cast<std::uintptr_t>(word);
  return buckets[((address / sizeof(std::uint64_t)) ^ (address / sizeof(Bucket))) % kBuckets];
}

int poll_simulated(Simulation& simulation, std::span<pollfd> entries, Clock::time_point until) {
  constexpr timespec kAtOnce{};
  int ready = 0;
  simulation.wait(
      "for a descriptor",
      [&] {
        ready = poll_once(entries, &kAtOnce);
        return ready != 0;
      },
      until);
  return ready;
}

}  // namespace

void Mutex::lock_simulated() {
  Simulation* const simulation = Simulation::of_this_thread();
  simulation->maybe_switch("to lock a mutex");
  while (!mutex_.try_lock()) {
    simulation->wait_for_notice("for a mutex", this, Clock::time_point::max());
  }
}

void Mutex::tell_unlocked() { Simulation::of_this_thread()->notify_all(this); }

void Condition::wait_once(std::unique_lock<Mutex>& lock) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    wait_simulated(*simulation, lock, this, Clock::time_point::max());
    return;
  }
  BorrowedLock borrowed(lock.mutex()->mutex_);
  condition_.wait(borrowed.get());
}

bool Condition::wait_until(std::unique_lock<Mutex>& lock, const Deadline& deadline) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    return wait_simulated(*simulation, lock, this, deadline.at());
  }
  BorrowedLock borrowed(lock.mutex()->mutex_);
  if (deadline.is_forever()) {
    condition_.wait(borrowed.get());
    return true;
  }
  return condition_.wait_until(borrowed.get(), deadline.at()) == std::cv_status::no_timeout;
}

void Condition::notify_all() {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulation->notify_all(this);
    simulation->maybe_switch("to notify");
    return;
  }
  condition_.notify_all();
}

void Condition::notify_one() {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulation->notify_one(this);
    simulation->maybe_switch("to notify");
    return;
  }
  condition_.notify_one();
}

void sleep_while_unchanged(WordChanged changed, const void* word, const void* seen) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulation->wait("for a word to change", [=] { return changed(word, seen); }, Clock::time_point::max());
    return;
  }
  for (int look = 0; look < kLooksBeforeSleep; ++look) {
    if (changed(word, seen)) {
      return;
    }
    pause_briefly();
  }
  Bucket& bucket = bucket_of(word);
  bucket.sleepers.fetch_add(1, std::memory_order_acq_rel);  // pairs with wake_sleepers_of()
  while (true) {
    const std::uint32_t calls = bucket.calls.load(std::memory_order_acquire);
    if (changed(word, seen)) {
      break;
    }
    sleep_on_word(bucket.calls, calls, kLongestSleep);
  }
  bucket.sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void wake_sleepers_of(const void* word) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    simulation->maybe_switch("to wake");
    return;
  }
  Bucket& bucket = bucket_of(word);
  // Either this comes before a sleeper's own addition, which then sees what was stored before this call, or it sees the
  // sleeper.
  if (bucket.sleepers.fetch_add(0, std::memory_order_acq_rel) != 0) {
    bucket.calls.fetch_add(1, std::memory_order_release);  // pairs with a sleeper's load of it
    wake_sleepers(bucket.calls);
  }
}

void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds timeout) {
  Simulation* const simulation = Simulation::of_this_thread();
  if (simulation == nullptr) {
    sleep_on_word(word, expected, timeout);
    return;
  }
  // In a simulated process the word may be mapped twice, and its waker then knows it by another address. So the
  // scheduler looks at the word itself.
  simulation->wait(
      "for a shared word to change", [&] { return word.load(std::memory_order_acquire) != expected; },
      Deadline::after(std::chrono::duration_cast<Clock::duration>(timeout)).at());
}

void futex_wake_all(const std::atomic<std::uint32_t>& word) {
  if (simulated()) {
    Simulation::of_this_thread()->maybe_switch("to wake");
    return;
  }
  wake_sleepers(word);
}

int poll_until(std::span<pollfd> entries, const Deadline& deadline) {
  if (Simulation* const simulation = Simulation::of_this_thread()) {
    return poll_simulated(*simulation, entries, deadline.at());
  }
  if (deadline.is_forever()) {
    return poll_once(entries, nullptr);
  }
  const timespec timeout = timespec_of(deadline.left());
  return poll_once(entries, &timeout);
}

int poll_until(std::span<pollfd> entries, Clock::duration at_most) {
  if (simulated()) {
    return poll_until(entries, Deadline::after(at_most));
  }
  const timespec timeout = timespec_of(at_most);
  return poll_once(entries, &timeout);
}

}  // namespace distnet
