// A lane runs the operations of a group one after another, in the same order on all ranks.
//
// Both transports run the same algorithms (group/algorithms.h) and give the same bits, on all ranks and every time.
//
// Thread safety: one thread at a time calls run(); any thread may call abort() and awaited() at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/time.h"
#include "base/tuning.h"
#include "group/operation.h"
#include "transport/stream.h"

namespace distnet {

class Lane {
 public:
  Lane() = default;
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  virtual ~Lane() = default;

  // Runs one operation with all other ranks. `number` is the same on all ranks, and grows with each operation.
  //
  // Throws, and the lane goes on: Error(kConfig), on this rank alone, when check() refuses the operation (nothing has
  // been said to the others, and the number is still free) or when the outputs are not as long as the result (the
  // number is used up); Error(kCollectiveMismatch), on all ranks, when the headers do not fit.
  //
  // Throws, and the lane is broken, so that every later run() throws the same: Error(kDeadlineExceeded) that names the
  // ranks it waited for, Error(kPeerClosed) that names the rank, Error(kProtocol), Error(kTransport) where there is no
  // memory for the result, what `interrupt` throws, and the error of abort(). Tell the other ranks then: they wait for this one.
  virtual Result run(std::uint64_t number, const Operation& operation, const Operands& operands,
                     const Deadline& deadline, const Interrupt& interrupt) = 0;

  // Ends a run() in progress, and every later one, with this error. The first error stays.
  virtual void abort(const Error& why) = 0;

  // Returns the ranks that a run() in progress waits for; empty when there is none.
  virtual std::vector<std::uint32_t> awaited() const = 0;
};

// The memory of one lane of a group within a host, in whole pages. One region holds it for all ranks; it begins zeroed.
std::size_t shm_lane_bytes(std::uint32_t size);

// `memory` starts a page, is shm_lane_bytes(size) long, and outlives the lane. What peers write there is not trusted.
std::unique_ptr<Lane> make_shm_lane(std::uint32_t rank, std::uint32_t size, std::byte* memory,
                                    const Tuning& tuning = {});

// `peers` has a connected stream to each rank, and an empty one at `rank`.
std::unique_ptr<Lane> make_stream_lane(std::uint32_t rank, std::vector<Stream> peers, const Tuning& tuning = {});

}  // namespace distnet
