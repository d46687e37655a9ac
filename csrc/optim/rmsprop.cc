// RMSProp (Tieleman and Hinton 2012), as PyTorch writes it.
//
//   g = gradient + weight_decay * p
//   s = alpha * s + (1 - alpha) * g * g
//   p = p - rate * g / (sqrt(s) + eps)                                       without momentum
//   v = momentum * v + g / (sqrt(s) + eps);  p = p - rate * v                with momentum
#include <cmath>

#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float rate;
  float weight_decay;
  float alpha;
  float one_less_alpha;
  float momentum;
  float eps;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_plain(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const squares = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float s = c.alpha * squares[i] + c.one_less_alpha * g * g;
    squares[i] = s;
    shared_store(out + i, parameter - c.rate * g / (std::sqrt(s) + c.eps));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_with_momentum(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const squares = block.state[0];
  float* const velocity = block.state[1];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float s = c.alpha * squares[i] + c.one_less_alpha * g * g;
    const float v = c.momentum * velocity[i] + g / (std::sqrt(s) + c.eps);
    squares[i] = s;
    velocity[i] = v;
    shared_store(out + i, parameter - c.rate * v);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class RmsProp final : public Optimizer {
 public:
  RmsProp(double alpha, double momentum, double eps)
      : alpha_(static_cast<float>(alpha)),
        one_less_alpha_(static_cast<float>(1.0 - alpha)),
        momentum_(static_cast<float>(momentum)),
        eps_(static_cast<float>(eps)) {}

  int state_vectors() const override { return momentum_ == 0.0F ? 1 : 2; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const Constants constants{static_cast<float>(settings.rate),
                              static_cast<float>(settings.weight_decay),
                              alpha_,
                              one_less_alpha_,
                              momentum_,
                              eps_};
    return momentum_ == 0.0F ? step_plain(block, constants) : step_with_momentum(block, constants);
  }

 private:
  float alpha_;
  float one_less_alpha_;
  float momentum_;
  float eps_;
};

constexpr OptimizerSetting kSettings[] = {
    {"alpha", 0.99, 0.0, 1.0},
    {"eps", 1e-8, 0.0, kAnyPositive},
    {"momentum", 0.0, 0.0, kAnyPositive},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry rmsprop_entry;
const OptimizerEntry rmsprop_entry = {
    "rmsprop", kSettings, [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
      return std::make_unique<RmsProp>(settings.at("alpha"), settings.at("momentum"), settings.at("eps"));
    }};

}  // namespace distnet
