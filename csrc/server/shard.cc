#include "server/shard.h"

#include <algorithm>
#include <thread>

#include <fnmatch.h>

#include "base/error.h"
#include "base/kernels.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr std::uint64_t kDeliveryFloats = 16 * 1024;  // between looks at what arrives meanwhile
static_assert(kDeliveryFloats % kDeliveredFloats == 0);

// The groups of this shard's elements, from the tensors that reach into its range; padding goes with the tensor before
// it.
std::vector<ParameterGroup> groups_of(const ShardSettings& settings, const Manifest& manifest, ShardRange range) {
  const auto setting = settings.optimizer.settings.find("weight_decay");
  const double own_decay = setting == settings.optimizer.settings.end() ? 0.0 : setting->second;
  std::vector<ParameterGroup> groups;
  for (const Tensor& tensor : manifest.tensors) {
    const std::uint64_t begin = std::max(tensor.offset, range.begin);
    if (tensor.count == 0 || tensor.offset >= range.end || tensor.offset + tensor.count <= range.begin) {
      continue;
    }
    const auto matches = [&](const ShardSettings::Group& group) {
      return fnmatch(group.pattern.c_str(), tensor.name.c_str(), 0) == 0;
    };
    const auto found = std::ranges::find_if(settings.groups, matches);
    ParameterGroup group{begin - range.begin, 0, 1.0, own_decay};
    if (found != settings.groups.end()) {
      group.rate_multiplier = found->rate_multiplier;
      group.weight_decay = found->weight_decay.value_or(own_decay);
    }
    if (groups.empty()) {
      group.begin = 0;
    } else {
      groups.back().end = group.begin;
    }
    groups.push_back(group);
  }
  if (groups.empty()) {
    groups.push_back({0, 0, 1.0, own_decay});
  }
  groups.back().end = range.size();
  return groups;
}

// A round's update: settles every member's record once it is visible.
class RoundUpdate final : public Update {
 public:
  RoundUpdate(const std::vector<PushRecord*>& members, Reduction reduction) : members_(members) {
    bool encoded = false;
    for (const PushRecord* member : members) {
      terms_.push_back(member->payload);
      decoders_.push_back(member->decoder);
      encoded |= member->decoder != nullptr;
    }
    gradient.terms = terms_;
    if (encoded) {
      gradient.decoders = decoders_;
    }
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
  std::vector<const float*> terms_;
  std::vector<const Decoder*> decoders_;
};

}  // namespace

Shard::Shard(const ShardSettings& settings, const Manifest& manifest, ShardRange range, std::span<const float> initial,
             RoundsHooks round_hooks)
    : settings_(settings), manifest_(manifest), range_(range) {
  UpdateRuleSpec rule;
  rule.optimizer = settings.optimizer;
  rule.schedule = settings.schedule;
  rule.groups = groups_of(settings, manifest, range);
  rule.clip_value = settings.clip_value;
  rule.average_decay = settings.average_decay;
  rule.past_cache = settings.tuning.past_cache;
  store_ = make_store(settings.policy.guard, rule, initial);
  if (joins_all()) {
    round_hooks.apply = [this](const std::vector<PushRecord*>& members) { apply_round(members); };
    round_hooks.pin = [this] { return store_->pin(); };
    const auto part = settings.shard == 0 ? Rounds::Part::kLeader : Rounds::Part::kFollower;
    rounds_ = std::make_unique<Rounds>(settings.policy, part, settings.shards, std::move(round_hooks));
  }
}

void Shard::session_came(Session& session) {
  if (rounds_ && session.role == Role::kWorker) {
    rounds_->rank_came(session.rank);
  }
  const std::lock_guard lock(sessions_mutex_);
  sessions_[session.id] = &session;
}

void Shard::session_ending(const Session& session, SessionEnd how) {
  statistics_.session_ended(how, session.role);  // first: who sees a round go on without it finds it counted
  if (rounds_ && session.role == Role::kWorker) {
    rounds_->rank_left(session.rank, how);
  }
}

void Shard::session_left(const Session& session) {
  const std::lock_guard lock(sessions_mutex_);
  sessions_.erase(session.id);
}

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
  record.payload = asked.gradient;
  record.decoder = asked.decoder;
  record.gradient = {};
  record.gradient.terms = {&record.payload, 1};
  if (record.decoder != nullptr) {
    record.gradient.decoders = {&record.decoder, 1};
  }
  return record;
}

