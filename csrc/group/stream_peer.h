// The stream to one rank, with what moves over it in the exchange in progress.
//
// Thread safety: one thread uses it; any thread may shut its stream down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/units.h"
#include "group/carrier.h"
#include "group/operation.h"
#include "transport/stream.h"

namespace distnet {

inline constexpr std::uint64_t kRingBytes = 256 * 1024;    // received of a rank, and not combined yet
inline constexpr std::uint64_t kCombineBytes = 64 * 1024;  // combined at once, unless less is left
static_assert(kRingBytes % kCombineBytes == 0 && kCombineBytes % kCacheLineBytes == 0);

class StreamPeer {
 public:
  StreamPeer(Stream stream, std::uint32_t size)
      : stream_(std::move(stream)), inbox_(sizeof(OpeningLengths) + header_bytes_bound(size) + kSmallBytes) {}

  // ---- an exchange begins ----
  void begin_opening(ConstPieces out);
  void begin_phase(const Phase::Leg& leg);
  // Lets a second phase follow, of which as much may be sent as the first has given of our slice.
  void follow_with(const Phase::Leg& leg);

  // ---- and goes on: both return whether bytes moved, and throw Error(kPeerClosed) ----
  bool send(std::uint64_t given);
  // Receives what is to be combined only into the ring, which is free up to `combined` and a ring's length further.
  bool receive(std::uint64_t combined);

  bool sends() const { return sent_ < out_.bytes(); }
  bool can_send(std::uint64_t given) const { return sent_ < sendable(given); }
  bool receives() const { return opening_ ? !has_opening() : received_ < expected(); }
  bool waits(std::uint64_t combined) const {
    return receives() && (opening_ || !is_combining() || room(combined) != 0);
  }
  bool combines() const { return combine_ != 0; }
  std::uint64_t received() const { return received_; }
  const std::byte* combinable(std::uint64_t at) const { return ring_.data() + at % kRingBytes; }

  Opening opening() const;
  void release_opening();
  Stream& stream() { return stream_; }
  const Stream& stream() const { return stream_; }

 private:
  OpeningLengths lengths() const;
  bool has_opening() const;
  bool is_combining() const { return received_ < combine_; }  // what comes next is combined
  std::uint64_t expected() const { return combine_ + in_.bytes(); }
  std::uint64_t room(std::uint64_t combined) const { return std::min(combine_, combined + kRingBytes) - received_; }
  std::uint64_t sendable(std::uint64_t given) const { return std::min(out_.bytes(), first_bytes_ + given); }
  MutableSpan next_of_ring(std::uint64_t combined);
  std::uint64_t take_ahead(std::uint64_t combined);

  Stream stream_;
  ConstPieces out_;
  std::uint64_t sent_ = 0;
  std::uint64_t first_bytes_ = 0;  // of out_, of the first phase: the second one follows what that gives
  bool opening_ = false;
  MutablePieces in_;
  std::uint64_t combine_ = 0;
  std::uint64_t received_ = 0;
  // What was received with an opening: the opening itself, and perhaps some of what follows it. What is not used yet
  // begins at begin_, which is 0 while an opening is received, so that the array in it is aligned.
  std::vector<std::byte> inbox_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::vector<std::byte> ring_;  // empty until something is combined
};

}  // namespace distnet
