#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/waiting.h"
#include "kernels/kernels.h"
#include "transport/spin.h"
#include "transport/tcp/tcp_channel.h"
#include "transport/tcp/tcp_slices.h"

namespace distnet {
namespace {

constexpr std::array<float, kFormatChunkFloats> kZeros{};  // padding between tensors
constexpr std::uint64_t kScatteredFloats = 1024;           // slices of 4 KiB: one call moves 32 of them with their gaps

std::size_t chunk_at(const ChannelShape& shape, std::uint64_t at) {
  return static_cast<std::size_t>(std::min<std::uint64_t>(kFormatChunkFloats, shape.shard_floats - at));
}

}  // namespace

TcpClientChannel::TcpClientChannel(const ChannelShape& shape, const Tuning& tuning, Stream stream)
    : shape_(shape), tuning_(tuning), stream_(std::move(stream)), queued_floats_(shape.shard_floats) {
  stream_.prefer_within_host(tuning.congestion_control);
  stream_.give_up_after(shape.timeout_s);
  if (!shape.push_format->plain() && shape.takes_pushes) {
    carried_ = Region::private_memory(shape.shard_floats * sizeof(float));
    left_ = Region::private_memory(shape.shard_floats * sizeof(float));
  }
  chunk_.resize(kFormatChunkFloats);
  decoded_.resize(kFormatChunkFloats);
  encoded_.resize(kFormatChunksAtATime * shape.push_format->chunk_bytes(kFormatChunkFloats));
  decoding_.resize(kFormatChunksAtATime * shape.pull_format->chunk_bytes(kFormatChunkFloats));
}

// ---- Requests ----

void TcpClientChannel::post(const RequestHeader& request) {
  DISTNET_INVARIANT(!sending());
  request_ = request;
  expected_ = {};
  gradient_.clear();
  queued_floats_ = shape_.shard_floats;
  queue_bytes(std::as_bytes(std::span(&request_, 1)));
}

void TcpClientChannel::start(const RequestHeader& request, std::span<const double> group_rates,
                             std::span<const SourceSlice> gradient, float scale) {
  post(request);
  if (!group_rates.empty()) {
    DISTNET_INVARIANT(group_rates.size() <= group_rates_.size());
    std::ranges::copy(group_rates, group_rates_.begin());
    queue_bytes(std::as_bytes(std::span(group_rates_).first(group_rates.size())));
  }
  gradient_.assign(gradient.begin(), gradient.end());
  scale_ = scale;
  finite_ = true;
  half_way_ = true;
  queued_floats_ = 0;
}

// The server expects all of the payload, so zeros are sent for what has not left. They lie in memory that stays.
bool TcpClientChannel::withdraw() {
  if (!half_way_) {
    return false;
  }
  std::uint64_t bytes = 0;
  for (const std::span<const std::byte> bytes_left : queued_) {
    bytes += bytes_left.size();
  }
  const std::uint64_t header = header_left();
  if (header != 0) {
    queued_.erase(queued_.begin() + 1, queued_.end());
    bytes -= header;
  } else {
    queued_.clear();
  }
  for (; queued_floats_ < shape_.shard_floats; queued_floats_ += chunk_at(shape_, queued_floats_)) {
    const std::size_t chunk = chunk_at(shape_, queued_floats_);
    bytes += shape_.push_format->plain() ? chunk * sizeof(float) : shape_.push_format->chunk_bytes(chunk);
  }
  const auto zeros = std::as_bytes(std::span(kZeros));
  for (; bytes != 0; bytes -= std::min<std::uint64_t>(bytes, zeros.size())) {
    queue_bytes(zeros.first(std::min<std::uint64_t>(bytes, zeros.size())));
  }
  gradient_.clear();
  verdict_ = kPushWithdrawn;
  settles_unsent_ = false;
  half_way_ = false;
  queue_bytes(std::as_bytes(std::span(&verdict_, 1)));
  return true;
}

// Returns the bytes of the request's header that have not left. They are the first span when it lies in request_.
std::uint64_t TcpClientChannel::header_left() const {
  const auto* const begin = reinterpret_cast<const std::byte*>(&request_);
  const bool first =
      !queued_.empty() && queued_.front().data() >= begin && queued_.front().data() < begin + sizeof request_;
  return first ? queued_.front().size() : 0;
}

void TcpClientChannel::conclude(bool counts) {
  DISTNET_INVARIANT(!sending());
  half_way_ = false;
  settles_unsent_ = counts;
  verdict_ = counts ? kPushCounts : kPushWithdrawn;
  queue_bytes(std::as_bytes(std::span(&verdict_, 1)));
}

void TcpClientChannel::queue_bytes(std::span<const std::byte> bytes) { queued_.push_back(bytes); }

// Returns whether the slices are so small that a system call would move little of them: then they pass through memory
// where they lie side by side.
bool TcpClientChannel::scattered(std::size_t slices) const {
  return slices > 1 && shape_.shard_floats / slices < kScatteredFloats;
}

// Queues the next elements of the gradient, encoded unless they can travel as they lie. After NaN or infinity the rest
// is sent all the same, because the verdict withdraws all of it.
void TcpClientChannel::queue_next() {
  const bool as_it_lies = shape_.push_format->plain() && scale_ == 1.0F && !scattered(gradient_.size());
  const std::uint64_t begin = queued_floats_;
  const std::uint64_t most = as_it_lies ? kBounceFloats : kFormatChunksAtATime * kFormatChunkFloats;
  const std::uint64_t end = std::min(begin + most, shape_.shard_floats);
  if (as_it_lies) {
    for_each_run<SourceSlice>(
        gradient_, begin, end,
        [&](const float* from, std::uint64_t count) {
          finite_ = finite_ && all_finite(from, count);
          queue_bytes(std::as_bytes(std::span(from, count)));
          return true;
        },
        [&](std::uint64_t count) {
          for (std::uint64_t left = count; left > 0;) {
            const std::uint64_t step = std::min<std::uint64_t>(left, kZeros.size());
            queue_bytes(std::as_bytes(std::span(kZeros).first(step)));
            left -= step;
          }
          return true;
        });
  } else {
    std::byte* to = encoded_.data();
    for (std::uint64_t at = begin; at < end; at += kFormatChunkFloats) {
      encode_chunk(at, chunk_at(shape_, at), to);
      to += shape_.push_format->chunk_bytes(kFormatChunkFloats);
    }
  }
  queued_floats_ = end;
}

void TcpClientChannel::encode_chunk(std::uint64_t begin, std::size_t count, std::byte* to) {
  std::size_t at = 0;
  for_each_run<SourceSlice>(
      gradient_, begin, begin + count,
      [&](const float* from, std::uint64_t run) {
        copy(chunk_.data() + at, from, run);
        at += run;
        return true;
      },
      [&](std::uint64_t run) {
        std::fill_n(chunk_.data() + at, run, 0.0F);
        at += run;
        return true;
      });
  if (shape_.push_format->plain()) {
    float* const scaled = reinterpret_cast<float*>(to);
    finite_ = copy_scaled_finite(scaled, chunk_.data(), scale_, count) && finite_;
    queue_bytes(std::as_bytes(std::span(scaled, count)));
    return;
  }
  const Residual residual{carried_.as<float>() + begin, left_.as<float>() + begin};
  finite_ = shape_.push_format->encode(to, chunk_.data(), count, scale_, residual) && finite_;
  queue_bytes({to, shape_.push_format->chunk_bytes(count)});
}

bool TcpClientChannel::flush() {
  while (sending()) {
    if (queued_.empty()) {
      queue_next();
    }
    const bool sent = send_queued();
    const bool received = !expected_.empty() && receive_ahead();
    if (!sent && !received) {
      return false;
    }
  }
  if (std::exchange(settles_unsent_, false)) {
    std::swap(carried_, left_);
  }
  return true;
}

bool TcpClientChannel::send_queued() {
  Buffers buffers;
  for (auto at = queued_.begin(); at != queued_.end() && !buffers.full(); ++at) {
    buffers.add(at->data(), at->size());
  }
  std::uint64_t moved = stream_.send_some(buffers);
  const bool any = moved != 0;
  sent_bytes_ += moved;
  while (moved != 0) {
    std::span<const std::byte>& first = queued_.front();
    const std::uint64_t step = std::min<std::uint64_t>(moved, first.size());
    first = first.subspan(step);
    moved -= step;
    if (first.empty()) {
      queued_.pop_front();
    }
  }
  return any;
}

// ---- Replies ----

bool TcpClientChannel::receive(ReplyHeader& reply, std::span<const TargetSlice> parameters) {
  const std::uint64_t before = receive_position_;
  before_replies_.wait_awake([&] { return !receive_header() && receive_position_ == before; },
                             [this](const auto& still) { return spin_while(still, tuning_.spin); });
  while (receive_header() && receive_payload(parameters)) {
    receive_position_ = 0;
    if ((reply_.flags & kAhead) == 0) {
      had_ahead_ = false;
      ++replies_received_;
      reply = reply_;
      return true;
    }
    end_ahead();
  }
  return false;
}

// Returns whether anything was received of what is sent ahead of the reply.
bool TcpClientChannel::receive_ahead() {
  const std::uint64_t before = receive_position_;
  if (!receive_header() || (reply_.flags & kAhead) == 0) {
    return receive_position_ != before;
  }
  const bool complete = receive_payload(expected_);
  const bool moved = receive_position_ != before;
  if (complete) {
    receive_position_ = 0;
    end_ahead();
  }
  return moved || complete;
}

// Called when parameters came ahead; their reply is still to come.
void TcpClientChannel::end_ahead() {
  if (std::exchange(had_ahead_, true)) {
    throw Error(ErrorCode::kProtocol, "the server sent parameters ahead of one reply twice");
  }
}

std::uint64_t TcpClientChannel::receive(const Buffers& buffers) {
  const std::uint64_t received = stream_.receive_some(buffers);
  received_bytes_ += received;
  return received;
}

bool TcpClientChannel::receive_header() {
  if (receive_position_ >= sizeof reply_) {
    return true;
  }
  Buffers buffers;
  buffers.add(reinterpret_cast<std::byte*>(&reply_) + receive_position_, sizeof reply_ - receive_position_);
  receive_position_ += receive(buffers);
  if (receive_position_ < sizeof reply_) {
    return false;
  }
  const bool known = reply_.payload_bytes == 0 || reply_.payload_bytes == shape_.pull_bytes();
  if (reply_.magic != kMagic || !known) {
    throw Error(ErrorCode::kProtocol, "the server sent a reply that is not one");
  }
  return true;
}

// Receives as much of the payload as it can without waiting. Returns true when all of it has arrived.
bool TcpClientChannel::receive_payload(std::span<const TargetSlice> parameters) {
  while (receive_position_ - sizeof reply_ < reply_.payload_bytes) {
    const bool as_it_lies = shape_.pull_format->plain() && !scattered(parameters.size());
    const std::uint64_t moved = as_it_lies ? receive_plain(parameters) : receive_chunks(parameters);
    if (moved == 0) {
      return false;
    }
    receive_position_ += moved;
  }
  return true;
}

std::uint64_t TcpClientChannel::receive_plain(std::span<const TargetSlice> parameters) {
  const std::uint64_t position = receive_position_ - sizeof reply_;
  const std::uint64_t split = position % sizeof(float);  // bytes of an element that arrived in part
  Buffers buffers;
  std::uint64_t skip = split;
  for_each_run<TargetSlice>(
      parameters, position / sizeof(float), shape_.shard_floats,
      [&](float* to, std::uint64_t count) {
        buffers.add(reinterpret_cast<std::byte*>(to) + skip, count * sizeof(float) - skip);
        skip = 0;
        return !buffers.full();
      },
      [&](std::uint64_t count) {
        for (std::uint64_t left = count * sizeof(float) - std::exchange(skip, 0); left > 0 && !buffers.full();) {
          const std::uint64_t step = std::min<std::uint64_t>(left, decoding_.size());
          buffers.add(decoding_.data(), step);  // padding, which is dropped
          left -= step;
        }
        return !buffers.full();
      });
  return receive(buffers);
}

// Receives some chunks at a time and decodes each as soon as it is complete.
std::uint64_t TcpClientChannel::receive_chunks(std::span<const TargetSlice> parameters) {
  const std::uint64_t chunk_bytes = shape_.pull_format->chunk_bytes(kFormatChunkFloats);
  const std::uint64_t position = receive_position_ - sizeof reply_;
  const std::uint64_t first = position / decoding_.size() * decoding_.size();  // the payload byte in decoding_[0]
  const std::uint64_t there = position - first;
  Buffers buffers;
  buffers.add(decoding_.data() + there,
              std::min<std::uint64_t>(decoding_.size(), reply_.payload_bytes - first) - there);
  const std::uint64_t moved = receive(buffers);
  for (std::uint64_t at = there / chunk_bytes * chunk_bytes; at < there + moved; at += chunk_bytes) {
    const std::uint64_t begin = (first + at) / chunk_bytes * kFormatChunkFloats;
    if (at + shape_.pull_format->chunk_bytes(chunk_at(shape_, begin)) > there + moved) {
      break;
    }
    decode_chunk(begin, decoding_.data() + at, parameters);
  }
  return moved;
}

void TcpClientChannel::decode_chunk(std::uint64_t begin, const std::byte* from,
                                    std::span<const TargetSlice> parameters) {
  const WireFormat& format = *shape_.pull_format;
  const std::size_t count = chunk_at(shape_, begin);
  if (!format.valid(from, count)) {
    throw Error(ErrorCode::kProtocol, "the server sent parameters that are not in the format agreed on");
  }
  format.decode(decoded_.data(), from, count, 0, count);
  std::size_t at = 0;
  for_each_run<TargetSlice>(
      parameters, begin, begin + count,
      [&](float* to, std::uint64_t run) {
        copy(to, decoded_.data() + at, run);
        at += run;
        return true;
      },
      [&](std::uint64_t run) {
        at += run;
        return true;
      });
}

// ---- Waiting ----

short TcpClientChannel::poll_events() const {
  return static_cast<short>((sending() ? POLLOUT : 0) | (sending() && expected_.empty() ? 0 : POLLIN));
}

void TcpClientChannel::wait(milliseconds at_most) {
  pollfd entry{stream_.poll_fd(), poll_events(), 0};
  poll_until(std::span(&entry, 1), Deadline::after(std::chrono::duration<double>(at_most).count()));
}

std::unique_ptr<ClientChannel> join_tcp_channel(const ChannelShape& shape, const Tuning& tuning, Stream data,
                                                std::vector<FileDescriptor>&&, const ControlCalls&) {
  return std::make_unique<TcpClientChannel>(shape, tuning, std::move(data));
}

}  // namespace distnet
