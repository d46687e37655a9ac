// AdamW (Loshchilov and Hutter 2019): see adam_step.h. Weight decay is decoupled: p is first multiplied by
// (1 - rate * weight_decay).
#include "optim/adam_step.h"

namespace distnet {
namespace {

class AdamW final : public Optimizer {
 public:
  explicit AdamW(const AdamConstants& constants) : constants_(constants) {}

  int state_vectors() const override { return constants_.state_vectors(); }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    return adam_step(block, settings, constants_, {.coupled = 0.0, .lost = settings.rate * settings.weight_decay});
  }

 private:
  AdamConstants constants_;
};

constexpr OptimizerSetting kSettings[] = {
    {"amsgrad", 0.0, 0.0, kFlagLimit},
    {"beta1", 0.9, 0.0, 1.0},
    {"beta2", 0.999, 0.0, 1.0},
    {"eps", 1e-8, 0.0, kAnyPositive},
    {"eps_before_correction", 0.0, 0.0, kFlagLimit},
    {"weight_decay", 0.01, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry adamw_entry;
const OptimizerEntry adamw_entry = {"adamw", kSettings,
                                    [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
                                      return std::make_unique<AdamW>(adam_constants(settings));
                                    }};

}  // namespace distnet
