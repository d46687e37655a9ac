// A collective operation as a value: what a rank asks for, the header by which the others know it, and whether the
// headers of all ranks fit together.
//
// Every rank sees the headers of all ranks before it uses anything of an operation. So all decide the same from them:
// what moves from whom to whom, or that they do not fit, which is the same error on all ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/reduction.h"

namespace distnet {

enum class OperationKind : std::uint8_t {
  kAllreduce = 1,
  kAllgather,
  kReduceScatter,
  kAlltoall,
  kBroadcast,
  kGather,
  kScatter,
  kBarrier,
  kJoin,
  kSend,     // between two ranks: not an operation of a lane
  kReceive,  // the same
};
inline constexpr OperationKind kLastOperationKind = OperationKind::kReceive;

inline constexpr std::uint32_t kMostRanks = 1024;  // of one group
inline constexpr std::size_t kMostDimensions = 8;
inline constexpr std::uint64_t kMostVectorBytes = std::uint64_t{1} << 44U;  // of one rank's array in one operation

// Rows are counted along the first dimension. `splits` has a number of rows for each rank, or is empty, which shares
// the rows out as evenly as possible, the first ranks getting one more.
//
// | kind           | shape                                 | splits                 | a rank's result           |
// |----------------|---------------------------------------|------------------------|---------------------------|
// | allreduce      | the same on all ranks                 |                        | of that shape             |
// | allgather      | rows may differ                       |                        | the rows of all ranks     |
// | reduce_scatter | the same on all ranks                 | the same on all ranks  | its rows of the reduction |
// | alltoall       | rows may differ                       | what it sends to each  | what each rank sends it   |
// | broadcast      | the same on all ranks                 |                        | the root's array (1)      |
// | gather         | rows may differ                       |                        | root: the rows of all     |
// | scatter        | root: all rows; else those it expects | root: what each gets   | its rows of the root's    |
// | barrier, join  | none                                  |                        | none                      |
//
// (1) A root that names no outputs has no result: it has the array.
//
// The array of a scalar, of shape (), counts as one row in allgather and gather. Of ranks that have joined there are no
// rows, what is meant for them goes nowhere, and a reduction is of the others.
struct Operation {
  OperationKind kind = OperationKind::kBarrier;
  DType dtype = DType::kFloat32;
  Reduction reduction = Reduction::kSum;  // of allreduce and reduce_scatter; the scales as well
  std::uint32_t root = 0;                 // of broadcast, gather and scatter; the peer of send and receive
  double prescale = 1.0;
  double postscale = 1.0;
  std::vector<std::int64_t> shape;
  std::vector<std::uint64_t> splits;
  // A rank that receives in broadcast or scatter sets it. It takes what the root brings: its dtype and shape say nothing.
  bool takes_any = false;
  std::string name;  // for messages; it is not sent
};

using ConstSpan = std::span<const std::byte>;
using MutableSpan = std::span<std::byte>;

// The inputs are one vector in pieces, and so are the outputs: an array for all ranks, one for each, or any other cut
// between elements. Each piece starts at a multiple of the item's size. Where outputs are empty, the result holds the
// memory. An output may be an input. Where a rank has no result (a gather, but not at its root), outputs are ignored;
// where it brings nothing (a broadcast or scatter, but not at its root), inputs are.
struct Operands {
  std::vector<ConstSpan> inputs;
  std::vector<MutableSpan> outputs;
};

// Memory of a result, which nobody cleared.
class OwnedBytes {
 public:
  OwnedBytes() = default;
  explicit OwnedBytes(std::size_t bytes) : data_(std::make_unique_for_overwrite<std::byte[]>(bytes)), bytes_(bytes) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return bytes_; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t bytes_ = 0;
};

struct Result {
  OwnedBytes output;                // all of the result, where the operands had no outputs
  bool has_output = false;          // whether this rank gets one: false in a barrier, a join, a gather elsewhere
  DType dtype = DType::kFloat32;    // of the output
  std::vector<std::int64_t> shape;  // of the output, whoever holds the memory
  std::vector<std::uint64_t> rows;  // of allgather, gather and alltoall: how many are from each rank
  // A join sets it once all ranks have joined. Until they have, one run of a join is one operation of the others, in
  // which this rank contributed nothing; run it again with the next number.
  bool all_joined = false;
  std::uint32_t last_rank = 0;  // of a join, once all have joined: who joined last
};

// What a rank says of its operation to all others.
struct Header {
  Operation operation;
  std::uint64_t number = 0;        // of the operation in its lane, the same on all ranks
  std::uint64_t joined_since = 0;  // of a join: the number at which this rank first did not contribute
  bool joined() const { return operation.kind == OperationKind::kJoin; }
};

const char* kind_name(OperationKind kind);
const char* dtype_name(DType dtype);
const char* reduction_name(Reduction reduction);

// Returns how a message names an operation: "allreduce (sum) of float32 (10,)".
std::string describe(const Operation& operation);

// Return what a shape holds. The shape has been checked, by check() or decode_header().
std::uint64_t elements_of(std::span<const std::int64_t> shape);
std::uint64_t rows_of(std::span<const std::int64_t> shape);       // 1 for ()
std::uint64_t row_elements(std::span<const std::int64_t> shape);  // 1 for ()

// Returns the rows of each of `size` ranks: the splits, or even shares where there are none.
std::vector<std::uint64_t> shares_of(const Operation& operation, std::uint32_t size);

// Checks what one rank knows by itself: call it before an operation gets its number. Throws Error(kConfig) for a shape,
// splits, a root or a combination that cannot be, for inputs that are not the shape's bytes, and for pieces that start
// between two elements.
void check(const Operation& operation, const Operands& operands, std::uint32_t rank, std::uint32_t size);

// Returns the header in at most header_bytes_bound(size) bytes, a multiple of 8: its fields in order, little-endian.
std::vector<std::byte> encode(const Header& header);
std::size_t header_bytes_bound(std::uint32_t size);

// Returns the header of `rank`, whose operation may be trusted as far as check() goes. Throws Error(kProtocol).
Header decode_header(std::span<const std::byte> bytes, std::uint32_t rank, std::uint32_t size);

// Returns nothing when the headers of all ranks fit together, else the text of one error for all ranks: who calls what,
// on both sides.
std::optional<std::string> mismatch(std::span<const Header> headers);

}  // namespace distnet
