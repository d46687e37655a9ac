// Changes a range of parameters by one joined gradient: optimizer, schedule, per-group settings, clipping, moving
// average.
//
// Thread safety: an UpdateRule is immutable after construction; any number of threads may call apply() on disjoint
// ranges.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/gradient_view.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"

namespace distnet {

// The gradient of one update of a store: one push, or the pushes of one round in rank order. It is (terms[0] + terms[1]
// + ...) / divisor, summed in float32 in that order. Where there are weights, each term is multiplied by its own first.
// A single term with divisor 1 and no weight is used as it is. No term is none().
struct JoinedGradient {
  std::span<const GradientView> terms;
  std::span<const float> weights = {};  // one for each term, or empty
  float divisor = 1.0F;
  std::optional<double> rate = {};  // that the update has, in place of the one that was set and of the schedule's
  std::span<const double> group_rates = {};  // in place of any of these, by ParameterGroup::number; NaN: none
  std::uint64_t first = 0;  // the vector's element that dense terms begin with; encoded terms begin with 0
  bool checked = false;     // every term was found to be finite, as all of it lay there

  // Whether it is a change of the parameters; all terms have the same meaning.
  bool is_change() const { return terms.front().is_change(); }
};

// Returns whether elements [begin, end) of a term are finite. `begin` is a multiple of kDecodeRunFloats, and so is
// `end` unless it is the vector's.
bool is_finite(const GradientView& term, std::uint64_t begin, std::uint64_t end);

// How far an update came.
struct Applied {
  std::uint64_t end = 0;                   // one past the last element that it was applied to
  std::optional<std::size_t> spoilt_term;  // the term that holds NaN or infinity in what comes next
  bool whole() const { return !spoilt_term; }
};

inline constexpr std::uint32_t kNoGroup = 0xFFFFFFFFU;

// A run of parameters with its own settings. Groups lie in order, do not overlap and cover the vector. What the
// optimizer's state is must not depend on the group: which vectors it has, and where they start.
struct ParameterGroup {
  std::uint64_t begin = 0;  // first element
  std::uint64_t end = 0;    // one past the last
  double rate_multiplier = 1.0;
  double weight_decay = 0.0;                    // L2, added to the gradient (AdamW: decoupled)
  std::map<std::string, double> settings = {};  // in place of the optimizer's own; not its weight decay
  std::uint32_t number = kNoGroup;              // by which a push names its learning rate
};

struct UpdateRuleSpec {
  OptimizerSpec optimizer = {};
  ScheduleSpec schedule = {};
  std::vector<ParameterGroup> groups = {};  // empty: one group with the optimizer's own weight decay
  double clip_value = 0.0;                  // 0: none; else each gradient element is clamped to ±clip_value
  double ema_decay = 0.0;                   // 0: no moving average; ramp: min(decay, (1 + update) / (10 + update))
};

// The vectors that an update reads and writes. `out` may equal `in`. The `ema_*` are null when no average is kept.
struct ParameterVectors {
  const float* in = nullptr;
  float* out = nullptr;
  float* state[kMaxStateVectors] = {};  // the optimizer's state vectors, updated in place
  const float* ema_in = nullptr;
  float* ema_out = nullptr;
};

class UpdateRule {
 public:
  // Throws Error(kConfig) unless the settings make a rule for `size` parameters.
  UpdateRule(const UpdateRuleSpec& spec, std::uint64_t size);
  ~UpdateRule();

  std::uint64_t size() const;
  int state_vectors() const;  // how many vectors the optimizer keeps
  float initial_state_value(int index) const;
  bool keeps_ema() const;  // whether a moving average is kept
  double rate(std::uint64_t update) const;

  // Applies update number `update`, counted from 0, to elements [begin, end). `set_rate` counts in place of the
  // schedule's learning rate; the groups multiply either. Vectors are given by their element 0, terms by their element
  // `first`. Throws and allocates nothing. Every instruction set gives the same bits, however
  // the vector is cut into ranges.
  //
  // It ends before the first strip in which a term holds NaN or infinity, or before the first block (at most
  // kBlockFloats) where terms are joined, decoded or clipped; it has written nothing from there on. A gradient that was
  // `checked` is applied to the end: a value that a peer has spoilt since counts as 0.
  //
  // A change is added to the parameters as it is, not clipped, and moves the average; an optimizer that steps changes
  // steps it. It counts as an update.
  Applied apply(const ParameterVectors& vectors, const JoinedGradient& gradient, std::uint64_t begin, std::uint64_t end,
                std::uint64_t update, std::optional<double> set_rate = {}) const;

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

}  // namespace distnet
