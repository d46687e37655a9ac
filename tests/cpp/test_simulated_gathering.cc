// Ranks that wait for each other, most of it one thread at a time in an order drawn from a seed. Whatever the order, nobody hangs,
// and a barrier parts what came before it from what comes after.
#include <array>
#include <atomic>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/simulation.h"
#include "base/threads.h"
#include "check.h"
#include "served_case.h"

// Fewer under the sanitizers: see CMakeLists.txt.
#ifndef DISTNET_SIMULATED_SEEDS
#define DISTNET_SIMULATED_SEEDS 300
#endif

namespace {

using namespace served;
using Call = Client::Call;

constexpr std::uint32_t kWorkers = 3;
constexpr std::uint64_t kFloats = 2048;  // a page for each shard
constexpr int kBarriers = 3;
constexpr double kForever = std::numeric_limits<double>::infinity();
constexpr std::array<const char*, 4> kSemantics = {"sync", "async-apply", "async-locked", "async-lockfree"};

// Waits for the others, for so long; returns how that ended.
ErrorCode gather(Client& client, GatherKind kind, double timeout_s = kForever) {
  return code_of([&] {
    client.arrive(kind, kForever, {});
    if (!client.wait_for_others(timeout_s, {})) {
      client.stop_waiting({});
    }
  });
}

// Runs a thread for each rank, and throws what any of them threw.
template <typename Run>
void run_ranks(const Run& run) {
  std::array<std::string, kWorkers> failures;
  std::vector<Thread> threads;
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    threads.emplace_back("a worker", [&, rank] {
      try {
        run(rank);
      } catch (const std::exception& error) {
        failures.at(rank) = error.what();
      }
    });
  }
  for (Thread& thread : threads) {
    thread.join();
  }
  for (const std::string& failure : failures) {
    if (!failure.empty()) {
      throw check::Failure(failure);
    }
  }
}

template <typename Job>
void in_many_orders(const Job& job) {
  for (std::uint64_t seed = 0; seed < DISTNET_SIMULATED_SEEDS; ++seed) {
    try {
      Simulation simulation(seed);
      simulation.run([&] { job(seed); });
    } catch (const std::exception& error) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + error.what());
    }
  }
}

// One life of a worker that does what it likes, in whatever order.
void live(const std::string& address, std::uint32_t rank) {
  Worker worker(address, rank, shm());
  for (std::uint64_t step = 0, steps = 1 + random_number() % 4; step < steps; ++step) {
    ErrorCode code = ErrorCode::kNone;
    switch (random_number() % 4) {
      case 0:
        code = gather(worker.client(), GatherKind::kBarrier, random_number() % 2 == 0 ? 0.001 : kForever);
        break;
      case 1:
        code = gather(worker.client(), GatherKind::kFinish);
        break;
      default:
        code = code_of([&] { worker.call(Call::kPush, 1.0F); });
    }
    CHECK(code == ErrorCode::kNone || code == ErrorCode::kRoundAborted || code == ErrorCode::kPeerClosed ||
          code == ErrorCode::kDeadlineExceeded || code == ErrorCode::kConfig);
  }
  if (random_number() % 2 == 0) {
    worker.client().close({});
  } else {
    worker.client().abandon();
  }
}

// Ranks that do what they like: no wait of theirs is for ever, and no round waits for its timeout.
void run_free_job(std::uint64_t seed) {
  const std::uint32_t shards = 1 + seed % 2;
  Served server({.semantics = kSemantics.at(seed / 2 % 2), .workers = kWorkers, .shards = shards, .floats = kFloats});
  const Clock::time_point begun = now();
  run_ranks([&](std::uint32_t rank) {
    for (std::uint64_t life = 0, lives = 1 + random_number() % 2; life < lives; ++life) {
      live(server.address(), rank);
    }
  });
  CHECK(now() - begun < std::chrono::seconds(60));
  Worker observer(server.address(), std::nullopt, shm());
  observer.call(Call::kPull);
  const float* const parameters = observer.client().flat();
  CHECK_EQUAL(parameters[0], parameters[kFloats - 1]);
  observer.client().close({});
  server.stop();
}

}  // namespace

TEST(a_barrier_parts_what_came_before_it_from_what_comes_after_and_finish_shows_all_the_same) {
  in_many_orders([](std::uint64_t seed) {
    const std::uint32_t shards = 1 + seed % 2;
    Served server({.semantics = kSemantics.at(seed % 4), .workers = kWorkers, .shards = shards, .floats = kFloats});
    std::array<std::atomic<std::uint32_t>, kBarriers> came{};
    std::array<std::vector<float>, kWorkers> seen;
    run_ranks([&](std::uint32_t rank) {
      Worker worker(server.address(), rank, shm());
      for (int barrier = 0; barrier < kBarriers; ++barrier) {
        worker.call(random_number() % 2 == 0 ? Call::kPush : Call::kPushPull, 1.0F);
        ++came.at(static_cast<std::size_t>(barrier));
        CHECK(gather(worker.client(), GatherKind::kBarrier) == ErrorCode::kNone);
        CHECK_EQUAL(came.at(static_cast<std::size_t>(barrier)).load(), kWorkers);
        const float each = kSemantics.at(seed % 4) == kSemantics[0] ? 1.0F : static_cast<float>(kWorkers);
        if (barrier == 0) {  // the others may have pushed again: at least what was pushed before it
          CHECK(worker.call(Call::kPull) <= -each);
        }
      }
      CHECK(gather(worker.client(), GatherKind::kFinish) == ErrorCode::kNone);
      worker.call(Call::kPullSettled);
      seen.at(rank).assign(worker.client().flat(), worker.client().flat() + kFloats);
      CHECK(code_of([&] { worker.call(Call::kPush, 1.0F); }) == ErrorCode::kConfig);
      worker.client().close({});
    });
    CHECK(seen[1] == seen[0] && seen[2] == seen[0]);
    server.stop();
  });
}

TEST(whatever_ranks_wait_at_nobody_hangs) { in_many_orders(run_free_job); }

// For a sanitizer of threads, which sees nothing where one runs at a time.
TEST(nor_with_real_threads) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    run_free_job(seed);
  }
}
