#include "server/shard.h"

#include <algorithm>
#include <cmath>
#include <utility>

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
  for (const TensorSlice& slice : slices_of(manifest, range)) {
    const std::string& name = manifest.tensors[slice.tensor].name;
    const auto matches = [&](const ShardSettings::Group& group) {
      return fnmatch(group.pattern.c_str(), name.c_str(), 0) == 0;
    };
    const auto found = std::ranges::find_if(settings.groups, matches);
    ParameterGroup group{groups.empty() ? 0 : slice.shard_offset, 0, 1.0, own_decay, {}, kNoGroup};
    if (found != settings.groups.end()) {
      group.rate_multiplier = found->rate_multiplier;
      group.weight_decay = found->weight_decay.value_or(own_decay);
      group.settings = found->settings;
      group.number = static_cast<std::uint32_t>(found - settings.groups.begin());
    }
    if (!groups.empty()) {
      groups.back().end = group.begin;
    }
    groups.push_back(group);
  }
  if (groups.empty()) {
    groups.push_back({0, 0, 1.0, own_decay, {}, kNoGroup});
  }
  groups.back().end = range.size();
  return groups;
}

std::vector<std::byte> encoded(const Manifest& manifest) {
  Writer writer;
  write_manifest(writer, manifest);
  return writer.take();
}

UpdateRuleSpec rule_of(const ShardSettings& settings, const Manifest& manifest, ShardRange range) {
  UpdateRuleSpec rule;
  rule.optimizer = settings.optimizer;
  rule.schedule = settings.schedule;
  rule.groups = groups_of(settings, manifest, range);
  rule.clip_value = settings.clip_value;
  rule.ema_decay = settings.ema_decay;
  return rule;
}

// A round's update: settles every member's record once it is visible.
class RoundUpdate final : public Update {
 public:
  RoundUpdate(const std::vector<PushRecord*>& members, Reduction reduction, const PushSettings& settings)
      : members_(members) {
    for (const PushRecord* member : members) {
      terms_.push_back(member->view());
      weights_.push_back(member->view().settings.weight.value_or(1.0F));
    }
    gradient.terms = terms_;
    gradient.rate = settings.learning_rate;
    gradient.group_rates = settings.group_rates;
    gradient.divisor = reduction == Reduction::kMean ? static_cast<float>(members.size()) : 1.0F;
    const bool differ = std::ranges::any_of(weights_, [&](float weight) { return weight != weights_.front(); });
    if (differ && reduction == Reduction::kMean) {
      gradient.divisor = scale_weights();
      gradient.weights = weights_;
    }
    gradient.checked = std::ranges::all_of(members, [](const PushRecord* member) { return member->gradient.checked; });
    tells_drafts = std::ranges::none_of(members, [](const PushRecord* member) { return member->redrafted; });
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
  // Takes the same power of two out of all weights, so that neither products nor the sum overflow; that rounds nothing.
  // Returns the sum.
  float scale_weights() {
    int exponent = 0;
    static_cast<void>(std::frexp(*std::ranges::max_element(weights_), &exponent));
    double sum = 0.0;
    for (float& weight : weights_) {
      weight = std::ldexp(weight, -exponent);
      sum += weight;
    }
    return static_cast<float>(sum);
  }

  const std::vector<PushRecord*>& members_;
  std::vector<GradientView> terms_;
  std::vector<float> weights_;
};

}  // namespace

ShardSettings with_brought(ShardSettings settings, const std::optional<BroughtOptimizer>& brought) {
  if (!settings.optimizer_from_client || !brought) {
    return settings;
  }
  settings.optimizer = {brought->name, brought->settings};
  settings.schedule = {};
  settings.schedule.learning_rate = brought->learning_rate;
  settings.clip_value = brought->clip_value;
  settings.clip_norm = brought->clip_norm;
  settings.groups.clear();
  for (const BroughtOptimizer::Group& group : brought->groups) {
    settings.groups.push_back({group.pattern, group.rate_multiplier, group.weight_decay, group.settings});
  }
  settings.about_optimizer = brought->text;
  return settings;
}

void check_rule(const ShardSettings& settings, const Manifest& manifest, ShardRange range) {
  const UpdateRule rule(rule_of(settings, manifest, range), range.size());
}

