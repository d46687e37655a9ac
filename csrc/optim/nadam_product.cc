#include "optim/nadam_product.h"

#include <cmath>

namespace distnet {

NAdamProduct::NAdamProduct(double beta1, double momentum_decay)
    : beta1_(beta1), log_beta1_(std::log(beta1)), log_q_(momentum_decay * std::log(0.96)) {
  double weight = 1.0;
  for (int k = 1; k <= kTerms; ++k) {
    weight *= 0.5;
    if (log_q_ != 0.0) {
      // q^k + ... + q^tk = q^k * (q^tk - 1) / (q^k - 1)
      factors_[static_cast<std::size_t>(k - 1)] = weight / k * std::exp(k * log_q_) / std::expm1(k * log_q_);
    }
  }
}

double NAdamProduct::share(double t) const { return beta1_ * (1.0 - 0.5 * std::exp(t * log_q_)); }

double NAdamProduct::of_first(double t) const {
  if (beta1_ == 0.0) {
    return 0.0;
  }
  if (log_q_ == 0.0) {
    return std::exp(t * (log_beta1_ + std::log(0.5)));
  }
  const double one_less = std::expm1(t * log_q_);  // q^t - 1
  double power = one_less;                         // q^tk - 1, exact also where q is close to 1
  double sum = 0.0;
  for (const double factor : factors_) {
    sum += factor * power;
    power += one_less + power * one_less;
  }
  return std::exp(t * log_beta1_ - sum);
}

}  // namespace distnet
