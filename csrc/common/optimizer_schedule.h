// What an update rule's options are at a given step: bias corrections and step sizes from the
// counters, in double precision as torch.optim's for-loop implementations work them out in Python.
#pragma once

#include <cmath>

#include "function.h"
#include "optimizer_args.h"

namespace mlp_ext {

// The counters of one parameter's state, as they are during a step.
struct Counters {
  double step = 0;        // the number of this step, from 1
  double mu_product = 1;  // NAdam's: before at_step that of the steps before, then with this step's
  bool mu_in_float = false;  // it is stored in float32

  bool same_as(const Counters& other) const {
    return step == other.step && mu_product == other.mu_product && mu_in_float == other.mu_in_float;
  }
};

// at_step(args, counters): sets in args what depends on the counters and on lr.

MLP_FN inline void at_step(SgdArgs&, Counters&) {}
MLP_FN inline void at_step(RMSpropArgs&, Counters&) {}

MLP_FN inline void at_step(AdamArgs& args, Counters& at) {
  args.step_size = args.lr / (1 - std::pow(args.beta1, at.step));
  args.bias_correction2_sqrt = std::sqrt(1 - std::pow(args.beta2, at.step));
}

MLP_FN inline void at_step(AdagradArgs& args, Counters& at) {
  args.step_size = args.lr / (1 + (at.step - 1) * args.lr_decay);
}

MLP_FN inline double nadam_mu(const NAdamArgs& args, double step) {
  return args.beta1 * (1 - 0.5 * std::pow(0.96, step * args.momentum_decay));
}
MLP_FN inline void at_step(NAdamArgs& args, Counters& at) {
  const double mu = nadam_mu(args, at.step), mu_next = nadam_mu(args, at.step + 1);
  // torch multiplies in the tensor's own precision.
  at.mu_product = at.mu_in_float ? double(float(at.mu_product) * float(mu)) : at.mu_product * mu;
  args.grad_step_size = args.lr * (1 - mu) / (1 - at.mu_product);
  args.momentum_step_size = args.lr * mu_next / (1 - at.mu_product * mu_next);
  args.bias_correction2 = 1 - std::pow(args.beta2, at.step);
}

MLP_FN inline void at_step(RAdamArgs& args, Counters& at) {
  const double power = std::pow(args.beta2, at.step);
  const double most = 2 / (1 - args.beta2) - 1;
  const double length = most - 2 * at.step * power / (1 - power);
  args.bias_correction1 = 1 - std::pow(args.beta1, at.step);
  args.bias_correction2_sqrt = std::sqrt(1 - power);
  args.rectification =
      length > 5
          ? std::sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
          : 0;
}

MLP_FN inline void at_step(AdamaxArgs& args, Counters& at) {
  args.step_size = args.lr / (1 - std::pow(args.beta1, at.step));
}

}  // namespace mlp_ext
