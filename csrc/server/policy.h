// When a server answers, and what it joins: the update policy, as data. The named semantics are values of it.
#pragma once

#include <cstdint>
#include <string>

namespace distnet {

enum class Joins : std::uint8_t { kOne, kAll };
enum class Replies : std::uint8_t { kAfterApply, kBeforeApply };
enum class Reduction : std::uint8_t { kMean, kSum };
enum class OnLoss : std::uint8_t { kShrink, kWait, kAbort };

struct UpdatePolicy {
  Joins joins = Joins::kOne;
  Replies replies = Replies::kAfterApply;
  std::string guard = "mutex";
  Reduction reduction = Reduction::kMean;
  std::uint32_t max_inflight = 2;
  OnLoss on_loss = OnLoss::kShrink;
  double round_timeout_s = 300.0;
  std::uint32_t workers = 1;  // joins all: ranks 0 … workers-1 make up the first round
};

}  // namespace distnet
