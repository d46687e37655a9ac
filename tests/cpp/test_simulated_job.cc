// A whole synchronous job, one thread at a time in an order drawn from a seed: two shards, three workers, rounds, deaths
// abstentions, and newcomers that take over. Whatever the order, nobody hangs and the shards stay in step.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/simulation.h"
#include "base/threads.h"
#include "check.h"
#include "served_case.h"

namespace {

using namespace served;
using Call = Client::Call;

constexpr std::uint32_t kWorkers = 3;
constexpr std::uint64_t kFloats = 2048;  // a page for each shard

// What a simulated job did, so that a test can see that it did something.
struct Tally {
  std::atomic<int> steps{0};
  std::atomic<int> refused{0};
  std::atomic<int> lives{0};
  std::atomic<int> snapshots{0};
};

// One life of a worker: some steps, then it closes in order or dies, perhaps with a push on its way.
void live(const std::string& address, std::uint32_t rank, Tally& tally) {
  Worker worker(address, rank, shm());
  ++tally.lives;
  const std::uint64_t steps = 1 + random_number() % 3;
  for (std::uint64_t step = 0; step < steps; ++step) {
    if (random_number() % 4 == 0) {
      sleep_for(milliseconds{990 + random_number() % 20});  // about when the server lets its thread go
    }
    constexpr Call kCalls[] = {Call::kPush, Call::kPushPull, Call::kPush, Call::kAbstain, Call::kAbstainPull};
    const Call call = kCalls[random_number() % std::size(kCalls)];
    PushSettings settings;
    if (random_number() % 2 == 0) {
      settings.learning_rate = 1.0;  // as the server's: rounds whose pushes differ are said, and are no other rounds
    }
    const ErrorCode code = code_of([&] { worker.call(call, 1.0F, settings); });
    CHECK(code == ErrorCode::kNone || code == ErrorCode::kRoundAborted || code == ErrorCode::kFenced);
    ++(code == ErrorCode::kNone ? tally.steps : tally.refused);
  }
  if (random_number() % 2 == 0) {
    worker.client().close({});
    return;
  }
  if (random_number() % 2 == 0) {
    worker.begin(Call::kPush, 1.0F);
  }
  worker.client().abandon();
}

// Takes snapshots while the workers push: each is of one round of both shards, and of no push of an open round.
void take_snapshots(const std::string& address, Tally& tally) {
  Client client({address, std::nullopt, 30.0, &shm(), {}, 0, kOwner}, {}, {}, {});
  for (int taken = 0; taken < 2; ++taken) {
    const SnapshotShape shape = client.begin_snapshot(std::nullopt, 30.0, {});
    std::vector<float> parameters(kFloats);
    const std::vector<float*> targets{parameters.data()};
    client.read_snapshot(std::span(&targets, 1), {});
    CHECK_EQUAL(shape.versions[0], shape.versions[1]);
    const float expected = -static_cast<float>(shape.versions[0]);
    CHECK(std::ranges::all_of(parameters, [&](float value) { return value == expected; }));
    ++tally.snapshots;
  }
  client.close({});
}

// Returns the digest of the order in which everything happened.
std::uint64_t run_job(std::uint64_t seed, Tally& tally) {
  Simulation simulation(seed);
  simulation.run([&] {
    Served server({.semantics = "sync", .workers = kWorkers, .shards = 2, .floats = kFloats});
    const Clock::time_point begun = now();
    std::vector<Thread> workers;
    for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
      workers.emplace_back("a worker", [&, rank] {
        const std::uint64_t lives = 1 + random_number() % 2;
        for (std::uint64_t life = 0; life < lives; ++life) {
          live(server.address(), rank, tally);
        }
      });
    }
    workers.emplace_back("takes snapshots", [&] { take_snapshots(server.address(), tally); });
    for (Thread& worker : workers) {
      worker.join();
    }
    CHECK(now() - begun < std::chrono::seconds(60));  // no round waited for a deadline
    Worker observer(server.address(), std::nullopt, shm());
    observer.call(Call::kPull);
    const float* const parameters = observer.client().flat();
    const std::vector<std::uint64_t> versions = observer.client().versions();
    CHECK_EQUAL(versions[0], versions[1]);
    CHECK_EQUAL(parameters[0], parameters[kFloats - 1]);
    CHECK_EQUAL(parameters[0], -static_cast<float>(versions[0]));  // each update is the mean of ones, and joined once
    observer.client().close({});
    server.stop();
  });
  return simulation.digest();
}

// Pushes until the rounds have ended, and once more.
void push_until_refused_twice(Worker& worker) {
  for (int refused = 0; refused < 2;) {
    try {
      worker.call(random_number() % 2 == 0 ? Call::kPush : Call::kPushPull, 1.0F);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kRoundAborted);
      CHECK_EQUAL(error.what(), std::string("the rounds have ended: rank 1 was lost, and on_loss is 'abort'"));
      ++refused;
    }
  }
}

// Rank 1 is lost at any moment of the others' rounds.
void lose_a_rank(std::uint64_t seed) {
  Served server({.semantics = "sync",
                 .workers = kWorkers,
                 .shards = static_cast<std::uint32_t>(1 + seed % 3),
                 .floats = 2 * kFloats,
                 .on_loss = OnLoss::kAbort});
  std::vector<Thread> workers;
  for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
    workers.emplace_back("a worker", [&, rank] {
      Worker worker(server.address(), rank, shm());
      worker.call(Call::kPush, 1.0F);  // all are here
      if (rank != 1) {
        push_until_refused_twice(worker);
        return;
      }
      if (random_number() % 2 == 0) {
        worker.call(Call::kPush, 1.0F);
      }
      if (random_number() % 2 == 0) {
        worker.begin(Call::kPush, 1.0F);
      }
      worker.client().abandon();
    });
  }
  for (Thread& worker : workers) {
    worker.join();
  }
  server.stop();
}

// Fewer under the sanitizers: see CMakeLists.txt.
#ifndef DISTNET_SIMULATED_SEEDS
#define DISTNET_SIMULATED_SEEDS 1000
#endif

}  // namespace

TEST(in_whatever_order_nobody_hangs_and_the_shards_stay_in_step) {
  Tally tally;
  for (std::uint64_t seed = 0; seed < DISTNET_SIMULATED_SEEDS; ++seed) {
    try {
      run_job(seed, tally);
    } catch (const std::exception& error) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + error.what());
    }
  }
  CHECK(tally.steps > DISTNET_SIMULATED_SEEDS && tally.lives >= 3 * DISTNET_SIMULATED_SEEDS);
  CHECK_EQUAL(tally.snapshots.load(), 2 * DISTNET_SIMULATED_SEEDS);
}

TEST(a_lost_rank_that_ends_the_rounds_is_named_to_all_others_in_whatever_order) {
  for (std::uint64_t seed = 0; seed < DISTNET_SIMULATED_SEEDS; ++seed) {
    try {
      Simulation simulation(seed);
      simulation.run([&] { lose_a_rank(seed); });
    } catch (const std::exception& error) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + error.what());
    }
  }
}

TEST(a_seed_gives_the_same_order_again) {
  Tally tally;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    CHECK_EQUAL(run_job(seed, tally), run_job(seed, tally));
  }
}
