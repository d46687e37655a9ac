// The shares of momentum in NAdam, and the product of the first t of them.
//
//   mu(i) = beta1 * (1 - q^i / 2),   q = 0.96^momentum_decay
//
// With the series of log(1 - x), the logarithm of the product is
//
//   t * log(beta1) - sum over k of 1 / (k * 2^k) * (q^k + q^2k + ... + q^tk)
//
// where the inner sum is geometric. Its terms fall by half at least, so a few of them give all bits of a double, for
// any t and at the same price.
#pragma once

#include <array>

namespace distnet {

class NAdamProduct {
 public:
  NAdamProduct(double beta1, double momentum_decay);

  double share(double t) const;     // mu(t)
  double of_first(double t) const;  // mu(1) * ... * mu(t)

 private:
  static constexpr int kTerms = 56;  // 2^-56 is less than a double's last bit

  double beta1_;
  double log_beta1_;
  double log_q_;
  std::array<double, kTerms> factors_{};  // of (q^tk - 1), for k from 1
};

}  // namespace distnet
