// The lane of ranks that are connected by streams, each to each.
//
// One thread drives all streams at once: it sends what a stream takes and receives what has come, in both directions of
// all of them, and sleeps only when none can move.
//
// Invariants
// - What travels from a rank to another is a sequence that both compute alike: for each operation lengths, header and
//   small array, then the bytes of its phases. Nothing else says where one of them ends.
// - All that a rank sends in an opening or a phase is there when it begins, so no rank waits for another before it can
//   send. Where a phase follows one that gives a rank its slice, it waits for what comes before it alone. Nothing
//   deadlocks, however little the sockets hold.
// - Lengths and header are checked before they are used. At most an opening is received before that; all else goes
//   where the checked headers say.
// - abort() sets the breakage before it shuts the streams down. So a thread that sees a stream end finds the reason.
#include <algorithm>
#include <optional>
#include <utility>

#include "base/threads.h"
#include "base/units.h"
#include "base/waiting.h"
#include "group/carrier_lane.h"
#include "group/stream_peer.h"
#include "transport/spin.h"

namespace distnet {
namespace {

constexpr int kUnderWayBytes = 512 * 1024;        // in a stream within the host
constexpr std::uint64_t kGiveBytes = 128 * 1024;  // of a slice, handed on at once, unless less is left

class StreamCarrier final : public Carrier {
 public:
  StreamCarrier(std::uint32_t rank, std::vector<Stream> streams, const Tuning& tuning);

  std::span<const Opening> open(std::span<const std::byte> header, const ConstPieces& small,
                                const Patience& patience) override;
  void release() override;
  void move(const Phase& phase, const Patience& patience) override;
  void move_both(const Phase& giving, const Phase& sharing, const Patience& patience) override;
  bool reaches_all_at_once() const override { return false; }
  void abort(const Error& why) override;
  std::vector<std::uint32_t> awaited() const override;
  const Breakage& breakage() const override { return breakage_; }

 private:
  template <typename Use>
  void for_each_peer(const Use& use);
  void begin(const Phase& phase);
  void exchange(const Phase* phase, const Patience& patience);
  bool progress(const Phase* phase);
  bool combine_some(const Phase& phase);
  bool is_done();
  void sleep(const Patience& patience);

