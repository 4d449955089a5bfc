// The update rules, one element at a time, once for every backend. The order of operations is that
// of PyTorch's for-loop implementations (torch/optim/{sgd,adam,adamw}.py), so that states agree to
// rounding. V is a SIMD vector or a scalar; the hyperparameters are prepared by the caller in
// double precision and broadcast once.

MLP_NAMESPACE_BEGIN

template <class V>
struct SgdRule {
  V grad_scale, lr, weight_decay, momentum, one_minus_dampening;
  bool decays, has_momentum, first, nesterov, maximize;

  // `buffer` is read unless `first`, and written if has_momentum.
  void operator()(V& param, V grad, V& buffer) const {
    grad = grad_scale * grad;
    if (maximize) grad = -grad;
    if (decays) grad = fma(weight_decay, param, grad);
    if (has_momentum) {
      buffer = first ? grad : fma(one_minus_dampening, grad, momentum * buffer);
      grad = nesterov ? fma(momentum, buffer, grad) : buffer;
    }
    param = fma(-lr, grad, param);
  }
};

template <class V>
struct AdamRule {
  V grad_scale;
  // step_size = lr / (1 - beta1^t); denom = sqrt(v) / bias_correction2_sqrt + eps.
  V one_minus_beta1, beta2, one_minus_beta2, step_size, bias_correction2_sqrt, eps, weight_decay,
      decay_factor;
  bool decays, decoupled, amsgrad, maximize;

  // `max_exp_avg_sq` is read and written if amsgrad.
  void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, V& max_exp_avg_sq) const {
    grad = grad_scale * grad;
    if (maximize) grad = -grad;
    if (decays) {
      if (decoupled) {
        param = param * decay_factor;  // 1 - lr * weight_decay
      } else {
        grad = fma(weight_decay, param, grad);
      }
    }
    exp_avg = fma(one_minus_beta1, grad - exp_avg, exp_avg);
    exp_avg_sq = fma(one_minus_beta2 * grad, grad, beta2 * exp_avg_sq);
    V second = exp_avg_sq;
    if (amsgrad) second = max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq);
    param = param - step_size * exp_avg / (sqrt(second) / bias_correction2_sqrt + eps);
  }
};

MLP_NAMESPACE_END
