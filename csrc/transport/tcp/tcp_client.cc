#include <algorithm>
#include <array>
#include <utility>

#include <poll.h>

#include "base/error.h"
#include "kernels/kernels.h"
#include "transport/spin.h"
#include "transport/tcp/tcp_channel.h"
#include "transport/tcp/tcp_pieces.h"

namespace distnet {
namespace {

constexpr std::array<float, kFormatChunkFloats> kZeros{};  // what lies between two tensors

std::size_t chunk_at(const ChannelShape& shape, std::uint64_t at) {
  return static_cast<std::size_t>(std::min<std::uint64_t>(kFormatChunkFloats, shape.shard_floats - at));
}

}  // namespace

TcpClientChannel::TcpClientChannel(const ChannelShape& shape, const Tuning& tuning, Socket socket)
    : shape_(shape), tuning_(tuning), socket_(std::move(socket)), staged_floats_(shape.shard_floats) {
  socket_.prefer_within_host(tuning.congestion_control);
  if (!shape.push_format->plain() && shape.takes_pushes) {
    carried_ = Region::private_memory(shape.shard_floats * sizeof(float));
    left_ = Region::private_memory(shape.shard_floats * sizeof(float));
  }
  chunk_.resize(kFormatChunkFloats);
  decoded_.resize(kFormatChunkFloats);
  encoded_.resize(kChunksAtATime * shape.push_format->chunk_bytes(kFormatChunkFloats));
  decoding_.resize(kChunksAtATime * shape.pull_format->chunk_bytes(kFormatChunkFloats));
}

// ---- Requests ----

void TcpClientChannel::post(const RequestHeader& request) {
  DISTNET_INVARIANT(!sending());
  request_ = request;
  expected_ = {};
  gradient_.clear();
  staged_floats_ = shape_.shard_floats;
  stage_bytes(std::as_bytes(std::span(&request_, 1)));
}

void TcpClientChannel::start(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) {
  post(request);
  gradient_.assign(gradient.begin(), gradient.end());
  scale_ = scale;
  finite_ = true;
  staged_floats_ = 0;
}

void TcpClientChannel::conclude(bool counts) {
  DISTNET_INVARIANT(!sending());
  settles_unsent_ = counts;
  verdict_ = counts ? kPushCounts : kPushWithdrawn;
  stage_bytes(std::as_bytes(std::span(&verdict_, 1)));
}

void TcpClientChannel::stage_bytes(std::span<const std::byte> bytes) { staged_.push_back(bytes); }

// The next part of the gradient: as it lies where it travels so, else encoded. After NaN or infinity the rest is sent
// as it comes: the verdict withdraws all of it.
void TcpClientChannel::stage_next() {
  const bool as_it_lies = shape_.push_format->plain() && scale_ == 1.0F;
  const std::uint64_t begin = staged_floats_;
  const std::uint64_t most = as_it_lies ? kBounceFloats : kChunksAtATime * kFormatChunkFloats;
  const std::uint64_t end = std::min(begin + most, shape_.shard_floats);
  if (as_it_lies) {
    for_each_run<SourcePiece>(
        gradient_, begin, end,
        [&](const float* from, std::uint64_t count) {
          finite_ = finite_ && all_finite(from, count);
          stage_bytes(std::as_bytes(std::span(from, count)));
        },
        [&](std::uint64_t count) {
          for (std::uint64_t left = count; left > 0;) {
            const std::uint64_t step = std::min<std::uint64_t>(left, kZeros.size());
            stage_bytes(std::as_bytes(std::span(kZeros).first(step)));
            left -= step;
          }
        });
  } else {
    std::byte* to = encoded_.data();
    for (std::uint64_t at = begin; at < end; at += kFormatChunkFloats) {
      encode_chunk(at, chunk_at(shape_, at), to);
      to += shape_.push_format->chunk_bytes(kFormatChunkFloats);
    }
  }
  staged_floats_ = end;
}

void TcpClientChannel::encode_chunk(std::uint64_t begin, std::size_t count, std::byte* to) {
  std::size_t at = 0;
  for_each_run<SourcePiece>(
      gradient_, begin, begin + count,
      [&](const float* from, std::uint64_t run) {
        copy(chunk_.data() + at, from, run);
        at += run;
      },
      [&](std::uint64_t run) {
        std::fill_n(chunk_.data() + at, run, 0.0F);
        at += run;
      });
  if (shape_.push_format->plain()) {
    float* const scaled = reinterpret_cast<float*>(to);
    finite_ = copy_scaled_finite(scaled, chunk_.data(), scale_, count) && finite_;
    stage_bytes(std::as_bytes(std::span(scaled, count)));
    return;
  }
  const Residual residual{carried_.as<float>() + begin, left_.as<float>() + begin};
  finite_ = shape_.push_format->encode(to, chunk_.data(), count, scale_, residual) && finite_;
  stage_bytes({to, shape_.push_format->chunk_bytes(count)});
}

bool TcpClientChannel::flush() {
  while (sending()) {
    if (staged_.empty()) {
      stage_next();
    }
    const bool sent = send_staged();
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

bool TcpClientChannel::send_staged() {
  Parts parts;
  for (const std::span<const std::byte> piece : staged_) {
    parts.add(piece.data(), piece.size());
  }
  std::uint64_t moved = parts.send(socket_.fd());
  const bool any = moved != 0;
  while (moved != 0) {
    std::span<const std::byte>& first = staged_.front();
    const std::uint64_t step = std::min<std::uint64_t>(moved, first.size());
    first = first.subspan(step);
    moved -= step;
    if (first.empty()) {
      staged_.pop_front();
    }
  }
  return any;
}

// ---- Replies ----

bool TcpClientChannel::receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) {
  const std::uint64_t before = receive_position_;
  before_replies_.wait([&] { return !receive_header() && receive_position_ == before; },
                       [this](const auto& still) { return spin_while(still, tuning_.spin); });
  while (receive_header() && receive_payload(parameters)) {
    receive_position_ = 0;
    if ((reply_.flags & kAhead) == 0) {
      had_ahead_ = false;
      reply = reply_;
      return true;
    }
    end_ahead();
  }
  return false;
}

// Whether anything came of what is sent ahead of the reply.
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

// The reply itself is still to come.
void TcpClientChannel::end_ahead() {
  if (std::exchange(had_ahead_, true)) {
    throw Error(ErrorCode::kProtocol, "the server sent parameters ahead of one reply twice");
  }
}

bool TcpClientChannel::receive_header() {
  if (receive_position_ >= sizeof reply_) {
    return true;
  }
  Parts parts;
  parts.add(reinterpret_cast<std::byte*>(&reply_) + receive_position_, sizeof reply_ - receive_position_);
  receive_position_ += parts.receive(socket_.fd());
  if (receive_position_ < sizeof reply_) {
    return false;
  }
  const bool known = reply_.payload_bytes == 0 || reply_.payload_bytes == shape_.pull_bytes();
  if (reply_.magic != kMagic || !known) {
    throw Error(ErrorCode::kProtocol, "the server sent a reply that is not one");
  }
  return true;
}

// What is there of the payload, without waiting; true when that is all of it.
bool TcpClientChannel::receive_payload(std::span<const TargetPiece> parameters) {
  while (receive_position_ - sizeof reply_ < reply_.payload_bytes) {
    const std::uint64_t moved = shape_.pull_format->plain() ? receive_plain(parameters) : receive_chunks(parameters);
    if (moved == 0) {
      return false;
    }
    receive_position_ += moved;
  }
  return true;
}

std::uint64_t TcpClientChannel::receive_plain(std::span<const TargetPiece> parameters) {
  const std::uint64_t position = receive_position_ - sizeof reply_;
  const std::uint64_t split = position % sizeof(float);  // bytes of an element that came without the rest of it
  Parts parts;
  std::uint64_t skip = split;
  for_each_run<TargetPiece>(
      parameters, position / sizeof(float), shape_.shard_floats,
      [&](float* to, std::uint64_t count) {
        parts.add(reinterpret_cast<std::byte*>(to) + skip, count * sizeof(float) - skip);
        skip = 0;
      },
      [&](std::uint64_t count) {
        for (std::uint64_t left = count * sizeof(float) - std::exchange(skip, 0); left > 0 && !parts.full();) {
          const std::uint64_t step = std::min<std::uint64_t>(left, decoding_.size());
          parts.add(decoding_.data(), step);  // padding: received and forgotten
          left -= step;
        }
      });
  return parts.receive(socket_.fd());
}

// Some chunks at a time; each is decoded as soon as it is complete.
std::uint64_t TcpClientChannel::receive_chunks(std::span<const TargetPiece> parameters) {
  const std::uint64_t chunk_bytes = shape_.pull_format->chunk_bytes(kFormatChunkFloats);
  const std::uint64_t position = receive_position_ - sizeof reply_;
  const std::uint64_t first = position / decoding_.size() * decoding_.size();  // byte of the payload, in decoding_[0]
  const std::uint64_t there = position - first;
  Parts parts;
  parts.add(decoding_.data() + there, std::min<std::uint64_t>(decoding_.size(), reply_.payload_bytes - first) - there);
  const std::uint64_t moved = parts.receive(socket_.fd());
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
                                    std::span<const TargetPiece> parameters) {
  const WireFormat& format = *shape_.pull_format;
  const std::size_t count = chunk_at(shape_, begin);
  if (!format.valid(from, count)) {
    throw Error(ErrorCode::kProtocol, "the server sent parameters that are not in the format agreed on");
  }
  format.decode(decoded_.data(), from, count, 0, count);
  std::size_t at = 0;
  for_each_run<TargetPiece>(
      parameters, begin, begin + count,
      [&](float* to, std::uint64_t run) {
        copy(to, decoded_.data() + at, run);
        at += run;
      },
      [&](std::uint64_t run) { at += run; });
}

// ---- Waiting ----

short TcpClientChannel::poll_events() const {
  return static_cast<short>((sending() ? POLLOUT : 0) | (sending() && expected_.empty() ? 0 : POLLIN));
}

void TcpClientChannel::wait(milliseconds at_most) {
  pollfd entry{socket_.fd(), poll_events(), 0};
  ::poll(&entry, 1, static_cast<int>(at_most.count()));
}

}  // namespace distnet
