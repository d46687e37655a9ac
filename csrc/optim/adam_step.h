// The step that Adam and AdamW share: both moments and their bias corrections. The two differ only in where weight
// decay goes.
//
//   m = m + (1 - beta1) * (g - m)
//   v = beta2 * v + (1 - beta2) * g * g
//   p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)          t = update + 1
//
// Kingma and Ba (2015), in PyTorch's order of operations. The dialects of both:
//
//   amsgrad                  w = max(w, v) in place of v in the last line (Reddi et al. 2018, as PyTorch writes it)
//   eps_before_correction    p = p - rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps) (Keras)
#pragma once

#include "optim/optimizer_entry.h"

namespace distnet {

struct AdamConstants {
  double beta1;
  double beta2;
  double eps;
  bool amsgrad;
  bool eps_before_correction;

  int state_vectors() const { return amsgrad ? 3 : 2; }
};

AdamConstants adam_constants(const OptimizerSettings& settings);

// The share of a gradient and of a parameter that weight decay takes, in one step.
struct AdamDecay {
  double coupled;  // times the parameter, is added to the gradient (Adam)
  double lost;     // of the parameter, before the step (AdamW)
};

// Returns how many elements it stepped.
std::size_t adam_step(const OptimizerBlock& block, const StepSettings& settings, const AdamConstants& constants,
                      const AdamDecay& decay);

}  // namespace distnet
