#include "transport/tcp_channel.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/kernels.h"

namespace distnet {
namespace {

constexpr std::uint64_t kInlineBytes = 64U << 10U;  // of a reply that the data thread sends where it goes at once
constexpr std::chrono::seconds kLastReplies{2};     // for the replies still leaving when a session ends
constexpr std::size_t kBounceFloats = 16U << 10U;
constexpr std::size_t kMaxParts = 64;
static_assert(kBounceFloats * sizeof(float) >= kInlineBytes);

std::span<const std::byte> bytes_of(const float* data, std::uint64_t count) {
  return {reinterpret_cast<const std::byte*>(data), count * sizeof(float)};
}

// Up to kMaxParts pieces of memory for one system call.
struct Parts {
  std::array<iovec, kMaxParts> parts{};
  std::size_t count = 0;

  bool full() const { return count == kMaxParts; }
  void add(void* data, std::uint64_t bytes) {
    if (bytes != 0 && !full()) {
      parts[count++] = {data, bytes};
    }
  }
};

// Bytes [position, total) of a payload whose runs lie in `pieces`, with `padding` for what lies between them.
template <typename Piece>
void add_payload(Parts& parts, std::span<const Piece> pieces, std::uint64_t position, std::uint64_t total,
                 std::span<std::byte> padding) {
  const auto add_padding = [&](std::uint64_t end) {
    while (position < end && !parts.full()) {
      const std::uint64_t step = std::min<std::uint64_t>(end - position, padding.size());
      parts.add(padding.data(), step);
      position += step;
    }
  };
  for (const Piece& piece : pieces) {
    const std::uint64_t begin = piece.offset * sizeof(float);
    const std::uint64_t end = begin + piece.count * sizeof(float);
    if (end <= position) {
      continue;
    }
    add_padding(begin);
    if (parts.full()) {
      return;
    }
    const std::uint64_t skip = position - begin;
    if constexpr (std::is_same_v<Piece, SourcePiece>) {
      parts.add(const_cast<char*>(reinterpret_cast<const char*>(piece.from)) + skip, end - position);
    } else {
      parts.add(reinterpret_cast<char*>(piece.to) + skip, end - position);
    }
    position = end;
  }
  add_padding(total);
}

std::uint64_t checked_moved(ssize_t moved, bool receiving) {
  if (moved > 0) {
    return static_cast<std::uint64_t>(moved);
  }
  if (moved < 0 && (errno == EAGAIN || errno == EINTR)) {
    return 0;
  }
  const std::string why = moved < 0 ? std::strerror(errno) : "end of stream";
  throw Error(ErrorCode::kPeerClosed, std::string("the server closed the connection while ") +
                                          (receiving ? "replying" : "taking a push") + " (" + why + ")");
}

}  // namespace

// ---- Server ----

TcpServerChannel::TcpServerChannel(const ChannelShape& shape, const Tuning&, Socket socket)
    : shape_(shape),
      socket_(std::move(socket)),
      slots_(Region::private_memory(shape.shard_floats * sizeof(float) * shape.max_inflight)),
      bounce_(kBounceFloats),
      sender_([this] { send_replies(); }) {}

TcpServerChannel::~TcpServerChannel() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLastReplies, [&] { return closed_ || (outgoing_.empty() && !sending_); });
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
  if (!wait_for([this] { return outgoing_.size() + (sending_ ? 1 : 0) < shape_.max_inflight; })) {
    return std::nullopt;
  }
  try {
    socket_.receive_all({reinterpret_cast<std::byte*>(&request.header), sizeof request.header});
    const std::uint64_t bytes = request.header.payload_bytes;
    if (request.header.magic != kMagic ||
        (bytes != 0 && (bytes != shape_.shard_floats * sizeof(float) || request.header.push == 0))) {
      throw Error(ErrorCode::kProtocol, "a request that is not one, or with a gradient of another size than the shard");
    }
    if (bytes != 0) {
      if (!wait_for([&] { return request.header.push <= settled_ + shape_.max_inflight; })) {
        return std::nullopt;
      }
      float* const slot = slots_.as<float>() + (request.header.push - 1) % shape_.max_inflight * shape_.shard_floats;
      cut_off_ = true;
      socket_.receive_all({reinterpret_cast<std::byte*>(slot), bytes});
      cut_off_ = false;
      request.payload = slot;
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPeerClosed) {
      return std::nullopt;
    }
    throw;
  }
  bytes_received_.fetch_add(sizeof request.header + request.header.payload_bytes, std::memory_order_relaxed);
  return request;
}

void TcpServerChannel::reply(const ReplyHeader& header, ReplyPayload payload) {
  Outgoing outgoing{header, std::move(payload), {}};
  std::unique_lock lock(mutex_);
  if (!closed_ && outgoing_.empty() && !sending_ && header.payload_bytes <= kInlineBytes) {
    sending_ = true;
    lock.unlock();
    const bool sent = send_at_once(outgoing);
    lock.lock();
    sending_ = false;
    if (sent) {
      changed_.notify_all();
      return;
    }
  }
  outgoing_.push_back(std::move(outgoing));
  changed_.notify_all();
}

