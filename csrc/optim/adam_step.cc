#include "optim/adam_step.h"

#include <cmath>

#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"

namespace distnet {
namespace {

struct KernelConstants {
  float coupled_decay;
  float kept;
  float one_less_beta1;
  float beta2;
  float one_less_beta2;
  float root_correction2;
  float eps;
  float step_size;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_adam(const OptimizerBlock& block, KernelConstants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const first = block.state[0];
  float* const second = block.state[1];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.coupled_decay * parameter;
    const float m = first[i] + c.one_less_beta1 * (g - first[i]);
    const float v = c.beta2 * second[i] + c.one_less_beta2 * g * g;
    first[i] = m;
    second[i] = v;
    const float denominator = std::sqrt(v) / c.root_correction2 + c.eps;
    shared_store(out + i, c.kept * parameter - c.step_size * m / denominator);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

}  // namespace

std::size_t adam_step(const OptimizerBlock& block, const StepSettings& settings, const AdamConstants& constants,
                      double coupled_decay, double kept) {
  const double t = static_cast<double>(settings.update) + 1.0;
  const double correction1 = 1.0 - std::pow(constants.beta1, t);
  const double correction2 = 1.0 - std::pow(constants.beta2, t);
  const KernelConstants c{
      .coupled_decay = static_cast<float>(coupled_decay),
      .kept = static_cast<float>(kept),
      .one_less_beta1 = static_cast<float>(1.0 - constants.beta1),
      .beta2 = static_cast<float>(constants.beta2),
      .one_less_beta2 = static_cast<float>(1.0 - constants.beta2),
      .root_correction2 = static_cast<float>(std::sqrt(correction2)),
      .eps = static_cast<float>(constants.eps),
      .step_size = static_cast<float>(settings.rate / correction1),
  };
  return step_adam(block, c);
}

}  // namespace distnet
