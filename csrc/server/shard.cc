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
  store_ = make_store(settings.policy.guard, rule, initial, memory_);
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
      ", \"queue_depth\": " + std::to_string(statistics_.unsettled()) +
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
