// Lanes of some ranks, as threads: an allreduce and a broadcast over shared memory and over TCP on loopback, and beside
// those of two ranks the bare exchange of the same bytes, in which both send their vector to the other at once. Each
// round takes all in turn, so that whatever else the machine does meets all alike, and checks the answers. Beside the
// time on the clock stands the processor time of all ranks together, which a busy machine changes less. Each rank stays
// on a core of its own, as far as there are.
// Usage: bench_lanes [rounds] [ranks] [part of a row's name, as in "1.07 M floats, allreduce shm"]
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>

#include "base/region.h"
#include "base/waiting.h"
#include "group/lane.h"
#include "transport/listener.h"

namespace {

using namespace distnet;
using Seconds = std::chrono::duration<double>;

struct Load {
  const char* name;
  std::int64_t floats;
  int repeats;  // in one turn
};
constexpr Load kLoads[] = {{"10 floats", 10, 300}, {"1.07 M floats", 1068298, 10}, {"25.6 M floats", 25600000, 1}};

using Lanes = std::vector<std::unique_ptr<Lane>>;

struct Contender {
  std::string name;
  std::function<void(std::uint32_t rank, const std::vector<float>& from, std::vector<float>& to)> run;
  float expected;  // of every element that the last rank gets
  std::vector<double> milliseconds = {};
  std::vector<double> processor = {};  // milliseconds too, of all ranks
};

// The processor time of the calling thread.
double processor_seconds() {
  rusage used{};
  getrusage(RUSAGE_THREAD, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Ranks that happen to share a core wait for each other's turn, and pass data in its cache.
void stay_on_core(std::uint32_t core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
}

std::array<Stream, 2> tcp_pair() {
  Listener listener(parse_address("tcp://127.0.0.1:0"));
  std::array<Stream, 2> ends;
  std::thread connecting([&] { ends[0] = Stream::connect(listener.address(), Deadline::after(10.0), {}); });
  bool exhausted = false;
  while (!ends[1]) {
    pollfd entry{listener.poll_fd(), POLLIN, 0};
    poll_until(std::span(&entry, 1), Deadline::after(1.0));
    ends[1] = listener.accept(exhausted);
  }
  connecting.join();
  return ends;
}

void bare_exchange(Stream& stream, std::span<const std::byte> out, std::span<std::byte> in) {
  while (!out.empty() || !in.empty()) {
    const std::size_t sent = out.empty() ? 0 : stream.send_some(out);
    const std::size_t received = in.empty() ? 0 : stream.receive_some(in);
    out = out.subspan(sent);
    in = in.subspan(received);
    if (sent == 0 && received == 0) {
      const int events = (out.empty() ? 0 : POLLOUT) | (in.empty() ? 0 : POLLIN);
      pollfd entry{stream.poll_fd(), static_cast<short>(events), 0};
      poll_until(std::span(&entry, 1), Deadline::after(1.0));
    }
  }
}

// Counts a lane's operations by rank.
struct Counted {
  Lanes lanes;
  std::vector<std::uint64_t> numbers = std::vector<std::uint64_t>(lanes.size(), 0);
};

auto over(Counted& counted, OperationKind kind) {
  return [&counted, kind](std::uint32_t rank, const std::vector<float>& from, std::vector<float>& to) {
    Operation operation;
    operation.kind = kind;
    operation.shape = {static_cast<std::int64_t>(from.size())};
    counted.lanes[rank]->run(counted.numbers[rank]++, operation,
                             {{std::as_bytes(std::span(from))}, {std::as_writable_bytes(std::span(to))}},
                             Deadline::after(60.0), {});
  };
}

Lanes shm_lanes(std::uint32_t ranks, std::byte* memory) {
  Lanes lanes;
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    lanes.push_back(make_shm_lane(rank, ranks, memory));
  }
  return lanes;
}

Lanes tcp_lanes(std::uint32_t ranks) {
  std::vector<std::vector<Stream>> peers(ranks);
  for (std::vector<Stream>& of_one : peers) {
    of_one.resize(ranks);
  }
  for (std::uint32_t high = 1; high < ranks; ++high) {
    for (std::uint32_t low = 0; low < high; ++low) {
      std::array<Stream, 2> ends = tcp_pair();
      peers[high][low] = std::move(ends[0]);
      peers[low][high] = std::move(ends[1]);
    }
  }
  Lanes lanes;
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    lanes.push_back(make_stream_lane(rank, std::move(peers[rank])));
  }
  return lanes;
}

// Runs all contenders in turn; returns false when one gave a wrong answer.
bool measure(std::vector<Contender>& contenders, const Load& load, int rounds, std::uint32_t ranks) {
  std::barrier<> start(ranks);
  std::atomic<bool> right = true;
  std::atomic<double> processor = 0.0;
  const auto rank_of = [&](std::uint32_t rank) {
    stay_on_core(rank % std::max(std::thread::hardware_concurrency(), 1U));
    const std::vector<float> from(static_cast<std::size_t>(load.floats), static_cast<float>(rank + 1));
    std::vector<float> to(from.size());
    for (int turn = 0; turn < rounds * static_cast<int>(contenders.size()); ++turn) {
      Contender& contender = contenders[static_cast<std::size_t>(turn) % contenders.size()];
      std::fill(to.begin(), to.end(), 0.0F);
      start.arrive_and_wait();
      const double used = processor_seconds();
      const auto begin = std::chrono::steady_clock::now();
      for (int repeat = 0; repeat < load.repeats; ++repeat) {
        contender.run(rank, from, to);
      }
      const Seconds taken = std::chrono::steady_clock::now() - begin;
      processor += processor_seconds() - used;
      if (rank + 1 == ranks && !std::all_of(to.begin(), to.end(), [&](float x) { return x == contender.expected; })) {
        right = false;
      }
      start.arrive_and_wait();
      if (rank == 0) {
        contender.milliseconds.push_back(taken.count() * 1e3 / load.repeats);
        contender.processor.push_back(processor.exchange(0.0) * 1e3 / load.repeats);
      }
    }
  };
  std::vector<std::thread> others;
  for (std::uint32_t rank = 1; rank < ranks; ++rank) {
    others.emplace_back([&, rank] { rank_of(rank); });
  }
  rank_of(0);
  for (std::thread& other : others) {
    other.join();
  }
  return right;
}

void print(const Load& load, const std::vector<Contender>& contenders) {
  for (const Contender& contender : contenders) {
    const auto [least, most] = std::minmax_element(contender.milliseconds.begin(), contender.milliseconds.end());
    std::printf(
        "%-14s %-14s median %8.4f ms   least %8.4f   most %8.4f   of processors %8.4f   least %8.4f   to the last %5.2f\n",
        load.name, contender.name.c_str(), median(contender.milliseconds), *least, *most, median(contender.processor),
        std::ranges::min(contender.processor), median(contender.milliseconds) / median(contenders.back().milliseconds));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  const auto ranks = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 2);
  const std::string only = argc > 3 ? argv[3] : "";
  const Region region = Region::shared_memory(shm_lane_bytes(ranks), true);
  Counted memory{shm_lanes(ranks, region.data())};
  Counted streams{tcp_lanes(ranks)};
  std::array<Stream, 2> bare = tcp_pair();
  for (Stream& end : bare) {
    end.prefer_within_host(Tuning{}.congestion_control);
  }
  const auto exchange = [&](std::uint32_t rank, const std::vector<float>& from, std::vector<float>& to) {
    bare_exchange(bare[rank], std::as_bytes(std::span(from)), std::as_writable_bytes(std::span(to)));
  };
  bool right = true;
  for (const Load& load : kLoads) {
    const auto sum = static_cast<float>(ranks * (ranks + 1) / 2);
    std::vector<Contender> contenders = {{"allreduce shm", over(memory, OperationKind::kAllreduce), sum},
                                         {"allreduce tcp", over(streams, OperationKind::kAllreduce), sum},
                                         {"broadcast shm", over(memory, OperationKind::kBroadcast), 1.0F},
                                         {"broadcast tcp", over(streams, OperationKind::kBroadcast), 1.0F}};
    if (ranks == 2) {
      contenders.push_back({"bare exchange", exchange, 1.0F});
    }
    std::erase_if(contenders, [&](const Contender& contender) {
      return (load.name + (", " + contender.name)).find(only) == std::string::npos;
    });
    if (!contenders.empty()) {
      right = measure(contenders, load, rounds, ranks) && right;
      print(load, contenders);
    }
  }
  std::puts(right ? "all answers were right" : "AN ANSWER WAS WRONG");
  return right ? 0 : 1;
}
