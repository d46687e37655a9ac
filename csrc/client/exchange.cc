// The client's exchange: gradients out to all shards, replies in.
#include <algorithm>
#include <cmath>
#include <functional>

#include <poll.h>

#include "base/error.h"
#include "client/client.h"
#include "kernels/kernels.h"

namespace distnet {
namespace {

bool wants_average(Client::Call call) {
  return call == Client::Call::kPullAverage || call == Client::Call::kPullAverageSettled;
}

bool wants_settled(Client::Call call) {
  return call == Client::Call::kPullSettled || call == Client::Call::kPullAverageSettled;
}

}  // namespace

// Waits until `done(shard)` holds for all, asking it again whenever a link may have got further.
template <typename Done>
void Client::wait_for_links(const Done& done, const Interrupt& interrupt) {
  Clock::time_point next_check = Clock::now() + kWaitSlice;
  while (true) {
    ClientChannel* sleeping = nullptr;
    std::vector<pollfd> polled;
    for (Shard& shard : shards_) {
      const bool was_lost = shard.link->is_lost();  // before: what arrived until then still counts
      if (done(shard)) {
        continue;
      }
      if (was_lost) {
        shard.link->check_alive();
      }
      ClientChannel& channel = shard.link->channel();
      if (channel.poll_fd() >= 0) {
        polled.push_back({channel.poll_fd(), channel.poll_events(), 0});
      } else if (sleeping == nullptr) {
        sleeping = &channel;
      }
    }
    if (sleeping == nullptr && polled.empty()) {
      return;
    }
    if (sleeping != nullptr && polled.empty()) {
      sleeping->wait(kWaitSlice);
    } else {
      const int at_most_ms = sleeping != nullptr ? 1 : static_cast<int>(kWaitSlice.count());  // both kinds: look often
      ::poll(polled.data(), polled.size(), at_most_ms);
    }
    if (Clock::now() >= next_check) {
      next_check = Clock::now() + kWaitSlice;
      for (const Shard& shard : shards_) {
        shard.link->check_alive();
      }
      if (interrupt) {
        interrupt();
      }
    }
  }
}

float Client::clip_scale(std::span<const float* const> gradient) const {
  if (clip_norm_ == 0.0) {
    return 1.0F;
  }
  double squares = 0.0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    squares += sum_of_squares(gradient[i], manifest_.tensors[i].count);
  }
  const double norm = std::sqrt(squares);
  return norm > clip_norm_ ? static_cast<float>(clip_norm_ / norm) : 1.0F;
}

bool Client::reaches_flat(std::span<const float* const> gradient) const {
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    if (std::less<>()(gradient[i], flat() + flat_floats_) &&
        std::less<>()(static_cast<const float*>(flat()), gradient[i] + manifest_.tensors[i].count)) {
      return true;
    }
  }
  return false;
}

RequestHeader Client::request_for(Call call, bool into_flat) const {
  RequestHeader request;
  const bool pushes = call == Call::kPush || call == Call::kPushPull;
  request.number = next_number_;
  request.kind = pushes ? RequestKind::kPush : RequestKind::kPull;
  if (pushes) {
    request.push = pushes_ + 1;
    request.round = joins_all_ ? rounds_begun_ : 0;
  }
  if (call != Call::kPush) {
    request.flags = static_cast<std::uint16_t>(kWantParameters | (wants_average(call) ? kWantAverage : 0) |
                                               (wants_settled(call) ? kWantSettled : 0) | (into_flat ? kDeliver : 0));
  }
  return request;
}

RequestHeader Client::to_shard(const RequestHeader& request, const Shard& shard) const {
  RequestHeader own = request;
  own.base_version = shard.parameters_version;
  own.payload_bytes = request.kind == RequestKind::kPush ? shard.link->channel().push_bytes() : 0;
  if (!shard.delivers) {
    own.flags = static_cast<std::uint16_t>(own.flags & ~kDeliver);
  }
  return own;
}

void Client::start(const RequestHeader& request, std::span<const float* const> gradient) {
  const float scale = clip_scale(gradient);
  for (Shard& shard : shards_) {
    shard.sources.clear();
    for (const TensorPiece& piece : shard.pieces) {
      shard.sources.push_back({gradient[piece.tensor] + piece.tensor_offset, piece.shard_offset, piece.count});
    }
    shard.link->channel().start(to_shard(request, shard), shard.sources, scale);
  }
}

