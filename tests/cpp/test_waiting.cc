// The waits of the engine outside a simulation: real threads, real time.
#include <array>
#include <csignal>

#include <sys/socket.h>

#include "base/descriptor.h"
#include "base/threads.h"
#include "base/waiting.h"
#include "check.h"

namespace {

using namespace distnet;
using namespace std::chrono_literals;

std::array<FileDescriptor, 2> socket_pair() {
  int ends[2];
  CHECK_EQUAL(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  return {FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

TEST(a_mutex_lets_one_in_and_a_condition_wakes_who_waits) {
  Mutex mutex;
  Condition condition;
  int turn = 0;
  int count = 0;
  const auto play = [&](int me) {
    for (int i = 0; i < 500; ++i) {
      std::unique_lock lock(mutex);
      condition.wait(lock, [&] { return turn == me; });
      ++count;
      turn = 1 - me;
      condition.notify_all();
    }
  };
  Thread other("other", [&] { play(1); });
  play(0);
  other.join();
  CHECK_EQUAL(count, 1000);
}

TEST(a_mutex_that_is_held_cannot_be_taken_by_another_thread) {
  Mutex mutex;
  const std::lock_guard lock(mutex);
  bool taken = true;
  Thread other("other", [&] { taken = mutex.try_lock(); });
  other.join();
  CHECK(!taken);
}

TEST(a_condition_waits_until_its_deadline_and_holds_the_mutex_again) {
  Mutex mutex;
  Condition condition;
  std::unique_lock lock(mutex);
  const Clock::time_point before = now();
  CHECK(!condition.wait_until(lock, Deadline::after(0.02), [] { return false; }));
  CHECK(now() - before >= 20ms);
  CHECK(lock.owns_lock());
  CHECK(condition.wait_until(lock, Deadline::after(0.0), [] { return true; }));
}

TEST(a_condition_without_a_deadline_is_woken) {
  Mutex mutex;
  Condition condition;
  bool said = false;
  Thread other("other", [&] {
    const std::lock_guard lock(mutex);
    said = true;
    condition.notify_one();
  });
  std::unique_lock lock(mutex);
  CHECK(condition.wait_until(lock, Deadline::forever(), [&] { return said; }));
  lock.unlock();
  other.join();
}

TEST(a_word_is_waited_for_until_it_changes) {
  std::atomic<std::uint64_t> word{0};
  int behind = 0;
  Thread other("other", [&] {
    behind = 1;
    word.store(5, std::memory_order_release);
    wake_all(word);
  });
  wait_while(word, std::uint64_t{0});
  CHECK_EQUAL(behind, 1);
  other.join();
  wait_while(word, std::uint64_t{0});  // returns at once
}

TEST(a_futex_sleeps_no_longer_than_asked_and_not_where_the_word_differs) {
  std::atomic<std::uint32_t> word{1};
  futex_wait(word, 0, 1h);
  futex_wait(word, 1, 1ms);
  Thread other("other", [&] {
    word.store(2, std::memory_order_release);
    futex_wake_all(word);
  });
  while (word.load(std::memory_order_acquire) == 1) {
    futex_wait(word, 1, 1h);
  }
  other.join();
}

TEST(descriptors_are_waited_for_with_and_without_a_deadline) {
  const auto [left, right] = socket_pair();
  pollfd entry{right.get(), POLLIN, 0};
  CHECK_EQUAL(poll_until({&entry, 1}, Deadline::after(0.001)), 0);
  CHECK_EQUAL(poll_until({&entry, 1}, Clock::duration(1ms)), 0);
  Thread other("other", [&] { CHECK_EQUAL(::send(left.get(), "x", 1, 0), 1); });
  CHECK_EQUAL(poll_until({&entry, 1}, Deadline::forever()), 1);
  CHECK_EQUAL(entry.revents, POLLIN);
  other.join();
}

TEST(a_signal_ends_a_wait_for_descriptors_with_none_ready) {
  struct sigaction action{};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  const auto [left, right] = socket_pair();
  const pthread_t waiter = pthread_self();
  std::atomic<bool> over{false};
  Thread other("other", [&] {
    while (!over.load(std::memory_order_relaxed)) {
      pthread_kill(waiter, SIGUSR1);
      sleep_for(1ms);
    }
  });
  pollfd entry{right.get(), POLLIN, POLLIN};
  CHECK_EQUAL(poll_until({&entry, 1}, Deadline::forever()), 0);
  CHECK_EQUAL(entry.revents, 0);
  over.store(true, std::memory_order_relaxed);
  other.join();
}

TEST(deadlines_far_away_never_come_and_do_not_overflow) {
  CHECK(!Deadline::forever().expired());
  CHECK(Deadline::after(1e300).is_forever());
  CHECK(Deadline::after(Clock::duration::max()).is_forever());
  CHECK(Deadline::forever().remaining() > std::chrono::hours(24 * 365));
  CHECK(Deadline::after(-1.0).expired());
  CHECK(Deadline::after(-1.0).left() == Clock::duration{0});
}

}  // namespace
