// Optimizers: element-wise rules (parameter, gradient, state) -> (parameter, state). One file each, one line each in
// table.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace distnet {

inline constexpr int kMaxSlots = 2;

// An optimizer as data: a name of the table and its settings ("momentum" -> 0.9, "nesterov" -> 1, ...).
struct OptimizerSpec {
  std::string name = "sgd";
  std::map<std::string, double> settings;
};

// One run of elements. `out` may equal `in`. Never overlapping otherwise.
struct OptimizerBlock {
  const float* in;
  float* out;
  const float* gradient;
  float* slots[kMaxSlots];
  std::size_t count;
};

struct StepSettings {
  double rate;  // schedule and group multiplier applied
  double weight_decay;
  std::uint64_t update;  // 0-based count of updates before this one
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual int slots() const = 0;  // state vectors, at most kMaxSlots
  virtual float initial_slot_value(int slot) const { return static_cast<void>(slot), 0.0F; }
  virtual void step(const OptimizerBlock& block, const StepSettings& settings) const = 0;
};

// Throws Error(kConfig) on an unknown name, an unknown setting, or a setting out of range.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerSpec& spec);

// The weight decay of parameters that belong to no group: the spec's setting, or the optimizer's default.
double default_weight_decay(const OptimizerSpec& spec);

}  // namespace distnet
