// RMSProp (Tieleman and Hinton 2012), as PyTorch writes it.
//
//   g = gradient + weight_decay * p
//   s = alpha * s + (1 - alpha) * g * g
//   p = p - rate * g / (sqrt(s) + eps)                                       without momentum
//   v = momentum * v + g / (sqrt(s) + eps);  p = p - rate * v                with momentum
//
// Its dialects:
//   centered               a = a + (1 - alpha) * (g - a);  sqrt(s - a * a) in place of sqrt(s) (Graves 2013)
//   eps_inside_root        sqrt(s + eps) in place of sqrt(s) + eps (Keras)
//   velocity_holds_rate    v = momentum * v + rate * g / (...);  p = p - v (Keras)
#include <algorithm>
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

struct DialectConstants {
  float weight_decay;
  float one_less_alpha;
  float momentum;
  float eps_inside;
  float eps_outside;
  float taken;  // of g / root, into the velocity
  float step;   // of the velocity
};

// One of the two epsilons is 0, and adding that changes nothing. The mean of squares moves by its difference, because
// alpha and 1 - alpha, each rounded, would pull it off by 1e-5 of itself.
// NOLINTBEGIN(misc-const-correctness): what one version writes, another only reads.
template <bool kCentered, bool kMomentum>
DISTNET_ALWAYS_INLINE std::size_t step_dialect(const OptimizerBlock& block, const DialectConstants& c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const squares = block.state[0];
  float* const velocity = block.state[1];
  float* const means = block.state[kMomentum ? 2 : 1];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    float s = squares[i] + c.one_less_alpha * (g * g - squares[i]);
    squares[i] = s;
    if constexpr (kCentered) {
      const float mean = means[i] + c.one_less_alpha * (g - means[i]);
      means[i] = mean;
      s = std::max(s - mean * mean, 0.0F);  // rounding may take it below 0, whose root is not a number
    }
    float v = c.taken * (g / (std::sqrt(s + c.eps_inside) + c.eps_outside));
    if constexpr (kMomentum) {
      v = c.momentum * velocity[i] + v;
      velocity[i] = v;
    }
    shared_store(out + i, parameter - c.step * v);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}
// NOLINTEND(misc-const-correctness)

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t dialect_plain(const OptimizerBlock& block, DialectConstants c) {
  return step_dialect<false, false>(block, c);
}
DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t dialect_with_momentum(const OptimizerBlock& block,
                                                                         DialectConstants c) {
  return step_dialect<false, true>(block, c);
}
DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t centered_plain(const OptimizerBlock& block, DialectConstants c) {
  return step_dialect<true, false>(block, c);
}
DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t centered_with_momentum(const OptimizerBlock& block,
                                                                          DialectConstants c) {
  return step_dialect<true, true>(block, c);
}

struct Dialect {
  bool centered;
  bool eps_inside_root;
  bool velocity_holds_rate;

  bool is_default() const { return !centered && !eps_inside_root && !velocity_holds_rate; }
};

class RmsProp final : public Optimizer {
 public:
  RmsProp(double alpha, double momentum, double eps, const Dialect& dialect)
      : alpha_(static_cast<float>(alpha)),
        one_less_alpha_(static_cast<float>(1.0 - alpha)),
        momentum_(static_cast<float>(momentum)),
        eps_(static_cast<float>(eps)),
        dialect_(dialect) {}

  int state_vectors() const override { return 1 + (has_velocity() ? 1 : 0) + (dialect_.centered ? 1 : 0); }
  unsigned state_kind() const override { return dialect_.centered ? 1U : 0U; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    if (!dialect_.is_default()) {
      return step_in_dialect(block, settings);
    }
    const Constants constants{static_cast<float>(settings.rate),
                              static_cast<float>(settings.weight_decay),
                              alpha_,
                              one_less_alpha_,
                              momentum_,
                              eps_};
    return has_velocity() ? step_with_momentum(block, constants) : step_plain(block, constants);
  }

 private:
  bool has_velocity() const { return momentum_ != 0.0F; }

  std::size_t step_in_dialect(const OptimizerBlock& block, const StepSettings& settings) const {
    const float rate = static_cast<float>(settings.rate);
    const DialectConstants constants{
        .weight_decay = static_cast<float>(settings.weight_decay),
        .one_less_alpha = one_less_alpha_,
        .momentum = momentum_,
        .eps_inside = dialect_.eps_inside_root ? eps_ : 0.0F,
        .eps_outside = dialect_.eps_inside_root ? 0.0F : eps_,
        .taken = dialect_.velocity_holds_rate ? rate : 1.0F,
        .step = dialect_.velocity_holds_rate ? 1.0F : rate,
    };
    if (dialect_.centered) {
      return has_velocity() ? centered_with_momentum(block, constants) : centered_plain(block, constants);
    }
    return has_velocity() ? dialect_with_momentum(block, constants) : dialect_plain(block, constants);
  }

  float alpha_;
  float one_less_alpha_;
  float momentum_;
  float eps_;
  Dialect dialect_;
};

constexpr OptimizerSetting kSettings[] = {
    {"alpha", 0.99, 0.0, 1.0},
    {"centered", 0.0, 0.0, kFlagLimit},
    {"eps", 1e-8, 0.0, kAnyPositive},
    {"eps_inside_root", 0.0, 0.0, kFlagLimit},
    {"momentum", 0.0, 0.0, kAnyPositive},
    {"velocity_holds_rate", 0.0, 0.0, kFlagLimit},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry rmsprop_entry;
const OptimizerEntry rmsprop_entry = {
    "rmsprop", kSettings, [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
      const Dialect dialect{settings.at("centered") != 0.0, settings.at("eps_inside_root") != 0.0,
                            settings.at("velocity_holds_rate") != 0.0};
      return std::make_unique<RmsProp>(settings.at("alpha"), settings.at("momentum"), settings.at("eps"), dialect);
    }};

}  // namespace distnet
