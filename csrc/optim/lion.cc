// Lion (Chen et al. 2023): the sign of a momentum, with decoupled weight decay.
//
//   c = beta1 * m + (1 - beta1) * gradient
//   m = beta2 * m + (1 - beta2) * gradient
//   p = p - rate * weight_decay * p - rate * sign(c)         sign(0) = 0
#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float rate;
  float lost_share;
  float beta1;
  float one_less_beta1;
  float one_less_beta2;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_lion(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const mean = block.state[0];
  const auto update = [=](std::size_t i, float g) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float m = mean[i];
    const float direction = c.beta1 * m + c.one_less_beta1 * g;
    mean[i] = m + c.one_less_beta2 * (g - m);
    const float up = direction > 0.0F ? c.rate : 0.0F;
    const float down = direction < 0.0F ? c.rate : 0.0F;
    shared_store(out + i, parameter - c.lost_share * parameter - (up - down));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class Lion final : public Optimizer {
 public:
  Lion(double beta1, double beta2) : beta1_(beta1), beta2_(beta2) {}

  int state_vectors() const override { return 1; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const Constants constants{
        .rate = static_cast<float>(settings.rate),
        .lost_share = static_cast<float>(settings.rate * settings.weight_decay),
        .beta1 = static_cast<float>(beta1_),
        .one_less_beta1 = static_cast<float>(1.0 - beta1_),
        .one_less_beta2 = static_cast<float>(1.0 - beta2_),
    };
    return step_lion(block, constants);
  }

 private:
  double beta1_;
  double beta2_;
};

constexpr OptimizerSetting kSettings[] = {
    {"beta1", 0.9, 0.0, 1.0},
    {"beta2", 0.99, 0.0, 1.0},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry lion_entry;
const OptimizerEntry lion_entry = {"lion", kSettings,
                                   [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
                                     return std::make_unique<Lion>(settings.at("beta1"), settings.at("beta2"));
                                   }};

}  // namespace distnet
