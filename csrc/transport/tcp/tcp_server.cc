#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "kernels/kernels.h"
#include "transport/spin.h"
#include "transport/tcp/tcp_channel.h"
#include "transport/tcp/tcp_slices.h"

namespace distnet {
namespace {

constexpr std::uint64_t kInlineBytes = 64U << 10U;   // up to this size a reply may leave from the data thread
constexpr double kLastRepliesSeconds = 2.0;          // for the replies that have not left when a session ends
constexpr double kSendIntervalSeconds = 0.1;         // between checks whether the session ends
constexpr std::size_t kReadAheadBytes = 16U << 10U;  // read along with a request's header
static_assert(kBounceFloats * sizeof(float) >= kInlineBytes);

// Returns whether the client's end of the stream is gone, in order or not.
bool ends_stream(const Error& error) {
  return error.code() == ErrorCode::kPeerClosed || error.code() == ErrorCode::kDeadlineExceeded;
}

std::span<const std::byte> bytes_of(const float* data, std::uint64_t count) {
  return {reinterpret_cast<const std::byte*>(data), count * sizeof(float)};
}

}  // namespace

TcpServerChannel::TcpServerChannel(const ChannelShape& shape, const Tuning& tuning, Memory& memory, Stream stream)
    : shape_(shape),
      tuning_(tuning),
      decoder_(shape.push_format, shape.shard_floats),
      memory_(memory),
      stream_(std::move(stream)),
      slots_(shape.takes_pushes ? memory.allocate(slot_bytes() * shape.max_inflight) : Region()) {
  stream_.prefer_within_host(tuning.congestion_control);
  stream_.give_up_after(shape.timeout_s);
}

TcpServerChannel::~TcpServerChannel() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, Deadline::after(kLastRepliesSeconds),
                        [&] { return closed_ || (outgoing_.empty() && !sending_); });
  }
  close();
  if (sender_.joinable()) {
    sender_.join();
  }
}

// Returns false when no more requests are taken.
template <typename Room>
bool TcpServerChannel::wait_for(const Room& room) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopped_ || closed_ || room(); });
  return !stopped_ && !closed_;
}

