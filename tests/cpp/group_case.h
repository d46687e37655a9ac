// Ranks of a group as threads of one process.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "check.h"
#include "group/coordinator_server.h"
#include "group/process_group.h"

namespace group_case {

using namespace distnet;

struct Case {
  GroupTransport transport = GroupTransport::kShm;
  const char* address = "shm://";
};
inline const std::vector<Case> kBoth = {{GroupTransport::kShm, "shm://"}, {GroupTransport::kTcp, "tcp://127.0.0.1:0"}};

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Fault {
  ErrorCode code = ErrorCode::kNone;
  std::string text;
};

// Returns what `call` throws; kNone where it throws nothing.
template <typename Call>
Fault fault_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

// Calls `run` for each of so many numbers, each on a thread of its own. Throws what the first of them threw.
inline void on_threads(std::uint32_t count, const std::function<void(std::uint32_t)>& run) {
  std::vector<std::exception_ptr> failures(count);
  std::vector<Thread> threads(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    threads[i] = Thread("a rank", [&, i] {
      try {
        run(i);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    });
  }
  for (Thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) {
      std::rethrow_exception(failure);
    }
  }
}

inline GroupOptions options_of(const std::string& address, std::uint32_t rank, std::uint32_t size,
                               GroupTransport transport = GroupTransport::kAuto, double timeout_s = 20.0) {
  GroupOptions options;
  options.address = address;
  options.rank = rank;
  options.size = size;
  options.transport = transport;
  options.timeout_s = timeout_s;
  return options;
}

// Forms a group of so many ranks, and calls `run` for each member, which then closes.
inline void in_group(const Case& a_case, std::uint32_t size, const std::function<void(ProcessGroup&)>& run) {
  CoordinatorServer coordinator(parse_address(a_case.address));
  on_threads(size, [&](std::uint32_t rank) {
    ProcessGroup group(options_of(coordinator.address(), rank, size, a_case.transport), {});
    run(group);
    group.close({});
  });
  coordinator.stop(0.0);
}

// A group whose members the test drives one by one.
struct Members {
  CoordinatorServer coordinator;
  std::vector<std::unique_ptr<ProcessGroup>> all;

  Members(const Case& a_case, std::uint32_t size) : coordinator(parse_address(a_case.address)), all(size) {
    on_threads(size, [&](std::uint32_t rank) {
      all[rank] =
          std::make_unique<ProcessGroup>(options_of(coordinator.address(), rank, size, a_case.transport), Interrupt{});
    });
  }
  ProcessGroup& operator[](std::size_t rank) { return *all[rank]; }
};

template <typename T>
ConstSpan bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <typename T>
MutableSpan bytes_of(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

inline ProcessGroup::Call allreduce(const std::vector<float>& in, std::vector<float>& out, bool at_once = true,
                                    const std::string& name = "") {
  ProcessGroup::Call call;
  call.operation.kind = OperationKind::kAllreduce;
  call.operation.dtype = DType::kFloat32;
  call.operation.shape = {static_cast<std::int64_t>(in.size())};
  call.operation.name = name;
  call.operands = {{bytes_of(in)}, {bytes_of(out)}};
  call.at_once = at_once;
  call.timeout_s = 20.0;
  return call;
}

inline ProcessGroup::Call call_of(OperationKind kind, double timeout_s = 20.0) {
  ProcessGroup::Call call;
  call.operation.kind = kind;
  call.at_once = true;
  call.timeout_s = timeout_s;
  return call;
}

// Waits for it, and throws what it ended with.
inline void settle(const std::shared_ptr<Work>& work) {
  CHECK(work->wait(Deadline::after(30.0), {}));
  static_cast<void>(work->result());
}

// Returns the sum over all ranks.
inline float sum_of(ProcessGroup& group, float value, const std::string& name = "") {
  const std::vector<float> in(10, value);
  std::vector<float> out(10);
  settle(group.begin(allreduce(in, out, true, name), {}));
  for (const float each : out) {
    CHECK_EQUAL(each, out[0]);
  }
  return out[0];
}

}  // namespace group_case
