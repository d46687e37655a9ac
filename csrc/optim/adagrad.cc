// Adagrad (Duchi et al. 2011), as PyTorch writes it.
//
//   g = gradient + weight_decay * p
//   r = rate / (1 + update * learning_rate_decay)
//   s = s + g * g                           s starts at initial_accumulator_value
//   p = p - r * g / (sqrt(s) + eps)         eps_inside_root (Keras): g / sqrt(s + eps)
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
  float eps;
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_adagrad(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const squares = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float s = squares[i] + g * g;
    squares[i] = s;
    shared_store(out + i, parameter - c.rate * g / (std::sqrt(s) + c.eps));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_eps_inside(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const squares = block.state[0];
  const auto update = [=](std::size_t i, float gradient) DISTNET_INLINE_LAMBDA {
    const float parameter = shared_load(in + i);
    const float g = gradient + c.weight_decay * parameter;
    const float s = squares[i] + g * g;
    squares[i] = s;
    shared_store(out + i, parameter - c.rate * g / std::sqrt(s + c.eps));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class Adagrad final : public Optimizer {
 public:
  Adagrad(double learning_rate_decay, double initial_accumulator, double eps, bool eps_inside_root)
      : learning_rate_decay_(learning_rate_decay),
        initial_accumulator_(static_cast<float>(initial_accumulator)),
        eps_(static_cast<float>(eps)),
        kernel_(eps_inside_root ? step_eps_inside : step_adagrad) {}

  int state_vectors() const override { return 1; }
  float initial_state_value(int) const override { return initial_accumulator_; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const double rate = settings.rate / (1.0 + static_cast<double>(settings.update) * learning_rate_decay_);
    const Constants constants{static_cast<float>(rate), static_cast<float>(settings.weight_decay), eps_};
    return kernel_(block, constants);
  }

 private:
  double learning_rate_decay_;
  float initial_accumulator_;
  float eps_;
  std::size_t (*kernel_)(const OptimizerBlock&, Constants);
};

constexpr OptimizerSetting kSettings[] = {
    {"eps", 1e-10, 0.0, kAnyPositive},
    {"eps_inside_root", 0.0, 0.0, kFlagLimit},
    {"initial_accumulator_value", 0.0, 0.0, kAnyPositive},
    {"learning_rate_decay", 0.0, 0.0, kAnyPositive},
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry adagrad_entry;
const OptimizerEntry adagrad_entry = {
    "adagrad", kSettings, [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
      return std::make_unique<Adagrad>(settings.at("learning_rate_decay"), settings.at("initial_accumulator_value"),
                                       settings.at("eps"), settings.at("eps_inside_root") != 0.0);
    }};

}  // namespace distnet