std::optional<Request> TcpServerChannel::next() {
  Request request;
  busy_.store(false, std::memory_order_relaxed);  // a hint for progress()
  awake();
  if (!wait_for([this] { return replies_left_ < shape_.max_inflight; })) {
    return std::nullopt;
  }
  try {
    if (!receive_header(request.header)) {
      return std::nullopt;
    }
  } catch (const Error& error) {
    if (!ends_stream(error)) {
      throw;
    }
    cut_off_ = early_.size() > 0;  // part of a header
    return std::nullopt;
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
    if ((request.header.fields & kHasGroupRates) != 0) {
      try {
        request.group_rates = receive_group_rates(request.header.push);
      } catch (const Error& error) {
        if (!ends_stream(error)) {
          throw;
        }
        cut_off_ = true;
        return std::nullopt;
      }
    }
    std::byte* const slot = slots_.data() + (request.header.push - 1) % shape_.max_inflight * slot_bytes();
    begin_arrival({slot, bytes});
    request.gradient = shape_.push_format->plain()
                           ? GradientView::dense(reinterpret_cast<const float*>(slot), shape_.shard_floats)
                           : GradientView::encoded(slot, decoder_, shape_.shard_floats);
    request.arriving = this;
    request.takes_ahead =
        tuning_.duplex && shape_.pull_bytes() > kInlineBytes && (request.header.flags & kDeliver) != 0;
  }
  awaited_ = (request.header.flags & kDeliver) != 0;
  busy_.store(bytes == 0, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  ++replies_left_;
  bytes_received_.fetch_add(sizeof request.header + bytes, std::memory_order_relaxed);
  return request;
}

void TcpServerChannel::awake() {
  if (std::exchange(dormant_, false)) {
    read_ahead_ = memory_.allocate(kReadAheadBytes);
  }
}

// Gives back what only a session that asks for something needs. Returns false where replies have yet to leave, or the
// client's end is what comes next.
bool TcpServerChannel::fall_dormant() {
  {
    const std::lock_guard lock(mutex_);
    if (!outgoing_.empty() || sending_ || client_left_ || stopped_ || closed_) {
      return false;
    }
    sender_ends_ = true;
    changed_.notify_all();
  }
  if (sender_.joinable()) {
    sender_.join();
  }
  sender_ends_ = false;  // nobody else looks at it without a sender
  outgoing_chunks_ = {};
  read_ahead_ = {};
  dormant_ = true;
  return true;
}

// Returns whether so many bytes are not here yet. Reads what arrives along with a header, too, so that a small gradient
// takes one system call.
bool TcpServerChannel::lacks_early(std::size_t bytes) {
  if (early_.size() >= bytes) {
    return false;
  }
  const std::span<std::byte> buffer(read_ahead_.data(), read_ahead_.bytes());
  if (!early_.empty()) {
    std::memmove(buffer.data(), early_.data(), early_.size());
  }
  const std::size_t received = stream_.receive_some(buffer.subspan(early_.size()));
  early_ = buffer.first(early_.size() + received);
  taken_bytes_.fetch_add(received, std::memory_order_relaxed);
  return early_.size() < bytes;
}

// Returns false where the channel fell dormant.
bool TcpServerChannel::receive_header(RequestHeader& header) {
  const auto lacks_bytes = [&] { return lacks_early(sizeof header); };
  const auto spin = [this](const auto& still) { return spin_while(still, tuning_.spin); };
  while (between_requests_.wait_awake(lacks_bytes, spin)) {
    const Deadline idle = Deadline::after(kIdleSeconds);
    if (!stream_.wait(POLLIN, &idle, {}) && early_.empty() && fall_dormant()) {
      return false;
    }
  }
  std::memcpy(&header, early_.data(), sizeof header);
  early_ = early_.subspan(sizeof header);
  return true;
}

// They follow the header, and stay for as long as the gradient does.
std::span<const double> TcpServerChannel::receive_group_rates(std::uint64_t push) {
  const std::size_t bytes = shape_.rated_groups * sizeof(double);
  while (lacks_early(bytes)) {
    stream_.wait(POLLIN, nullptr, {});
  }
  group_rates_.resize(std::size_t{shape_.max_inflight} * kMaxRatedGroups);
  double* const rates = &group_rates_[(push - 1) % shape_.max_inflight * kMaxRatedGroups];
  std::memcpy(rates, early_.data(), bytes);
  early_ = early_.subspan(bytes);
  return {rates, shape_.rated_groups};
}

// Takes what came along with the header.
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

// Receives no more than is asked for, because the caller uses it next, while it is in cache.
Arrival::State TcpServerChannel::wait(std::uint64_t floats, std::chrono::microseconds patience) {
  busy_.store(false, std::memory_order_relaxed);
  const std::uint64_t chunks = (std::min(floats, shape_.shard_floats) + kFormatChunkFloats - 1) / kFormatChunkFloats;
  const bool whole = floats >= shape_.shard_floats;
  const std::uint64_t chunk_bytes = shape_.push_format->chunk_bytes(kFormatChunkFloats);
  const std::size_t needed =
      whole ? arriving_.size() + sizeof verdict_ : std::min<std::size_t>(chunks * chunk_bytes, arriving_.size());
  const Deadline deadline = Deadline::after(std::chrono::duration<double>(patience).count());
  const auto lacks_bytes = [&] {
    while (arrived_bytes_ < needed) {
      Buffers buffers;
      const std::size_t of_payload = std::min(arrived_bytes_, arriving_.size());
      buffers.add(arriving_.data() + of_payload, std::min(needed, arriving_.size()) - of_payload);
      if (whole) {
        const std::size_t of_verdict = arrived_bytes_ - of_payload;
        buffers.add(reinterpret_cast<std::byte*>(&verdict_) + of_verdict, sizeof verdict_ - of_verdict);
      }
      const std::uint64_t received = stream_.receive_some(buffers);
      arrived_bytes_ += received;
      taken_bytes_.fetch_add(received, std::memory_order_relaxed);
      if (received == 0) {
        return true;
      }
    }
    return false;
  };
  try {
    const auto spin = [&](const auto& still) { return spin_while(still, std::min(tuning_.spin, patience)); };
    while (during_arrival_.wait_awake(lacks_bytes, spin)) {
      if (!stream_.wait(POLLIN, patience < kAnyPatience ? &deadline : nullptr, {})) {
        return State::kLate;
      }
    }
  } catch (const Error& error) {
    if (!ends_stream(error)) {
      throw;
    }
    cut_off_ = true;
    return State::kCutOff;
  }
  busy_.store(true, std::memory_order_relaxed);  // until more is asked for
  return whole && verdict_ != kPushCounts ? State::kWithdrawn : State::kHere;
}

Progress TcpServerChannel::progress() const {
  Progress progress;
  progress.taken_bytes = taken_bytes_.load(std::memory_order_relaxed);
  progress.busy = busy_.load(std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  progress.replies = replies_sent_;
  return progress;
}

void TcpServerChannel::reply(Reply reply) {
  reply.header.payload_bytes = reply.data != nullptr ? shape_.pull_bytes() : 0;
  const bool waited_for = awaited_ && !reply.then_applies;
  enqueue({std::move(reply), {}}, waited_for);
}

void TcpServerChannel::send_ahead(const RequestHeader& request, Reply ahead) {
  ahead.header = {};
  ahead.header.flags = static_cast<std::uint16_t>(request.flags | kAhead);
  ahead.header.number = request.number;
  ahead.header.payload_bytes = shape_.pull_bytes();
  enqueue({std::move(ahead), {}}, false);
}

// A small reply, and one that the client waits for, is sent by this thread when nothing else is leaving. The channel's
// own thread sends the others, and what the client of a small one does not take at once.
void TcpServerChannel::enqueue(Outgoing outgoing, bool waited_for) {
  std::unique_lock lock(mutex_);
  if (client_left_) {
    count_sent(outgoing);
    return;
  }
  const bool small = outgoing.reply.header.payload_bytes <= kInlineBytes;
  if (!closed_ && outgoing_.empty() && !sending_ && (small || waited_for)) {
    sending_ = true;
    lock.unlock();
    const bool sent = waited_for ? (send(outgoing), true) : send_at_once(outgoing);
    lock.lock();
    sending_ = false;
    if (sent) {
      count_sent(outgoing);
      return;
    }
  }
  if (!sender_.joinable()) {  // only this thread starts it, and ends it
    lock.unlock();
    sender_ = Thread("sends replies", [this] { send_replies(); });
    lock.lock();
  }
  outgoing_.push_back(std::move(outgoing));
  changed_.notify_all();
}

// Called under the mutex.
void TcpServerChannel::count_sent(const Outgoing& outgoing) {
  if (outgoing.ends_request()) {
    --replies_left_;
    ++replies_sent_;
  }
  changed_.notify_all();
}

// Sends a small reply by one system call. What the stream does not take is left in `rest`.
bool TcpServerChannel::send_at_once(Outgoing& outgoing) {
  try {
    std::vector<std::byte> message(sizeof outgoing.reply.header);
    std::memcpy(message.data(), &outgoing.reply.header, sizeof outgoing.reply.header);
    if (outgoing.reply.data != nullptr) {
      for_each_chunk(outgoing.reply, [&](std::span<const std::byte> chunk) {
        message.insert(message.end(), chunk.begin(), chunk.end());
      });
    }
    outgoing.reply.pin.release();
    const std::size_t sent = stream_.send_some(message);
    bytes_sent_.fetch_add(sent, std::memory_order_relaxed);
    outgoing.rest.assign(message.begin() + static_cast<std::ptrdiff_t>(sent), message.end());
  } catch (const Error&) {
    stream_.shutdown();  // the session's control connection tells why
  }
  return outgoing.rest.empty();
}

// Calls `use` with the bytes of a payload in order, in place or encoded some chunks at a time. Live parameters are
// copied float by float first, never torn.
template <typename Use>
void TcpServerChannel::for_each_chunk(const Reply& payload, const Use& use) {
  const WireFormat& format = *shape_.pull_format;
  if (format.plain() && !payload.live) {
    use(bytes_of(payload.data, payload.count));
    return;
  }
  const std::size_t most = format.plain() ? kBounceFloats : kFormatChunksAtATime * kFormatChunkFloats;
  if (outgoing_chunks_.data() == nullptr) {
    const auto floats = static_cast<std::size_t>(std::min<std::uint64_t>(most, shape_.shard_floats));
    outgoing_chunks_ = memory_.allocate(format.plain() ? floats * sizeof(float) : format.encoded_bytes(floats));
  }
  for (std::uint64_t at = 0; at < payload.count; at += most) {
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(most, payload.count - at));
    if (format.plain()) {
      float* const bounce = outgoing_chunks_.as<float>();
      copy(bounce, payload.data + at, step);
      use(bytes_of(bounce, step));
    } else {
      use(encoded(payload.data + at, step));
    }
  }
}

std::span<const std::byte> TcpServerChannel::encoded(const float* from, std::size_t count) {
  std::size_t bytes = 0;
  for (std::size_t at = 0; at < count; at += kFormatChunkFloats) {
    const std::size_t chunk = std::min(kFormatChunkFloats, count - at);
    shape_.pull_format->encode(outgoing_chunks_.data() + bytes, from + at, chunk, 1.0F,
                               {});  // NaN and infinity stay so
    bytes += shape_.pull_format->chunk_bytes(chunk);
  }
  return {outgoing_chunks_.data(), bytes};
}

void TcpServerChannel::send(Outgoing& outgoing) {
  const Reply& reply = outgoing.reply;
  std::span<const std::byte> header(reinterpret_cast<const std::byte*>(&reply.header), sizeof reply.header);
  try {
    if (!outgoing.rest.empty()) {
      send_both({}, outgoing.rest);
    } else if (reply.data == nullptr) {
      send_both(header, {});
    } else {
      for_each_chunk(reply, [&](std::span<const std::byte> chunk) { send_both(std::exchange(header, {}), chunk); });
    }
  } catch (const Error&) {
    stream_.shutdown();  // the session's control connection tells why
  }
  outgoing.reply.pin.release();
}

// Waits for the client to take the bytes. Once no more requests are taken, it waits for kLastRepliesSeconds at most.
void TcpServerChannel::send_both(std::span<const std::byte> first, std::span<const std::byte> second) {
  while (!first.empty() || !second.empty()) {
    Buffers buffers;
    buffers.add(first.data(), first.size());
    buffers.add(second.data(), second.size());
    const std::uint64_t moved = stream_.send_some(buffers);
    bytes_sent_.fetch_add(moved, std::memory_order_relaxed);
    const std::uint64_t of_first = std::min<std::uint64_t>(moved, first.size());
    first = first.subspan(of_first);
    second = second.subspan(moved - of_first);
    if (moved == 0) {
      const Deadline next_look = Deadline::after(kSendIntervalSeconds);
      stream_.wait(POLLOUT, &next_look, {});
      if (!last_replies_ && ending()) {
        last_replies_ = Deadline::after(kLastRepliesSeconds);
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
    changed_.wait(lock, [&] { return outgoing_.empty() ? closed_ || sender_ends_ : !sending_; });
    if (outgoing_.empty()) {
      return;
    }
    Outgoing outgoing = std::move(outgoing_.front());
    outgoing_.pop_front();
    sending_ = true;
    lock.unlock();
    send(outgoing);
    lock.lock();
    sending_ = false;
    count_sent(outgoing);
  }
}

void TcpServerChannel::settled(std::uint64_t push) {
  const std::lock_guard lock(mutex_);
  settled_ = std::max(settled_, push);
  changed_.notify_all();
}

// The client's bytes are still taken, because the end of the stream comes after them.
void TcpServerChannel::client_left() {
  const std::lock_guard lock(mutex_);
  client_left_ = true;
  changed_.notify_all();
}

void TcpServerChannel::stop_taking() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  stream_.shutdown_receiving();
}

void TcpServerChannel::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  stream_.shutdown();
}

std::unique_ptr<ServerChannel> open_tcp_channel(const ChannelShape& shape, const Tuning& tuning, Memory& memory,
                                                Stream data) {
  return std::make_unique<TcpServerChannel>(shape, tuning, memory, std::move(data));
}

}  // namespace distnet
