#include "optim/update_rule.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "kernels/access.h"
#include "kernels/kernels.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/join.h"

namespace distnet {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw Error(ErrorCode::kConfig, message);
  }
}

// average = average + (1 - decay) * (parameter - average)
DISTNET_MULTIVERSION void move_ema(float* out, const float* in, const float* parameters, float one_less_decay,
                                   std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float ema = shared_load(in + i);
    shared_store(out + i, ema + one_less_decay * (shared_load(parameters + i) - ema));
  }
}

void check_groups(const std::vector<ParameterGroup>& groups, std::uint64_t size) {
  std::uint64_t end = 0;
  for (const ParameterGroup& group : groups) {
    require(group.begin == end && group.end > group.begin,
            "parameter groups must follow each other without gap or overlap");
    require(std::isfinite(group.rate_multiplier) && group.rate_multiplier >= 0.0,
            "a group's learning-rate multiplier must be finite and not negative");
    require(std::isfinite(group.weight_decay) && group.weight_decay >= 0.0,
            "a group's weight decay must be finite and not negative");
    require(!group.settings.contains("weight_decay"), "a group has its weight decay beside its settings, not in them");
    end = group.end;
  }
  require(end == size, "parameter groups cover " + std::to_string(end) + " of " + std::to_string(size) + " parameters");
}

// Joins neighbours with the same settings, because a model may have thousands of small tensors.
std::vector<ParameterGroup> joined_groups(const std::vector<ParameterGroup>& groups) {
  std::vector<ParameterGroup> joined;
  for (const ParameterGroup& group : groups) {
    if (!joined.empty() && joined.back().rate_multiplier == group.rate_multiplier &&
        joined.back().weight_decay == group.weight_decay && joined.back().settings == group.settings &&
        joined.back().number == group.number) {
      joined.back().end = group.end;
    } else {
      joined.push_back(group);
    }
  }
  return joined;
}

// Returns the optimizer of a group, whose state is laid out as that of `own`.
std::unique_ptr<Optimizer> group_optimizer(const OptimizerSpec& spec, const Optimizer& own,
                                           const std::map<std::string, double>& settings) {
  OptimizerSpec changed = spec;
  std::string names;
  for (const auto& [name, value] : settings) {
    changed.settings[name] = value;
    names += (names.empty() ? "'" : ", '") + name + "'";
  }
  auto optimizer = make_optimizer(changed);
  bool same = optimizer->state_kind() == own.state_kind() && optimizer->state_vectors() == own.state_vectors();
  for (int index = 0; same && index < own.state_vectors(); ++index) {
    same = optimizer->initial_state_value(index) == own.initial_state_value(index);
  }
  require(same, "a group's settings (" + names + ") change what state the optimizer '" + spec.name +
                    "' keeps; only all parameters together can have another one");
  return optimizer;
}

// parameter = parameter + change
DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t add_change(const OptimizerBlock& block) {
  const float* const in = block.in;
  float* const out = block.out;
  const auto add = [=](std::size_t i, float change)
                       DISTNET_INLINE_LAMBDA { shared_store(out + i, shared_load(in + i) + change); };
  return apply_strips(block.gradient, block.count, block.stop_at, add);
}

}  // namespace

struct UpdateRule::State {
  // A run of parameters and the optimizer that steps it.
  struct Run {
    std::uint64_t end;
    double rate_multiplier;
    double weight_decay;
    std::uint32_t number;
    const Optimizer* optimizer;
  };

  std::uint64_t size;
  std::unique_ptr<Optimizer> optimizer;
  ScheduleSpec schedule;
  std::vector<Run> runs;
  std::vector<std::unique_ptr<Optimizer>> group_optimizers;  // of the groups with settings of their own
  float clip_value;
  double ema_decay;

  // The settings that all elements of one apply() share.
  struct Moment {
    std::uint64_t update;
    double rate;
    float ema_share;  // 1 - decay of the moving average
    bool change;
    float clip_value;
    std::span<const double> group_rates;