// A reply holds all of the session's pushes but its newest, so the one before must be settled. It is being applied by
// now: by this thread before it came here, or, lock-free, in part by threads that own chunks of it.
void Shard::settle_previous(Session& session) {
  const std::uint64_t accepted = session.accepted.load(std::memory_order_relaxed);
  std::uint64_t settled = session.settled.load(std::memory_order_acquire);
  while (settled < accepted) {
    session.settled.wait(settled, std::memory_order_acquire);
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
void Shard::take_pin(const PushRecord& record, Answer& answer) {
  if (record.wants_pin) {
    answer.pin = record.pin;
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
  const RoundOutcome outcome = rounds_->take_part(record);
  in_flight_.give_back(record);
  return outcome;
}

void Shard::check(const Session& session, const Asked& asked) const {
  const RequestHeader& request = asked.header;
  const bool pushes = request.kind == RequestKind::kPush;
  const bool right_size = pushes == (asked.gradient != nullptr);
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
    store_->unpin(answer.pin);
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
      record.payload = nullptr;
      answer.wanted = false;
    }
  }
  record.accept();
  if (joins_all()) {
    const RoundOutcome outcome = join_round(record);
    answer.header.status = static_cast<std::uint16_t>(outcome.status);
    answer.pin = outcome.pin;
    answer.pinned = outcome.status == ErrorCode::kNone;
    answer.drafted = answer.pinned;
  } else if (record.payload == nullptr) {
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
  } catch (...) {  // no memory for another version: nothing was accepted
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
  const Pin pin = store_->pin();
  answer.header.version = pin.version;
  std::uint64_t done = range_.size();
  if (asked.replica == nullptr) {
    asked.send_ahead(pin);
  } else {
    const float* const from = (asked.header.flags & kWantAverage) != 0 ? pin.average : pin.parameters;
    done = copy_while(*asked.arriving, asked.replica, from);
  }
  answer.delivered = done == range_.size();
  if (answer.delivered && asked.replica != nullptr) {
    store_->unpin(pin);
  } else if (!answer.delivered) {
    answer.header.delivered = static_cast<std::uint32_t>(done / kDeliveredFloats);
    answer.pin = pin;
    answer.pinned = true;
  }
}

// Copies until a gradient is here in full, or all is copied. Returns how much.
std::uint64_t Shard::copy_while(Arrival& arriving, float* to, const float* from) const {
  const bool past_cache = settings_.tuning.past_cache && exceeds_cache(range_.size() * sizeof(float));
  std::uint64_t done = 0;
  do {
    const std::uint64_t step = std::min(kDeliveryFloats, range_.size() - done);
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
    header.version = answer.pinned ? answer.pin.version : store_->version();
  }
  header.accepted = session.accepted.load(std::memory_order_acquire);
  header.applied = session.applied.load(std::memory_order_acquire);
  header.staleness = session.staleness.load(std::memory_order_relaxed);
  header.round = rounds_ ? rounds_->open_round() : 0;
  header.buffer = answer.pin.buffer;
  header.payload_bytes = answer.pinned ? range_.size() * sizeof(float) : 0;
}

void Shard::settle_accepted() {
  std::map<std::uint64_t, std::uint64_t> targets;
  {
    const std::lock_guard lock(sessions_mutex_);
    for (const auto& [id, session] : sessions_) {
      targets[id] = session->accepted.load(std::memory_order_acquire);
    }
  }
  if (rounds_) {
    return;  // pushes of the open round wait for its members, which may never come
  }
  for (const auto& [id, target] : targets) {
    while (!is_settled(id, target)) {
      std::this_thread::yield();  // an apply in progress: well under a second
    }
  }
}

bool Shard::is_settled(std::uint64_t session, std::uint64_t push) const {
  const std::lock_guard lock(sessions_mutex_);
  const auto found = sessions_.find(session);
  return found == sessions_.end() || found->second->settled.load(std::memory_order_acquire) >= push;
}

// Buffers that clients have let go are written again before new ones are made.
void Shard::collect_released() {
  if (store_->versions_can_mix()) {
    return;
  }
  const std::lock_guard lock(sessions_mutex_);
  for (const auto& [id, session] : sessions_) {
    session->collect_released();
  }
}

std::string Shard::stats_json() const {
  std::string json =
      "{\"updates\": " + std::to_string(store_->version()) + ", \"version\": " + std::to_string(store_->version()) +
      ", \"floats\": " + std::to_string(range_.size()) + ", \"optimizer_slots\": " + std::to_string(store_->slots()) +
      ", \"queue_depth\": " + std::to_string(in_flight_.depth()) +
      ", \"round\": " + std::to_string(rounds_ ? rounds_->open_round() : 0) + ", " + statistics_.json() +
      ", \"sessions\": [";
  const std::lock_guard lock(sessions_mutex_);
  bool first = true;
  for (const auto& [id, session] : sessions_) {
    json += std::string(first ? "" : ", ") + "{\"id\": " + std::to_string(id) + ", \"role\": \"" +
            (session->role == Role::kWorker ? "worker" : "observer") +
            "\", \"rank\": " + (session->role == Role::kWorker ? std::to_string(session->rank) : "null") +
            ", \"transport\": \"" + (session->transport == TransportKind::kShm ? "shm" : "tcp") +
            "\", \"accepted\": " + std::to_string(session->accepted.load(std::memory_order_relaxed)) +
            ", \"applied\": " + std::to_string(session->applied.load(std::memory_order_relaxed)) +
            ", \"refused\": " + std::to_string(session->refused.load(std::memory_order_relaxed)) +
            ", \"staleness\": " + std::to_string(session->staleness.load(std::memory_order_relaxed)) + "}";
    first = false;
  }
  return json + "]";
}

}  // namespace distnet
