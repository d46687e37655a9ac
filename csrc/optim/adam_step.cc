#include "optim/adam_step.h"

#include <algorithm>
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

struct DialectConstants {
  float coupled_decay;
  float lost_share;
  float one_less_beta1;
  float one_less_beta2;
  float root_scale;
  float eps;
  float step_size;
};

// The second moment moves by its difference, because beta2 and 1 - beta2, each rounded, would pull it off by 1e-5 of
// itself.
// NOLINTBEGIN(misc-const-correctness): what one version writes, another only reads.
template <bool kAmsgrad>
DISTNET_ALWAYS_INLINE std::size_t step_dialect(const OptimizerBlock& block, const DialectConstants& c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const first = block.state[0];
  float* const second = block.state[1];
  float* const largest = block.state[2];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.coupled_decay * parameter;
    const float m = first[i] + c.one_less_beta1 * (g - first[i]);
    float v = second[i] + c.one_less_beta2 * (g * g - second[i]);
    first[i] = m;
    second[i] = v;
    if constexpr (kAmsgrad) {
      v = std::max(largest[i], v);
      largest[i] = v;
    }
    const float denominator = std::sqrt(v) * c.root_scale + c.eps;
    shared_store(out + i, parameter - c.lost_share * parameter - c.step_size * m / denominator);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}
// NOLINTEND(misc-const-correctness)

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_keras(const OptimizerBlock& block, DialectConstants c) {
  return step_dialect<false>(block, c);
}
DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_amsgrad(const OptimizerBlock& block, DialectConstants c) {
  return step_dialect<true>(block, c);
}

}  // namespace

AdamConstants adam_constants(const OptimizerSettings& settings) {
  return {settings.at("beta1"), settings.at("beta2"), settings.at("eps"), settings.at("amsgrad") != 0.0,
          settings.at("eps_before_correction") != 0.0};
}

std::size_t adam_step(const OptimizerBlock& block, const StepSettings& settings, const AdamConstants& constants,
                      const AdamDecay& decay) {
  const double t = static_cast<double>(settings.update) + 1.0;
  const double correction1 = 1.0 - std::pow(constants.beta1, t);
  const double correction2 = 1.0 - std::pow(constants.beta2, t);
  if (constants.amsgrad || constants.eps_before_correction) {
    // Epsilon before the correction is the same formula with the correction in the step size alone.
    const double root_scale = constants.eps_before_correction ? 1.0 : 1.0 / std::sqrt(correction2);
    const double step_scale = constants.eps_before_correction ? std::sqrt(correction2) : 1.0;
    const DialectConstants c{
        .coupled_decay = static_cast<float>(decay.coupled),
        .lost_share = static_cast<float>(decay.lost),
        .one_less_beta1 = static_cast<float>(1.0 - constants.beta1),
        .one_less_beta2 = static_cast<float>(1.0 - constants.beta2),
        .root_scale = static_cast<float>(root_scale),
        .eps = static_cast<float>(constants.eps),
        .step_size = static_cast<float>(settings.rate * step_scale / correction1),
    };
    return constants.amsgrad ? step_amsgrad(block, c) : step_keras(block, c);
  }
  const KernelConstants c{
      .coupled_decay = static_cast<float>(decay.coupled),
      .kept = static_cast<float>(1.0 - decay.lost),
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
