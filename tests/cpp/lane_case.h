// Ranks of one group as threads of the test's process, over either transport.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include "base/region.h"
#include "check.h"
#include "group/lane.h"
#include "random_floats.h"

namespace lanes {

using namespace distnet;

struct Group {
  std::vector<Region> regions;  // the shared memory, as each rank has mapped it
  std::vector<std::unique_ptr<Lane>> lanes;
};

inline Group shm_group(std::uint32_t size) {
  Group group;
  group.regions.push_back(Region::shared_memory(shm_lane_bytes(size), true));
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    if (rank != 0) {  // at another address
      group.regions.push_back(Region::map(::dup(group.regions.front().fd()), shm_lane_bytes(size), true));
    }
    group.lanes.push_back(make_shm_lane(rank, size, group.regions.back().data()));
  }
  return group;
}

// Streams between all ranks: streams[i][j] is rank i's to rank j.
inline std::vector<std::vector<Stream>> connected(std::uint32_t size, int buffer_bytes = 0) {
  std::vector<std::vector<Stream>> streams(size);
  for (auto& of_rank : streams) {
    of_rank.resize(size);
  }
  for (std::uint32_t i = 0; i < size; ++i) {
    for (std::uint32_t j = i + 1; j < size; ++j) {
      int ends[2] = {-1, -1};
      CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
      for (const int end : ends) {
        if (buffer_bytes != 0) {
          CHECK(::setsockopt(end, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes) == 0);
        }
      }
      streams[i][j] = Stream(FileDescriptor(ends[0]));
      streams[j][i] = Stream(FileDescriptor(ends[1]));
    }
  }
  return streams;
}

inline Group stream_group(std::uint32_t size, int buffer_bytes = 0) {
  Group group;
  auto streams = connected(size, buffer_bytes);
  for (std::uint32_t rank = 0; rank < size; ++rank) {
    group.lanes.push_back(make_stream_lane(rank, std::move(streams[rank])));
  }
  return group;
}

// What a rank threw: an empty text when nothing.
struct Outcome {
  ErrorCode code = ErrorCode::kNone;
  std::string text;
};

// Calls `run(rank, lane)` on a thread for each rank, and returns what each threw.
inline std::vector<Outcome> attempt(Group& group, const std::function<void(std::uint32_t, Lane&)>& run) {
  std::vector<Outcome> outcomes(group.lanes.size());
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < group.lanes.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        run(rank, *group.lanes[rank]);
      } catch (const Error& error) {
        outcomes[rank] = {error.code(), error.what()};
      } catch (const std::exception& error) {
        outcomes[rank] = {ErrorCode::kManifestMismatch, error.what()};  // which no lane throws
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return outcomes;
}

inline void run_all(Group& group, const std::function<void(std::uint32_t, Lane&)>& run) {
  for (const Outcome& outcome : attempt(group, run)) {
    CHECK_EQUAL(outcome.text, "");
  }
}

inline const Interrupt kNoInterrupt;
inline constexpr double kTestSeconds = 60.0;  // far more than any test needs: a deadlock ends with it

inline Result call(Lane& lane, std::uint64_t number, const Operation& operation, const Operands& operands,
                   double seconds = kTestSeconds) {
  return lane.run(number, operation, operands, Deadline::after(seconds), kNoInterrupt);
}

template <typename T>
ConstSpan bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <typename T>
MutableSpan writable(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}
inline std::vector<std::byte> content(const Result& result) {
  return {result.output.data(), result.output.data() + result.output.size()};
}
template <typename T>
std::vector<std::byte> content(const std::vector<T>& values) {
  const ConstSpan bytes = bytes_of(values);
  return {bytes.begin(), bytes.end()};
}

inline Operation allreduce(std::int64_t count, Reduction reduction = Reduction::kSum, DType dtype = DType::kFloat32) {
  Operation operation;
  operation.kind = OperationKind::kAllreduce;
  operation.dtype = dtype;
  operation.reduction = reduction;
  operation.shape = {count};
  return operation;
}

// The array of a rank: any bytes that are the same each time, with a NaN or infinity here and there.
inline std::vector<std::byte> array_of(std::uint32_t rank, std::size_t bytes, std::uint32_t seed = 0) {
  std::vector<float> floats = random_floats(bytes / sizeof(float) + 1, seed * 100 + rank + 1);
  for (std::size_t i = rank; i < floats.size(); i += 97) {
    floats[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
  }
  std::vector<std::byte> array(bytes);
  std::copy_n(reinterpret_cast<const std::byte*>(floats.data()), bytes, array.begin());
  return array;
}

inline std::vector<std::byte> reduced(const Combination& combination,
                                      const std::vector<std::vector<std::byte>>& arrays) {
  std::vector<const std::byte*> inputs;
  for (const auto& array : arrays) {
    inputs.push_back(array.data());
  }
  std::vector<std::byte> output(arrays.front().size());
  reduce(combination, inputs, output.data(), output.size() / item_bytes(combination.dtype));
  return output;
}

}  // namespace lanes