  const std::uint32_t rank_;
  const Tuning tuning_;
  std::vector<StreamPeer> peers_;  // by rank; nobody uses our own
  std::vector<Opening> openings_;
  std::uint64_t given() const;
  std::optional<std::uint32_t> giver_;  // the rank whose bytes we hand on; none where that is what we combined
  std::uint64_t combined_ = 0;          // of the phase in progress
  std::uint64_t to_combine_ = 0;
  SpinHabit habit_;
  std::vector<pollfd> entries_;
  std::vector<std::atomic<bool>> awaited_;  // by rank, while this one sleeps
  Breakage breakage_;
};

StreamCarrier::StreamCarrier(std::uint32_t rank, std::vector<Stream> streams, const Tuning& tuning)
    : rank_(rank), tuning_(tuning), openings_(streams.size()), awaited_(streams.size()) {
  const auto size = static_cast<std::uint32_t>(streams.size());
  for (Stream& stream : streams) {
    if (stream) {
      stream.prefer_within_host(tuning.congestion_control);
      stream.keep_short_within_host(kUnderWayBytes);
    }
    peers_.emplace_back(std::move(stream), size);
  }
}

// Names the rank in what goes wrong with its stream. After an abort that is the reason for which it was shut down.
template <typename Use>
void StreamCarrier::for_each_peer(const Use& use) {
  for (std::uint32_t rank = 0; rank < peers_.size(); ++rank) {
    if (rank == rank_) {
      continue;
    }
    try {
      use(rank, peers_[rank]);
    } catch (const Error& error) {
      breakage_.check();
      throw Error(error.code(), "rank " + std::to_string(rank) + ": " + error.what());
    }
  }
}

std::span<const Opening> StreamCarrier::open(std::span<const std::byte> header, const ConstPieces& small,
                                             const Patience& patience) {
  const OpeningLengths lengths{static_cast<std::uint32_t>(header.size()), static_cast<std::uint32_t>(small.bytes())};
  std::vector<ConstSpan> out = {std::as_bytes(std::span(&lengths, 1)), header};
  out.insert(out.end(), small.spans().begin(), small.spans().end());
  const ConstPieces pieces(out);
  for_each_peer([&](std::uint32_t, StreamPeer& peer) { peer.begin_opening(pieces); });
  to_combine_ = combined_ = 0;
  exchange(nullptr, patience);
  for_each_peer([&](std::uint32_t rank, StreamPeer& peer) { openings_[rank] = peer.opening(); });
  return openings_;
}

void StreamCarrier::release() {
  for_each_peer([](std::uint32_t, StreamPeer& peer) { peer.release_opening(); });
}

void StreamCarrier::begin(const Phase& phase) {
  giver_.reset();
  to_combine_ = combined_ = 0;
  for_each_peer([&](std::uint32_t rank, StreamPeer& peer) {
    peer.begin_phase(phase.legs[rank]);
    to_combine_ = std::max(to_combine_, phase.legs[rank].combine);
  });
}

void StreamCarrier::move(const Phase& phase, const Patience& patience) {
  begin(phase);
  exchange(&phase, patience);
}

void StreamCarrier::move_both(const Phase& giving, const Phase& sharing, const Patience& patience) {
  begin(giving);
  for_each_peer([&](std::uint32_t rank, StreamPeer& peer) {
    if (!giving.legs[rank].in.empty()) {
      giver_ = rank;
    }
    peer.follow_with(sharing.legs[rank]);
  });
  exchange(&giving, patience);
}

// ---- moving ----
bool StreamCarrier::is_done() {
  bool done = combined_ == to_combine_;
  for_each_peer([&](std::uint32_t, StreamPeer& peer) { done = done && !peer.sends() && !peer.receives(); });
  return done;
}

// How much of our slice may be handed on. What one rank hands to us goes on in large parts, each of which wakes others.
std::uint64_t StreamCarrier::given() const {
  if (!giver_) {
    return combined_;
  }
  const StreamPeer& giver = peers_[*giver_];
  return giver.receives() ? giver.received() / kGiveBytes * kGiveBytes : giver.received();
}

bool StreamCarrier::progress(const Phase* phase) {
  bool moved = false;
  for_each_peer([&](std::uint32_t, StreamPeer& peer) {
    moved = peer.send(given()) || moved;
    moved = peer.receive(combined_) || moved;
  });
  return (phase != nullptr && combined_ != to_combine_ && combine_some(*phase)) || moved;
}

// Combines what all have sent, up to the end of the ring.
bool StreamCarrier::combine_some(const Phase& phase) {
  std::uint64_t end = std::min(to_combine_, combined_ - combined_ % kRingBytes + kRingBytes);
  const std::uint64_t most = end;
  std::vector<const std::byte*> arrived(peers_.size(), nullptr);
  for_each_peer([&](std::uint32_t rank, StreamPeer& peer) {
    if (peer.combines()) {
      end = std::min(end, std::min(peer.received(), to_combine_));
      arrived[rank] = peer.combinable(combined_);
    }
  });
  if (end != most) {  // whole lines, and so whole elements
    end -= end % kCacheLineBytes;
  }
  if (end <= combined_ || (end != most && end - combined_ < kCombineBytes)) {
    return false;
  }
  (*phase.combiner)(combined_, end - combined_, arrived);
  combined_ = end;
  return true;
}

void StreamCarrier::exchange(const Phase* phase, const Patience& patience) {
  Deadline next_look = Deadline::after(kInterruptInterval);
  const auto stuck = [&] { return !progress(phase) && !is_done() && !breakage_.is_set(); };
  const auto spin = [&](const auto& still) { return spin_while(still, tuning_.spin); };
  while (!is_done()) {
    if (habit_.wait_awake(stuck, spin)) {
      sleep(patience);
    }
    breakage_.check();
    if (next_look.expired()) {
      if (patience.interrupt) {
        patience.interrupt();
      }
      next_look = Deadline::after(kInterruptInterval);
    }
  }
}

// Sleeps until a stream can move, at most for the interval of interrupts. Throws when the deadline has passed.
void StreamCarrier::sleep(const Patience& patience) {
  std::vector<std::uint32_t> ranks;
  entries_.clear();
  for_each_peer([&](std::uint32_t rank, StreamPeer& peer) {
    const bool waits = peer.waits(combined_);
    const auto events = static_cast<short>((peer.can_send(given()) ? POLLOUT : 0) | (waits ? POLLIN : 0));
    if (events != 0) {
      entries_.push_back({peer.stream().poll_fd(), events, 0});
      ranks.push_back(rank);
      awaited_[rank].store(true, std::memory_order_relaxed);
    }
  });
  if (patience.deadline.expired()) {
    throw late(patience, ranks);
  }
  const Deadline next_look = Deadline::after(kInterruptInterval);
  poll_until(entries_, next_look.at() < patience.deadline.at() ? next_look : patience.deadline);
  for (const std::uint32_t rank : ranks) {
    awaited_[rank].store(false, std::memory_order_relaxed);
  }
}

void StreamCarrier::abort(const Error& why) {
  if (breakage_.set(why)) {
    for (StreamPeer& peer : peers_) {
      peer.stream().shutdown();
    }
  }
}

std::vector<std::uint32_t> StreamCarrier::awaited() const {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t rank = 0; rank < awaited_.size() && !breakage_.is_set(); ++rank) {
    if (awaited_[rank].load(std::memory_order_relaxed)) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

}  // namespace

std::unique_ptr<Lane> make_stream_lane(std::uint32_t rank, std::vector<Stream> peers, const Tuning& tuning) {
  const auto size = static_cast<std::uint32_t>(peers.size());
  DISTNET_INVARIANT(rank < size && size <= kMostRanks);
  return std::make_unique<CarrierLane>(rank, size, std::make_unique<StreamCarrier>(rank, std::move(peers), tuning));
}

}  // namespace distnet
