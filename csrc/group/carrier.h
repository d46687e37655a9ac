// What carries the bytes of operations between the ranks of a group: one interface over shared memory and streams, on
// which the algorithms stand.
//
// An operation begins with open(): every rank hands its header to every other, with its array behind it where that is
// small. A larger one moves afterwards, in phases whose sizes all ranks know from the headers.
//
// Thread safety: as a Lane's.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/time.h"
#include "base/waiting.h"
#include "group/pieces.h"

namespace distnet {

// An array of at most this many bytes follows its rank's header at once, to everybody.
inline constexpr std::uint64_t kSmallBytes = 32 * 1024;

// How long one operation may wait, and for what, for the text of its error.
struct Patience {
  const Deadline& deadline;
  const Interrupt& interrupt;
  const std::string& operation;
};

// Returns the error of an operation whose deadline passed while it waited for these ranks.
Error late(const Patience& patience, const std::vector<std::uint32_t>& awaited);

// The first error that broke a lane.
class Breakage {
 public:
  // Returns whether this error is the first.
  bool set(const Error& why);
  bool is_set() const { return set_.load(std::memory_order_seq_cst); }  // pairs with set()
  void check() const;

 private:
  mutable Mutex mutex_;
  std::optional<Error> why_;
  std::atomic<bool> set_{false};
};

// What precedes a header on its way.
struct OpeningLengths {
  std::uint32_t header = 0;  // in bytes
  std::uint32_t small = 0;   // the same of the array behind it
};

// What a rank said first of an operation. Both lie in the carrier's memory until its release(). The header is a copy
// that no peer can change. The array may change while it is read, where a peer breaks the rules.
struct Opening {
  std::span<const std::byte> header;
  std::span<const std::byte> small;
};

// Takes `bytes` as they come, whole elements that begin at `begin`. `arrived` has a pointer for each rank that sends
// some, and null for the others.
using Combine =
    std::function<void(std::uint64_t begin, std::uint64_t bytes, std::span<const std::byte* const> arrived)>;

// One exchange between all ranks.
struct Phase {
  struct Leg {
    ConstPieces out;            // what this rank hands to that one
    MutablePieces in;           // where to put what that one hands to this; empty when it is combined
    std::uint64_t combine = 0;  // the bytes of that one that are combined: the same for all ranks that send any
  };

  explicit Phase(std::uint32_t size) : legs(size) {}

  std::vector<Leg> legs;              // by rank
  bool shared = false;                // every rank hands the same bytes to all it hands any
  std::uint64_t longest = 0;          // the most bytes that any rank hands to any other: known to all ranks
  const Combine* combiner = nullptr;  // does not write over what this rank hands out
};

class Carrier {
 public:
  Carrier() = default;
  Carrier(const Carrier&) = delete;
  Carrier& operator=(const Carrier&) = delete;
  virtual ~Carrier() = default;

  // Hands our header, and `small` behind it, to all others, and returns theirs by rank; our own place is empty. `small`
  // is at most kSmallBytes.
  virtual std::span<const Opening> open(std::span<const std::byte> header, const ConstPieces& small,
                                        const Patience& patience) = 0;
  // Ends the use of what open() returned. Comes before the phases.
  virtual void release() = 0;
  // Returns when this rank has handed out and got all that is its own. All ranks call it with the same `longest` and
  // `shared`, whether or not they have any part in it.
  virtual void move(const Phase& phase, const Patience& patience) = 0;

  // Moves a phase that gives this rank a slice, combined or handed to it by one rank, and then one in which it hands
  // that slice to others. A carrier may let the second begin with what is there already: from the front of the slice on.
  virtual void move_both(const Phase& giving, const Phase& sharing, const Patience& patience) {
    move(giving, patience);
    move(sharing, patience);
  }
  // Whether bytes that a rank hands to many cost it no more than those for one.
  virtual bool reaches_all_at_once() const = 0;

  virtual void abort(const Error& why) = 0;                // any thread
  virtual std::vector<std::uint32_t> awaited() const = 0;  // any thread
  virtual const Breakage& breakage() const = 0;
};

}  // namespace distnet