// A small reply, in one piece; what the socket does not take is left in `rest`.
bool TcpServerChannel::send_at_once(Outgoing& outgoing) {
  std::vector<std::byte> message(sizeof outgoing.header + outgoing.header.payload_bytes);
  std::memcpy(message.data(), &outgoing.header, sizeof outgoing.header);
  if (outgoing.header.payload_bytes != 0) {
    copy(bounce_.data(), outgoing.payload.data, outgoing.payload.count);
    std::memcpy(message.data() + sizeof outgoing.header, bounce_.data(), outgoing.header.payload_bytes);
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

void TcpServerChannel::send(const Outgoing& outgoing) {
  try {
    if (!outgoing.rest.empty()) {
      socket_.send_all(outgoing.rest);
      bytes_sent_.fetch_add(outgoing.rest.size(), std::memory_order_relaxed);
      return;
    }
    socket_.send_all({reinterpret_cast<const std::byte*>(&outgoing.header), sizeof outgoing.header});
    const float* const data = outgoing.payload.data;
    if (outgoing.header.payload_bytes != 0 && !outgoing.payload.live) {
      socket_.send_all(bytes_of(data, outgoing.payload.count));
    } else if (outgoing.header.payload_bytes != 0) {
      for (std::uint64_t at = 0; at < outgoing.payload.count; at += kBounceFloats) {
        const std::uint64_t count = std::min<std::uint64_t>(kBounceFloats, outgoing.payload.count - at);
        copy(bounce_.data(), data + at, count);
        socket_.send_all(bytes_of(bounce_.data(), count));
      }
    }
    bytes_sent_.fetch_add(sizeof outgoing.header + outgoing.header.payload_bytes, std::memory_order_relaxed);
  } catch (const Error&) {
    socket_.shutdown();  // the session's control connection tells why
  }
  if (outgoing.payload.release) {
    outgoing.payload.release();
  }
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

// ---- Client ----

TcpClientChannel::TcpClientChannel(const ChannelShape& shape, const Tuning&, Socket socket)
    : shape_(shape), socket_(std::move(socket)) {}

bool TcpClientChannel::stage(const RequestHeader&, std::span<const SourcePiece> gradient, float scale) {
  bool finite = true;
  if (scale == 1.0F) {
    for (const SourcePiece& piece : gradient) {
      finite &= all_finite(piece.from, piece.count);
    }
    gradient_.assign(gradient.begin(), gradient.end());
    return finite;
  }
  scaled_.resize(shape_.shard_floats);
  for (const SourcePiece& piece : gradient) {
    finite &= copy_scaled_finite(scaled_.data() + piece.offset, piece.from, scale, piece.count);
  }
  gradient_.assign(1, {scaled_.data(), 0, shape_.shard_floats});
  return finite;
}

void TcpClientChannel::post(const RequestHeader& request) {
  DISTNET_INVARIANT(send_position_ == send_total_);
  request_ = request;
  if (request.payload_bytes == 0) {
    gradient_.clear();  // of an earlier push, or one that holds NaN: none of it may leave
  }
  send_position_ = 0;
  send_total_ = sizeof request_ + request.payload_bytes;
}

bool TcpClientChannel::flush() {
  static constexpr std::array<std::byte, 64> kZeros{};
  const std::span padding(const_cast<std::byte*>(kZeros.data()), kZeros.size());
  while (send_position_ < send_total_) {
    Parts parts;
    if (send_position_ < sizeof request_) {
      parts.add(reinterpret_cast<char*>(&request_) + send_position_, sizeof request_ - send_position_);
    }
    const std::uint64_t payload_position = std::max<std::uint64_t>(send_position_, sizeof request_) - sizeof request_;
    add_payload<SourcePiece>(parts, gradient_, payload_position, request_.payload_bytes, padding);
    msghdr message{};
    message.msg_iov = parts.parts.data();
    message.msg_iovlen = parts.count;
    const std::uint64_t moved = checked_moved(sendmsg(socket_.fd(), &message, MSG_NOSIGNAL), false);
    if (moved == 0) {
      return false;
    }
    send_position_ += moved;
  }
  return true;
}

bool TcpClientChannel::receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) {
  std::array<std::byte, 64> trash{};
  while (true) {
    if (receive_position_ < sizeof reply_) {
      receive_position_ += checked_moved(recv(socket_.fd(), reinterpret_cast<char*>(&reply_) + receive_position_,
                                              sizeof reply_ - receive_position_, 0),
                                         true);
      if (receive_position_ < sizeof reply_) {
        return false;
      }
      const bool known = reply_.payload_bytes == 0 || reply_.payload_bytes == shape_.shard_floats * sizeof(float);
      if (reply_.magic != kMagic || !known) {
        throw Error(ErrorCode::kProtocol, "the server sent a reply that is not one");
      }
    }
    const std::uint64_t position = receive_position_ - sizeof reply_;
    if (position == reply_.payload_bytes) {
      finish_receiving(reply);
      return true;
    }
    Parts parts;
    add_payload<TargetPiece>(parts, parameters, position, reply_.payload_bytes, trash);
    msghdr message{};
    message.msg_iov = parts.parts.data();
    message.msg_iovlen = parts.count;
    const std::uint64_t moved = checked_moved(recvmsg(socket_.fd(), &message, 0), true);
    if (moved == 0) {
      return false;
    }
    receive_position_ += moved;
  }
}

void TcpClientChannel::finish_receiving(ReplyHeader& reply) {
  reply = reply_;
  receive_position_ = 0;
}

short TcpClientChannel::poll_events() const { return send_position_ < send_total_ ? POLLOUT : POLLIN; }

void TcpClientChannel::wait(milliseconds at_most) {
  pollfd entry{socket_.fd(), poll_events(), 0};
  ::poll(&entry, 1, static_cast<int>(at_most.count()));
}

}  // namespace distnet
