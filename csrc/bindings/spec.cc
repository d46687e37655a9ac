#include "bindings/spec.h"

#include <pybind11/stl.h>

#include "base/error.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

using GroupTuple = std::tuple<std::string, double, std::optional<double>, std::map<std::string, double>>;

template <typename T>
T get(const py::dict& from, const char* key) {
  if (!from.contains(key)) {
    throw Error(ErrorCode::kConfig, std::string("the setting '") + key + "' is missing");
  }
  return py::cast<T>(from[key]);
}

template <typename T>
T one_of(const py::dict& from, const char* key, const std::map<std::string, T>& values) {
  const auto name = get<std::string>(from, key);
  const auto found = values.find(name);
  if (found == values.end()) {
    throw Error(ErrorCode::kConfig, std::string("the setting '") + key + "' cannot be '" + name + "'");
  }
  return found->second;
}

UpdatePolicy policy_of(const py::dict& from) {
  UpdatePolicy policy;
  policy.joins = one_of<Joins>(from, "joins", {{"one", Joins::kOne}, {"all", Joins::kAll}});
  policy.replies = one_of<Replies>(from, "replies",
                                   {{"after-apply", Replies::kAfterApply}, {"before-apply", Replies::kBeforeApply}});
  policy.guard = get<std::string>(from, "guard");
  policy.reduction = one_of<Reduction>(from, "reduction", {{"mean", Reduction::kMean}, {"sum", Reduction::kSum}});
  policy.max_inflight = get<std::uint32_t>(from, "max_inflight");
  policy.on_loss = one_of<OnLoss>(from, "on_loss",
                                  {{"shrink", OnLoss::kShrink}, {"wait", OnLoss::kWait}, {"abort", OnLoss::kAbort}});
  policy.round_timeout_s = get<double>(from, "round_timeout");
  policy.workers = get<std::uint32_t>(from, "workers");
  return policy;
}

}  // namespace

OptimizerSpec optimizer_spec(const py::dict& spec) {
  return {get<std::string>(spec, "name"), get<std::map<std::string, double>>(spec, "settings")};
}

ScheduleSpec schedule_spec(const py::dict& spec) {
  using Kind = ScheduleSpec::Kind;
  const auto from = get<py::dict>(spec, "schedule");
  ScheduleSpec schedule;
  schedule.kind = one_of<Kind>(from, "kind",
                               {{"constant", Kind::kConstant},
                                {"exponential", Kind::kExponential},
                                {"piecewise", Kind::kPiecewise},
                                {"cosine", Kind::kCosine}});
  schedule.learning_rate = get<double>(from, "learning_rate");
  schedule.factor = get<double>(from, "factor");
  schedule.period_updates = get<double>(from, "period_updates");
  schedule.staircase = get<bool>(from, "staircase");
  schedule.final_learning_rate = get<double>(from, "final_learning_rate");
  schedule.boundaries = get<std::vector<std::uint64_t>>(from, "boundaries");
  schedule.values = get<std::vector<double>>(from, "values");
  schedule.warmup_updates = get<std::uint64_t>(from, "warmup_updates");
  schedule.warmup_learning_rate = get<double>(from, "warmup_learning_rate");
  return schedule;
}

std::optional<BroughtOptimizer> brought_optimizer(const py::object& spec) {
  if (spec.is_none()) {
    return std::nullopt;
  }
  const auto from = py::cast<py::dict>(spec);
  const OptimizerSpec optimizer = optimizer_spec(from);
  const ScheduleSpec schedule = schedule_spec(from);
  if (schedule.kind != ScheduleSpec::Kind::kConstant || schedule.warmup_updates != 0) {
    throw Error(ErrorCode::kConfig, "a client brings an optimizer with one learning rate, not with a schedule");
  }
  BroughtOptimizer brought;
  brought.text = get<std::string>(from, "text");
  brought.name = optimizer.name;
  brought.settings = optimizer.settings;
  brought.learning_rate = schedule.learning_rate;
  brought.clip_value = get<double>(from, "clip_value");
  brought.clip_norm = get<double>(from, "clip_norm");
  for (const auto& [pattern, rate, decay, own] : get<std::vector<GroupTuple>>(from, "groups")) {
    brought.groups.push_back({pattern, rate, decay, own});
  }
  return brought;
}

Tuning tuning_of(const py::dict& from) {
  Tuning tuning;
  tuning.spin = std::chrono::microseconds(static_cast<std::int64_t>(get<double>(from, "spin")));
  tuning.announce_early = get<bool>(from, "announce_early");
  tuning.apply_arriving = get<bool>(from, "apply_arriving");
  tuning.read_drafts = get<bool>(from, "read_drafts");
  tuning.deliver = get<bool>(from, "deliver");
  tuning.past_cache = get<bool>(from, "past_cache");
  tuning.duplex = get<bool>(from, "duplex");
  tuning.congestion_control = get<std::string>(from, "congestion_control");
  return tuning;
}

FormatSpec format_of(const py::dict& from, bool pulls) {
  const FormatSpec spec{get<std::string>(from, "name"), get<std::map<std::string, double>>(from, "settings")};
  if (pulls && !make_format(spec)->for_pulls()) {
    throw Error(ErrorCode::kConfig, "parameters cannot travel as '" + spec.name + "'");
  }
  return complete_format(spec);
}

ShardSettings shard_settings(const py::dict& from) {
  ShardSettings settings;
  const auto optimizer = get<py::dict>(from, "optimizer");
  settings.policy = policy_of(get<py::dict>(from, "policy"));
  settings.optimizer = optimizer_spec(optimizer);
  settings.schedule = schedule_spec(optimizer);
  settings.clip_value = get<double>(optimizer, "clip_value");
  settings.clip_norm = get<double>(optimizer, "clip_norm");
  settings.ema_decay = get<double>(from, "ema_decay");
  for (const auto& [pattern, rate, decay, own] : get<std::vector<GroupTuple>>(from, "groups")) {
    settings.groups.push_back({pattern, rate, decay, own});
  }
  settings.tuning = tuning_of(get<py::dict>(from, "tuning"));
  settings.push_format = format_of(get<py::dict>(from, "push_format"), false);
  settings.pull_format = format_of(get<py::dict>(from, "pull_format"), true);
  settings.shard = get<std::uint32_t>(from, "shard");
  settings.shards = get<std::uint32_t>(from, "shards");
  const auto [high, low] = get<std::pair<std::uint64_t, std::uint64_t>>(from, "job_secret");
  settings.job_secret = {high, low};
  settings.owner = get<std::uint64_t>(from, "owner");
  settings.optimizer_from_client = get<bool>(from, "optimizer_from_client");
  settings.about = get<std::string>(from, "about");
  settings.about_optimizer = get<std::string>(from, "about_optimizer");
  settings.model_from_owner = get<bool>(from, "model_from_owner");
  settings.reconnect_timeout_s = get<double>(from, "reconnect_timeout");
  return settings;
}

}  // namespace distnet::bindings
