// RMSProp (Tieleman and Hinton 2012), as PyTorch writes it.
//
//   g = gradient + weight_decay * p
//   s = alpha * s + (1 - alpha) * g * g
//   p = p - rate * g / (sqrt(s) + eps)                                       without momentum
//   v = momentum * v + g / (sqrt(s) + eps);  p = p - rate * v                with momentum
#include <cmath>

#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"
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

DISTNET_MULTIVERSION bool step_plain(float* out, const float* in, WatchedRun gradient, float* squares,
                                     std::size_t count, Constants c) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float parameter = shared_load(in + i);
    const float g = gradient.used(i) + c.weight_decay * parameter;
    const float s = c.alpha * squares[i] + c.one_less_alpha * g * g;
    squares[i] = s;
    shared_store(out + i, parameter - c.rate * g / (std::sqrt(s) + c.eps));
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool step_with_momentum(float* out, const float* in, WatchedRun gradient, float* squares,
                                             float* velocity, std::size_t count, Constants c) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float parameter = shared_load(in + i);
    const float g = gradient.used(i) + c.weight_decay * parameter;
    const float s = c.alpha * squares[i] + c.one_less_alpha * g * g;
    const float v = c.momentum * velocity[i] + g / (std::sqrt(s) + c.eps);
    squares[i] = s;
    velocity[i] = v;
    shared_store(out + i, parameter - c.rate * v);
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

class RmsProp final : public Optimizer {
 public:
  RmsProp(double alpha, double momentum, double eps)
      : alpha_(static_cast<float>(alpha)),
        one_less_alpha_(static_cast<float>(1.0 - alpha)),
        momentum_(static_cast<float>(momentum)),
        eps_(static_cast<float>(eps)) {}

  int state_vectors() const override { return momentum_ == 0.0F ? 1 : 2; }

  bool step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const Constants constants{static_cast<float>(settings.rate),
                              static_cast<float>(settings.weight_decay),
                              alpha_,
                              one_less_alpha_,
                              momentum_,
                              eps_};
    if (momentum_ == 0.0F) {
      return step_plain(block.out, block.in, block.gradient, block.state[0], block.count, constants);
    }
    return step_with_momentum(block.out, block.in, block.gradient, block.state[0], block.state[1], block.count,
                              constants);
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