void Client::remember(const RequestHeader& request, Call call) {
  ++next_number_;
  if (request.push != 0) {
    pushes_ = request.push;
    rounds_begun_ += joins_all_ ? 1 : 0;
  }
  const std::vector<bool> received(shards_.size(), false);
  outstanding_.push_back({request.number, call, false, received, ErrorCode::kNone, request.round});
}

void Client::flush(const Interrupt& interrupt) {
  wait_for_links([](Shard& shard) { return shard.link->attempt([&] { return shard.link->channel().flush(); }); },
                 interrupt);
}

// Sends a push to every shard; it counts only where all of its gradient is finite. Says whether it does.
bool Client::send_push(const RequestHeader& request, std::span<const float* const> gradient,
                       const Interrupt& interrupt) {
  start(request, gradient);
  if ((request.flags & kDeliver) != 0) {
    expect_delivery();
  }
  flush(interrupt);
  const bool finite = std::ranges::all_of(shards_, [](const Shard& shard) { return shard.link->channel().finite(); });
  for (Shard& shard : shards_) {
    shard.link->channel().conclude(finite);
  }
  flush(interrupt);
  return finite;
}

void Client::expect_delivery() {
  use_own_targets();
  for (Shard& shard : shards_) {
    shard.link->channel().expect(shard.targets);
  }
}

std::uint64_t Client::begin(Call call, std::span<const float* const> gradient, bool into_flat,
                            const Interrupt& interrupt) {
  check_usable();
  if (wants_average(call) && !has_average()) {
    throw Error(ErrorCode::kConfig, "no moving average is kept here; start the server with average=decay");
  }
  drain_abandoned(interrupt);
  if (outstanding_.size() >= max_inflight_) {
    throw Error(ErrorCode::kConfig,
                std::to_string(outstanding_.size()) +
                    " calls are on the way, and max_inflight allows no more; wait() for the oldest first");
  }
  // Not where the gradient lies in flat() itself: it would be overwritten while it is sent.
  const bool may_deliver = into_flat && outstanding_.empty() && !reaches_flat(gradient);
  const RequestHeader request = request_for(call, may_deliver);
  const bool pushes = request.push != 0;
  if (pushes && !options_.rank) {
    throw Error(ErrorCode::kConfig, "an observer cannot push; connect with a rank");
  }
  if (pushes) {
    wait_for_links([&](Shard& shard) { return shard.link->channel().has_room(request.push); }, interrupt);
  }
  remember(request, call);
  bool counts = true;
  try {
    if (pushes) {
      counts = send_push(request, gradient, interrupt);
    } else {
      for (Shard& shard : shards_) {
        shard.link->channel().post(to_shard(request, shard));
      }
      flush(interrupt);
    }
  } catch (...) {
    broken_ = "a request was broken off half-way; connect anew";
    throw;
  }
  if (!counts) {
    outstanding_.back().abandoned = true;
    if (may_deliver && !joins_all_) {
      drain_abandoned(interrupt);  // its parameters may be half-way into flat()
    }
    throw Error(ErrorCode::kNonFiniteGradient,
                "the gradient of push " + std::to_string(pushes_) +
                    " holds NaN or infinity, or a value too large for the format it travels in; it was not applied. "
                    "Lower the rate, or clip the gradient");
  }
  return request.number;
}

void Client::take_reply(Outstanding& outstanding, std::size_t index, const ReplyHeader& reply) {
  Shard& shard = shards_[index];
  if (reply.magic != kMagic || reply.number != outstanding.number ||
      reply.status > static_cast<std::uint16_t>(ErrorCode::kUnauthorized)) {
    throw Error(ErrorCode::kProtocol, "the server answered request " + std::to_string(reply.number) + " instead of " +
                                          std::to_string(outstanding.number));
  }
  if (reply.status != 0) {
    outstanding.status = static_cast<ErrorCode>(reply.status);
  }
  shard.last = reply;
  if (reply.payload_bytes != 0 || (reply.flags & kDeliver) != 0) {
    shard.parameters_version = reply.version;
  }
  outstanding.received[index] = true;
}

