// The update rules' options: as in torch.optim, what depends on the step count already worked out
// in double precision by the caller.
#pragma once

namespace mlp_ext {

// Every update rule, as X(name, Name): NameArgs below, NameRule in optimizer_rules.h.
#define MLP_FOR_EACH_RULE(X) \
  X(sgd, Sgd)                \
  X(adam, Adam)              \
  X(adagrad, Adagrad)        \
  X(rmsprop, RMSprop)        \
  X(nadam, NAdam)            \
  X(radam, RAdam)            \
  X(adamax, Adamax)

// The states of one parameter that a rule reads and writes besides it, at most.
constexpr int kMostStates = 3;

struct RuleArgs {
  double grad_scale = 1;  // what the gradient is multiplied by first
  bool maximize = false;
  double lr = 0, weight_decay = 0;
};

struct SgdArgs : RuleArgs {
  double momentum = 0, dampening = 0;
  bool nesterov = false;
  bool first = false;  // the momentum buffer has no value yet
};

struct AdamArgs : RuleArgs {
  double beta1 = 0, beta2 = 0, eps = 0;
  bool decoupled = false;  // AdamW's weight decay
  bool amsgrad = false;
  double step_size = 0;              // lr / (1 - beta1^t)
  double bias_correction2_sqrt = 0;  // sqrt(1 - beta2^t)
};

struct AdagradArgs : RuleArgs {
  double lr_decay = 0, eps = 0;
  double step_size = 0;  // lr / (1 + (t - 1) lr_decay)
};

struct RMSpropArgs : RuleArgs {
  double alpha = 0, eps = 0, momentum = 0;
  bool centered = false;
};

// mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), and P_t the product of mu_1 to mu_t.
struct NAdamArgs : RuleArgs {
  double beta1 = 0, beta2 = 0, eps = 0, momentum_decay = 0;
  bool decoupled = false;
  double grad_step_size = 0;      // lr (1 - mu_t) / (1 - P_t)
  double momentum_step_size = 0;  // lr mu_(t+1) / (1 - P_t mu_(t+1))
  double bias_correction2 = 0;    // 1 - beta2^t
};

struct RAdamArgs : RuleArgs {
  double beta1 = 0, beta2 = 0, eps = 0;
  bool decoupled = false;
  double bias_correction1 = 0, bias_correction2_sqrt = 0;
  double rectification = 0;  // 0 while the second moment is not to be used (rho_t <= 5)
};

struct AdamaxArgs : RuleArgs {
  double beta1 = 0, beta2 = 0, eps = 0;
  double step_size = 0;  // lr / (1 - beta1^t)
};

}  // namespace mlp_ext
