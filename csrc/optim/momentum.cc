// Stochastic gradient descent with momentum: heavy ball (Polyak 1964), or Nesterov's as Sutskever et al. (2013) write
// it.
//
//   g = gradient + weight_decay * p
//   v = momentum * v + g
//   p = p - rate * v                        heavy ball
//   p = p - rate * (g + momentum * v)       Nesterov
#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float rate;
  float weight_decay;
  float momentum;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_heavy_ball(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const velocity = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float v = c.momentum * velocity[i] + g;
    velocity[i] = v;
    shared_store(out + i, parameter - c.rate * v);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_nesterov(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const velocity = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float v = c.momentum * velocity[i] + g;
    velocity[i] = v;
    shared_store(out + i, parameter - c.rate * (g + c.momentum * v));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class Momentum final : public Optimizer {
 public:
  Momentum(double momentum, bool nesterov) : momentum_(static_cast<float>(momentum)), nesterov_(nesterov) {}

  int state_vectors() const override { return 1; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const Constants constants{static_cast<float>(settings.rate), static_cast<float>(settings.weight_decay), momentum_};
    const auto kernel = nesterov_ ? step_nesterov : step_heavy_ball;
    return kernel(block, constants);
  }

 private:
  float momentum_;
  bool nesterov_;
};

constexpr OptimizerSetting kSettings[] = {
    {"momentum", 0.9, 0.0, kAnyPositive},
    {"nesterov", 0.0, 0.0, 1.5},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry momentum_entry;
const OptimizerEntry momentum_entry = {
    "momentum", kSettings, [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
      return std::make_unique<Momentum>(settings.at("momentum"), settings.at("nesterov") != 0.0);
    }};

}  // namespace distnet
