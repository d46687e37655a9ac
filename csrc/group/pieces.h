// One vector of bytes that lies in several pieces of memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/error.h"
#include "group/operation.h"

namespace distnet {

// The memory belongs to somebody else, and outlives this.
template <typename Byte>
class Pieces {
 public:
  using Span = std::span<Byte>;

  Pieces() = default;
  explicit Pieces(Span all) { add(all); }
  explicit Pieces(const std::vector<Span>& pieces) {
    for (const Span piece : pieces) {
      add(piece);
    }
  }

  void append(const Pieces& others) {
    for (const Span piece : others.spans_) {
      add(piece);
    }
  }

  std::uint64_t bytes() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }
  const std::vector<Span>& spans() const { return spans_; }

  // Returns the memory from `begin` to the end of its piece. There is at least one byte.
  Span from(std::uint64_t begin) const {
    DISTNET_INVARIANT(begin < bytes_);
    const auto next = std::upper_bound(begins_.begin(), begins_.end(), begin);
    const auto index = static_cast<std::size_t>(next - begins_.begin()) - 1;
    return spans_[index].subspan(begin - begins_[index]);
  }
  // The same, for at most `most` bytes.
  Span from(std::uint64_t begin, std::uint64_t most) const {
    const Span rest = from(begin);
    return rest.first(std::min<std::uint64_t>(rest.size(), most));
  }

  Pieces range(std::uint64_t begin, std::uint64_t bytes) const {
    DISTNET_INVARIANT(begin <= bytes_ && bytes <= bytes_ - begin);
    Pieces some;
    while (bytes != 0) {
      const Span next = from(begin, bytes);
      some.add(next);
      begin += next.size();
      bytes -= next.size();
    }
    return some;
  }

 private:
  void add(Span piece) {
    if (!piece.empty()) {
      begins_.push_back(bytes_);
      spans_.push_back(piece);
      bytes_ += piece.size();
    }
  }

  std::vector<Span> spans_;  // none is empty
  std::vector<std::uint64_t> begins_;
  std::uint64_t bytes_ = 0;
};

using ConstPieces = Pieces<const std::byte>;
using MutablePieces = Pieces<std::byte>;

inline ConstPieces read_only(const MutablePieces& pieces) {
  return ConstPieces(std::vector<ConstSpan>(pieces.spans().begin(), pieces.spans().end()));
}

// Copies `bytes` of a vector, from `begin` on, to memory in one piece, and the other way round.
inline void copy_out(std::byte* to, const ConstPieces& from, std::uint64_t begin, std::uint64_t bytes) {
  for (std::uint64_t done = 0; done < bytes;) {
    const ConstSpan next = from.from(begin + done, bytes - done);
    std::memcpy(to + done, next.data(), next.size());
    done += next.size();
  }
}

inline void copy_in(const MutablePieces& to, std::uint64_t begin, const std::byte* from, std::uint64_t bytes) {
  for (std::uint64_t done = 0; done < bytes;) {
    const MutableSpan next = to.from(begin + done, bytes - done);
    if (next.data() != from + done) {
      std::memcpy(next.data(), from + done, next.size());
    }
    done += next.size();
  }
}

inline void copy_pieces(const MutablePieces& to, const ConstPieces& from) {
  std::uint64_t begin = 0;
  for (const ConstSpan piece : from.spans()) {
    copy_in(to, begin, piece.data(), piece.size());
    begin += piece.size();
  }
}

// Whether both are the same memory, cut in any way; and whether they share any of it.
bool is_same_memory(const ConstPieces& one, const MutablePieces& other);
bool overlap(const ConstPieces& one, const MutablePieces& other);

}  // namespace distnet
