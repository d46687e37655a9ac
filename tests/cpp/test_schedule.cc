#include <cmath>
#include <numbers>

#include "base/error.h"
#include "check.h"
#include "optim/schedule.h"

namespace {

using distnet::check_schedule;
using distnet::Error;
using distnet::schedule_rate;
using distnet::ScheduleSpec;
using Kind = distnet::ScheduleSpec::Kind;

// The 2017 project's counter began at -1 and its first update ran at ten times the rate.
TEST(the_first_update_has_the_rate_of_the_start) {
  const ScheduleSpec constant{.learning_rate = 0.1};
  const ScheduleSpec staircase{
      .kind = Kind::kExponential, .learning_rate = 0.1, .factor = 0.1, .period_updates = 350, .staircase = true};
  const ScheduleSpec cosine{.kind = Kind::kCosine, .learning_rate = 0.1, .period_updates = 10};
  const ScheduleSpec piecewise{.kind = Kind::kPiecewise, .boundaries = {1}, .values = {0.1, 0.2}};
  for (const ScheduleSpec& spec : {constant, staircase, cosine, piecewise}) {
    CHECK_EQUAL(schedule_rate(spec, 0), 0.1);
  }
}

TEST(a_staircase_drops_at_whole_periods_and_a_decay_all_the_way) {
  ScheduleSpec spec{
      .kind = Kind::kExponential, .learning_rate = 0.1, .factor = 0.5, .period_updates = 100, .staircase = true};
  CHECK_EQUAL(schedule_rate(spec, 99), 0.1);
  CHECK_EQUAL(schedule_rate(spec, 100), 0.05);
  CHECK_EQUAL(schedule_rate(spec, 199), 0.05);
  CHECK_EQUAL(schedule_rate(spec, 200), 0.025);
  spec.staircase = false;
  CHECK_EQUAL(schedule_rate(spec, 50), 0.1 * std::sqrt(0.5));
}

TEST(piecewise_values_change_at_their_boundaries) {
  const ScheduleSpec spec{.kind = Kind::kPiecewise, .boundaries = {10, 20}, .values = {1.0, 0.1, 0.01}};
  check_schedule(spec);
  CHECK_EQUAL(schedule_rate(spec, 9), 1.0);
  CHECK_EQUAL(schedule_rate(spec, 10), 0.1);
  CHECK_EQUAL(schedule_rate(spec, 19), 0.1);
  CHECK_EQUAL(schedule_rate(spec, 20), 0.01);
  CHECK_EQUAL(schedule_rate(spec, 1'000'000'000), 0.01);
}

TEST(a_cosine_ends_at_its_final_rate_and_stays) {
  const ScheduleSpec spec{
      .kind = Kind::kCosine, .learning_rate = 0.3, .period_updates = 100, .final_learning_rate = 0.1};
  CHECK(std::abs(schedule_rate(spec, 50) - 0.2) < 1e-15);
  CHECK(std::abs(schedule_rate(spec, 25) - (0.1 + 0.1 * (1 + std::cos(std::numbers::pi / 4)))) < 1e-15);
  CHECK_EQUAL(schedule_rate(spec, 100), 0.1);
  CHECK_EQUAL(schedule_rate(spec, 1000), 0.1);
}

TEST(a_warm_up_is_linear_and_the_schedule_counts_after_it) {
  ScheduleSpec spec{
      .kind = Kind::kExponential, .learning_rate = 1.0, .factor = 0.5, .period_updates = 10, .staircase = true};
  spec.warmup_updates = 4;
  spec.warmup_learning_rate = 0.2;
  CHECK_EQUAL(schedule_rate(spec, 0), 0.2);
  CHECK_EQUAL(schedule_rate(spec, 2), 0.2 + 0.8 * 0.5);
  CHECK_EQUAL(schedule_rate(spec, 4), 1.0);
  CHECK_EQUAL(schedule_rate(spec, 13), 1.0);
  CHECK_EQUAL(schedule_rate(spec, 14), 0.5);
}

TEST(values_that_make_no_schedule_are_refused) {
  CHECK_THROWS(check_schedule({.learning_rate = -1.0}), Error);
  CHECK_THROWS(check_schedule({.learning_rate = std::nan("")}), Error);
  CHECK_THROWS(check_schedule({.learning_rate = INFINITY}), Error);
  CHECK_THROWS(check_schedule({.kind = Kind::kExponential, .factor = 0.0}), Error);
  CHECK_THROWS(check_schedule({.kind = Kind::kExponential, .factor = 0.5, .period_updates = 0.0}), Error);
  CHECK_THROWS(check_schedule({.kind = Kind::kCosine, .period_updates = 0.0}), Error);
  CHECK_THROWS(check_schedule({.kind = Kind::kPiecewise, .boundaries = {1}, .values = {1.0}}), Error);
  CHECK_THROWS(check_schedule({.kind = Kind::kPiecewise, .boundaries = {2, 1}, .values = {1.0, 1.0, 1.0}}), Error);
  CHECK_THROWS(check_schedule({.warmup_updates = 1, .warmup_learning_rate = -0.1}), Error);
}

}  // namespace
