// What a shard does about a request: the one accept point, and the policy behind it.
#include <algorithm>

#include "base/error.h"
#include "base/platform.h"
#include "base/waiting.h"
#include "kernels/kernels.h"
#include "server/shard.h"

namespace distnet {
namespace {

// A round's update: settles every member's record once it is visible.
class RoundUpdate final : public Update {
 public:
  RoundUpdate(const std::vector<PushRecord*>& members, Reduction reduction) : members_(members) {
    for (const PushRecord* member : members) {
      terms_.push_back(member->payload);
    }
    gradient.terms = terms_;
    tells_drafts = true;
    gradient.divisor = reduction == Reduction::kMean ? static_cast<float>(members.size()) : 1.0F;
  }

  void on_drafted(std::uint32_t buffer, std::uint64_t elements) override {
    for (PushRecord* const member : members_) {
      member->on_drafted(buffer, elements);
    }
  }

  void on_applied(std::uint64_t version_before) override {
    for (PushRecord* const member : members_) {
      member->on_applied(version_before);
    }
  }

 private:
  const std::vector<PushRecord*>& members_;
  std::vector<GradientView> terms_;
};

}  // namespace

PushRecord& Shard::prepare(Session& session, const Asked& asked) {
  const std::uint64_t expected = session.accepted.load(std::memory_order_relaxed) + 1;
  if (asked.header.push != expected) {
    throw Error(ErrorCode::kProtocol, "push number " + std::to_string(asked.header.push) +
                                          " of a session whose next is " + std::to_string(expected));
  }
  PushRecord& record = in_flight_.take();
  record.session = &session;
  record.statistics = &statistics_;
  record.orders = &order_;
  record.push = asked.header.push;
  record.base_version = asked.header.base_version;
  record.round = asked.header.round;
  record.payload = asked.decoder != nullptr ? GradientView::encoded(asked.gradient, *asked.decoder, range_.size())
                                            : GradientView::dense(asked.gradient, range_.size());
  record.gradient = {};
  record.gradient.terms = {&record.payload, 1};
  return record;
}

// A reply holds all of the session's pushes but its newest, so the one before must be settled. It is being applied by
// now: by this thread before it came here, or, lock-free, in part by threads that own chunks of it.
void Shard::settle_previous(Session& session) {
  const std::uint64_t accepted = session.accepted.load(std::memory_order_relaxed);
  std::uint64_t settled = session.settled.load(std::memory_order_acquire);
  while (settled < accepted) {
    wait_while(session.settled, settled);
    settled = session.settled.load(std::memory_order_acquire);
  }
}

void Shard::apply(PushRecord& record) {
  Answer unasked;
  apply(record, unasked);
}

void Shard::apply(PushRecord& record, Answer& answer) {
  try {
    collect_released();
    store_->submit(record);
  } catch (...) {  // no memory for another version: nothing was applied
    record.refuse();
    in_flight_.give_back(record);
    throw;
  }
  record.wait_finished();
  take_pin(record, answer);
  in_flight_.give_back(record);
}

// The version that the push made, which the client may have begun to read.
void Shard::take_pin(PushRecord& record, Answer& answer) {
  if (record.wants_pin) {
    answer.pin = std::move(record.pin);
    answer.pinned = true;
    answer.drafted = !record.redrafted;
  }
}

void Shard::apply_round(const std::vector<PushRecord*>& members) {
  collect_released();
  RoundUpdate update(members, settings_.policy.reduction);
  store_->submit(update);
  update.wait_finished();
}

RoundOutcome Shard::join_round(PushRecord& record) {
  RoundOutcome outcome = rounds_->take_part(record);
  in_flight_.give_back(record);
  return outcome;
}

void Shard::check(const Session& session, const Asked& asked) const {
  const RequestHeader& request = asked.header;
  const bool pushes = request.kind == RequestKind::kPush;
  const bool right_size = pushes == (asked.gradient != nullptr);
  constexpr std::uint16_t kOfRequests = kWantParameters | kWantAverage | kWantSettled | kDeliver;
  if ((request.flags & ~kOfRequests) != 0) {
    throw Error(ErrorCode::kProtocol, "a request with flags that requests do not have");
  }
  if ((!pushes && request.kind != RequestKind::kPull) || !right_size || (pushes && session.role != Role::kWorker)) {
    throw Error(ErrorCode::kProtocol,
                "a request of an unknown kind, without the gradient of its kind, or from an observer");
  }
  if ((request.flags & kWantAverage) != 0 && store_->average_offset_bytes() == 0) {
    throw Error(ErrorCode::kProtocol, "a request for the moving average, which is not kept here");
  }
}

std::optional<Shard::Answer> Shard::handle(Session& session, const Asked& asked) {
  check(session, asked);
  const RequestHeader& request = asked.header;
  settle_previous(session);
  if ((request.flags & kWantSettled) != 0) {
    settle_accepted();
  }
  Answer answer;
  answer.wanted = (request.flags & kWantParameters) != 0;
  if (request.kind == RequestKind::kPull) {
    statistics_.pulled();
  } else if (!take_push(prepare(session, asked), asked, answer)) {
    return std::nullopt;
  }
  if (answer.wanted && !answer.delivered && answer.header.status == 0) {
    if (!answer.pinned) {
      answer.pin = store_->pin();
      answer.pinned = true;
    }
  } else if (answer.pinned) {
    answer.pin.release();
    answer.pinned = false;
  }
  fill(answer, session, request);
  return answer;
}

// False: the gradient was cut off.
bool Shard::take_push(PushRecord& record, const Asked& asked, Answer& answer) {
  const bool joins_one = !joins_all();
  const bool applies_first = settings_.policy.replies == Replies::kAfterApply;
  record.wants_pin = joins_one && applies_first && answer.wanted && !store_->versions_can_mix();
  record.tells_drafts = record.wants_pin;  // never of an update after its reply: what the client has then stays
  if (asked.arriving != nullptr) {
    if (joins_one && applies_first && settings_.tuning.apply_arriving && store_->applies_arriving()) {
      return apply_arriving(record, *asked.arriving, answer);
    }
    if (joins_one && !applies_first && answer.wanted) {
      deliver_ahead(asked, answer);
    }
    const Arrival::State state = asked.arriving->wait(range_.size(), kAnyPatience);
    if (state == Arrival::State::kCutOff) {
      in_flight_.give_back(record);
      return false;
    }
    if (state == Arrival::State::kWithdrawn) {
      record.payload = GradientView::none();
      answer.wanted = answer.delivered || answer.header.delivered != 0;  // begun: the rest follows
    }
  }
  record.accept();
  if (joins_all()) {
    RoundOutcome outcome = join_round(record);
    answer.header.status = static_cast<std::uint16_t>(outcome.status);
    answer.pin = std::move(outcome.pin);
    answer.pinned = outcome.status == ErrorCode::kNone;
    answer.drafted = answer.pinned;
  } else if (!record.payload.present()) {
    record.refuse();
    in_flight_.give_back(record);
  } else if (applies_first) {
    apply(record, answer);
  } else {
    answer.apply_after_reply = &record;
  }
  return true;
}

bool Shard::apply_arriving(PushRecord& record, Arrival& arriving, Answer& answer) {
  Arrival::State state = Arrival::State::kCutOff;
  try {
    collect_released();
    state = store_->submit_arriving(record, arriving);
  } catch (...) {  // no memory for another version: nothing was applied
    if (record.session->accepted.load(std::memory_order_relaxed) == record.push) {
      record.refuse();
    }
    in_flight_.give_back(record);
    throw;
  }
  if (state == Arrival::State::kHere) {
    record.wait_finished();
    take_pin(record, answer);
  } else if (state == Arrival::State::kWithdrawn) {
    record.accept();
    record.refuse();
    answer.wanted = false;
  }
  in_flight_.give_back(record);
  return state != Arrival::State::kCutOff;
}

// The parameters of a reply that need not wait for the gradient set out while that arrives. What is not in the client's
// replica by then, it takes for itself while the gradient is applied.
void Shard::deliver_ahead(const Asked& asked, Answer& answer) {
  if (asked.replica == nullptr && !asked.send_ahead) {
    return;
  }
  Pin pin = store_->pin();
  answer.header.version = pin.version();
  std::uint64_t done = range_.size();
  if (asked.replica == nullptr) {
    asked.send_ahead(std::move(pin));
  } else {
    const float* const from = (asked.header.flags & kWantAverage) != 0 ? pin.average() : pin.parameters();
    done = copy_while(*asked.arriving, asked.replica, from);
  }
  answer.delivered = done == range_.size();
  if (!answer.delivered) {
    answer.header.delivered = static_cast<std::uint32_t>(done / kDeliveredFloats);
    answer.pin = std::move(pin);
    answer.pinned = true;
  }
}

// Copies until a gradient is here in full, or all is copied. Returns how much.
std::uint64_t Shard::copy_while(Arrival& arriving, float* to, const float* from) const {
  const bool past_cache = settings_.tuning.past_cache && exceeds_cache(range_.size() * sizeof(float));
  std::uint64_t done = 0;
  do {
    const std::uint64_t step = std::min(kPieceFloats, range_.size() - done);
    (past_cache ? copy_past_cache : copy)(to + done, from + done, step);
    done += step;
  } while (done < range_.size() && arriving.wait(range_.size(), {}) == Arrival::State::kLate);
  end_past_cache();
  return done;
}

void Shard::fill(Answer& answer, const Session& session, const RequestHeader& request) const {
  ReplyHeader& header = answer.header;
  header.flags = static_cast<std::uint16_t>((request.flags & ~(answer.delivered ? 0 : kDeliver)) |
                                            (answer.drafted ? kDrafted : 0));
  header.number = request.number;
  if (!answer.delivered) {
    header.version = answer.pinned ? answer.pin.version() : store_->version();
  }
  header.accepted = session.accepted.load(std::memory_order_acquire);
  header.applied = session.applied.load(std::memory_order_acquire);
  header.staleness = session.staleness.load(std::memory_order_relaxed);
  header.round = rounds_ ? rounds_->open_round() : 0;
  header.buffer = answer.pin.buffer();
  header.payload_bytes = answer.pinned ? range_.size() * sizeof(float) : 0;
}

}  // namespace distnet
