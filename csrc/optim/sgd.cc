// Stochastic gradient descent.
//
//   g = gradient + weight_decay * p
//   p = p - rate * g
//
// decoupled_weight_decay: g = gradient, and p = p - rate * weight_decay * p before the step.
#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_plain(const OptimizerBlock& block, float rate) {
  const float* const in = block.in;
  float* const out = block.out;
  const auto update = [=](std::size_t i, float gradient)
                          DISTNET_INLINE_LAMBDA { shared_store(out + i, shared_load(in + i) - rate * gradient); };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_with_decay(const OptimizerBlock& block, float rate,
                                                                   float weight_decay) {
  const float* const in = block.in;
  float* const out = block.out;
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    shared_store(out + i, parameter - rate * (gradient + weight_decay * parameter));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_decoupled(const OptimizerBlock& block, float rate,
                                                                  float lost_share) {
  const float* const in = block.in;
  float* const out = block.out;
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    shared_store(out + i, parameter - lost_share * parameter - rate * gradient);
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class Sgd final : public Optimizer {
 public:
  explicit Sgd(bool decoupled) : decoupled_(decoupled) {}

  int state_vectors() const override { return 0; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const float rate = static_cast<float>(settings.rate);
    const float weight_decay = static_cast<float>(settings.weight_decay);
    if (weight_decay == 0.0F) {
      return step_plain(block, rate);
    }
    if (decoupled_) {
      return step_decoupled(block, rate, static_cast<float>(settings.rate * settings.weight_decay));
    }
    return step_with_decay(block, rate, weight_decay);
  }

 private:
  bool decoupled_;
};

constexpr OptimizerSetting kSettings[] = {
    {"decoupled_weight_decay", 0.0, 0.0, kFlagLimit},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry sgd_entry;
const OptimizerEntry sgd_entry = {"sgd", kSettings,
                                  [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
                                    return std::make_unique<Sgd>(settings.at("decoupled_weight_decay") != 0.0);
                                  }};

}  // namespace distnet
