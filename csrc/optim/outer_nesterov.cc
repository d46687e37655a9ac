// The outer step of DiLoCo (Douillard et al. 2023): workers take steps of their own and send how far they came, and the
// server takes that for a gradient, against its direction, of Nesterov's momentum as momentum.cc has it.
//
//   g = -change
//   v = momentum * v + g
//   p = p - rate * (g + momentum * v)
//
// A gradient counts as the change against its direction.
#include "kernels/access.h"
#include "kernels/multiversion.h"
#include "kernels/strips.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

struct Constants {
  float rate;
  float momentum;
  float sign;  // of a gradient in what was sent
};

DISTNET_NO_MEMCPY DISTNET_MULTIVERSION std::size_t step_outer(const OptimizerBlock& block, Constants c) {
  const float* const in = block.in;
  float* const out = block.out;
  float* const velocity = block.state[0];
  const auto update = [=](std::size_t i, float sent) DISTNET_INLINE_LAMBDA {
    const float g = c.sign * sent;
    const float v = c.momentum * velocity[i] + g;
    velocity[i] = v;
    shared_store(out + i, shared_load(in + i) - c.rate * (g + c.momentum * v));
  };
  return apply_strips(block.gradient, block.count, block.stop_at, update);
}

class OuterNesterov final : public Optimizer {
 public:
  explicit OuterNesterov(double momentum) : momentum_(static_cast<float>(momentum)) {}

  int state_vectors() const override { return 1; }
  bool steps_changes() const override { return true; }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    return step_outer(block, {static_cast<float>(settings.rate), momentum_, settings.change ? -1.0F : 1.0F});
  }

 private:
  float momentum_;
};

constexpr OptimizerSetting kSettings[] = {{"momentum", 0.9, 0.0, kAnyPositive}};

}  // namespace

extern const OptimizerEntry outer_nesterov_entry;
const OptimizerEntry outer_nesterov_entry = {"outer_nesterov", kSettings,
                                             [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
                                               return std::make_unique<OuterNesterov>(settings.at("momentum"));
                                             }};

}  // namespace distnet
