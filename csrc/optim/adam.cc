// Adam (Kingma and Ba 2015): see adam_step.h. Weight decay is L2, added to the gradient.
#include "optim/adam_step.h"

namespace distnet {
namespace {

class Adam final : public Optimizer {
 public:
  explicit Adam(const AdamConstants& constants) : constants_(constants) {}

  int state_vectors() const override { return constants_.state_vectors(); }

  std::size_t step(const OptimizerBlock& block, const StepSettings& settings) const override {
    return adam_step(block, settings, constants_, {.coupled = settings.weight_decay, .lost = 0.0});
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
    {"weight_decay", 0.0, 0.0, kAnyPositive},
};

}  // namespace

extern const OptimizerEntry adam_entry;
const OptimizerEntry adam_entry = {"adam", kSettings,
                                   [](const OptimizerSettings& settings) -> std::unique_ptr<Optimizer> {
                                     return std::make_unique<Adam>(adam_constants(settings));
                                   }};

}  // namespace distnet
