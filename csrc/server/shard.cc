#include "server/shard.h"

#include <algorithm>
#include <thread>

#include <fnmatch.h>

#include "base/error.h"

namespace distnet {
namespace {

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
    for (const PushRecord* member : members) {
      terms_.push_back(member->payload);
    }
    gradient.terms = terms_;
    gradient.divisor = reduction == Reduction::kMean ? static_cast<float>(members.size()) : 1.0F;
  }

  void on_applied(std::uint64_t version_before) override {
    for (PushRecord* const member : members_) {
      member->on_applied(version_before);
    }
  }

 private:
  const std::vector<PushRecord*>& members_;
  std::vector<const float*> terms_;
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

PushRecord& Shard::accept(Session& session, const RequestHeader& request, const float* payload) {
  const std::uint64_t expected = session.accepted.load(std::memory_order_relaxed) + 1;
  if (request.push != expected) {
    throw Error(ErrorCode::kProtocol, "push number " + std::to_string(request.push) + " of a session whose next is " +
                                          std::to_string(expected));
  }
  PushRecord& record = in_flight_.take();
  record.session = &session;
  record.statistics = &statistics_;
  record.push = request.push;
  record.base_version = request.base_version;
  record.round = request.round;
  record.order = order_.fetch_add(1, std::memory_order_relaxed);
  record.payload = payload;
  record.gradient = {std::span<const float* const>(&record.payload, 1), 1.0F};
  session.accepted.store(request.push, std::memory_order_release);
  statistics_.accepted();
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
  try {
    collect_released();
    store_->submit(record);
  } catch (...) {  // no memory for another version: nothing was applied
    record.refuse();
    in_flight_.give_back(record);
    throw;
  }
  record.wait_finished();
  in_flight_.give_back(record);
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

Shard::Answer Shard::handle(Session& session, const RequestHeader& request, const float* payload) {
  Answer answer;
  ErrorCode status = ErrorCode::kNone;
  const bool pushes = request.kind == RequestKind::kPush || request.kind == RequestKind::kSkip;
  const bool right_size = (request.kind == RequestKind::kPush) == (payload != nullptr);
  if ((!pushes && request.kind != RequestKind::kPull) || !right_size || (pushes && session.role != Role::kWorker)) {
    throw Error(ErrorCode::kProtocol,
                "a request of an unknown kind, without the gradient of its kind, or from an observer");
  }
  const bool wants_parameters = (request.flags & kWantParameters) != 0;
  if ((request.flags & kWantAverage) != 0 && store_->average_offset_bytes() == 0) {
    throw Error(ErrorCode::kProtocol, "a request for the moving average, which is not kept here");
  }
  settle_previous(session);
  if ((request.flags & kWantSettled) != 0) {
    settle_accepted();
  }
  if (!pushes) {
    statistics_.pulled();
  } else if (PushRecord& record = accept(session, request, payload); joins_all()) {
    const RoundOutcome outcome = join_round(record);
    status = outcome.status;
    answer.pin = outcome.pin;
    answer.pinned = status == ErrorCode::kNone;
  } else if (payload == nullptr) {
    record.refuse();
    in_flight_.give_back(record);
  } else if (settings_.policy.replies == Replies::kAfterApply) {
    apply(record);
  } else {
    answer.apply_after_reply = &record;
  }
  if (wants_parameters && !answer.pinned && status == ErrorCode::kNone) {
    answer.pin = store_->pin();
    answer.pinned = true;
  }
  answer.header.status = static_cast<std::uint16_t>(status);
  fill(answer, session, request);
  if (answer.pinned && !wants_parameters) {
    store_->unpin(answer.pin);
    answer.pinned = false;
  }
  return answer;
}

void Shard::fill(Answer& answer, const Session& session, const RequestHeader& request) {
  ReplyHeader& header = answer.header;
  header.flags = request.flags;
  header.number = request.number;
  header.version = answer.pinned ? answer.pin.version : store_->version();
  header.accepted = session.accepted.load(std::memory_order_acquire);
  header.applied = session.applied.load(std::memory_order_acquire);
  header.staleness = session.staleness.load(std::memory_order_relaxed);
  header.round = rounds_ ? rounds_->open_round() : 0;
  header.buffer = answer.pin.buffer;
  header.payload_bytes = answer.pinned && (request.flags & kWantParameters) != 0 ? range_.size() * sizeof(float) : 0;
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
  std::string json = "{\"updates\": " + std::to_string(store_->version()) +
                     ", \"version\": " + std::to_string(store_->version()) +
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