void Client::receive_all(Outstanding& outstanding, const Interrupt& interrupt) {
  wait_for_links(
      [&](Shard& shard) {
        const auto index = static_cast<std::size_t>(&shard - shards_.data());
        if (outstanding.received[index]) {
          return true;
        }
        ReplyHeader reply;
        if (!shard.link->attempt([&] { return shard.link->channel().receive(reply, shard.targets); })) {
          return false;
        }
        take_reply(outstanding, index, reply);
        return true;
      },
      interrupt);
  if (joins_all_ && outstanding.status == ErrorCode::kRoundAborted) {
    find_round_again();
  }
}

// The next push is for the round now open, or for the one after the last that a push is on its way to.
void Client::find_round_again() {
  rounds_begun_ = round();
  for (const Outstanding& outstanding : outstanding_) {
    const bool answered = std::ranges::find(outstanding.received, false) == outstanding.received.end();
    const bool pushes = outstanding.call == Call::kPush || outstanding.call == Call::kPushPull;
    if (pushes && !answered) {
      rounds_begun_ = std::max(rounds_begun_, outstanding.round + 1);
    }
  }
}

void Client::use_own_targets() {
  for (Shard& shard : shards_) {
    shard.targets.assign(1, {flat() + shard.flat_offset, 0, shard.link->welcome().range.size()});
  }
}

void Client::drain_abandoned(const Interrupt& interrupt) {
  while (!outstanding_.empty() && outstanding_.front().abandoned) {
    use_own_targets();
    receive_all(outstanding_.front(), interrupt);
    outstanding_.pop_front();
  }
}

void Client::raise(const Outstanding& outstanding) const {
  if (outstanding.status == ErrorCode::kRoundAborted) {
    throw Error(ErrorCode::kRoundAborted,
                "the round ended without this push: it came after the round deadline, or a member was lost and the "
                "policy is to "
                "abort, or the server stops; the round now open is " +
                    std::to_string(round()));
  }
  if (outstanding.status != ErrorCode::kNone) {
    throw Error(outstanding.status, "the server refused the request");
  }
}

void Client::finish(std::uint64_t number, std::span<float* const> targets, const Interrupt& interrupt) {
  check_usable();
  drain_abandoned(interrupt);
  if (outstanding_.empty() || outstanding_.front().number != number) {
    throw Error(ErrorCode::kConfig,
                "replies come in the order of the calls; wait() for the oldest handle first, and once");
  }
  if (targets.empty()) {
    use_own_targets();
  } else {
    for (Shard& shard : shards_) {
      shard.targets.clear();
      for (const TensorPiece& piece : shard.pieces) {
        shard.targets.push_back({targets[piece.tensor] + piece.tensor_offset, piece.shard_offset, piece.count});
      }
    }
  }
  Outstanding& outstanding = outstanding_.front();
  try {
    receive_all(outstanding, interrupt);
  } catch (...) {
    outstanding.abandoned = true;
    throw;
  }
  const Outstanding ended = outstanding;
  outstanding_.pop_front();
  raise(ended);
}

std::vector<const float*> Client::finish_in_place(std::uint64_t number, const Interrupt& interrupt) {
  std::vector<const float*> tensors;
  const bool readable = shards_.size() == 1 && shards_.front().link->channel().kind() == TransportKind::kShm;
  if (!readable) {
    finish(number, {}, interrupt);
    for (const Tensor& tensor : manifest_.tensors) {
      tensors.push_back(flat() + tensor.offset);
    }
    return tensors;
  }
  check_usable();
  drain_abandoned(interrupt);
  if (outstanding_.empty() || outstanding_.front().number != number) {
    throw Error(ErrorCode::kConfig,
                "replies come in the order of the calls; wait() for the oldest handle first, and once");
  }
  Shard& shard = shards_.front();
  shard.targets.clear();
  try {
    receive_all(outstanding_.front(), interrupt);
  } catch (...) {
    outstanding_.front().abandoned = true;
    throw;
  }
  const Outstanding ended = outstanding_.front();
  outstanding_.pop_front();
  raise(ended);
  const float* const at = shard.link->channel().in_place();
  for (const Tensor& tensor : manifest_.tensors) {
    tensors.push_back((at != nullptr ? at : flat()) + tensor.offset);
  }
  return tensors;
}

}  // namespace distnet
