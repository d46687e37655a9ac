#include "server/push_pipeline.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/platform.h"
#include "base/units.h"
#include "base/waiting.h"
#include "kernels/kernels.h"
#include "wire/learning_rate.h"

namespace distnet {
namespace {

PushSettings settings_of(const Request& request) {
  const RequestHeader& header = request.header;
  PushSettings settings;
  settings.group_rates = request.group_rates;
  if ((header.fields & kHasLearningRate) != 0) {
    settings.learning_rate = header.learning_rate;
  }
  if ((header.fields & kHasWeight) != 0) {
    settings.weight = header.weight;
  }
  return settings;
}

}  // namespace

// A record's place among those in flight, given back whatever happens.
class PushPipeline::Place {
 public:
  Place(InFlight& in_flight, PushRecord& record) : in_flight_(in_flight), record_(record) {}
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  ~Place() { in_flight_.give_back(record_); }

 private:
  InFlight& in_flight_;
  PushRecord& record_;
};

bool PushPipeline::serve(std::uint32_t session, const Request& request, ServerChannel& channel) {
  check(session, request);
  settle_previous(sessions_.table().ledger(session));
  if ((request.header.flags & kWantSettled) != 0) {
    settle_accepted();
  }
  if (request.header.kind == RequestKind::kNone) {
    pull(session, request, channel);
    return true;
  }
  PushRecord& record = begin(session, request);
  const Place place(in_flight_, record);
  if (rounds_ != nullptr) {
    return push_into_round(record, session, request, channel);
  }
  if (record.abstains()) {
    abstain(record, session, request, channel);
    return true;
  }
  return settings_.policy.replies == Replies::kAfterApply ? push_then_reply(record, session, request, channel)
                                                          : reply_then_push(record, session, request, channel);
}

void PushPipeline::check(std::uint32_t session, const Request& request) const {
  const RequestHeader& header = request.header;
  const SessionEntry& entry = sessions_.entry(session);
  if (entry.ledger.fenced.load(std::memory_order_acquire)) {  // pairs with SessionTable::end()
    throw Error(ErrorCode::kFenced, "a newer session of rank " + std::to_string(entry.rank) + " has taken over");
  }
  constexpr std::uint16_t kOfRequests = kWantParameters | kWantEma | kWantSettled | kDeliver;
  if ((header.flags & ~kOfRequests) != 0) {
    throw Error(ErrorCode::kProtocol, "a request with flags that requests do not have");
  }
  if (header.fields != 0) {
    check_settings(request);
  }
  if (header.incarnation != entry.incarnation) {
    throw Error(ErrorCode::kProtocol, "a request of incarnation " + std::to_string(header.incarnation) +
                                          " in the session of incarnation " + std::to_string(entry.incarnation));
  }
  const bool brings = header.kind == RequestKind::kGradient || header.kind == RequestKind::kChange;
  const bool pushes = brings || header.kind == RequestKind::kAbstention;
  const bool right_size = brings ? request.gradient.has_size(floats_) : !request.gradient.present();
  if ((!pushes && header.kind != RequestKind::kNone) || !right_size || (pushes && entry.role != Role::kWorker)) {
    throw Error(ErrorCode::kProtocol,
                "a request of an unknown kind, without the gradient of its kind, or from an observer");
  }
  if (!pushes && header.push != 0) {
    throw Error(ErrorCode::kProtocol, "a pull with the number of a push");
  }
  const std::uint64_t next = entry.ledger.accepted.load(std::memory_order_relaxed) + 1;  // written by this thread
  if (pushes && header.push != next) {
    throw Error(ErrorCode::kProtocol,
                "push number " + std::to_string(header.push) + " of a session whose next is " + std::to_string(next));
  }
  if ((header.flags & kWantEma) != 0 && store_.ema_offset_bytes() == 0) {
    throw Error(ErrorCode::kProtocol, "a request for the moving average, which is not kept here");
  }
}

// The optional fields, which only a gradient has.
void PushPipeline::check_settings(const Request& request) const {
  const RequestHeader& header = request.header;
  if ((header.fields & ~(kHasLearningRate | kHasWeight | kHasGroupRates)) != 0) {
    throw Error(ErrorCode::kProtocol, "a request with an unknown field; install the same DistNet on both sides");
  }
  if (header.kind != RequestKind::kGradient) {
    throw Error(ErrorCode::kProtocol, "a request with a learning rate or a weight, and without a gradient");
  }
  const bool has_rate = (header.fields & kHasLearningRate) != 0;
  if (has_rate && !can_be_rate(header.learning_rate)) {
    throw Error(ErrorCode::kProtocol, "a push with a learning rate that is negative, or that float32 cannot hold");
  }
  const bool has_groups = (header.fields & kHasGroupRates) != 0;
  if (has_groups && (request.group_rates.empty() || !std::ranges::all_of(request.group_rates, [](double rate) {
                       return std::isnan(rate) || can_be_rate(rate);
                     }))) {
    throw Error(ErrorCode::kProtocol,
                "a push with a group's learning rate that is negative, or that float32 cannot hold");
  }
  const bool has_weight = (header.fields & kHasWeight) != 0;
  if (has_weight && !(std::isfinite(header.weight) && header.weight > 0.0F)) {
    throw Error(ErrorCode::kProtocol, "a push with a weight that is not finite, or not above 0");
  }
  if (has_weight && (rounds_ == nullptr || settings_.policy.reduction != Reduction::kMean)) {
    throw Error(ErrorCode::kProtocol, "a push with a weight, where no mean is taken that it could count in");
  }
}

// A reply holds all of the session's pushes but its newest, so the one before must be settled. It is being applied by
// now: by this thread before it came here, or, lock-free, in part by threads that own chunks of it.
void PushPipeline::settle_previous(const Ledger& ledger) const {
  const std::uint64_t accepted = ledger.accepted.load(std::memory_order_relaxed);
  std::uint64_t settled = ledger.settled.load(std::memory_order_acquire);  // pairs with settle()
  while (settled < accepted) {
    wait_while(ledger.settled, settled);
    settled = ledger.settled.load(std::memory_order_acquire);
  }
}

void PushPipeline::settle_accepted() const {
  if (rounds_ != nullptr) {
    return;  // pushes of the open round wait for its members, which may never come
  }
  for (const LiveSessions::Present& one : sessions_.present()) {
    settlement_.wait_until([&] { return sessions_.is_settled(one.place, one.number, one.accepted); });
  }
}

void PushPipeline::pull(std::uint32_t session, const Request& request, ServerChannel& channel) {
  if ((request.header.flags & kWantParameters) != 0) {
    metrics_.pulled();
  }
  channel.reply(reply_to(request, session, store_.pin()));
}

// An abstention outside of rounds: there is nothing to apply, so it is settled before the reply in all semantics.
void PushPipeline::abstain(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel) {
  record.accept();
  record.abstain();
  const bool wanted = (request.header.flags & kWantParameters) != 0;
  channel.reply(reply_to(request, session, wanted ? store_.pin() : Pin()));
}

// Joins all: accept, apply with the others of the round, settle, reply.
bool PushPipeline::push_into_round(PushRecord& record, std::uint32_t session, const Request& request,
                                   ServerChannel& channel) {
  // A store that cannot undo an update joins only what was found finite; another finds out while it joins.
  const bool looks = !store_.applies_arriving() && record.has_gradient();
  const Arrival::State state = looks ? arrive_checked(record, request) : arrive(request);
  if (state == Arrival::State::kCutOff) {
    return false;
  }
  if (state == Arrival::State::kWithdrawn) {
    record.withdraw();
  }
  record.accept();
  const SessionEntry& entry = sessions_.entry(session);
  RoundOutcome outcome = rounds_->take_part(record, {entry.rank, entry.incarnation});
  if (outcome.status == ErrorCode::kRoundAborted) {
    say_why_rounds_ended(session);
  }
  const bool in_round = outcome.status == ErrorCode::kNone;
  const bool counts = record.has_gradient() || record.abstains();
  const bool not_finite = in_round && state == Arrival::State::kHere && !counts && !record.misplaced();
  const bool wanted = (request.header.flags & kWantParameters) != 0 && in_round && counts;
  Reply reply = reply_to(request, session, wanted ? std::move(outcome.pin) : Pin());
  reply.header.status = static_cast<std::uint16_t>(not_finite ? ErrorCode::kNonFiniteGradient : outcome.status);
  reply.header.round = outcome.next_round;
  const bool drafted = wanted && record.has_gradient() && !record.redrafted;
  reply.header.flags = static_cast<std::uint16_t>(reply.header.flags | (drafted ? kDrafted : 0));
  channel.reply(std::move(reply));
  return true;
}

// Before the reply that refuses the push. The word to all clients goes to one after another, and may come too late.
void PushPipeline::say_why_rounds_ended(std::uint32_t session) {
  if (const std::string why = rounds_->failure(); !why.empty()) {
    sessions_.notify_client(session, {Notice::Kind::kRoundsEnded, why});
  }
}

// Accept, apply, settle, then reply. The update begins while the gradient arrives, where the store can undo that.
bool PushPipeline::push_then_reply(PushRecord& record, std::uint32_t session, const Request& request,
                                   ServerChannel& channel) {
  record.wants_pin = (request.header.flags & kWantParameters) != 0 && !store_.versions_can_mix();
  record.tells_drafts = record.wants_pin;
  const Arrival::State state = accept_and_apply(record, request);
  if (state == Arrival::State::kCutOff) {
    return false;
  }
  const bool not_finite = record.refused();
  const bool wanted = (request.header.flags & kWantParameters) != 0 && state == Arrival::State::kHere && !not_finite;
  Pin pin;
  if (wanted) {
    pin = record.pin ? std::move(record.pin) : store_.pin();
  }
  Reply reply = reply_to(request, session, std::move(pin));
  reply.header.status = static_cast<std::uint16_t>(not_finite ? ErrorCode::kNonFiniteGradient : ErrorCode::kNone);
  const bool drafted = wanted && record.wants_pin && !record.redrafted;
  reply.header.flags = static_cast<std::uint16_t>(reply.header.flags | (drafted ? kDrafted : 0));
  channel.reply(std::move(reply));
  return true;
}

// Reply, then accept's other half: apply and settle. The parameters set out while the gradient arrives.
bool PushPipeline::reply_then_push(PushRecord& record, std::uint32_t session, const Request& request,
                                   ServerChannel& channel) {
  Ahead ahead;
  if (request.arriving != nullptr && (request.header.flags & kWantParameters) != 0) {
    ahead = deliver_ahead(request, channel);
  }
  const Arrival::State state = arrive(request);
  if (state == Arrival::State::kCutOff) {
    return false;
  }
  record.accept();
  if (state == Arrival::State::kWithdrawn) {
    record.refuse();
  }
  try {
    reply_first(record, session, request, channel, std::move(ahead), state);
  } catch (...) {  // no memory for the reply, or no thread to send it
    if (state == Arrival::State::kHere) {
      record.refuse();
    }
    throw;
  }
  if (state == Arrival::State::kHere) {
    apply(record);
  }
  return true;
}

void PushPipeline::reply_first(PushRecord& record, std::uint32_t session, const Request& request,
                               ServerChannel& channel, Ahead ahead, Arrival::State state) {
  const bool begun = ahead.delivery != Delivery::kNone;  // the rest follows, also where the gradient does not count
  const bool wanted = (request.header.flags & kWantParameters) != 0 && (state == Arrival::State::kHere || begun);
  Pin pin;
  if (wanted && ahead.delivery != Delivery::kWhole) {
    pin = ahead.pin ? std::move(ahead.pin) : store_.pin();
  }
  Reply reply = reply_to(request, session, std::move(pin));
  if (ahead.delivery == Delivery::kWhole) {
    reply.header.version = ahead.version;
    reply.header.flags = static_cast<std::uint16_t>(reply.header.flags | kDeliver);
  }
  reply.header.delivered = ahead.delivered;
  reply.then_applies = state == Arrival::State::kHere;
  record.reply_leaves();
  channel.reply(std::move(reply));
}

PushRecord& PushPipeline::begin(std::uint32_t session, const Request& request) {
  const RequestHeader& header = request.header;
  PushRecord& record = in_flight_.take();
  const Brings brings = header.kind == RequestKind::kAbstention ? Brings::kAbstention : Brings::kGradient;
  GradientView gradient = request.gradient;
  if (header.kind == RequestKind::kChange) {
    gradient.meaning = GradientView::Meaning::kChange;
  }
  record.begin(settlement_, {session, brings, header.push, header.base_version, header.round, 0}, gradient,
               settings_of(request));
  return record;
}

Arrival::State PushPipeline::arrive(const Request& request) const {
  return request.arriving == nullptr ? Arrival::State::kHere : request.arriving->wait(floats_, kAnyPatience);
}

// Looks at the gradient as it arrives, while this thread would wait for it. One that is not finite is taken from the
// record.
Arrival::State PushPipeline::arrive_checked(PushRecord& record, const Request& request) const {
  bool finite = true;
  Arrival::State state = Arrival::State::kHere;
  for (std::uint64_t begin = 0; begin < floats_ && state == Arrival::State::kHere; begin += kBounceFloats) {
    const std::uint64_t end = std::min<std::uint64_t>(begin + kBounceFloats, floats_);
    if (request.arriving != nullptr) {
      state = request.arriving->wait(end, kAnyPatience);
    }
    finite = finite && (state != Arrival::State::kHere || is_finite(request.gradient, begin, end));
  }
  record.gradient.checked = finite;
  if (!finite) {
    record.withdraw();
  }
  return state;
}

Arrival::State PushPipeline::accept_and_apply(PushRecord& record, const Request& request) {
  if (request.arriving == nullptr || !settings_.tuning.apply_arriving || !store_.applies_arriving()) {
    const bool looks = !store_.applies_arriving() && !store_.versions_can_mix();
    const Arrival::State state = looks ? arrive_checked(record, request) : arrive(request);
    if (state == Arrival::State::kCutOff) {
      return state;
    }
    record.accept();
    if (state != Arrival::State::kHere) {
      record.refuse();
    } else if (!record.has_gradient()) {
      record.finish_refused(false);
    } else {
      apply(record);
    }
    return state;
  }
  outlets_.collect_released();
  Arrival::State state = Arrival::State::kCutOff;
  try {
    state = store_.submit_arriving(record, *request.arriving);
  } catch (...) {  // no memory for another version: nothing was applied
    if (sessions_.table().ledger(record.session()).accepted.load(std::memory_order_relaxed) == record.push()) {
      record.refuse();
    }
    throw;
  }
  if (state == Arrival::State::kHere) {
    record.wait_finished();
  } else if (state == Arrival::State::kWithdrawn) {
    record.accept();
    record.refuse();
  }
  return state;
}

void PushPipeline::apply(PushRecord& record) {
  try {
    if (!store_.versions_can_mix()) {
      outlets_.collect_released();
    }
    store_.submit(record);
  } catch (...) {  // no memory for another version: nothing was applied
    record.refuse();
    throw;
  }
  record.wait_finished();
}

// The parameters of a reply that need not wait for the gradient set out while that arrives. What is not in the client's
// replica by then, it takes for itself while the gradient is applied.
PushPipeline::Ahead PushPipeline::deliver_ahead(const Request& request, ServerChannel& channel) {
  Ahead ahead;
  if (request.replica == nullptr && !request.takes_ahead) {
    return ahead;
  }
  Pin pin = store_.pin();
  ahead.version = pin.version();
  ahead.delivery = Delivery::kWhole;
  const bool ema = (request.header.flags & kWantEma) != 0;
  const float* const from = ema ? pin.ema() : pin.parameters();
  if (request.replica == nullptr) {
    channel.send_ahead(request.header, {{}, std::move(pin), from, floats_, store_.versions_can_mix(), false});
    return ahead;
  }
  const std::uint64_t done = copy_while(*request.arriving, request.replica, from);
  if (done != floats_) {
    ahead.delivery = Delivery::kPartial;
    ahead.delivered = static_cast<std::uint32_t>(done / kDeliveredFloats);
    ahead.pin = std::move(pin);
  }
  return ahead;
}

// Copies until a gradient is here in full, or all is copied. Returns how much.
std::uint64_t PushPipeline::copy_while(Arrival& arriving, float* to, const float* from) const {
  const bool past_cache = settings_.tuning.past_cache && exceeds_cache(floats_ * sizeof(float));
  std::uint64_t done = 0;
  do {
    const std::uint64_t step = std::min(kPieceFloats, floats_ - done);
    (past_cache ? copy_past_cache : copy)(to + done, from + done, step);
    done += step;
  } while (done < floats_ && arriving.wait(floats_, {}) == Arrival::State::kLate);
  end_past_cache();
  return done;
}

Reply PushPipeline::reply_to(const Request& request, std::uint32_t session, Pin pin) const {
  Ledger& ledger = sessions_.table().ledger(session);
  const bool wanted = (request.header.flags & kWantParameters) != 0;
  const bool ema = (request.header.flags & kWantEma) != 0;
  if (!wanted) {
    pin.release();
  }
  Reply reply;
  ReplyHeader& header = reply.header;
  header.flags = static_cast<std::uint16_t>(request.header.flags & ~kDeliver);
  header.number = request.header.number;
  header.version = pin ? pin.version() : store_.version();
  header.accepted = ledger.accepted.load(std::memory_order_acquire);
  header.applied = ledger.applied.load(std::memory_order_acquire);  // pairs with Settlement::apply()
  header.staleness = ledger.staleness.load(std::memory_order_relaxed);
  header.round = rounds_ != nullptr ? rounds_->next_round() : 0;
  // Only semantics that reply first leave anything unheard, and their own replies say nothing of the push itself.
  // Relaxed: settle_previous() has acquired what settled the push before.
  if (ledger.unheard.load(std::memory_order_relaxed) != 0) {
    ledger.unheard.store(0, std::memory_order_relaxed);
    header.status = static_cast<std::uint16_t>(ErrorCode::kNonFiniteGradient);
    header.flags = static_cast<std::uint16_t>(header.flags | kOfPushBefore);
  }
  header.buffer = pin.buffer();
  header.payload_bytes = pin ? floats_ * sizeof(float) : 0;
  reply.data = !pin ? nullptr : ema ? pin.ema() : pin.parameters();
  reply.count = floats_;
  reply.live = store_.versions_can_mix();
  reply.pin = std::move(pin);
  return reply;
}

}  // namespace distnet
