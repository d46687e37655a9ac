// The client's exchange: gradients out to all shards, replies in.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/waiting.h"
#include "client/client.h"
#include "kernels/kernels.h"
#include "wire/learning_rate.h"

namespace distnet {
namespace {

constexpr int kSeldomLookMs = 16;

bool wants_ema(Client::Call call) { return call == Client::Call::kPullEma || call == Client::Call::kPullEmaSettled; }

bool adds(Client::Call call) { return call == Client::Call::kAdd || call == Client::Call::kAddPull; }

// Or a change, which is sent like one.
bool brings_gradient(Client::Call call) {
  return call == Client::Call::kPush || call == Client::Call::kPushPull || adds(call);
}

bool abstains(Client::Call call) { return call == Client::Call::kAbstain || call == Client::Call::kAbstainPull; }

bool pushes(Client::Call call) { return brings_gradient(call) || abstains(call); }

bool wants_parameters(Client::Call call) {
  return call != Client::Call::kPush && call != Client::Call::kAbstain && call != Client::Call::kAdd &&
         call != Client::Call::kSettle;
}

bool brings_payload(RequestKind kind) { return kind == RequestKind::kGradient || kind == RequestKind::kChange; }

std::string number_text(double number) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", number);
  return text.data();
}

bool wants_settled(Client::Call call) {
  return call == Client::Call::kPullSettled || call == Client::Call::kPullEmaSettled;
}

}  // namespace

// Waits until `done(shard)` returns true for all, asking it again whenever a link may have got further.
template <typename Done>
void Client::wait_for_links(const Done& done, bool for_replies, const Interrupt& interrupt) {
  try {
    wait_until_done(done, for_replies, interrupt);
  } catch (const Error&) {
    check_lost();  // the reason of the link that was lost first, not of those that ended because of it
    throw;
  }
}

