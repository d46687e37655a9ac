#include "group/stream_peer.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"

namespace distnet {

// ---- openings ----
void StreamPeer::begin_opening(ConstPieces out) {
  out_ = std::move(out);
  first_bytes_ = out_.bytes();
  sent_ = 0;
  opening_ = true;
  std::memmove(inbox_.data(), inbox_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
}

OpeningLengths StreamPeer::lengths() const {
  OpeningLengths lengths;
  std::memcpy(&lengths, inbox_.data(), sizeof lengths);
  if (lengths.header > inbox_.size() - sizeof lengths - kSmallBytes || lengths.small > kSmallBytes ||
      lengths.header % sizeof(std::uint64_t) != 0) {
    throw Error(ErrorCode::kProtocol, "it sent a header of " + std::to_string(lengths.header) + " bytes with " +
                                          std::to_string(lengths.small) + " behind it");
  }
  return lengths;
}

bool StreamPeer::has_opening() const {
  if (end_ < sizeof(OpeningLengths)) {
    return false;
  }
  const OpeningLengths all = lengths();
  return end_ >= sizeof all + all.header + all.small;
}

Opening StreamPeer::opening() const {
  const OpeningLengths all = lengths();
  const std::byte* const header = inbox_.data() + sizeof all;
  return {{header, all.header}, {header + all.header, all.small}};
}

void StreamPeer::release_opening() {
  const OpeningLengths all = lengths();
  begin_ = sizeof all + all.header + all.small;
}

// ---- phases ----
void StreamPeer::begin_phase(const Phase::Leg& leg) {
  out_ = leg.out;
  first_bytes_ = out_.bytes();
  sent_ = 0;
  opening_ = false;
  in_ = leg.in;
  combine_ = leg.combine;
  received_ = 0;
  if (combines() && ring_.empty()) {
    ring_.resize(kRingBytes);
  }
}

void StreamPeer::follow_with(const Phase::Leg& leg) {
  out_.append(leg.out);
  in_.append(leg.in);
}

MutableSpan StreamPeer::next_of_ring(std::uint64_t combined) {
  const std::uint64_t at = received_ % kRingBytes;
  return {ring_.data() + at, std::min(room(combined), kRingBytes - at)};
}

// Takes what came with the opening already.
std::uint64_t StreamPeer::take_ahead(std::uint64_t combined) {
  const MutableSpan to = is_combining() ? next_of_ring(combined) : in_.from(received_ - combine_);
  const std::size_t bytes = std::min(to.size(), end_ - begin_);
  std::memcpy(to.data(), inbox_.data() + begin_, bytes);
  begin_ += bytes;
  return bytes;
}

bool StreamPeer::send(std::uint64_t given) {
  if (!can_send(given)) {
    return false;
  }
  Buffers buffers;
  const std::uint64_t end = sendable(given);
  for (std::uint64_t at = sent_; at < end && !buffers.full();) {
    const ConstSpan next = out_.from(at, end - at);
    buffers.add(next.data(), next.size());
    at += next.size();
  }
  const std::size_t bytes = stream_.send_some(buffers);
  sent_ += bytes;
  return bytes != 0;
}

bool StreamPeer::receive(std::uint64_t combined) {
  if (!waits(combined)) {
    return false;
  }
  if (opening_) {
    const std::size_t bytes = stream_.receive_some(MutableSpan(inbox_).subspan(end_));
    end_ += bytes;
    return bytes != 0;
  }
  std::uint64_t bytes = 0;
  if (begin_ != end_) {
    bytes = take_ahead(combined);
  } else if (is_combining()) {
    bytes = stream_.receive_some(next_of_ring(combined));
  } else {
    Buffers buffers;
    for (std::uint64_t at = received_ - combine_; at < in_.bytes() && !buffers.full();) {
      const MutableSpan next = in_.from(at);
      buffers.add(next.data(), next.size());
      at += next.size();
    }
    bytes = stream_.receive_some(buffers);
  }
  received_ += bytes;
  return bytes != 0;
}

}  // namespace distnet
