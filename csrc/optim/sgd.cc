// Stochastic gradient descent.
//
//   g = gradient + weight_decay * p
//   p = p - rate * g
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

class Sgd final : public Optimizer {
 public:
  int state_vectors() const override { return 0; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const float rate = static_cast<float>(settings.rate);
    const float weight_decay = static_cast<float>(settings.weight_decay);
    if (weight_decay == 0.0F) {
      return step_plain(block, rate);
    }
    return step_with_decay(block, rate, weight_decay);
  }
};

constexpr OptimizerSetting kSettings[] = {{"weight_decay", 0.0, 0.0, kAnyPositive}};

}  // namespace

extern const OptimizerEntry sgd_entry;
const OptimizerEntry sgd_entry = {
    "sgd", kSettings, [](const OptimizerSettings&) -> std::unique_ptr<Optimizer> { return std::make_unique<Sgd>(); }};

}  // namespace distnet
