// Stochastic gradient descent with momentum: heavy ball (Polyak 1964), or Nesterov's as Sutskever et al. (2013) write
// it.
//
//   g = gradient + weight_decay * p
//   v = momentum * v + g
//   p = p - rate * v                        heavy ball
//   p = p - rate * (g + momentum * v)       Nesterov
//
// Its dialects:
//   dampening                 v = momentum * v + (1 - dampening) * g, but v = g at update 0 (PyTorch)
//   velocity_holds_rate       v = momentum * v - rate * g;  p = p + v, or Nesterov: p = p + momentum * v - rate * g
//                             (Keras; the two differ where the rate changes)
//   decoupled_weight_decay    g = gradient, and p = p - rate * weight_decay * p before the step
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

// Every dialect is linear in velocity and gradient, so one kernel has them all.
struct DialectConstants {
  float coupled_decay;
  float lost_share;
  float momentum;
  float taken;  // of the gradient, into the velocity
  float step_of_velocity;
  float step_of_gradient;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_dialect(const OptimizerBlock& block, DialectConstants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const velocity = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.coupled_decay * parameter;
    const float v = c.momentum * velocity[i] + c.taken * g;
    velocity[i] = v;
    shared_store(out + i, parameter - c.lost_share * parameter + (c.step_of_velocity * v + c.step_of_gradient * g));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

struct Dialect {
  double dampening;
  bool velocity_holds_rate;
  bool decoupled_decay;

  bool is_default() const { return dampening == 0.0 && !velocity_holds_rate && !decoupled_decay; }
};

class Momentum final : public Optimizer {
 public:
  Momentum(double momentum, bool nesterov, const Dialect& dialect)
      : momentum_(momentum), nesterov_(nesterov), dialect_(dialect) {}

  int state_vectors() const override { return 1; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    if (!dialect_.is_default()) {
      return step_dialect(block, dialect_constants(settings));
    }
    const Constants constants{static_cast<float>(settings.rate), static_cast<float>(settings.weight_decay),
                              static_cast<float>(momentum_)};
    const auto kernel = nesterov_ ? step_nesterov : step_heavy_ball;
    return kernel(block, constants);
  }

 private:
  DialectConstants dialect_constants(const StepSettings& settings) const {
    const double decay = settings.weight_decay;
    const double share = settings.update == 0 ? 1.0 : 1.0 - dialect_.dampening;
    // Either the velocity or the step is scaled by the rate.
    const double step = dialect_.velocity_holds_rate ? 1.0 : -settings.rate;
    const double taken = dialect_.velocity_holds_rate ? -settings.rate * share : share;
    return {
        .coupled_decay = static_cast<float>(dialect_.decoupled_decay ? 0.0 : decay),
        .lost_share = static_cast<float>(dialect_.decoupled_decay ? settings.rate * decay : 0.0),
        .momentum = static_cast<float>(momentum_),
        .taken = static_cast<float>(taken),
        .step_of_velocity = static_cast<float>(nesterov_ ? step * momentum_ : step),
        .step_of_gradient = static_cast<float>(nesterov_ ? -settings.rate : 0.0),
    };
  }

  double momentum_;
  bool nesterov_;
  Dialect dialect_;
};

constexpr OptimizerSetting kSettings[] = {
    {"dampening", 0.0, 0.0, kAnyPositive},         {"decoupled_weight_decay", 0.0, 0.0, kFlagLimit},
    {"momentum", 0.9, 0.0, kAnyPositive},          {"nesterov", 0.0, 0.0, kFlagLimit},
    {"velocity_holds_rate", 0.0, 0.0, kFlagLimit}, {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry momentum_entry;
const OptimizerEntry momentum_entry = {
    "momentum", kSettings, [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
      const Dialect dialect{settings.at("dampening"), settings.at("velocity_holds_rate") != 0.0,
                            settings.at("decoupled_weight_decay") != 0.0};
      return std::make_unique<Momentum>(settings.at("momentum"), settings.at("nesterov") != 0.0, dialect);
    }};

}  // namespace distnet
