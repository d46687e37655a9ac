#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "base/error.h"

namespace distnet {
namespace {

void require(bool condition, const char* message) {
  if (!condition) {
    throw Error(ErrorCode::kConfig, std::string("learning-rate schedule: ") + message);
  }
}

double exponential_rate(const ScheduleSpec& spec, std::uint64_t update) {
  const double periods = static_cast<double>(update) / spec.period_updates;
  return spec.learning_rate * std::pow(spec.factor, spec.staircase ? std::floor(periods) : periods);
}

double piecewise_rate(const ScheduleSpec& spec, std::uint64_t update) {
  const auto after = std::upper_bound(spec.boundaries.begin(), spec.boundaries.end(), update);
  return spec.values[static_cast<std::size_t>(after - spec.boundaries.begin())];
}

double cosine_rate(const ScheduleSpec& spec, std::uint64_t update) {
  const double progress = std::min(1.0, static_cast<double>(update) / spec.period_updates);
  return spec.final_learning_rate +
         0.5 * (spec.learning_rate - spec.final_learning_rate) * (1.0 + std::cos(std::numbers::pi * progress));
}

double rate_after_warmup(const ScheduleSpec& spec, std::uint64_t update) {
  switch (spec.kind) {
    case ScheduleSpec::Kind::kConstant:
      return spec.learning_rate;
    case ScheduleSpec::Kind::kExponential:
      return exponential_rate(spec, update);
    case ScheduleSpec::Kind::kPiecewise:
      return piecewise_rate(spec, update);
    case ScheduleSpec::Kind::kCosine:
      return cosine_rate(spec, update);
  }
  throw Error(ErrorCode::kConfig, "learning-rate schedule: unknown kind");
}

}  // namespace

bool is_learning_rate(double value) { return std::isfinite(value) && value >= 0.0; }

void check_schedule(const ScheduleSpec& spec) {
  require(is_learning_rate(spec.learning_rate), "the learning rate must be finite and not negative");
  require(is_learning_rate(spec.warmup_learning_rate), "the warm-up's learning rate must be finite and not negative");
  switch (spec.kind) {
    case ScheduleSpec::Kind::kConstant:
      break;
    case ScheduleSpec::Kind::kExponential:
      require(std::isfinite(spec.factor) && spec.factor > 0.0, "the factor must be finite and positive");
      require(std::isfinite(spec.period_updates) && spec.period_updates > 0.0,
              "the period must be finite and positive");
      break;
    case ScheduleSpec::Kind::kPiecewise:
      require(spec.values.size() == spec.boundaries.size() + 1, "expected one more value than boundaries");
      require(std::all_of(spec.values.begin(), spec.values.end(), is_learning_rate),
              "values must be finite and not negative");
      require(std::is_sorted(spec.boundaries.begin(), spec.boundaries.end()), "boundaries must not decrease");
      break;
    case ScheduleSpec::Kind::kCosine:
      require(std::isfinite(spec.period_updates) && spec.period_updates > 0.0,
              "the period must be finite and positive");
      require(is_learning_rate(spec.final_learning_rate), "the final learning rate must be finite and not negative");
      break;
  }
}

double schedule_rate(const ScheduleSpec& spec, std::uint64_t update) {
  if (update >= spec.warmup_updates) {
    return rate_after_warmup(spec, update - spec.warmup_updates);
  }
  const double target = rate_after_warmup(spec, 0);
  const double progress = static_cast<double>(update) / static_cast<double>(spec.warmup_updates);
  return spec.warmup_learning_rate + (target - spec.warmup_learning_rate) * progress;
}

}  // namespace distnet
