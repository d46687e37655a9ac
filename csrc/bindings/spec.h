// Python's plain dictionaries of optimizers, schedules and policies, as the engine's values.
#pragma once

#include <pybind11/pybind11.h>

#include "optim/update_rule.h"
#include "server/shard_settings.h"

namespace distnet::bindings {

OptimizerSpec optimizer_spec(const pybind11::dict& spec);
// None: no optimizer is brought.
std::optional<BroughtOptimizer> brought_optimizer(const pybind11::object& spec);
ScheduleSpec schedule_spec(const pybind11::dict& spec);
ShardSettings shard_settings(const pybind11::dict& settings);
Tuning tuning_of(const pybind11::dict& values);

}  // namespace distnet::bindings
