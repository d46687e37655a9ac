// Threads that run one at a time, in an order drawn from a seed.
#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "base/random.h"
#include "base/simulation.h"
#include "base/threads.h"
#include "base/waiting.h"
#include "check.h"

namespace {

using namespace distnet;
using namespace std::chrono_literals;

// Two threads that append their letters under one mutex; the order is what the seed makes of it.
std::string interleaving(std::uint64_t seed, std::uint64_t* digest = nullptr) {
  std::string order;
  Simulation simulation(seed);
  simulation.run([&] {
    Mutex mutex;
    const auto append = [&](char letter) {
      for (int i = 0; i < 8; ++i) {
        const std::lock_guard lock(mutex);
        order += letter;
      }
    };
    Thread a("a", [&] { append('a'); });
    Thread b("b", [&] { append('b'); });
    a.join();
    b.join();
  });
  if (digest != nullptr) {
    *digest = simulation.digest();
  }
  return order;
}

std::string message_of_hang(const std::function<void()>& body) {
  try {
    Simulation(1).run(body);
  } catch (const SimulationHung& hang) {
    return hang.what();
  }
  return {};
}

TEST(one_seed_gives_one_order_and_other_seeds_give_others) {
  std::set<std::string> orders;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    std::uint64_t first = 0, second = 0;
    CHECK_EQUAL(interleaving(seed, &first), interleaving(seed, &second));
    CHECK_EQUAL(first, second);
    orders.insert(interleaving(seed));
  }
  CHECK(orders.size() > 20);
}

TEST(a_lost_update_is_found_by_some_seed) {
  int lost = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    int count = 0;
    Simulation(seed).run([&] {
      Mutex mutex;
      const auto add_carelessly = [&] {
        int seen = 0;
        {
          const std::lock_guard lock(mutex);
          seen = count;
        }
        const std::lock_guard lock(mutex);
        count = seen + 1;
      };
      Thread other("other", add_carelessly);
      add_carelessly();
      other.join();
    });
    lost += count == 1 ? 1 : 0;
  }
  CHECK(lost > 0 && lost < 100);
}

TEST(time_passes_only_by_waiting_and_then_at_once) {
  const auto before = std::chrono::steady_clock::now();
  Simulation(3).run([] {
    const Clock::time_point start = now();
    sleep_for(24h);
    CHECK(now() - start >= 24h && now() - start < 24h + 1s);
    Mutex mutex;
    Condition condition;
    std::unique_lock lock(mutex);
    CHECK(!condition.wait_until(lock, Deadline::after(3600.0), [] { return false; }));
    CHECK(now() - start >= 25h);
    std::atomic<std::uint32_t> word{7};
    futex_wait(word, 7, 1h);
    CHECK(now() - start >= 26h);
    CHECK_EQUAL(poll_until({}, 1h), 0);
    CHECK(now() - start >= 27h && now() - start < 27h + 1s);
  });
  CHECK(std::chrono::steady_clock::now() - before < 1h);
}

TEST(the_earliest_of_several_deadlines_comes_first) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    std::string order;
    Simulation(seed).run([&] {
      Thread late("late", [&] { sleep_for(20s), order += 'l'; });
      Thread early("early", [&] { sleep_for(10s), order += 'e'; });
      late.join();
      early.join();
    });
    CHECK_EQUAL(order, std::string("el"));
  }
}

TEST(every_kind_of_wait_is_woken_by_another_thread) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Simulation(seed).run([] {
      Mutex mutex;
      Condition condition;
      bool said = false;
      std::atomic<std::uint32_t> word{0}, shared{0};
      int ends[2];
      CHECK_EQUAL(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
      const FileDescriptor left(ends[0]), right(ends[1]);
      Thread waker("waker", [&] {
        {
          const std::lock_guard lock(mutex);
          said = true;
        }
        condition.notify_one();
        word.store(1, std::memory_order_release);
        wake_all(word);
        shared.store(1, std::memory_order_release);
        futex_wake_all(shared);
        CHECK_EQUAL(::write(left.get(), "x", 1), 1);
      });
      {
        std::unique_lock lock(mutex);
        condition.wait(lock, [&] { return said; });
      }
      wait_while(word, 0U);
      while (shared.load(std::memory_order_acquire) == 0) {
        futex_wait(shared, 0, 1h);
      }
      pollfd entry{right.get(), POLLIN, 0};
      CHECK_EQUAL(poll_until({&entry, 1}, Deadline::forever()), 1);
      CHECK((entry.revents & POLLIN) != 0);
      waker.join();
    });
  }
}