template <typename Done>
void Client::wait_until_done(const Done& done, bool for_replies, const Interrupt& interrupt) {
  Deadline next_check = Deadline::after(kInterruptInterval);
  int look_ms = 1;  // where both kinds of channel are waited for: sleeping on one, this thread misses the other
  for (const Shard& shard : shards_) {
    shard.link->begin_to_wait();
  }
  while (true) {
    ClientChannel* sleeping = nullptr;
    std::vector<pollfd> polled;
    std::vector<Link*> waiting;
    for (Shard& shard : shards_) {
      const bool was_lost = shard.link->is_lost();  // before: what arrived until then still counts
      if (done(shard)) {
        continue;
      }
      if (was_lost) {
        shard.link->check_alive();
      }
      waiting.push_back(shard.link.get());
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
      sleeping->wait(kInterruptInterval);
    } else {
      poll_until(polled, sleeping != nullptr ? milliseconds{look_ms} : kInterruptInterval);
      look_ms = std::min(2 * look_ms, kSeldomLookMs);
    }
    if (next_check.expired()) {
      next_check = Deadline::after(kInterruptInterval);
      for (const Shard& shard : shards_) {
        shard.link->check_alive();
      }
      for (Link* const link : waiting) {
        link->check_data_connection(for_replies);
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

void Client::check_settings(const PushSettings& settings) const {
  if (settings.learning_rate && !can_be_rate(*settings.learning_rate)) {
    throw Error(ErrorCode::kConfig, "learning_rate is " + number_text(*settings.learning_rate) +
                                        "; expected a number of at least 0 that float32 can hold, or none");
  }
  for (const double rate : settings.group_rates) {
    if (!std::isnan(rate) && !can_be_rate(rate)) {
      throw Error(ErrorCode::kConfig, "a group's learning_rate is " + number_text(rate) +
                                          "; expected a number of at least 0 that float32 can hold, or none");
    }
  }
  if (!settings.group_rates.empty() && settings.group_rates.size() != groups().size()) {
    throw Error(ErrorCode::kConfig, std::to_string(settings.group_rates.size()) +
                                        " learning rates by groups; expected one for each of the server's " +
                                        std::to_string(groups().size()));
  }
  if (!settings.weight) {
    return;
  }
  if (!(std::isfinite(*settings.weight) && *settings.weight > 0.0F)) {
    throw Error(ErrorCode::kConfig, "weight is " + std::to_string(*settings.weight) +
                                        "; expected a number above 0 that float32 can hold, or none");
  }
  if (!joins_all_) {
    throw Error(ErrorCode::kConfig,
                "weight= is for the mean of a round; under asynchronous semantics each push is an update by itself, "
                "with nothing to be weighed against: multiply the gradient, or push without a weight");
  }
  if (!takes_means_) {
    throw Error(ErrorCode::kConfig,
                "weight= is for the mean of a round, and the server's reduction is 'sum': multiply the gradient, or "
                "start the server with reduction='mean'");
  }
}

// What lossy formats left unsent of gradients is no part of a change, nor the other way round.
void Client::check_unsent(Call call) {
  if (unsent_of_changes_ == adds(call)) {
    return;
  }
  for (const Shard& shard : shards_) {
    if (unsent_of_changes_ &&
        std::ranges::any_of(shard.link->channel().unsent(), [](float left) { return left != 0.0F; })) {
      throw Error(ErrorCode::kConfig,
                  std::string("the format of pushes has left something unsent of ") +
                      (adds(call) ? "gradients, which would go along with this change"
                                  : "changes, which would go along "
                                    "with this gradient") +
                      ": use one of push() and add(), or give it up by restore_unsent() with zeros");
    }
  }
  unsent_of_changes_ = adds(call);
}

RequestHeader Client::request_for(Call call, bool into_flat, const PushSettings& settings) const {
  RequestHeader request;
  request.number = next_number_;
  request.kind = adds(call)              ? RequestKind::kChange
                 : brings_gradient(call) ? RequestKind::kGradient
                 : abstains(call)        ? RequestKind::kAbstention
                                         : RequestKind::kNone;
  if (pushes(call)) {
    request.push = pushes_ + 1;
    request.round = joins_all_ ? std::max(rounds_begun_, gatherer_->least_round()) : 0;
  }
  if (brings_gradient(call)) {
    request.fields =
        static_cast<std::uint8_t>((settings.learning_rate ? kHasLearningRate : 0) | (settings.weight ? kHasWeight : 0) |
                                  (settings.group_rates.empty() ? 0 : kHasGroupRates));
    request.learning_rate = settings.learning_rate.value_or(0.0);
    request.weight = settings.weight.value_or(0.0F);
  }
  if (wants_parameters(call)) {
    request.flags = static_cast<std::uint16_t>(kWantParameters | (wants_ema(call) ? kWantEma : 0) |
                                               (wants_settled(call) ? kWantSettled : 0) | (into_flat ? kDeliver : 0));
  }
  return request;
}

RequestHeader Client::to_shard(const RequestHeader& request, const Shard& shard) const {
  RequestHeader own = request;
  own.base_version = shard.parameters_version;
  own.incarnation = shard.link->welcome().grant.incarnation;
  own.payload_bytes = brings_payload(request.kind) ? shard.link->channel().push_bytes() : 0;
  if (!shard.delivers) {
    own.flags = static_cast<std::uint16_t>(own.flags & ~kDeliver);
  }
  return own;
}

void Client::start(const RequestHeader& request, std::span<const float* const> gradient, const PushSettings& settings) {
  const float scale = request.kind == RequestKind::kGradient ? clip_scale(gradient) : 1.0F;
  for (Shard& shard : shards_) {
    shard.sources.clear();
    for (const TensorSlice& slice : shard.slices) {
      shard.sources.push_back({gradient[slice.tensor] + slice.tensor_offset, slice.shard_offset, slice.count});
    }
    shard.link->channel().start(to_shard(request, shard), settings.group_rates, shard.sources, scale);
  }
}

void Client::remember(const RequestHeader& request, Call call, bool at_once) {
  ++next_number_;
  if (request.push != 0) {
    pushes_ = request.push;
    rounds_begun_ = joins_all_ ? request.round + 1 : 0;
  }
  const std::vector<bool> received(shards_.size(), false);
  outstanding_.push_back(
      {request.number, call, at_once, false, false, received, {}, ErrorCode::kNone, request.round, pushes_});
}

void Client::flush(const Interrupt& interrupt) {
  wait_for_links([](Shard& shard) { return shard.link->attempt([&] { return shard.link->channel().flush(); }); }, false,
                 interrupt);
}

// Sends a push to every shard; it counts only where all of its gradient is finite. Says whether it does.
bool Client::send_push(const RequestHeader& request, std::span<const float* const> gradient,
                       const PushSettings& settings, const Interrupt& interrupt) {
  start(request, gradient, settings);
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

std::uint64_t Client::begin(Call call, std::span<const float* const> gradient, Then then, const Interrupt& interrupt,
                            const PushSettings& settings) {
  check_usable();
  check_settings(settings);
  if (wants_ema(call) && !has_ema()) {
    throw Error(ErrorCode::kConfig, "no moving average is kept here; start the server with ema_decay=0.999");
  }
  if (pushes(call) && !options_.rank) {
    throw Error(ErrorCode::kConfig, "an observer cannot push; connect with a rank");
  }
  if (brings_gradient(call)) {
    check_unsent(call);
  }
  if (pushes(call) && finished_) {
    throw Error(ErrorCode::kConfig, "this rank has finished, and pushes no more after finish(); it may still pull");
  }
  give_up_unfinished();
  drain_abandoned(interrupt);
  if (then != Then::kLater && std::ranges::any_of(outstanding_, [](const auto& one) { return !one.abandoned; })) {
    throw Error(ErrorCode::kConfig, "an earlier call is still on its way; wait() for its handle first, or drop it");
  }
  make_room(interrupt);
  // Not where the gradient lies in flat() itself: it would be overwritten while it is sent.
  const bool may_deliver = then == Then::kAtOnceInFlat && outstanding_.empty() && !reaches_flat(gradient);
  const RequestHeader request = request_for(call, may_deliver, settings);
  if (pushes(call)) {
    wait_for_links([&](Shard& shard) { return shard.link->channel().has_room(request.push); }, false, interrupt);
  }
  remember(request, call, then != Then::kLater);
  if (send(call, request, gradient, settings, interrupt)) {
    return request.number;
  }
  outstanding_.back().abandoned = true;
  if (may_deliver && !joins_all_) {
    drain_abandoned(interrupt);  // its parameters may be half-way into flat()
  }
  throw Error(ErrorCode::kNonFiniteGradient, why_not_finite(call, gradient));
}

std::string Client::why_not_finite(Call call, std::span<const float* const> gradient) const {
  std::string where;
  for (std::size_t i = 0; i < gradient.size() && where.empty(); ++i) {
    const Tensor& tensor = manifest_.tensors[i];
    where = all_finite(gradient[i], tensor.count) ? "" : ", first in tensor '" + tensor.name + "'";
  }
  return std::string(adds(call) ? "the change" : "the gradient") + " of push " + std::to_string(pushes_) +
         " holds NaN or infinity, or a value too large for the format it travels in" + where +
         "; it was not applied. Lower the learning rate, or clip the gradient";
}

// Returns whether the request counts: its gradient is finite.
bool Client::send(Call call, const RequestHeader& request, std::span<const float* const> gradient,
                  const PushSettings& settings, const Interrupt& interrupt) {
  try {
    if (brings_gradient(call)) {
      return send_push(request, gradient, settings, interrupt);
    }
    for (Shard& shard : shards_) {
      shard.link->channel().post(to_shard(request, shard));
    }
    flush(interrupt);
    return true;
  } catch (...) {
    break_off();
    throw;
  }
}

void Client::take_reply(Outstanding& outstanding, std::size_t index, const ReplyHeader& reply) {
  Shard& shard = shards_[index];
  if (reply.magic != kMagic || reply.number != outstanding.number ||
      reply.status > static_cast<std::uint16_t>(kLastErrorCode)) {
    throw Error(ErrorCode::kProtocol, "the server answered request " + std::to_string(reply.number) + " instead of " +
                                          std::to_string(outstanding.number));
  }
  if ((reply.flags & kOfPushBefore) != 0) {
    refused_before_ = outstanding.pushes - (pushes(outstanding.call) ? 1 : 0);
  } else if (reply.status != 0) {
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
      true, interrupt);
  if (joins_all_ && outstanding.status == ErrorCode::kRoundAborted) {
    find_round_again();
  }
  part_those_that_share_a_core();
}

// The next push is for the round now open, or for the one after the last that a push is on its way to.
void Client::find_round_again() {
  rounds_begun_ = round();
  for (const Outstanding& outstanding : outstanding_) {
    const bool answered = std::ranges::find(outstanding.received, false) == outstanding.received.end();
    if (pushes(outstanding.call) && !answered) {
      rounds_begun_ = std::max(rounds_begun_, outstanding.round + 1);
    }
  }
}

void Client::use_targets(float* flat) {
  for (Shard& shard : shards_) {
    shard.targets.assign(1, {flat + shard.flat_offset, 0, shard.link->welcome().range.size()});
  }
}

std::string Client::why_rounds_ended() const {
  for (const Shard& shard : shards_) {
    if (const std::string why = shard.link->why_rounds_ended(); !why.empty()) {
      return "the rounds have ended: " + why;
    }
  }
  return {};
}

// A shard says why its rounds have ended before it refuses a push for that, over its control connection, so whoever has
// the answer to a later question has heard it.
std::string Client::why_aborted(std::uint64_t of_round, const Interrupt& interrupt) {
  std::string of_the_round;
  std::string lost;
  for (Shard& shard : shards_) {
    if (!why_rounds_ended().empty()) {
      break;
    }
    try {
      const std::string why = shard.link->ask_text(ControlKind::kWhyAborted, encode_number(of_round),
                                                   ControlKind::kWhyAbortedReply, interrupt);
      of_the_round = of_the_round.empty() ? why : of_the_round;
    } catch (const Error& error) {
      lost = lost.empty() ? error.what() : lost;
    }
  }
  if (std::string why = why_rounds_ended(); !why.empty()) {
    return why;
  }
  if (!lost.empty()) {
    return "the round ended without this push, and so has the server: " + lost;
  }
  return "the round ended without this push: " +
         (!of_the_round.empty() ? of_the_round
                                : "it came after the round timeout, its worker had been replaced, or the server had no "
                                  "memory for another version of the parameters; the round now open is " +
                                      std::to_string(round()));
}

void Client::raise(const Outstanding& outstanding, const Interrupt& interrupt) {
  if (outstanding.status == ErrorCode::kRoundAborted) {
    throw Error(ErrorCode::kRoundAborted, why_aborted(outstanding.round, interrupt));
  }
  if (outstanding.status == ErrorCode::kNonFiniteGradient) {
    throw Error(ErrorCode::kNonFiniteGradient, "the server found NaN or infinity in the gradient of push " +
                                                   std::to_string(outstanding.pushes) +
                                                   " and refused it; the client goes on");
  }
  if (outstanding.status == ErrorCode::kConfig) {
    throw Error(ErrorCode::kConfig,
                "this rank and the round's lowest one brought different things, one by push() and one by add(): all "
                "ranks must call the same in a round. This push was refused, and the client goes on");
  }
  if (outstanding.status != ErrorCode::kNone) {
    throw Error(outstanding.status, "the server refused the request");
  }
}

// Once, at the end of a call that has done its own work.
void Client::raise_refused_before() {
  const std::uint64_t push = std::exchange(refused_before_, 0);
  if (push != 0) {
    throw Error(ErrorCode::kNonFiniteGradient,
                "the server found NaN or infinity in the gradient of push " + std::to_string(push) +
                    " after it had replied, and refused it; a store that updates in place has applied what came "
                    "before. This call itself went well, and the client goes on");
  }
}

// The call that is to be finished, once the replies of all before it have been received.
std::deque<Client::Outstanding>::iterator Client::come_to(std::uint64_t number, const Interrupt& interrupt) {
  drain_abandoned(interrupt);
  const auto found = std::ranges::find(outstanding_, number, &Outstanding::number);
  if (found == outstanding_.end()) {
    throw Error(ErrorCode::kConfig, "this call is not on its way any more; wait() for a handle once");
  }
  for (auto at = outstanding_.begin(); at != found; ++at) {
    park(*at, interrupt);
  }
  return found;
}

void Client::finish(std::uint64_t number, std::span<float* const> targets, const Interrupt& interrupt) {
  check_usable();
  const auto outstanding = come_to(number, interrupt);
  if (!outstanding->parked.empty()) {
    park(*outstanding, interrupt);  // an interrupt may have come in the middle of it
  }
  use_own_targets();
  if (!targets.empty()) {
    for (Shard& shard : shards_) {
      shard.targets.clear();
      for (const TensorSlice& slice : shard.slices) {
        shard.targets.push_back({targets[slice.tensor] + slice.tensor_offset, slice.shard_offset, slice.count});
      }
    }
  }
  try {
    receive_all(*outstanding, interrupt);
  } catch (...) {
    outstanding->abandoned = outstanding->broken_off = true;
    throw;
  }
  const Outstanding ended = std::move(*outstanding);
  outstanding_.erase(outstanding);
  raise(ended, interrupt);
  if (!ended.parked.empty() && wants_parameters(ended.call)) {
    for (const Shard& shard : shards_) {
      for (const TargetSlice& slice : shard.targets) {
        copy(slice.to, ended.parked.data() + shard.flat_offset + slice.offset, slice.count);
      }
    }
  }
  if (ended.call != Call::kSettle) {
    raise_refused_before();
  }
}

std::vector<const float*> Client::finish_in_place(std::uint64_t number, const Interrupt& interrupt) {
  std::vector<const float*> tensors;
  const bool readable = shards_.size() == 1 && transport_of(shards_.front().link->channel().kind()).within_host;
  if (!readable) {
    finish(number, {}, interrupt);
    for (const Tensor& tensor : manifest_.tensors) {
      tensors.push_back(flat() + tensor.offset);
    }
    return tensors;
  }
  check_usable();
  const auto outstanding = come_to(number, interrupt);
  Shard& shard = shards_.front();
  shard.targets.clear();
  try {
    receive_all(*outstanding, interrupt);
  } catch (...) {
    outstanding->abandoned = outstanding->broken_off = true;
    throw;
  }
  const Outstanding ended = std::move(*outstanding);
  outstanding_.erase(outstanding);
  raise(ended, interrupt);
  raise_refused_before();
  const float* const at = shard.link->channel().in_place();
  for (const Tensor& tensor : manifest_.tensors) {
    tensors.push_back((at != nullptr ? at : flat()) + tensor.offset);
  }
  return tensors;
}

}  // namespace distnet
