#include <algorithm>
#include <cstring>
#include <utility>

#include <poll.h>

#include "base/error.h"
#include "kernels/kernels.h"
#include "transport/spin.h"
#include "transport/tcp/tcp_channel.h"
#include "transport/tcp/tcp_pieces.h"

namespace distnet {
namespace {

constexpr std::uint64_t kInlineBytes = 64U << 10U;   // of a reply that the data thread sends where it goes at once
constexpr double kLastReplies = 2.0;                 // seconds for the replies still leaving when a session ends
constexpr double kSendSlice = 0.1;                   // seconds between looks at whether it does
constexpr std::size_t kReadAheadBytes = 16U << 10U;  // read along with a request's header
static_assert(kBounceFloats * sizeof(float) >= kInlineBytes);

std::span<const std::byte> bytes_of(const float* data, std::uint64_t count) {
  return {reinterpret_cast<const std::byte*>(data), count * sizeof(float)};
}

}  // namespace

TcpServerChannel::TcpServerChannel(const ChannelShape& shape, const Tuning& tuning, Socket socket)
    : shape_(shape),
      tuning_(tuning),
      decoder_(shape.push_format, shape.shard_floats),
      socket_(std::move(socket)),
      slots_(shape.takes_pushes ? Region::private_memory(slot_bytes() * shape.max_inflight) : Region()),
      read_ahead_(kReadAheadBytes),
      bounce_(kBounceFloats),
      encoded_(shape.pull_format->plain() ? 0 : kChunksAtATime * shape.pull_format->chunk_bytes(kFormatChunkFloats)),
      sender_([this] { send_replies(); }) {
  socket_.prefer_within_host(tuning.congestion_control);
}

TcpServerChannel::~TcpServerChannel() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(kLastReplies),
                      [&] { return closed_ || (outgoing_.empty() && !sending_); });
  }
  close();
  sender_.join();
}

// False: no more requests are taken.
template <typename Room>
bool TcpServerChannel::wait_for(const Room& room) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopped_ || closed_ || room(); });
  return !stopped_ && !closed_;
}

std::optional<Request> TcpServerChannel::next() {
  Request request;
  if (!wait_for([this] { return replies_left_ < shape_.max_inflight; })) {
    return std::nullopt;
  }
  try {
    receive_header(request.header);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPeerClosed) {
      return std::nullopt;
    }
    throw;
  }
  const std::uint64_t bytes = request.header.payload_bytes;
  const std::uint64_t expected = shape_.takes_pushes ? shape_.push_bytes() : 0;
  if (request.header.magic != kMagic || (bytes != 0 && (bytes != expected || request.header.push == 0))) {
    throw Error(ErrorCode::kProtocol, "a request that is not one, or with a gradient of another size than the shard's");
  }
  if (bytes != 0) {
    if (!wait_for([&] { return request.header.push <= settled_ + shape_.max_inflight; })) {
      return std::nullopt;
    }
    std::byte* const slot = slots_.data() + (request.header.push - 1) % shape_.max_inflight * slot_bytes();
    begin_arrival({slot, bytes});
    request.payload = reinterpret_cast<const float*>(slot);
    request.decoder = shape_.push_format->plain() ? nullptr : &decoder_;
    request.arriving = this;
    request.takes_ahead =
        tuning_.duplex && shape_.pull_bytes() > kInlineBytes && (request.header.flags & kDeliver) != 0;
  }
  awaited_ = (request.header.flags & kDeliver) != 0;
  const std::lock_guard lock(mutex_);
  ++replies_left_;
  bytes_received_.fetch_add(sizeof request.header + bytes, std::memory_order_relaxed);
  return request;
}

// Reads what comes with it, too: a small gradient takes one system call.
void TcpServerChannel::receive_header(RequestHeader& header) {
  const auto lacks_bytes = [&] {
    if (early_.size() >= sizeof header) {
      return false;
    }
    const std::span<std::byte> buffer(read_ahead_);
    if (!early_.empty()) {
      std::memmove(buffer.data(), early_.data(), early_.size());
    }
    const std::size_t received = socket_.receive_some(buffer.subspan(early_.size()));
    early_ = buffer.first(early_.size() + received);
    return early_.size() < sizeof header;
  };
  const auto spin = [this](const auto& still) { return spin_while(still, tuning_.spin); };
  while (between_requests_.wait(lacks_bytes, spin)) {
    socket_.wait(POLLIN, nullptr, {});
  }
  std::memcpy(&header, early_.data(), sizeof header);
  early_ = early_.subspan(sizeof header);
}

