// Stochastic gradient descent with momentum: heavy ball (Polyak 1964), or Nesterov's as Sutskever et al. (2013) write
// it.
//
//   g = gradient + weight_decay * p
//   v = momentum * v + g
//   p = p - rate * v                        heavy ball
//   p = p - rate * (g + momentum * v)       Nesterov
#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float rate;
  float weight_decay;
  float momentum;
};

DISTNET_MULTIVERSION bool step_heavy_ball(float* out, const float* in, WatchedRun gradient, float* velocity,
                                          std::size_t count, Constants constants) {
  const auto [rate, weight_decay, momentum] = constants;
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float parameter = shared_load(in + i);
    const float g = gradient.used(i) + weight_decay * parameter;
    const float v = momentum * velocity[i] + g;
    velocity[i] = v;
    shared_store(out + i, parameter - rate * v);
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool step_nesterov(float* out, const float* in, WatchedRun gradient, float* velocity,
                                        std::size_t count, Constants constants) {
  const auto [rate, weight_decay, momentum] = constants;
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float parameter = shared_load(in + i);
    const float g = gradient.used(i) + weight_decay * parameter;
    const float v = momentum * velocity[i] + g;
    velocity[i] = v;
    shared_store(out + i, parameter - rate * (g + momentum * v));
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

class Momentum final : public Optimizer {
 public:
  Momentum(double momentum, bool nesterov) : momentum_(static_cast<float>(momentum)), nesterov_(nesterov) {}

  int state_vectors() const override { return 1; }

  bool step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const Constants constants{static_cast<float>(settings.rate), static_cast<float>(settings.weight_decay), momentum_};
    const auto kernel = nesterov_ ? step_nesterov : step_heavy_ball;
    return kernel(block.out, block.in, block.gradient, block.state[0], block.count, constants);
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
