// Stores against the bare SGD kernel: updates per second of 1 to 16 threads, as ratios to the bare kernel of the same
// round, so that whatever else the machine does meets all alike. All threads read one gradient, which leaves the guard
// as the only difference. Each round checks that no update was lost. Usage: bench_stores [floats] [rounds]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "optim/update_rule.h"
#include "store/store.h"

namespace {

using namespace distnet;
using Clock = std::chrono::steady_clock;

UpdateRuleSpec sgd() {
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  return spec;
}

struct Contender {
  std::string name;
  int threads;
  std::function<void(const std::vector<float>& gradient)> apply;
  std::function<float()> first_cell;
  std::vector<double> updates_per_second = {};
  std::vector<double> ratios = {};  // to the bare kernel in the same round
  std::uint64_t updates = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run_round(Contender& contender, const std::vector<float>& gradient, int updates_per_thread) {
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (int index = 0; index < contender.threads; ++index) {
    threads.emplace_back([&] {
      for (int i = 0; i < updates_per_thread; ++i) {
        contender.apply(gradient);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const int updates = updates_per_thread * contender.threads;
  contender.updates += static_cast<std::uint64_t>(updates);
  contender.updates_per_second.push_back(updates / seconds);
  if (contender.first_cell() != static_cast<float>(contender.updates)) {
    std::fprintf(stderr, "%s lost an update\n", contender.name.c_str());
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t floats = argc > 1 ? static_cast<std::size_t>(std::atoll(argv[1])) : 1'068'298;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 11;
  const std::vector<float> initial(floats, 0.0F);
  std::vector<float> bare = initial;
  const UpdateRule rule(sgd(), floats);

  std::vector<Contender> contenders;
  contenders.push_back({"bare kernel", 1,
                        [&](const std::vector<float>& gradient) {
                          const GradientView term = GradientView::dense(gradient.data(), gradient.size());
                          rule.apply({.in = bare.data(), .out = bare.data()}, {.terms = {&term, 1}}, 0, floats, 0);
                        },
                        [&] { return bare[0]; }});
  Memory memory;
  std::vector<std::unique_ptr<Store>> stores;
  for (const char* guard : {"mutex", "lock-free"}) {
    for (const int threads : {1, 2, 4, 8, 16}) {
      Store* const store = stores.emplace_back(make_store(guard, sgd(), initial, memory)).get();
      contenders.push_back({guard, threads, [store](const std::vector<float>& gradient) { store->apply(gradient); },
                            [store] { return store->pin().parameters()[0]; }});
    }
  }
  const std::vector<float> gradient(floats, -1.0F);
  const int updates = static_cast<int>(std::max<std::size_t>(16, 128'000'000 / floats));
  for (int round = 0; round <= rounds; ++round) {
    for (Contender& contender : contenders) {
      run_round(contender, gradient, updates / contender.threads);
      contender.ratios.push_back(contender.updates_per_second.back() / contenders.front().updates_per_second.back());
    }
    if (round > 0) {
      continue;
    }
    for (Contender& contender : contenders) {  // the first round touches memory for the first time
      contender.updates_per_second.clear();
      contender.ratios.clear();
    }
  }
  std::printf("%zu floats, %d rounds, medians\n", floats, rounds);
  for (const Contender& contender : contenders) {
    std::printf("%-12s %2d threads  %10.1f updates/s  %6.3f of the bare kernel\n", contender.name.c_str(),
                contender.threads, median(contender.updates_per_second), median(contender.ratios));
  }
}