// Part of it may have come along with the header.
void TcpServerChannel::begin_arrival(std::span<std::byte> payload) {
  arriving_ = payload;
  arrived_bytes_ = 0;
  const std::size_t payload_early = std::min(payload.size(), early_.size());
  const std::size_t verdict_early = std::min(sizeof verdict_, early_.size() - payload_early);
  std::ranges::copy(early_.first(payload_early), payload.begin());
  if (verdict_early != 0) {
    std::memcpy(&verdict_, early_.data() + payload_early, verdict_early);
  }
  arrived_bytes_ = payload_early + verdict_early;
  early_ = early_.subspan(arrived_bytes_);
}

// Receives no more than is asked for: whoever asks works on it next, while it is in cache.
Arrival::State TcpServerChannel::wait(std::uint64_t floats, std::chrono::microseconds patience) {
  const std::uint64_t chunks = (std::min(floats, shape_.shard_floats) + kFormatChunkFloats - 1) / kFormatChunkFloats;
  const bool whole = floats >= shape_.shard_floats;
  const std::uint64_t chunk_bytes = shape_.push_format->chunk_bytes(kFormatChunkFloats);
  const std::size_t needed =
      whole ? arriving_.size() + sizeof verdict_ : std::min<std::size_t>(chunks * chunk_bytes, arriving_.size());
  const Deadline deadline = Deadline::after(std::chrono::duration<double>(patience).count());
  const auto lacks_bytes = [&] {
    while (arrived_bytes_ < needed) {
      Parts parts;
      const std::size_t of_payload = std::min(arrived_bytes_, arriving_.size());
      parts.add(arriving_.data() + of_payload, std::min(needed, arriving_.size()) - of_payload);
      if (whole) {
        const std::size_t of_verdict = arrived_bytes_ - of_payload;
        parts.add(reinterpret_cast<std::byte*>(&verdict_) + of_verdict, sizeof verdict_ - of_verdict);
      }
      const std::uint64_t received = parts.receive(socket_.fd());
      arrived_bytes_ += received;
      if (received == 0) {
        return true;
      }
    }
    return false;
  };
  try {
    const auto spin = [&](const auto& still) { return spin_while(still, std::min(tuning_.spin, patience)); };
    while (during_arrival_.wait(lacks_bytes, spin)) {
      if (!socket_.wait(POLLIN, patience < kAnyPatience ? &deadline : nullptr, {})) {
        return State::kLate;
      }
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kPeerClosed) {
      throw;
    }
    cut_off_ = true;
    return State::kCutOff;
  }
  return whole && verdict_ != kPushCounts ? State::kWithdrawn : State::kHere;
}

void TcpServerChannel::reply(const ReplyHeader& header, ReplyPayload payload, bool then_applies) {
  ReplyHeader encoded = header;
  encoded.payload_bytes = payload.data != nullptr ? shape_.pull_bytes() : 0;
  enqueue({encoded, std::move(payload), {}}, awaited_ && !then_applies);
}

void TcpServerChannel::send_ahead(const RequestHeader& request, ReplyPayload payload) {
  ReplyHeader header;
  header.flags = static_cast<std::uint16_t>(request.flags | kAhead);
  header.number = request.number;
  header.payload_bytes = shape_.pull_bytes();
  enqueue({header, std::move(payload), {}}, false);
}

// A reply that the client waits for, and a small one, leave from here where nothing else is leaving; others, and what a
// small one's client does not take at once, from the channel's own thread.
void TcpServerChannel::enqueue(Outgoing outgoing, bool waited_for) {
  std::unique_lock lock(mutex_);
  const bool small = outgoing.header.payload_bytes <= kInlineBytes;
  if (!closed_ && outgoing_.empty() && !sending_ && (small || waited_for)) {
    sending_ = true;
    lock.unlock();
    const bool sent = waited_for ? (send(outgoing), true) : send_at_once(outgoing);
    lock.lock();
    sending_ = false;
    if (sent) {
      replies_left_ -= outgoing.ends_request() ? 1 : 0;
      changed_.notify_all();
      return;
    }
  }
  outgoing_.push_back(std::move(outgoing));
  changed_.notify_all();
}

// A small reply, in one piece; what the socket does not take is left in `rest`.
bool TcpServerChannel::send_at_once(Outgoing& outgoing) {
  std::vector<std::byte> message(sizeof outgoing.header);
  std::memcpy(message.data(), &outgoing.header, sizeof outgoing.header);
  if (outgoing.payload.data != nullptr) {
    for_each_chunk(outgoing.payload, [&](std::span<const std::byte> chunk) {
      message.insert(message.end(), chunk.begin(), chunk.end());
    });
  }
  if (outgoing.payload.release) {
    std::exchange(outgoing.payload.release, nullptr)();
  }
  try {
    const std::size_t sent = socket_.send_some(message);
    bytes_sent_.fetch_add(sent, std::memory_order_relaxed);
    outgoing.rest.assign(message.begin() + static_cast<std::ptrdiff_t>(sent), message.end());
  } catch (const Error&) {
    socket_.shutdown();  // the session's control connection tells why
  }
  return outgoing.rest.empty();
}

