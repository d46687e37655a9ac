// Optimizers: element-wise rules (parameter, gradient, state) -> (parameter, state). Each is one file and one line of
// table.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "kernels/strips.h"

namespace distnet {

inline constexpr int kMaxStateVectors = 3;

// An optimizer as data: its name in the table and its settings ("momentum" -> 0.9, "nesterov" -> 1, ...).
struct OptimizerSpec {
  std::string name = "sgd";
  std::map<std::string, double> settings;
};

// One run of elements. `out` may equal `in`; otherwise the arrays do not overlap.
struct OptimizerBlock {
  const float* in;
  float* out;
  const float* gradient;  // a peer may write it meanwhile
  StopAt stop_at;
  float* state[kMaxStateVectors];
  std::size_t count;
};

struct StepSettings {
  double rate;  // after the schedule and the group's multiplier
  double weight_decay;
  std::uint64_t update;  // 0-based count of updates before this one
  bool change = false;   // the block's gradient is a change of the parameters; only where steps_changes()
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual int state_vectors() const = 0;  // at most kMaxStateVectors
  virtual float initial_state_value(int index) const { return static_cast<void>(index), 0.0F; }
  // Tells apart what as many state vectors hold, where settings decide that.
  virtual unsigned state_kind() const { return 0; }
  // Whether a change of the parameters (GradientView::Meaning) is stepped. Otherwise it is added to them as it is.
  virtual bool steps_changes() const { return false; }
  // Returns how many elements it stepped: all, or those before the first strip of the gradient that holds what
  // `block.stop_at` names. It has touched nothing from there on.
  virtual std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const = 0;
};

// Throws Error(kConfig) on an unknown name, an unknown setting, or a setting out of range.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerSpec& spec);

// Returns the weight decay of parameters that belong to no group: the spec's setting, or the optimizer's default; 0
// where it has none.
double default_weight_decay(const OptimizerSpec& spec);

}  // namespace distnet
