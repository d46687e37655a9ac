// One line of the table of optimizers, which an optimizer's own file (sgd.cc, adam.cc, ...) hands to table.cc.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "optim/optimizer.h"

namespace distnet {

// Every setting is a number; flags are 0 or 1. A value is legal when minimum <= value < limit.
struct OptimizerSetting {
  std::string_view name;
  double default_value;
  double minimum;
  double limit;
};

// All settings of an optimizer, checked and with defaults filled in.
using OptimizerSettings = std::map<std::string, double, std::less<>>;

struct OptimizerEntry {
  std::string_view name;
  std::span<const OptimizerSetting> settings;
  std::unique_ptr<Optimizer> (*make)(const OptimizerSettings& settings);
};

// The limit of settings that need none. It is finite, so that the check against it also refuses infinity.
inline constexpr double kAnyPositive = 1e30;
inline constexpr double kFlagLimit = 1.5;

}  // namespace distnet