// Calls `use` with the bytes of a payload in order: as they lie, or a chunk at a time as the format has them. Live
// parameters are copied float by float first, never torn.
template <typename Use>
void TcpServerChannel::for_each_chunk(const ReplyPayload& payload, const Use& use) {
  const WireFormat& format = *shape_.pull_format;
  if (format.plain() && !payload.live) {
    use(bytes_of(payload.data, payload.count));
    return;
  }
  const std::size_t most = format.plain() ? kBounceFloats : kChunksAtATime * kFormatChunkFloats;
  for (std::uint64_t at = 0; at < payload.count; at += most) {
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(most, payload.count - at));
    if (format.plain()) {
      copy(bounce_.data(), payload.data + at, step);
      use(bytes_of(bounce_.data(), step));
    } else {
      use(encoded(payload.data + at, step));
    }
  }
}

std::span<const std::byte> TcpServerChannel::encoded(const float* from, std::size_t count) {
  std::size_t bytes = 0;
  for (std::size_t at = 0; at < count; at += kFormatChunkFloats) {
    const std::size_t chunk = std::min(kFormatChunkFloats, count - at);
    shape_.pull_format->encode(encoded_.data() + bytes, from + at, chunk, 1.0F, {});  // what is not finite stays so
    bytes += shape_.pull_format->chunk_bytes(chunk);
  }
  return std::span<const std::byte>(encoded_).first(bytes);
}

void TcpServerChannel::send(const Outgoing& outgoing) {
  std::span<const std::byte> header(reinterpret_cast<const std::byte*>(&outgoing.header), sizeof outgoing.header);
  try {
    if (!outgoing.rest.empty()) {
      send_pieces({}, outgoing.rest);
    } else if (outgoing.payload.data == nullptr) {
      send_pieces(header, {});
    } else {
      for_each_chunk(outgoing.payload,
                     [&](std::span<const std::byte> chunk) { send_pieces(std::exchange(header, {}), chunk); });
    }
  } catch (const Error&) {
    socket_.shutdown();  // the session's control connection tells why
  }
  if (outgoing.payload.release) {
    outgoing.payload.release();
  }
}

// Waits for the client to take them; once no more requests are taken, for kLastReplies at most.
void TcpServerChannel::send_pieces(std::span<const std::byte> first, std::span<const std::byte> second) {
  while (!first.empty() || !second.empty()) {
    Parts parts;
    parts.add(first.data(), first.size());
    parts.add(second.data(), second.size());
    const std::uint64_t moved = parts.send(socket_.fd());
    bytes_sent_.fetch_add(moved, std::memory_order_relaxed);
    const std::uint64_t of_first = std::min<std::uint64_t>(moved, first.size());
    first = first.subspan(of_first);
    second = second.subspan(moved - of_first);
    if (moved == 0) {
      const Deadline slice = Deadline::after(kSendSlice);
      socket_.wait(POLLOUT, &slice, {});
      if (!last_replies_ && ending()) {
        last_replies_ = Deadline::after(kLastReplies);
      }
      if (last_replies_ && last_replies_->expired()) {
        throw Error(ErrorCode::kDeadlineExceeded, "the client takes no more of its last reply");
      }
    }
  }
}

bool TcpServerChannel::ending() {
  const std::lock_guard lock(mutex_);
  return stopped_ || closed_;
}

void TcpServerChannel::send_replies() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return (!outgoing_.empty() && !sending_) || (closed_ && outgoing_.empty()); });
    if (outgoing_.empty()) {
      return;
    }
    const Outgoing outgoing = std::move(outgoing_.front());
    outgoing_.pop_front();
    sending_ = true;
    lock.unlock();
    send(outgoing);
    lock.lock();
    sending_ = false;
    replies_left_ -= outgoing.ends_request() ? 1 : 0;
    changed_.notify_all();
  }
}

void TcpServerChannel::settled(std::uint64_t push) {
  const std::lock_guard lock(mutex_);
  settled_ = std::max(settled_, push);
  changed_.notify_all();
}

void TcpServerChannel::stop_taking() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  socket_.shutdown_receiving();
}

void TcpServerChannel::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  socket_.shutdown();
}

}  // namespace distnet
