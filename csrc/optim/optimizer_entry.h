// One line of the table of optimizers: what an optimizer's own file (sgd.cc, adam.cc, ...) hands to table.cc.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "optim/optimizer.h"

namespace distnet {

// Every setting is a number; flags are 0 or 1. Legal values: minimum <= value < limit.
struct OptimizerSetting {
  std::string_view name;
  double default_value;
  double minimum;
  double limit;
};

// All settings of an optimizer, checked, defaults filled in.
using OptimizerSettings = std::map<std::string, double, std::less<>>;

struct OptimizerEntry {
  std::string_view name;
  std::span<const OptimizerSetting> settings;
  std::unique_ptr<Optimizer> (*make)(const OptimizerSettings& settings);
};

// Settings without an upper limit that means anything. Never infinite, so that a check against it also refuses
// infinity.
inline constexpr double kAnyPositive = 1e30;

}  // namespace distnet