    double rate_of(std::uint32_t group) const {
      const bool own = group < group_rates.size() && !std::isnan(group_rates[group]);
      return own ? group_rates[group] : rate;
    }
  };

  Moment moment(const JoinedGradient& gradient, std::uint64_t update, std::optional<double> set_rate) const {
    const double count = static_cast<double>(update);
    const double decay = std::min(ema_decay, (1.0 + count) / (10.0 + count));
    const bool change = gradient.is_change();
    return {
        .update = update,
        .rate = set_rate ? *set_rate : schedule_rate(schedule, update),
        .ema_share = static_cast<float>(1.0 - decay),
        .change = change,
        .clip_value = change ? 0.0F : clip_value,
        .group_rates = gradient.group_rates,
    };
  }

  std::size_t step_block(const OptimizerBlock& block, const Run& run, const Moment& now) const {
    if (now.change && !run.optimizer->steps_changes()) {
      return add_change(block);
    }
    return run.optimizer->step(
        block, {now.rate_of(run.number) * run.rate_multiplier, run.weight_decay, now.update, now.change});
  }

  // Steps elements [begin, end) of one run, up to the first strip of the gradient that `stop_at` names. Returns the
  // end of what it stepped. `gradient` is given by element `begin`.
  std::uint64_t step(const ParameterVectors& vectors, const float* gradient, StopAt stop_at, const Run& run,
                     std::uint64_t begin, std::uint64_t end, const Moment& now) const {
    float* const fresh = vectors.out + begin;
    OptimizerBlock block{vectors.in + begin, fresh, gradient, stop_at, {}, static_cast<std::size_t>(end - begin)};
    for (int index = 0; index < optimizer->state_vectors(); ++index) {
      block.state[index] = vectors.state[index] + begin;
    }
    const std::size_t stepped = step_block(block, run, now);
    if (vectors.ema_out != nullptr) {
      move_ema(vectors.ema_out + begin, vectors.ema_in + begin, fresh, now.ema_share, stepped);
    }
    return begin + stepped;
  }

  // Applies a block of a gradient that has to be joined.
  Applied apply_joined(const ParameterVectors& vectors, const JoinedGradient& gradient, const Run& run,
                       std::uint64_t begin, std::uint64_t end, const Moment& now, GradientScratch& scratch) const {
    const JoinedBlock joined = join_gradient(gradient, begin, end - begin, now.clip_value, scratch);
    if (joined.spoilt_term && !gradient.checked) {
      return {begin, joined.spoilt_term};
    }
    const float* const values =
        joined.spoilt_term ? join_zeroed(gradient, begin, end - begin, now.clip_value, scratch) : joined.values;
    return {step(vectors, values, StopAt::kNothing, run, begin, end, now), {}};
  }

  // Applies a run of a term as it lies.
  Applied apply_as_it_lies(const ParameterVectors& vectors, const JoinedGradient& gradient, const Run& run,
                           std::uint64_t begin, std::uint64_t end, const Moment& now, GradientScratch& scratch) const {
    while (true) {
      begin = step(vectors, dense_run(gradient, 0, begin), StopAt::kNotFinite, run, begin, end, now);
      if (begin == end) {
        return {end, {}};
      }
      if (!gradient.checked) {
        return {begin, 0};
      }
      const std::uint64_t strip_end = std::min(end, begin + kStripFloats);
      const float* const zeroed = join_zeroed(gradient, begin, strip_end - begin, 0.0F, scratch);
      begin = step(vectors, zeroed, StopAt::kNothing, run, begin, strip_end, now);
    }
  }
};

bool is_finite(const GradientView& term, std::uint64_t begin, std::uint64_t end) {
  return term.is_encoded() ? term.decoder->finite(term.data, begin, end)
                           : all_finite(term.floats() + begin, end - begin);
}

