// Stochastic gradient descent.
//
//   g = gradient + weight_decay * p
//   p = p - rate * g
#include "kernels/access.h"
#include "kernels/finite.h"
#include "kernels/multiversion.h"
#include "optim/optimizer_entry.h"

namespace distnet {
namespace {

DISTNET_MULTIVERSION bool step_plain(float* out, const float* in, WatchedRun gradient, std::size_t count, float rate) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    shared_store(out + i, shared_load(in + i) - rate * gradient.used(i));
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

DISTNET_MULTIVERSION bool step_with_decay(float* out, const float* in, WatchedRun gradient, std::size_t count,
                                          float rate, float weight_decay) {
  std::uint32_t marks = 0;
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    const float parameter = shared_load(in + i);
    shared_store(out + i, parameter - rate * (gradient.used(i) + weight_decay * parameter));
    marks |= gradient.mark(i);
  }
  return all_marks_finite(marks);
}

class Sgd final : public Optimizer {
 public:
  int state_vectors() const override { return 0; }

  bool step(const OptimizerBlock& block, const StepSettings& settings) const override {
    const float rate = static_cast<float>(settings.rate);
    const float weight_decay = static_cast<float>(settings.weight_decay);
    if (weight_decay == 0.0F) {
      return step_plain(block.out, block.in, block.gradient, block.count, rate);
    }
    return step_with_decay(block.out, block.in, block.gradient, block.count, rate, weight_decay);
  }
};

constexpr OptimizerSetting kSettings[] = {{"weight_decay", 0.0, 0.0, kAnyPositive}};

}  // namespace

extern const OptimizerEntry sgd_entry;
const OptimizerEntry sgd_entry = {
    "sgd", kSettings, [](const OptimizerSettings&) -> std::unique_ptr<Optimizer> { return std::make_unique<Sgd>(); }};

}  // namespace distnet
