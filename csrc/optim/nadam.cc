// NAdam (Dozat 2016), as PyTorch writes it: Adam with Nesterov's momentum, whose share mu rises from update to update.
//
//   g = gradient + weight_decay * p         decoupled_weight_decay: p = p - rate * weight_decay * p, and g = gradient
//   m = m + (1 - beta1) * (g - m)
//   v = v + (1 - beta2) * (g * g - v)
//   mu(i) = beta1 * (1 - 0.96^(i * momentum_decay) / 2)
//   p = p - rate * ((1 - mu(t)) / (1 - mu(1) ... mu(t)) * g + mu(t + 1) / (1 - mu(1) ... mu(t + 1)) * m)
//           / (sqrt(v / (1 - beta2^t)) + eps)                                             t = update + 1
//
// Keras's is that with a momentum_decay of 1.
//
// The product of all mu up to t is no state: nadam_product.h finds it from t alone. So it is right in every chunk of a
// store whose chunks count their own updates, and after a restore.
#include <cmath>

#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/nadam_product.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float coupled_decay;
  float lost_share;
  float one_less_beta1;
  float one_less_beta2;
  float root_scale;
  float eps;
  float step_of_gradient;
  float step_of_mean;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_nadam(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const first = block.state[0];
  float* const second = block.state[1];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.coupled_decay * parameter;
    const float m = first[i] + c.one_less_beta1 * (g - first[i]);
    const float v = second[i] + c.one_less_beta2 * (g * g - second[i]);
    first[i] = m;
    second[i] = v;
    const float step = (c.step_of_gradient * g + c.step_of_mean * m) / (std::sqrt(v) * c.root_scale + c.eps);
    shared_store(out + i, parameter - c.lost_share * parameter - step);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class NAdam final : public Optimizer {
 public:
  explicit NAdam(const OptimizerSettings& settings)
      : beta1_(settings.at("beta1")),
        beta2_(settings.at("beta2")),
        eps_(settings.at("eps")),
        decoupled_(settings.at("decoupled_weight_decay") != 0.0),
        product_(beta1_, settings.at("momentum_decay")) {}

  int state_vectors() const override { return 2; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const double t = static_cast<double>(settings.update) + 1.0;
    const double product = product_.of_first(t);
    const double next_share = product_.share(t + 1.0);
    const Constants constants{
        .coupled_decay = static_cast<float>(decoupled_ ? 0.0 : settings.weight_decay),
        .lost_share = static_cast<float>(decoupled_ ? settings.rate * settings.weight_decay : 0.0),
        .one_less_beta1 = static_cast<float>(1.0 - beta1_),
        .one_less_beta2 = static_cast<float>(1.0 - beta2_),
        .root_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2_, t))),
        .eps = static_cast<float>(eps_),
        .step_of_gradient = static_cast<float>(settings.rate * (1.0 - product_.share(t)) / (1.0 - product)),
        .step_of_mean = static_cast<float>(settings.rate * next_share / (1.0 - product * next_share)),
    };
    return step_nadam(block, constants);
  }

 private:
  double beta1_;
  double beta2_;
  double eps_;
  bool decoupled_;
  NAdamProduct product_;
};

constexpr OptimizerSetting kSettings[] = {
    {"beta1", 0.9, 0.0, 1.0},
    {"beta2", 0.999, 0.0, 1.0},
    {"decoupled_weight_decay", 0.0, 0.0, kFlagLimit},
    {"eps", 1e-8, 0.0, kAnyPositive},
    {"momentum_decay", 4e-3, 0.0, kAnyPositive},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry nadam_entry;
const OptimizerEntry nadam_entry = {
    "nadam", kSettings,
    [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> { return std::make_unique<NAdam>(settings); }};

}  // namespace distnet