TEST(a_notification_of_one_wakes_one) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    int woken = 0;
    Simulation(seed).run([&] {
      Mutex mutex;
      Condition condition;
      const auto wait = [&] {
        std::unique_lock lock(mutex);
        woken += condition.wait_until(lock, Deadline::after(5.0)) ? 1 : 0;
      };
      Thread a("a", wait), b("b", wait), c("c", wait);
      sleep_for(1s);
      condition.notify_one();
      a.join(), b.join(), c.join();
    });
    CHECK_EQUAL(woken, 1);
  }
}

TEST(random_numbers_come_from_the_seed) {
  const auto draw = [](std::uint64_t seed) {
    std::vector<std::uint64_t> numbers(4);
    Simulation(seed).run([&] { std::ranges::generate(numbers, random_number); });
    return numbers;
  };
  CHECK(draw(5) == draw(5));
  CHECK(draw(5) != draw(6));
  CHECK(random_number() != random_number());
}

TEST(only_simulated_threads_are_simulated) {
  CHECK(!simulated());
  Simulation(1).run([] {
    CHECK(simulated());
    bool outside = true;
    std::thread([&] { outside = simulated(); }).join();
    CHECK(!outside);
  });
  CHECK(!simulated());
}

TEST(a_hang_names_each_thread_and_what_it_waits_for) {
  const std::string message = message_of_hang([] {
    Mutex mutex;
    Condition condition;
    Thread stuck("stuck", [&] {
      std::unique_lock lock(mutex);
      condition.wait(lock, [] { return false; });
    });
    stuck.join();
  });
  CHECK(message.find("thread 0 (main) waits for a thread to end") != std::string::npos);
  CHECK(message.find("thread 1 (stuck) waits for a condition") != std::string::npos);
}

TEST(two_mutexes_in_two_orders_hang_for_some_seed_and_simulations_go_on_after_it) {
  int hung = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    struct Mutexes {
      Mutex left, right;
    };
    const auto mutexes = std::make_shared<Mutexes>();
    try {
      Simulation(seed).run([mutexes] {
        Thread other("other", [mutexes] {
          const std::lock_guard first(mutexes->left);
          const std::lock_guard second(mutexes->right);
        });
        {
          const std::lock_guard first(mutexes->right);
          const std::lock_guard second(mutexes->left);
        }
        other.join();
      });
    } catch (const SimulationHung& hang) {
      CHECK(std::string(hang.what()).find("waits for a mutex") != std::string::npos);
      ++hung;
    }
  }
  CHECK(hung > 0 && hung < 60);
}

TEST(threads_that_only_give_up_their_turn_see_time_pass_and_are_stopped_at_the_limit) {
  Simulation(1).run([] {
    const Deadline deadline = Deadline::after(0.01);
    while (!deadline.expired()) {
      sleep_for(Clock::duration{0});
    }
  });
  Simulation endless(1);
  endless.limit_turns(1000);
  CHECK_THROWS(endless.run([] {
    while (true) {
      sleep_for(Clock::duration{0});
    }
  }),
               SimulationHung);
}

TEST(what_a_thread_throws_ends_it_and_comes_out_of_run) {
  std::string seen;
  try {
    Simulation(1).run([] {
      Thread thrower("thrower", [] { throw std::runtime_error("thrown inside"); });
      thrower.join();
    });
  } catch (const std::runtime_error& error) {
    seen = error.what();
  }
  CHECK_EQUAL(seen, std::string("thrown inside"));
}

}  // namespace
