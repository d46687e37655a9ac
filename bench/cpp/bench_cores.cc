// What it costs that two cores share what they write: a core writes memory that it alone uses, and memory that the
// other core has just read. It bounds every exchange through shared memory.
//
//   cmake -B build/bench -DDISTNET_BUILD_BENCH=ON && cmake --build build/bench --target bench_cores
//   build/bench/bench_cores
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sched.h>

namespace {

constexpr int kTurns = 60;

void run_on(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
}

__attribute__((noinline)) void write(std::vector<float>& memory, float value) {
  std::fill(memory.begin(), memory.end(), value);
}

__attribute__((noinline)) float read(const std::vector<float>& memory) {
  float lanes[64] = {};
  for (std::size_t i = 0; i + 64 <= memory.size(); i += 64) {
    for (std::size_t lane = 0; lane < 64; ++lane) {
      lanes[lane] += memory[i + lane];
    }
  }
  return lanes[0] + lanes[63];
}

// Bytes a second, in the median of what `work` took.
template <typename Work>
void timed(std::vector<double>& seconds, const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

double gigabytes_a_second(std::vector<double>& seconds, std::size_t bytes) {
  std::nth_element(seconds.begin(), seconds.begin() + kTurns / 2, seconds.end());
  return static_cast<double>(bytes) / seconds[kTurns / 2] / 1e9;
}

void measure(std::size_t bytes) {
  std::vector<float> memory(bytes / sizeof(float));
  std::vector<double> written_alone;
  std::vector<double> written_after_a_reader;
  std::vector<double> read_after_a_writer;
  std::atomic<int> turn{0};
  volatile float sink = 0.0F;
  std::thread reader([&] {
    run_on(1);
    for (int i = 0; i < kTurns; ++i) {
      while (turn.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      timed(read_after_a_writer, [&] { sink = read(memory); });
      turn.store(2 * i + 2, std::memory_order_release);
    }
  });
  run_on(0);
  for (int i = 0; i < kTurns; ++i) {
    while (turn.load(std::memory_order_acquire) != 2 * i) {
    }
    timed(written_after_a_reader, [&] { write(memory, static_cast<float>(i)); });
    timed(written_alone, [&] { write(memory, static_cast<float>(i) + 0.5F); });
    turn.store(2 * i + 1, std::memory_order_release);
  }
  reader.join();
  std::printf("%8zu KiB: written alone %6.1f GB/s, after the other core read it %6.1f; read after it wrote %6.1f\n",
              bytes / 1024, gigabytes_a_second(written_alone, bytes), gigabytes_a_second(written_after_a_reader, bytes),
              gigabytes_a_second(read_after_a_writer, bytes));
}

}  // namespace

int main() {
  for (const std::size_t kib : {64, 256, 1024, 4270, 8540, 17080}) {
    measure(kib * 1024);
  }
  return 0;
}
