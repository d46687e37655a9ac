// Learning-rate schedules by update count, as data.
#pragma once

#include <cstdint>
#include <vector>

namespace distnet {

struct ScheduleSpec {
  enum class Kind : std::uint8_t { kConstant, kExponential, kPiecewise, kCosine };
  Kind kind = Kind::kConstant;
  double learning_rate = 0.01;       // at update 0 (after any warm-up)
  double factor = 1.0;               // exponential: rate * factor^(update / period)
  double period_updates = 1.0;       // exponential: see above; cosine: updates from rate to final_rate
  bool staircase = false;            // exponential: floor(update / period)
  double final_learning_rate = 0.0;  // cosine
  // Piecewise: values[i] holds while update < boundaries[i]; there is one value more than boundaries.
  std::vector<std::uint64_t> boundaries = {};
  std::vector<double> values = {};
  std::uint64_t warmup_updates = 0;  // the rate rises linearly from warmup_rate; the schedule starts counting after it
  double warmup_learning_rate = 0.0;
};

// Throws Error(kConfig) unless the values make a schedule.
void check_schedule(const ScheduleSpec& spec);
double schedule_rate(const ScheduleSpec& spec, std::uint64_t update);

}  // namespace distnet
