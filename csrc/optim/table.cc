// The table of all optimizers: an optimizer is one file and one line of DISTNET_OPTIMIZERS.
#include <cmath>
#include <sstream>

#include "base/error.h"
#include "optim/optimizer_entry.h"

#define DISTNET_OPTIMIZERS(X) \
  X(sgd_entry)                \
  X(momentum_entry)           \
  X(adagrad_entry)            \
  X(rmsprop_entry)            \
  X(adam_entry)               \
  X(adamw_entry)              \
  X(nadam_entry)              \
  X(lion_entry)               \
  X(outer_nesterov_entry)

namespace distnet {

#define DISTNET_DECLARE(entry) extern const OptimizerEntry entry;
DISTNET_OPTIMIZERS(DISTNET_DECLARE)
#undef DISTNET_DECLARE

namespace {

#define DISTNET_ADDRESS(entry) &(entry),
constexpr const OptimizerEntry* kOptimizers[] = {DISTNET_OPTIMIZERS(DISTNET_ADDRESS)};
#undef DISTNET_ADDRESS

const OptimizerEntry& find_optimizer(const std::string& name) {
  std::string known;
  for (const OptimizerEntry* entry : kOptimizers) {
    if (entry->name == name) {
      return *entry;
    }
    known += known.empty() ? "" : ", ";
    known += entry->name;
  }
  throw Error(ErrorCode::kConfig, "unknown optimizer '" + name + "': expected one of " + known);
}

OptimizerSettings checked_settings(const OptimizerEntry& entry, const OptimizerSpec& spec) {
  OptimizerSettings settings;
  std::string known;
  for (const OptimizerSetting& setting : entry.settings) {
    settings.emplace(setting.name, setting.default_value);
    known += known.empty() ? "" : ", ";
    known += setting.name;
  }
  for (const auto& [name, value] : spec.settings) {
    const auto found = settings.find(name);
    if (found == settings.end()) {
      throw Error(ErrorCode::kConfig,
                  "optimizer '" + spec.name + "' has no setting '" + name + "': expected one of " + known);
    }
    found->second = value;
  }
  for (const OptimizerSetting& setting : entry.settings) {
    const double value = settings.find(setting.name)->second;
    if (value >= setting.minimum && value < setting.limit) {
      continue;
    }
    std::ostringstream message;
    message << "setting '" << setting.name << "' of optimizer '" << spec.name << "' is " << value
            << ": expected at least " << setting.minimum << " and less than " << setting.limit;
    throw Error(ErrorCode::kConfig, message.str());
  }
  return settings;
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const OptimizerSpec& spec) {
  const OptimizerEntry& entry = find_optimizer(spec.name);
  return entry.make(checked_settings(entry, spec));
}

double default_weight_decay(const OptimizerSpec& spec) {
  const OptimizerSettings settings = checked_settings(find_optimizer(spec.name), spec);
  const auto found = settings.find("weight_decay");
  return found == settings.end() ? 0.0 : found->second;
}

}  // namespace distnet
