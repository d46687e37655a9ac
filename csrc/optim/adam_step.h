// The step that Adam and AdamW share: both moments and their bias corrections. The two differ only in where weight
// decay goes.
//
//   m = m + (1 - beta1) * (g - m)
//   v = beta2 * v + (1 - beta2) * g * g
//   p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)          t = update + 1
//
// Kingma and Ba (2015), in PyTorch's order of operations.
#pragma once

#include "optim/optimizer_entry.h"

namespace distnet {

struct AdamConstants {
  double beta1;
  double beta2;
  double eps;
};

// `coupled_decay` times the parameter is added to the gradient (Adam). A parameter is multiplied by `kept` before the
// step (AdamW). Returns how many elements it stepped.
std::size_t adam_step(const OptimizerBlock& block, const StepSettings& settings, const AdamConstants& constants,
                      double coupled_decay, double kept);

}  // namespace distnet