Shard::Shard(const ShardSettings& settings, const Manifest& manifest, ShardRange range, std::span<const float> initial,
             Memory& memory, LiveSessions& sessions, RoundPeers& peers, const RestoredState* restored)
    : settings_(settings),
      manifest_(manifest),
      encoded_manifest_(encoded(manifest)),
      range_(range),
      sessions_(sessions),
      store_(make_store(settings.policy.guard, rule_of(settings, manifest, range), initial, memory)),
      saved_(sessions.table(), saved_ranks(settings), most_waiting_saves(settings)),
      settlement_(sessions.table(), outlets_, metrics_, saved_),
      in_flight_(memory),
      snapshots_(std::make_unique<SnapshotRoom>(*store_, settlement_.gate(), saved_)) {
  if (restored != nullptr) {
    store_->start_from({restored->ema, restored->state_vectors, restored->version, restored->set_rate});
    saved_.put_back(restored->saved);
  }
  if (settings.joins_all()) {
    const auto duty = settings.shard == 0 ? Rounds::Duty::kLeader : Rounds::Duty::kFollower;
    rounds_ = std::make_unique<Rounds>(settings.policy, duty, settings.shards, *this, peers);
    if (restored != nullptr) {
      rounds_->begin_at(restored->round, restored->set_rate);
    }
  }
  if (settings.shard == 0) {
    gatherings_ = std::make_unique<GatheringRoom>(settings.policy.workers, rounds_.get());
  }
  pipeline_ = std::make_unique<PushPipeline>(settings_, *store_, sessions_, in_flight_, settlement_, outlets_, metrics_,
                                             rounds_.get(), range_.size());
}

std::uint64_t Shard::session_came(std::uint32_t session) {
  const SessionEntry& entry = sessions_.entry(session);
  if (gatherings_ && entry.role == Role::kWorker) {
    gatherings_->came({entry.rank, entry.incarnation});
  }
  if (!rounds_ || entry.role != Role::kWorker) {
    return rounds_ ? rounds_->next_round() : 0;
  }
  return std::max(rounds_->came({entry.rank, entry.incarnation}), rounds_->next_round());
}

void Shard::session_ended(std::uint32_t session, SessionEnd how) {
  const SessionEntry& entry = sessions_.entry(session);
  metrics_.session_ended(how, entry.role);  // first: who sees a round go on without it finds it counted
  if (rounds_ && entry.role == Role::kWorker) {
    rounds_->left({entry.rank, entry.incarnation}, how);
  }
  if (gatherings_ && entry.role == Role::kWorker) {
    gatherings_->left({entry.rank, entry.incarnation}, how);
  }
}

void Shard::excuse(std::uint32_t rank) {
  if (rounds_) {
    rounds_->excuse(rank);
  }
  if (gatherings_) {
    gatherings_->excuse(rank);
  }
}

bool Shard::serve(std::uint32_t session, const Request& request, ServerChannel& channel) {
  const SessionEntry& entry = sessions_.entry(session);
  if (gatherings_ && entry.role == Role::kWorker && request.header.kind != RequestKind::kNone) {
    gatherings_->pushes({entry.rank, entry.incarnation});
  }
  return pipeline_->serve(session, request, channel);
}

void Shard::set_learning_rate(double learning_rate) {
  if (rounds_) {
    rounds_->set_learning_rate(learning_rate);
    return;
  }
  settle_accepted();
  store_->set_learning_rate(learning_rate);
}

void Shard::rates_differ(const std::string& what) {
  metrics_.rates_differed();
  if (!std::exchange(told_that_rates_differ_, true)) {
    sessions_.notify_all_clients({Notice::Kind::kWarning, what + "; rates_differed of the server's stats counts the "
                                                                 "rounds, and this is said once"});
  }
}

void Shard::use_learning_rate(double learning_rate) {
  if (store_->set_rate() != learning_rate) {
    store_->set_learning_rate(learning_rate);
  }
}

void Shard::prepare_round() {
  if (!store_->versions_can_mix()) {
    outlets_.collect_released();
  }
  store_->prepare();
}

// A member whose gradient turns out not to be finite is left out, and the round joined anew without it.
void Shard::apply_round(const std::vector<PushRecord*>& members, const PushSettings& settings) {
  if (!store_->versions_can_mix()) {
    outlets_.collect_released();
  }
  std::vector<PushRecord*> joined = members;
  while (!joined.empty()) {
    RoundUpdate update(joined, settings_.policy.reduction, settings);
    store_->submit(update);
    update.wait_finished();
    if (!update.refused()) {
      return;
    }
    joined[update.spoilt_term]->withdraw();
    joined.erase(joined.begin() + static_cast<std::ptrdiff_t>(update.spoilt_term));
    for (PushRecord* const member : joined) {
      member->redrafted = true;
    }
  }
}

ShardStatistics Shard::statistics() const {
  ShardStatistics statistics;
  metrics_.fill(statistics);
  statistics.updates = statistics.version = store_->version();
  statistics.floats = range_.size();
  statistics.state_vectors = static_cast<std::uint64_t>(store_->state_vectors());
  statistics.learning_rate = store_->next_learning_rate();
  if (rounds_) {
    statistics.learning_rate = rounds_->set_rate().value_or(statistics.learning_rate);
    statistics.round = rounds_->next_round();
    statistics.awaited = rounds_->awaited();
  }
  snapshots_->fill(statistics);
  statistics.sessions = sessions_.statistics();
  return statistics;
}

}  // namespace distnet