UpdateRule::UpdateRule(const UpdateRuleSpec& spec, std::uint64_t size) {
  require(size > 0, "a vector of parameters cannot be empty");
  require(std::isfinite(spec.clip_value) && spec.clip_value >= 0.0,
          "clip_value must be finite and not negative (0: none)");
  require(spec.ema_decay >= 0.0 && spec.ema_decay < 1.0, "the average's decay must be at least 0 and less than 1");
  check_schedule(spec.schedule);
  auto optimizer = make_optimizer(spec.optimizer);
  DISTNET_INVARIANT(optimizer->state_vectors() <= kMaxStateVectors);
  std::vector<ParameterGroup> groups = spec.groups;
  if (groups.empty()) {
    groups.push_back({0, size, 1.0, default_weight_decay(spec.optimizer), {}, kNoGroup});
  }
  check_groups(groups, size);
  auto state = std::make_unique<State>(State{.size = size,
                                             .optimizer = std::move(optimizer),
                                             .schedule = spec.schedule,
                                             .runs = {},
                                             .group_optimizers = {},
                                             .clip_value = static_cast<float>(spec.clip_value),
                                             .ema_decay = spec.ema_decay});
  for (const ParameterGroup& group : joined_groups(groups)) {
    const Optimizer* stepper = state->optimizer.get();
    if (!group.settings.empty()) {
      state->group_optimizers.push_back(group_optimizer(spec.optimizer, *state->optimizer, group.settings));
      stepper = state->group_optimizers.back().get();
    }
    state->runs.push_back({group.end, group.rate_multiplier, group.weight_decay, group.number, stepper});
  }
  state_ = std::move(state);
}

UpdateRule::~UpdateRule() = default;

std::uint64_t UpdateRule::size() const { return state_->size; }
int UpdateRule::state_vectors() const { return state_->optimizer->state_vectors(); }
float UpdateRule::initial_state_value(int index) const { return state_->optimizer->initial_state_value(index); }
bool UpdateRule::keeps_ema() const { return state_->ema_decay > 0.0; }
double UpdateRule::rate(std::uint64_t update) const { return schedule_rate(state_->schedule, update); }

Applied UpdateRule::apply(const ParameterVectors& vectors, const JoinedGradient& gradient, std::uint64_t begin,
                          std::uint64_t end, std::uint64_t update, std::optional<double> set_rate) const {
  DISTNET_INVARIANT(begin <= end && end <= state_->size && gradient.first <= begin && !gradient.terms.empty());
  DISTNET_INVARIANT(std::ranges::all_of(gradient.terms, &GradientView::present));
  DISTNET_INVARIANT(std::ranges::all_of(
      gradient.terms, [&](const GradientView& term) { return term.meaning == gradient.terms.front().meaning; }));
  const State::Moment now = state_->moment(gradient, update, set_rate);
  const bool joins = needs_joining(gradient, now.clip_value);
  // Small blocks gain nothing without scratch or a second pass over the parameters.
  const bool in_blocks = joins || vectors.ema_out != nullptr;
  const bool encoded = std::ranges::any_of(gradient.terms, &GradientView::is_encoded);
  GradientScratch scratch;
  auto run = std::upper_bound(state_->runs.begin(), state_->runs.end(), begin,
                              [](std::uint64_t element, const State::Run& r) { return element < r.end; });
  while (begin < end) {
    const std::uint64_t run_end = std::min(end, run->end);
    std::uint64_t block_end = in_blocks ? std::min(run_end, begin + kBlockFloats) : run_end;
    if (encoded) {
      block_end = std::min(block_end, (begin / kDecodeRunFloats + 1) * kDecodeRunFloats);
    }
    const auto apply_block = joins ? &State::apply_joined : &State::apply_as_it_lies;
    const Applied applied = (*state_.*apply_block)(vectors, gradient, *run, begin, block_end, now, scratch);
    if (!applied.whole()) {
      return applied;
    }
    begin = block_end;
    if (begin == run->end) {
      ++run;
    }
  }
  return {end, {}};
}

}  // namespace distnet
